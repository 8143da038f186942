"""The lease on what a ledger in PostgreSQL belongs to: one writer at a time, on whatever machine.

`flock` on the data root (`lease`) is as good as the file system that keeps it; two machines on one without such locks
would both get it. Where the ledger lies in PostgreSQL, a run therefore also holds an advisory lock of that database,
one for each ledger. It belongs to a connection, so it ends with the process that held it, and with a machine that is
gone, as soon as the server misses it (`_KEEPALIVE`, about half a minute). The other side of that: a holder whose
connection broke has lost it, so whoever goes on to write asks `require` first. Not here: what is done under it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from assets.lake.lease import DataRootBusy

_CLASS: Final = 2_025_010_136
"""First half of the lock's number; the second half is the schema, so that cities may share a database."""
_OBJECT: Final = "hashtext(current_schema())"
_KEEPALIVE: Final = "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
_POLL_SECONDS: Final = 0.5
_HOLDER: Final = f"""SELECT a.application_name, a.backend_start::timestamp(0) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
  WHERE l.locktype = 'advisory' AND l.classid = {_CLASS} AND l.objid::bigint = ({_OBJECT}::bigint & 4294967295) AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
_held: dict[str, tuple[Any, int]] = {}
_guard: Final = threading.Lock()


class LeaseLost(RuntimeError):
    """The connection that held the lease broke, so another machine may write by now."""


def _acquire(url: str, purpose: str, wait_seconds: float) -> Any:
    import psycopg

    name = f"{socket.gethostname()[:24]}/{os.getpid()} {purpose}"[:63]
    try:
        db = psycopg.connect(
            url, connect_timeout=60, autocommit=True, application_name=name,
            keepalives_idle=15, keepalives_interval=5, keepalives_count=3,
        )  # fmt: skip
    except psycopg.OperationalError:
        raise DataRootBusy("the ledger's database does not answer: nothing was changed") from None
    try:
        db.execute(_KEEPALIVE)
        deadline = time.monotonic() + wait_seconds
        while db.execute(f"SELECT pg_try_advisory_lock({_CLASS}, {_OBJECT})".encode()).fetchone() != (True,):
            if time.monotonic() >= deadline:
                who = db.execute(_HOLDER.encode()).fetchone()
                about = f"{who[0]}, since {who[1]}" if who else "another process"
                raise DataRootBusy(
                    f"the ledger's database is in use by {about}; wait until it is done: nothing was changed"
                )
            time.sleep(_POLL_SECONDS)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def database_lock(url: str, purpose: str, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the ledger at `url` alone; waits at most `wait_seconds`, then raises `DataRootBusy`. A process may nest it."""
    with _guard:
        db, depth = _held.get(url, (None, 0))
        if depth:
            _held[url] = (db, depth + 1)
    if not depth:
        db = _acquire(url, purpose, wait_seconds)
        with _guard:
            _held[url] = (db, 1)
    try:
        yield
    finally:
        with _guard:
            db, depth = _held.pop(url)
            if depth > 1:
                _held[url] = (db, depth - 1)
            else:
                db.close()


def require(url: str) -> None:
    """Raise `LeaseLost` where this process began to hold the ledger at `url` and its connection is gone."""
    with _guard:
        db, _ = _held.get(url, (None, 0))
    if db is None:
        return
    import psycopg

    try:
        held = db.execute(_HOLDER.encode() + b" AND a.pid = pg_backend_pid()").fetchone()
    except psycopg.Error:
        held = None
    if held is None:
        raise LeaseLost(
            "the connection to the ledger's database broke, and with it the lease: another may write by now"
        )
