"""Assembly: one factory that builds all Dagster definitions for an environment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import dagster as dg

from assets.consent import asset as consent
from assets.contract.city import load_city
from assets.identity import asset as identity
from assets.intake import asset as intake
from assets.partitions import arrival_days
from assets.privacy import asset as privacy
from assets.publication import asset as publication
from assets.quality import asset as quality
from assets.resources import CITY_TAG, Site
from pipelines.environments import Environment, current
from pipelines.late_exports import late_exports_sensor
from pipelines.maintenance import SHORT, freshness_check, prune_job
from pipelines.nightly import nightly_schedule
from pipelines.watch import watch_sensor

JOB = "daily_run"
QUIET = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}
"""Filled into the launchpad: the console without Dagster's debug lines."""
# Backfill policies and owners are in beta: Dagster is pinned to one minor release, so nothing changes under us.
warnings.filterwarnings("ignore", category=dg.BetaWarning)


class NoImplicitStorage(dg.IOManager):
    """Assets write their own files; an implicit pickle is a mistake, so it is refused."""

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        if obj is not None:
            raise dg.DagsterInvariantViolationError("an asset returned a value; write a file and return its metadata")

    def load_input(self, context: dg.InputContext) -> object:
        raise dg.DagsterInvariantViolationError("assets name `deps` and read files themselves")


def build_definitions(
    environment: Environment, loggers: Mapping[str, dg.LoggerDefinition] | None = None
) -> dg.Definitions:
    """Every asset, the job, and schedules and sensors: running where `unattended`, else there to be switched on."""
    city = load_city(environment.city_file)
    partitions = arrival_days(city)
    assets = [
        a for stage in (intake, consent, quality, identity, privacy, publication) for a in stage.build(partitions)
    ]
    job = dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.assets(*assets),
        partitions_def=partitions,
        executor_def=dg.in_process_executor,
        tags={CITY_TAG: city.key},
        config=None if loggers else QUIET,
        description="From the clinics' inboxes to open data, for one arrival day or a range of them.",
    )
    on, watching = dg.DefaultScheduleStatus.STOPPED, dg.DefaultSensorStatus.STOPPED
    if environment.unattended:
        on, watching = dg.DefaultScheduleStatus.RUNNING, dg.DefaultSensorStatus.RUNNING
    freshness, pruning = freshness_check(environment, city), prune_job()
    look = dg.define_asset_job(
        "look_for_missing_days",
        selection=dg.AssetSelection.checks(freshness),
        executor_def=dg.in_process_executor,
        tags=SHORT,
        description="Every morning: is every arrival day done?",
    )
    schedules = [
        nightly_schedule(job, city, environment.data_root, on),
        dg.ScheduleDefinition(
            job=look,
            cron_schedule=f"5 {city.operation.overdue_hour} * * *",
            execution_timezone=city.time_zone,
            default_status=on,
            description="Every morning: looks for arrival days that are not done; the check on open_data shows them.",
        ),
        dg.ScheduleDefinition(
            job=pruning,
            cron_schedule="0 2 1 * *",
            execution_timezone=city.time_zone,
            default_status=on,
            description="Every month: runs older than 400 days leave Dagster's history.",
        ),
    ]
    sensors = [
        late_exports_sensor(job, city, environment.data_root, watching),
        watch_sensor(environment, city, watching),
    ]
    site = Site(
        city_file=str(environment.city_file),
        data_root=str(environment.data_root),
        key_folder=str(environment.key_folder or ""),
    )
    return dg.Definitions(
        assets=assets,
        asset_checks=[freshness],
        jobs=[job, look, pruning],
        schedules=schedules,
        sensors=sensors,
        resources={"site": site, "io_manager": NoImplicitStorage()},
        executor=dg.in_process_executor,
        loggers=loggers,
    )


defs = build_definitions(current())
