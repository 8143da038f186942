"""The nightly schedule and the sensor for late exports, on a real instance."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.storage.runs.schema import RunsTable

from assets.contract.city import DEFAULT_CITY, City
from assets.contract.connectors import SftpConnector
from assets.intake.connector import pull
from assets.lake.lake import Lake
from assets.lake.progress import finished_days, mark_finished, reopen, stretches
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment
from pipelines.late_exports import changed_folders
from pipelines.nightly import not_there_yet, one_run, wanted

START = date(2024, 12, 30)
NIGHT = datetime(2025, 1, 5, 3, 30, tzinfo=ZoneInfo("Europe/Berlin"))


def day(n: int) -> date:
    return START + timedelta(n)


@pytest.fixture
def environment(lake: Lake, tmp_path: Path) -> Environment:
    return Environment("test", DEFAULT_CITY, lake.root, tmp_path / "keys")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as real:
        yield real


def ask_nightly(
    environment: Environment, instance: dg.DagsterInstance, at: datetime = NIGHT
) -> dg.ScheduleExecutionData | Any:
    defs = build_definitions(environment)
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=at, repository_def=defs.get_repository_def()
    )
    return defs.get_schedule_def("nightly").evaluate_tick(context)


def asked(tick: Any) -> list[tuple[str, str]]:
    return [
        (r.tags["dagster/asset_partition_range_start"], r.tags["dagster/asset_partition_range_end"])
        for r in tick.run_requests
    ]


def execute(environment: Environment, instance: dg.DagsterInstance, tags: Any) -> dg.ExecuteInProcessResult:
    job = build_definitions(environment).resolve_job_def(JOB)
    return job.execute_in_process(instance=instance, tags=dict(tags), raise_on_error=False)


def test_missed_days_are_made_up_for_in_one_run_and_then_nothing_is_asked_for(
    environment: Environment, instance: dg.DagsterInstance, deliver: Callable[..., Path]
):
    deliver("klinik-nord", day(2), {"Patient.ndjson": []})
    tick = ask_nightly(environment, instance)
    assert asked(tick) == [("2024-12-30", "2025-01-04")]
    assert execute(environment, instance, tick.run_requests[0].tags).success
    assert finished_days(environment.data_root) == {day(n) for n in range(6)}
    assert ask_nightly(environment, instance).skip_message == "every arrival day up to 2025-01-04 is done"
    filled = instance.get_materialized_partitions(dg.AssetKey("open_data"))
    assert filled == {str(day(n)) for n in range(6)}
    # three nights without the machine: one run for the three days
    assert asked(ask_nightly(environment, instance, NIGHT + timedelta(days=3))) == [("2025-01-05", "2025-01-07")]


def test_a_day_that_failed_is_asked_for_again_by_the_next_night(environment: Environment, instance: dg.DagsterInstance):
    (environment.key_folder / "pseudonym.key").rename(environment.key_folder / "away")  # type: ignore[operator]
    tick = ask_nightly(environment, instance)
    assert not execute(environment, instance, tick.run_requests[0].tags).success
    again = ask_nightly(environment, instance, NIGHT + timedelta(days=1))
    assert asked(again) == [("2024-12-30", "2025-01-05")]
    assert again.run_requests[0].run_key != tick.run_requests[0].run_key


def test_a_stage_that_is_started_by_itself_marks_no_day_as_done(
    environment: Environment, instance: dg.DagsterInstance, deliver: Callable[..., Path], monkeypatch: Any
):
    def alone(asset: str) -> dg.ExecuteInProcessResult:
        return build_definitions(environment).resolve_job_def(JOB).execute_in_process(
            instance=instance, partition_key=str(START), asset_selection=[dg.AssetKey(asset)], raise_on_error=False
        )  # fmt: skip

    tags = one_run((START, START), "nightly", "x").tags
    for suffix in ("", "-second"):  # a day that never ran, and one that is done and gets another export
        deliver(
            "klinik-nord", START, {"Patient.ndjson": [{"resourceType": "Patient", "id": f"p{suffix}"}]}, suffix=suffix
        )
        with monkeypatch.context() as broken:
            broken.setattr("assets.intake.kernel.read", lambda *_: 1 / 0)
            assert not execute(environment, instance, tags).success
        for asset in ("noisy_measurements", "open_data"):
            assert "NotStaged" in str(alone(asset).get_step_failure_events())
        assert finished_days(environment.data_root) == set()
        assert execute(environment, instance, tags).success and finished_days(environment.data_root) == {START}
        assert alone("open_data").success


def test_yesterday_is_that_of_the_city_on_changes_of_clocks_and_leap_days(
    environment: Environment, instance: dg.DagsterInstance
):
    schedule = build_definitions(environment).get_schedule_def("nightly")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 3 * * *", "Europe/Berlin")
    for yesterday, today in (("2025-03-29", "2025-03-30"), ("2025-10-25", "2025-10-26"), ("2028-02-28", "2028-02-29")):
        at = datetime.fromisoformat(f"{today}T03:30:00").replace(tzinfo=ZoneInfo("Europe/Berlin"))
        assert asked(ask_nightly(environment, instance, at.astimezone(UTC)))[-1][1] == yesterday


def test_more_than_a_window_is_cut_into_windows_and_holes_are_runs_of_their_own():
    assert list(wanted([], [], day(0), day(799))) == [(day(0), day(363)), (day(364), day(727)), (day(728), day(799))]
    done = {day(n) for n in range(10)} - {day(3), day(4)}
    assert list(wanted(done, [], day(0), day(10))) == [(day(3), day(4)), (day(10), day(10))]
    assert list(wanted(done, [day(8)], day(0), day(8))) == [(day(3), day(4)), (day(8), day(8))]


def test_days_of_a_clinic_asked_over_the_network_are_asked_for_again_until_the_week_closes(city: City, tmp_path: Path):
    sftp = SftpConnector.model_validate(
        {"kind": "sftp", "host": "h", "user": "u", "path": "/out", "known_hosts": "k", "password": {"env": "P"}}
    )
    remote = city.model_copy(
        update={"clinics": (city.clinics[0].model_copy(update={"connector": sftp}), *city.clinics[1:])}
    )
    assert not_there_yet(tmp_path, city, day(20)) == []
    for n in (17, 19):
        (tmp_path / "landing" / "klinik-nord" / str(day(n))).mkdir(parents=True)
    # Day 20 is a Sunday, and a day is measured three days later: the week of the 14th closes with the 23rd.
    assert not_there_yet(tmp_path, remote, day(20)) == [day(14), day(15), day(16), day(18), day(20)]
    assert not_there_yet(tmp_path, remote, day(23))[:5] == [day(14), day(15), day(16), day(18), day(20)]
    assert not_there_yet(tmp_path, remote, day(24)) == [day(21), day(22), day(23), day(24)]
    # What was refused is asked for again, though something else lies there; what was fetched and taken is not.
    (tmp_path / "inbox" / "klinik-nord").mkdir(parents=True)
    record = {f"{day(17)}-second": {"listing": "a", "refused": "it is damaged"}, str(day(19)): "b"}
    (tmp_path / "inbox" / "klinik-nord" / ".fetched.json").write_text(json.dumps(record))
    assert not_there_yet(tmp_path, remote, day(20)) == [day(14), day(15), day(16), day(17), day(18), day(20)]
    longer = remote.model_copy(update={"late_days": 4})
    assert not_there_yet(tmp_path, longer, day(27))[0] == day(14) and not_there_yet(tmp_path, longer, day(28))[
        0
    ] == day(21)


def test_finished_days_are_kept_as_few_stretches(tmp_path: Path):
    mark_finished(tmp_path, [day(0), day(1), day(3)])
    mark_finished(tmp_path, [day(2), day(9)])
    assert stretches(finished_days(tmp_path)) == [(day(0), day(3)), (day(9), day(9))]
    reopen(tmp_path, [day(1), day(500)])
    assert finished_days(tmp_path) == {day(0), day(2), day(3), day(9)}
    (record,) = (tmp_path / "confidential" / "records").iterdir()
    assert record.stat().st_mode & 0o777 == 0o600


def look(environment: Environment, instance: dg.DagsterInstance, cursor: str | None) -> Any:
    sensor = build_definitions(environment).get_sensor_def("late_exports")
    return sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=cursor))


def test_a_late_export_is_asked_for_once_and_the_cursor_does_not_grow(
    environment: Environment, instance: dg.DagsterInstance, deliver: Callable[..., Path]
):
    for n in range(5):
        deliver("klinik-nord", day(n), {"Patient.ndjson": []})
    tick = ask_nightly(environment, instance)
    assert execute(environment, instance, tick.run_requests[0].tags).success
    first = look(environment, instance, None)
    assert first.run_requests == []  # what lay there when the run looked is not late
    deliver("klinik-nord", day(1), {"Patient.ndjson": [{"resourceType": "Patient", "id": "p"}]}, suffix="-second")
    folder = deliver("hospital-sued", day(2), {"FALL.csv": "x"}, complete=False)
    os.utime(folder, (0, 0))  # a copy that keeps the sender's times
    unfinished = look(environment, instance, first.cursor)
    assert asked(unfinished) == [(str(day(1)), str(day(1)))]
    (folder / "_COMPLETE").touch()
    second = look(environment, instance, unfinished.cursor)
    assert asked(second) == [(str(day(1)), str(day(2)))]
    assert len(second.cursor) == len(first.cursor) or abs(float(second.cursor) - time.time()) < 60
    assert execute(environment, instance, second.run_requests[0].tags).success
    assert look(environment, instance, second.cursor).run_requests == []


def test_an_export_is_late_though_the_clock_went_ahead_while_its_day_ran(
    environment: Environment, instance: dg.DagsterInstance, deliver: Callable[..., Path]
):
    deliver("klinik-nord", day(1), {"Patient.ndjson": []})
    assert execute(environment, instance, one_run((day(1), day(1)), "nightly", "").tags).success
    with instance.run_storage.connect() as connection:
        connection.execute(RunsTable.update().values(start_time=time.time() + 9e6))
    first = look(environment, instance, None)
    deliver("klinik-nord", day(1), {"Patient.ndjson": [{"resourceType": "Patient", "id": "p"}]}, suffix="-second")
    assert asked(look(environment, instance, first.cursor)) == [(str(day(1)), str(day(1)))]


def test_an_export_without_marker_is_late_once_it_is_quiet(
    city: City, lake: Lake, deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    began, wait = time.time(), city.clinics[0].connector.settle_seconds
    folder = deliver("klinik-nord", day(1), {"Patient.ndjson": []}, complete=False)
    deliver("klinik-nord", day(2), {"Patient.ndjson.part": []}, complete=False)
    deliver("klinik-nord", day(3), {}, complete=False)
    for path in (folder, *folder.iterdir()):
        os.utime(path, (0, 0))  # a copy that keeps the sender's times
    assert list(changed_folders(lake.inbox, city, began - 1)) == []
    came = max(p.stat().st_ctime for p in (folder, *folder.iterdir()))
    monkeypatch.setattr(time, "time", lambda: came + wait)
    # A run that looked while it was still being written has not taken it: it counts as come when it is quiet.
    assert list(changed_folders(lake.inbox, city, began - 1)) == [("klinik-nord", day(1), came + wait)]


def test_days_that_were_built_upon_a_late_export_are_asked_for_with_it(
    environment: Environment,
    instance: dg.DagsterInstance,
    city: City,
    lake: Lake,
    deliver: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
):
    changes = {"export.json": '{"scope": "incremental"}'}
    for n, more in ((0, {}), (2, changes), (3, changes), (4, {}), (5, changes)):
        deliver("klinik-nord", day(n), {"Patient.ndjson": []} | more)
    pull(lake, city, [day(n) for n in range(6)], NIGHT.date())
    mark_finished(lake.root, [day(n) for n in range(6)])
    began = time.time()
    monkeypatch.setattr("pipelines.late_exports.looked_at", lambda *_: began)
    deliver("klinik-nord", day(1), {"Patient.ndjson": []} | changes)
    assert asked(look(environment, instance, None)) == [(str(day(1)), str(day(3)))]


def test_a_late_run_that_fails_leaves_its_day_to_the_next_night(
    environment: Environment,
    instance: dg.DagsterInstance,
    deliver: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
):
    assert execute(environment, instance, ask_nightly(environment, instance).run_requests[0].tags).success
    deliver("klinik-nord", day(4), {"Patient.ndjson": [{"resourceType": "Patient", "id": "p"}]})
    late = look(environment, instance, None).run_requests
    monkeypatch.setattr("assets.consent.stage.run", lambda *_: 1 / 0)
    assert not execute(environment, instance, late[0].tags).success
    monkeypatch.undo()
    assert asked(ask_nightly(environment, instance)) == [(str(day(4)), str(day(4)))]
