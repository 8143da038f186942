"""Accuracy as promised: a made-up year through the real noise and the real least squares, many times.

For every published level: realised over expected mean absolute error, and how often the 95% interval covers the
truth. The truth is what the same estimation gives for exact counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa

from assets.contract.city import LEVEL_DAYS, WINDOW_DAYS, City
from assets.privacy.counting import count
from assets.privacy.estimates import estimates
from assets.privacy.ledger import Committed
from assets.privacy.measure import measurement_id
from assets.privacy.mechanism import draw
from assets.privacy.plan import DIMENSIONS, PricedPlan, price

LEVEL = ["time_level", "dimensions"]


@dataclass(frozen=True)
class Accuracy:
    level: str
    error_ratio: float
    error_ratio_se: float
    coverage: float
    coverage_se: float

    @property
    def holds(self) -> bool:
        """Within 0.9–1.1 and 93–97%, as far as so many seeds can tell (four standard errors)."""
        return (
            0.9 - 4 * self.error_ratio_se <= self.error_ratio <= 1.1 + 4 * self.error_ratio_se
            and 0.93 - 4 * self.coverage_se <= self.coverage <= 0.97 + 4 * self.coverage_se
        )


def _year(city: City, n: int) -> pa.Table:
    """Made-up events of one window, sorted by day."""
    rng = np.random.default_rng(11)

    def pick(name: str) -> pa.Array:
        keys = city.categories(name)
        weights = rng.dirichlet(np.full(len(keys), 2.0))
        return pa.array(np.array(keys, dtype=object)[rng.choice(len(keys), n, p=weights)])

    day = np.sort(rng.integers(0, WINDOW_DAYS, n))
    return pa.table({"event_day": day, **{name: pick(name) for name in ("care", *DIMENSIONS)}})


def _exact(city: City, plan: PricedPlan, events: pa.Table) -> dict[str, tuple[np.ndarray, PricedPlan, date]]:
    days = events.column("event_day").to_numpy()
    found = {}
    for priced in plan.tables:
        size = LEVEL_DAYS[priced.table.time]
        for first in range(0, WINDOW_DAYS, size):
            begin, end = days.searchsorted([first, first + size])
            start = city.budget.epoch + timedelta(first)
            counts = count(events.slice(int(begin), int(end - begin)), priced.table, city)
            found[measurement_id(priced.table, start)] = counts, priced, start
    return found


def accuracy(city: City, seeds: int, tick: Callable[[], None] = lambda: None, events: int = 100_000) -> list[Accuracy]:
    """One row for each published level, over `seeds` years of noise."""
    plan = price(city)
    exact = _exact(city, plan, _year(city, events))

    def estimated(noisy: bool) -> pd.DataFrame:
        committed = {}
        for name, (counts, priced, start) in exact.items():
            flat = counts.ravel().tolist()
            values = draw(flat, priced.variance) if noisy else flat
            committed[name] = Committed("w", 0, {"unit_start": start.isoformat()}, values)
        return estimates(city, plan, committed).to_pandas()

    truth = estimated(noisy=False)
    expected = np.sqrt(2 * truth["variance"] / np.pi)
    reach = 1.959963984540054 * np.sqrt(truth["variance"])
    ratios, covered = [], []
    for _ in range(seeds):
        error = (estimated(noisy=True)["value"] - truth["value"]).abs()
        work = truth[LEVEL].assign(ratio=error / expected, inside=error <= reach)
        ratios.append(work.groupby(LEVEL)["ratio"].mean())
        covered.append(work.groupby(LEVEL)["inside"].mean())
        tick()
    ratio, inside = pd.concat(ratios, axis=1), pd.concat(covered, axis=1)
    root = seeds**0.5
    return [
        Accuracy(" × ".join(level), float(ratio.loc[level].mean()), float(ratio.loc[level].std() / root),
                 float(inside.loc[level].mean()), float(inside.loc[level].std() / root))
        for level in ratio.index
    ]  # fmt: skip
