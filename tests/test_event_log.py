"""The event log that keeps its connections tells what Dagster's own would, from the same files, and stays small."""

import os
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from pipelines.event_log import EventLog

SETTINGS = Path(__file__).resolve().parents[1] / "dagster.yaml"
DAYS = dg.DailyPartitionsDefinition("2025-01-01", end_date="2025-01-15")


@dg.asset(
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[dg.AssetCheckSpec("whole", asset="table")],
)
def table(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    if "2025-01-14" in context.partition_keys:
        raise dg.Failure("the disk is full")
    return dg.MaterializeResult(
        metadata={"days": len(context.partition_keys)}, check_results=[dg.AssetCheckResult(passed=False)]
    )


def home(folder: Path, ours: bool) -> Path:
    """A home for Dagster with the project's settings, or with these but for the event log."""
    folder.mkdir()
    settings: dict[str, Any] = yaml.safe_load(SETTINGS.read_text())
    if not ours:
        del settings["event_log_storage"]
    (folder / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return folder


def materialise(folder: Path, monkeypatch: pytest.MonkeyPatch, first: str, last: str) -> dict[str, Any]:
    """Run the days, and what the instance of `folder` says of the run and of the asset then."""
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    with dg.DagsterInstance.get() as instance:
        job = dg.Definitions(
            assets=[table], jobs=[dg.define_asset_job("job", [table], executor_def=dg.in_process_executor)]
        ).resolve_job_def("job")
        result = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
        return said(instance, result.run_id)


def said(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    records = instance.fetch_materializations(dg.AssetKey("table"), limit=100, ascending=True).records
    planned = instance.get_event_records(
        dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, asset_key=dg.AssetKey("table"))
    )
    newest = instance.get_latest_materialization_event(dg.AssetKey("table"))
    run = instance.get_run_by_id(run_id)
    return {
        "status": run.status if run else None,
        "events": [e.dagster_event.event_type_value for e in instance.all_logs(run_id) if e.dagster_event],
        "materialised": [
            (r.partition_key, r.asset_materialization.metadata) for r in records if r.asset_materialization
        ],
        "planned": sorted(str(r.partition_key) for r in planned),
        "partitions": sorted(instance.get_materialized_partitions(dg.AssetKey("table"))),
        "newest": newest.asset_materialization.partition if newest and newest.asset_materialization else None,
    }


def test_it_tells_what_dagsters_own_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours, theirs = home(tmp_path / "ours", True), home(tmp_path / "theirs", False)
    runs = [("2025-01-01", "2025-01-12"), ("2025-01-13", "2025-01-14"), ("2025-01-02", "2025-01-02")]
    told = [[materialise(folder, monkeypatch, *run) for run in runs] for folder in (ours, theirs)]
    assert told[0] == told[1]
    whole, failed, again = told[0]
    assert len(whole["partitions"]) == 12 and failed["partitions"] == whole["partitions"]
    assert len(failed["planned"]) == 14 and "STEP_FAILURE" in failed["events"] and again["newest"] == "2025-01-02"


def test_each_reads_what_the_other_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = home(tmp_path / "before", False)
    first = materialise(before, monkeypatch, "2025-01-01", "2025-01-03")
    shutil.copy(SETTINGS, before / "dagster.yaml")
    then = materialise(before, monkeypatch, "2025-01-04", "2025-01-05")
    assert then["partitions"] == [*first["partitions"], "2025-01-04", "2025-01-05"]
    (before / "dagster.yaml").unlink()
    with dg.DagsterInstance.get() as instance:
        assert sorted(instance.get_materialized_partitions(dg.AssetKey("table"))) == then["partitions"]


def test_connections_stay_open_but_never_more_than_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = home(tmp_path / "home", True)
    for day in range(1, 6):
        materialise(folder, monkeypatch, f"2025-01-0{day}", f"2025-01-0{day}")
    log = EventLog(str(folder / "history" / "runs"))
    runs = sorted(p.stem for p in (folder / "history" / "runs").glob("*.db") if p.stem != "index")
    assert len(runs) == 5

    def opened() -> list[str]:
        links = (os.readlink(p) for p in Path("/proc/self/fd").iterdir() if p.is_symlink() and p.exists())
        return sorted(Path(link).stem for link in links if link.startswith(str(folder)) and link.endswith(".db"))

    for run in runs:
        with log.index_connection():
            pass
        with log.run_connection(run):
            pass
        assert opened() == sorted(["index", run])
    log.dispose()
    assert opened() == []


def test_what_is_wiped_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = home(tmp_path / "home", True)
    materialise(folder, monkeypatch, "2025-01-01", "2025-01-01")
    (run,) = [p.stem for p in (folder / "history" / "runs").glob("*-*.db")]
    log = EventLog(str(folder / "history" / "runs"))
    assert log.get_logs_for_run(run)
    log.wipe()
    assert not log.get_logs_for_run(run) and not log.get_materialized_partitions(dg.AssetKey("table"))
    log.dispose()
