"""ρ-zCDP accounting in exact integers.

A discrete Gaussian of variance σ² on a table of squared L2 sensitivity Δ² satisfies ρ = Δ²/(2σ²)-zCDP, and ρ
adds up over tables (Bun & Steinke 2016; Canonne, Kamath & Steinke 2020, Theorem 4). One unit is 10⁻¹⁵ of ρ,
so that every sum and every comparison with the cap is one of integers.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import date
from fractions import Fraction
from functools import cache
from typing import Final

from assets.contract.city import PERIOD_DAYS, QUARTER_DAYS, WEEK_DAYS, WINDOW_DAYS, Caps

UNITS_PER_RHO: Final = 10**15


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


@cache
def rho_of(epsilon: float, delta: float) -> float:
    """Largest ρ whose ε(ρ, δ) does not exceed `epsilon` (bisection from below)."""
    low, high = 0.0, epsilon
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return low


def squared_sensitivity(level: str, caps: Caps) -> int:
    """Most that one person adds to Σ (change of a cell)² over a whole window of tables of that level.

    Days and weeks: at most one event a week, so each event is alone in its cell. Periods: up to `period`
    events share a cell. Window: all of them do. Quarters hold no table of events but that of patients at their cap.
    Bounding decides for each person alone, so one person more or less changes no one else's place in it; the
    person adds one to one cell (of the `care` of their first left-out case) in each quarter or nothing. At most one
    cell of a quarter changes, by one: Δ² = 1² for each of the window's four quarters, whatever the caps are. Two cases
    in one week of every quarter reach it.
    """
    if level == "quarter":
        return WINDOW_DAYS // QUARTER_DAYS
    if level in ("day", "week"):
        return caps.window * caps.week
    if level == "window":
        return caps.window**2
    full, rest = divmod(caps.window, caps.period)
    return full * caps.period**2 + rest**2


def released_sensitivity(level: str, released: Collection[date], caps: Caps, epoch: date) -> int:
    """The same over those units of one window that have been released: what a person can have lost so far.

    `released`: first days of the released units. Rises to `squared_sensitivity`, never above.
    """
    if not released:
        return 0
    if level == "window":
        return caps.window**2
    if level == "quarter":
        return len(set(released))
    offsets = [(day - epoch).days for day in released]
    if level == "period":
        left, total = caps.window, 0
        for _ in range(len(set(offsets))):
            take = min(caps.period, left)
            total, left = total + take**2, left - take
        return total
    weeks_of: dict[int, set[int]] = {}
    for offset in offsets:
        weeks_of.setdefault(offset // PERIOD_DAYS, set()).add(offset // WEEK_DAYS)
    return min(caps.window, sum(min(caps.period, len(weeks)) for weeks in weeks_of.values()))


def absolute_sensitivity(level: str, caps: Caps) -> int:
    """The same in Σ |change of a cell|: every event is in one cell, of any level."""
    return WINDOW_DAYS // QUARTER_DAYS if level == "quarter" else caps.window


def geometric_epsilon(variance: float, sensitivity: int) -> float:
    """Pure ε of two-sided geometric noise of that variance on a table of that L1 sensitivity.

    With α = e^(−ε/Δ₁) the variance is 2α/(1 − α)² (Ghosh, Roughgarden & Sundararajan 2012); solved for ε.
    """
    return sensitivity * math.acosh(1 + 1 / variance)


def variance_of(cost_units: int) -> Fraction:
    """σ² at which one unit of squared sensitivity costs `cost_units`: σ² = 1/(2ρ)."""
    return Fraction(UNITS_PER_RHO, 2 * cost_units)
