"""What `make run` calls, called twice as a user does: the second time finds everything done and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assets.contract.city import City
from assets.privacy.ledger import Ledger
from pipelines.demo.generate import generate_once

ROOT = Path(__file__).resolve().parents[1]


def _published(data: Path) -> dict[str, bytes]:
    root = data / "open_data"
    files = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: content for name, content in files.items() if not name.endswith(".duckdb")}


def _ledger(data: Path) -> dict[str, Any]:
    ledger = Ledger(data / "confidential" / "ledger.sqlite")
    return {"windows": ledger.windows(), "committed": ledger.committed()}


def test_the_main_command_twice(tmp_path: Path):
    data = tmp_path / "data"
    env = os.environ | {"DIGITALSTADT_DATA": str(data), "DAGSTER_HOME": str(tmp_path / "dagster")}
    (tmp_path / "dagster").mkdir()

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments], env=env, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout

    def main_command() -> tuple[str, str]:
        call("keys")
        made = call("demo", "--out", str(data), "--patients", "1000", "--days", "7")
        return made, call("run", "--demo")

    first = main_command()
    published, ledger = _published(data), _ledger(data)
    assert len(published) > 5
    second = main_command()
    assert second[0] == first[0], "the same demo city is not generated again"
    assert _published(data) == published
    assert _ledger(data) == ledger
    assert "Expected and actual error" in second[1]


def test_a_demo_is_whole_or_not_there_and_overwrites_nothing(tmp_path: Path, city: City):
    (tmp_path / "demo.partial" / "inbox").mkdir(parents=True)  # of a demo that was interrupted
    (tmp_path / "truth").mkdir()
    made = generate_once(tmp_path, city, 1_000, 7, 5, 0.0)
    assert not (tmp_path / "demo.partial").exists()
    assert generate_once(tmp_path, city, 1_000, 7, 5, 0.0) == made
    with pytest.raises(FileExistsError, match="another demo city"):
        generate_once(tmp_path, city, 1_000, 8, 5, 0.0)
    (tmp_path / "truth" / "summary.json").unlink()
    with pytest.raises(FileExistsError, match="not of a demo"):
        generate_once(tmp_path, city, 1_000, 7, 5, 0.0)
