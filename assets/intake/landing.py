"""What leaves landing again: the lines of a patient who withdrew, and raw files after their retention.

Folder and manifest stay, so that the same export is known and never taken again. Not here: which lines name a patient
(`naming`), how files come in (`connector`), who is to be erased (`consent`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from assets.intake.connector import Export, may_be_read
from assets.intake.connectors.transfer import MANIFEST
from assets.intake.fhir_files import MIXED, is_document, kind_of
from assets.intake.naming import batches, is_table, may_hold, search
from assets.intake.needles import line_bounds
from assets.lake.engine import connect, load
from assets.lake.files import atomic_write, fsync_directory, sha256_of
from assets.lake.lake import Lake
from assets.lake.progress import stretches

_NAMING: Final = ("fall", "patient", "encounter", "consent", "practice")
"""How files begin whose lines name a patient, in every format; other lines may name a case only."""


class RawFilesErased(Exception):
    """A run needs raw files that were erased. Names clinic and day and says what to do."""


@dataclass(frozen=True)
class Erased:
    """How many lines, and how many whole files."""

    lines: int = 0
    files: int = 0

    def __add__(self, other: Erased) -> Erased:
        return Erased(self.lines + other.lines, self.files + other.files)


def _without(path: Path, gone: dict[int, bytes]) -> None:
    """Rewrite `path` with what is left of the lines of these numbers (from 0), atomically."""
    handle, temporary = tempfile.mkstemp(prefix=".erasing.", dir=path.parent)
    numbers, first = np.array(sorted(gone)), 0
    try:
        with os.fdopen(handle, "wb") as raw:
            packed = path.name.lower().endswith(".gz")
            with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) if packed else contextlib.nullcontext(raw) as out:
                for content, _ in batches(path):
                    bounds = np.array([0, len(content)]) if is_document(path) else line_bounds(content, is_table(path))
                    at, following = 0, first + len(bounds) - 1
                    for n in numbers[(numbers >= first) & (numbers < following)].tolist():
                        out.write(memoryview(content)[at : bounds[n - first]])
                        out.write(gone[n])
                        at = bounds[n - first + 1]
                    out.write(memoryview(content)[at:])
                    first = following
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(temporary, 0o400)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


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


def _files(root: Path) -> Iterator[Path]:
    """Every file below `root` but manifests, in order: to ask each path what it is takes as long as to read it."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if name != MANIFEST)


def erase_patients(
    lake: Lake,
    clinic: str,
    ids: Sequence[str],
    cases: Sequence[str],
    days: Iterable[date] | None,
    on: date,
    consents: Sequence[str] = (),
) -> Erased:
    """Erase patients `ids`, their `cases` and `consents` from the raw files of `clinic`: of `days`, or all.

    Includes what an interrupted copy left behind. Idempotent; a crash leaves each file whole, old or new.
    """
    root = lake.landing / clinic
    roots = [root] if days is None else [root / day.isoformat() for day in days]
    paths = [path for r in roots for path in _files(r)]
    by_line = [p for p in paths if may_be_read(p.name)]
    kinds = ["patient"] * len(ids) + ["case"] * len(cases) + ["consent"] * len(consents)
    names = [*ids, *cases, *consents]
    with connect() as con:
        load(con, ids=pa.table({"kind": pa.array(kinds, pa.string()), "id": pa.array(names, pa.string())}))
        hits, whole = search(con, by_line, names)
    known = set(by_line)
    whole += [p for p in paths if p not in known and may_hold(p, {*ids, *cases})]
    changed: dict[Path, dict[str, int | None]] = defaultdict(dict)
    # Files that name patients go last: after a crash they still tell which cases are whose.
    for path, lines in sorted(
        hits.items(), key=lambda hit: hit[0].name.lower().startswith(_NAMING) or kind_of(hit[0]) == MIXED
    ):
        _without(path, lines)
        changed[path.parent][path.name] = len(lines)
    for path in whole:
        path.unlink()
        changed[path.parent][path.name] = None
    for folder, files in changed.items():
        _note(folder, on, files)
    return Erased(sum(map(len, hits.values())), len(whole))


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
        if names:  # else they went before: no manifest is written again every night
            _note(folder, today, dict.fromkeys(names))
        for name in names:
            (folder / name).unlink()
        erased += len(names)
    return erased


def require_raw_files(exports: Iterable[Export]) -> None:
    """Raise `RawFilesErased` where a raw file of one of `exports` is gone."""
    gone = [export for export in exports if export.erased]
    if gone:
        days = ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in stretches(e.arrival_day for e in gone))
        clinics = ", ".join(sorted({export.clinic.key for export in gone}))
        raise RawFilesErased(
            f"raw files of {clinics} were erased, so these days cannot be read again: {days}; leave them out of "
            "the range, and deliver late data under a newer day"
        )
