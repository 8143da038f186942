"""Valid rows, quarantined rows and value-free findings.

Here: finding the failing rows with the rules' predicates in DuckDB, having GX count them again, and what
follows from a failing row for the rows that belong to it. Not here: the rules (`rules`), storage (`stage`).

A failing person takes along the person's cases of that arrival day, a quarantined case its diagnoses and procedures.
Every row is either valid or quarantined, in quarantine once, under the first rule that it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.contract.schemas import FINDINGS, PROVENANCE
from assets.lake.engine import connect, load, rows_of
from assets.quality.rules import EXEMPT, NOT_NULL, PREPARED, TABLES, Rule, rules
from assets.quality.suite import run_gx

FINDING_SEVERITY = {"quarantine": "quarantined", "warn": "info"}
NATIVE_ROWS: Final = 200_000
"""Above this GX judges distinct values instead of rows: pandas would take minutes and gigabytes for ten million."""


class QualityDisagreement(Exception):
    """DuckDB and GX count differently for the same rows: nothing may be passed on. Names rules and counts only."""


@dataclass(frozen=True)
class RuleResult:
    """How often one rule was checked and failed. Rows that only follow a failing row are not counted."""

    rule: str
    family: str
    table: str
    checked: int
    failed: int
    severity: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Validated:
    valid: dict[str, pa.Table]
    quarantined: dict[str, pa.Table]
    """Canonical rows and the column `rule`."""
    findings: pa.Table
    rule_results: list[RuleResult]


def _required(own: Sequence[tuple[int, Rule]]) -> set[str]:
    """The checked columns that must be filled. They hold ids, which no other rule looks at."""
    return {rule.checked_column for _, rule in own if rule.expectation == NOT_NULL}


def _columns(own: Sequence[tuple[int, Rule]]) -> list[str]:
    return list(dict.fromkeys(rule.checked_column for _, rule in own))


def _group(place: int, columns: Sequence[str]) -> int:
    """What `grouping` says in `_judge` where rows are grouped by the column at `place`, or, behind them, by failing row."""
    return (2 << len(columns)) - 1 - (1 << (len(columns) - place))


def _judge(con: duckdb.DuckDBPyConnection, table: str, own: Sequence[tuple[int, Rule]], columns: Sequence[str]) -> None:
    """Create `judged` in one pass over the prepared rows, which are not kept, and add the failing rows to `failing`.

    `judged`: each failing row (`_row`) with a bit for each rule that it fails (`mask`), and of each of `columns` every
    value with the number of its rows `n`. Of a column that must be filled it holds only whether it is.
    """
    bits = " | ".join(f"CASE WHEN {rule.predicate} THEN {1 << place} ELSE 0 END" for place, (_, rule) in enumerate(own))
    filled = ", ".join(f'CASE WHEN "{c}" IS NOT NULL THEN \'\' END AS "{c}"' for c in sorted(_required(own)))
    names = [f'"{c}"' for c in columns]
    con.execute(
        f"""CREATE TEMP TABLE judged AS
        SELECT {", ".join([*names, "mask"])}, failing AS _row, count(*) AS n, grouping({", ".join([*names, "mask"])}) AS kind
        FROM (SELECT *, {bits} AS mask, CASE WHEN mask <> 0 THEN _row END AS failing
          FROM (SELECT * REPLACE ({filled}) FROM ({PREPARED[table]})))
        GROUP BY GROUPING SETS ({", ".join([*(f"({n})" for n in names), "(mask, failing)"])})"""
    )
    about = ", ".join(
        f"(CAST({1 << place} AS BIGINT), {number}, {rule.severity == 'quarantine'})"
        for place, (number, rule) in enumerate(own)
    )
    con.execute(
        f"""INSERT INTO failing SELECT '{table}', _row, number, quarantines, false
        FROM judged JOIN (VALUES {about}) AS a(bit, number, quarantines) ON (mask & bit) <> 0"""
    )


def _distinct(
    con: duckdb.DuckDBPyConnection, own: Sequence[tuple[int, Rule]], found: Mapping[int, int]
) -> tuple[pa.Table, dict[int, int]]:
    """Each checked column's distinct values, and how many of them fail each rule by DuckDB.

    Columns are padded with what fails no rule. Raises `QualityDisagreement` unless the rows of the failing values
    are as many as were found row by row.
    """
    values: dict[str, pa.ChunkedArray] = {}
    failing, required, columns = {}, _required(own), _columns(own)
    for place, column in enumerate(columns):
        once = f'(SELECT "{column}", n FROM judged WHERE kind = {_group(place, columns)})'
        values[column] = rows_of(con, f'SELECT "{column}" FROM {once}').column(0)
        for number, rule in own:
            if rule.checked_column == column:
                query = f"SELECT count(*), coalesce(sum(n), 0) FROM {once} WHERE {rule.predicate}"
                failing[number], rows = con.execute(query).fetchone() or (0, 0)
                if rows != found.get(number, 0):
                    raise QualityDisagreement(f"{rule.id} (by row {found.get(number, 0)}, by value {rows})")
    longest = max(len(v) for v in values.values())
    padded = {
        name: [*v.chunks, pa.repeat(pa.scalar("" if name in required else None, v.type), longest - len(v))]
        for name, v in values.items()
    }
    return pa.table({name: pa.chunked_array(chunks) for name, chunks in padded.items()}), failing


def _check(con: duckdb.DuckDBPyConnection, table: str, size: int, declared: Sequence[Rule]) -> None:
    """Add the failing rows of `table` to `failing`, once GX has counted the same on the same prepared rows.

    Of more than `NATIVE_ROWS` rows GX judges each distinct value once, for every rule looks at one column, and of a
    column that must be filled only whether it is.
    """
    own = [(number, rule) for number, rule in enumerate(declared) if rule.table == table]
    native, columns = size <= NATIVE_ROWS, _columns(own)
    _judge(con, table, own, [] if native else columns)
    found = _counts(con, table)
    if native:
        names = ", ".join(f'"{c}"' for c in columns)
        frame = rows_of(con, f"SELECT {names} FROM ({PREPARED[table]})")
    else:
        frame, found = _distinct(con, own, found)
    counted = run_gx(table, frame.to_pandas(), [rule for _, rule in own])
    unequal = [
        f"{rule.id} (DuckDB {found.get(number, 0)}, GX {counted.get(rule.id)})"
        for number, rule in own
        if counted.get(rule.id) != found.get(number, 0)
    ]
    if unequal:
        raise QualityDisagreement(f"{table}: {'; '.join(unequal)}")
    con.execute("DROP TABLE judged")


def _counts(con: duckdb.DuckDBPyConnection, table: str) -> dict[int, int]:
    query = "SELECT rule, count(*) FROM failing WHERE table_name = ? AND NOT follows GROUP BY rule"
    return dict(con.execute(query, [table]).fetchall())


def _marked(size: int, rows: npt.ArrayLike) -> pa.Array:
    """For each of `size` rows, whether its number is among `rows`."""
    marked = np.zeros(size, dtype=bool)
    marked[np.asarray(rows)] = True
    return pa.array(marked)


def _numbered(table: pa.Table, rows: npt.ArrayLike) -> pa.Table:
    """The rows of `table` whose numbers are among `rows`, in their order, with the number `_row`.

    Filtered, not taken: Arrow would put each column together first, which copies ten million values to pick a few.
    """
    marked = _marked(table.num_rows, rows)
    return table.filter(marked).append_column("_row", pa.array(np.flatnonzero(marked)))


def _follow(con: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table]) -> None:
    """Add to `failing` the cases of failing persons, then the diagnoses and procedures of quarantined cases."""
    steps: tuple[tuple[str, str, str, str, list[str]], ...] = (
        ("persons", "cases", "patient_id", f"NOT {EXEMPT}", ["status"]),
        ("cases", "diagnoses", "case_id", "true", []),
        ("cases", "procedures", "case_id", "true", []),
    )
    for cause, table, key, condition, more in steps:
        query = "SELECT row, rule, follows FROM failing WHERE table_name = ? AND quarantines"
        culprits = con.execute(query, [cause]).to_arrow_table()
        columns = ["clinic", "arrival_day", key]
        causes = _numbered(tables[cause].select(columns), culprits.column("row"))
        # Of millions of rows few share a key with them: only those are copied.
        near = np.flatnonzero(pc.is_in(tables[table].column(key), causes.column(key).combine_chunks()))
        load(con, culprits=culprits, causes=causes, followers=_numbered(tables[table].select([*columns, *more]), near))
        con.execute(
            f"""INSERT INTO failing
            WITH keys AS (
              SELECT {", ".join(columns)}, arg_min(rule, (follows, rule)) AS rule
              FROM culprits JOIN causes ON _row = row GROUP BY {", ".join(columns)})
            SELECT '{table}', t._row, keys.rule, true, true
            FROM followers t JOIN keys USING ({", ".join(columns)}) WHERE {condition}"""
        )
        con.execute("DROP TABLE culprits; DROP TABLE causes; DROP TABLE followers")


def _findings(con: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table], declared: Sequence[Rule]) -> pa.Table:
    for name in TABLES:
        rows = con.execute("SELECT DISTINCT row FROM failing WHERE table_name = ?", [name]).to_arrow_table().column(0)
        load(con, **{f"{name}_places": _numbered(tables[name].select(FINDINGS.names[: len(PROVENANCE)]), rows)})
    about = pa.table(
        {
            "number": pa.array(range(len(declared)), pa.int32()),
            "rule": [rule.id for rule in declared],
            "family": [rule.family for rule in declared],
            "severity": [FINDING_SEVERITY[rule.severity] for rule in declared],
            "column_name": [rule.columns[0] for rule in declared],
        }
    )
    con.register("about", about)
    parts = " UNION ALL ".join(
        f"""SELECT t.clinic, t.arrival_day, t.export_id, t.source_file, t.source_line, a.rule, a.family, a.severity,
          CASE WHEN NOT f.follows THEN a.column_name END AS column_name, f.table_name, t._row
        FROM failing f JOIN {table}_places t ON t._row = f.row JOIN about a ON a.number = f.rule
        WHERE f.table_name = '{table}'"""
        for table in TABLES
    )
    query = f"SELECT * EXCLUDE (_row) FROM ({parts}) ORDER BY clinic, arrival_day, table_name, _row, rule"
    return con.execute(query).to_arrow_table().cast(FINDINGS)


def _split(
    con: duckdb.DuckDBPyConnection, name: str, tables: dict[str, pa.Table], declared: Sequence[Rule]
) -> tuple[pa.Table, pa.Table]:
    """(valid, quarantined with `rule`) of the table `name`, which is taken out of `tables`.

    A row's own failures take precedence over those it follows. Each column is released once its rows are copied, so
    that a table is never in memory twice; a table without a quarantined row is passed on as it is.
    """
    rows = con.execute(
        """SELECT row, arg_min(rule, (follows, rule)) AS rule FROM failing
        WHERE table_name = ? AND quarantines GROUP BY row ORDER BY row""",
        [name],
    ).to_arrow_table()
    table = tables.pop(name)
    ids = pa.array([rule.id for rule in declared], pa.string()).take(rows.column("rule").combine_chunks())
    if not rows.num_rows:
        return table, table.schema.empty_table().append_column("rule", ids)
    failing = _marked(table.num_rows, rows.column("row"))
    schema, columns, valid, quarantined = table.schema, table.columns[::-1], [], []
    del table
    passing = pc.invert(failing)
    while columns:
        column = columns.pop()
        valid.append(column.filter(passing))
        quarantined.append(column.filter(failing))
    return (
        pa.Table.from_arrays(valid, schema=schema),
        pa.Table.from_arrays(quarantined, schema=schema).append_column("rule", ids),
    )


def validate(tables: dict[str, pa.Table], city: City) -> Validated:
    """Check the canonical `cases`, `persons`, `diagnoses` and `procedures`; other tables are left alone.

    Removes these four from `tables` as it divides them, so that both forms are never in memory at once.
    Raises `QualityDisagreement` if GX counts otherwise than DuckDB, `SuiteFailed` if it cannot count.
    """
    declared = rules(city)
    sizes = {name: tables[name].num_rows for name in TABLES}
    with connect() as con:
        con.execute(
            "CREATE TEMP TABLE failing (table_name VARCHAR, row BIGINT, rule INTEGER, quarantines BOOLEAN, follows BOOLEAN)"
        )
        for name in TABLES:
            con.register(name, tables[name].append_column("_row", pa.array(np.arange(sizes[name]))))
        # Of an Arrow table DuckDB knows no size, and builds the join on the wider of two: this one is never that.
        con.register("person", rows_of(con, PREPARED["person"]))
        for name in TABLES:
            if sizes[name]:  # on many days none come: GX, which takes seconds to load, has nothing to judge then
                _check(con, name, sizes[name], declared)
            con.unregister(name)
        con.unregister("person")
        counts = {name: _counts(con, name) for name in TABLES}
        _follow(con, tables)
        findings = _findings(con, tables, declared)
        parts = {name: _split(con, name, tables, declared) for name in TABLES}
    return Validated(
        valid={name: valid for name, (valid, _) in parts.items()},
        quarantined={name: quarantined for name, (_, quarantined) in parts.items()},
        findings=findings,
        rule_results=[
            RuleResult(
                rule.id, rule.family, rule.table, sizes[rule.table], counts[rule.table].get(number, 0),
                rule.severity, rule.text_en, rule.remedy_en,
            )
            for number, rule in enumerate(declared)
        ],
    )  # fmt: skip
