"""A PostgreSQL server for tests: started from Debian's package as a user without rights, on loopback, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

USER = "postgres"


def binaries() -> Path | None:
    """Folder of the newest installed server, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _run(*command: str | Path) -> None:
    as_other = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []  # the server refuses to run as root
    subprocess.run([*as_other, *map(str, command)], check=True, capture_output=True, cwd="/", timeout=120)


@contextmanager
def server() -> Iterator[str]:
    """URL of a new server that is gone afterwards. Needs `binaries()`."""
    bin_folder = binaries()
    assert bin_folder
    folder = Path(tempfile.mkdtemp(prefix="ledger-pg-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        _run(bin_folder / "initdb", "-D", folder / "data", "-U", USER, "-A", "trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        _run(bin_folder / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        finally:
            _run(bin_folder / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def schema_url(url: str, schema: str) -> str:
    """`url` with a schema of its own: an empty database for a test, without the time that a database takes."""
    import psycopg

    with psycopg.connect(url) as db:
        db.execute(f'CREATE SCHEMA "{schema}"'.encode())
    return f"{url}?options={quote(f'-c search_path={schema}')}"
