"""Real `digitalstadt run` processes: killed at random moments, and two at once on one data root.

Noise stays as it is, so a twin is compared by what was measured over which snapshot and for how much, by every
stored row, and by the cells that are published. Two kills in the suite, `DIGITALSTADT_KILLS` of them in `make faults`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS, CONSENT_DECISIONS, EVENTS, PSEUDONYMISED_CASES
from assets.lake import audit
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "digitalstadt"
START = date(2024, 12, 30)
LAST = START + timedelta(14)
KILLS = int(os.environ.get("DIGITALSTADT_KILLS", "2"))
SEED = 20250301
TABLES = {"cases": PSEUDONYMISED_CASES, "events": EVENTS, "bounding": BOUNDING_DECISIONS, "consent_decisions": CONSENT_DECISIONS}  # fmt: skip


@contextmanager
def running(site: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of all days, as it works: it has the data root."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DAGSTER")}
    env = kept | {"DIGITALSTADT_DATA": str(site / "data"), "DIGITALSTADT_KEYS": str(site / "keys"), "PYTHONPATH": str(ROOT)}  # fmt: skip
    process = subprocess.Popen(
        [str(PROGRAM), "run", "--from", str(START), "--to", str(LAST), "--json"],
        env=env, cwd=site, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def at_work(site: Path, process: subprocess.Popen[str]) -> None:
    """Wait until `process` holds the data root for its run, and not only to set it up."""
    lease = site / "data" / ".lease"
    while process.poll() is None:
        held = lease.read_text() if lease.exists() else ""
        if f'"process": {process.pid},' in held and '"purpose": "digitalstadt run' in held:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0])


@dataclass
class Twin:
    """A data root that met no fault, how long the work on it took, and what a second run beside it was told."""

    site: Path
    seconds: float
    second: subprocess.Popen[str]
    said: str


@pytest.fixture(scope="module")
def unworked(tmp_path_factory: pytest.TempPathFactory, small_export: Callable[..., Any]) -> Path:
    """Keys and an inbox of three days, the last with a withdrawal."""
    site = tmp_path_factory.mktemp("unworked")
    create_keys(site / "keys")
    for n in range(3):
        day = START + timedelta(n)
        folder = site / "data" / "inbox" / "klinik-nord" / str(day)
        folder.mkdir(parents=True)
        withdrawn = ("p00",) if n == 2 else ()
        for name, rows in small_export(day, [f"p{n}{i}" for i in range(4)], withdrawn=withdrawn).items():
            (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
        (folder / "_COMPLETE").touch()
    return site


@pytest.fixture(scope="module")
def twin(unworked: Path, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """The undisturbed run; it pauses once, while a second one begins on the same data root."""
    site = tmp_path_factory.mktemp("twin") / "site"
    shutil.copytree(unworked, site)
    with running(site) as first:
        at_work(site, first)
        first.send_signal(signal.SIGSTOP)
        with running(site) as second:
            said = second.communicate()[0]
        first.send_signal(signal.SIGCONT)
        begin = time.monotonic()
        out = first.communicate()[0]
        assert first.returncode == 0, out
        return Twin(site, time.monotonic() - begin, second, f"{first.pid} {said}")


def state(site: Path) -> dict[str, Any]:
    """Every stored row, what was measured over which data and for how much, and the published cells.

    Not the line a row came from: a withdrawal erases raw lines, so a run after it counts fewer before them.
    """
    lake = Lake(site / "data", Keyring.load(site / "keys"))
    ledger = Ledger(lake.ledger_path)
    with ledger.store.read() as execute:
        measured = execute("SELECT measurement, rho_units, snapshot FROM entries WHERE kind = 'commit' ORDER BY 1")
    with duckdb.connect(str(lake.open_data / "city_health.duckdb"), read_only=True) as con:
        cells = con.execute(
            "SELECT COLUMNS('period|area|care|measure|level') FROM cases_by_area ORDER BY ALL"
        ).fetchall()
    return {
        **{
            name: sorted(
                map(str, lake.read(name, schema).select([c for c in schema.names if c != "source_line"]).to_pylist())
            )
            for name, schema in TABLES.items()
        },
        "measured": list(map(tuple, measured)),
        "published": cells,
    }


def problems(site: Path) -> list[str]:
    """What is broken: ledger, audit log, or a published version that is not whole."""
    lake = Lake(site / "data", Keyring.load(site / "keys"))
    found = [*map(str, Ledger(lake.ledger_path).verify()), *map(str, audit.verify(lake))]
    for folder in lake.open_data.glob("*/[0-9]*"):
        done = subprocess.run(["sha256sum", "-c", "--quiet", "checksums.sha256"], cwd=folder, capture_output=True)
        found += [f"{folder.name} is not whole"] if done.returncode else []
    return found


def leftovers(site: Path) -> list[str]:
    """Half-written files that a killed process left anywhere below the data root."""
    return sorted(
        str(p.relative_to(site)) for p in (site / "data").rglob(".*") if p.name not in (".lease",)
    )  # fmt: skip


def test_a_second_run_at_once_is_refused_and_says_by_whom(twin: Twin):
    assert twin.second.returncode == 1
    pid, _, said = twin.said.partition(" ")
    said = " ".join(said.split())
    assert "is in use by digitalstadt run" in said and f"(process {pid}" in said and "nothing was changed" in said
    assert problems(twin.site) == [] and leftovers(twin.site) == []
    assert len(state(twin.site)["measured"]) > 10


HALF = """
import os, signal, sys
from pathlib import Path
from assets.intake import landing
from assets.lake import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
path = Path(sys.argv[1])
landing._without(path, {0: b""}) if path.suffix == ".ndjson" else files.atomic_write(path, b"CANARY")
"""


@pytest.mark.parametrize("place", ["confidential/cases/2024-12-30.parquet", "landing/klinik-nord/{}/Patient.ndjson", "open_data/index.html"])  # fmt: skip
def test_a_half_written_file_of_a_killed_process_is_gone_after_the_next_run(
    lake: Lake, deliver: Callable[..., Path], small_export: Any, prompt_city: City, stages: dict[str, Any], place: str
):
    deliver("klinik-nord", START, small_export(START, ["a", "b"]))
    stages["landed_exports"](lake, prompt_city, [START])
    (landed,) = (
        p.relative_to(lake.landing / "klinik-nord") for p in (lake.landing / "klinik-nord" / str(START)).iterdir()
    )
    path = lake.root / place.format(landed)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", HALF, str(path)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL and len(leftovers(lake.root.parent)) == 1
    stages["landed_exports"](lake, prompt_city, [START])
    assert leftovers(lake.root.parent) == []


def test_killed_at_random_moments_and_run_again_it_ends_where_an_undisturbed_twin_does(
    unworked: Path, twin: Twin, tmp_path: Path
):
    site = tmp_path / "site"
    shutil.copytree(unworked, site)
    moments = random.Random(SEED)
    killed = 0
    for _ in range(KILLS):
        with running(site) as process:
            at_work(site, process)
            time.sleep(twin.seconds * moments.random())
            process.kill()
            process.wait()
            killed += process.returncode == -signal.SIGKILL
        assert problems(site) == []
    assert killed > KILLS / 2, "most kills strike a run that works"
    with running(site) as process:
        out = process.communicate()[0]
        assert process.returncode == 0, out
    assert problems(site) == [] and leftovers(site) == []
    assert state(site) == state(twin.site)
