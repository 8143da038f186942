"""The deployment as separate processes on a real PostgreSQL: schedule tick, kill, recovery, release.

Code server, daemon and web server run as in `deploy/`, with its instance and workspace files; storage of Dagster and
the privacy ledger are in PostgreSQL.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import postgres_server
import pytest

from assets.contract.city import DEFAULT_CITY
from assets.lake.lake import Lake
from assets.privacy.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TICK = """
import sys, time
from dagster import DagsterInstance
from dagster._core.scheduler.instigation import ScheduleInstigatorData
with DagsterInstance.get() as instance:
    (state,) = [s for s in instance.all_instigator_state() if s.instigator_type.value == "SCHEDULE"]
    data = ScheduleInstigatorData(state.instigator_data.cron_schedule, time.time() - 26 * 3600)
    instance.update_instigator_state(state.with_data(data))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(what: str, condition: Callable[[], Any], seconds: float, logs: Path) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    tails = "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in sorted(logs.glob("*.log")))
    raise AssertionError(f"{what} did not happen within {seconds} s\n{tails}")


@contextmanager
def process(name: str, command: list[str], env: dict[str, str], logs: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (logs / f"{name}.log").open("ab") as log:
        started = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=logs, start_new_session=True)
    try:
        yield started
    finally:
        try:
            os.killpg(started.pid, signal.SIGTERM)
            started.wait(15)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def as_the_unit_starts_it(port: int) -> list[str]:
    """The command of the code server, from its unit; the image has the same."""
    unit = (ROOT / "deploy" / "systemd" / "digitalstadt-code.service").read_text()
    (command,) = re.findall(r"^ExecStart=\S+/(dagster .*)$", unit, re.MULTILINE)
    image = (ROOT / "deploy" / "Containerfile").read_text()
    assert (
        json.loads(re.findall(r"^CMD (.*)$", image, re.MULTILINE)[-1])
        == command.replace("127.0.0.1", "0.0.0.0").split()
    )
    return [str(BIN / "dagster"), *command.replace("4266", str(port)).split()[1:]]


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.skipif(os.environ.get("DIGITALSTADT_FAULTS") != "all", reason="minutes: DIGITALSTADT_FAULTS=all, as `make faults` sets")  # fmt: skip
@pytest.mark.skipif(postgres_server.binaries() is None, reason="the Debian package postgresql is not installed")
def test_a_tick_makes_a_release_though_run_daemon_and_code_server_are_killed(
    tmp_path: Path, small_export: Callable[..., Any]
):
    yesterday = date.today() - timedelta(1)
    days = [yesterday - timedelta(1), yesterday]
    logs, home = tmp_path / "logs", tmp_path / "home"
    for folder in (logs, home):
        folder.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server.server())
        ledger = postgres_server.schema_url(server, "ledger")
        text = DEFAULT_CITY.read_text(encoding="utf-8")
        text = re.sub(r"(?m)^start: .*$", f"start: {days[0]}", text)
        text = re.sub(r"(?m)^freeze_lag_days: .*$", "freeze_lag_days: 0", text) + f'\nledger: "{ledger}"\n'
        (tmp_path / "city.yaml").write_text(text, encoding="utf-8")
        instance = (ROOT / "deploy" / "dagster.yaml").read_text()
        (home / "dagster.yaml").write_text(instance.replace("poll_interval_seconds: 15", "poll_interval_seconds: 3"))
        port, web = free_port(), free_port()
        workspace = (ROOT / "deploy" / "workspace.yaml").read_text().replace("4266", str(port))
        (home / "workspace.yaml").write_text(workspace)
        env = os.environ | {
            "DAGSTER_HOME": str(home), "DAGSTER_COMPUTE_LOGS": str(home), "DIGITALSTADT_CODE_HOST": "127.0.0.1",
            "DAGSTER_POSTGRES_URL": server.replace("postgresql://", "postgresql+psycopg2://"), "PYTHONPATH": str(ROOT),
            "DIGITALSTADT_CITY": str(tmp_path / "city.yaml"), "DIGITALSTADT_DATA": str(tmp_path / "data"),
            "DIGITALSTADT_KEYS": str(tmp_path / "keys"), "DIGITALSTADT_UNATTENDED": "0",
        }  # fmt: skip
        subprocess.run([BIN / "digitalstadt", "keys"], env=env, check=True, capture_output=True)
        lake = Lake.open(tmp_path / "data", tmp_path / "keys")
        for day in days:
            folder = lake.inbox / "klinik-nord" / str(day)
            folder.mkdir(parents=True)
            for name, rows in small_export(day, [f"CANARY-{n}" for n in range(40)]).items():
                (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
            (folder / "_COMPLETE").touch()

        code = as_the_unit_starts_it(port)
        with process("code-broken", code, env | {"DIGITALSTADT_CITY": str(tmp_path / "no.yaml")}, logs) as broken:
            assert broken.wait(120) not in (0, None), (
                "the service manager starts it again, until the city file is right"
            )
        serving = stack.enter_context(process("code", code, env, logs))
        health = [BIN / "dagster", "api", "grpc-health-check", "--port", str(port)]
        wait_for("the code server", lambda: subprocess.run(health, env=env, capture_output=True).returncode == 0, 120, logs)  # fmt: skip
        place = ["-w", str(home / "workspace.yaml")]
        webserver = [str(BIN / "dagster-webserver"), "-h", "127.0.0.1", "-p", str(web), "--read-only", *place]
        stack.enter_context(process("web", webserver, env, logs))
        for kind, name in (("schedule", "nightly"), ("sensor", "alerts")):
            start = [BIN / "dagster", kind, "start", name, *place]
            started = subprocess.run(start, env=env, capture_output=True, text=True)
            assert started.returncode == 0, started.stdout + started.stderr
        missed = subprocess.run([sys.executable, "-c", TICK], env=env, capture_output=True, text=True)
        assert missed.returncode == 0, missed.stderr

        daemon = [str(BIN / "dagster-daemon"), "run", *place]
        with process("daemon", daemon, env, logs) as first:

            def worker() -> int | None:
                try:
                    return int(json.loads((lake.root / ".lease").read_text())["process"])
                except (OSError, ValueError):
                    return None

            victim = wait_for("the run of the tick", worker, 150, logs)
            os.killpg(first.pid, signal.SIGKILL)
            os.killpg(serving.pid, signal.SIGKILL)
            os.kill(victim, signal.SIGKILL)
        stack.enter_context(process("code-again", code, env, logs))
        stack.enter_context(process("daemon-again", daemon, env, logs))

        database = lake.open_data / "city_health.duckdb"
        wait_for("the release", database.exists, 400, logs)  # the sensor looks every two minutes
        wait_for("the web server", lambda: ready(f"http://127.0.0.1:{web}/server_info"), 60, logs)
        book = Ledger(ledger)
        assert book.verify() == []
        measured = {m for m in book.committed() if m.startswith("day:")}
        assert measured == {f"day:{d}:1" for d in days}
        dump = subprocess.run(
            ["pg_dump", server], capture_output=True, check=True, env=env, text=True, errors="replace"
        ).stdout
        assert "daily_run" in dump and "CANARY" not in dump, "Dagster's storage holds no value of a person"
        canaries = [p for f in (logs, home) for p in f.rglob("*") if p.is_file() and b"CANARY" in p.read_bytes()]
        assert canaries == []


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_units_are_accepted(tmp_path: Path):
    for unit in (ROOT / "deploy" / "systemd").glob("*.service"):
        text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    units = sorted(map(str, tmp_path.glob("*.service")))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
