"""The sealed DuckDB connection: no network, no extension from outside, no file beyond the given folders."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb


def connect(folders: Iterable[Path] = (), encryption_key: bytes | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory connection that may read `folders` only, and encrypted Parquet with `encryption_key`.

    With a key, the httpfs extension is loaded from its installed package: it brings OpenSSL, without
    which DuckDB reads no encrypted file. Its network functions stay closed by `enable_external_access`.
    """
    con = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    con.execute("SET enable_progress_bar = false")
    con.execute("SET TimeZone = 'UTC'")
    if encryption_key is not None:
        import duckdb_extensions

        duckdb_extensions.import_extension("httpfs", con=con)
        con.execute("LOAD httpfs")
        # A PRAGMA takes no prepared parameter; base64 holds no quote.
        con.execute(f"PRAGMA add_parquet_key('lake', '{base64.b64encode(encryption_key).decode()}')")
    settings: list[tuple[str, Any]] = [
        ("allowed_directories", [f"{folder.resolve()}/" for folder in folders]),
        ("allow_community_extensions", False),
        ("enable_external_access", False),
        ("lock_configuration", True),
    ]
    for name, value in settings:
        con.execute(f"SET {name} = ?", [value])
    return con
