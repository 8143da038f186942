"""The certificate: the exact privacy loss of every person, computed on the very events that are counted.

It does not trust the bounding: it counts again, in integers, and refuses a release that would exceed the plan.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from assets.contract.city import City
from assets.contract.terms import LEVEL_DAYS, WEEK_DAYS
from assets.privacy.plan import PricedPlan


class LossAboveBudget(RuntimeError):
    """A person could lose more than planned: nothing may be released. Names tables only."""


def certificate(events: pa.Table, city: City, plan: PricedPlan, left_out: pa.Table | None = None) -> int:
    """Largest privacy loss of any person of `events` (one window), exact, in units of the plan's currency.

    `left_out`: what the table of patients at their cap counts (`at_cap`), in the same window.

    Σ over tables of c · Σ over cells of (events of the person in the cell)^`power` of the mechanism. Dimensions only split cells,
    which can only lower the sum, so counting by units of time alone bounds it from above. `events`: person_key, event_day and
    `late`, by which tables by day count a case in its week's late leaf. Raises `LossAboveBudget` above the plan.
    """
    columns = ["person_key", "event_day"]
    capped = (left_out if left_out is not None else events.slice(0, 0)).select(columns)
    everything = pa.concat_tables([events.select(columns), capped], promote_options="permissive")
    if not everything.num_rows:
        return 0
    person = everything.column("person_key").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    day = everything.column("event_day").to_numpy().astype("datetime64[D]").astype(np.int64)
    day -= np.datetime64(city.budget.epoch, "D").astype(np.int64)
    n, persons = events.num_rows, int(person.max()) + 1
    units = {level: (day[n:] if level == "quarter" else day[:n]) // size for level, size in LEVEL_DAYS.items()}
    late = events.column("late").to_numpy()
    units["day"] = units["week"] * (WEEK_DAYS + 1) + np.where(late, WEEK_DAYS, day[:n] % WEEK_DAYS)
    changes = {
        level: _changes(person[n:] if level == "quarter" else person[:n], unit, persons, plan.mechanism.power)
        for level, unit in units.items()
    }
    for priced in plan.tables:
        if int(changes[priced.table.time].max()) > priced.sensitivity:
            raise LossAboveBudget(
                f"a person's contribution to {priced.table.name} is above its bound: nothing may be released"
            )
    # Every term is now at most its table's share of the budget, so 64 bits hold the sum.
    loss = np.zeros(persons, dtype=np.int64)
    for priced in plan.tables:
        loss += changes[priced.table.time] * np.int64(priced.cost_units)
    highest = int(loss.max())
    if highest > plan.budget_units:
        raise LossAboveBudget("a person's loss is above the budget: nothing may be released")
    return highest


def _changes(person: np.ndarray, unit: np.ndarray, persons: int, power: int) -> np.ndarray:
    """Σ over units of time of (events of the person in the unit)^`power`, int64, for each of `persons` indices."""
    if not len(unit):
        return np.zeros(persons, dtype=np.int64)
    unit = unit - unit.min()
    span = int(unit.max()) + 1
    pairs, times = np.unique(person * span + unit, return_counts=True)
    result = np.zeros(persons, dtype=np.int64)
    np.add.at(result, pairs // span, times.astype(np.int64) ** power)
    return result
