"""A run that was killed with everything around it does not stop the nights after it; one that lives is left alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from assets.contract.city import DEFAULT_CITY, City
from assets.lake.lake import Lake
from assets.lake.lease import FILE, DataRootBusy
from assets.resources import CITY_TAG
from pipelines import dead_runs
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment
from pipelines.watch import ended_runs, watch

ROOT = Path(__file__).resolve().parents[1]
DAY = date(2024, 12, 30)
MARKED = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags={CITY_TAG: "darmstadt"})


COMMANDS = {
    "daily_run": ("digitalstadt", "run", "--day", str(DAY)),
    "__ASSET_JOB": ("dagster", "asset", "materialize", "-m", "pipelines.definitions", "--select", "*", "--partition", str(DAY)),
}  # fmt: skip
"""What starts a run of the job; the second as *Materialize* and *Backfill* in the UI do, without any tag of ours."""


def _holder(root: Path) -> str:
    return (root / FILE).read_text() if (root / FILE).is_file() else ""


def _stopped_at_rest(running: subprocess.Popen[bytes], databases: list[Path]) -> None:
    """Stop the process where it holds none of Dagster's databases: nobody else could look until it goes on."""
    while True:
        running.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            for path in databases:
                with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
                    connection.execute("BEGIN EXCLUSIVE")
                    connection.execute("ROLLBACK")
            return
        except sqlite3.OperationalError:
            running.send_signal(signal.SIGCONT)
            time.sleep(0.05)


@pytest.mark.parametrize("job", COMMANDS)
def test_only_a_run_whose_process_is_gone_is_ended_and_then_told(
    job: str, lake: Lake, city: City, tmp_path: Path, deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "dagster"
    home.mkdir()
    deliver("praxisnetz", DAY, {"practice.csv": "case_id;patient_id\n"})
    site = Environment("test", DEFAULT_CITY, lake.root, tmp_path / "keys")
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(home), "DIGITALSTADT_DATA": str(lake.root),
        "DIGITALSTADT_KEYS": str(tmp_path / "keys"), "DIGITALSTADT_CITY": str(DEFAULT_CITY),
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / COMMANDS[job][0]), *COMMANDS[job][1:]]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert not instance.get_runs() and not instance.event_log_storage.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.RUN_SUCCESS)
        ), "the databases are there, so that nobody creates them twice"
        running = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 180
        while not (found := instance.get_runs(MARKED)) or "run " not in _holder(lake.root):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        _stopped_at_rest(running, [*home.rglob("*.db")])  # it lives, however long it takes
        assert found[0].job_name == job
        monkeypatch.setattr(dead_runs, "QUIET_SECONDS", -1)
        assert dead_runs.end_dead_runs(instance, site, city) == []
        running.kill()
        running.wait()
        monkeypatch.setattr(dead_runs, "QUIET_SECONDS", 60)
        assert dead_runs.end_dead_runs(instance, site, city) == [], "it may just be about to end"
        monkeypatch.setattr(dead_runs, "QUIET_SECONDS", -1)
        assert dead_runs.end_dead_runs(instance, site, city.model_copy(update={"key": "elsewhere"})) == []
        assert instance.get_runs(MARKED) == found
        before = datetime.now(UTC) - timedelta(minutes=1)
        watch(instance, site, city)
        told = [r.dagster_run.run_id for r in ended_runs(instance, before, datetime.now(UTC), city)]
        assert told == [found[0].run_id]
        assert [(r.run_id, r.status.value) for r in instance.get_runs()] == [(found[0].run_id, "FAILURE")]


def test_the_command_line_ends_dead_runs_too(lake: Lake, city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rich.console import Console

    from pipelines import runner

    site = Environment("test", DEFAULT_CITY, lake.root, tmp_path / "keys")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(dead_runs, "QUIET_SECONDS", -1)
    with dg.DagsterInstance.get() as instance:
        dead = instance.create_run_for_job(
            build_definitions(site).resolve_job_def(JOB), status=dg.DagsterRunStatus.STARTED, tags={CITY_TAG: city.key}
        )
        assert runner.execute(site, DAY, DAY, Console(quiet=True)).success
        run = instance.get_run_by_id(dead.run_id)
        assert run and run.status == dg.DagsterRunStatus.FAILURE


def test_a_second_run_does_not_touch_the_history_of_the_first(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two that created Dagster's databases at once failed with "database is locked", two of ten pairs."""
    from rich.console import Console

    from pipelines import runner

    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    holds = """import sys, pathlib, assets.lake.lease as it
with it.lease(pathlib.Path(sys.argv[1]), "the first"):
    print(flush=True)
    input()"""
    command = [sys.executable, "-c", holds, str(lake.root)]
    first = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout and first.stdout.readline()
    with pytest.raises(DataRootBusy, match="in use by the first"):
        runner.execute(Environment("test", DEFAULT_CITY, lake.root, tmp_path / "keys"), DAY, DAY, Console(quiet=True))
    assert not [*home.iterdir()]
    first.communicate(b"\n")


def test_jobs_without_a_lease_are_ended_by_dagster(city: City, tmp_path: Path):
    jobs = build_definitions(Environment("test", DEFAULT_CITY, tmp_path, tmp_path)).get_repository_def().get_all_jobs()
    short = {job.name for job in jobs if "dagster/max_runtime" in job.tags}
    assert short == {job.name for job in jobs} - {JOB, "__ASSET_JOB"}
