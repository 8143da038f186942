"""Sums of estimates: their variance is that of dense least squares, their interval is neither wide nor narrow."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from assets.contract.city import City
from assets.contract.codes import AGE_GROUP_KEYS, STANDARD_POPULATION
from assets.privacy.consistency import Product, variance_of_sum
from assets.privacy.estimates import estimates
from assets.privacy.ledger import Committed
from assets.privacy.measure import due, measurement_id
from assets.privacy.plan import price

EPOCH = date(2024, 12, 30)
Noisy = Callable[[int], dict[str, Committed]]


def test_the_variance_of_any_sum_is_that_of_dense_least_squares():
    product, rng = Product((1, 2, 6), (3, 2)), np.random.default_rng(4)
    full = np.indices((6, 3, 2)).reshape(3, -1)

    def matrix(level: tuple[int, tuple[int, ...]]) -> np.ndarray:
        shape = [product.time[level[0]], *(product.dimensions[d] for d in level[1])]
        key = [full[0] // (6 // shape[0]), *(full[1 + d] for d in level[1])]
        out = np.zeros((int(np.prod(shape)), 36))
        out[np.ravel_multi_index(key, shape), np.arange(36)] = 1
        return out

    variances = {(2, ()): 2.0, (2, (0,)): 3.0, (1, (0, 1)): 1.5, (0, (0, 1)): 0.7, (2, (1,)): 5.0}
    stacked = np.vstack([matrix(m) / v**0.5 for m, v in variances.items()])
    inverse = np.linalg.pinv(stacked.T @ stacked)
    for query in ((2, ()), (2, (0,)), (1, (0, 1)), (0, (0, 1)), (1, (1,))):
        for _ in range(5):
            time = rng.normal(size=product.time[query[0]])
            weights = {d: rng.normal(size=product.dimensions[d]) for d in query[1]}
            w = time
            for d in query[1]:
                w = np.multiply.outer(w, weights[d])
            m = matrix(query)
            dense = w.ravel() @ m @ inverse @ m.T @ w.ravel()
            assert variance_of_sum(product, query, variances, time, weights) == pytest.approx(dense, rel=1e-9)
    assert variance_of_sum(product, (2, (0, 1)), variances, np.ones(6), {0: np.ones(3), 1: np.ones(2)}) is None


@pytest.fixture(scope="module")
def noisy(city: City) -> Noisy:
    """`noisy(days)`: committed measurements of so many days of nothing but noise."""
    rng, plan = np.random.default_rng(9), price(city)

    def make(days: int) -> dict[str, Committed]:
        measured = {}
        frozen = [EPOCH + timedelta(n) for n in range(days)]
        for table, unit in due(city, frozen, frozen, EPOCH + timedelta(9999), ()):
            drawn = next(p.noise for p in plan.tables if p.table.name == table.name)
            cells = 2 * int(np.prod([len(city.categories(d)) for d in table.axes], dtype=int))
            values = np.rint(rng.normal(0, drawn.variance**0.5, cells)).astype(int).tolist()
            about: dict[str, Any] = {"unit_start": unit.start.isoformat(), "table": table.name, **drawn.parameters}
            measured[measurement_id(table, unit)] = Committed("w", 0, about, values)
        return measured

    return make


def frame_of(city: City, measured: dict[str, Committed]) -> pd.DataFrame:
    return estimates(city, measured).to_pandas(date_as_object=False)


def test_a_month_is_the_sum_of_its_days_and_only_whole_months_are_there(city: City, noisy: Noisy):
    frame = frame_of(city, noisy(7 * 10 + 3))
    months = frame[frame["time_level"] == "month"]
    assert set(months["unit_start"]) == {pd.Timestamp("2025-01-01"), pd.Timestamp("2025-02-01")}
    assert len(months) == 2 * 2 * (1 + len(city.areas)) and set(months["status"]) == {"provisional"}
    days = frame[(frame["time_level"] == "day") & (frame["dimensions"] == "area") & (frame["area"] == "64283")]
    late = frame[(frame["time_level"] == "late") & (frame["dimensions"] == "area") & (frame["area"] == "64283")]
    of_february = late["unit_start"].isin(pd.to_datetime(["2025-02-03", "2025-02-10", "2025-02-17", "2025-02-24"]))
    inside = pd.concat([days[days["unit_start"].dt.month == 2], late[of_february]])  # weeks by their Thursday
    assert of_february.sum() == 2 * 4
    february = inside.groupby("care")["value"].sum()
    mine = months[(months["area"] == "64283") & (months["unit_start"].dt.month == 2)].set_index("care")["value"]
    assert mine.to_dict() == pytest.approx(february.to_dict())


def test_a_month_waits_until_its_last_week_takes_no_more_late_cases(city: City, noisy: Noisy):
    measured = noisy(7 * 10)
    without = {name: c for name, c in measured.items() if "2025-02-24+late" not in name}
    found = [set(frame_of(city, m).query("time_level == 'month'")["unit_start"]) for m in (measured, without)]
    assert found[0] - found[1] == {pd.Timestamp("2025-02-01")} and found[1] == {pd.Timestamp("2025-01-01")}


def test_a_quarter_is_the_sum_of_its_weeks(city: City, noisy: Noisy):
    frame = frame_of(city, noisy(364))
    total = frame[frame["dimensions"] == "total"]
    weeks = total[(total["time_level"] == "week") & (total["care"] == "inpatient")].sort_values("unit_start")
    quarters = total[(total["time_level"] == "quarter") & (total["care"] == "inpatient")].sort_values("unit_start")
    assert quarters["value"].to_numpy() == pytest.approx(weeks["value"].to_numpy().reshape(4, 13).sum(axis=1))
    assert set(quarters["status"]) == {"final"}


def test_a_standardised_rate_weighs_ages_as_the_standard_population(city: City, noisy: Noisy):
    assert sum(STANDARD_POPULATION.values()) == 100_000 and tuple(STANDARD_POPULATION) == AGE_GROUP_KEYS
    frame = frame_of(city, noisy(364))
    rates = frame[frame["dimensions"] == "area+standard_age"]
    assert set(rates["area"]) == {a.key for a in city.areas if a.population} and len(rates) == 2 * 9
    area = city.areas[0]
    cells = frame[(frame["dimensions"] == "area+age_group+sex") & (frame["area"] == area.key)]
    cells = cells[cells["care"] == "inpatient"]
    by_hand = sum(
        cells[cells["age_group"] == age]["value"].sum() / (area.residents(age) or 1) * STANDARD_POPULATION[age]
        for age in AGE_GROUP_KEYS
    )
    one = rates[(rates["area"] == area.key) & (rates["care"] == "inpatient")].iloc[0]
    assert one["value"] == pytest.approx(by_hand)


@pytest.mark.parametrize("days", [364, 7 * 11])
def test_intervals_of_sums_are_right(city: City, noisy: Noisy, days: int):
    """Noise alone through the release code: the error of each sum against its stated variance."""
    scores: dict[str, list[float]] = {}
    for _ in range(6):
        frame = frame_of(city, noisy(days))
        sums = frame[frame["time_level"].isin(["month", "quarter"]) | (frame["dimensions"] == "area+standard_age")]
        sums = sums[sums["dimensions"] != "patients_at_cap"]
        for (level, dims), rows in sums.groupby(["time_level", "dimensions"]):
            scores.setdefault(f"{level} {dims}", []).extend(rows["value"] / np.sqrt(rows["variance"]))
    assert "month area" in scores
    for name, found in scores.items():
        spread, se = float(np.std(found)), 1 / (2 * len(found)) ** 0.5
        assert abs(spread - 1) < 4 * se, name
