"""The audit log: who did what with the data, in counts and hashes, never with a value of a person.

One JSON object a line, each with the hash of the one before it; only ever appended to. A last line that a crash cut
short is cut off by the next append. Not here: Dagster's own event log, which is for operating.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from assets.lake import witness
from assets.lake.files import make_directory
from assets.lake.lake import Lake
from assets.lake.witness import Head
from assets.lake.zone import open_zone

FILE: Final = "audit.jsonl"
LOG: Final = "audit"
GENESIS: Final = "0" * 64
_TAIL_BYTES: Final = 2**20


def _digest(entry: dict[str, Any]) -> str:
    content = {k: v for k, v in entry.items() if k != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _tail(handle: int) -> tuple[int, bytes]:
    """Offset and bytes of the end of the file; longer than any entry."""
    size = os.fstat(handle).st_size
    begin = max(0, size - _TAIL_BYTES)
    return begin, os.pread(handle, size - begin, begin)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, locked against other writers, without a last line that was cut short."""
    make_directory(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.fchmod(handle, 0o600)
        begin, tail = _tail(handle)
        whole = tail.rfind(b"\n") + 1
        if whole != len(tail):
            os.ftruncate(handle, begin + whole)
        yield handle
    finally:
        os.close(handle)


def _lines(content: bytes) -> list[bytes]:
    return content[: content.rfind(b"\n") + 1].splitlines()


def _backwards(lines: list[bytes]) -> Iterator[tuple[int, str]]:
    """Number and hash of each entry that has them, newest first."""
    for line in reversed(lines):
        with suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            yield int(entry["seq"]), str(entry["hash"])


def record(lake: Lake, event: str, **about: Any) -> None:
    """Append an event; `about`: counts, hashes, days, names of rules and clinics. Durable when it returns.

    A log that was tampered with is still appended to, but the witness no longer advances, so `verify` reports it.
    """
    zone = open_zone(lake)
    with _locked(lake.confidential / FILE) as handle:
        lines = _lines(_tail(handle)[1])
        seq, previous = next(_backwards(lines), (0, GENESIS))
        entry = {"seq": seq + 1, "at": datetime.now(UTC).isoformat(timespec="seconds"), "event": event,
                 "about": json.loads(json.dumps(about, default=str)), "previous": previous}  # fmt: skip
        entry["hash"] = _digest(entry)
        os.lseek(handle, 0, os.SEEK_END)
        data = (json.dumps(entry, sort_keys=True, ensure_ascii=True) + "\n").encode()
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
        seen = witness.seen(lake.keys.witness, zone.id, LOG)
        if seen is None or _goes_on_from(seen, lines):
            witness.advance(lake.keys.witness, zone.id, LOG, Head(seq + 1, str(entry["hash"])))


def _goes_on_from(seen: Head, lines: list[bytes]) -> bool:
    """Whether the log still holds the entry that the witness saw; nearly always its last one."""
    for seq, digest in _backwards(lines):
        if seq <= seen.entries:
            return Head(seq, digest) == seen
    return False


def entries(lake: Lake) -> list[dict[str, Any]]:
    """Every whole entry, oldest first; one that is no JSON stands as `{"unreadable": True}`."""
    path = lake.confidential / FILE
    found = []
    for line in _lines(path.read_bytes()) if path.exists() else []:
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            found.append({"unreadable": True})
    return found


def verify(lake: Lake) -> list[str]:
    """Problems found: an entry that was changed, left out, or cut off behind what the witness saw."""
    problems, previous = [], GENESIS
    log = entries(lake)
    for number, entry in enumerate(log, start=1):
        if entry.get("seq") != number or entry.get("previous") != previous or entry.get("hash") != _digest(entry):
            problems.append(f"entry {number} does not follow from the one before it: the log was changed")
            break
        previous = str(entry["hash"])
    seen = witness.seen(lake.keys.witness, open_zone(lake).id, LOG)
    if seen and len(log) < seen.entries:
        problems.append(f"the log holds {len(log)} entries, but {seen.entries} were seen: its end is missing")
    elif seen and log[seen.entries - 1].get("hash") != seen.hash:
        problems.append(f"entry {seen.entries} is not the one that was seen: the log was exchanged")
    return problems
