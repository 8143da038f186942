"""The sealed DuckDB connection: no network, no extension from outside, no file beyond the given folders.

Here too: how much memory all connections of a process share, and where what exceeds it goes. Spilled rows are
rows of persons, so they go below the confidential zone only, encrypted under a key that DuckDB makes for the
process and never stores. Without such a folder (`spill_into`) nothing is spilled: a query that needs more fails.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from assets.lake.files import make_directory

MEMORY_VARIABLE: Final = "DIGITALSTADT_MEMORY"
ABANDONED_SECONDS: Final = 7 * 24 * 3600
"""After so long nobody on another machine still uses a folder of spilled rows."""
_spill: Path | None = None


def memory_limit() -> str:
    """`$DIGITALSTADT_MEMORY` (`4GB`), else half of the machine or control group; Arrow tables need the other half."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup/memory.max")
    allowed = group.read_text().strip() if group.exists() else "max"
    return (
        os.environ.get(MEMORY_VARIABLE)
        or f"{min(physical, int(allowed) if allowed != 'max' else physical) // 2**21} MiB"
    )


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def spill_folder(folder: Path) -> Path:
    """The folder of this process below the `folder` into which all spill."""
    return folder / f"{socket.gethostname()}-{os.getpid()}"


def spill_into(folder: Path) -> None:
    """Let connections that are opened from now on spill into `folder`, encrypted; remove what dead processes left."""
    global _spill  # noqa: PLW0603 - a process has one lake, and a stage's functions do not know it
    _spill = spill_folder(folder)
    for left in folder.glob("*-[0-9]*"):
        host, _, process = left.name.rpartition("-")
        # A container's name does not come again, and no run takes so long.
        dead = not _runs(int(process)) if host == socket.gethostname() else _age(left) > ABANDONED_SECONDS
        if dead:
            shutil.rmtree(left, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since `path` was last changed; 0 where somebody else has removed it meanwhile."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _httpfs() -> Path:
    """The extension whose OpenSSL encrypts what is spilled; DuckDB alone can only read encrypted files."""
    import duckdb_extension_httpfs

    version = duckdb.execute("PRAGMA version").fetchone()
    folder = Path(duckdb_extension_httpfs.__file__).parent / "extensions" / str((version or ("",))[0])
    return folder / "httpfs.duckdb_extension"


def _open(folders: Iterable[Path], spill: Path | None, memory: str) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    settings: list[tuple[str, Any]] = [
        ("TimeZone", "UTC"),
        ("memory_limit", memory),
        ("temp_directory", str(make_directory(spill)) if spill else ""),
        ("temp_file_encryption", spill is not None),
        ("allowed_directories", [f"{folder.resolve()}/" for folder in folders]),
        ("allow_community_extensions", False),
        ("enable_external_access", False),
        ("lock_configuration", True),
    ]
    if spill:
        extension = str(_httpfs()).replace("'", "''")  # LOAD takes no parameter
        con.execute(f"LOAD '{extension}'")
    for name, value in settings:
        con.execute(f"SET GLOBAL {name} = ?", [value])  # of every connection to this database, not of this one only
    return con


@cache
def _shared(_process: int, spill: Path | None, memory: str) -> duckdb.DuckDBPyConnection:
    """The database of this process whose connections read no file: one memory limit, one loaded extension."""
    return _open((), spill, memory)


def connect(folders: Iterable[Path] = ()) -> duckdb.DuckDBPyConnection:
    """A connection with its own temporary tables that may read `folders` only; its `cursor` is another such one.

    It never sees the encrypted zone: `Lake.read` does.
    """
    folders = list(folders)
    return _open(folders, _spill, memory_limit()) if folders else _shared(os.getpid(), _spill, memory_limit()).cursor()


def give_back() -> None:
    """Return freed memory to the system: otherwise what one step held adds to the next step's peak."""
    pa.default_memory_pool().release_unused()


def rows_of(con: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The rows of `query`, which must have no parameters (with some, DuckDB 1.5 takes ten times as long).

    All threads write the Arrow table; what `execute` returns is copied into one by a single thread.
    """
    return con.sql(query).to_arrow_table()


def load(con: duckdb.DuckDBPyConnection, **tables: pa.Table) -> None:
    """Copy Arrow tables into temporary tables under their names.

    DuckDB estimates a registered Arrow table at one row, and so may plan a cross product of two large ones. It knows
    the size of its own tables.
    """
    for name, table in tables.items():
        con.register(f"arrow_{name}", table)
        con.execute(f'CREATE TEMP TABLE "{name}" AS SELECT * FROM "arrow_{name}"')
        con.unregister(f"arrow_{name}")
