"""Where the row-heavy steps are computed: one seam, two engines, one implementation of every step.

A kernel is a top-level function `kernel(tables, **settings) -> tables` that sees no file it writes and no state. It
is declared in its stage's `kernel` module together with the keys by which its rows may be dealt out, and with the
argument why that changes nothing. `LocalEngine` (DuckDB and Arrow in this process) calls it once over everything;
`assets.lake.spark` calls the same function on shards, wherever Spark has room. Results are put together under a
total order, so that both engines give equal tables. Not here: what a kernel computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.lake.engine import connect

ENGINE_VARIABLE: Final = "DIGITALSTADT_ENGINE"
DUCKDB: Final = "duckdb"

Tables = dict[str, pa.Table]
Kernel = Callable[..., Tables]
Keys = Callable[[], Mapping[str, np.ndarray]]
"""One unsigned integer for each row of each table that is sharded; a table without keys goes whole to every shard."""


class Engine(Protocol):
    def each(self, kernel: Kernel, tables: Tables, keys: Keys, /, **settings: Any) -> list[Tables]:
        """What `kernel` returns for each shard of `tables`; rows with equal keys are in one shard, in their order."""
        ...


class LocalEngine:
    """Everything in this process, at once; `keys` are not even computed."""

    def each(self, kernel: Kernel, tables: Tables, keys: Keys, /, **settings: Any) -> list[Tables]:
        return [kernel(tables, **settings)]


LOCAL: Final = LocalEngine()


def choose(setting: str, spill: Path) -> Engine:
    """The engine that `$DIGITALSTADT_ENGINE`, else `setting`, names: `duckdb`, `spark`, or the URL of a Spark master.

    `spill`: the lake's folder for what does not fit into memory.
    """
    wanted = os.environ.get(ENGINE_VARIABLE) or setting
    if wanted == DUCKDB:
        return LOCAL
    from assets.lake.spark import start

    return start("local[*]" if wanted == "spark" else wanted, spill)


def split(tables: Tables, keys: Mapping[str, np.ndarray], shards: int) -> list[Tables]:
    """`tables` in at most `shards` parts by key; parts without a row are left out, but for one if all are empty."""
    parts: list[Tables] = [{} for _ in range(shards)]
    filled = np.zeros(shards, dtype=bool)
    for name, table in tables.items():
        if name not in keys:
            for part in parts:
                part[name] = table
            continue
        place = (keys[name] % np.uint64(shards)).astype(np.int64)
        order = np.argsort(place, kind="stable")
        bounds = np.searchsorted(place[order], np.arange(shards + 1))
        rows = table.take(pa.array(order))
        filled |= np.diff(bounds) > 0
        for part, first, last in zip(parts, bounds[:-1], bounds[1:], strict=True):
            part[name] = rows.slice(int(first), int(last - first))
    return [part for part, some in zip(parts, filled, strict=True) if some] or parts[:1]


def in_order(table: pa.Table, first: Sequence[str] = ()) -> pa.Table:
    """`table` sorted by the columns `first`, then by all others, as DuckDB's `ORDER BY ALL` does: a total order."""
    return table if _is_in_order(table, _order_by(table, first)) else table.take(order_of(table, first))


def order_of(table: pa.Table, first: Sequence[str] = ()) -> pa.Array:
    """The places of the rows of `table` in the order of `in_order`.

    Arrow compares a further column only where those before are equal, so it needs a fraction of the time of an engine
    that makes one key of all; a column of one value has nothing to say.
    """
    telling = _order_by(table, first)
    if _is_in_order(table, telling):
        return _numbers(table)
    return pc.sort_indices(table.select(telling).combine_chunks(), sort_keys=[(n, "ascending") for n in telling])


def _order_by(table: pa.Table, first: Sequence[str]) -> list[str]:
    names = [*first, *(n for n in table.column_names if n not in first)]
    return [n for n in names if not _of_one_value(table.column(n))]


def _is_in_order(table: pa.Table, names: Sequence[str]) -> bool:
    """Whether the rows stand in the order of the columns `names`, null last.

    Asked before anything is sorted: rows mostly come in order, a few columns tell it, and sorting would copy all.
    """
    tied = np.ones(max(table.num_rows - 1, 0), dtype=bool)
    for name in names:
        here, after = table.column(name).slice(0, len(tied)), table.column(name).slice(1)
        rises, falls = pc.less(here, after).fill_null(False), pc.greater(here, after).fill_null(False)
        if table.column(name).null_count:
            rises = pc.or_(rises, pc.and_(here.is_valid(), after.is_null()))
            falls = pc.or_(falls, pc.and_(here.is_null(), after.is_valid()))
        if (tied & falls.to_numpy()).any():
            return False
        tied &= ~rises.to_numpy()
        if not tied.any():
            return True
    return True


def _of_one_value(column: pa.ChunkedArray) -> bool:
    if not len(column) or column.null_count or column[0] != column[-1]:
        return bool(column.null_count == len(column))
    return bool(pc.all(pc.equal(column, column[0])).as_py())


def merged(parts: Sequence[Tables], order: Mapping[str, Sequence[str]]) -> Tables:
    """The tables of all shards. What a kernel ordered by `order` and then every other column is ordered so again.

    A table that `order` does not name is a set of rows. One part is the whole already.
    """
    if len(parts) == 1:
        return parts[0]
    whole = {name: pa.concat_tables([part[name] for part in parts]) for name in parts[0]}
    return {name: in_order(table, order[name]) if name in order else table for name, table in whole.items()}


def by_column(tables: Mapping[str, pa.Table], column: str) -> dict[str, np.ndarray]:
    """Keys that keep rows with the same value of `column` together."""
    return {name: _hashed(table.select([column]), f'hash("{column}")') for name, table in tables.items()}


def by_patient(tables: Mapping[str, pa.Table], thing: str) -> dict[str, np.ndarray]:
    """Keys such that no two shards hold rows of one patient of a clinic, nor of one `thing` (a case, a document) of it.

    A thing belongs to one patient, so the patient alone is the key. Where deliveries give it to several, all of them
    and everything of theirs share the key of their clinic: what they hold stays together, whoever they are.
    """
    told = [name for name, table in tables.items() if thing in table.column_names]
    with connect() as con:
        for name, table in tables.items():
            ids = table.select(["clinic", "patient_id", *([thing] if name in told else [])])
            con.register(f"ids_{name}", ids)
        pairs = " UNION ALL ".join(
            f"SELECT clinic, coalesce('+' || patient_id, '') AS patient, coalesce('+' || \"{thing}\", '') AS thing "
            f'FROM "ids_{name}"'
            for name in told
        )
        con.execute(
            f"""CREATE TEMP TABLE tangled AS WITH pairs AS ({pairs}), shared AS (
              SELECT clinic, thing FROM pairs GROUP BY ALL HAVING min(patient) <> max(patient))
            SELECT DISTINCT clinic, patient FROM pairs SEMI JOIN shared USING (clinic, thing)"""
        )
        keys = {}
        for name, table in tables.items():
            numbered = table.select(["clinic", "patient_id"]).append_column("n", _numbers(table))
            con.register("numbered", numbered)
            query = """SELECT n, CASE WHEN t.clinic IS NULL THEN hash(r.clinic, r.patient_id) ELSE hash(r.clinic) END AS key
                FROM numbered r LEFT JOIN tangled t
                  ON t.clinic = r.clinic AND t.patient = coalesce('+' || r.patient_id, '')"""
            keys[name] = _placed(con.execute(query).to_arrow_table(), table.num_rows)
    return keys


def _numbers(table: pa.Table) -> pa.Array:
    return pa.array(np.arange(table.num_rows))


def _placed(found: pa.Table, rows: int) -> np.ndarray:
    keys = np.zeros(rows, dtype=np.uint64)
    keys[found.column("n").to_numpy()] = found.column("key").to_numpy()
    return keys


def _hashed(table: pa.Table, expression: str) -> np.ndarray:
    with connect() as con:
        con.register("numbered", table.append_column("n", _numbers(table)))
        return _placed(con.execute(f"SELECT n, {expression} AS key FROM numbered").to_arrow_table(), table.num_rows)


def looked_up(values: pa.ChunkedArray, known: pa.Array | pa.ChunkedArray, keys: np.ndarray) -> np.ndarray:
    """For each of `values` the key of that entry of `known`; 0 for what is not known."""
    place = pc.index_in(values, known).combine_chunks()
    if not len(keys):
        return np.zeros(len(place), dtype=np.uint64)
    found: np.ndarray = keys[place.fill_null(0).to_numpy(zero_copy_only=False)]
    found[place.is_null().to_numpy(zero_copy_only=False)] = 0
    return found


def size(tables: Iterable[pa.Table]) -> int:
    """Bytes of `tables` in memory."""
    return sum(int(table.nbytes) for table in tables)
