"""The project and its data may lie under any path: a user's folder has a space, an apostrophe, a bracket."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from assets.lake import engine

ROOT = Path(__file__).resolve().parents[1]
ODD = "Städtische Daten [neu] :x: 'a' [/b]/x"
COMMAND = str(Path(sys.executable).parent / "digitalstadt")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir(parents=True)
    return folder


def test_make_prepares_dagsters_home_where_the_project_lies_under_an_odd_path(odd: Path):
    for name in ("Makefile", "dagster.yaml", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, odd)
    ours = ("DAGSTER_HOME", "DIGITALSTADT_DATA", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # set by the `make test` around us
    outside = {name: value for name, value in os.environ.items() if name not in ours}
    subprocess.run(["make", "home"], cwd=odd, env=outside, check=True, capture_output=True)
    assert (odd / ".dagster" / "dagster.yaml").read_bytes() == (ROOT / "dagster.yaml").read_bytes()
    shown = subprocess.run(["make", "-n", "run"], cwd=odd, env=outside, check=True, capture_output=True, text=True)
    assert ODD not in shown.stdout, "Make hands a path to the shell, which takes it apart"


def test_the_extension_that_encrypts_is_found_under_an_odd_path(odd: Path, monkeypatch: pytest.MonkeyPatch):
    copy = odd / "httpfs.duckdb_extension"
    shutil.copy(engine._httpfs(), copy)
    monkeypatch.setattr(engine, "_httpfs", lambda: copy)
    assert engine._open((), odd / "spill", "100MB").execute("SELECT current_setting('temp_file_encryption')").fetchone()


def test_days_run_under_an_odd_path_which_is_told_as_it_is(odd: Path, tmp_path: Path):
    env = os.environ | {
        "DAGSTER_HOME": str(odd / "dagster"), "DIGITALSTADT_DATA": str(odd / "data"), "DIGITALSTADT_KEYS": str(odd / "keys"),
        "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    (odd / "dagster").mkdir()

    def told(*arguments: str) -> str:
        ended = subprocess.run([COMMAND, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    assert str(odd / "keys") in told("keys")
    assert f"in {odd / 'data' / 'inbox'}" in told(
        "demo", "--out", str(odd / "data"), "--days", "7", "--patients", "1000"
    )
    assert f"Open data: {odd / 'data' / 'open_data'}" in told("run", "--demo")
