from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from assets.contract.city import City
from assets.contract.codes import AGE_GROUP_KEYS
from assets.privacy.consistency import Level, Product, estimate, variance
from assets.privacy.plan import level_of, price
from assets.publication.derived import STANDARD_POPULATION, months, standardised

Frames = dict[str, pd.DataFrame]


def _cells(estimates: pa.Table) -> pd.DataFrame:
    frame = estimates.to_pandas()
    return frame.assign(unit_start=pd.to_datetime(frame["unit_start"]), unit_end=pd.to_datetime(frame["unit_end"]))


def test_a_month_is_the_sum_of_its_days_and_only_whole_months_are_there(frames: Frames) -> None:
    counts = frames["cases_by_area"].query("measure == 'count' and care == 'inpatient'")
    mine = counts[counts["area_key"] == "64283"]
    month = mine[mine["time_level"] == "month"].set_index("period_start")
    assert list(month.index) == list(pd.date_range("2025-01-01", "2025-11-01", freq="MS"))
    day = mine[mine["time_level"] == "day"].set_index("period_start")["value"]
    march = month.loc["2025-03-01"]
    assert march["value"] == pytest.approx(day.loc["2025-03-01":"2025-03-31"].sum())
    assert march["period_end"] == pd.Timestamp("2025-03-31") and pd.isna(march["iso_week"])
    rate = frames["cases_by_area"].query(
        "measure == 'rate_per_100000' and time_level == 'month' and area_key == '64283' and care == 'inpatient'"
    )
    assert len(rate) == 11


def test_a_month_takes_its_variance_from_whole_weeks_where_it_can(estimates: pa.Table) -> None:
    cells = _cells(estimates)
    cells.loc[cells["time_level"] == "day", "variance"] = 10.0
    cells.loc[cells["time_level"] == "week", "variance"] = 14.0
    found = months(cells).set_index(["unit_start", "care", "area"])
    # March 2025 begins on a Saturday: two days, four weeks, one Monday
    assert found.loc[(pd.Timestamp("2025-03-01"), "inpatient", "64283"), "variance"] == pytest.approx(3 * 10 + 4 * 14)
    # without weeks: 31 days
    alone = months(cells[cells["time_level"] == "day"]).set_index(["unit_start", "care", "area"])
    assert alone.loc[(pd.Timestamp("2025-03-01"), "inpatient", "64283"), "variance"] == pytest.approx(310)


def test_a_month_is_final_only_when_all_its_days_are(estimates: pa.Table) -> None:
    cells = _cells(estimates)
    cells["status"] = np.where(cells["unit_end"] < pd.Timestamp("2025-02-15"), "final", "provisional")
    found = months(cells).groupby("unit_start")["status"].agg(set)
    assert found[pd.Timestamp("2025-01-01")] == {"final"} and found[pd.Timestamp("2025-02-01")] == {"provisional"}
    assert set(months(cells)["status"]) == {"final", "provisional"}


def test_no_days_give_no_months(estimates: pa.Table, city: City) -> None:
    cells = _cells(estimates)
    assert months(cells[cells["time_level"] == "week"]).empty and standardised(cells.head(0), city).empty


def test_intervals_of_months_are_never_too_narrow_under_the_real_plan(city: City) -> None:
    """Noise alone, through the real least squares: the error of a month against its stated variance."""
    rng = np.random.default_rng(5)
    product = Product((1, 13, 52, 364), (10,))
    day, week, total = level_of("day", ("area",)), level_of("week", ("area",)), level_of("day", ())
    names: dict[Level, str] = {day: "day_area", week: "week_area", total: "day"}
    spread = {p.table.name: float(p.variance) for p in price(city).tables}
    variances = {level: spread[name] for level, name in names.items()}
    of_day, of_week = (variance(product, level, variances) for level in (day, week))
    dates = pd.date_range(city.budget.epoch, periods=364)
    mondays = dates[::7]
    scores = []
    for _ in range(40):
        shapes = {day: (364, 10), week: (52, 10), total: (364,)}
        tables = {lv: rng.normal(0, variances[lv] ** 0.5, shape) for lv, shape in shapes.items()}
        found = estimate(product, tables, variances, [day, week])
        parts = []
        for time, starts, level, v in (("day", dates, day, of_day), ("week", mondays, week, of_week)):
            index = pd.MultiIndex.from_product([starts, range(10)], names=["unit_start", "area"])
            part = index.to_frame(index=False).assign(value=found[level].ravel(), variance=v, time_level=time)
            parts.append(part.assign(dimensions="area", care="inpatient", status="final", unit_end=part["unit_start"]))
        result = months(pd.concat(parts, ignore_index=True))
        scores.append(result["value"] / np.sqrt(result["variance"]))
    assert 0.7 < np.concatenate(scores).std() <= 1.02


def test_a_standardised_rate_weighs_ages_as_the_standard_population(estimates: pa.Table, city: City) -> None:
    assert sum(STANDARD_POPULATION.values()) == 100_000 and tuple(STANDARD_POPULATION) == AGE_GROUP_KEYS
    cells = _cells(estimates)
    area = city.areas[0]
    mine = (cells["dimensions"] == "area+age_group+sex") & (cells["area"] == area.key)
    for age in AGE_GROUP_KEYS:  # ten of a hundred residents of every age: a rate of 10,000 whatever the ages are
        residents = area.residents(age)
        assert residents
        cells.loc[mine & (cells["age_group"] == age), "value"] = residents / 10 / 3
    found = standardised(cells, city)
    assert set(found["area"]) == {a.key for a in city.areas if a.population}
    one = found[(found["area"] == area.key) & (found["care"] == "inpatient")].iloc[0]
    assert one["value"] == pytest.approx(10_000)
    by_hand = sum(3 * 900.0 * (STANDARD_POPULATION[age] / (area.residents(age) or 1)) ** 2 for age in AGE_GROUP_KEYS)
    assert one["variance"] == pytest.approx(by_hand)


def test_a_standardised_rate_needs_every_cell(estimates: pa.Table, city: City) -> None:
    cells = _cells(estimates)
    gap = (cells["area"] == "64283") & (cells["age_group"] == "85+") & (cells["sex"] == "w")
    assert "64283" not in set(standardised(cells[~gap], city)["area"])


def test_published_standardised_rates_are_of_the_window(frames: Frames) -> None:
    rates = frames["cases_by_area"].query("measure == 'age_standardised_rate'")
    assert len(rates) == 2 * 9 and set(rates["time_level"]) == {"window"} and rates["sex"].isna().all()
    assert (rates["ci95_upper"] > rates["ci95_lower"]).all() and date(2025, 12, 28) == rates["period_end"].iloc[
        0
    ].date()
