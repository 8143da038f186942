"""Measurements: which are due, and reserve → draw → commit. Exact counts never leave these functions."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Callable, Collection
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from assets.contract.city import LEVEL_DAYS, City, MeasuredTable
from assets.contract.codes import CARE
from assets.contract.schemas import ESTIMATES
from assets.privacy.accounting import released_sensitivity, squared_sensitivity
from assets.privacy.consistency import Level, estimate, variance
from assets.privacy.counting import count
from assets.privacy.ledger import Committed, Ledger, Reservation
from assets.privacy.mechanism import draw
from assets.privacy.plan import DIMENSIONS, TIME_LEVELS, PricedPlan, level_of, product_of, published_levels

Due = tuple[MeasuredTable, date]


class PlanChanged(RuntimeError):
    """A table's noise, shape or caps differ from those its window began with: charges would no longer add up."""


def _terms(parameters: dict[str, Any]) -> dict[str, Any]:
    """What must stay the same for all measurements of a table in one window."""
    return {k: v for k, v in parameters.items() if k != "unit_start"}


def measurement_id(table: MeasuredTable, start: date) -> str:
    """The one name under which a table of one unit of time is ever drawn (version 1; corrections count up)."""
    return f"{table.name}:{start.isoformat()}:1"


def unit_days(level: str, start: date) -> list[date]:
    return [start + timedelta(n) for n in range(LEVEL_DAYS[level])]


def due(city: City, frozen: Collection[date], through: date, known: Collection[str]) -> list[Due]:
    """Measurements whose days are all frozen, whose extra lag is over on `through`, and that are not in `known`."""
    days = set(frozen)
    found = []
    for table in city.plan.tables:
        for start in sorted({city.unit_start(table.time, day) for day in days}):
            unit = unit_days(table.time, start)
            ripe = unit[-1] + timedelta(city.freeze_lag_days + table.extra_lag_days) <= through
            if ripe and days.issuperset(unit) and measurement_id(table, start) not in known:
                found.append((table, start))
    return found


def _snapshot(events: pa.Table, table: MeasuredTable, key: bytes) -> str:
    """Keyed digest of exactly the events that a measurement sees, in a total order."""
    columns = ["event_day", "case_key", "care", *table.dimensions]
    rows = events.select(columns).sort_by([(c, "ascending") for c in columns])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return hmac.new(key, sink.getvalue().to_pybytes(), hashlib.sha256).hexdigest()


def measure(
    city: City, plan: PricedPlan, ledger: Ledger, wanted: list[Due], load: Callable[[date, date], pa.Table], key: bytes
) -> int:
    """Reserve, draw and commit every measurement of `wanted`; returns how many.

    `load(first, last)`: frozen `EVENTS` of those days with the column `los`. Each entry is charged what a person
    can lose more than before it, so that the sum is exact at every moment and never above the plan's.
    """
    costs = {p.table.name: p for p in plan.tables}
    released: dict[tuple[str, str], set[date]] = defaultdict(set)
    agreed: dict[tuple[str, str], dict[str, Any]] = {}
    for known, earlier in ledger.reserved().items():
        table_name, unit, _ = known.split(":")
        first = date.fromisoformat(unit)
        window = city.window_start(first).isoformat()
        released[table_name, window].add(first)
        agreed[table_name, window] = _terms(earlier)
    reservations, exact = [], {}
    for table, start in wanted:
        scope = city.window_start(start).isoformat()
        ledger.open_scope(scope, plan.budget_units)
        before = released[table.name, scope]
        spent = [released_sensitivity(table.time, r, city.caps, city.budget.epoch) for r in (before, before | {start})]
        before.add(start)
        events = load(start, start + timedelta(LEVEL_DAYS[table.time] - 1))
        counts = count(events, table, city)
        priced = costs[table.name]
        parameters: dict[str, Any] = {
            "table": table.name, "time": table.time, "unit_start": start.isoformat(), "shape": list(counts.shape),
            "dimensions": list(table.dimensions), "mechanism": "discrete gaussian", "caps": city.caps.model_dump(),
            "variance": f"{priced.variance.numerator}/{priced.variance.denominator}",
        }  # fmt: skip
        if agreed.setdefault((table.name, scope), _terms(parameters)) != _terms(parameters):
            raise PlanChanged(
                f"{table.name}: share, dimensions or caps changed inside window {scope}; wait for the next"
            )
        name = measurement_id(table, start)
        exact[name] = (counts, priced.variance)
        rho = (spent[1] - spent[0]) * priced.cost_units
        reservations.append(
            Reservation(name, scope, rho, _snapshot(events, table, key), json.dumps(parameters, sort_keys=True))
        )
    ledger.reserve(reservations)
    ledger.commit({name: draw(counts.ravel().tolist(), var) for name, (counts, var) in exact.items()})
    return len(reservations)


def _blocks(city: City, committed: dict[str, Committed], tables: tuple[MeasuredTable, ...]) -> list[tuple[str, date]]:
    """Largest blocks of time in which every one of `tables` that fits is committed, covering all measured days."""

    def complete(level: str, start: date) -> bool:
        for table in tables:
            if TIME_LEVELS.index(table.time) >= TIME_LEVELS.index(level):
                step, size = LEVEL_DAYS[table.time], LEVEL_DAYS[level]
                units = (start + timedelta(n) for n in range(0, size, step))
                if any(measurement_id(table, u) not in committed for u in units):
                    return False
        return True

    starts = sorted({date.fromisoformat(c.parameters["unit_start"]) for c in committed.values()})
    blocks, covered = [], date.min
    for day in starts:
        if day < covered:
            continue
        for level in TIME_LEVELS:
            if city.unit_start(level, day) == day and complete(level, day):
                blocks.append((level, day))
                covered = day + timedelta(LEVEL_DAYS[level])
                break
    return blocks


def _is_final(city: City, committed: dict[str, Committed], block: tuple[str, date]) -> bool:
    """Whether every table of the window is in, those with extra lag included: later ones would move the estimates."""
    level, first = block
    return level == "window" and all(
        measurement_id(table, first + timedelta(n)) in committed
        for table in city.plan.tables
        for n in range(0, LEVEL_DAYS[level], LEVEL_DAYS[table.time])
    )


def _block_rows(
    city: City, plan: PricedPlan, committed: dict[str, Committed], block: tuple[str, date],
    levels: list[tuple[str, tuple[str, ...]]], final: bool,
) -> list[pa.Table]:  # fmt: skip
    """`ESTIMATES` rows of those published levels that the tables of one block determine."""
    top, start = block
    product = product_of(city, top)
    variances: dict[Level, float] = {}
    arrays: dict[Level, np.ndarray] = {}
    for priced in plan.tables:
        table = priced.table
        if TIME_LEVELS.index(table.time) < TIME_LEVELS.index(top):
            continue
        units = [start + timedelta(n) for n in range(0, LEVEL_DAYS[top], LEVEL_DAYS[table.time])]
        found = [committed.get(measurement_id(table, u)) for u in units]
        if all(found):
            level = level_of(table.time, table.dimensions, top)
            variances[level] = float(priced.variance)
            order = sorted(range(len(table.dimensions)), key=lambda i: DIMENSIONS.index(table.dimensions[i]))
            values = np.array([c.values for c in found if c], dtype=float)
            values = values.reshape(len(units), len(CARE), *(len(city.categories(d)) for d in table.dimensions))
            arrays[level] = values.transpose(1, 0, *(2 + i for i in order))
    queries = {level_of(t, d, top): (t, d) for t, d in levels if TIME_LEVELS.index(t) >= TIME_LEVELS.index(top)}
    tables = []
    for place, care in enumerate(CARE):
        result = estimate(product, {m: a[place] for m, a in arrays.items()}, variances, list(queries))
        for query, values in result.items():
            time, _ = queries[query]
            names = [DIMENSIONS[d] for d in query[1]]
            grid = np.indices(values.shape).reshape(values.ndim, -1)
            size = LEVEL_DAYS[time]
            first = np.datetime64(start) + grid[0] * size
            columns: dict[str, object] = {
                "time_level": [time] * values.size,
                "unit_start": first,
                "unit_end": first + (size - 1),
                "dimensions": ["+".join(names) or "total"] * values.size,
                "care": [care] * values.size,
                "value": values.ravel(),
                "variance": np.full(values.size, variance(product, query, variances)),
                "status": ["final" if final else "provisional"] * values.size,
            }
            for axis, name in enumerate(names, start=1):
                columns[name] = np.array(city.categories(name), dtype=object)[grid[axis]]
            nothing = pa.nulls(values.size, pa.string())
            tables.append(
                pa.table(
                    {f.name: pa.array(columns[f.name], f.type) if f.name in columns else nothing for f in ESTIMATES}
                )
            )
    return tables


def estimates(city: City, plan: PricedPlan, committed: dict[str, Committed]) -> pa.Table:
    """Consistent `ESTIMATES` of every published level from the committed values alone.

    Tables that are measured with extra lag (`los`) are estimated over the blocks in which they are there, so
    that waiting for them never holds back the others.
    """
    prompt = tuple(t for t in city.plan.tables if not t.extra_lag_days)
    lagging = {d for t in city.plan.tables if t.extra_lag_days for d in t.dimensions}
    levels = published_levels(city)
    parts: list[pa.Table] = []
    for tables, mine in (
        (prompt, [x for x in levels if not lagging & set(x[1])]),
        (city.plan.tables, [x for x in levels if lagging & set(x[1])]),
    ):
        for block in _blocks(city, committed, tables):
            parts += _block_rows(city, plan, committed, block, mine, final=_is_final(city, committed, block))
    if not parts:
        return ESTIMATES.empty_table()
    order = [(n, "ascending") for n in ESTIMATES.names if n not in ("value", "variance", "status")]
    return pa.concat_tables(parts).sort_by(order).cast(ESTIMATES)


def certificate(events: pa.Table, city: City, plan: PricedPlan) -> int:
    """Exact largest privacy loss, in ρ units, that any person of `events` (one window) can have by the plan.

    Σ over tables of c · Σ over cells of (events of the person in the cell)², where every dimension only splits
    cells and so can only lower the sum: the units of time bound it from above. Raises `RuntimeError` above the plan.
    """
    if not events.num_rows:
        return 0
    person = events.column("person_key").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    day = events.column("event_day").to_numpy().astype("datetime64[D]").astype(np.int64)
    day -= np.datetime64(city.budget.epoch, "D").astype(np.int64)
    per_level: dict[str, np.ndarray] = {}
    for level, size in LEVEL_DAYS.items():
        pairs, times = np.unique(np.stack([person, day // size]), axis=1, return_counts=True)
        per_level[level] = np.bincount(pairs[0], weights=times.astype(float) ** 2).astype(np.int64)
    for priced in plan.tables:
        squares = per_level[priced.table.time]
        if int(squares.max()) > squared_sensitivity(priced.table.time, city.caps):
            raise RuntimeError(
                f"a person's contribution to {priced.table.name} is above its bound: nothing may be released"
            )
    worst = {tuple(int(per_level[p.table.time][i]) for p in plan.tables) for i in range(int(person.max()) + 1)}
    highest = max(sum(s * p.cost_units for s, p in zip(row, plan.tables, strict=True)) for row in worst)
    if highest > plan.budget_units:
        raise RuntimeError("a person's loss is above the budget: nothing may be released")
    return highest
