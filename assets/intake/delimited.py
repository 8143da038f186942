"""Delimited files to Arrow tables of text: encoding, header and ragged lines, for §21 and practice CSV alike."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from assets.intake.connector import Export
from assets.intake.findings import Findings, RejectedExport, raise_all
from assets.intake.text import detect_encoding

MAX_FIELDS: Final = 200
MAX_HEADER_CHARACTERS: Final = 1 << 16
MAX_CELL_CHARACTERS: Final = 4096
MAX_LINE_BYTES: Final = 1 << 20
"""More than `MAX_FIELDS` cells of `MAX_CELL_CHARACTERS`."""
BLOCK: Final = 4 * MAX_LINE_BYTES
BLANKS: Final = " \t\u00a0"
"""What may pad a cell; `naming` strips the same when it looks for an id."""
_CELL: Final = r'(?:"(?:[^"]|"")*"(?:[^";][^;]*)?|(?:[^";][^;]*)?)'
_CLOSED_QUOTES: Final = rf"^{_CELL}(?:;{_CELL})*\n$"
_FORMULA: Final = r"^\s*[=@]|^\t|^[+-].*[^0-9.,]"
"""What a spreadsheet would execute. A sign before a number is none."""


def header_of(path: Path, encoding: str, delimiter: str) -> list[str]:
    """Column names of the first line, trimmed; repeated names get a number (`Lokalisation_2`)."""
    with path.open(encoding=encoding, newline="") as file:
        line = file.readline(MAX_HEADER_CHARACTERS)
    if len(line) == MAX_HEADER_CHARACTERS:
        raise RejectedExport("header_too_long", path)
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[position] = f"{name}_{seen[name]}"
    return names[:MAX_FIELDS]


class _Screen:
    """Turns a table's bytes, block by block, into UTF-8 lines that are safe to parse; unsafe lines become empty.

    A quote that is never closed would swallow the lines after it, an endless line all memory. In these formats no cell
    spans lines, and none holds a NUL byte. Line numbers: `empty`, all lines that are empty now, blank ones included;
    `open_quotes`; `nul`; `too_long`, with the cell (from 0) that makes the line too long, or None where there are too
    many cells.
    """

    def __init__(self, encoding: str) -> None:
        # A line ends as spreadsheets of any system end it.
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
        self._rest, self._before, self._skipping = b"", 0, False
        self.empty: list[int] = []
        self.open_quotes: list[int] = []
        self.nul: list[int] = []
        self.too_long: dict[int, int | None] = {}

    def __call__(self, block: pa.Buffer) -> bytes:
        last = not len(block)
        text = self._rest + self._decoder.decode(bytes(block), final=last).encode()
        if self._skipping:
            text = text[text.find(b"\n") :] if b"\n" in text else b""
        if last and (text or self._skipping) and not text.endswith(b"\n"):
            text += b"\n"
        whole, self._rest = text[: text.rfind(b"\n") + 1], text[text.rfind(b"\n") + 1 :]
        self._skipping = self._skipping and not whole
        screened = self._screened(whole) if whole else b""
        if len(self._rest) > MAX_LINE_BYTES:
            self._note_long(self._before + 1, self._rest)
            self._rest, self._skipping = b"", True
        return screened

    def _screened(self, text: bytes) -> bytes:
        data = np.frombuffer(text, dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n")) + 1
        starts = np.concatenate(([0], ends[:-1]))
        offsets = pa.py_buffer(np.append(starts, len(text)).astype(np.int32))
        lines = pa.StringArray.from_buffers(len(ends), offsets, pa.py_buffer(text))
        long = ends - starts > MAX_LINE_BYTES
        for place in np.flatnonzero(long):
            self._note_long(self._before + 1 + int(place), text[starts[place] : ends[place]])
        damaged = long.copy()
        if b"\0" in text:
            damaged |= np.logical_or.reduceat(data == 0, starts)
            self.nul += (np.flatnonzero(damaged & ~long) + self._before + 1).tolist()
        empty = damaged | pc.match_substring_regex(lines, r"^[;\s\x0b]*$").to_numpy(zero_copy_only=False)
        if b'"' in text:
            readable = pc.or_(
                pc.invert(pc.match_substring(lines, '"')), pc.match_substring_regex(lines, _CLOSED_QUOTES)
            )
            unclosed = ~readable.to_numpy(zero_copy_only=False) & ~damaged
            self.open_quotes += (np.flatnonzero(unclosed) + self._before + 1).tolist()
            empty |= unclosed
        self.empty += (np.flatnonzero(empty) + self._before + 1).tolist()
        self._before += len(ends)
        return data[~np.repeat(empty, ends - starts) | (data == ord("\n"))].tobytes() if empty.any() else text

    def _note_long(self, number: int, line: bytes) -> None:
        lengths = [len(cell) for cell in line[:MAX_LINE_BYTES].split(b";", MAX_FIELDS)[:MAX_FIELDS]]
        self.too_long[number] = next((i for i, n in enumerate(lengths) if n > MAX_CELL_CHARACTERS), None)


def _parsed(path: Path, encoding: str, header: list[str], wanted: list[str]) -> tuple[pa.Table, _Screen, list[int]]:
    """The `wanted` columns of a file below its header as text, what was screened, and the numbers of ragged lines."""
    screen, ragged = _Screen(encoding), list[int]()

    def skip(row: pacsv.InvalidRow) -> str:
        ragged.append(row.number or 0)
        return "skip"

    convert = pacsv.ConvertOptions(
        include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), null_values=[""],
        strings_can_be_null=True,
    )  # fmt: skip
    try:
        raw = pacsv.read_csv(
            pa.TransformInputStream(pa.OSFile(str(path)), screen),
            pacsv.ReadOptions(column_names=header, skip_rows=1, block_size=BLOCK, use_threads=False),
            pacsv.ParseOptions(delimiter=";", invalid_row_handler=skip, ignore_empty_lines=False),
            convert,
        )
    except pa.ArrowInvalid:
        # Arrow quotes the offending cell in its message, which may be a person's value.
        raise RejectedExport("csv_unreadable", path) from None
    return raw, screen, ragged


def read_delimited(
    export: Export, path: Path, columns: dict[str, tuple[str, ...]], required: set[str], findings: Findings
) -> pa.Table:
    """The wanted `columns` of a `;`-separated file as text, with provenance.

    `columns` maps our name to the header names it may have (case-insensitive); a column that is missing is
    all null, unless it is `required`: then `RejectedExport`. Ragged lines are skipped and become findings.
    """
    encoding = detect_encoding(path, nul_below=True)
    if encoding is None:
        raise RejectedExport("encoding_unreadable", path)
    if encoding != "utf-8-sig":
        findings.add(export, f"encoding_{encoding.replace('-', '_')}", "info", path.name)
    header = header_of(path, encoding, ";")
    place = {name.lower(): name for name in header}
    found = {
        ours: next((place[n.lower()] for n in names if n.lower() in place), None) for ours, names in columns.items()
    }
    missing = sorted(ours for ours in required if found[ours] is None)
    if missing and not header:
        raise RejectedExport("file_empty", path)
    if missing and len(header) == 1:
        raise RejectedExport("header_not_separated", path)
    if missing:
        raise RejectedExport(f"header_misses_{missing[0]}", path)
    raw, screen, ragged = _parsed(path, encoding, header, [theirs for theirs in found.values() if theirs])
    for rule, damaged in (("wrong_number_of_fields", ragged + screen.open_quotes), ("nul_byte", screen.nul)):
        for line in sorted(damaged):
            findings.add(export, rule, "quarantined", path.name, line)
    ours_at = {header.index(theirs): ours for ours, theirs in found.items() if theirs}
    for line, cell in screen.too_long.items():
        where = None if cell is None else ours_at.get(cell, f"column {cell + 1}")
        rule = "wrong_number_of_fields" if cell is None else "cell_too_long"
        findings.add(export, rule, "quarantined", path.name, line, where)
    numbers = np.setdiff1d(np.arange(2, raw.num_rows + 2 + len(ragged)), ragged)
    written = ~np.isin(numbers, screen.empty)
    raw, numbers, n = raw.filter(pa.array(written)), numbers[written], int(written.sum())
    data: dict[str, pa.Array | pa.ChunkedArray] = {
        "clinic": pa.repeat(export.clinic.key, n),
        "arrival_day": pa.repeat(pa.scalar(export.arrival_day, pa.date32()), n),
        "export_id": pa.repeat(export.export_id, n),
        "source_file": pa.repeat(path.name, n),
        "source_line": pa.array(numbers, pa.int64()),
    }
    for ours, theirs in found.items():
        data[ours] = raw.column(theirs) if theirs else pa.nulls(n, pa.string())
    return pa.table(data)


def _without_hostile(exports: list[Export], table: pa.Table, names: Iterable[str], findings: Findings) -> pa.Table:
    """`table`, trimmed, without rows with a formula or an implausibly long cell; each becomes a finding."""
    by_id, good = {e.export_id: e for e in exports}, pa.repeat(True, table.num_rows)
    for name in names:
        cells = table.column(name)
        for rule, found in (
            ("cell_too_long", pc.greater(pc.utf8_length(cells), MAX_CELL_CHARACTERS)),
            ("formula_in_cell", pc.match_substring_regex(cells, _FORMULA)),
        ):
            bad = pc.and_(pc.fill_null(found, False), good)
            if pc.any(bad).as_py():
                for row in table.select(["export_id", "source_file", "source_line"]).filter(bad).to_pylist():
                    export, file, line = row.values()
                    findings.add(by_id[export], rule, "quarantined", file, line, column=name)
                good = pc.and_not(good, bad)
    return _trimmed(table.filter(good), names)


def _trimmed(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """`table` with the cells of `names` trimmed: a padded id would name nobody, and so lose a withdrawal."""
    for name in names:
        cells = pc.utf8_trim(table.column(name), BLANKS)
        filled = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
        table = table.set_column(table.column_names.index(name), name, filled)
    return table


def read_all(
    exports: list[Export], file_name: str, columns: dict[str, tuple[str, ...]], required: set[str], findings: Findings
) -> pa.Table:
    """`read_delimited` of that file (name in any case) in every export that has it, without hostile rows.

    Hostile rows are searched once over all files: a practice delivers a thousand small ones a year.
    """
    parts: list[pa.Table] = []
    problems: list[RejectedExport] = []
    for export in exports:
        for path in (p for p in export.files() if p.name.lower() == file_name):
            try:
                parts.append(read_delimited(export, path, columns, required, findings))
            except RejectedExport as problem:
                problems.append(problem)
    raise_all(problems)
    schema = pa.schema(
        [("clinic", pa.string()), ("arrival_day", pa.date32()), ("export_id", pa.string()),
         ("source_file", pa.string()), ("source_line", pa.int64()), *((name, pa.string()) for name in columns)]
    )  # fmt: skip
    whole = pa.concat_tables(parts) if parts else schema.empty_table()
    return _without_hostile(exports, whole, columns, findings)


def note_repeated(
    con: duckdb.DuckDBPyConnection, table: str, columns: Iterable[str], exports: list[Export], findings: Findings
) -> None:
    """Report the rows of `table` whose case appears again further down with other values: only the last row counts."""
    by_id, said = {e.export_id: e for e in exports}, f"({', '.join(columns)})"
    rows = con.execute(
        f"""SELECT export_id, source_file, source_line FROM {table} WHERE case_id IS NOT NULL
        QUALIFY {said} IS DISTINCT FROM last_value({said}) OVER (PARTITION BY export_id, case_id ORDER BY source_line
          ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) ORDER BY ALL"""
    )
    for export_id, file, line in rows.fetchall():
        findings.add(by_id[export_id], "case_repeated", "quarantined", file, line, "case_id", "cases")
