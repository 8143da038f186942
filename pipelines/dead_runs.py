"""Runs whose process is gone, in a power cut say, are ended as failed: Dagster would take them as running for ever.

Its queue lets one run work at a time, so no night would begin any more. Whether a run still works tells the lease: it
holds the data root as long as it lives. Whose run it is tells its tag `city`, which the site gives it (`resources`): a
backfill that somebody started in the UI has no other. Not here: what is told of a run that failed (`watch`).
"""

from __future__ import annotations

import time
from typing import Final

import dagster as dg

from assets.contract.city import City
from assets.lake.lease import DataRootBusy, lease
from assets.resources import CITY_TAG
from pipelines.environments import Environment

QUIET_SECONDS: Final = 60
"""A run takes the lease right after its start and gives it back right before its end: then it has just told something."""
MESSAGE: Final = "its process is gone: nobody works on the data root, and the run has told nothing for a minute"


def _nobody_works(environment: Environment, city: City) -> bool:
    try:
        with lease(environment.data_root, "a look for dead runs", database=city.ledger):
            return True
    except (DataRootBusy, OSError):  # a disk that is full, say: the next look asks again
        return False


def _quiet(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    newest = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    return not newest or time.time() - newest[0].timestamp > QUIET_SECONDS


def end_dead_runs(instance: dg.DagsterInstance, environment: Environment, city: City) -> list[str]:
    """End the city's runs that are said to work and do not; their ids."""
    said = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags={CITY_TAG: city.key})
    quiet = [run for run in instance.get_runs(said) if _quiet(instance, run)]
    if not quiet or not _nobody_works(environment, city):
        return []
    time.sleep(1)  # one that waited for the lease of another takes it within this second
    if not _nobody_works(environment, city):
        return []
    for run in quiet:
        instance.report_run_failed(run, MESSAGE)
    return [run.run_id for run in quiet]
