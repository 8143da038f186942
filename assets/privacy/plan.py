"""The release plan, priced: what each table costs and how accurate every published level will be.

Closed form and independent of the data, so it is known before anything is measured or spent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from assets.contract.city import AT_CAP, LEVEL_DAYS, WEEK_DAYS, City, MeasuredTable
from assets.privacy.accounting import (
    UNITS_PER_RHO,
    absolute_sensitivity,
    epsilon_of,
    geometric_epsilon,
    rho_of,
    squared_sensitivity,
    variance_of,
)
from assets.privacy.consistency import Level, Product, variance

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
    """ρ units for one unit of squared sensitivity."""

    @property
    def variance(self) -> Fraction:
        return variance_of(self.cost_units)


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
    tables: tuple[PricedTable, ...]
    budget_units: int
    spent_units: int
    epsilon_year: float
    epsilon_five_years: float
    errors: tuple[ExpectedError, ...]
    geometric_epsilon_year: float
    """What the same variances would cost a year with geometric noise, pure ε added up over the tables."""

    @property
    def of_cases(self) -> tuple[PricedTable, ...]:
        """Tables that least squares joins: all but that of patients at their cap."""
        return tuple(p for p in self.tables if not p.table.at_cap)


def published_levels(city: City) -> list[tuple[str, tuple[str, ...]]]:
    """(time level, dimensions) of all counts of cases: each measured table, its coarser times, city totals."""
    found = set()
    for table in city.plan.tables:
        if table.at_cap:
            continue
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
    budget = math.floor(rho_of(city.budget.epsilon, city.budget.delta) * UNITS_PER_RHO)
    tables = tuple(
        PricedTable(t, int(Fraction(t.share) * budget) // squared_sensitivity(t.time, city.caps))
        for t in city.plan.tables
    )
    variances: dict[Level, float] = {}
    for priced in tables:
        level = (-1, ()) if priced.table.at_cap else level_of(priced.table.time, priced.table.dimensions)
        if level in variances or not priced.cost_units:
            raise PlanRefused(f"table {priced.table.name} repeats another one, or its share buys nothing")
        variances[level] = float(priced.variance)
    at_cap = variances.pop((-1, ()), None)
    product = product_of(city)
    errors = []
    for time, dimensions in published_levels(city):
        level = level_of(time, dimensions)
        spread = variance(product, level, variances)
        if spread is None:
            continue
        mae = math.sqrt(spread * 2 / math.pi)
        for care, yearly in city.plan.expected_cases_per_year.items():
            errors.append(ExpectedError(time, dimensions, care, mean_count(city, time, dimensions, yearly), mae))
    if at_cap:
        mae = math.sqrt(at_cap * 2 / math.pi)
        known = city.plan.expected_patients_at_cap_per_quarter or {}
        errors += [ExpectedError("quarter", (AT_CAP,), care, n, mae) for care, n in known.items()]
    _refuse_misses(city, errors)
    spent = sum(p.cost_units * squared_sensitivity(p.table.time, city.caps) for p in tables)
    rho = spent / UNITS_PER_RHO
    year, five = (epsilon_of(n * rho, city.budget.delta) for n in (1, 5))
    geometric = sum(geometric_epsilon(float(p.variance), absolute_sensitivity(p.table.time, city.caps)) for p in tables)
    return PricedPlan(tables, budget, spent, year, five, tuple(errors), geometric)


def _refuse_misses(city: City, errors: list[ExpectedError]) -> None:
    """Raise `PlanRefused` with every limit that is missed, and the ε at which the same shares would meet them all."""
    missed, worst = [], 1.0
    for limit in city.plan.acceptance:
        error = next(
            (e for e in errors if (e.time, e.dimensions, e.care) == (limit.time, limit.dimensions, "inpatient")), None
        )
        where = f"{limit.time} × {' × '.join(limit.dimensions) or 'city'}"
        if error is None:
            raise PlanRefused(f"acceptance names {where}, which no measured table gives")
        if error.relative > limit.max_relative_error:
            missed.append(
                f"{where}: expected relative error {error.relative:.1%} is above the limit {limit.max_relative_error:.1%}"
            )
            worst = max(worst, error.relative / limit.max_relative_error)
    if missed:
        raise PlanRefused("; ".join(missed) + f". {_nearest(city, worst)}")


def _nearest(city: City, worst: float) -> str:
    """The plan nearest to a refused one whose largest error by its limit is `worst`."""
    from assets.privacy.optimise import nearest  # it prices plans itself

    epsilon = city.budget.epsilon
    shares = nearest(city)
    if shares:
        named = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        return f"Nearest plan that meets every limit: ε {epsilon:g} as it is, with the shares {named}"
    # Every variance is proportional to 1/ρ, so errors to 1/√ρ: the smallest budget is known in closed form.
    rho = rho_of(epsilon, city.budget.delta) * worst**2
    larger = math.ceil(epsilon_of(rho, city.budget.delta) * 1000 + 1) / 1000
    return (
        f"No shares meet them at ε {epsilon:g}. Nearest plan that meets every limit: the same shares with ε {larger:g} "
        f"instead of {epsilon:g}; with the shares of `digitalstadt plan --propose` less is enough. Or publish at coarser "
        "levels"
    )
