"""Killed at any step or run twice at once: one value for each name, paid once, published as committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TRIALS = Path(__file__).with_name("crash_trials.py")
ROOT = TRIALS.parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: processes are killed here, not machines, and syncing is slow."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


def trials(mode: str, folder: Path, server: str | None = None) -> list[tuple[int, list[str]]]:
    """Exit code and violations of each trial."""
    done = subprocess.run(
        [sys.executable, str(TRIALS), mode, str(folder)], capture_output=True, text=True, timeout=400, check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'audit'}"} | ({"CRASH_TRIALS_SERVER": server} if server else {}), cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_kill_at_every_single_step_leaves_one_value_for_each_name(folder: Path):
    results = trials("every step", folder)
    assert [(n, found) for n, (_, found) in enumerate(results, start=1) if found] == []
    assert len(results) > 60, "reserving, drawing, committing and publishing eight measurements has more steps"


def test_publishing_before_the_commit_is_caught_by_the_same_check(folder: Path):
    caught = [n for n, (_, found) in enumerate(trials("published too early", folder)) if "published with" in str(found)]
    assert len(caught) >= 5


def test_two_processes_at_once_draw_and_pay_once(folder: Path):
    assert trials("together", folder) == [[0, []]] * 25


def test_one_process_killed_while_another_works(folder: Path):
    assert trials("together, one killed", folder) == [[0, []]] * 25


def test_a_kill_at_any_step_on_postgresql(folder: Path, postgres: str):
    results = trials("every seventh step", folder, postgres)
    assert [found for _, found in results if found] == []
    assert len(results) > 10, "make audit tries every single step"
