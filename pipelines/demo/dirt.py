"""Dirt as it really occurs: which cases carry which fault, and what must become of them.

Here: which fault, and the truth about it. Not here: what the fault looks like in a file (`fhir_export`,
`csv_exports`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd

Fate = Literal["ok", "quarantined", "not_counted"]


@dataclass(frozen=True)
class Fault:
    """`formats` it occurs in; `once`: only for a case delivered once, of a patient with no other case in that clinic."""

    name: str
    formats: tuple[str, ...]
    fate: Fate
    once: bool = False


ALL: Final = ("fhir", "p21", "practice")
FAULTS: Final = (
    Fault("discharge_before_admission", ALL, "quarantined", once=True),
    Fault("admitted_in_future", ALL, "quarantined", once=True),
    Fault("postal_code_malformed", ALL, "quarantined", once=True),
    Fault("sex_unreadable", ALL, "quarantined", once=True),
    Fault("born_in_future", ALL, "quarantined", once=True),
    Fault("patient_id_missing", ("practice",), "quarantined", once=True),
    Fault("ragged_row", ("practice",), "quarantined", once=True),
    Fault("icd_malformed", ALL, "ok"),
    Fault("icd_missing", ALL, "ok"),
    Fault("duplicate_row", ALL, "ok"),
    Fault("postal_code_missing", ALL, "ok", once=True),
    Fault("insured_id_invalid", ALL, "ok", once=True),
    Fault("birth_year_only", ("fhir",), "ok", once=True),
    Fault("icd_undotted", ("p21", "practice"), "ok"),
    Fault("hour_24", ("p21",), "ok"),
    Fault("reason_three_digits", ("p21",), "ok"),
    Fault("date_german", ("practice",), "ok"),
    Fault("entered_in_error", ("fhir",), "not_counted"),
    Fault("cancelled", ("fhir",), "not_counted"),
    Fault("companion", ("fhir", "p21"), "not_counted"),
    Fault("pia", ("p21",), "not_counted"),
    Fault("planned_visit", ("practice",), "not_counted"),
)
FATES: Final = {f.name: f.fate for f in FAULTS}
CHAPTER_LOST: Final = ("icd_malformed", "icd_missing")


def draw_dirt(cases: pd.DataFrame, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Name of the fault of each case, or an empty string. `rate`: share of cases with one."""
    dirt = np.full(len(cases), "", dtype=object)
    hit = rng.random(len(cases)) < rate
    single = ((cases["first_arrival"] == cases["last_arrival"]) & (cases["visits_here"] == 1)).to_numpy()
    for kind in cases["format"].unique():
        for alone in (False, True):
            rows = np.flatnonzero(hit & (cases["format"] == kind).to_numpy() & (single == alone))
            names = [f.name for f in FAULTS if kind in f.formats and (alone or not f.once)]
            dirt[rows] = np.array(names, dtype=object)[rng.integers(0, len(names), len(rows))]
    return dirt
