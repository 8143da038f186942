"""The fault table: each fault at each stage, then a second run. Nothing lost, nothing half, nothing spent twice.

A row is a fault and the stage at which it strikes. After it, the same days run again without it, and the result
has to be that of a twin that never met the fault: same rows, same decisions, same charges, noise switched off.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import postgres_server
import pytest

from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS, CONSENT_DECISIONS, EVENTS, PSEUDONYMISED_CASES
from assets.guard import kind_of
from assets.lake import audit
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import measure as measuring
from assets.privacy.ledger import Ledger, open_ledger

START = date(2024, 12, 30)
SECOND = START + timedelta(1)
STAGES = ("landed_exports", "canonical_records", "consented_records", "validated_records", "pseudonymised_cases",
          "noisy_measurements", "open_data")  # fmt: skip
Run = Callable[[Lake, City, list[date]], None]
long = pytest.mark.skipif(
    os.environ.get("DIGITALSTADT_FAULTS") != "all", reason="minutes: DIGITALSTADT_FAULTS=all, as `make faults` sets"
)


@pytest.fixture(autouse=True)
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed values are exact counts, so that two runs can be compared. Never for a release."""

    def exact(values: list[int], _variance: Fraction) -> list[int]:
        return list(values)

    monkeypatch.setattr(measuring, "draw", exact)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, small_export: Callable[..., Any], prompt_city: City, run_days: Run) -> Path:  # fmt: skip
    """`one/`: a data root and its keys after the first day; `two/`: a twin that ran the second day undisturbed."""
    folder = tmp_path_factory.mktemp("world")
    create_keys(folder / "one" / "keys")
    lake = Lake(folder / "one" / "data", Keyring.load(folder / "one" / "keys"))
    for n in range(3):
        deliver_into(lake, START + timedelta(n), small_export(START + timedelta(n), [f"p{n}{i}" for i in range(3)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "draw", lambda values, _variance: list(values))
        run_days(lake, prompt_city, [START])
        shutil.copytree(folder / "one", folder / "two", symlinks=True)
        run_days(Lake(folder / "two" / "data", Keyring.load(folder / "two" / "keys")), prompt_city, [SECOND])
    return folder


def deliver_into(lake: Lake, day: date, files: dict[str, Any], suffix: str = "") -> None:
    folder = lake.inbox / "klinik-nord" / f"{day}{suffix}"
    folder.mkdir(parents=True)
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "_COMPLETE").touch()


@pytest.fixture
def site(world: Path, tmp_path: Path) -> Lake:
    """A copy of the data root after its first day, with the same keys, and an inbox that holds three days."""
    shutil.copytree(world / "one", tmp_path / "one", symlinks=True)
    return Lake(tmp_path / "one" / "data", Keyring.load(tmp_path / "one" / "keys"))


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> dict[str, Any]:
    return state(Lake(world / "two" / "data", Keyring.load(world / "two" / "keys")))


def published(lake: Lake) -> list[tuple[Any, ...]]:
    path = lake.open_data / "city_health.duckdb"
    if not path.exists():
        return []
    with duckdb.connect(str(path), read_only=True) as con:
        return con.execute("SELECT * EXCLUDE (release_version) FROM cases_by_area ORDER BY ALL").fetchall()


def state(lake: Lake, ledger: Ledger | None = None) -> dict[str, Any]:
    """Everything a run decides, stores, spends and publishes. The only ids in it are those of these keys."""
    tables = {"cases": PSEUDONYMISED_CASES, "events": EVENTS, "bounding": BOUNDING_DECISIONS, "consent_decisions": CONSENT_DECISIONS}  # fmt: skip
    ledger = ledger or Ledger(lake.ledger_path)
    return {
        **{n: sorted(map(str, lake.read(n, s).to_pylist())) for n, s in tables.items()},
        "spent": {m: (c.cost_units, c.values) for m, c in ledger.committed().items()},
        "problems": [*ledger.verify(), *audit.verify(lake)],
        "published": published(lake),
    }


def whole_releases(lake: Lake) -> list[str]:
    """Problems: a release that is not whole, or a leftover among the published files."""
    found = []
    for folder in lake.open_data.glob("*/[0-9]*"):
        sums = (folder / "checksums.sha256").read_text() if (folder / "checksums.sha256").exists() else ""
        done = subprocess.run(["sha256sum", "-c", "--quiet"], cwd=folder, input=sums, text=True, capture_output=True)
        found += [] if sums and done.returncode == 0 else [f"{folder.name} is not whole"]
    return found


class Killed(BaseException):
    """Stands for `kill -9`: nothing handles it, as nothing handles a kill."""


def _failing(monkeypatch: pytest.MonkeyPatch, after: int, error: Callable[[], BaseException]) -> None:
    """Every way in which files come to be fails from the `after`-th time on, as on a full or read-only disk."""
    count = 0

    def strike(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > after:
                raise error()
            return real(*arguments, **named)

        return call

    for name in ("replace", "rename", "fsync"):
        monkeypatch.setattr(os, name, strike(getattr(os, name)))


FAULTS: dict[str, tuple[Callable[[], BaseException], str]] = {
    "killed": (Killed, "Unforeseen"),
    "disk full": (lambda: OSError(errno.ENOSPC, "No space left on device"), "DiskFull"),
    "read-only": (lambda: OSError(errno.EROFS, "Read-only file system"), "NotWritable"),
    "no rights": (lambda: PermissionError(errno.EACCES, "Permission denied"), "NotWritable"),
}


ROWS = [(fault, stage) for fault in FAULTS for stage in STAGES]

SHORT = (("killed", "noisy_measurements"),)


@pytest.mark.parametrize(("fault", "stage"), [pytest.param(*r, marks=[] if r in SHORT else long) for r in ROWS])
def test_a_fault_at_a_stage_is_healed_by_the_next_run(
    site: Lake, undisturbed: dict[str, Any], prompt_city: City, stages: dict[str, Any], run_days: Run,
    monkeypatch: pytest.MonkeyPatch, fault: str, stage: str,
):  # fmt: skip
    error, kind = FAULTS[fault]
    for name, work in stages.items():
        if name != stage:
            work(site, prompt_city, [SECOND])
            continue
        with monkeypatch.context() as patch:
            _failing(patch, 1, error)
            with pytest.raises((Killed, OSError)) as raised:
                work(site, prompt_city, [SECOND])
        assert fault == "killed" or kind_of(raised.value) == kind, "the message says what to do"
        break
    assert whole_releases(site) == [] and state(site)["problems"] == []
    run_days(site, prompt_city, [SECOND])
    assert state(site) == undisturbed
    assert whole_releases(site) == []
    assert not list(site.open_data.rglob(".building-*"))


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """URL of a real PostgreSQL server."""
    if postgres_server.binaries() is None:
        pytest.skip("no PostgreSQL at hand: install the Debian package postgresql")
    with postgres_server.server() as url:
        yield url


LOST = [(s, "execute", n) for s in ("noisy_measurements", "open_data") for n in (1, 3)]
LOST += [("noisy_measurements", "execute", n) for n in (6, 12, 20)] + [
    ("noisy_measurements", "commit", n) for n in (1, 2, 3)
]


@pytest.mark.parametrize(
    ("stage", "call", "nth"), [pytest.param(*r, marks=[] if r[1:] == ("commit", 2) else long) for r in LOST]
)
def test_a_lost_connection_to_the_ledger_spends_nothing_twice(
    world: Path, undisturbed: dict[str, Any], prompt_city: City, stages: dict[str, Any], run_days: Run, database: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: str, nth: int,
):  # fmt: skip
    """The server closes every connection before the n-th statement, or in the middle of a commit, as seen from here."""
    import psycopg

    url = postgres_server.schema_url(database, f"f{uuid.uuid4().hex}")
    city = prompt_city.model_copy(update={"ledger": url})
    shutil.copytree(world / "one" / "data" / "inbox", tmp_path / "data" / "inbox")
    shutil.copytree(world / "one" / "keys", tmp_path / "keys", ignore=shutil.ignore_patterns("witness*"))
    site = Lake(tmp_path / "data", Keyring.load(tmp_path / "keys"))
    run_days(site, city, [START])
    real, statement, count = getattr(psycopg.Connection, call), psycopg.Connection.execute, 0

    def struck(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count != nth:
            return real(self, *arguments, **named)
        if call == "commit":
            real(self)  # it reaches the server, the answer does not come back
        killer = psycopg.connect(database, autocommit=True)
        everybody = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"  # fmt: skip
        statement(killer, everybody)
        killer.close()
        return statement(self, "SELECT 1")

    for name, work in stages.items():
        if name != stage:
            work(site, city, [SECOND])
            continue
        with monkeypatch.context() as patch:
            patch.setattr(psycopg.Connection, call, struck)
            with pytest.raises(psycopg.OperationalError) as raised:
                work(site, city, [SECOND])
        assert kind_of(raised.value) == "DatabaseLost"
        break
    assert whole_releases(site) == [] and state(site, open_ledger(site, city))["problems"] == []
    run_days(site, city, [SECOND])
    assert state(site, open_ledger(site, city)) == undisturbed and whole_releases(site) == []


def test_the_check_itself_sees_what_a_fault_could_do(site: Lake, world: Path, undisturbed: dict[str, Any]):
    assert state(site) != undisturbed, "a missing day is seen"
    next(site.open_data.glob("*/[0-9]*/data.csv")).write_text("half")
    assert whole_releases(site)


@pytest.mark.parametrize("free", [0, pytest.param(40_000, marks=long), pytest.param(150_000, marks=long)])
def test_a_disk_that_is_really_full_loses_nothing(
    tmp_path: Path, prompt_city: City, run_days: Run, small_export: Any, small_disk: Any, free: int
):
    create_keys(tmp_path / "keys")
    lake = Lake(tmp_path / "disk", Keyring.load(tmp_path / "keys"))
    lake.root.mkdir()
    with small_disk(lake.root, "24m"):
        for n in range(2):
            folder = lake.inbox / "klinik-nord" / str(START + timedelta(n))
            folder.mkdir(parents=True)
            for name, rows in small_export(START + timedelta(n), ["a", "b"]).items():
                (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
            (folder / "_COMPLETE").touch()
        run_days(lake, prompt_city, [START])
        ballast = lake.root / "ballast"
        room = os.statvfs(lake.root)
        ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free)))
        with pytest.raises((OSError, sqlite3.OperationalError, duckdb.Error)):
            run_days(lake, prompt_city, [START + timedelta(1)])
        assert whole_releases(lake) == []
        ballast.unlink()  # SQLite cannot even read its log while nothing can be written beside it
        assert state(lake)["problems"] == []
        run_days(lake, prompt_city, [START + timedelta(1)])
        healed = state(lake)
        assert healed["problems"] == [] and len(healed["cases"]) == 4
        assert len({m for m in healed["spent"] if m.startswith("day:")}) == 2


@long
def test_a_data_root_mounted_read_only_says_so(tmp_path: Path, prompt_city: City, run_days: Run, small_disk: Any):
    create_keys(tmp_path / "keys")
    lake = Lake(tmp_path / "disk", Keyring.load(tmp_path / "keys"))
    lake.root.mkdir()
    with small_disk(lake.root, "4m"):
        run_days(lake, prompt_city, [START])
        subprocess.run(["mount", "-o", "remount,ro", str(lake.root)], check=True)
        with pytest.raises(OSError) as raised:
            run_days(lake, prompt_city, [START + timedelta(1)])
        assert kind_of(raised.value) == "NotWritable"


@long
def test_the_same_export_delivered_twice_counts_once(
    site: Lake, undisturbed: dict[str, Any], prompt_city: City, run_days: Run, small_export: Any
):
    deliver_into(site, SECOND, small_export(SECOND, [f"p1{i}" for i in range(3)]), suffix="-again")
    run_days(site, prompt_city, [SECOND])
    run_days(site, prompt_city, [SECOND])
    assert state(site) == undisturbed


@long
def test_a_day_that_was_left_out_is_held_back_and_ends_as_in_order(site: Lake, prompt_city: City, run_days: Run):
    def measured() -> list[str]:
        return [m.split(":")[1] for m in state(site)["spent"] if m.startswith("day:")]

    run_days(site, prompt_city, [START + timedelta(2)])
    assert measured() == [str(START), str(START + timedelta(2))]
    assert state(site)["problems"] == [] and whole_releases(site) == []
    for n in (1, 2):
        run_days(site, prompt_city, [START + timedelta(n)])
    found = state(site)
    assert found["problems"] == [] and len(found["cases"]) == 9
    assert sorted(measured()) == [str(START + timedelta(n)) for n in range(3)] and whole_releases(site) == []


@pytest.mark.parametrize("day", [date(2025, 3, 30), date(2025, 10, 26), date(2028, 2, 29), date(2026, 12, 31)])
def test_every_calendar_day_is_one_partition_and_one_tick_at_night(city: City, day: date):
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from dagster._utils.schedules import schedule_execution_time_iterator

    from assets.partitions import arrival_days
    from pipelines import nightly

    partitions = arrival_days(city)
    keys = partitions.get_partition_keys(current_time=datetime(2029, 1, 1, tzinfo=ZoneInfo("UTC")))
    assert keys.count(str(day)) == 1
    noon = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(city.time_zone)) - timedelta(hours=12)
    ticks = schedule_execution_time_iterator(noon.timestamp(), f"{nightly.MINUTE} {nightly.HOUR} * * *", city.time_zone, True)  # fmt: skip
    first, second = next(ticks), next(ticks)
    assert (first.date(), second.date()) == (day, day + timedelta(1)) and (first.hour, first.minute) == (3, 30)


@long
def test_a_clock_set_back_takes_nothing_in_and_loses_nothing(
    site: Lake, undisturbed: dict[str, Any], prompt_city: City, stages: dict[str, Any], run_days: Run
):
    from assets.intake import stage as intake

    found = intake.take(site, prompt_city, [SECOND], today=START)
    assert {d.reason for d in found if d.outcome == "rejected"} == {
        "the folder's date lies in the future; rename it to the day of delivery"
    }
    run_days(site, prompt_city, [SECOND])
    assert state(site) == undisturbed
