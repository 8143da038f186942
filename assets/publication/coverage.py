"""Coverage: which share of all cases is counted, from the clinics' public yearly figures, and numbers scaled by it.

Counted are consenting patients only, and of each a bounded number of cases. Post-processing of published values and
of public figures. Not here: the figures themselves (the city file), the meaning of the columns (`catalogue`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from assets.contract.city import City
from assets.contract.codes import CARE
from assets.contract.terms import LEVEL_DAYS, WINDOW_DAYS
from assets.publication.catalogue import TOTAL
from assets.publication.ratios import Z95, fieller

SCALED_MEASURES: Final = ("count", "rate_per_100000", "age_standardised_rate")
"""Measures that grow with the number of cases; shares and lengths of stay do not."""
_DAYS_OF_YEAR: Final = 365.25
_COARSE_FIRST: Final = ("window", "period", "week", "day")


def public_cases(city: City) -> dict[str, int]:
    """Cases of all patients of all clinics in a year, for each `care`; empty unless every clinic has a figure."""
    reports = [c.quality_report for c in city.clinics]
    if not reports or any(r is None for r in reports):
        return {}
    return {care: sum(r.cases[care] for r in reports if r) for care in CARE}


def _start(days: pd.Series, city: City, size: int) -> pd.Series:
    """First day of the unit of `size` days that holds each of `days`."""
    epoch = pd.Timestamp(city.budget.epoch)
    return epoch + pd.to_timedelta((days - epoch).dt.days // size * size, "D")


def _days_within(start: pd.Series, end: pd.Series, first: pd.Timestamp, after: pd.Timestamp) -> pd.Series:
    """Days of the units from `start` up to, not including, `end` that lie in [first, after)."""
    return (end.clip(upper=after) - start.clip(lower=first)).dt.days.clip(lower=0)


def _expected(blocks: pd.DataFrame, city: City) -> pd.Series:
    """Cases of all patients in each of `blocks` by the public figures, of each clinic for the days it delivers."""
    expected = pd.Series(0.0, index=blocks.index)
    end = blocks["unit_start"] + pd.to_timedelta(blocks["time_level"].map(LEVEL_DAYS), "D")
    for clinic in city.clinics:
        cases = clinic.quality_report.cases if clinic.quality_report else dict.fromkeys(CARE, 0)
        first = pd.Timestamp(clinic.delivers_from or pd.Timestamp.min)
        after = (
            pd.Timestamp(clinic.delivers_until) + pd.Timedelta(1, "D") if clinic.delivers_until else pd.Timestamp.max
        )
        days = _days_within(blocks["unit_start"], end, first, after)
        for pause in clinic.pauses:
            days -= _days_within(
                blocks["unit_start"], end, pd.Timestamp(pause.first), pd.Timestamp(pause.last) + pd.Timedelta(1, "D")
            )
        expected += days * blocks["care"].map(cases).astype(float) / _DAYS_OF_YEAR
    return expected


def clinics_changed(frame: pd.DataFrame, city: City) -> pd.Series:
    """For each row (period_start, period_end): clinics that joined, left or paused inside that unit of time; else null."""
    found = pd.Series("", index=frame.index)
    for clinic in city.clinics:
        for day, word, shift in ((clinic.delivers_from, "from", 0), (clinic.delivers_until, "until", 1)):
            if day:
                change = pd.Timestamp(day) + pd.Timedelta(shift, "D")
                inside = (frame["period_start"] < change) & (change <= frame["period_end"])
                found = found.where(~inside, found + f"; {clinic.key} {word} {day}")
        for pause in clinic.pauses:
            touched = (frame["period_start"] <= pd.Timestamp(pause.last)) & (
                pd.Timestamp(pause.first) <= frame["period_end"]
            )
            found = found.where(~touched, found + f"; {clinic.key} paused {pause.first} to {pause.last}")
    return found.str.removeprefix("; ").replace("", None).astype("str")


def coverage(cells: pd.DataFrame, city: City) -> pd.DataFrame:
    """Columns care, window, coverage, coverage_variance: counted cases by those that the public figures let expect.

    `cells`: `ESTIMATES`. While a window is open, the days published so far against as many days of the year.
    """
    figures = {care: n for care, n in public_cases(city).items() if n}
    totals = cells[(cells["dimensions"] == TOTAL) & cells["care"].isin(list(figures))]
    parts: list[pd.DataFrame] = []
    for level in _COARSE_FIRST:
        mine = totals[totals["time_level"] == level]
        for coarser, size in ((p, LEVEL_DAYS[p["time_level"].iloc[0]]) for p in parts if len(p)):
            covered = pd.MultiIndex.from_frame(coarser[["care", "unit_start"]])
            own = pd.MultiIndex.from_arrays([mine["care"], _start(mine["unit_start"], city, size)])
            mine = mine[~own.isin(covered)]
        parts.append(mine)
    blocks = pd.concat(parts, ignore_index=True)
    blocks["window"] = _start(blocks["unit_start"], city, WINDOW_DAYS)
    blocks["expected"] = _expected(blocks, city)
    found = blocks.groupby(["care", "window"], as_index=False)[["value", "variance", "expected"]].sum()
    found = found[found["expected"] > 0]
    expected = found["expected"].to_numpy(float)
    return pd.DataFrame(
        {"care": found["care"], "window": found["window"], "coverage": found["value"].to_numpy(float) / expected,
         "coverage_variance": found["variance"].to_numpy(float) / expected**2}
    )  # fmt: skip


def with_coverage(frame: pd.DataFrame, covered: pd.DataFrame, city: City) -> pd.DataFrame:
    """`frame` (unit_start, care, measure, value, interval) with the columns of coverage and of all patients.

    The scaled interval is Fieller's for the ratio of two values that are taken as independent: they are positively
    correlated, as the part to its whole, so it is rather too wide.
    """
    frame = frame.assign(window=_start(frame["unit_start"], city, WINDOW_DAYS)).merge(
        covered, on=["care", "window"], how="left"
    )
    share, spread = frame["coverage"].to_numpy(float), frame["coverage_variance"].to_numpy(float)
    half = Z95 * np.sqrt(spread)
    variance = ((frame["ci95_upper"] - frame["ci95_lower"]).to_numpy(float) / (2 * Z95)) ** 2
    scaled = fieller(frame["value"].to_numpy(float), share, variance, np.zeros(len(frame)), spread)
    grows = frame["measure"].isin(SCALED_MEASURES).to_numpy()
    value, low, high = (np.where(grows, x, np.nan) for x in scaled)
    return frame.assign(
        coverage_ci95_lower=share - half,
        coverage_ci95_upper=share + half,
        value_all_patients=value,
        all_patients_ci95_lower=low,
        all_patients_ci95_upper=high,
    ).drop(columns=["window", "coverage_variance"])
