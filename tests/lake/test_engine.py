"""What does not fit into memory: encrypted below the confidential zone, gone afterwards, or not written at all."""

import os
import socket
import time
from pathlib import Path

import duckdb
import pytest

from assets.lake import engine

ROWS = "CREATE TEMP TABLE rows AS SELECT 'CANARY-' || i || '-' || random() AS name FROM range(3000000) t(i)"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engine.MEMORY_VARIABLE, "100MB")
    monkeypatch.setattr(engine, "_spill", None)


def test_spilled_rows_are_encrypted_kept_from_others_and_gone_afterwards(tmp_path: Path):
    engine.spill_into(tmp_path / "spill")
    with engine.connect() as con, engine.connect([tmp_path]) as reader:
        for each in (con, reader):
            each.execute(ROWS)
            assert each.execute("SELECT count(*) FROM (FROM rows ORDER BY name LIMIT 2999999)").fetchone() == (2999999,)
        folders = list((tmp_path / "spill").iterdir())
        files = [f for folder in folders for f in folder.iterdir()]
        assert sum(f.stat().st_size for f in files) > 50_000_000
        assert not [f.name for f in files if b"CANARY" in f.read_bytes()]
        assert {f.stat().st_mode & 0o777 for f in folders} == {0o700}
        con.execute("DROP TABLE rows")
    assert not [f for folder in (tmp_path / "spill").iterdir() for f in folder.iterdir()]


def test_without_a_confidential_folder_nothing_is_spilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with engine.connect() as con, pytest.raises(duckdb.OutOfMemoryException):
        con.execute(ROWS)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_dead_process_are_removed_those_of_a_living_one_stay(tmp_path: Path):
    dead, living = (tmp_path / f"{socket.gethostname()}-{pid}" for pid in (2**22 + 1, os.getppid()))
    for folder in (dead, living):
        folder.mkdir()
        (folder / "x.tmp").touch()
    engine.spill_into(tmp_path)
    assert (dead.exists(), living.exists()) == (False, True)


def test_leftovers_of_a_container_that_is_gone_are_removed_after_a_week(tmp_path: Path):
    """Its name never comes again, so nobody can ask whether its process lives."""
    old, new = tmp_path / "run-7f3a-1", tmp_path / "run-9c2e-1"
    for folder, age in ((old, engine.ABANDONED_SECONDS + 60), (new, 3600)):
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    engine.spill_into(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_connections_share_neither_tables_nor_settings(tmp_path: Path):
    with engine.connect() as one, engine.connect() as two:
        one.execute("CREATE TEMP TABLE mine AS SELECT 1")
        with pytest.raises(duckdb.CatalogException):
            two.execute("FROM mine")
        for con in (one, two):
            with pytest.raises(duckdb.InvalidInputException):
                con.execute("SET temp_directory = '/tmp'")
            with pytest.raises(duckdb.PermissionException):
                con.execute(f"FROM read_text('{tmp_path}/x')")
