"""Sums of estimates that are published too, with their exact variance: months, quarters, age-standardised rates.

Post-processing of consistent estimates. Here: which cells are added with which weights. Not here: least squares
and its covariances (`consistency`), the indicators made from the sums (`publication`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Final

import numpy as np

from assets.contract.city import City
from assets.contract.codes import AGE_GROUP_KEYS, SEXES, STANDARD_POPULATION
from assets.contract.terms import LEVEL_DAYS, WEEK_DAYS
from assets.privacy.consistency import Level, Product, variance_of_sum
from assets.privacy.measure import units_of
from assets.privacy.plan import DIMENSIONS, TIME_LEVELS

STANDARD_AGE = "standard_age"
"""Marks the age-standardised rate of an area among the dimensions of an estimate."""
THURSDAY: Final = 3
"""Days after Monday."""
Marginal = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Solved:
    """Estimates of a marginal in a block: (care, unit of time, *dimensions), and the variance in each unit.

    `corrected`: which units of time hold a week that was measured again; none where it is None.
    """

    values: np.ndarray
    variance: np.ndarray
    corrected: np.ndarray | None = None


@dataclass(frozen=True)
class SolvedBlock:
    """A block of time that was estimated at once, with what its variances follow from."""

    top: str
    start: date
    status: str
    product: Product
    variances: Mapping[Level, float]
    solved: Mapping[Marginal, Solved]
    corrections: Mapping[int, SolvedBlock] = field(default_factory=dict)
    """Weeks of this block, by their number in it, that were measured again over corrected data."""

    def variance(self, marginal: Marginal, time: np.ndarray, weights: Mapping[str, np.ndarray]) -> float:
        """Exact variance of a weighted sum of a solved marginal of this block.

        A week that was measured again is independent of the rest: its part has the variance of that measurement.
        """
        again, time = 0.0, time.copy()
        size = {"week": 1, "day": WEEK_DAYS + 1}.get(marginal[0], 0)
        for number, week in self.corrections.items() if size else ():
            if marginal in week.solved:
                part = slice(number * size, (number + 1) * size)
                again += week.variance(marginal, time[part], weights)
                time[part] = 0
        level = TIME_LEVELS.index(marginal[0]) - TIME_LEVELS.index(self.top)
        query = level, tuple(sorted(DIMENSIONS.index(d) for d in marginal[1]))
        by_index = {DIMENSIONS.index(d): w for d, w in weights.items()}
        found = variance_of_sum(self.product, query, self.variances, time, by_index)
        assert found is not None, "a marginal that was solved is determined"
        return found + again


@dataclass
class Sum:
    """One unit of time of a sum: values by (care, *dimensions), all of the same variance or each its own."""

    first: date
    last: date
    dimensions: tuple[str, ...]
    values: np.ndarray
    variance: np.ndarray
    days: int = 0
    late_weeks: int = 0
    statuses: set[str] = field(default_factory=set)

    @property
    def status(self) -> str:
        if "corrected" in self.statuses:
            return "corrected"
        return "final" if self.statuses == {"final"} else "provisional"


def with_corrections(block: SolvedBlock, weeks: Mapping[date, SolvedBlock]) -> SolvedBlock:
    """`block` with the weeks of `weeks` (by their Monday) in the place of what was measured of them first.

    The first measurement q̂ of a longer unit counts the wrong data, as do its weeks ŵ: with ŵ' of the corrected data,
    q̂ − ŵ + ŵ' is an unbiased estimate of the corrected unit and adds up. q̂ − ŵ is the sum of the other weeks, so its
    variance is that of a sum of estimates; ŵ' is independent of it.
    """
    length = LEVEL_DAYS[block.top] // WEEK_DAYS
    inside = {(monday - block.start).days // WEEK_DAYS: week for monday, week in weeks.items()
              if block.start <= monday < block.start + timedelta(LEVEL_DAYS[block.top])}  # fmt: skip
    if not inside or not length:
        return block
    changed = replace(block, corrections=inside)
    solved = {m: _corrected(changed, m, own, length) for m, own in block.solved.items()}
    return replace(changed, solved=solved)


def _corrected(block: SolvedBlock, marginal: Marginal, own: Solved, length: int) -> Solved:
    """One marginal of `with_corrections`; as it was where the weeks that were measured again do not determine it."""
    time, dimensions = marginal
    of_weeks = block.solved.get(("week", dimensions))
    if of_weeks is None or any(("week", dimensions) not in week.solved for week in block.corrections.values()):
        return own
    values, spread = own.values.copy(), own.variance.copy()
    corrected = np.zeros(values.shape[1], dtype=bool)
    for number, week in block.corrections.items():
        if time in ("day", "week"):
            size = values.shape[1] // length
            part = slice(number * size, (number + 1) * size)
            values[:, part], spread[part] = week.solved[marginal].values, week.solved[marginal].variance
            corrected[part] = True
        else:
            unit = number * values.shape[1] // length
            values[:, unit] += week.solved["week", dimensions].values[:, 0] - of_weeks.values[:, number]
            corrected[unit] = True
    one = {d: np.eye(block.product.dimensions[DIMENSIONS.index(d)])[0] for d in dimensions}
    for unit in np.flatnonzero(corrected) if time not in ("day", "week") else ():
        weights = (np.arange(length) * values.shape[1] // length == unit).astype(float)
        spread[unit] = block.variance(("week", dimensions), weights, one)
    return Solved(values, spread, corrected)


def _month(day: date) -> tuple[date, date]:
    first = day.replace(day=1)
    return first, (first + timedelta(31)).replace(day=1) - timedelta(1)


def _thursdays(first: date, last: date) -> int:
    before = (THURSDAY - first.weekday()) % WEEK_DAYS
    return max(0, ((last - first).days - before) // WEEK_DAYS + 1)


def _whole(found: Sum, marginal: Marginal) -> bool:
    """Whether all days are in a sum and, of a marginal by day, the late cases of every week that belongs to it."""
    late = _thursdays(found.first, found.last) if marginal[0] == "day" else 0
    return found.days == (found.last - found.first).days + 1 and found.late_weeks == late


def _longer_units(city: City, blocks: Sequence[SolvedBlock], marginal: Marginal, unit: str) -> Iterator[Sum]:
    """Months or quarters of a marginal by day or week; only those that lie wholly inside the blocks.

    Late cases of a week are of no day: they count in the month of its Thursday, as ISO 8601 counts the week itself
    in a year. Their month waits for them.
    """
    size, found = LEVEL_DAYS[marginal[0]], dict[date, Sum]()
    for block in blocks:
        solved = block.solved.get(marginal)
        if solved is None:
            continue
        units = units_of(block.top, block.start, marginal[0])
        inside: dict[tuple[date, date], list[int]] = defaultdict(list)
        for n, part in enumerate(units):
            day = part.start + timedelta(THURSDAY) if part.late else part.start
            first = city.unit_start("quarter", day)
            inside[_month(day) if unit == "month" else (first, first + timedelta(LEVEL_DAYS["quarter"] - 1))].append(n)
        for (first, last), mine in inside.items():
            weights = np.zeros(len(units))
            weights[mine] = 1.0
            one = {d: np.eye(len(city.categories(d)))[0] for d in marginal[1]}
            values = solved.values[:, mine].sum(axis=1)
            total = found.setdefault(first, Sum(first, last, marginal[1], 0 * values, np.zeros(values.shape)))
            total.values = total.values + values
            total.variance = total.variance + block.variance(marginal, weights, one)
            late = sum(units[n].late for n in mine)
            total.days += size * (len(mine) - late)
            total.late_weeks += late
            touched = solved.corrected is not None and bool(solved.corrected[mine].any())
            total.statuses.add("corrected" if touched else block.status)
    return (s for s in found.values() if _whole(s, marginal))


def months(city: City, blocks: Sequence[SolvedBlock]) -> list[Sum]:
    """Calendar months of all areas together and of each area."""
    return [s for dims in ((), ("area",)) for s in _longer_units(city, blocks, ("day", dims), "month")]


def quarters(city: City, blocks: Sequence[SolvedBlock]) -> list[Sum]:
    """Quarters of the budget window (13 weeks), all areas together."""
    return list(_longer_units(city, blocks, ("week", ()), "quarter"))


def standardised(city: City, blocks: Sequence[SolvedBlock]) -> list[Sum]:
    """Age-standardised rate per 100,000 of each area whose residents are known; NaN for the others.

    Σ over age groups of (share in the European Standard Population 2013 × cases / residents × 100,000), both sexes and
    those whose sex is not known.
    """
    marginal: Marginal = ("window", ("area", "age_group", "sex"))
    result = []
    for block in blocks:
        solved = block.solved.get(marginal)
        if solved is None:
            continue
        values = np.full(solved.values.shape[::2][:1] + solved.values.shape[2:3], np.nan)
        spread = np.full(values.shape, np.nan)
        for n, area in enumerate(city.areas):
            residents = [area.residents(age) for age in AGE_GROUP_KEYS]
            if not all(residents):
                continue
            factor = np.array(
                [STANDARD_POPULATION[a] / (r or 1) for a, r in zip(AGE_GROUP_KEYS, residents, strict=True)]
            )
            one = np.eye(len(city.areas))[n]
            values[:, n] = (solved.values[:, 0, n] * factor[:, None]).sum(axis=(1, 2))
            weights = {"area": one, "age_group": factor, "sex": np.ones(len(SEXES))}
            spread[:, n] = block.variance(marginal, np.ones(1), weights)
        last = block.start + timedelta(LEVEL_DAYS["window"] - 1)
        result.append(Sum(block.start, last, ("area", STANDARD_AGE), values, spread, statuses={block.status}))
    return result
