"""Indicators that are sums of published estimates: cases of a quarter corrected for the caps.

Here: sums whose parts are measured apart, so that variances add up. Not here: sums of estimates of one block of
time (`privacy.sums`, which knows their covariances), indicators with a noisy denominator (`ratios`).
"""

from __future__ import annotations

from typing import Final

import pandas as pd

from assets.contract.terms import AT_CAP
from assets.publication.catalogue import TOTAL

STANDARDISED: Final = "area+standard_age"
"""`dimensions` of the estimates that are age-standardised rates."""


def corrected(cells: pd.DataFrame) -> pd.DataFrame:
    """Cases of a quarter with those that the caps left out, at least: rows like `cells` (`ESTIMATES`).

    Cases of the quarter plus patients at their cap, each of whom stands for one case: of several left-out cases of a
    patient in a quarter one is corrected for.
    """
    at_cap = cells[cells["dimensions"] == AT_CAP]
    cases = cells[(cells["dimensions"] == TOTAL) & (cells["time_level"] == "quarter")]
    same = ["care", "unit_start"]
    found = at_cap.merge(cases[[*same, "value", "variance", "status"]], on=same, suffixes=("", "_cases"))
    return found.assign(
        value=found["value"] + found["value_cases"],
        variance=found["variance"] + found["variance_cases"],
        status=found["status_cases"],
    ).reindex(columns=cells.columns)
