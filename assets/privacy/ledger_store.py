"""Where the ledger's entries lie: an SQLite file, or PostgreSQL where several machines release.

Here: the table, its versions, the rules that the database itself enforces, and how each database is talked to.
Not here: what an entry means (`ledger`). Every rule is one SQL condition that both databases understand; only the
trigger around it differs.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

GENESIS: Final = "0" * 64
"""What the first entry follows."""
VERSION: Final = 2
"""Of the table and its rules. 1: the file of the first releases, which had no version and no correction."""
_WAIT_SECONDS: Final = 60.0
_LOCK: Final = 20_250_101_364
"""Advisory lock of PostgreSQL that whoever appends holds until the end of the transaction; any fixed number."""

_TABLE: Final = """CREATE TABLE {name} (
  seq INTEGER NOT NULL PRIMARY KEY, kind TEXT NOT NULL
    CHECK (kind IN ('open', 'set_aside', 'reserve', 'correct', 'supersede', 'commit', 'pause')),
  measurement TEXT NOT NULL, scope TEXT NOT NULL, rho_units BIGINT NOT NULL CHECK (rho_units >= 0),
  snapshot TEXT NOT NULL, parameters TEXT NOT NULL, measured TEXT,
  previous TEXT NOT NULL UNIQUE, hash TEXT NOT NULL UNIQUE)"""
_INDEXES: Final = (
    "CREATE UNIQUE INDEX once ON entries (measurement, kind) WHERE kind <> 'supersede'",
    "CREATE INDEX by_scope ON entries (scope, kind, rho_units)",
)


_SUM: Final = "(SELECT coalesce(sum(rho_units), 0) FROM entries WHERE scope = NEW.scope AND kind IN ({}))"
_CHARGED: Final = "NEW.measurement = measurement AND kind IN ('reserve', 'correct')"
_ASKED: Final = "NEW.measurement = measurement AND kind IN ('reserve', 'correct', 'supersede')"
_CAP: Final = "(SELECT coalesce(sum(rho_units), -1) FROM entries WHERE scope = NEW.scope AND kind = 'open')"

RULES: Final = (  # kinds of entries, why one is refused, when it is
    ("", "append only", f"""NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM entries)
      OR NEW.previous <> coalesce((SELECT hash FROM entries ORDER BY seq DESC LIMIT 1), '{GENESIS}')
      OR EXISTS (SELECT 1 FROM entries WHERE hash = NEW.hash
        OR (measurement = NEW.measurement AND kind = NEW.kind AND kind <> 'supersede'))"""),
    ("'open'", "caps are fixed", "EXISTS (SELECT 1 FROM entries WHERE scope = NEW.scope)"),
    ("'set_aside'", "caps are fixed", "EXISTS (SELECT 1 FROM entries WHERE scope = NEW.scope AND kind = 'set_aside')"),
    ("'reserve', 'set_aside'", "budget exceeded",
     "NEW.rho_units + " + _SUM.format("'reserve', 'set_aside'") + " > " + _CAP),
    ("'reserve'", "series is paused", "EXISTS (SELECT 1 FROM entries WHERE scope = NEW.scope AND kind = 'pause')"),
    ("'correct'", "reserve for corrections exceeded",
     "NEW.rho_units + " + _SUM.format("'correct'") + " > " + _SUM.format("'set_aside'")),
    ("'supersede'", "nothing to supersede", f"""NEW.rho_units <> 0 OR NEW.measured IS NOT NULL
      OR NOT EXISTS (SELECT 1 FROM entries
        WHERE {_CHARGED} AND scope = NEW.scope AND parameters = NEW.parameters)
      OR EXISTS (SELECT 1 FROM entries WHERE measurement = NEW.measurement AND kind = 'commit')"""),
    ("'commit'", "commit without reservation", f"""NOT EXISTS (SELECT 1 FROM entries WHERE {_CHARGED}
        AND scope = NEW.scope AND rho_units = NEW.rho_units AND parameters = NEW.parameters)
      OR NEW.snapshot <> (SELECT snapshot FROM entries WHERE {_ASKED} ORDER BY seq DESC LIMIT 1)"""),
)  # fmt: skip
"""What the database refuses, whoever writes. Reserved counts as spent, and what is set aside for corrections too."""


class LedgerBroken(RuntimeError):
    """The ledger does not verify or cannot be read; the message holds file, entry numbers and windows only."""


class Refused(RuntimeError):
    """A rule of the database forbids this entry; the message is the rule's."""


_NOT_THE_CONTENT: Final = {
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
}  # fmt: skip
"""What is wrong around the file. Anything else that SQLite cannot do is the file's content: its schema, its format."""

Execute = Callable[..., list[tuple[Any, ...]]]
"""`execute(sql, parameters=())`: rows, or none; `?` stands for a parameter."""


class Store(Protocol):
    def altered_rules(self) -> list[str]:
        """Names of what the database should enforce or hold and lacks, has otherwise, has switched off, or has besides."""
        ...

    def read(self) -> AbstractContextManager[Execute]: ...

    def write(self) -> AbstractContextManager[Execute]:
        """One transaction in which nobody else appends: all of it is kept, or nothing."""
        ...


def _refused() -> Iterator[tuple[str, str]]:
    """Message and full condition of each rule, in order."""
    for kinds, message, wrong in RULES:
        yield message, f"NEW.kind IN ({kinds}) AND ({wrong})" if kinds else f"({wrong})"


def _triggers_of_sqlite() -> Iterator[str]:
    checks = "".join(f"SELECT RAISE(ABORT, '{message}') WHERE {wrong}; " for message, wrong in _refused())
    yield f"CREATE TRIGGER rules BEFORE INSERT ON entries BEGIN {checks} END"
    for verb in ("UPDATE", "DELETE"):
        yield f"CREATE TRIGGER no_{verb} BEFORE {verb} ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END"


def _functions_of_postgres() -> dict[str, str]:
    """Bodies of the triggers' functions by name."""
    # Each statement of the function sees what was committed before it ran, so the lock comes first.
    checks = "".join(f"IF {wrong} THEN RAISE EXCEPTION '{message}'; END IF; " for message, wrong in _refused())
    return {
        "check_entry": f" BEGIN PERFORM pg_advisory_xact_lock({_LOCK}); {checks} RETURN NEW; END ",
        "refuse": " BEGIN RAISE EXCEPTION 'append only'; END ",
    }


_OF_POSTGRES: Final = {  # trigger: when, and its function; in the words in which PostgreSQL repeats them
    "rules": ("BEFORE INSERT ON entries FOR EACH ROW", "check_entry"),
    "no_change": ("BEFORE DELETE OR UPDATE ON entries FOR EACH ROW", "refuse"),
    "no_truncate": ("BEFORE TRUNCATE ON entries FOR EACH STATEMENT", "refuse"),
}


def _triggers_of_postgres() -> Iterator[str]:
    for name, body in _functions_of_postgres().items():
        yield f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
    for name, (when, function) in _OF_POSTGRES.items():
        yield f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION {function}()"


def _migrate(execute: Execute, version: int, triggers: Iterator[str]) -> None:
    """Bring the table of `version` (0: there is none) to the present one, with every entry as it was."""
    if version > VERSION:
        raise LedgerBroken(
            f"the ledger is of version {version}, this program knows {VERSION}: install a newer one, unless the file is damaged"
        )
    if version == VERSION:
        return
    execute(_TABLE.format(name="entries_new"))
    if version:
        execute("INSERT INTO entries_new SELECT * FROM entries ORDER BY seq")
        execute("DROP TABLE entries")
    execute("ALTER TABLE entries_new RENAME TO entries")
    for statement in (*_INDEXES, *triggers):
        execute(statement)


def _differing(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


class SqliteStore:
    """A file in the confidential zone; safe to use from several processes of one machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                with self.read() as execute:
                    execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # Switching to WAL does not wait for another process that does the same: SQLite's timeout skips it.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        with self.read() as execute:
            if self._version(execute) == VERSION:
                return
        with self.write() as execute:
            _migrate(execute, self._version(execute), _triggers_of_sqlite())
            execute(f"PRAGMA user_version = {VERSION}")

    def _version(self, execute: Execute) -> int:
        ((version,),) = execute("PRAGMA user_version")
        first = execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'")
        return int(version) or len(first)

    def altered_rules(self) -> list[str]:
        schema = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        with closing(sqlite3.connect(":memory:")) as db:
            _migrate(lambda sql, parameters=(): db.execute(sql, parameters).fetchall(), 0, _triggers_of_sqlite())
            expected = dict(db.execute(schema))
        with self.read() as execute:
            return _differing(expected, {str(name): sql for name, sql in execute(schema)})

    @contextmanager
    def read(self) -> Iterator[Execute]:
        db = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)

        def execute(sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
            try:
                return db.execute(sql, parameters).fetchall()
            except sqlite3.IntegrityError as error:
                raise Refused(str(error)) from None
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # Python's own: text that is no UTF-8
                if code & 0xFF in _NOT_THE_CONTENT:
                    raise
                raise LedgerBroken(f"{self.path.name} cannot be read: {type(error).__name__}, code {code}") from None
            except UnicodeDecodeError:
                raise LedgerBroken(f"{self.path.name} cannot be read: its table was damaged") from None

        try:
            execute("PRAGMA synchronous = FULL")
            yield execute
        finally:
            db.close()

    @contextmanager
    def write(self) -> Iterator[Execute]:
        with self.read() as execute:
            execute("BEGIN IMMEDIATE")
            try:
                yield execute
            except BaseException:
                execute("ROLLBACK")
                raise
            execute("COMMIT")


class PostgresStore:
    """A database that several machines share. Its password comes from libpq's own PGPASSFILE or PGPASSWORD."""

    def __init__(self, url: str) -> None:
        self.url = url
        with self.write() as execute:
            if not execute("SELECT to_regclass('ledger_version')")[0][0]:
                execute("CREATE TABLE ledger_version (version INTEGER NOT NULL)")
                execute("INSERT INTO ledger_version VALUES (0)")
            ((version,),) = execute("SELECT version FROM ledger_version")
            _migrate(execute, version, _triggers_of_postgres())
            if version != VERSION:
                execute("UPDATE ledger_version SET version = ?", (VERSION,))

    def altered_rules(self) -> list[str]:
        bodies = _functions_of_postgres()
        expected = {
            name: (f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION {function}()", True, bodies[function])
            for name, (when, function) in _OF_POSTGRES.items()
        }
        with self.read() as execute:
            rows = execute(
                """SELECT tgname, pg_get_triggerdef(t.oid, true), tgenabled IN ('O', 'A'), prosrc
                FROM pg_trigger t JOIN pg_proc p ON p.oid = tgfoid
                WHERE tgrelid = to_regclass('entries') AND NOT tgisinternal"""
            )
        return _differing(expected, {name: tuple(about) for name, *about in rows})

    @contextmanager
    def read(self) -> Iterator[Execute]:
        import psycopg

        with psycopg.connect(self.url, connect_timeout=int(_WAIT_SECONDS)) as db:

            def execute(sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
                try:
                    cursor = db.execute(sql.replace("?", "%s").encode(), parameters or None)
                except (psycopg.errors.RaiseException, psycopg.errors.IntegrityError) as error:
                    raise Refused(error.diag.message_primary) from None
                return cursor.fetchall() if cursor.description else []

            execute("SET synchronous_commit = on")
            yield execute

    @contextmanager
    def write(self) -> Iterator[Execute]:
        with self.read() as execute:
            execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield execute
