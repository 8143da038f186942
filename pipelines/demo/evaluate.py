"""How far the published numbers of a demo run are from its truth. Only a synthetic city can be compared so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from assets.contract.city import City
from assets.contract.codes import CARE
from assets.contract.terms import AT_CAP, LEVEL_DAYS
from assets.identity.pseudonyms import case_keys
from assets.lake.lake import Lake
from assets.privacy.bounding import decide
from assets.privacy.plan import price
from assets.privacy.stage import publishable


def decided_truth(truth: pd.DataFrame, lake: Lake, city: City) -> pd.DataFrame:
    """The cases of the truth that are valid, consented and came while their week was open.

    `kept` says whether the caps let them count, `late` whether they came after their day was measured.
    """
    good = truth[(truth["fate"] == "ok") & truth["consented"]]
    known = [(city.known_on(day), city.week_known_on(day)) for day in good["admitted_on"]]
    in_time, in_week = (np.array([k[i] for k in known]) >= good["first_arrival_day"].to_numpy() for i in (0, 1))
    good = good.assign(late=~in_time)[in_week]
    unlinked = good["clinic"] + "/" + good["patient_id"]
    good["person_key"] = np.where(good["insured_id_valid"], good["insured_id"].fillna(""), unlinked)
    ids = pa.table({name: pa.array(good[name], pa.string()) for name in ("clinic", "case_id")})
    keys = case_keys(ids, lake.keys).to_pandas()
    good = good.merge(keys.rename(columns={"id": "case_id", "key": "case_key"}), on=["clinic", "case_id"])
    good = good.sort_values(["first_arrival_day", "person_key", "case_key"])
    events = pa.table(
        {
            "decided_on": pa.array(good["first_arrival_day"], pa.date32()),
            "person_key": pa.array(good["person_key"], pa.string()),
            "case_key": pa.array(good["case_key"], pa.string()),
            "clinic": pa.array(good["clinic"], pa.string()),
            "event_day": pa.array(good["admitted_on"], pa.date32()),
        }
    )
    decisions = decide(
        events, events.slice(0, 0).append_column("kept", pa.array([], pa.bool_())), city.caps, city.budget.epoch
    )
    kept = decisions.filter(decisions.column("kept")).column("case_key").to_pylist()
    return good.assign(kept=good["case_key"].isin(kept))


def bounded_truth(truth: pd.DataFrame, lake: Lake, city: City) -> pd.DataFrame:
    """The cases of the truth that should count, one row each."""
    decided = decided_truth(truth, lake, city)
    return decided[decided["kept"]]


def errors(lake: Lake, city: City, truth_folder: Path) -> list[dict[str, Any]]:
    """For each published level of what is known at admission: mean count, expected and actual mean absolute error."""
    counted = bounded_truth(pd.read_parquet(truth_folder / "cases.parquet"), lake, city)
    epoch = pd.Timestamp(city.budget.epoch)
    since = (pd.to_datetime(counted["admitted_on"]) - epoch).dt.days
    estimates = publishable(lake, city).to_pandas(date_as_object=False)
    rows = []
    expected = {(e.time, e.dimensions): e for e in price(city).errors if e.care == CARE[0]}
    for (time, dimensions), promised in expected.items():
        if {"los", "outcome", AT_CAP} & set(dimensions):
            continue
        mine = estimates[
            (estimates["time_level"] == time) & (estimates["dimensions"] == ("+".join(dimensions) or "total"))
        ]
        if mine.empty:
            continue
        size = LEVEL_DAYS[time]
        keys = ["unit_start", "care", *dimensions]
        inside = counted[~counted["late"]] if time == "day" else counted
        exact = (
            inside.assign(unit_start=epoch + pd.to_timedelta(since[inside.index] // size * size, "D"))
            .groupby(keys, observed=True).size().rename("exact").reset_index()
        )  # fmt: skip
        exact["unit_start"] = exact["unit_start"].astype(mine["unit_start"].dtype)
        joined = mine.merge(exact, on=keys, how="left").fillna({"exact": 0})
        error = float((joined["value"] - joined["exact"]).abs().mean())
        covered = ((joined["value"] - joined["exact"]).abs() <= 1.96 * np.sqrt(joined["variance"])).mean()
        rows.append(
            {
                "level": f"{time} × {' × '.join(dimensions) or 'city'}",
                "cells": len(joined),
                "mean count": round(float(joined["exact"].mean()), 1),
                "expected error": round(promised.mae, 2),
                "actual error": round(error, 2),
                "inside 95% interval": f"{covered:.1%}",
            }
        )
    return rows
