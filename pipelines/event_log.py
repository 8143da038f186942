"""Dagster's event log in SQLite over connections that stay open.

Dagster's own opens a database for each event, prepares its statements, and closes it, which makes SQLite check its log
into the file: two fifths of a year's backfill, whose every day has fourteen events. Files and tables are the same, so
one may take the place of the other; drop this once Dagster keeps its connections. Not here: PostgreSQL (`deploy/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from dagster._core.storage.event_log import SqliteEventLogStorage  # its only name: Dagster is pinned to a minor release
from dagster._serdes import ConfigurableClassData

FOLDER: Final = Path("history") / "runs"
"""Where Dagster keeps its event log below its home."""
_KEPT: Final = 2
"""The index over all runs, and the run that is written: a web server reads one after the other."""
_WAIT_SECONDS: Final = 30


class EventLog(SqliteEventLogStorage):
    """What `dagster.yaml` names; `base_dir` is Dagster's home."""

    _engines: dict[str, sqlalchemy.Engine]
    _tables: set[str]

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> EventLog:
        return cls(str(Path(config_value["base_dir"]).expanduser() / FOLDER), inst_data)

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines, self._tables = {}, set()
        super().__init__(base_dir, inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[sqlalchemy.Connection]:
        with self._db_lock, self._engine(shard).begin() as connection:
            yield connection

    def _engine(self, shard: str) -> sqlalchemy.Engine:
        if shard not in self._engines:
            while len(self._engines) >= _KEPT:
                self._engines.pop(next(iter(self._engines))).dispose()
            engine = sqlalchemy.create_engine(
                self.conn_string_for_shard(shard), connect_args={"timeout": _WAIT_SECONDS}
            )
            sqlalchemy.event.listen(engine, "connect", _without_waiting_for_the_disk)
            self._initdb(engine)
            self._engines[shard] = engine
        self._engines[shard] = self._engines.pop(shard)  # the one that was used longest ago goes first
        return self._engines[shard]

    def has_table(self, table_name: str) -> bool:
        """Asked for every event, over a connection of its own; a table that was there stays."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def delete_events(self, run_id: str) -> None:
        """Also removes the file of the run: Dagster leaves it as large as it was."""
        super().delete_events(run_id)
        with self._db_lock:
            if run_id in self._engines:
                self._engines.pop(run_id).dispose()
        shard = Path(self.path_for_shard(run_id))
        for name in (shard.name, f"{shard.name}-wal", f"{shard.name}-shm"):
            shard.with_name(name).unlink(missing_ok=True)

    def wipe(self) -> None:
        self._close()  # files that are removed below an open connection would still be written
        self._tables.clear()
        super().wipe()

    def dispose(self) -> None:
        super().dispose()
        self._close()

    def _close(self) -> None:
        with self._db_lock:
            while self._engines:
                self._engines.popitem()[1].dispose()


def _without_waiting_for_the_disk(connection: Any, _record: object) -> None:
    """A power cut may take the last events along, never the file. What is done stands in the data root."""
    connection.execute("PRAGMA synchronous = NORMAL")
