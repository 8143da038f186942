"""Delimited files to Arrow tables of text: encoding, header and ragged lines, for §21 and practice CSV alike."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

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
_FORMULA: Final = r"^\s*[=@]|^\t|^[+-].*[^0-9.,]"
"""What a spreadsheet would execute. A sign before a number is none."""


@dataclass
class _Ragged:
    """Collects the numbers of lines that have another count of fields than the header, blank ones apart."""

    lines: list[int] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)

    def __call__(self, row: pacsv.InvalidRow) -> str:
        (self.lines if row.text.strip() else self.blank).append(row.number or 0)
        return "skip"


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


def _open_quotes_closed(path: Path) -> pa.BufferReader | Path:
    """`path`, or its bytes in which each line with an odd number of quotes has become a line of one field.

    An open quote would swallow the lines after it. No cell of these formats spans lines.
    """
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    quotes = np.flatnonzero(content == ord('"'))
    if not len(quotes):
        return path
    ends = np.append(np.flatnonzero(content == ord("\n")), len(content))
    line = np.searchsorted(ends, quotes)
    numbers, counts = np.unique(line, return_counts=True)
    mended = content.copy()
    for number in numbers[counts % 2 == 1]:
        first = ends[number - 1] + 1 if number else 0
        mended[first : ends[number]] = ord("?")
    return pa.BufferReader(mended.tobytes())


def read_delimited(
    export: Export, path: Path, columns: dict[str, tuple[str, ...]], required: set[str], findings: Findings
) -> pa.Table:
    """The wanted `columns` of a `;`-separated file as text, with provenance.

    `columns` maps our name to the header names it may have (case-insensitive); a column that is missing is
    all null, unless it is `required`: then `RejectedExport`. Ragged lines are skipped and become findings.
    """
    encoding = detect_encoding(path)
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
    if missing:
        raise RejectedExport(f"header_misses_{missing[0]}", path)
    ragged = _Ragged()
    try:
        raw = pacsv.read_csv(
            _open_quotes_closed(path),
            read_options=pacsv.ReadOptions(column_names=header, skip_rows=1, encoding=encoding, use_threads=False),
            parse_options=pacsv.ParseOptions(delimiter=";", invalid_row_handler=ragged, ignore_empty_lines=False),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in header}, null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:
        # Arrow quotes the offending cell in its message, which may be a person's value.
        raise RejectedExport("csv_unreadable", path) from None
    for line in ragged.lines:
        findings.add(export, "wrong_number_of_fields", "quarantined", path.name, line)
    n = raw.num_rows
    numbers = np.setdiff1d(np.arange(2, n + 2 + len(ragged.lines) + len(ragged.blank)), ragged.lines + ragged.blank)[:n]
    data: dict[str, pa.Array | pa.ChunkedArray] = {
        "clinic": pa.repeat(export.clinic.key, n),
        "arrival_day": pa.repeat(pa.scalar(export.arrival_day, pa.date32()), n),
        "export_id": pa.repeat(export.export_id, n),
        "source_file": pa.repeat(path.name, n),
        "source_line": pa.array(numbers, pa.int64()),
    }
    for ours, theirs in found.items():
        data[ours] = raw.column(theirs) if theirs else pa.nulls(n, pa.string())
    return _without_hostile(export, path, pa.table(data), list(columns), findings)


def _without_hostile(export: Export, path: Path, table: pa.Table, names: list[str], findings: Findings) -> pa.Table:
    """`table` without rows in which a cell is a formula or longer than anything real; each becomes a finding."""
    good = pa.repeat(True, table.num_rows)
    for name in names:
        cells = table.column(name)
        for rule, found in (
            ("cell_too_long", pc.greater(pc.utf8_length(cells), MAX_CELL_CHARACTERS)),
            ("formula_in_cell", pc.match_substring_regex(cells, _FORMULA)),
        ):
            bad = pc.and_(pc.fill_null(found, False), good)
            if pc.any(bad).as_py():
                for line in table.column("source_line").filter(bad).to_pylist():
                    findings.add(export, rule, "quarantined", path.name, line, column=name)
                good = pc.and_not(good, bad)
    return table.filter(good)


def read_all(
    exports: list[Export], file_name: str, columns: dict[str, tuple[str, ...]], required: set[str], findings: Findings
) -> pa.Table:
    """`read_delimited` of that file (name in any case) in every export that has it, concatenated."""
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
    return pa.concat_tables(parts) if parts else schema.empty_table()
