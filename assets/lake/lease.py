"""The lease on a data root: one writer at a time, whoever it is: a run, a backup, a rotation of keys.

It is a lock of the operating system (`flock`) on one small file, so it ends with the process that held it, however
that process died, and cannot go stale. Not here: what is done under it. On a network file system the lock must be
one that the server keeps (NFS 4 does); two hosts without such a server must not share a data root.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from assets.lake.files import make_directory

FILE: Final = ".lease"
_POLL_SECONDS: Final = 0.2
_held: dict[Path, tuple[int, int]] = {}
"""Data root → handle of the lock, and how many hold it."""
_guard: Final = threading.Lock()


class DataRootBusy(RuntimeError):
    """Another process works on the data root; the message says which and what to do."""


def _holder(handle: int) -> str:
    """What the holder wrote about itself; purposes hold no value of a person."""
    try:
        about = json.loads(os.pread(handle, 4096, 0))
        return f"{about['purpose']} (process {about['process']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _acquire(root: Path, purpose: str, wait_seconds: float) -> int:
    handle = os.open(make_directory(root) / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                who = _holder(handle)
                os.close(handle)
                raise DataRootBusy(
                    f"{root} is in use by {who}; wait until it is done, then do this again: nothing was changed"
                ) from None
            time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(handle)
            raise
    about = {"purpose": purpose, "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)
    except OSError:  # no room: an open handle would keep the lock for as long as the process lives
        os.close(handle)
        raise
    return handle


@contextmanager
def lease(root: Path, purpose: str, wait_seconds: float = 0, database: str | None = None) -> Iterator[None]:
    """Hold the data root; waits at most `wait_seconds`, then raises `DataRootBusy`. A process may nest it.

    `database`: URL of the ledger where it lies in PostgreSQL; its lease is held too.
    """
    key = root.absolute()
    with _guard:
        handle, depth = _held.get(key, (-1, 0))
        if depth:
            _held[key] = (handle, depth + 1)
    if not depth:  # noted only once it is held: another thread must not take a lock that is waited for as held
        handle = _acquire(root, purpose, wait_seconds)
        with _guard:
            _held[key] = (handle, 1)
    try:
        if database:
            from assets.lake.database_lock import database_lock

            with database_lock(database, purpose, wait_seconds):
                yield
        else:
            yield
    finally:
        with _guard:
            handle, depth = _held.pop(key)
            if depth > 1:
                _held[key] = (handle, depth - 1)
            else:
                os.close(handle)
