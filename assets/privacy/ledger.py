"""The ledger: what was spent and drawn, once and for all. SQLite, append-only, hash-chained.

Opening a window is an entry like any other: its cap stands in the hash chain. Steps of a measurement: reserve (one write transaction; refused when the cap would be passed) → draw → commit
values. Reserved counts as spent. Database triggers, not only this code, forbid changing or deleting an entry
and passing a cap. Committed values are differentially private, so this file holds no one's data.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
  seq INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('open', 'reserve', 'commit')), measurement TEXT NOT NULL,
  scope TEXT NOT NULL, rho_units INTEGER NOT NULL CHECK (rho_units >= 0),
  snapshot TEXT NOT NULL, parameters TEXT NOT NULL, measured TEXT, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE,
  UNIQUE (measurement, kind));
CREATE INDEX IF NOT EXISTS by_scope ON entries (scope, kind, rho_units);
CREATE TRIGGER IF NOT EXISTS cap BEFORE INSERT ON entries WHEN NEW.kind = 'reserve' BEGIN
  SELECT RAISE(ABORT, 'budget exceeded') WHERE
    NEW.rho_units + (SELECT coalesce(sum(rho_units), 0) FROM entries WHERE scope = NEW.scope AND kind = 'reserve')
    > coalesce((SELECT rho_units FROM entries WHERE scope = NEW.scope AND kind = 'open'), -1);
END;
CREATE TRIGGER IF NOT EXISTS reserved_first BEFORE INSERT ON entries WHEN NEW.kind = 'commit' BEGIN
  SELECT RAISE(ABORT, 'commit without reservation') WHERE NOT EXISTS (SELECT 1 FROM entries
    WHERE measurement = NEW.measurement AND kind = 'reserve' AND snapshot = NEW.snapshot);
END;
CREATE TRIGGER IF NOT EXISTS scope_once BEFORE INSERT ON entries WHEN NEW.kind = 'open' BEGIN
  SELECT RAISE(ABORT, 'caps are fixed') WHERE EXISTS (SELECT 1 FROM entries WHERE scope = NEW.scope);
END;
CREATE TRIGGER IF NOT EXISTS no_replace BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'append only')
  WHERE EXISTS (SELECT 1 FROM entries WHERE seq = NEW.seq OR hash = NEW.hash
    OR (measurement = NEW.measurement AND kind = NEW.kind));
END;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""
_GENESIS: Final = "0" * 64
_WAIT_SECONDS: Final = 60.0
_COLUMNS: Final = "kind, measurement, scope, rho_units, snapshot, parameters, measured"


class BudgetExceeded(RuntimeError):
    """The reservation would pass the cap of its window; nothing was reserved."""


class SnapshotMismatch(RuntimeError):
    """The same measurement was asked for over other data or parameters; only a declared correction may."""


class AlreadyCommitted(RuntimeError):
    """Another process committed this measurement first; its values stand."""


@dataclass(frozen=True)
class Reservation:
    measurement: str
    scope: str
    rho_units: int
    snapshot: str
    parameters: str


@dataclass(frozen=True)
class Committed:
    """Values of a committed measurement, flat, in order of its parameters' shape."""

    scope: str
    rho_units: int
    parameters: dict[str, Any]
    values: list[int]


def _digest(previous: str, content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([previous, *content], ensure_ascii=True).encode()).hexdigest()


class Ledger:
    """One ledger file; safe to use from several processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                with self._connection() as db:
                    db.execute("PRAGMA journal_mode = WAL")
                    db.executescript(_SCHEMA)
                return
            except sqlite3.OperationalError as error:
                # Switching to WAL does not wait for another process that does the same: SQLite's timeout skips it.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            yield db
        finally:
            db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def open_scope(self, scope: str, cap_units: int) -> None:
        """Fix the cap of a window. Raises `ValueError` where it was opened with another one."""
        with self._write() as db:
            row = db.execute("SELECT rho_units FROM entries WHERE scope = ? AND kind = 'open'", (scope,)).fetchone()
            if row is None:
                self._append(db, ("open", f"window:{scope}", scope, cap_units, "", "{}", None))
        cap = row[0] if row else cap_units
        if cap != cap_units:
            raise ValueError(
                f"window {scope} was opened with a cap of {cap} units; a budget never changes once spent from"
            )

    def _append(self, db: sqlite3.Connection, content: Sequence[Any]) -> None:
        row = db.execute("SELECT hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        previous = row[0] if row else _GENESIS
        db.execute(
            f"INSERT INTO entries ({_COLUMNS}, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*content, previous, _digest(previous, content)),
        )

    def reserve(self, reservations: Sequence[Reservation]) -> None:
        """Reserve all or none. A measurement that is reserved already costs nothing, if nothing changed."""
        with self._write() as db:
            for r in reservations:
                known = db.execute(
                    "SELECT snapshot, parameters FROM entries WHERE measurement = ? AND kind = 'reserve'",
                    (r.measurement,),
                ).fetchone()
                if known:
                    if known != (r.snapshot, r.parameters):
                        raise SnapshotMismatch(f"{r.measurement} was reserved over other data or parameters")
                    continue
                try:
                    self._append(db, ("reserve", r.measurement, r.scope, r.rho_units, r.snapshot, r.parameters, None))
                except sqlite3.IntegrityError as error:
                    if "budget exceeded" in str(error):
                        raise BudgetExceeded(f"{r.measurement} would pass the budget of window {r.scope}") from None
                    raise

    def commit(self, values: Mapping[str, Sequence[int]]) -> None:
        """Commit drawn values, all or none. Raises `AlreadyCommitted` where one has values already."""
        with self._write() as db:
            for measurement, drawn in values.items():
                row = db.execute(
                    "SELECT scope, rho_units, snapshot, parameters FROM entries WHERE measurement = ? AND kind = 'reserve'",
                    (measurement,),
                ).fetchone()
                if row is None:
                    raise KeyError(f"{measurement} was never reserved")
                if db.execute(
                    "SELECT 1 FROM entries WHERE measurement = ? AND kind = 'commit'", (measurement,)
                ).fetchone():
                    raise AlreadyCommitted(measurement)
                scope, rho, snapshot, parameters = row
                self._append(db, ("commit", measurement, scope, rho, snapshot, parameters, json.dumps(list(drawn))))

    def committed(self) -> dict[str, Committed]:
        with self._connection() as db:
            rows = db.execute(
                "SELECT measurement, scope, rho_units, parameters, measured FROM entries WHERE kind = 'commit' ORDER BY seq"
            ).fetchall()
        return {
            m: Committed(scope, rho, json.loads(parameters), json.loads(values))
            for m, scope, rho, parameters, values in rows
        }

    def reserved(self) -> dict[str, dict[str, Any]]:
        """Measurements that are reserved, committed or not, with their parameters."""
        with self._connection() as db:
            rows = db.execute("SELECT measurement, parameters FROM entries WHERE kind = 'reserve'").fetchall()
        return {m: json.loads(parameters) for m, parameters in rows}

    def scopes(self) -> dict[str, tuple[int, int]]:
        """Window → (spent units, cap units)."""
        with self._connection() as db:
            return {
                scope: (spent, cap)
                for scope, cap, spent in db.execute(
                    "SELECT o.scope, o.rho_units, coalesce(sum(e.rho_units), 0) FROM entries o LEFT JOIN entries e"
                    " ON e.scope = o.scope AND e.kind = 'reserve' WHERE o.kind = 'open' GROUP BY o.scope ORDER BY o.scope"
                )
            }

    def verify(self) -> list[str]:
        """Problems found: broken hash chain, changed entry, cap passed, commit that nothing was reserved for."""
        problems, previous, expected = [], _GENESIS, 1
        caps: dict[str, int] = {}
        spent: dict[str, int] = defaultdict(int)
        asked: dict[str, tuple[Any, ...]] = {}
        with self._connection() as db:
            for seq, *content, before, digest in db.execute(
                f"SELECT seq, {_COLUMNS}, previous, hash FROM entries ORDER BY seq"
            ):
                if seq != expected:
                    problems.append(f"entry {expected} is missing")
                if before != previous or digest != _digest(previous, content):
                    problems.append(f"entry {seq} does not follow from the one before it: it was changed")
                previous, expected = digest, seq + 1
                kind, measurement, scope, rho, *terms, _ = content
                if kind == "open":
                    caps[scope] = rho
                elif kind == "reserve":
                    asked[measurement] = (scope, rho, *terms)
                    spent[scope] += rho
                    if spent[scope] > caps.get(scope, -1):
                        problems.append(f"entry {seq} passes the cap of window {scope}")
                elif asked.get(measurement) != (scope, rho, *terms):
                    problems.append(f"entry {seq} commits what was not reserved so")
        return problems
