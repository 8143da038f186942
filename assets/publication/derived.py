"""Indicators that need nothing but the published estimates: calendar months and age-standardised rates.

Both are sums of estimates with positive weights. Estimates of days of an area, and of age groups of an area, are
never positively correlated: in the least squares (`privacy.consistency`) a coarser subspace is contained in more
tables, so its precision is never lower than that of the finer one it was split from. Adding variances therefore gives
an interval that is right or rather too wide, never too narrow. Not here: indicators with a noisy denominator.
"""

from __future__ import annotations

from typing import Final

import pandas as pd

from assets.contract.city import AT_CAP, LEVEL_DAYS, PERIOD_DAYS, QUARTER_DAYS, WEEK_DAYS, City
from assets.contract.codes import AGE_GROUP_KEYS, SEXES
from assets.publication.catalogue import TOTAL

MONTH: Final = "month"
STANDARD_POPULATION: Final[dict[str, int]] = {
    "0-4": 5_000,
    "5-14": 11_000,
    "15-24": 11_500,
    "25-44": 26_500,
    "45-64": 26_500,
    "65-74": 10_500,
    "75-84": 6_500,
    "85+": 2_500,
}
"""European Standard Population 2013 (Eurostat, Revision of the European Standard Population), of 100,000."""
STANDARD_LEVEL: Final = "area+age_group+sex"


def months(cells: pd.DataFrame) -> pd.DataFrame:
    """Calendar months, as rows like `cells`: estimates of days summed, for areas and for all areas together.

    `cells`: `ESTIMATES` of levels `total` and `area`. Only months all of whose days are there. The variance takes
    whole weeks of the month from the estimates of weeks, which are more accurate than seven days added up.
    """
    same = ["care", "dimensions", "area"]
    day = cells[(cells["time_level"] == "day") & cells["dimensions"].isin(["total", "area"])]
    if day.empty:
        return cells.head(0)
    start = day["unit_start"]
    day = day.assign(month=start.dt.to_period("M").dt.start_time, week=start - pd.to_timedelta(start.dt.weekday, "D"))
    inside = day.groupby([*same, "month", "week"], dropna=False)["value"].transform("size") == 7
    week = cells.loc[cells["time_level"] == "week", [*same, "unit_start", "variance"]]
    day = day.merge(
        week.rename(columns={"unit_start": "week", "variance": "of_week"}), on=[*same, "week"], how="left"
    ).assign(inside=inside.to_numpy())
    day["variance"] = day["variance"].where(~day["inside"] | day["of_week"].isna(), day["of_week"] / 7)
    found = day.groupby([*same, "month"], dropna=False, as_index=False).agg(
        value=("value", "sum"), variance=("variance", "sum"), days=("value", "size"),
        status=("status", "first"), kinds=("status", "nunique"),
    )  # fmt: skip
    found = found[found["days"] == found["month"].dt.days_in_month]
    return found.assign(
        time_level=MONTH,
        unit_start=found["month"],
        unit_end=found["month"] + pd.offsets.MonthEnd(0),
        status=found["status"].where(found["kinds"] == 1, "provisional"),
    ).reindex(columns=cells.columns)


def corrected(cells: pd.DataFrame, city: City) -> pd.DataFrame:
    """Cases of a quarter with those that the caps left out, at least: rows like `cells`.

    Cases of the 13 weeks plus patients at their cap, each of whom stands for one case (of several left-out cases of a
    patient in a quarter one is corrected for). Both are measured apart, so their variances add up; whole periods of
    28 days of the quarter bring their own variance, which is smaller than that of their weeks.
    """
    at_cap = cells[cells["dimensions"] == AT_CAP]
    week = cells[(cells["dimensions"] == TOTAL) & (cells["time_level"] == "week")]
    if at_cap.empty or week.empty:
        return cells.head(0)
    epoch = pd.Timestamp(city.budget.epoch)

    def unit(frame: pd.DataFrame, level: str) -> pd.Series:
        size = LEVEL_DAYS[level]
        return epoch + pd.to_timedelta((frame["unit_start"] - epoch).dt.days // size * size, "D")

    week = week.assign(quarter=unit(week, "quarter"), period=unit(week, "period"))
    inside = week.groupby(["care", "quarter", "period"])["value"].transform("size") == PERIOD_DAYS // WEEK_DAYS
    period = cells[(cells["dimensions"] == TOTAL) & (cells["time_level"] == "period")]
    period = period[["care", "unit_start", "variance"]].rename(
        columns={"unit_start": "period", "variance": "of_period"}
    )
    week = week.merge(period, on=["care", "period"], how="left").assign(inside=inside.to_numpy())
    share = week["of_period"] * WEEK_DAYS / PERIOD_DAYS
    week["variance"] = week["variance"].where(~week["inside"] | share.isna(), share)
    cases = week.groupby(["care", "quarter"], as_index=False).agg(
        cases=("value", "sum"), spread=("variance", "sum"), weeks=("value", "size"),
        provisional=("status", lambda s: (s == "provisional").any()),
    )  # fmt: skip
    cases = cases[cases["weeks"] == QUARTER_DAYS // WEEK_DAYS]
    found = at_cap.merge(cases, left_on=["care", "unit_start"], right_on=["care", "quarter"])
    return found.assign(
        value=found["value"] + found["cases"],
        variance=found["variance"] + found["spread"],
        status=found["status"].where(~found["provisional"], "provisional"),
    ).reindex(columns=cells.columns)


def standardised(cells: pd.DataFrame, city: City) -> pd.DataFrame:
    """Age-standardised rate per 100,000 of each area with known residents: rows like `cells`, of dimension `area`.

    Σ over age groups of (share in the standard population × cases / residents × 100,000), both sexes and those
    whose sex is not known. `cells`: `ESTIMATES` of the level area × age group × sex.
    """
    mine = cells[cells["dimensions"] == STANDARD_LEVEL]
    if mine.empty:
        return cells.head(0)
    factors = pd.DataFrame(
        [
            (area.key, age, STANDARD_POPULATION[age] / residents)
            for area in city.areas
            for age in AGE_GROUP_KEYS
            if (residents := area.residents(age))
        ],
        columns=["area", "age_group", "factor"],
    )
    same = ["time_level", "unit_start", "unit_end", "care", "status", "area"]
    joined = mine.merge(factors, on=["area", "age_group"])
    joined["value"] *= joined["factor"]
    joined["variance"] *= joined["factor"] ** 2
    found = joined.groupby(same, as_index=False).agg(
        value=("value", "sum"), variance=("variance", "sum"), cells=("value", "size")
    )
    found = found[found["cells"] == len(AGE_GROUP_KEYS) * len(SEXES)]
    return found.assign(dimensions="area").reindex(columns=cells.columns)
