"""Consent over a range of arrival days: register every provision, decide every case, pass on what is permitted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow.compute as pc

from assets.consent.rule import decide, keep_permitted, not_permitted_patients
from assets.contract.city import City
from assets.contract.schemas import CONSENT_PROVISIONS
from assets.intake.stage import staged
from assets.lake.lake import Lake


def run(lake: Lake, city: City, days: Sequence[date]) -> dict[str, Any]:
    """Stages consented tables and the list of patients whose data must go; returns counts by reason.

    The evaluation day is the newest arrival day known to the lake, so that a run for an earlier day never
    forgets a withdrawal that has come since.
    """
    tables = staged(lake, "canonical", days)
    lake.write_days("consent_register", days, tables["consent_provisions"], "arrival_day")
    evaluation_day = max([days[-1], *lake.days("consent_register"), *lake.days("cases")])
    register = lake.read("consent_register", CONSENT_PROVISIONS)
    decisions = decide(tables["cases"], register, city.consent, evaluation_day)
    lake.write_days("consent_decisions", days, decisions, "arrival_day")
    consented = keep_permitted(tables, decisions)
    for name, table in {**tables, **consented}.items():
        lake.write(f"staging/consented/{name}", days[-1], table)
    lake.write("staging/not_permitted", days[-1], not_permitted_patients(register, city.consent, evaluation_day))
    reasons = {v["values"]: v["counts"] for v in pc.value_counts(decisions.column("reason")).to_pylist()}
    return {"evaluation_day": evaluation_day, "cases": decisions.num_rows, "reasons": reasons}
