"""The certificate is the exact loss of the worst person, and counting fills the whole cross product."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.contract.city import City
from assets.contract.codes import CARE, LOS_BIN_KEYS
from assets.contract.terms import LEVEL_DAYS, MeasuredTable
from assets.privacy.certificate import certificate
from assets.privacy.counting import count
from assets.privacy.plan import price

SAFE_DAYS = st.lists(st.integers(0, 12), max_size=4, unique=True)
"""Periods of one person's events: at most four, one in each, so that every cap holds."""


def persons_with(city: City, days: dict[str, list[int]]) -> pa.Table:
    rows = [(p, city.budget.epoch + timedelta(d)) for p, own in days.items() for d in own]
    return pa.table({"person_key": [p for p, _ in rows], "event_day": pa.array([d for _, d in rows], pa.date32()),
                     "late": pa.array([False] * len(rows))})  # fmt: skip


def naive(city: City, days: dict[str, list[int]]) -> int:
    """Σ over tables and units of time, one person after the other, in Python's integers."""
    loss = []
    for own in days.values():
        units = {level: [d // size for d in own] for level, size in LEVEL_DAYS.items()}
        loss.append(sum(p.cost_units * sum(units[p.table.time].count(u) ** 2 for u in set(units[p.table.time]))
                        for p in price(city).tables if not p.table.at_cap))  # fmt: skip
    return max(loss, default=0)


@settings(max_examples=40, deadline=None)
@given(days=st.dictionaries(st.sampled_from("abcde"), SAFE_DAYS))
def test_the_certificate_is_the_loss_of_the_worst_person(city: City, days: dict[str, list[int]]):
    own = {p: [28 * n for n in periods] for p, periods in days.items()}
    assert certificate(persons_with(city, own), city, price(city)) == naive(city, own)


def test_a_person_at_every_cap_loses_exactly_what_the_plan_spends(city: City):
    plan = price(city)
    left_out = persons_with(city, {"a": [1, 92, 183, 274], "b": [4]})
    assert certificate(persons_with(city, {"a": [0, 7, 28, 35], "b": [3]}), city, plan, left_out) == plan.spent_units


def test_a_person_counted_twice_at_the_cap_in_a_quarter_stops_the_release(city: City):
    left_out = persons_with(city, {"a": [1, 60, 92, 183, 274]})
    with pytest.raises(RuntimeError, match=r"contribution to quarter_at_cap.*nothing may be released"):
        certificate(persons_with(city, {"b": [0]}), city, price(city), left_out)


@pytest.mark.parametrize(
    ("days", "table"), [([0, 1, 28, 56], "week_area"), ([0, 7, 14], "period_"), ([0, 28, 56, 84, 112], "day")]
)
def test_a_person_above_a_cap_stops_the_release(city: City, days: list[int], table: str):
    with pytest.raises(RuntimeError, match=f"contribution to {table}.*nothing may be released"):
        certificate(persons_with(city, {"a": [0], "b": days}), city, price(city))


def test_a_plan_above_its_budget_stops_the_release(city: City):
    from dataclasses import replace

    plan = price(city)
    with pytest.raises(RuntimeError, match="above the budget"):
        certificate(
            persons_with(city, {"a": [0, 7, 28, 35]}), city, replace(plan, budget_units=plan.spent_units - 1),
            persons_with(city, {"a": [1, 92, 183, 274]}),
        )  # fmt: skip


def test_a_million_events_take_seconds(city: City):
    n = 250_000
    first = np.random.default_rng(0).integers(0, 364 - 84, n)
    day = np.concatenate([first + 28 * k for k in range(4)]) // 28 * 28
    events = pa.table({
        "person_key": pa.array(pd.Series(np.tile(np.arange(n), 4)).astype(str)),
        "event_day": pa.array(np.datetime64(city.budget.epoch) + day), "late": np.zeros(4 * n, dtype=bool),
    })  # fmt: skip
    began = time.perf_counter()
    assert 0 < certificate(events, city, price(city)) <= price(city).spent_units
    assert time.perf_counter() - began < 5, "a million events are meant to take about a second"


def cells(city: City, rows: list[dict[str, Any]], table: MeasuredTable) -> np.ndarray:
    names = ("care", *table.dimensions)
    return count(pa.table({n: pa.array([r[n] for r in rows], pa.string()) for n in names}), table, city)


def test_counting_gives_every_cell_of_the_public_lists(city: City):
    table = MeasuredTable(name="t", time="day", dimensions=("sex", "los"), share=0.1)
    rows = [{"care": "inpatient", "sex": "w", "los": "3"}] * 2 + [{"care": "emergency_visit", "sex": "m", "los": None}]
    counts = cells(city, rows, table)
    assert counts.shape == (len(CARE), 3, len(LOS_BIN_KEYS)) and counts.dtype == np.int64 and counts.sum() == 3
    assert counts[0, 1, LOS_BIN_KEYS.index("3")] == 2
    assert counts[1, 0, -1] == 1  # still in hospital: the open bin
    assert cells(city, [], table).shape == counts.shape and not cells(city, [], table).any()


def test_a_value_outside_a_public_list_is_no_new_cell(city: City):
    table = MeasuredTable(name="t", time="day", dimensions=("sex",), share=0.1)
    for wrong in ("x", None):
        with pytest.raises(ValueError, match="outside the public list of sex") as error:
            cells(city, [{"care": "inpatient", "sex": wrong}], table)
        assert "x" not in str(error.value).split("sex")[1]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_counting_agrees_with_a_group_by(city: City, data: st.DataObject):
    names = ("care", "area", "sex")
    row = st.fixed_dictionaries({n: st.sampled_from(city.categories(n)) for n in names})
    rows = data.draw(st.lists(row, max_size=30))
    counts = cells(city, rows, MeasuredTable(name="t", time="day", dimensions=("area", "sex"), share=0.1))
    for place in np.ndindex(counts.shape):
        key = tuple(city.categories(n)[i] for n, i in zip(names, place, strict=True))
        assert counts[place] == sum(tuple(r[n] for n in names) == key for r in rows)
