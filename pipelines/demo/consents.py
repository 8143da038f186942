"""Consents of the demo city: who signed what and when, who withdrew and how, and when a clinic delivers it."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

# Scenario → share of (clinic, patient) pairs; about 70% hold a permit that is enough.
SCENARIOS: Final = {
    "none": 0.24, "permit": 0.62, "permit_split": 0.05, "use_denied": 0.02, "expired": 0.01, "late": 0.03,
    "withdrawn_new": 0.01, "withdrawn_state": 0.01, "withdrawn_status": 0.01,
}  # fmt: skip
WITHDRAWN: Final = tuple(s for s in SCENARIOS if s.startswith("withdrawn"))
COLLECT_YEARS, STORE_YEARS = 5, 30
"""Terms of the MII broad consent: collecting data five years, storing and using them thirty."""
YEAR: Final = pd.Timedelta(days=365)


def draw_consents(cases: pd.DataFrame, last_day: pd.Timestamp, rng: np.random.Generator) -> pd.DataFrame:
    """One row a (clinic, patient): patient_id, first_case, scenario, signed, collect_to, store_to, withdrawn_on,
    arrival (of the document) and withdrawal_arrival. Dates are null where there is nothing of the kind.
    """
    order = cases.sort_values(["first_arrival", "admitted"], kind="stable")
    first = order.drop_duplicates(["clinic", "patient_id"])
    docs = first[["clinic", "format", "patient_id", "person", "case_id", "admitted", "first_arrival"]].rename(
        columns={"case_id": "first_case"}
    ).reset_index(drop=True)  # fmt: skip
    n = len(docs)
    scenario = rng.choice(list(SCENARIOS), n, p=list(SCENARIOS.values()))
    days = (last_day - docs["first_arrival"]).dt.days.to_numpy()
    # Nobody can withdraw after the last delivery.
    scenario = np.where(np.isin(scenario, WITHDRAWN) & (days < 2), "permit", scenario)
    docs["scenario"] = scenario
    long_ago = rng.random(n) < 0.55
    start = pd.Series(docs["admitted"].min(), index=docs.index)
    signed = (start - pd.to_timedelta(rng.integers(1, 900, n), "D")).where(long_ago, docs["admitted"])
    signed = signed.where(scenario != "expired", start - pd.to_timedelta(rng.integers(2200, 3000, n), "D"))
    later = docs["admitted"] + pd.to_timedelta(rng.integers(10, 60, n), "D")
    signed = signed.where(scenario != "late", later)
    docs["signed"] = signed
    docs["collect_to"] = signed + COLLECT_YEARS * YEAR
    docs["store_to"] = signed + STORE_YEARS * YEAR
    docs["arrival"] = docs["first_arrival"].where(scenario != "late", signed + pd.Timedelta(days=1))
    withdrawal = docs["first_arrival"] + pd.to_timedelta(1 + (rng.random(n) * (days - 1).clip(1)).astype(int), "D")
    docs["withdrawn_on"] = withdrawal.where(docs["scenario"].isin(WITHDRAWN))
    docs["withdrawal_arrival"] = docs["withdrawn_on"]
    unsigned = (docs["scenario"] == "none") | (docs["arrival"] > last_day)
    docs["scenario"] = docs["scenario"].where(~unsigned, "none")
    return docs


def permitted(cases: pd.DataFrame, docs: pd.DataFrame, last_day: pd.Timestamp) -> pd.DataFrame:
    """(consent_scenario, consented) of each case, as they stand on `last_day`: the truth, from the scenario alone."""
    joined = cases[["clinic", "patient_id", "admitted", "discharged", "last_arrival"]].merge(
        docs[["clinic", "patient_id", "scenario", "signed", "collect_to"]], on=["clinic", "patient_id"], how="left"
    )  # fmt: skip
    signed = joined["scenario"].isin(["permit", "permit_split", "late"])
    # The clinic has told of the discharge only if the last version was delivered.
    end = joined["discharged"].where(joined["last_arrival"] <= last_day, last_day)
    inside = (joined["admitted"] >= joined["signed"]) & (np.maximum(end, joined["admitted"]) <= joined["collect_to"])
    return pd.DataFrame({"consent_scenario": joined["scenario"].to_numpy(), "consented": (signed & inside).to_numpy()})
