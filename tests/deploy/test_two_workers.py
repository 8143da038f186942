"""Two machines, one data root, one ledger in PostgreSQL: every measurement is drawn once, and nothing differs from one worker.

The workers are processes of their own whose file system keeps no locks (`flock` does nothing), as a shared folder
without a lock server: what keeps them apart is the database alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import postgres_server
import pytest

from assets.contract.city import DEFAULT_CITY, load_city
from assets.contract.schemas import BOUNDING_DECISIONS, EVENTS, PSEUDONYMISED_CASES
from assets.lake.database_lock import LeaseLost, database_lock, require
from assets.lake.keys import create_keys
from assets.lake.lake import Lake
from assets.lake.lease import DataRootBusy
from assets.privacy.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
START = date(2024, 12, 30)
DAYS = [START + timedelta(n) for n in range(4)]
WORKER = """
import fcntl, json, sys, time
from pathlib import Path
fcntl.flock = lambda handle, how: None
import dagster as dg
from assets.privacy import measure
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment
me, root, runs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
def draw(values, variance):
    with (root / f"drawn-{me}").open("a") as log:
        log.write("x\\n")
    time.sleep(0.02)
    return list(values)
measure.draw = draw
environment = Environment("test", root / "city.yaml", root / "data", root / "keys", unattended=False)
job = build_definitions(environment).resolve_job_def(JOB)
print("ready", flush=True)
while not (root / "go").exists():
    time.sleep(0.01)
for first, last in runs:
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance, tags=tags).success
"""
HOLD = "import sys, time; from assets.lake.database_lock import database_lock\nwith database_lock(sys.argv[1], 'the other run'):\n print('held', flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if postgres_server.binaries() is None:
        pytest.skip("no PostgreSQL at hand: install the Debian package postgresql")
    with postgres_server.server() as url:
        yield url


def _site(root: Path, ledger: str, small_export: Callable[..., Any]) -> Lake:
    """A data root with some days of exports; a patient withdraws on the way."""
    text = DEFAULT_CITY.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^freeze_lag_days: .*$", "freeze_lag_days: 1", text) + f'\nledger: "{ledger}"\n'
    (root / "city.yaml").write_text(text, encoding="utf-8")
    lake = Lake.open(root / "data", root / "keys")
    names = [f"patient-{n}" for n in range(30)]
    for number, day in enumerate(DAYS):
        folder = lake.inbox / "klinik-nord" / str(day)
        folder.mkdir(parents=True)
        gone = ("patient-3",) if number == 2 else ()
        for name, rows in small_export(day, names[number : number + 20], gone).items():
            (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
        (folder / "_COMPLETE").touch()
    return lake


def _work(root: Path, plans: list[list[list[date]]]) -> None:
    """Let workers do their runs at the same time."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(n), str(root), json.dumps([[str(days[0]), str(days[-1])] for days in plan])],
            env=env, stdout=subprocess.PIPE, stderr=(root / f"err-{n}").open("w"), text=True, cwd=root,
        )
        for n, plan in enumerate(plans)
    ]  # fmt: skip
    for n, worker in enumerate(workers):
        assert worker.stdout and worker.stdout.readline() == "ready\n", (root / f"err-{n}").read_text()[-2000:]
    (root / "go").touch()
    for n, worker in enumerate(workers):
        assert worker.wait(300) == 0, (root / f"err-{n}").read_text()[-3000:]


def _drawn(root: Path) -> list[int]:
    return [len(p.read_text().splitlines()) for p in sorted(root.glob("drawn-*"))]


def test_two_workers_race_for_the_same_days(
    tmp_path: Path, server: str, small_export: Callable[..., Any], run_days: Callable[..., None], no_noise: None
):
    create_keys(tmp_path / "two" / "keys")
    shutil.copytree(tmp_path / "two" / "keys", tmp_path / "one" / "keys")
    urls = {name: postgres_server.schema_url(server, name) for name in ("one", "two")}
    lakes = {name: _site(tmp_path / name, url, small_export) for name, url in urls.items()}
    twice = [DAYS[:2], DAYS[2:]]
    for days in twice:  # in this process, which has loaded everything already
        run_days(lakes["one"], load_city(tmp_path / "one" / "city.yaml"), days)
    _work(tmp_path / "two", [twice, twice])
    books = {name: Ledger(url) for name, url in urls.items()}
    assert [book.verify() for book in books.values()] == [[], []]
    found = {name: {m: c.values for m, c in book.committed().items()} for name, book in books.items()}
    assert found["one"] == found["two"] and len(found["one"]) >= 2 * len(DAYS[:-1])
    assert sum(_drawn(tmp_path / "two")) == len(found["two"]), "every measurement is drawn once"
    for table, schema in (("cases", PSEUDONYMISED_CASES), ("events", EVENTS), ("bounding", BOUNDING_DECISIONS)):
        one, two = (lake.read(table, schema) for lake in lakes.values())
        assert one.num_rows and one.equals(two), table
    assert lakes["one"].days("events") == lakes["two"].days("events")


@pytest.fixture
def holder(server: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, server], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_worker_is_refused_and_told_who_works(holder: subprocess.Popen[str], server: str):
    with pytest.raises(DataRootBusy, match=rf"/{holder.pid} the other run, since"), database_lock(server, "x"):
        pass


def test_a_killed_worker_leaves_no_lease(holder: subprocess.Popen[str], server: str):
    holder.send_signal(signal.SIGKILL)
    with database_lock(server, "x", wait_seconds=20), database_lock(server, "nested in the same process"):
        require(server)


def test_cities_that_share_a_database_do_not_share_a_lease(holder: subprocess.Popen[str], server: str):
    with database_lock(postgres_server.schema_url(server, "elsewhere"), "x"):
        assert holder.poll() is None


def test_who_lost_the_connection_stops(server: str):
    import psycopg

    with database_lock(server, "x"):
        require(server)
        with psycopg.connect(server, autocommit=True) as db:
            db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '% x'")
            time.sleep(0.2)
        with pytest.raises(LeaseLost, match="another may write by now"):
            require(server)


def test_a_database_that_does_not_answer_is_said_so():
    with pytest.raises(DataRootBusy, match="does not answer"), database_lock("postgresql://nobody@127.0.0.1:1/x", "x"):
        pass
