"""What every remote connector shares: problems, retries, limits, partial files, the record of what was fetched.

A remote export is fetched into `inbox/<clinic>/.fetch/<folder>/`, which landing does not see, and becomes
`inbox/<clinic>/<folder>/` by one rename when it is whole. A kill leaves `<name>.part` with the version of the
remote file beside it, so that the next run goes on where this one ended. Not here: any protocol.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import tenacity

from assets.contract.connectors import FhirBulkConnector, S3Connector, Secret, SftpConnector
from assets.lake.files import atomic_write, fsync_directory, make_directory

COMPLETE_MARKER: Final = "_COMPLETE"
MAX_FILES: Final = 100_000
"""Of one export: 100 million resources of a server that writes a thousand a file. Each costs a moment, no memory."""
MAX_BYTES: Final = 20 * 2**30
"""Of one export, unpacked."""
SAFE_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\Z")
UNSAFE_NAME: Final = (
    "a file name is longer than 121 characters, does not begin with a letter or digit, or holds other characters than "
    "letters, digits, dot, dash and underscore"
)
"""Why a folder is refused; a name itself may hold whatever a person typed."""
UNFINISHED: Final = (".part", ".tmp", ".filepart", ".crdownload")
CHUNK: Final = 4 * 2**20
LONGEST_WAIT_SECONDS: Final = 60.0
FETCHED: Final = ".fetched.json"
_LEAVING: Final = ".leaving"
MANIFEST: Final = "manifest.json"
"""Our list of the files of a landed export."""
SCOPE_FILE: Final = "export.json"
"""Beside a FHIR bulk export: `scope` (full or incremental), `since`, `transaction_time`."""
_DAY_FOLDER: Final = re.compile(r"^(\d{4}-\d{2}-\d{2})(-[A-Za-z0-9_]{1,40})?$")

Remote = SftpConnector | S3Connector | FhirBulkConnector
State = dict[str, Any]


class FetchProblem(Exception):
    """An export could not be fetched, or not unpacked. `reason` is value-free and says what to do.

    `lasts`: whether that stays for as long as the export does not change.
    """

    outcome: Literal["rejected", "waiting"] = "rejected"

    def __init__(self, reason: str, lasts: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.lasts = reason, lasts and self.outcome == "rejected"


class Later(FetchProblem):
    """Nothing is wrong, or it may pass by itself: the next run tries again."""

    outcome = "waiting"


class Transient(Later):
    """Worth another try at once, after `retry_after` seconds where the other side asked for that.

    `status`: the HTTP status it answered, 0 without one.
    """

    def __init__(self, reason: str, retry_after: float = 0, status: int = 0) -> None:
        super().__init__(reason)
        self.retry_after, self.status = retry_after, status


@dataclass(frozen=True)
class RemoteFile:
    """A file of a remote export. `version` changes when its content does (ETag, or time of change)."""

    name: str
    size: int
    version: str


class Store(Protocol):
    """A remote tree of export folders. Methods raise `Transient` or `FetchProblem` and nothing else."""

    def folders(self) -> list[str]: ...

    def files(self, folder: str) -> list[RemoteFile]: ...

    def chunks(self, folder: str, file: RemoteFile, offset: int) -> Iterator[bytes]: ...


def is_delivered(name: str) -> bool:
    """Whether a file belongs to a delivery: neither a marker, ours or Hadoop's, nor what a Mac or Windows leaves in folders."""
    return name not in (COMPLETE_MARKER, "_SUCCESS", ".DS_Store", "Thumbs.db", "desktop.ini") and not name.startswith(
        "._"
    )


def day_of(folder: str) -> date | None:
    """The arrival day that the name of an export folder says, None where it says none."""
    match = _DAY_FOLDER.match(folder)
    try:
        return date.fromisoformat(match.group(1)) if match else None
    except ValueError:
        return None


def secret_value(secret: Secret) -> str:
    """The secret from its variable or file, without the line end a file may have."""
    if secret.env is not None:
        value = os.environ.get(secret.env)
        if not value:
            raise FetchProblem(f"the environment variable {secret.env} is not set")
        return value
    try:
        return Path(str(secret.file)).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise FetchProblem(f"the secret file {Path(str(secret.file)).name} cannot be read") from None


def retrying(settings: Remote) -> tenacity.Retrying:
    """Tries of one step: only `Transient` is tried again, each pause twice the last, with jitter."""

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, Transient) else 0.0
        return max(min(asked, 600.0), backoff(state))

    backoff = tenacity.wait_exponential_jitter(
        initial=settings.first_wait_seconds, max=LONGEST_WAIT_SECONDS, jitter=settings.first_wait_seconds
    )
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Transient),
        stop=tenacity.stop_after_attempt(settings.attempts),
        wait=pause,
        reraise=True,
    )


def load_state(path: Path) -> State:
    """A small JSON record; empty where it is missing or unreadable, which only costs another transfer."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def save_state(path: Path, state: State) -> None:
    atomic_write(path, json.dumps(state, indent=1, sort_keys=True).encode())


def resume_point(part: Path, version: State) -> int:
    """Bytes of `part` that belong to `version`; of another version, the partial file is thrown away."""
    beside = part.with_name(part.name + ".json")
    if part.exists() and load_state(beside) == version:
        return part.stat().st_size
    part.unlink(missing_ok=True)
    save_state(beside, version)
    return 0


def finish(part: Path, final: Path) -> None:
    """Make a whole partial file durable under its name."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.rename(final)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def with_progress(settings: Remote, part: Path, step: Callable[[], None]) -> None:
    """Run `step` until it succeeds; attempts are counted anew whenever the partial file has grown."""
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            retrying(settings)(step)
            return
        except Transient:
            if (part.stat().st_size if part.exists() else 0) - before < CHUNK:
                raise


def publish(building: Path, final: Path) -> None:
    """Show a whole fetched export to landing."""
    (building / COMPLETE_MARKER).touch()
    fsync_directory(building)
    building.rename(final)
    fsync_directory(final.parent)


def forget(fetched: Path, problem: FetchProblem) -> None:
    """Remove a fetched export that cannot be taken, so that another run fetches what the clinic corrected meanwhile.

    Until it has, a problem that `lasts` is told anew without that: the same archive would come over the network every night.
    """
    record = load_state(fetched.parent / FETCHED)
    if listing := record.pop(fetched.name, None):
        if problem.lasts:
            record[fetched.name] = {"listing": listing, "refused": problem.reason}
        save_state(fetched.parent / FETCHED, record)
    remove(fetched)


def remove(fetched: Path) -> None:
    """Remove a fetched export from the inbox at once: of half of one, left by a kill, nobody would know that it is half."""
    leaving = fetched.parent / _LEAVING
    shutil.rmtree(leaving, ignore_errors=True)
    fetched.rename(leaving)
    shutil.rmtree(leaving)


def refused_days(inbox: Path) -> set[date]:
    """Arrival days of fetched exports that could not be taken and are not corrected yet, as far as is known."""
    refused = (day_of(folder) for folder, about in load_state(inbox / FETCHED).items() if isinstance(about, dict))
    return {day for day in refused if day}


def refusal_of(files: Collection[RemoteFile], settings: Remote) -> str | None:
    """Why a remote export is not fetched, from its listing alone."""
    if any(not SAFE_NAME.match(f.name) for f in files):
        return UNSAFE_NAME
    if not files:
        return "it is empty; deliver at least one file, or no folder at all"
    if len(files) > MAX_FILES or sum(f.size for f in files) > settings.max_gigabytes * 2**30:
        return (
            f"it is larger than {MAX_FILES} files or {settings.max_gigabytes:g} GiB; deliver larger files, or in parts"
        )
    if any(f.name.endswith(UNFINISHED) for f in files):
        return f"it holds unfinished files; write {COMPLETE_MARKER} last"
    return None


def _fetch_file(store: Store, folder: str, file: RemoteFile, target: Path, settings: Remote) -> None:
    final, part = target / file.name, target / f"{file.name}.part"
    if final.exists():
        return

    def step() -> None:
        done = resume_point(part, asdict(file))
        with part.open("ab") as out:
            if done < file.size:
                for chunk in store.chunks(folder, file, done):
                    done += len(chunk)
                    if done > file.size:
                        raise Later("a file grew while it was fetched; the next run fetches it anew")
                    out.write(chunk)
        if done != file.size:
            raise Transient("a file ended before its announced size")

    with_progress(settings, part, step)
    finish(part, final)


def fetch_folders(
    store: Store, settings: Remote, inbox: Path, days: Collection[date], today: date
) -> list[tuple[date | None, str, FetchProblem]]:
    """Fetch every new, complete remote export of `days` into `inbox`; returns what could not be, and why.

    An export is known by its listing (names, sizes, versions): unchanged, it is never fetched twice, and one that was
    refused is among what is returned.
    """
    problems: list[tuple[date | None, str, FetchProblem]] = []
    record = load_state(inbox / FETCHED)
    shutil.rmtree(inbox / _LEAVING, ignore_errors=True)
    offered = sorted(retrying(settings)(store.folders))
    if removed := [f for f, about in record.items() if isinstance(about, dict) and f not in offered]:
        record = {f: about for f, about in record.items() if f not in removed}
        save_state(inbox / FETCHED, record)
    for left in (p for p in (inbox / ".fetch").glob("*/") if p.name not in offered):
        shutil.rmtree(left)  # the clinic took it back before it was whole
    for folder in offered:
        day = day_of(folder)
        if day is None:
            problem = FetchProblem("exports lie in folders named YYYY-MM-DD; rename it or move the files into one")
            problems.append((None, "?", problem))
        elif day > today:
            problem = FetchProblem("the folder's date lies in the future; rename it to the day of delivery")
            problems.append((day, folder, problem))
        elif day in days:
            try:
                _fetch_folder(store, settings, inbox, folder, record)
            except FetchProblem as failed:
                problems.append((day, folder, failed))
    return problems


def _fetch_folder(store: Store, settings: Remote, inbox: Path, folder: str, record: State) -> None:
    files = sorted(retrying(settings)(store.files, folder), key=lambda f: f.name)
    whole = any(f.name == COMPLETE_MARKER for f in files)
    files = [f for f in files if is_delivered(f.name)]
    listing = hashlib.sha256(json.dumps([asdict(f) for f in files]).encode()).hexdigest()
    before = record.get(folder)
    if before == listing or (inbox / folder).exists():
        return
    if not whole:
        raise Later(f"still being written; add {COMPLETE_MARKER} when it is whole")
    unchanged = before["refused"] if isinstance(before, dict) and before.get("listing") == listing else None
    refusal = refusal_of(files, settings) or unchanged
    if refusal:
        raise FetchProblem(refusal)
    building, listed = inbox / ".fetch" / folder, inbox / ".fetch" / f"{folder}.json"
    if load_state(listed).get("listing") != listing:
        # Another version of the export: files that are whole already may belong to the old one.
        shutil.rmtree(building, ignore_errors=True)
        make_directory(building.parent)
        save_state(listed, {"listing": listing})
    make_directory(building)
    for file in files:
        _fetch_file(store, folder, file, building, settings)
    if {f for f in retrying(settings)(store.files, folder) if is_delivered(f.name)} != set(files):
        raise Later("the export changed while it was fetched; the next run fetches it anew")
    publish(building, inbox / folder)
    record[folder] = listing
    save_state(inbox / FETCHED, record)
    listed.unlink()
