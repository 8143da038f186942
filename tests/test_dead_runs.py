"""A run that was killed with everything around it does not stop the nights after it; one that lives is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import dagster as dg
import pytest

from assets.contract.city import DEFAULT_CITY, City
from assets.lake.lake import Lake
from pipelines import dead_runs
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment
from pipelines.watch import watch

ROOT = Path(__file__).resolve().parents[1]
DAY = date(2024, 12, 30)
STARTED = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])


def test_only_a_run_whose_process_is_gone_is_ended_and_then_told(
    lake: Lake, city: City, tmp_path: Path, deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "dagster"
    home.mkdir()
    deliver("praxisnetz", DAY, {"practice.csv": "case_id;patient_id\n"})
    site = Environment("test", DEFAULT_CITY, lake.root, tmp_path / "keys")
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(home), "DIGITALSTADT_DATA": str(lake.root),
        "DIGITALSTADT_KEYS": str(tmp_path / "keys"), "DIGITALSTADT_CITY": str(DEFAULT_CITY),
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "digitalstadt"), "run", "--day", str(DAY)]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (found := instance.get_runs(STARTED)):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGSTOP)  # it lives, however long it takes
        monkeypatch.setattr(dead_runs, "QUIET_SECONDS", -1)
        assert dead_runs.end_dead_runs(instance, site, city, JOB) == []
        running.kill()
        running.wait()
        monkeypatch.setattr(dead_runs, "QUIET_SECONDS", 60)
        assert dead_runs.end_dead_runs(instance, site, city, JOB) == [], "it may just be about to end"
        monkeypatch.setattr(dead_runs, "QUIET_SECONDS", -1)
        assert dead_runs.end_dead_runs(instance, site, city, "another_job") == []
        assert dead_runs.end_dead_runs(instance, site, city.model_copy(update={"key": "elsewhere"}), JOB) == []
        assert instance.get_runs(STARTED) == found
        watch(instance, site, city, JOB)
        assert [(r.run_id, r.status.value) for r in instance.get_runs()] == [(found[0].run_id, "FAILURE")]


def test_the_command_line_ends_dead_runs_too(lake: Lake, city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rich.console import Console

    from pipelines import runner

    site = Environment("test", DEFAULT_CITY, lake.root, tmp_path / "keys")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(dead_runs, "QUIET_SECONDS", -1)
    with dg.DagsterInstance.get() as instance:
        dead = instance.create_run_for_job(
            build_definitions(site).resolve_job_def(JOB), status=dg.DagsterRunStatus.STARTED, tags={"city": city.key}
        )
        assert runner.execute(site, DAY, DAY, Console(quiet=True)).success
        run = instance.get_run_by_id(dead.run_id)
        assert run and run.status == dg.DagsterRunStatus.FAILURE


def test_jobs_without_a_lease_are_ended_by_dagster(city: City, tmp_path: Path):
    jobs = build_definitions(Environment("test", DEFAULT_CITY, tmp_path, tmp_path)).get_repository_def().get_all_jobs()
    short = {job.name for job in jobs if "dagster/max_runtime" in job.tags}
    assert short == {job.name for job in jobs} - {JOB, "__ASSET_JOB"}
