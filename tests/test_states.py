"""Each state that needs a person is found, from real files, ledger and storage, and not found where all is well."""

from __future__ import annotations

import json
import time
from datetime import date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from assets.contract.city import City
from assets.contract.terms import WINDOW_DAYS
from assets.lake.lake import Lake
from assets.privacy.ledger import Reservation, open_ledger
from assets.publication import checksums
from assets.quality import history
from pipelines.environments import Environment
from pipelines.operation import daemons, disk, duties, money, problems, quarantined, state

START = date(2024, 12, 30)


def within(city: City, **limits: float) -> City:
    return city.model_copy(update={"operation": city.operation.model_copy(update=limits)})


def test_too_little_room_is_told_with_how_much_is_wanted(lake: Lake, city: City):
    assert list(disk(lake.root, within(city, min_free_gigabytes=0))) == []
    (low,) = disk(lake.root, within(city, min_free_gigabytes=1e9))
    assert low.kind == "disk_low" and low.what.endswith("1e+09 are wanted")


def test_the_next_window_is_announced_so_many_days_before(city: City):
    begins = datetime.combine(city.budget.epoch + timedelta(WINDOW_DAYS), datetime.min.time())
    soon = within(city, notice_days=28)
    assert list(duties(soon, begins - timedelta(29))) == []
    (notice,) = duties(soon, begins - timedelta(28))
    assert (notice.kind, notice.what) == ("new_window", f"the next window begins on {begins.date()}")
    assert list(duties(soon, begins)) == []


def test_a_window_whose_budget_is_used_up_is_told(lake: Lake, city: City):
    ledger = open_ledger(lake, city)
    ledger.open_scope(str(START), 100)
    about = json.dumps({"time": "day", "unit_start": str(START)})
    affordable = Reservation("day:2024-12-30:1", str(START), 50, "s", about)
    assert ledger.reserve([affordable]) == [affordable] and list(money(lake, city)) == []
    assert ledger.reserve([Reservation("day:2024-12-31:1", str(START), 51, "s", about)]) == []
    assert [(a.kind, a.what) for a in money(lake, city)] == [("budget_paused", f"window from {START}: 50.0% spent")]


def test_much_in_quarantine_over_a_week_is_told_by_clinic(lake: Lake, city: City):
    limit = within(city, max_quarantined_share=0.05)
    days = [str(START + timedelta(n)) for n in range(8)]
    lake.write_record(history.RECORD, {d: {"klinik-nord": 0.05, "praxisnetz": 0.0} for d in days})
    assert list(quarantined(lake, limit)) == []
    lake.write_record(history.RECORD, {d: {"klinik-nord": 0.06, "praxisnetz": 0.0} for d in days})
    (much,) = quarantined(lake, limit)
    assert much.kind == "quarantine_is_small" and much.what.startswith("klinik-nord: 6.0%")


def test_a_published_file_that_was_changed_is_told_by_every_look(lake: Lake, city: City, tmp_path: Path):
    site = Environment(
        "test", Path(__file__).parents[1] / "assets/contract/cities/darmstadt.yaml", lake.root, tmp_path / "keys"
    )
    version = lake.open_data / "cases_by_area" / "2025-01-05"
    version.mkdir(parents=True)
    (version / "data.csv").write_bytes(b"published")
    (version / checksums.FILE).write_bytes(checksums.checksums({"data.csv": b"published"}))
    (version.parent / "latest").symlink_to(version.name)
    assert [a for a in problems(site) if a.kind == "release_altered"] == []
    assert state(site, city, lake)["releases"] == [{"dataset": "cases_by_area", "version": "2025-01-05"}]
    (version / "data.csv").write_bytes(b"altered")
    (told,) = [a for a in problems(site) if a.kind == "release_altered"]
    assert told.what == "cases_by_area 2025-01-05: data.csv is not what was published"


def test_a_daemon_without_a_heartbeat_is_told_by_name(tmp_path: Path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        required = [name for name, status in instance.get_daemon_statuses().items() if status.required]
        (down,) = daemons(instance)
        assert down.kind == "daemon_down" and "scheduler" in down.what
        for name in required:
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), name, "one", []))
        assert list(daemons(instance)) == []
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 86_400, "SENSOR", "one", []))
        assert [a.what for a in daemons(instance)] == ["no heartbeat: sensor"]


@pytest.mark.parametrize("content", ["1", "yes", "0", ""])
def test_only_1_switches_schedules_on(content: str, monkeypatch: pytest.MonkeyPatch):
    from pipelines.environments import UNATTENDED_VARIABLE, current

    monkeypatch.setenv(UNATTENDED_VARIABLE, content)
    assert current().unattended == (content == "1")
