"""The sealed DuckDB connection: no network, no extension from outside, no file beyond the given folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa


def connect(folders: Iterable[Path] = ()) -> duckdb.DuckDBPyConnection:
    """An in-memory connection that may read `folders` only. It never sees the encrypted zone: `Lake.read` does."""
    con = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    con.execute("SET enable_progress_bar = false")
    con.execute("SET TimeZone = 'UTC'")
    settings: list[tuple[str, Any]] = [
        ("allowed_directories", [f"{folder.resolve()}/" for folder in folders]),
        ("allow_community_extensions", False),
        ("enable_external_access", False),
        ("lock_configuration", True),
    ]
    for name, value in settings:
        con.execute(f"SET {name} = ?", [value])
    return con


def load(con: duckdb.DuckDBPyConnection, **tables: pa.Table) -> None:
    """Copy Arrow tables into temporary tables under their names.

    DuckDB takes a registered Arrow table for one row and joins two large ones to a cross product first; of its
    own tables it knows the size.
    """
    for name, table in tables.items():
        con.register(f"arrow_{name}", table)
        con.execute(f'CREATE TEMP TABLE "{name}" AS SELECT * FROM "arrow_{name}"')
        con.unregister(f"arrow_{name}")
