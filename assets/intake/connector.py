"""From the inbox to landing: immutable copies of complete exports, each taken once.

What a remote connector fetches goes through the same door: its inbox is filled first (`connectors`), and the
copy in the inbox is removed once landing has it.

An export is a folder `inbox/<clinic>/<YYYY-MM-DD>[-anything]/`; the date is its arrival day. It is complete
when it holds `_COMPLETE` (an empty file written last), or when nothing in it changed for
`connector.settle_seconds`. Not here: what is inside a file (`fhir`, `p21`, `practice`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final, Literal

from assets.contract.city import City, Clinic
from assets.intake.archives import collect
from assets.intake.connectors import fetch
from assets.intake.connectors.transfer import (
    COMPLETE_MARKER,
    MANIFEST,
    MAX_BYTES,
    MAX_FILES,
    SAFE_NAME,
    SCOPE_FILE,
    UNFINISHED,
    UNSAFE_NAME,
    FetchProblem,
    day_of,
    forget,
    is_delivered,
    remove,
)
from assets.lake.files import atomic_write, fsync_directory, make_directory, sha256_of
from assets.lake.lake import Lake

_BUILDING: Final = ".incoming"
"""Beside the exports of a day: what becomes one by a rename, and is removed else."""
_READ_SUFFIXES: Final = (".ndjson", ".jsonl", ".csv", ".json")

Outcome = Literal["taken", "known", "waiting", "rejected"]


@dataclass(frozen=True)
class Delivery:
    """What became of one folder of the inbox. `reason` is value-free and says what to do."""

    clinic: str
    arrival_day: date | None
    folder: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True)
class Export:
    """A landed export: the clinic, its day, its id and its folder below `landing/`."""

    clinic: Clinic
    arrival_day: date
    export_id: str
    folder: Path

    def files(self) -> list[Path]:
        return [p for p in delivered(self.folder) if p.name != MANIFEST]

    @property
    def changes_only(self) -> bool:
        """Whether the export says of itself that it holds changes only (`export.json` of a bulk export)."""
        try:
            about = json.loads((self.folder / SCOPE_FILE).read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(about, dict) and about.get("scope") == "incremental"

    @property
    def erased(self) -> bool:
        """Whether a raw file that a reader needs is gone: its retention is over, or it went as a whole with a patient."""
        manifest = self.folder / MANIFEST
        entries = json.loads(manifest.read_bytes()).get("files", []) if manifest.exists() else []
        read = [e for e in entries if may_be_read(e["name"])]
        present = {p.name for p in self.folder.iterdir()}
        noted = any(about["lines"] == "all" for entry in read for about in entry.get("erased", []))
        return noted or any(entry["name"] not in present for entry in read)


def may_be_read(name: str) -> bool:
    """Whether a reader may need a file of that name, packed or not."""
    return name.lower().removesuffix(".gz").endswith(_READ_SUFFIXES)


def delivered(folder: Path) -> list[Path]:
    """What was put into a folder as part of a delivery, in order of name."""
    return sorted(p for p in folder.iterdir() if is_delivered(p.name))


UNREADABLE: Final = "the service may not read it; give its user the right to read the folder and each file in it"


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)


def refusal(folder: Path, files: list[Path], day: date, today: date) -> str | None:
    """Why a complete folder with `files` cannot be taken, or None. Value-free, says what to do."""
    if day > today:
        return "the folder's date lies in the future; rename it to the day of delivery"
    if any(p.is_symlink() or not p.is_file() for p in files) or folder.is_symlink():
        return "it holds something other than plain files; deliver plain files without subfolders or links"
    if not files:
        return "it is empty; deliver at least one file, or no folder at all"
    if any(not SAFE_NAME.match(p.name) for p in files):
        return UNSAFE_NAME
    if len(files) > MAX_FILES or sum(p.stat().st_size for p in files) > MAX_BYTES:
        return f"it is larger than {MAX_FILES} files or {MAX_BYTES // 2**30} GiB; deliver larger files, or in parts"
    return None


def completed_at(
    folder: Path, files: list[Path], settle_seconds: int, changed: Literal["st_mtime", "st_ctime"] = "st_mtime"
) -> float | None:
    """When a folder with `files` became complete (Unix seconds): with its marker, or after `settle_seconds` of quiet.

    None where it is not yet. `changed`: which time of a file is asked, as `os.stat` names it.
    """
    marker = folder / COMPLETE_MARKER
    if any(p.name.endswith(UNFINISHED) for p in files) or not (files or marker.exists()):
        return None
    if marker.exists():
        return float(max(getattr(p.stat(), changed) for p in (folder, marker)))
    quiet = float(max(getattr(p.stat(), changed) for p in (folder, *files))) + settle_seconds
    return quiet if quiet <= time.time() else None


def _take(lake: Lake, clinic: Clinic, day: date, files: list[Path]) -> Outcome:
    """Copy `files`, unpacked, into landing under their place in the day and their digest; `known` where the same came before.

    The digest is that of the files as they land, so that they are known however they are packed.
    """
    target_root = make_directory(lake.landing / clinic.key / day.isoformat())
    with _building(target_root) as building:
        archives, entries = collect(files, building), []
        for copy in sorted(building.iterdir()):
            copy.chmod(0o400)
            # What was fetched is then removed from the inbox: the only copy left must survive a power cut.
            if clinic.connector.kind != "folder":
                with copy.open("rb") as file:
                    os.fsync(file.fileno())
            entries.append({"name": copy.name, "bytes": copy.stat().st_size, "sha256": sha256_of(copy)})
        digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
        taken = [p.name for p in target_root.glob("[0-9a-f]*")]
        if any(name.endswith(digest[:16]) for name in taken):
            return "known"
        # A second delivery of a day corrects the first: everywhere, exports of a day are in the order of their names.
        final = target_root / f"{len(taken):04}{digest[:16]}"
        manifest = {"clinic": clinic.key, "arrival_day": day.isoformat(), "digest": digest, "files": entries}
        manifest |= {"archives": archives} if archives else {}
        atomic_write(building / MANIFEST, json.dumps(manifest, indent=1).encode(), mode=0o400)
        building.rename(final)
        fsync_directory(target_root)
        return "taken"


@contextmanager
def _building(target_root: Path) -> Iterator[Path]:
    """An empty folder in landing that is gone afterwards, whatever happened, unless it was renamed."""
    building = target_root / _BUILDING
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=0o700)
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)
        # An empty folder would say that the clinic has delivered, and nobody would ask it again.
        with suppress(OSError):
            target_root.rmdir()


def _fetch(lake: Lake, clinic: Clinic, days: set[date], today: date) -> list[Delivery]:
    """Fill the inbox of a clinic with a remote connector; what could not be fetched is reported."""
    try:
        problems = fetch(clinic.connector, make_directory(lake.inbox / clinic.key), days, today)
    except FetchProblem as problem:
        problems = [(None, "?", problem)]
    except Exception as error:
        # Whatever a client library raises may quote what it received; only its class is safe to show.
        problems = [(None, "?", FetchProblem(f"the connector failed with {error.__class__.__name__}"))]
    return [Delivery(clinic.key, day, folder, p.outcome, p.reason) for day, folder, p in problems]


def pull(lake: Lake, city: City, days: Iterable[date], today: date) -> list[Delivery]:
    """Take every complete, unknown export of `days` from the inbox; report all that was found there.

    Remote connectors fill their inbox first; one that fails is reported and the others go on. Folders that
    belong to no clinic of the city file, or carry no date, are reported whatever the days.
    """
    wanted = set(days)
    found: list[Delivery] = []
    for left in lake.landing.glob(f"*/*/{_BUILDING}"):
        shutil.rmtree(left)  # of a killed run: its clinic may never deliver that day again
    known = {c.key: c for c in city.clinics}
    for clinic in (c for c in city.clinics if c.connector.kind != "folder"):
        found += _fetch(lake, clinic, wanted, today)
    for inbox in sorted(p for p in lake.inbox.glob("*") if not p.name.startswith(".")):
        if inbox.name not in known or not inbox.is_dir():
            found.append(Delivery("?", None, "?", "rejected", "a folder of the inbox names no clinic of the city file"))
            continue
        clinic = known[inbox.name]
        if not _readable(inbox):  # one clinic's folder must not hold up the others
            found.append(Delivery(clinic.key, None, "?", "rejected", UNREADABLE))
            continue
        for folder in sorted(p for p in inbox.iterdir() if not p.name.startswith(".")):
            day = day_of(folder.name)
            if day is None or not folder.is_dir():
                reason = "exports lie in folders named YYYY-MM-DD; rename it or move the files into one"
                found.append(Delivery(clinic.key, None, "?", "rejected", reason))
            elif day in wanted or day > today:
                outcome, reason = _attempt(lake, clinic, folder, day, today)
                found.append(Delivery(clinic.key, day, folder.name, outcome, reason))
    return found


def _attempt(lake: Lake, clinic: Clinic, folder: Path, day: date, today: date) -> tuple[Outcome, str]:
    """Take a folder of the inbox if it can be taken; what became of it, and why."""
    settle = clinic.connector.settle_seconds
    try:
        files = delivered(folder) if _readable(folder) else []
        if not all(map(_readable, (folder, *files))):
            return "rejected", UNREADABLE
        if reason := refusal(folder, files, day, today):
            return "rejected", reason
        if completed_at(folder, files, settle) is None:
            return "waiting", f"still being written; add {COMPLETE_MARKER} or wait {settle} s"
        outcome = _take(lake, clinic, day, files)
    except FileNotFoundError:  # the folder is the clinic's, who may rename or remove a file at any moment
        return "waiting", "it changed while it was taken; the next run takes it"
    except FetchProblem as problem:
        if clinic.connector.kind != "folder":
            forget(folder, problem)
        return problem.outcome, problem.reason
    if clinic.connector.kind != "folder":
        remove(folder)  # the original is with the clinic
    return outcome, ""


def landed(lake: Lake, city: City, days: Iterable[date]) -> list[Export]:
    """The landed exports of `days`, in order of clinic, day and arrival."""
    return _landed(lake.landing, city, days)


def _landed(landing: Path, city: City, days: Iterable[date]) -> list[Export]:
    exports = []
    for clinic in city.clinics:
        for day in sorted(set(days)):
            for folder in sorted((landing / clinic.key / day.isoformat()).glob("[0-9a-f]*")):
                exports.append(Export(clinic, day, f"{clinic.key}:{day}:{folder.name}", folder))
    return exports


def built_upon(lake: Lake, city: City, exports: Collection[Export]) -> list[Export]:
    """What exports of changes build upon beside `exports`: the earlier landed ones of their clinics, back to the last whole one."""
    oldest: dict[str, date] = {}
    for export in exports:
        if export.changes_only:
            oldest[export.clinic.key] = min(export.arrival_day, oldest.get(export.clinic.key, export.arrival_day))
    found, own = list[Export](), {e.export_id for e in exports}
    for key, first in oldest.items():
        folders = (lake.landing / key).glob("[0-9]*")
        for day in sorted((d for d in (day_of(p.name) for p in folders) if d and d < first), reverse=True):
            of_day = [e for e in landed(lake, city, [day]) if e.clinic.key == key]
            found += [e for e in of_day if e.export_id not in own]
            if any(not e.changes_only for e in of_day):
                break
    return found


def building_upon(landing: Path, city: City, clinic: str, last: date) -> list[date]:
    """Days after `last` whose landed exports of changes of `clinic` build upon those of before: up to its next whole one."""
    found: list[date] = []
    folders = (landing / clinic).glob("[0-9]*")
    for later in sorted(d for d in (day_of(p.name) for p in folders) if d and d > last):
        of_day = _landed(landing, city, [later])
        own = [e for e in of_day if e.clinic.key == clinic]
        if any(not e.changes_only for e in own):
            break
        # A day that cannot be read any more would be asked for every night.
        found += [later] if own and not any(e.erased for e in of_day) else []
    return found
