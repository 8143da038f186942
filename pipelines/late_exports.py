"""The sensor for exports that arrive after the run of their day has looked into the inbox."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import dagster as dg

from assets.contract.city import City
from assets.intake.connector import building_upon, completed_at, delivered
from assets.lake.progress import days_between, finished_days, stretches
from pipelines.nightly import one_run

LOOK_BACK_SECONDS: Final = 2 * 86_400
"""How long before the last look a folder may have come and still be looked at: longer than any run."""


def changed_folders(inbox: Path, city: City, since: float) -> Iterator[tuple[str, date, float]]:
    """(clinic, arrival day, when it became complete) of export folders that came after `since` (Unix seconds).

    Times are those of the file system's own entries (ctime): a copy that keeps a sender's old times has them too.
    """
    for clinic in city.clinics:
        for folder in sorted((inbox / clinic.key).glob("[0-9]*")):
            try:
                day, touched = date.fromisoformat(folder.name[:10]), folder.stat().st_ctime
                # A file that is added touches its folder: history is not asked for its files at every look.
                if touched <= since:
                    continue
                complete = completed_at(folder, delivered(folder), clinic.connector.settle_seconds, "st_ctime")
            except (ValueError, OSError):  # no day, or it goes away meanwhile
                continue
            if complete and complete > since:
                yield clinic.key, day, complete


def looked_at(instance: dg.DagsterInstance, day: date) -> float:
    """When the newest run of `day` began to look into the inboxes (Unix seconds); 0 where nobody remembers it, or where
    that lies ahead: the clock was set back since, and nothing would be late until then.
    """
    wanted = dg.AssetRecordsFilter(dg.AssetKey("landed_exports"), asset_partitions=[day.isoformat()])
    found = instance.fetch_materializations(wanted, limit=1).records
    run = instance.get_run_record_by_id(found[0].run_id) if found else None
    began = (run.start_time or 0.0) if run else 0.0
    return began if began <= time.time() else 0.0


def late_exports_sensor(job: Any, city: City, data_root: Path, status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """Asks for the days that are done and whose inbox changed after their run began, neighbours as one run, with those that
    were built upon them.

    The cursor is the time of the last look, so it never grows. Days that are not done are left to the nightly run.
    """

    @dg.sensor(
        job=job,
        minimum_interval_seconds=600,
        default_status=status,
        description="Runs the day of an export that came late.",
    )
    def late_exports(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = datetime.now(ZoneInfo(city.time_zone))
        cursor = dg.SensorResult(cursor=str(now.timestamp()))
        since = float(context.cursor or now.timestamp()) - LOOK_BACK_SECONDS
        done = finished_days(data_root)
        newest: dict[date, float] = {}
        until: dict[date, date] = {}
        for clinic, day, changed in changed_folders(data_root / "inbox", city, since):
            if day in done and day < now.date():
                newest[day] = max(changed, newest.get(day, 0.0))
                upon = building_upon(data_root / "landing", city, clinic, day)
                until[day] = max(until.get(day, day), *upon, day)
        late = {day: at for day, at in newest.items() if at > looked_at(context.instance, day)}
        requests = [
            one_run(pair, "late", str(max(at for day, at in late.items() if pair[0] <= day <= pair[1])))
            for pair in stretches(again for day in late for again in days_between(day, until[day]))
        ]
        return cursor._replace(run_requests=requests)

    return late_exports
