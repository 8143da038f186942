"""Consistent estimates of every published level from the committed noisy values alone: post-processing.

Here: which blocks of time are estimated together, and their rows. Not here: least squares (`consistency`),
what is measured (`measure`).

Tables with extra lag (`los`) come weeks after the others and are never waited for. Their levels appear only for
those units of time whose tables are in, and take their totals from what is published there: a table's own
components, such as the differences between lengths of stay, are independent of every table without that
dimension, so replacing the total keeps estimates unbiased, makes them add up and their variance exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta
from math import prod
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.contract.codes import CARE
from assets.contract.schemas import ESTIMATES
from assets.contract.terms import AT_CAP, LEVEL_DAYS, WEEK_DAYS, MeasuredTable
from assets.privacy.consistency import Level, estimate, variance
from assets.privacy.ledger import Committed
from assets.privacy.measure import Unit, measurement_id, units_of
from assets.privacy.mechanism import noise_of
from assets.privacy.plan import DIMENSIONS, TIME_LEVELS, level_of, product_of, published_levels
from assets.privacy.sums import Marginal, Solved, SolvedBlock, Sum, months, quarters, standardised, with_corrections

LATE: Final = "late"
"""Time level of a week's late leaf in `ESTIMATES`."""
Block = tuple[str, date]
"""A block of time that is estimated at once: time level and first day."""


def _blocks(city: City, committed: Mapping[str, Committed], tables: Sequence[MeasuredTable]) -> list[Block]:
    """Largest blocks of time in which every one of `tables` that fits is committed, covering all measured days."""

    def complete(block: Block) -> bool:
        fitting = [t for t in tables if LEVEL_DAYS[t.time] <= LEVEL_DAYS[block[0]]]
        return all(measurement_id(t, u) in committed for t in fitting for u in units_of(*block, t.time))

    blocks: list[Block] = []
    covered = date.min
    for day in sorted({date.fromisoformat(c.parameters["unit_start"]) for c in committed.values()}):
        if day < covered:
            continue
        for level in TIME_LEVELS:
            if city.unit_start(level, day) == day and complete((level, day)):
                blocks.append((level, day))
                covered = day + timedelta(LEVEL_DAYS[level])
                break
    return blocks


def _corrections(committed: Mapping[str, Committed]) -> dict[date, int]:
    """The newest correction of each corrected week, by its Monday. All tables of one are committed at once."""
    newest: dict[date, int] = {}
    for name in committed:
        _, label, version = name.split(":")
        monday = date.fromisoformat(label.partition("+")[0])
        if version != "1" and monday.weekday() == 0:
            newest[monday] = max(int(version), newest.get(monday, 1))
    return newest


def _is_final(city: City, committed: Mapping[str, Committed], block: Block) -> bool:
    """Whether every table of the window is in, those with extra lag included: later ones would move the estimates."""
    return block[0] == "window" and all(
        measurement_id(table, unit) in committed for table in city.plan.tables for unit in units_of(*block, table.time)
    )


def _solve(
    city: City, committed: Mapping[str, Committed], block: Block, wanted: Sequence[Marginal], version: int = 1
) -> SolvedBlock:  # fmt: skip
    """Least squares over one block, for those marginals of `wanted` that its tables determine.

    `version`: 1, or that of a correction, which has a noise of its own.
    """
    top = block[0]
    product = product_of(city, top)
    variances: dict[Level, float] = {}
    arrays: dict[Level, np.ndarray] = {}
    for table in city.plan.of_cases:
        if LEVEL_DAYS[table.time] > LEVEL_DAYS[top]:
            continue
        units = units_of(*block, table.time)
        found = [c for c in (committed.get(measurement_id(table, u, version)) for u in units) if c]
        if len(found) == len(units):
            level = level_of(table.time, table.dimensions, top)
            variances[level] = noise_of(found[0].parameters).variance
            order = sorted(range(len(table.dimensions)), key=lambda i: DIMENSIONS.index(table.dimensions[i]))
            values = np.array([c.values for c in found], dtype=float)
            values = values.reshape(len(units), len(CARE), *(len(city.categories(d)) for d in table.dimensions))
            arrays[level] = values.transpose(1, 0, *(2 + i for i in order))
    queries = {level_of(t, d, top): (t, d) for t, d in wanted if LEVEL_DAYS[t] <= LEVEL_DAYS[top]}
    results = [
        estimate(product, {m: a[i] for m, a in arrays.items()}, variances, list(queries)) for i in range(len(CARE))
    ]
    solved = {}
    for query in results[0]:
        spread = variance(product, query, variances)
        spreads = np.full(product.time[query[0]], spread, dtype=float)
        solved[queries[query]] = Solved(np.stack([r[query] for r in results]), spreads)
    status = "final" if _is_final(city, committed, block) else "provisional"
    status = status if version == 1 else "corrected"
    return SolvedBlock(*block, status, product, variances, solved)


def _take_totals(
    city: City, block: Block, solved: Mapping[Marginal, Solved], lagging: set[str],
    published: Mapping[Marginal, Mapping[Unit, tuple[np.ndarray, float]]],
) -> dict[Marginal, Solved]:  # fmt: skip
    """The marginals with a lagging dimension, so that they add up to what is published without it."""
    adjusted = {}
    for (time, dimensions), own in solved.items():
        late = [d for d in dimensions if d in lagging]
        margin = (time, tuple(d for d in dimensions if d not in lagging))
        if not late:
            continue
        units = units_of(*block, time)
        totals = [published.get(margin, {}).get(unit) for unit in units]
        if margin not in solved or any(t is None for t in totals):
            adjusted[time, dimensions] = own
            continue
        cells = prod(len(city.categories(d)) for d in late)
        difference = np.stack([t[0] for t in totals if t], axis=1) - solved[margin].values
        axes = tuple(2 + i for i, d in enumerate(dimensions) if d in lagging)
        change = np.array([t[1] for t in totals if t]) - solved[margin].variance
        adjusted[time, dimensions] = Solved(
            own.values + np.expand_dims(difference, axes) / cells, own.variance + change / cells**2
        )
    return adjusted


def _rows(city: City, block: Block, marginal: Marginal, solved: Solved, status: str) -> pa.Table:
    """`ESTIMATES` rows of one marginal of one block."""
    (time, names), shape = marginal, solved.values.shape
    grid = np.indices(shape).reshape(len(shape), -1)
    size = LEVEL_DAYS[time]
    units = units_of(*block, time)
    late = np.array([u.late for u in units])[grid[1]]
    first = np.array([u.start for u in units], dtype="datetime64[D]")[grid[1]]
    n = solved.values.size
    columns: dict[str, object] = {
        "time_level": np.where(late, LATE, time).astype(object),
        "unit_start": first,
        "unit_end": first + np.where(late, WEEK_DAYS, size) - 1,
        "dimensions": ["+".join(names) or "total"] * n,
        "care": np.array(CARE, dtype=object)[grid[0]],
        "value": solved.values.ravel(),
        "variance": solved.variance[grid[1]],
        "status": [status] * n
        if solved.corrected is None
        else np.where(solved.corrected[grid[1]], "corrected", status),
    }
    for axis, name in enumerate(names, start=2):
        columns[name] = np.array(city.categories(name), dtype=object)[grid[axis]]
    nothing = pa.nulls(n, pa.string())
    return pa.table({f.name: pa.array(columns[f.name], f.type) if f.name in columns else nothing for f in ESTIMATES})


def _sum_rows(city: City, time: str, found: Sum) -> pa.Table:
    """`ESTIMATES` rows of one unit of time of a sum; cells without a value are left out."""
    names = [d for d in found.dimensions if d in DIMENSIONS]
    grid = np.indices(found.values.shape).reshape(found.values.ndim, -1)
    n = found.values.size
    columns: dict[str, object] = {
        "time_level": [time] * n, "unit_start": [found.first] * n, "unit_end": [found.last] * n,
        "dimensions": ["+".join(found.dimensions) or "total"] * n, "care": np.array(CARE, dtype=object)[grid[0]],
        "value": found.values.ravel(), "variance": found.variance.ravel(), "status": [found.status] * n,
    }  # fmt: skip
    for axis, name in enumerate(names, start=1):
        columns[name] = np.array(city.categories(name), dtype=object)[grid[axis]]
    nothing = pa.nulls(n, pa.string())
    rows = pa.table({f.name: pa.array(columns[f.name], f.type) if f.name in columns else nothing for f in ESTIMATES})
    return rows.filter(pc.is_finite(rows.column("value")))


def _patients_at_cap(city: City, committed: Mapping[str, Committed]) -> list[pa.Table]:
    """`ESTIMATES` rows of the table of patients at their cap: as measured, for nothing else is known of it."""
    parts = []
    for table in city.plan.tables:
        for measured in committed.values() if table.at_cap else ():
            if measured.parameters["table"] == table.name:
                block = table.time, date.fromisoformat(measured.parameters["unit_start"])
                values = np.array(measured.values, dtype=float)[:, None]
                solved = Solved(values, np.array([noise_of(measured.parameters).variance]))
                rows = _rows(city, block, (table.time, ()), solved, "final")
                names = pa.array([AT_CAP] * rows.num_rows, pa.string())
                parts.append(rows.set_column(ESTIMATES.get_field_index("dimensions"), "dimensions", names))
    return parts


def _paused(table: pa.Table, city: City, windows: Collection[str]) -> pa.Table:
    """`ESTIMATES` in which what is provisional in one of `windows` is paused."""
    scopes = [city.window_start(day).isoformat() for day in table.column("unit_end").to_pylist()]
    waits = pc.equal(table.column("status"), "provisional")
    inside = pc.and_(waits, pc.is_in(pa.array(scopes), pa.array(sorted(windows), pa.string())))
    place = table.column_names.index("status")
    return table.set_column(place, "status", pc.if_else(inside, "paused", table.column("status")))


def _of_window(city: City, committed: Mapping[str, Committed]) -> tuple[list[pa.Table], list[SolvedBlock]]:
    """`ESTIMATES` rows of one window, on whose terms `city` is, and its blocks that later sums are made from."""
    of_cases = city.plan.of_cases
    lagging: set[str] = {d for t in of_cases if t.extra_lag_days for d in t.dimensions}
    levels = [(t, tuple(sorted(d, key=DIMENSIONS.index))) for t, d in published_levels(city)]
    prompt = [x for x in levels if not lagging & set(x[1])]
    margins = {(t, tuple(d for d in dims if d not in lagging)) for t, dims in levels}
    published: dict[Marginal, dict[Unit, tuple[np.ndarray, float]]] = {m: {} for m in margins}
    parts: list[pa.Table] = []
    whole: list[SolvedBlock] = []
    again = {
        monday: _solve(city, committed, ("week", monday), prompt, version)
        for monday, version in _corrections(committed).items()
    }
    for block in _blocks(city, committed, [t for t in of_cases if not t.extra_lag_days]):
        first = _solve(city, committed, block, [*prompt, *margins])
        whole.append(with_corrections(first, again))
        for marginal, solved in whole[-1].solved.items():
            if marginal in prompt:
                parts.append(_rows(city, block, marginal, solved, whole[-1].status))
        for marginal, solved in first.solved.items():
            for i, unit in enumerate(units_of(*block, marginal[0])):
                published[marginal][unit] = solved.values[:, i], float(solved.variance[i])
    late = [x for x in levels if lagging & set(x[1])]
    for block in _blocks(city, committed, of_cases) if late else []:
        own = _solve(city, committed, block, [*late, *margins])
        for marginal, solved in _take_totals(city, block, own.solved, lagging, published).items():
            parts.append(_rows(city, block, marginal, solved, own.status))
    return parts + _patients_at_cap(city, committed), whole


def estimates(city: City, committed: Mapping[str, Committed], paused: Collection[str] = ()) -> pa.Table:
    """Consistent `ESTIMATES` of every published level; whatever is published adds up, at every moment.

    Months, quarters, age-standardised rates (dimension `standard_age`) and patients at their cap are rows of their own.
    `status` is final once every table of the window is in, `provisional` before, and `paused` where no more will come:
    `paused` names the windows whose budget is used up. What was measured in them is published on. It is `corrected`
    where a week was measured again; levels that no weekly table gives hold the first measurement on, and so do
    tables with extra lag: they do not add up to corrected totals.
    """
    windows: dict[date, dict[str, Committed]] = defaultdict(dict)
    for name, measured in committed.items():
        windows[city.window_start(date.fromisoformat(measured.parameters["unit_start"]))][name] = measured
    parts: list[pa.Table] = []
    whole: list[SolvedBlock] = []
    for start, own in sorted(windows.items()):
        rows, blocks = _of_window(city.at(start), own)
        parts += rows
        whole += blocks
    for name, found in (("month", months), ("quarter", quarters), ("window", standardised)):
        parts += [_sum_rows(city, name, s) for s in found(city, whole)]
    if not parts:
        return ESTIMATES.empty_table()
    order = [(n, "ascending") for n in ESTIMATES.names if n not in ("value", "variance", "status")]
    table = pa.concat_tables(parts).sort_by(order)
    return (_paused(table, city, paused) if paused else table).cast(ESTIMATES)
