"""Shares of the budget that meet the acceptance limits best: convex, on public expected means only.

In the shares s the variance of a level is V(s) = Σ_i c_i/(A_i·s), a sum of convex functions of linear ones
(`consistency.variance` with 1/σ_m² = 2ρ s_m/Δ_m²). Sought is the smallest largest V/T over all acceptance limits, T being
the variance at which a level just meets its limit: a convex problem, and V(λs) = V(s)/λ, so the optimum uses the budget
up. It is solved by the multiplicative update of optimal design (Silvey, Titterington & Torsney 1978),
s_m ← s_m · (−∂f/∂s_m)^(1/(p+1)) and normalised, for f the p-norm of V/T with p rising to 64: within (number of
limits)^(1/64) of the maximum. The tests compare it with a general solver. Shares of tables that no limit needs stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from assets.contract.city import AT_CAP, City
from assets.privacy.accounting import rho_of, squared_sensitivity
from assets.privacy.consistency import Level
from assets.privacy.plan import level_of, mean_count, product_of

NORMS: Final = (2, 4, 8, 16, 32, 64)
ROUNDS: Final = 1500
STEPS: Final = 40
SHARE_DECIMALS: Final = 4


@dataclass(frozen=True)
class Problem:
    """V_q/T_q = Σ over rows of q of 1/(rows·s), s being the shares of the tables in the plan's order."""

    rows: np.ndarray
    limit_of: np.ndarray
    free: np.ndarray
    """Whether a limit needs the table."""

    def ratios(self, shares: np.ndarray) -> np.ndarray:
        """Squared error by squared limit, of each acceptance limit."""
        with np.errstate(divide="ignore"):
            ratios: np.ndarray = np.bincount(self.limit_of, 1 / (self.rows @ shares))
        return ratios

    def worst(self, shares: np.ndarray) -> float:
        """Largest error by its limit: up to 1 the plan is accepted."""
        return math.sqrt(self.ratios(shares).max())

    def best(self, shares: np.ndarray) -> np.ndarray:
        """The optimum with as much budget as `shares`, which are where it starts."""
        total, s = shares[self.free].sum(), shares.copy()
        for p in NORMS:
            for _ in range(ROUNDS):
                parts = 1 / (self.rows @ s)
                ratios = np.bincount(self.limit_of, parts)
                weight = (ratios / ratios.max()) ** (p - 1)
                slope = (weight[self.limit_of] * parts**2) @ self.rows
                s[self.free] *= slope[self.free] ** (1 / (p + 1))
                s[self.free] *= total / s[self.free].sum()
        return s


def problem(city: City) -> Problem:
    """The city's acceptance limits as functions of the shares of its tables."""
    tables, product = city.plan.tables, product_of(city)
    rho = rho_of(city.budget.epsilon, city.budget.delta)
    gain = np.array([2 * rho / squared_sensitivity(t.time, city.caps) for t in tables])
    levels: list[Level | None] = [None if t.at_cap else level_of(t.time, t.dimensions) for t in tables]
    rows, limit_of = [], []
    for number, limit in enumerate(city.plan.acceptance):
        if AT_CAP in limit.dimensions:
            mean = float((city.plan.expected_patients_at_cap_per_quarter or {})["inpatient"])
            found = [(1.0, np.array([level is None for level in levels]) * gain)]
        else:
            query = level_of(limit.time, limit.dimensions)
            mean = mean_count(city, limit.time, limit.dimensions, city.plan.expected_cases_per_year["inpatient"])
            found = []
            for i in product.below(query):
                holds = [m is not None and i[0] <= m[0] and set(i[1]) <= set(m[1]) for m in levels]
                cells = [product.cells(m) * product.cells(i) if m else 1 for m in levels]
                share = product.residual_share(i) / product.cells(query) ** 2
                found.append((share, np.array(holds) * gain / np.array(cells, dtype=float)))
        allowed = (limit.max_relative_error * mean) ** 2 * math.pi / 2
        rows += [precision * allowed / share for share, precision in found]
        limit_of += [number] * len(found)
    measured = {limit.time + "+".join(limit.dimensions) for limit in city.plan.acceptance}
    free = [t.time + "+".join(t.dimensions) in measured for t in tables]
    return Problem(np.array(rows), np.array(limit_of, dtype=np.int64), np.array(free))


def propose(city: City) -> Mapping[str, float]:
    """Table → proposed share: the smallest largest error by its limit, at the same budget."""
    shares = np.array([t.share for t in city.plan.tables])
    best = _down(problem(city).best(shares))
    return {t.name: float(s) for t, s in zip(city.plan.tables, best, strict=True)}


def nearest(city: City) -> Mapping[str, float] | None:
    """Shares that meet every limit at the same budget, as near to the present ones as on the way to the optimum; or None.

    The shares that meet all limits are a convex set, so on the way from the present shares to the optimum it is
    entered once: there is the answer, found by halving.
    """
    task, shares = problem(city), np.array([t.share for t in city.plan.tables])
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
