"""Files: atomic writes and digests. No table, no format, no key is known here."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_BESIDE: Final = re.compile(r"\..+\.[a-z0-9_]{8}")
"""Names that `mkstemp` gives to files on their way to another name."""


def make_directory(path: Path, mode: int = 0o700) -> Path:
    """Create `path` and missing parents, each with `mode` whatever the umask says."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    return path


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never half."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def remove_leftovers(folders: Iterable[Path]) -> int:
    """Remove what killed processes had half written below `folders`; how many files. Only under the lease.

    A half-written file may hold rows that are erased everywhere else, and nothing ever reads or rewrites it.
    """
    found = [p for folder in folders for p in folder.rglob(".*") if _BESIDE.fullmatch(p.name) and p.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
