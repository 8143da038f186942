"""Jobs beside the daily run: is every day done (a check that runs on its own), and Dagster's history pruned."""

from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from dagster._core.storage.event_log import SqlEventLogStorage  # their only names: Dagster is pinned to a minor release
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable

from assets.contract.city import City
from assets.lake.progress import finished_days, stretches
from pipelines.environments import Environment
from pipelines.operation import demo_end, local_now, overdue

KEEP_DAYS: Final = 400
"""A budget window and a month."""
SHORT: Final = {"dagster/max_runtime": "3600"}
"""Of jobs that hold no lease: Dagster ends one that takes an hour, as its process must be gone (`dead_runs`)."""
_ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def prune_history(instance: dg.DagsterInstance, keep_days: int = KEEP_DAYS) -> int:
    """Delete runs that ended more than `keep_days` ago, with events, results of checks and captured output; their number.

    A materialisation goes with its run: the days that it filled are reported again without a run first, so that
    the desk still shows them as done.
    """
    before = datetime.now(UTC) - timedelta(days=keep_days)
    records = instance.get_run_records(dg.RunsFilter(statuses=_ENDED, updated_before=before))
    filled: set[tuple[dg.AssetKey, str]] = set()
    for record in records:
        for entry in instance.get_records_for_run(
            record.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
        ).records:
            event = entry.event_log_entry.dagster_event
            if event and event.asset_key and event.partition:
                filled.add((event.asset_key, event.partition))
        instance.delete_run(record.dagster_run.run_id)
        instance.compute_log_manager.delete_logs(prefix=[record.dagster_run.run_id])  # Dagster leaves them behind
    _forget_checks(instance, [record.dagster_run.run_id for record in records])
    for key, partition in sorted(filled, key=str):
        if partition not in instance.get_materialized_partitions(key):
            instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition))
    return len(records)


def _forget_checks(instance: dg.DagsterInstance, runs: list[str]) -> None:
    """Dagster leaves the results of checks behind, twenty rows a day: half of what its history takes."""
    log = instance.event_log_storage
    if isinstance(log, SqlEventLogStorage):
        with log.index_connection() as connection:
            connection.execute(AssetCheckExecutionsTable.delete().where(AssetCheckExecutionsTable.c.run_id.in_(runs)))


def freshness_check(environment: Environment, city: City) -> dg.AssetChecksDefinition:
    """Whether every arrival day is done, told from the data root: Dagster's freshness policy knows no days."""

    @dg.asset_check(
        asset="open_data",
        description="Every arrival day up to yesterday went through to publication. Runbook: `day_overdue`.",
    )
    def every_day_is_done() -> dg.AssetCheckResult:
        done = finished_days(environment.data_root)
        demo = demo_end(environment.data_root, city)
        late = list(overdue(done, city, local_now(city), demo))
        ends = f"; a demonstration, its synthetic exports end on {demo}" if demo else ""
        return dg.AssetCheckResult(
            passed=not late,
            severity=dg.AssetCheckSeverity.ERROR,
            description=late[0].what if late else f"done up to {max(done, default='no day')}{ends}",
            metadata={
                "days_done": len(done),
                "stretches": "; ".join(f"{first} to {last}" for first, last in stretches(done)) or "none",
            },
        )

    return every_day_is_done


def prune_job() -> dg.JobDefinition:
    @dg.op(
        config_schema={
            "keep_days": dg.Field(dg.IntSource, default_value=KEEP_DAYS, description="Days of history to keep.")
        },
        description="Deletes old runs from Dagster's history; data, ledger and the state of each day stay.",
    )
    def prune_dagster_history(context: dg.OpExecutionContext) -> None:
        number = prune_history(context.instance, context.op_config["keep_days"])
        context.log.info(f"removed {number} runs")

    @dg.job(executor_def=dg.in_process_executor, tags=SHORT, description="Monthly: old runs leave Dagster's history.")
    def prune() -> None:
        prune_dagster_history()

    return prune
