"""The analysts' ten questions in the clients they have: DuckDB from the command line, and from Python 1.2, 1.5 and 2.0.

Each client lives in an environment of its own below `.venv-clients`, made once from the package registry.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from assets.contract.city import City
from assets.publication.bundle import publish, stamped
from assets.publication.database import build_database
from assets.publication.guarantee import Guarantee

Frames = dict[str, pd.DataFrame]
ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "analysts.md").read_text()
QUESTIONS = re.findall(r"^### \d+\. .*?```sql\n(.*?)```", TEXT, flags=re.DOTALL | re.MULTILINE)
ASK = """
import duckdb, json, sys
with duckdb.connect("city_health.duckdb", read_only=True) as con:
    answers = [con.execute(sql).fetchall() for sql in json.loads(sys.argv[1])]
print(json.dumps([duckdb.__version__, answers], default=str))
"""


def _environment(requirement: str) -> Path:
    """The `bin` folder of an environment with that package. Where CI promises a registry, a missing one fails."""
    folder = ROOT / ".venv-clients" / requirement
    if not (folder / "made").exists():
        pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
        for command in ([sys.executable, "-m", "venv", "--clear", folder], pip):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                assert "registry" not in os.environ.get("DIGITALSTADT_EXPECT", ""), done.stderr
                pytest.skip(f"{requirement} cannot be installed here")
        (folder / "made").touch()
    return folder / "bin"


@pytest.fixture(scope="module")
def open_data(frames: Frames, city: City, plan: Guarantee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clients")
    done = publish(frames, city, root, date(2025, 12, 28), plan)
    build_database(stamped(frames, done), city, root / "city_health.duckdb", plan)
    return root


@pytest.fixture(scope="module")
def wanted(open_data: Path) -> list[list[Any]]:
    """Answers of the DuckDB that made the file, as JSON has them."""
    with duckdb.connect(str(open_data / "city_health.duckdb"), read_only=True) as con:
        answers = [con.execute(sql).fetchall() for sql in QUESTIONS]
    assert len(answers) == 10 and all(answers)
    return list(json.loads(json.dumps(answers, default=str)))


def _same(got: list[Any], wanted: list[Any]) -> None:
    """Equal row by row; the command line writes 128-bit whole numbers as text."""
    for rows, right in zip(got, wanted, strict=True):
        for row, values in zip(rows, right, strict=True):
            for a, b in zip(row, values, strict=True):
                assert (float(a) == pytest.approx(b, rel=1e-9)) if isinstance(b, int | float) else a == b


@pytest.mark.parametrize("version", ["1.2.2", "1.5.5", "2.0.1"])
def test_python_answers_the_ten_questions(open_data: Path, wanted: list[list[Any]], version: str) -> None:
    python = _environment(f"duckdb=={version}") / "python"
    done = subprocess.run([python, "-c", ASK, json.dumps(QUESTIONS)], cwd=open_data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, answers = json.loads(done.stdout)
    assert found == version
    _same(answers, wanted)


def test_the_command_line_answers_the_ten_questions(open_data: Path, wanted: list[list[Any]]) -> None:
    client = _environment("duckdb-cli==1.5.5") / "duckdb"
    for sql, right in zip(QUESTIONS, wanted, strict=True):
        command = [client, "-readonly", "-json", "city_health.duckdb", "-c", sql]
        done = subprocess.run(command, cwd=open_data, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        _same([[list(row.values()) for row in json.loads(done.stdout)]], [right])


def test_the_polars_example_runs(open_data: Path, frames: Frames) -> None:
    python = _environment("polars==2.1.0") / "python"
    (code,) = re.findall(r"^polars:\n```\n(.*?)```", TEXT, flags=re.DOTALL | re.MULTILINE)
    code = code.replace("(pl.scan", "found = (pl.scan") + "\nprint(found.height)\n"
    done = subprocess.run([python, "-c", code], cwd=open_data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weeks = frames["cases_by_area"].query("time_level == 'week' and measure == 'count' and area_key.isna()")
    assert int(done.stdout) == len(weeks)
