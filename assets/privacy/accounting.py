"""Accounting in exact integers: sensitivities of a table, and the formulas that turn what was spent into ε.

A discrete Gaussian of variance σ² on a table of squared L2 sensitivity Δ² satisfies ρ = Δ²/(2σ²)-zCDP, and ρ adds up over
tables (Bun & Steinke 2016; Canonne, Kamath & Steinke 2020, Theorem 4). Geometric noise P(X = k) ∝ e^(−ε₀|k|) on a table of
L1 sensitivity Δ₁ satisfies ε = Δ₁·ε₀, and ε adds up over tables (Ghosh, Roughgarden & Sundararajan 2012). A plan spends one of
the two (`mechanism`). Both sensitivities are Σ (change of a cell)^`power` over a window, with `power` 2 and 1.
One unit is 10⁻¹⁵ of what is spent, so that every sum and every comparison with the cap is one of integers.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import date
from decimal import ROUND_CEILING, Decimal
from functools import cache
from typing import Final

from assets.contract.terms import PERIOD_DAYS, QUARTER_DAYS, WEEK_DAYS, WINDOW_DAYS, Caps

UNITS: Final = 10**15
RANDOM_BITS: Final = 53
"""Of the random number that geometric noise is made from (`random.random`)."""
ROUNDED_CELLS: Final = 16
"""Steps of that number around each boundary between two integers that may fall on its wrong side: the one that holds the
boundary, and those within the rounding error of exp, log, one product and one quotient (up to 4 units in the last place for
exp and log: below 11 steps in all)."""


@cache
def epsilon_of(rho: float, delta: float) -> float:
    """ε(ρ, δ) = min over a > 1 of aρ + ln(1 − 1/a) − (ln δ + ln a)/(a − 1); CKS 2020, Proposition 12."""
    if rho <= 0:
        return 0.0

    def at(log_excess: float) -> float:
        a = 1 + math.exp(log_excess)
        return a * rho + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1)

    low, high = math.log(1e-3), math.log(1e6)
    for _ in range(200):  # the expression has one minimum in log(a − 1)
        third = (high - low) / 3
        if at(low + third) < at(high - third):
            high -= third
        else:
            low += third
    return max(0.0, at((low + high) / 2))


def at_most(bound: float, digits: int = 4) -> float:
    """A bound to so many decimals, up: rounded to the nearest it would promise more than holds."""
    return float(Decimal(repr(bound)).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING))


@cache
def rho_of(epsilon: float, delta: float) -> float:
    """Largest ρ whose ε(ρ, δ) does not exceed `epsilon` (bisection from below)."""
    low, high = 0.0, epsilon
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return low


def sensitivity(level: str, caps: Caps, power: int) -> int:
    """Most that one person adds to Σ |change of a cell|^`power` over a whole window of tables of that level.

    Days and weeks: at most one event a week, so each event is alone in its cell. Periods: up to `period`
    events share a cell. Window: all of them do. Quarters hold no table of events but that of patients at their cap.
    Bounding decides for each person alone, so one person more or less changes no one else's place in it; the
    person adds one to one cell (of the `care` of their first left-out case) in each quarter or nothing. At most one
    cell of a quarter changes, by one: 1 for each of the window's four quarters, whatever the caps are. Two cases
    in one week of every quarter reach it.
    """
    if level == "quarter":
        return WINDOW_DAYS // QUARTER_DAYS
    if level in ("day", "week"):
        return caps.window * caps.week
    if level == "window":
        return int(caps.window**power)
    full, rest = divmod(caps.window, caps.period)
    return int(full * caps.period**power + rest**power)


def released_sensitivity(level: str, released: Collection[date], caps: Caps, epoch: date, power: int) -> int:
    """The same over those units of one window that have been released: what a person can have lost so far.

    `released`: first days of the released units. Rises to `sensitivity`, never above.
    """
    if not released:
        return 0
    if level == "window":
        return int(caps.window**power)
    if level == "quarter":
        return len(set(released))
    offsets = [(day - epoch).days for day in released]
    if level == "period":
        left, total = caps.window, 0
        for _ in range(len(set(offsets))):
            take = min(caps.period, left)
            total, left = total + take**power, left - take
        return int(total)
    weeks_of: dict[int, set[int]] = {}
    for offset in offsets:
        weeks_of.setdefault(offset // PERIOD_DAYS, set()).add(offset // WEEK_DAYS)
    return min(caps.window, sum(min(caps.period, len(weeks)) for weeks in weeks_of.values()))


def grid_distance(rate: float, bits: int = RANDOM_BITS, cells: int = ROUNDED_CELLS) -> float:
    """Total variation between geometric noise of ε₀ = `rate` made from one number of `bits`, and the exact distribution.

    The noise is a step function of that number u, with a boundary at ½ ± α^k/(1 + α) for each k ≥ 1, α = e^−ε₀. Let u* be u
    with all further bits: noise of u and exact noise of u* differ only where u lies within `cells` steps of a boundary. Up
    to k = bits · ln 2/ε₀ a boundary is farther than one step from ½; all others lie in the two steps beside it, one of which
    holds the number that is drawn again.
    """
    boundaries = math.ceil(bits * math.log(2) / rate)
    return float(2.0**-bits * (2 * boundaries * cells + 2))
