"""The release plan, priced: which mechanism it takes, what each table costs, how accurate every published level will be.

Closed form and independent of the data, so it is known before anything is measured or spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from typing import Final, NamedTuple

from assets.contract.city import City
from assets.contract.codes import CARE
from assets.contract.terms import AT_CAP, LEVEL_DAYS, WEEK_DAYS, Acceptance, MeasuredTable
from assets.privacy.accounting import UNITS, sensitivity
from assets.privacy.consistency import Level, Product, variance
from assets.privacy.mechanism import MECHANISMS, Noise

TIME_LEVELS: Final = ("window", "period", "week", "day")
LEAVES_OF_A_WEEK: Final = WEEK_DAYS + 1
DIMENSIONS: Final = ("area", "age_group", "sex", "chapter", "admission", "los", "outcome")
"""Dimensions of the product of chains. Patients at their cap are no cases: their table stands beside it."""


class PlanRefused(ValueError):
    """The plan misses an acceptance limit, or asks for nothing that can be measured."""


@dataclass(frozen=True)
class PricedTable:
    table: MeasuredTable
    cost_units: int
    """Units of the plan's currency for one unit of sensitivity."""
    noise: Noise
    sensitivity: int
    """Of the table over a whole window."""

    @property
    def whole_cost_units(self) -> int:
        """Units of the plan's currency for a whole window."""
        return self.cost_units * self.sensitivity


@dataclass(frozen=True)
class ExpectedError:
    """Expected accuracy of a published level for one `care`; error is the mean absolute one, of the noise alone."""

    time: str
    dimensions: tuple[str, ...]
    care: str
    mean_count: float
    mae: float

    @property
    def relative(self) -> float:
        return self.mae / self.mean_count


@dataclass(frozen=True)
class PricedPlan:
    mechanism: type[Noise]
    tables: tuple[PricedTable, ...]
    budget_units: int
    """The most that may be spent in a window, in units of the mechanism's currency."""
    spent_units: int
    """What the tables cost."""
    set_aside_units: int
    """What is for corrections and nothing else."""
    correction_costs: Mapping[str, int]
    """Table → units of a correction for one unit of sensitivity."""
    epsilon_year: float
    """Of `promised_units`; so is that of five years."""
    epsilon_five_years: float
    delta: float
    """Of ε: the city's, where the mechanism needs one; else what its sampler's own error comes to, corrections included."""
    errors: tuple[ExpectedError, ...]

    @property
    def promised_units(self) -> int:
        """The most that a person can lose in a window: by its tables, and by every correction that may follow."""
        return self.spent_units + self.set_aside_units


class Terms(NamedTuple):
    """What a window is measured on: the city with its budget, caps and plan, and that plan priced."""

    city: City
    plan: PricedPlan


def terms_of(city: City, windows: Iterable[date]) -> dict[date, Terms]:
    """The terms of each of the windows that hold one of the days `windows`. Raises `PlanRefused`."""
    cities = {start: city.at(start) for start in sorted(set(windows))}
    return {start: Terms(at, price(at)) for start, at in cities.items()}


def published_levels(city: City) -> list[tuple[str, tuple[str, ...]]]:
    """(time level, dimensions) of all counts of cases: each measured table, its coarser times, city totals."""
    found = set()
    for table in city.plan.of_cases:
        coarser = TIME_LEVELS[: TIME_LEVELS.index(table.time) + 1]
        found |= {(time, dims) for time in coarser for dims in (tuple(table.dimensions), ())}
    return sorted(found, key=lambda f: (len(f[1]), f[1], -TIME_LEVELS.index(f[0])))


def level_of(time: str, dimensions: tuple[str, ...], top: str = "window") -> Level:
    """Index of a marginal in the product whose coarsest time level is `top`."""
    return TIME_LEVELS.index(time) - TIME_LEVELS.index(top), tuple(sorted(DIMENSIONS.index(d) for d in dimensions))


def product_of(city: City, top: str = "window") -> Product:
    """The product of chains of one block of time: a window, period, week or day.

    Where it holds whole weeks, the finest units are eight in a week: its days and the leaf of its late cases.
    """
    time = [LEVEL_DAYS[top] // LEVEL_DAYS[t] for t in TIME_LEVELS[TIME_LEVELS.index(top) :]]
    if len(time) > 1:
        time[-1] = time[-2] * LEAVES_OF_A_WEEK
    return Product(tuple(time), tuple(len(city.categories(d)) for d in DIMENSIONS))


def mean_count(city: City, time: str, dimensions: tuple[str, ...], yearly: float) -> float:
    """Expected cases in a cell of a level, where a year has `yearly` in all."""
    return yearly * LEVEL_DAYS[time] / 365.25 / math.prod(len(city.categories(d)) for d in dimensions)


def price(city: City) -> PricedPlan:
    """Price the city's plan. Raises `PlanRefused` naming the levels and limits that are missed."""
    plan = price_with(city, mechanism_for(city))
    if plan.delta > city.budget.delta:
        raise PlanRefused(
            f"{plan.mechanism.title} noise has a δ of {plan.delta:.1e} from its sampler, above {city.budget.delta:g}"
        )
    if plan.promised_units > plan.budget_units:
        raise PlanRefused(
            "the shares and corrections_share add up to more than the budget, if by very little: lower one"
        )
    _refuse_misses(city, plan)
    return plan


def mechanism_for(city: City) -> type[Noise]:
    """The mechanism that the city file names; of `automatic`, the one with the smaller expected errors.

    Compared is the largest error by its acceptance limit, as the optimiser does; without limits, the mean logarithm of the
    errors of all published levels.
    """
    if city.budget.mechanism != "automatic":
        return MECHANISMS[city.budget.mechanism]

    def errors(mechanism: type[Noise]) -> tuple[bool, float, float]:
        plan = price_with(city, mechanism)
        found = [e.relative / limit.max_relative_error for limit, e in _limited(city, plan) if e]
        levels = [math.log(e.mae) for e in plan.errors]
        return plan.delta > city.budget.delta, max(found, default=0.0), sum(levels) / max(1, len(levels))

    return min(MECHANISMS.values(), key=errors)


def price_with(city: City, mechanism: type[Noise]) -> PricedPlan:
    """The city's plan with noise of that mechanism, whether or not it meets the acceptance limits."""
    budget = mechanism.budget_units(city.budget.epsilon, city.budget.delta)
    tables = tuple(_priced(city, table, mechanism, budget) for table in city.plan.tables)
    variances: dict[Level, float] = {}
    for priced in tables:
        level = (-1, ()) if priced.table.at_cap else level_of(priced.table.time, priced.table.dimensions)
        if level in variances:
            raise PlanRefused(f"table {priced.table.name} repeats another one")
        variances[level] = priced.noise.variance
    at_cap = variances.pop((-1, ()), None)
    product = product_of(city)
    errors = []
    for time, dimensions in published_levels(city):
        level = level_of(time, dimensions)
        spread = variance(product, level, variances)
        if spread is None:
            continue
        mae = math.sqrt(spread * mechanism.square_of_mean_error)
        for care, yearly in city.plan.expected_cases_per_year.items():
            errors.append(ExpectedError(time, dimensions, care, mean_count(city, time, dimensions, yearly), mae))
    if at_cap:
        mae = math.sqrt(at_cap * mechanism.square_of_mean_error)
        known = city.plan.expected_patients_at_cap_per_quarter or {}
        errors += [ExpectedError("quarter", (AT_CAP,), care, n, mae) for care, n in known.items()]
    spent = sum(p.whole_cost_units for p in tables)
    set_aside = int(Fraction(city.plan.corrections_share) * budget)
    corrections = _correction_costs(city, tables, set_aside)
    year, five = (mechanism.epsilon(n * (spent + set_aside) / UNITS, city.budget.delta) for n in (1, 5))
    delta = _delta(city, tables, corrections) or city.budget.delta
    return PricedPlan(mechanism, tables, budget, spent, set_aside, corrections, year, five, delta, tuple(errors))


def _priced(city: City, table: MeasuredTable, mechanism: type[Noise], budget: int) -> PricedTable:
    size = sensitivity(table.time, city.caps, mechanism.power)
    cost = int(Fraction(table.share) * budget) // size
    if not cost:
        raise PlanRefused(f"the share of table {table.name} buys nothing")
    return PricedTable(table, cost, mechanism.of_cost(cost), size)


def _correction_costs(city: City, tables: Sequence[PricedTable], set_aside: int) -> dict[str, int]:
    """Table → cost of a correction for one unit of sensitivity: an equal part of its planned cost, rounded down.

    A person has at most `caps.week` cases in a week, hence in the cells of a table that belong to it together.
    """
    again = [p for p in tables if p.table.time in ("day", "week") and not p.table.extra_lag_days]
    whole = city.caps.week ** tables[0].noise.power * sum(p.cost_units for p in again) if again else 0
    part = set_aside // city.plan.corrections_per_window
    return {p.table.name: p.cost_units * part // whole for p in again} if whole else {}


def _delta(city: City, tables: Sequence[PricedTable], corrections: Mapping[str, int]) -> float:
    """δ of the sampler's own error over a window, every correction included."""
    times, mechanism = city.plan.corrections_per_window, type(tables[0].noise)
    again = sum(mechanism.of_cost(cost).delta(city.caps.week) for cost in corrections.values() if cost)
    return sum(p.noise.delta(p.sensitivity) for p in tables) + times * again


def _limited(city: City, plan: PricedPlan) -> list[tuple[Acceptance, ExpectedError | None]]:
    """Each acceptance limit with the error that it limits; None where no table gives that level."""
    errors = {(e.time, e.dimensions): e for e in plan.errors if e.care == CARE[0]}
    return [(limit, errors.get((limit.time, limit.dimensions))) for limit in city.plan.acceptance]


def _refuse_misses(city: City, plan: PricedPlan) -> None:
    """Raise `PlanRefused` with every limit that is missed, and the ε at which the same shares would meet them all."""
    missed, worst = [], 1.0
    for limit, error in _limited(city, plan):
        where = f"{limit.time} × {' × '.join(limit.dimensions) or 'city'}"
        if error is None:
            raise PlanRefused(f"acceptance names {where}, which no measured table gives")
        if error.relative > limit.max_relative_error:
            missed.append(
                f"{where}: expected relative error {error.relative:.1%} is above the limit {limit.max_relative_error:.1%}"
            )
            worst = max(worst, error.relative / limit.max_relative_error)
    if missed:
        raise PlanRefused("; ".join(missed) + f". {_nearest(city, plan.mechanism, worst)}")


def _nearest(city: City, mechanism: type[Noise], worst: float) -> str:
    """The plan nearest to a refused one whose largest error by its limit is `worst`."""
    from assets.privacy.optimise import nearest  # it prices plans itself

    epsilon = city.budget.epsilon
    shares = nearest(city, mechanism)
    if shares:
        named = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        return f"Nearest plan that meets every limit: ε {epsilon:g} as it is, with the shares {named}"
    larger = math.ceil(mechanism.epsilon_for(epsilon, worst, city.budget.delta) * 1000 + 1) / 1000
    return (
        f"No shares meet them at ε {epsilon:g}. Nearest plan that meets every limit: the same shares with ε {larger:g} "
        f"instead of {epsilon:g}; with the shares of `digitalstadt plan --propose` less is enough. Or publish at coarser "
        "levels"
    )
