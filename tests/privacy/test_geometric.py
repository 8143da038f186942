"""A plan of two tables takes geometric noise: paid in ε, exactly, through a whole release; and nothing else changes."""

from __future__ import annotations

import json
from datetime import timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from audit_canary import few_tables
from audit_sampler import p_value

from assets.contract.city import City, load_city
from assets.contract.schemas import PSEUDONYMISED_DIAGNOSES, PSEUDONYMISED_PROCEDURES
from assets.identity.record import record_days
from assets.lake.lake import Lake
from assets.privacy import stage
from assets.privacy.accounting import UNITS, grid_distance
from assets.privacy.certificate import certificate
from assets.privacy.correction import correct
from assets.privacy.ledger import CapChanged, Ledger
from assets.privacy.mechanism import DiscreteGaussian, Geometric, draw
from assets.privacy.patient import _loss, contributions
from assets.privacy.plan import PlanRefused, mechanism_for, price, price_with
from assets.publication.catalogue import DATASETS
from assets.publication.guarantee import guarantee
from assets.publication.release_card import release_card
from pipelines.ledger_cli import window_report

Z95 = 1.959963984540054


@pytest.fixture(scope="module")
def city() -> City:
    city = few_tables(load_city())
    return city.model_copy(update={"plan": city.plan.model_copy(update={"corrections_share": 0.05})})


def run(lake: Lake, city: City, cases: Any, days: int) -> None:
    span = [city.budget.epoch + timedelta(n) for n in range(days)]
    lake.write_days("cases", span, cases, "arrival_day", keep_empty=True)
    nothing = {"diagnoses": PSEUDONYMISED_DIAGNOSES.empty_table(), "procedures": PSEUDONYMISED_PROCEDURES.empty_table()}
    record_days(lake, span, {"cases": cases, **nothing}, "no certificate: identity is not under test")
    stage.run(lake, city, span)


def forced(city: City, mechanism: str) -> City:
    return city.model_copy(update={"budget": city.budget.model_copy(update={"mechanism": mechanism})})


@pytest.fixture
def cases(make_case: Any, case_table: Any) -> Any:
    rows = [make_case(f"p{n}", f"c{n}", n % 56, 1) for n in range(300)]
    rows += [make_case("full", f"f{n}", day, 0) for n, day in enumerate((0, 7, 28, 35))]
    return case_table(rows)


@pytest.fixture
def released(lake: Lake, city: City, cases: Any) -> Lake:
    run(lake, city, cases, 75)
    return lake


def test_few_tables_choose_geometric_noise_and_many_the_discrete_gaussian(city: City):
    assert mechanism_for(city) is price(city).mechanism is Geometric
    assert mechanism_for(load_city()) is DiscreteGaussian
    assert price(forced(city, "discrete_gaussian")).mechanism is DiscreteGaussian
    both = [[e.mae for e in price_with(city, m).errors] for m in (Geometric, DiscreteGaussian)]
    assert np.mean(np.log(both[0])) < np.mean(np.log(both[1]))


def test_the_cost_is_the_plain_sum_of_epsilon_exactly(city: City):
    plan = price(city)
    assert plan.budget_units == 3 * UNITS and plan.spent_units <= Fraction(95, 100) * plan.budget_units
    assert sum(p.noise.cost * p.sensitivity for p in plan.tables) == Fraction(plan.spent_units, UNITS)
    assert [p.sensitivity for p in plan.tables] == [4, 4]
    assert (
        plan.epsilon_year == plan.promised_units / UNITS and plan.epsilon_five_years == 5 * plan.promised_units / UNITS
    )
    assert 0 < plan.delta < 1e-9


def test_the_whole_release(released: Lake, city: City, cases: Any):
    plan, ledger = price(city), Ledger(released.ledger_path)
    (window,) = ledger.windows().values()
    assert window.mechanism is Geometric and window.cap_units == plan.budget_units and ledger.verify() == []
    committed = ledger.committed()
    assert {c.parameters["mechanism"] for c in committed.values()} == {"geometric"}
    assert window.spent_units == sum(c.cost_units for c in committed.values()) == plan.spent_units
    assert window.epsilon(1e-6) == plan.spent_units / UNITS
    # a second run draws and spends nothing
    run(released, city, cases, 75)
    assert Ledger(released.ledger_path).committed() == committed
    # consistent: areas add up to the total, days and late cases to weeks
    frame = stage.publishable(released, city).to_pandas(date_as_object=False)
    sums = frame.groupby(["care", "time_level", "unit_start", "dimensions"])["value"].sum().unstack("dimensions")
    assert (sums["area"] - sums["total"]).abs().max() < 1e-9
    # the person at every cap loses what was spent, no one more
    everybody = stage.counted_events(released)
    assert certificate(everybody, city, plan) == plan.spent_units
    own = [{"event_day": city.budget.epoch + timedelta(d), "late": False, "care": "inpatient", "area": "64283"}
           for d in (0, 7, 28, 35)]  # fmt: skip
    rows = contributions(committed, own)
    assert sum(r["cost"] for r in rows) * UNITS == plan.spent_units
    loss = _loss(rows, 1e-6)
    assert loss["epsilon"] == pytest.approx(plan.spent_units / UNITS) and "rho" not in loss
    shown = window_report("w", window, 1e-6)
    assert Fraction(shown["spent"]["pure_epsilon"]) == Fraction(plan.spent_units, UNITS) and "rho" not in shown["spent"]


def test_a_correction_is_paid_from_the_reserve_in_epsilon(released: Lake, city: City):
    plan, ledger = price(city), Ledger(released.ledger_path)
    day = city.budget.epoch + timedelta(8)
    extra = released.read("cases", stage.PSEUDONYMISED_CASES)
    arrived = city.budget.epoch + timedelta(74)
    one = extra.slice(0, 1).to_pylist()[0] | {
        "case_key": "new", "patient_key": "new", "person_key": "new", "admitted_on": day, "arrival_day": arrived,
    }  # fmt: skip
    again = type(extra).from_pylist([*extra.to_pylist(), one], schema=extra.schema)
    released.write_days("cases", [arrived], again, "arrival_day", keep_empty=True)
    nothing = {"diagnoses": PSEUDONYMISED_DIAGNOSES.empty_table(), "procedures": PSEUDONYMISED_PROCEDURES.empty_table()}
    record_days(released, [arrived], {"cases": again, **nothing}, "no certificate: identity is not under test")
    done = correct(released, city, day)
    (window,) = ledger.windows().values()
    assert done["currency"] == "ε" and done["cost_units"] == window.corrections_units <= plan.set_aside_units // 2
    assert ledger.verify() == [] and window.spent_units <= window.cap_units
    frame = stage.publishable(released, city).to_pandas(date_as_object=False)
    assert set(frame[frame["unit_start"] == "2025-01-06"]["status"]) == {"corrected"}


def test_the_mechanism_of_a_window_that_has_spent_does_not_change(released: Lake, city: City, cases: Any):
    before = Ledger(released.ledger_path).windows()
    other = forced(city, "discrete_gaussian")
    refused = "Write `mechanism: geometric` below `budget`"
    with pytest.raises(CapChanged, match=refused):
        correct(released, other, city.budget.epoch + timedelta(8))
    with pytest.raises(CapChanged, match=refused):
        run(released, other, cases, 90)
    assert Ledger(released.ledger_path).windows() == before


def test_a_ledger_that_mixes_currencies_does_not_verify(lake: Lake):
    from assets.privacy.ledger import Reservation

    ledger = Ledger(lake.root.parent / "ledger.sqlite")
    ledger.open_scope("2024-12-30", 10, 0, Geometric)
    ledger.reserve(
        [Reservation("t:2024-12-30:1", "2024-12-30", 1, "s", json.dumps(Geometric(Fraction(1, 2)).parameters))]
    )
    assert ledger.verify() == [] and ledger.windows()["2024-12-30"].mechanism is Geometric
    ledger.reserve(
        [Reservation("t:2024-12-31:1", "2024-12-30", 1, "s", json.dumps(DiscreteGaussian(Fraction(1, 2)).parameters))]
    )
    assert any("another currency" in p for p in ledger.verify())


def test_the_card_says_which_currency(city: City):
    promise = guarantee(city)
    assert promise.mechanism.startswith("geometric, pure") and "rho of a window" not in promise.statements()
    card = yaml.safe_load(release_card(DATASETS[0], city, "2025-01-01", promise))["deployment"]
    assert (
        card["dp_flavor"]["name"].startswith("Pure DP")
        and card["dp_flavor"]["bound_on_output_distance"] == promise.cost
    )
    loss = card["privacy_loss"]["privacy_parameters"]
    assert "rho" not in loss and loss["epsilon_one_year"] == round(promise.cost, 4) and 0 < loss["delta"] < 1e-9
    parts = [*card["accounting"]["tables"], card["accounting"]["corrections"]]
    assert sum(p["epsilon"] for p in parts) == pytest.approx(promise.cost)


@pytest.mark.parametrize("rate", [Fraction(1, 2), Fraction(3, 40)])
def test_noise_is_the_exact_geometric_distribution(rate: Fraction):
    noise = Geometric(rate)
    drawn = np.array(draw([0] * 40_000, noise))
    assert p_value(drawn, noise) > 1e-6 > p_value(drawn, Geometric(rate * Fraction(11, 10)))
    assert drawn.var() == pytest.approx(noise.variance, rel=0.1)
    assert 0.93 <= (np.abs(drawn) <= Z95 * noise.variance**0.5).mean() <= 0.97


class Grid:
    """A generator that gives what it is told to, in order."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = iter(numbers)

    def random(self) -> float:
        return float(next(self.numbers))


def test_the_number_without_a_logarithm_is_drawn_again():
    sampler = Geometric(Fraction(1, 2))._sampler()
    sampler._rng = Grid([0.5, 0.5, 0.75])
    assert isinstance(Geometric._one(sampler, 7), int) and next(sampler._rng.numbers, None) is None


@pytest.mark.parametrize("rate", [Fraction(1, 4), Fraction(1)])
def test_a_coarse_generator_is_no_farther_from_the_exact_distribution_than_is_charged(rate: Fraction):
    """All 2¹² numbers of a generator of 12 bits, through diffprivlib's own formula: its distribution, exactly."""
    bits = 12
    sampler = Geometric(rate)._sampler()
    sampler._rng = Grid(n / 2**bits for n in range(2**bits) if n != 2 ** (bits - 1))
    drawn = [Geometric._one(sampler, 0) for _ in range(2**bits - 1)]
    values, counts = np.unique(drawn, return_counts=True)
    a = float(np.exp(-float(rate)))
    exact = (1 - a) / (1 + a) * a ** np.abs(values)
    found = counts / len(drawn)
    distance = (np.abs(found - exact).sum() + 1 - exact.sum()) / 2
    assert 0 < distance <= grid_distance(float(rate), bits, 1)


def test_the_scale_is_never_rounded_below_what_was_paid_for():
    for n in range(1, 300):
        assert Fraction(Geometric(Fraction(n, 701))._sampler().epsilon) <= Fraction(n, 701)


def test_a_delta_too_small_for_the_sampler_is_refused_or_avoided(city: City):
    tiny = city.model_copy(update={"budget": city.budget.model_copy(update={"delta": 1e-13})})
    assert mechanism_for(tiny) is DiscreteGaussian
    with pytest.raises(PlanRefused, match="from its sampler"):
        price(forced(tiny, "geometric"))


def test_shares_are_proposed_for_geometric_noise_too(city: City):
    from assets.contract.terms import Acceptance
    from assets.privacy.optimise import problem, propose

    limits = (
        Acceptance(time="day", max_relative_error=0.2),
        Acceptance(time="day", dimensions=("area",), max_relative_error=0.2),
    )
    limited = forced(city, "geometric")
    limited = limited.model_copy(update={"plan": limited.plan.model_copy(update={"acceptance": limits})})
    task, before = problem(limited), np.array([t.share for t in limited.plan.tables])
    after = np.array(list(propose(limited).values()))
    errors = {
        (e.time, e.dimensions): e.relative for e in price_with(limited, Geometric).errors if e.care == "inpatient"
    }
    assert task.ratios(before) ** 0.5 == pytest.approx([errors["day", ()] / 0.2, errors["day", ("area",)] / 0.2])
    assert task.worst(after) < task.worst(before) and after.sum() <= before.sum() + 1e-9


def test_a_person_at_every_cap_of_many_tables_loses_exactly_what_geometric_noise_spends():
    """Cases that share a cell add up, and are not squared."""
    city = load_city()
    plan = price_with(city, Geometric)
    days = [city.budget.epoch + timedelta(n) for n in (0, 7, 28, 35)]
    quarters = [city.budget.epoch + timedelta(n) for n in (1, 92, 183, 274)]
    seen, left_out = (
        pa.table({"person_key": ["a"] * 4, "event_day": pa.array(d, pa.date32()), "late": [False] * 4})
        for d in (days, quarters)
    )
    assert certificate(seen, city, plan, left_out) == plan.spent_units
