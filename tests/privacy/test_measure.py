"""Measuring end to end: drawn once, charged exactly, resumed after a crash, refused when the plan changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from assets.contract.city import City
from assets.contract.terms import LEVEL_DAYS, MeasuredTable
from assets.privacy import measure as measuring
from assets.privacy.estimates import estimates
from assets.privacy.ledger import Ledger
from assets.privacy.measure import Unit
from assets.privacy.plan import PlanRefused, Terms, price

LATER = date(2027, 1, 1)
DIMENSIONS = ("area", "age_group", "sex", "chapter", "admission", "los", "outcome")
Load = Callable[[MeasuredTable, Unit], pa.Table]


@pytest.fixture(scope="module")
def events(city: City) -> pa.Table:
    rng, n = np.random.default_rng(0), 20_000
    day = np.sort(rng.integers(0, 364, n))

    def pick(name: str) -> list[str]:
        return [city.categories(name)[i] for i in rng.integers(0, len(city.categories(name)), n)]

    return pa.table(
        {
            "event_day": pa.array(np.datetime64(city.budget.epoch) + day),
            "person_key": [f"p{i}" for i in range(n)],
            "case_key": [f"c{i:05}" for i in range(n)],
            "clinic": ["k"] * n,
            **{name: pick(name) for name in ("care", *DIMENSIONS)},
            "late": day % 7 == 6,
        }
    )


@pytest.fixture
def load(events: pa.Table) -> Load:
    days = events.column("event_day").to_numpy().astype("datetime64[D]")

    def between(table: MeasuredTable, unit: Unit) -> pa.Table:
        """Cases of Sundays are the late ones."""
        inside = measuring.unit_days(table, unit)
        begin, end = days.searchsorted(np.datetime64(inside[0])), days.searchsorted(np.datetime64(inside[-1]), "right")
        found = events.slice(int(begin), int(end - begin))
        return found.filter(pc.equal(found.column("late"), unit.late)) if table.time == "day" else found

    return between


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def spent(ledger: Ledger) -> list[int]:
    return [w.spent_units for w in ledger.windows().values()]


def first_days(city: City, n: int) -> list[date]:
    return [city.budget.epoch + timedelta(i) for i in range(n)]


def test_a_year_charges_exactly_the_plan_and_is_drawn_once(city: City, ledger: Ledger, load: Load):
    plan, days = price(city), first_days(city, 364)
    wanted = measuring.due(city, days, days, LATER, ())
    measuring.measure(city, plan, ledger, wanted, load, b"k")
    assert spent(ledger) == [plan.spent_units]
    assert measuring.due(city, days, days, LATER, ledger.committed().keys()) == []
    result = estimates(city, ledger.committed())
    assert set(result.column("status").to_pylist()) == {"final"}
    frame = result.to_pandas().query("dimensions not in ['patients_at_cap', 'area+standard_age']")
    frame = frame[~frame["time_level"].isin(["month", "quarter"])]
    # late cases belong to no day, but to the days' week
    frame["time_level"] = frame["time_level"].replace("late", "day")
    sums = frame.groupby(["care", "time_level", "dimensions"])["value"].sum().groupby("care")
    assert (sums.max() - sums.min()).max() < 1e-6


@pytest.mark.parametrize("through", [9, 30, 37, 60, 200, 366, 380, 394])
def test_whatever_is_published_adds_up_at_every_moment(city: City, ledger: Ledger, load: Load, through: int):
    plan, days = price(city), first_days(city, min(through - 2, 364))
    wanted = measuring.due(city, days, days, city.budget.epoch + timedelta(through), ())
    measuring.measure(city, plan, ledger, wanted, load, b"k")
    frame = estimates(city, ledger.committed()).to_pandas()
    frame = frame[~frame["dimensions"].isin(["patients_at_cap", "area+standard_age"])].copy()
    frame["unit_start"] = pd.to_datetime(frame["unit_start"])
    sums = frame.groupby(["care", "time_level", "unit_start", "dimensions"])["value"].sum().unstack("dimensions")
    parts = sums.drop(columns="total").sub(sums["total"], axis=0).abs().fillna(0)  # quarters have totals only
    assert not sums["total"].isna().any()
    assert (parts.max(axis=1) <= 1e-9 * sums["total"].abs().clip(lower=1)).all()
    assert ("los" in sums.columns) == (through >= 27 + 3 + 28), "lagging levels appear with their table, not before"
    for level in ("window", "period", "week"):  # the days of each longer unit that is published add up to it
        for (care, _, start), total in sums["total"][sums.index.get_level_values("time_level") == level].items():
            leaves = sums["total"].loc[care]
            leaves = leaves[leaves.index.get_level_values("time_level").isin(["day", "late"])]
            when = leaves.index.get_level_values("unit_start")
            inside = leaves[(when >= start) & (when < start + pd.Timedelta(days=LEVEL_DAYS[level]))]
            assert inside.sum() == pytest.approx(total, rel=1e-9)
            assert len(inside) == LEVEL_DAYS[level] // 7 * 8


def test_estimates_are_final_only_when_nothing_can_move_them(city: City, ledger: Ledger, load: Load):
    plan, days = price(city), first_days(city, 364)
    measuring.measure(city, plan, ledger, measuring.due(city, days, days, days[-1] + timedelta(3), ()), load, b"k")
    waiting = estimates(city, ledger.committed())
    of_cases = waiting.filter(pc.not_equal(waiting.column("dimensions"), "patients_at_cap"))
    assert set(of_cases.column("status").to_pylist()) == {"provisional"}


@pytest.mark.parametrize("step", ["draw", "commit"])
def test_a_crash_after_reserving_spends_nothing_twice(
    city: City, ledger: Ledger, load: Load, step: str, monkeypatch: pytest.MonkeyPatch
):
    plan, wanted = price(city), measuring.due(city, first_days(city, 28), first_days(city, 28), LATER, ())

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((measuring, "draw") if step == "draw" else (Ledger, "commit")), crash)
        with pytest.raises(KeyboardInterrupt):
            measuring.measure(city, plan, ledger, wanted, load, b"k")
    before = spent(ledger)
    assert ledger.committed() == {}
    measuring.measure(city, plan, ledger, wanted, load, b"k")
    assert spent(ledger) == before and len(ledger.committed()) == len(wanted) and ledger.verify() == []


def test_a_share_cannot_change_inside_a_window(city: City, ledger: Ledger, load: Load):
    measuring.measure(
        city,
        price(city),
        ledger,
        measuring.due(city, first_days(city, 56), first_days(city, 56), LATER, ()),
        load,
        b"k",
    )
    tables = tuple(t.model_copy(update={"share": 0.01}) if t.name == "day" else t for t in city.plan.tables)
    other = city.model_copy(update={"plan": city.plan.model_copy(update={"tables": tables})})
    wanted = measuring.due(other, first_days(city, 60), first_days(city, 60), LATER, ledger.committed().keys())
    with pytest.raises(measuring.PlanChanged, match="day"):
        measuring.measure(other, price(other), ledger, wanted, load, b"k")


def test_no_table_of_a_plan_comes_goes_or_changes_its_share_inside_a_window(city: City, ledger: Ledger, load: Load):
    """Measured or not: the promise of a window names its tables, and what a dropped one spent stays spent."""

    def require(**changes: object) -> None:
        other = city.model_copy(update={"plan": city.plan.model_copy(update={"acceptance": (), **changes})})
        measuring.require_agreed(other, {city.budget.epoch: Terms(other, price(other))}, ledger)

    measuring.measure(
        city,
        price(city),
        ledger,
        measuring.due(city, first_days(city, 28), first_days(city, 28), LATER, ()),
        load,
        b"k",
    )
    assert "window_outcome" not in {c.parameters["table"] for c in ledger.committed().values()}
    require()
    day, *others = city.plan.tables
    renamed = day.model_copy(update={"name": "each_day"})
    new = day.model_copy(update={"name": "new", "dimensions": ("sex",), "share": 0.001})
    unmeasured = [t.model_copy(update={"share": 0.011}) if t.name == "window_outcome" else t for t in city.plan.tables]
    for tables, named in (
        (others, "tables: day;"),
        ([renamed, *others], "tables: day, each_day;"),
        ([*city.plan.tables, new], "tables: new;"),
        (unmeasured, "tables: window_outcome;"),
    ):
        with pytest.raises(measuring.PlanChanged, match=named):
            require(tables=tuple(tables))
    with pytest.raises(measuring.PlanChanged, match="tables: corrections_share;"):
        require(corrections_share=0.0)


def test_a_used_up_budget_pauses_the_series_and_borrows_nothing(city: City, ledger: Ledger, load: Load):
    """What was measured before stays published; the next window has its own budget and goes on."""
    days = first_days(city, 364 + 35)
    small = replace(price(city), budget_units=price(city).spent_units // 2)
    measuring.measure(
        city,
        small,
        ledger,
        measuring.due(city, days[:40], days[:40], city.budget.epoch + timedelta(43), ()),
        load,
        b"k",
    )
    before = ledger.committed()
    measuring.measure(city, small, ledger, measuring.due(city, days, days, LATER, before.keys()), load, b"k")
    first, second = ledger.windows().values()
    assert first.paused and first.planned_units + first.set_aside_units <= first.cap_units == small.budget_units
    committed = ledger.committed()
    assert before.items() <= committed.items() and ledger.verify() == []
    assert (
        measuring.measure(
            city, small, ledger, measuring.due(city, days[:364], days[:364], LATER, committed.keys()), load, b"k"
        )
        == 0
    )
    scopes = [scope for scope, window in ledger.windows().items() if window.paused]
    frame = estimates(city, committed, scopes).to_pandas()
    there = frame[frame["unit_end"] < city.budget.epoch + timedelta(364)]
    assert set(there["status"]) == {"paused"} and {"day", "week"} <= set(there["time_level"])
    later = frame[frame["unit_end"] >= city.budget.epoch + timedelta(364)]
    assert second.tables and set(later["status"]) == {"paused" if second.paused else "provisional"}


def test_a_ledger_does_not_tell_which_units_of_time_are_empty(city: City, ledger: Ledger, load: Load):
    """Digests of the input are of one measurement each: equal data, such as none, show in no two of them."""

    def nobody(table: MeasuredTable, unit: Unit) -> pa.Table:
        return load(table, unit).slice(0, 0)

    measuring.measure(
        city,
        price(city),
        ledger,
        measuring.due(city, first_days(city, 28), first_days(city, 28), LATER, ()),
        nobody,
        b"k",
    )
    with ledger.store.read() as execute:
        digests = [row[0] for row in execute("SELECT snapshot FROM entries WHERE kind = 'reserve'")]
    assert len(digests) == len(set(digests)) > 28


def test_shares_that_pass_the_budget_by_a_hair_are_refused_before_anything_is_spent(city: City):
    first, *rest = city.plan.tables
    hair = 1 - sum(t.share for t in rest) - city.plan.corrections_share + 5e-10
    tables = (first.model_copy(update={"share": hair}), *rest)
    with pytest.raises(PlanRefused, match="more than the budget"):
        price(city.model_copy(update={"plan": city.plan.model_copy(update={"tables": tables})}))
