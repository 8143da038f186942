"""The witness: a small file apart from the data that remembers how far each append-only log had come.

Whoever puts an older ledger or audit log in place, by accident or not, cannot also turn back this file unless they
hold the keys' folder too. It only ever moves forward. Not here: what a log holds (`privacy.ledger`, `lake.audit`),
and what else shows that a ledger is too old (`privacy.evidence`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from assets.lake.files import atomic_write, make_directory

FILE: Final = "witness.json"
WITNESS_VARIABLE: Final = "DIGITALSTADT_WITNESS"
"""Names another place for the file, where the keys' folder cannot be written (a mounted secret)."""


class WitnessError(RuntimeError):
    """The witness cannot be read or written; the message says where and what to do."""


@dataclass(frozen=True)
class Head:
    """How far a hash-chained log has come: number of entries and hash of the last one."""

    entries: int
    hash: str


def witness_path(key_folder: Path) -> Path:
    configured = os.environ.get(WITNESS_VARIABLE)
    return Path(configured) if configured else key_folder / FILE


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise WitnessError(
            f"{path}: the witness cannot be read; put back the newest copy of it, never an empty one"
        ) from None


def zones(path: Path | None) -> list[str]:
    """Ids of the data roots that this witness has seen."""
    return sorted(_read(path)) if path else []


def seen(path: Path | None, zone: str, log: str) -> Head | None:
    """The furthest that `log` of the data root `zone` was seen; None where it never was."""
    about = _read(path).get(zone, {}).get(log) if path else None
    return Head(int(about["entries"]), str(about["head"])) if about else None


def advance(path: Path | None, zone: str, log: str, head: Head) -> None:
    """Remember `head`, unless the log was further already."""
    if path is None:
        return
    content = _read(path)
    before = content.get(zone, {}).get(log)
    if before and int(before["entries"]) >= head.entries:
        return
    content.setdefault(zone, {})[log] = {"entries": head.entries, "head": head.hash}
    try:
        make_directory(path.parent)
        atomic_write(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise WitnessError(
            f"{path}: the witness cannot be written ({os.strerror(error.errno or 0)}); make room or set "
            f"{WITNESS_VARIABLE} to a place that can be written and is kept apart from the data"
        ) from None


def reanchor(path: Path | None, zone: str, log: str, head: Head) -> None:
    """Let `log` go on from `head`, further or not: for a log that a restore shortened and that says so itself."""
    content = _read(path) if path else {}
    if path and content.get(zone, {}).pop(log, None):
        atomic_write(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    advance(path, zone, log, head)
