"""What leaves landing again: the lines of a patient who withdrew, and raw files after their retention.

A line goes where it belongs to the patient: a FHIR resource by its id or its references, a CSV row by the
columns of patient and case, a line that cannot be read by any field that holds the id. A file that cannot be
taken apart by lines goes as a whole. Folder and manifest stay, so that the same export is known and never
taken again. Not here: how files come in (`connector`), who is to be erased (`consent`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final, cast

import duckdb
import numpy as np
import pyarrow as pa

from assets.intake.connector import MANIFEST, Export
from assets.intake.delimited import header_of
from assets.intake.text import detect_encoding
from assets.lake.engine import load
from assets.lake.files import atomic_write, fsync_directory, sha256_of
from assets.lake.lake import Lake

BATCH_BYTES: Final = 32 * 2**20
PATIENT_COLUMNS: Final = ("patient_id", "patientennummer")
CASE_COLUMNS: Final = ("case_id", "kh-internes-kennzeichen")
_LINES: Final = (".ndjson", ".jsonl", ".csv")
_READ: Final = (*_LINES, ".json")


class RawFilesErased(Exception):
    """A run needs raw files that were erased. Names clinic and day and says what to do."""


@dataclass(frozen=True)
class Erased:
    """How many lines, and how many whole files."""

    lines: int = 0
    files: int = 0

    def __add__(self, other: Erased) -> Erased:
        return Erased(self.lines + other.lines, self.files + other.files)


Mask = Callable[[pa.Array], list[bool]]
"""Lines as text → which of them belong to an erased patient."""

# A reference names a patient as `Patient/<id>`, as an address that ends so, as `urn:uuid:<id>` or bare.
_NDJSON: Final = r"""
WITH read AS (
  SELECT n, line, json_valid(line) AS valid,
    [replace(r, '\/', '/') FOR r IN regexp_extract_all(line, '"reference"\s*:\s*"((?:[^"\\]|\\.)*)"', 1)] AS refs
  FROM lines),
named AS (
  SELECT n, unnest(CASE WHEN valid THEN list_concat(
      [CASE WHEN line->>'$.resourceType' = 'Patient' THEN line->>'$.id' END],
      [regexp_extract(r, '(?:^|Patient/|urn:uuid:)([^/:]+)(?:/_history/[^/]*)?$', 1)
       FOR r IN list_concat(refs, [line->>'$.subject.reference', line->>'$.patient.reference'])])
    ELSE [regexp_extract(replace(t, '\/', '/'), '([^/:]*)$', 1)
      FOR t IN regexp_extract_all(line, '"((?:[^"\\]|\\.)*)', 1)] END) AS id
  FROM read)
SELECT DISTINCT n FROM named SEMI JOIN (FROM ids WHERE kind = 'patient') USING (id)"""

_CSV: Final = """
WITH read AS (SELECT n, [trim(trim(f), '"') FOR f IN string_split(rtrim(line, chr(13)), ';')] AS fields FROM lines),
named AS (
  SELECT n, unnest(CASE WHEN len(fields) = $width AND ($patient > 0 OR $case > 0)
    THEN [{'kind': 'patient', 'id': CASE WHEN $patient > 0 THEN fields[greatest($patient, 1)] END},
          {'kind': 'case', 'id': CASE WHEN $case > 0 THEN fields[greatest($case, 1)] END}]
    ELSE list_concat([{'kind': 'patient', 'id': f} FOR f IN fields], [{'kind': 'case', 'id': f} FOR f IN fields]) END) AS field
  FROM read)
SELECT DISTINCT n FROM named SEMI JOIN ids ON ids.kind = field.kind AND ids.id = field.id"""


def _masked(con: duckdb.DuckDBPyConnection, query: str, lines: pa.Array, values: dict[str, Any] | None) -> list[bool]:
    """Which of `lines` the query finds; `con` holds the table `ids` (kind, id)."""
    load(con, lines=pa.table({"n": np.arange(len(lines)), "line": lines}))
    hits = con.execute(query, values).to_arrow_table().column("n").to_numpy()
    con.execute("DROP TABLE lines")
    gone = np.zeros(len(lines), dtype=bool)
    gone[hits] = True
    return cast(list[bool], gone.tolist())


def _batches(path: Path) -> Iterator[list[bytes]]:
    """Lines with their ends, some megabytes at a time."""
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        while lines := file.readlines(BATCH_BYTES):
            yield lines


def _mask_of(con: duckdb.DuckDBPyConnection, path: Path) -> tuple[Mask, str]:
    """How lines of this file are told apart, and the encoding in which they are compared."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith(".csv"):
        return lambda lines: _masked(con, _NDJSON, lines, None), "utf-8"
    encoding = "utf-8-sig" if path.name.lower().endswith(".gz") else detect_encoding(path) or "latin-1"
    header = [] if path.name.lower().endswith(".gz") else [n.lower() for n in header_of(path, encoding, ";")]
    place = {kind: next((header.index(n) + 1 for n in names if n in header), 0)
             for kind, names in (("patient", PATIENT_COLUMNS), ("case", CASE_COLUMNS))}  # fmt: skip
    values = {"width": len(header), **place}
    return lambda lines: _masked(con, _CSV, lines, values), encoding


def _kept(path: Path, mask: Mask, encoding: str) -> Iterator[tuple[list[bytes], int]]:
    """Kept lines and number of erased ones, batch by batch."""
    for lines in _batches(path):
        text = pa.array([line.rstrip(b"\n").decode(encoding, "replace") for line in lines], pa.string())
        gone = mask(text)
        yield [line for line, out in zip(lines, gone, strict=True) if not out], sum(gone)


def _without_lines(path: Path, mask: Mask, encoding: str) -> int:
    """Rewrite `path` without the lines of `mask`, atomically; number of erased lines. Untouched where none is."""
    if not any(erased for _, erased in _kept(path, mask, encoding)):
        return 0
    erased = 0
    handle, temporary = tempfile.mkstemp(prefix=".erasing.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as raw:
            packed = path.name.lower().endswith(".gz")
            with gzip.GzipFile(fileobj=raw, mode="wb") if packed else contextlib.nullcontext(raw) as out:
                for lines, number in _kept(path, mask, encoding):
                    out.writelines(lines)
                    erased += number
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(temporary, 0o400)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
    return erased


def _note(folder: Path, on: date, changed: dict[str, int | None]) -> None:
    """Write into the manifest what became of each file: erased lines, or None where the whole file went."""
    path = folder / MANIFEST
    if not path.exists():
        return
    manifest = json.loads(path.read_bytes())
    for entry in manifest.get("files", []):
        if entry["name"] in changed:
            lines = changed[entry["name"]]
            about = {"on": on.isoformat(), "lines": "all" if lines is None else lines}
            entry["erased"] = [*entry.get("erased", []), about]
            if lines is not None:
                file = folder / entry["name"]
                entry |= {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    atomic_write(path, json.dumps(manifest, indent=1).encode(), mode=0o400)


def erase_patients(
    lake: Lake, clinic: str, ids: Sequence[str], cases: Sequence[str], days: Iterable[date] | None, on: date
) -> Erased:
    """Erase patients `ids` and their `cases` from the raw files of `clinic`: of `days`, or all.

    Includes what an interrupted copy left behind. Idempotent; a crash leaves each file whole, old or new.
    """
    root = lake.landing / clinic
    roots = [root] if days is None else [root / day.isoformat() for day in days]
    total = Erased()
    changed: dict[Path, dict[str, int | None]] = {}
    with duckdb.connect() as con:
        kinds = ["patient"] * len(ids) + ["case"] * len(cases)
        load(con, ids=pa.table({"kind": pa.array(kinds, pa.string()), "id": pa.array([*ids, *cases], pa.string())}))
        for path in sorted(p for r in roots for p in r.rglob("*") if p.is_file() and p.name != MANIFEST):
            if path.name.lower().removesuffix(".gz").endswith(_LINES):
                try:
                    erased = _without_lines(path, *_mask_of(con, path))
                except (OSError, EOFError):  # a damaged gzip file cannot be taken apart
                    erased = -1
                if not erased:
                    continue
                if erased > 0:
                    changed.setdefault(path.parent, {})[path.name] = erased
                    total += Erased(lines=erased)
                    continue
            elif not _may_hold(path, {*ids, *cases}):
                continue
            path.unlink()
            changed.setdefault(path.parent, {})[path.name] = None
            total += Erased(files=1)
    for folder, files in changed.items():
        _note(folder, on, files)
    return total


def _may_hold(path: Path, ids: set[str]) -> bool:
    """Whether a file of unknown form could hold one of `ids`: true for everything that is not plain text."""
    if detect_encoding(path, ("utf-8-sig",)) is None:
        return True
    text = path.read_text("utf-8-sig")
    odd = (i for i in ids if not re.fullmatch(r"[\w.-]+", i))
    words = set(re.findall(r"[\w.-]+", text))
    return not ids.isdisjoint(words | {w.strip(".-") for w in words}) or any(i in text for i in odd)


def expire(lake: Lake, retention_days: int | None, today: date, needed: Iterable[date]) -> int:
    """Erase raw files of arrival days older than `retention_days` whose day is frozen; number of erased files.

    `needed`: arrival days of the present run, which stay. Manifests stay, so that the export is known.
    """
    if retention_days is None:
        return 0
    frozen, keep = set(lake.days("events")), set(needed)
    erased = 0
    for folder in sorted(p for p in lake.landing.glob("*/[0-9]*/*") if p.is_dir()):
        day = date.fromisoformat(folder.parent.name)
        if day not in frozen or day in keep or day + timedelta(retention_days) > today:
            continue
        names = [p.name for p in folder.iterdir() if p.name != MANIFEST]
        _note(folder, today, dict.fromkeys(names))
        for name in names:
            (folder / name).unlink()
        erased += len(names)
    return erased


def require_raw_files(exports: Iterable[Export]) -> None:
    """Raise `RawFilesErased` where a whole raw file of one of `exports` is gone."""
    gone = set()
    for export in exports:
        manifest = export.folder / MANIFEST
        entries = json.loads(manifest.read_bytes()).get("files", []) if manifest.exists() else []
        read = [e for e in entries if e["name"].lower().removesuffix(".gz").endswith(_READ)]
        if any(about["lines"] == "all" for entry in read for about in entry.get("erased", [])):
            gone.add(f"{export.clinic.key} {export.arrival_day}")
    if gone:
        raise RawFilesErased(
            f"raw files were erased, so these days cannot be read again: {', '.join(sorted(gone))}; leave them out of "
            "the range, and deliver late data under a newer day"
        )
