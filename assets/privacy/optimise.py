"""Shares of the budget that meet the acceptance limits best, on public expected means only.

The variance of a level is V = Σ_i c_i/(A_i·w) (`consistency.variance`), w_m = 1/σ_m² being the precision of a table. Sought is
the smallest largest V/T over all acceptance limits, T being the variance at which a level just meets its limit. V falls
when all shares s grow, so the optimum uses the budget up. It is sought by the multiplicative update of optimal design
(Silvey, Titterington & Torsney 1978), s_m ← s_m · (−∂f/∂s_m)^(1/(dp+1)) and normalised, for f the p-norm of V/T with p
rising to 64: within (number of limits)^(1/64) of the maximum. Shares of tables that no limit needs stay.

Discrete Gaussian: w_m = 2ρ s_m/Δ_m² is linear in the shares (d = 1), so the problem is convex and the optimum is found; the
tests compare it with a general solver. Geometric: w_m is near (ε s_m/Δ_m)²/2 (d = 2), the problem is not convex, and what is
found is an optimum near the present shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from assets.contract.city import City
from assets.contract.terms import AT_CAP
from assets.privacy.accounting import UNITS, sensitivity
from assets.privacy.consistency import Level
from assets.privacy.mechanism import Noise
from assets.privacy.plan import level_of, mean_count, mechanism_for, product_of

NORMS: Final = (2, 4, 8, 16, 32, 64)
ROUNDS: Final = 1500
STEPS: Final = 40
SHARE_DECIMALS: Final = 4
SMALLEST: Final = 2 * 10.0**-SHARE_DECIMALS
"""No share falls below it: a table that is not worth its cost is for the city to drop."""


@dataclass(frozen=True)
class Problem:
    """V_q/T_q = Σ over rows of q of 1/(rows·w), w being the precisions of the tables in the plan's order."""

    mechanism: type[Noise]
    costs: np.ndarray
    """What a unit of sensitivity of each table costs at a share of 1."""
    rows: np.ndarray
    limit_of: np.ndarray
    free: np.ndarray
    """Whether a limit needs the table."""

    def ratios(self, shares: np.ndarray) -> np.ndarray:
        """Squared error by squared limit, of each acceptance limit."""
        precision, _ = self.mechanism.precision(self.costs * shares)
        with np.errstate(divide="ignore"):
            ratios: np.ndarray = np.bincount(self.limit_of, 1 / (self.rows @ precision))
        return ratios

    def worst(self, shares: np.ndarray) -> float:
        """Largest error by its limit: up to 1 the plan is accepted."""
        return math.sqrt(self.ratios(shares).max())

    def best(self, shares: np.ndarray) -> np.ndarray:
        """The optimum with as much budget as `shares`, which are where it starts."""
        total, s = shares[self.free].sum(), shares.copy()
        degree = 2 // self.mechanism.power
        for p in NORMS:
            for _ in range(ROUNDS):
                precision, slope = self.mechanism.precision(self.costs * s)
                parts = 1 / (self.rows @ precision)
                ratios = np.bincount(self.limit_of, parts)
                weight = (ratios / ratios.max()) ** (p - 1)
                gain = ((weight[self.limit_of] * parts**2) @ self.rows) * slope * self.costs
                s[self.free] = np.maximum(s[self.free] * gain[self.free] ** (1 / (degree * p + 1)), SMALLEST)
                s[self.free] *= total / s[self.free].sum()
        return s


def problem(city: City, mechanism: type[Noise] | None = None) -> Problem:
    """The city's acceptance limits as functions of the shares of its tables, for the plan's mechanism if none is named."""
    tables, product = city.plan.tables, product_of(city)
    mechanism = mechanism or mechanism_for(city)
    budget = mechanism.budget_units(city.budget.epsilon, city.budget.delta) / UNITS
    costs = np.array([budget / sensitivity(t.time, city.caps, mechanism.power) for t in tables])
    levels: list[Level | None] = [None if t.at_cap else level_of(t.time, t.dimensions) for t in tables]
    rows, limit_of = [], []
    for number, limit in enumerate(city.plan.acceptance):
        if AT_CAP in limit.dimensions:
            mean = float((city.plan.expected_patients_at_cap_per_quarter or {})["inpatient"])
            found = [(1.0, np.array([float(level is None) for level in levels]))]
        else:
            query = level_of(limit.time, limit.dimensions)
            mean = mean_count(city, limit.time, limit.dimensions, city.plan.expected_cases_per_year["inpatient"])
            found = []
            for i in product.below(query):
                holds = [m is not None and i[0] <= m[0] and set(i[1]) <= set(m[1]) for m in levels]
                cells = [product.cells(m) * product.cells(i) if m else 1 for m in levels]
                share = product.residual_share(i) / product.cells(query) ** 2
                found.append((share, np.array(holds) / np.array(cells, dtype=float)))
        allowed = (limit.max_relative_error * mean) ** 2 / mechanism.square_of_mean_error
        rows += [precision * allowed / share for share, precision in found]
        limit_of += [number] * len(found)
    measured = {limit.time + "+".join(limit.dimensions) for limit in city.plan.acceptance}
    free = [t.time + "+".join(t.dimensions) in measured for t in tables]
    return Problem(mechanism, costs, np.array(rows), np.array(limit_of, dtype=np.int64), np.array(free))


def propose(city: City) -> Mapping[str, float]:
    """Table → proposed share: the smallest largest error by its limit, at the same budget."""
    shares = np.array([t.share for t in city.plan.tables])
    best = _down(problem(city).best(shares))
    return {t.name: float(s) for t, s in zip(city.plan.tables, best, strict=True)}


def nearest(city: City, mechanism: type[Noise] | None = None) -> Mapping[str, float] | None:
    """Shares that meet every limit at the same budget, as near to the present ones as on the way to the optimum; or None.

    The shares that meet all limits are a convex set (of the discrete Gaussian), so on the way from the present shares to
    the optimum it is entered once: there is the answer, found by halving.
    """
    task, shares = problem(city, mechanism), np.array([t.share for t in city.plan.tables])
    best = task.best(shares)
    if task.worst(_down(best)) > 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if task.worst(_down(shares + middle * (best - shares))) <= 1 else (middle, high)
    found = _down(shares + high * (best - shares))
    return {t.name: float(s) for t, s in zip(city.plan.tables, found, strict=True)}


def with_shares(city: City, shares: Mapping[str, float]) -> City:
    """The city with other shares of its tables."""
    tables = tuple(t.model_copy(update={"share": shares[t.name]}) for t in city.plan.tables)
    return city.model_copy(update={"plan": city.plan.model_copy(update={"tables": tables})})


def _down(shares: np.ndarray) -> np.ndarray:
    """Rounded so that their sum never grows."""
    return np.floor(shares * 10**SHARE_DECIMALS + 1e-6) / 10**SHARE_DECIMALS
