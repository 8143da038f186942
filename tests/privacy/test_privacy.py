"""Bounds, plan and consistency keep what they promise."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS
from assets.contract.terms import Caps
from assets.privacy.accounting import UNITS, epsilon_of, released_sensitivity, rho_of, sensitivity
from assets.privacy.bounding import decide
from assets.privacy.consistency import Product, estimate, variance
from assets.privacy.mechanism import DiscreteGaussian, Geometric, draw
from assets.privacy.plan import PlanRefused, price
from assets.privacy.plan_report import plan_html
from pipelines.plan_cli import _expected

EPOCH = date(2024, 12, 30)
NONE = BOUNDING_DECISIONS.empty_table()
EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 500), st.integers(0, 3)), max_size=40)


def events(rows: list[tuple[str, int, int]]) -> pa.Table:
    return pa.table(
        {
            "decided_on": [EPOCH + timedelta(day + delay) for _, day, delay in rows],
            "person_key": [p for p, _, _ in rows],
            "case_key": [f"{i:03}" for i in range(len(rows))],
            "clinic": ["k"] * len(rows),
            "event_day": [EPOCH + timedelta(day) for _, day, _ in rows],
        },
        schema=pa.schema([(f.name, f.type) for f in BOUNDING_DECISIONS if f.name != "kept"]),
    )


def naive(rows: list[tuple[str, int, int]], present: Caps, former: Sequence[tuple[date, Caps]] = ()) -> set[str]:
    """The caps again, one event after the other."""
    kept: dict[str, list[int]] = defaultdict(list)
    names = set()
    for i in sorted(range(len(rows)), key=lambda i: (rows[i][1] + rows[i][2], rows[i][1], i)):
        person, day, _ = rows[i]
        caps = next((c for until, c in former if EPOCH + timedelta(day) <= until), present)
        trial = [*kept[person], day]
        week, period = (sum(d // size == day // size for d in trial) for size in (7, 28))
        full = any(sum(s <= d < s + 364 for d in trial) > caps.window for s in range(day - 363, day + 1))
        if week <= 1 and period <= caps.period and not full:
            kept[person] = trial
            names.add(f"{i:03}")
    return names


def kept_of(table: pa.Table) -> set[str]:
    return {r["case_key"] for r in table.to_pylist() if r["kept"]}


@settings(max_examples=80, deadline=None)
@given(EVENTS)
def test_bounding_agrees_with_a_naive_count(rows: list[tuple[str, int, int]]):
    assert kept_of(decide(events(rows), NONE, Caps(), EPOCH)) == naive(rows, Caps())


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.sampled_from([Caps(), Caps(window=2, period=1)]), st.integers(0, 500))
def test_where_windows_differ_in_their_caps_each_holds_its_own(rows: list[tuple[str, int, int]], now: Caps, cut: int):
    before = Caps(window=3, period=3)
    former, change = ((EPOCH + timedelta(363), before),), EPOCH + timedelta(364)
    table = events(rows)
    early = pa.compute.less(table.column("decided_on"), pa.scalar(EPOCH + timedelta(cut)))
    first = decide(table.filter(early), NONE, now, EPOCH, former)
    second = decide(table.filter(pa.compute.invert(early)), first, now, EPOCH, former)
    assert kept_of(first) | kept_of(second) == naive(rows, now, former)
    kept = [r for r in (*first.to_pylist(), *second.to_pylist()) if r["kept"]]
    each = Counter((r["person_key"], r["event_day"] >= change) for r in kept)
    assert all(n <= (now if later else before).window for (_, later), n in each.items())


@pytest.mark.parametrize(("days", "kept"), [((349, 356, 363), 3), ((350, 357, 364), 2), ((364, 371, 378), 1)])
def test_former_caps_hold_up_to_their_last_day(days: tuple[int, ...], kept: int):
    former = ((EPOCH + timedelta(363), Caps(window=3, period=3)),)
    table = events([("a", day, 0) for day in days])
    assert len(kept_of(decide(table, NONE, Caps(window=1, period=1), EPOCH, former))) == kept


@settings(max_examples=30, deadline=None)
@given(EVENTS)
def test_removing_a_person_changes_nobody_else(rows: list[tuple[str, int, int]]):
    everyone = events(rows)
    others = everyone.filter(pa.compute.not_equal(everyone.column("person_key"), "a"))
    all_kept = decide(everyone, NONE, Caps(), EPOCH).to_pylist()
    assert kept_of(decide(others, NONE, Caps(), EPOCH)) == {
        r["case_key"] for r in all_kept if r["kept"] and r["person_key"] != "a"
    }


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.integers(0, 500))
def test_deciding_in_two_runs_gives_the_same(rows: list[tuple[str, int, int]], cut: int):
    table = events(rows)
    early = pa.compute.less(table.column("decided_on"), pa.scalar(EPOCH + timedelta(cut)))
    first = decide(table.filter(early), NONE, Caps(), EPOCH)
    second = decide(table.filter(pa.compute.invert(early)), first, Caps(), EPOCH)
    assert kept_of(first) | kept_of(second) == naive(rows, Caps())


def test_rho_matches_the_published_table():
    for epsilon, rho in ((1, 0.02436), (2, 0.08815), (3, 0.18507), (5, 0.46306), (8, 1.0524)):
        assert rho_of(epsilon, 1e-6) == pytest.approx(rho, rel=5e-4)
        assert epsilon_of(rho_of(epsilon, 1e-6), 1e-6) <= epsilon


def test_sensitivities_are_those_of_the_worst_person():
    assert [sensitivity(t, Caps(), 2) for t in ("day", "week", "period", "window")] == [4, 4, 8, 16]
    assert [sensitivity(t, Caps(), 1) for t in ("day", "week", "period", "window")] == [4, 4, 4, 4]
    assert [sensitivity("quarter", Caps(), power) for power in (1, 2)] == [4, 4]


@pytest.mark.parametrize("power", [1, 2])
def test_a_window_never_charges_more_than_its_sensitivity(power: int):
    for level, size in (("day", 1), ("week", 7), ("period", 28), ("window", 364)):
        released: set[date] = set()
        charged = 0
        for n in range(0, 364, size):
            before = released_sensitivity(level, released, Caps(), EPOCH, power)
            released = released | {EPOCH + timedelta(n)}
            step = released_sensitivity(level, released, Caps(), EPOCH, power) - before
            assert step >= 0
            charged += step
        assert charged == sensitivity(level, Caps(), power)


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    [
        (1, (24.2, 10.9, 22.5, 16.4, 44, 65, 45)),
        (3, (8.8, 4.0, 8.2, 5.9, 16, 23.5, 16)),
        (5, (5.6, 2.5, 5.2, 3.8, 10, 15, 10)),
    ],
)
def test_the_plan_reproduces_the_measured_errors(city: City, epsilon: float, expected: tuple[float, ...]):
    plan = city.plan.model_copy(update={"acceptance": ()})
    other = city.model_copy(update={"plan": plan, "budget": city.budget.model_copy(update={"epsilon": epsilon})})
    mae = {(e.time, e.dimensions): e.mae for e in price(other).errors if e.care == "inpatient"}
    levels = (("day", ()), ("day", ("area",)), ("week", ("area",)), ("week", ("chapter",)),
              ("period", ("age_group", "sex")), ("window", ("area", "chapter")))  # fmt: skip
    *others, city_week = expected
    for level, figure in zip(levels, others, strict=True):
        assert mae[level] == pytest.approx(figure, rel=0.1), level
    assert mae["week", ()] < city_week, "the table of admissions by week, which the first menu had not, lowers it"


@pytest.mark.parametrize(
    ("tables", "gaussian", "geometric"),  # mean absolute error of a cell by day, tables alike, ε 3 a year
    [(1, 2.6, 1.2), (2, 3.7, 2.6), (3, 4.5, 4.0), (4, 5.2, 5.3), (5, 5.9, 6.6), (11, 8.7, 14.7)],
)
def test_the_table_of_both_mechanisms_in_the_documents_is_right(
    city: City, tables: int, gaussian: float, geometric: float
):
    line = f"| {tables} | {gaussian} | {geometric} |"
    assert line in (Path(__file__).parents[2] / "docs" / "privacy.md").read_text("utf-8")
    costs = [
        m.budget_units(3.0, 1e-6) // (tables * sensitivity("day", city.caps, m.power))
        for m in (DiscreteGaussian, Geometric)
    ]
    assert math.sqrt(DiscreteGaussian.of_cost(costs[0]).variance * 2 / math.pi) == pytest.approx(gaussian, abs=0.05)
    a = math.exp(-Geometric.of_cost(costs[1]).strength)
    assert 2 * a / (1 - a**2) == pytest.approx(geometric, abs=0.05)  # E|X| of P(X = k) ∝ a^|k|


def test_a_refused_plan_names_one_that_meets_every_limit(city: City):
    poor = city.model_copy(update={"budget": city.budget.model_copy(update={"epsilon": 0.5})})
    with pytest.raises(PlanRefused) as refused:
        price(poor)
    found = re.search(r"with ε ([0-9.]+) instead of 0.5", str(refused.value))
    assert found
    better = float(found[1])
    price(city.model_copy(update={"budget": city.budget.model_copy(update={"epsilon": better})}))
    with pytest.raises(PlanRefused):
        price(city.model_copy(update={"budget": city.budget.model_copy(update={"epsilon": better - 0.01})}))


def test_the_plan_as_a_page_shows_every_level_and_loads_nothing(city: City):
    page = plan_html(city, price(city))
    assert "week × chapter" in page and "window_area_age_sex" in page and "<svg" in page
    assert "<script" not in page and not re.search(r"(src|href)\s*=\s*[\"']https?:", page)


def test_the_plan_spends_within_its_budget_and_keeps_a_reserve(city: City):
    plan = price(city)
    assert plan.spent_units <= 0.95 * plan.budget_units
    assert plan.epsilon_year < city.budget.epsilon < plan.epsilon_five_years


def test_the_guess_that_the_documents_promise_follows_from_the_plan(city: City):
    root = Path(__file__).parents[2]
    text = (root / "docs" / "privacy.md").read_text("utf-8")
    assert "at most 66 of 100 times" in (root / "README.md").read_text("utf-8")
    rho = price(city).promised_units / UNITS
    for years, promised in ((1, 66), (5, 84)):
        assert f"{promised} of 100 times" in text
        # Even odds, and Pinsker's bound on the total variation of what is published with and without the person.
        assert promised - 1 < 50 + 50 * math.sqrt(years * rho / 2) <= promised


@pytest.mark.parametrize("epsilon", [0.7, 1.9, 3.0, 4.3])
def test_the_plan_shows_no_epsilon_below_the_real_one(city: City, epsilon: float):
    """A bound that is rounded down does not hold."""
    other = city.model_copy(update={"budget": city.budget.model_copy(update={"epsilon": epsilon})})
    other = other.model_copy(update={"plan": other.plan.model_copy(update={"acceptance": ()})})
    plan = price(other)
    for text in (_expected(other)[0], plan_html(other, plan)):
        year, five = (float(n) for n in re.findall(r"ε ([0-9.]+) a year .*?([0-9.]+) in five", text)[0])
        assert 0 <= year - plan.epsilon_year <= 1e-3 and 0 <= five - plan.epsilon_five_years <= 1e-2


def test_a_plan_that_misses_a_limit_is_refused_by_name(city: City):
    poor = city.model_copy(update={"budget": city.budget.model_copy(update={"epsilon": 0.2})})
    with pytest.raises(PlanRefused, match=r"day × city: expected relative error"):
        price(poor)


def test_noise_has_the_variance_that_was_paid_for():
    noise = np.array(draw([1000] * 20000, DiscreteGaussian(Fraction(50)))) - 1000
    assert abs(noise.mean()) < 4 * (50 / 20000) ** 0.5
    assert 50 * 0.95 < noise.var() < 50 * 1.05


def test_closed_form_equals_dense_least_squares():
    product, rng = Product((1, 2, 6), (3, 2)), np.random.default_rng(1)
    full = np.indices((6, 3, 2)).reshape(3, -1)

    def matrix(level: tuple[int, tuple[int, ...]]) -> tuple[np.ndarray, list[int]]:
        shape = [product.time[level[0]], *(product.dimensions[d] for d in level[1])]
        key = [full[0] // (6 // shape[0]), *(full[1 + d] for d in level[1])]
        out = np.zeros((int(np.prod(shape)), 36))
        out[np.ravel_multi_index(key, shape), np.arange(36)] = 1
        return out, shape

    variances = {(2, ()): 2.0, (2, (0,)): 3.0, (1, (0, 1)): 1.5, (0, (0, 1)): 0.7, (2, (1,)): 5.0}
    stacked, values, weights, tables = [], [], [], {}
    for level, v in variances.items():
        m, shape = matrix(level)
        y = rng.normal(size=len(m))
        tables[level] = y.reshape(shape)
        stacked.append(m)
        values.append(y)
        weights.append(np.full(len(m), 1 / v))
    s, y, w = np.vstack(stacked), np.concatenate(values), np.concatenate(weights)
    inverse = np.linalg.pinv((s.T * w) @ s)
    x = inverse @ ((s.T * w) @ y)
    queries = [(t, d) for t in range(3) for n in range(3) for d in itertools.combinations((0, 1), n)]
    result = estimate(product, tables, variances, queries)
    assert (2, (0, 1)) not in result  # nothing measures both dimensions by the finest unit
    assert len(result) == len(queries) - 1
    for query, got in result.items():
        m, _ = matrix(query)
        assert np.abs(got.ravel() - m @ x).max() < 1e-9
        assert np.diag(m @ inverse @ m.T) == pytest.approx(variance(product, query, variances))
