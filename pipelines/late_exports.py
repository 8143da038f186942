"""The sensor for exports that arrive after the nightly run of their day."""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from assets.contract.city import City


def late_folders(inbox: Path, city: City, before: date) -> Iterator[tuple[date, str]]:
    """(day, run key) of every complete-looking export folder of a past day; the key changes with the folder."""
    for clinic in city.clinics:
        for folder in sorted((inbox / clinic.key).glob("[0-9]*")):
            try:
                day = date.fromisoformat(folder.name[:10])
            except ValueError:
                continue
            if city.first_arrival <= day < before and (folder / "_COMPLETE").exists():
                yield day, f"{clinic.key}/{folder.name}/{int(folder.stat().st_mtime)}"


def late_exports_sensor(job: Any, city: City, data_root: Path) -> dg.SensorDefinition:
    """Asks for a run of each past day whose inbox has changed since that day was last looked at.

    Runs are keyed by folder and modification time, so the same export asks once. Days that the schedule
    has not run yet are left to it.
    """

    @dg.sensor(job=job, minimum_interval_seconds=600, description="Runs the day of an export that came late.")
    def late_exports(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        yesterday = datetime.now(ZoneInfo(city.time_zone)).date() - timedelta(days=1)
        done = context.instance.get_materialized_partitions(dg.AssetKey("landed_exports"))
        known = set(filter(None, (context.cursor or "").split("\n")))
        seen = {key: day for day, key in late_folders(data_root / "inbox", city, yesterday)}
        fresh = {key: day for key, day in seen.items() if key not in known and day.isoformat() in done}
        first_look = context.cursor is None
        requests = (
            [] if first_look else [dg.RunRequest(run_key=k, partition_key=d.isoformat()) for k, d in fresh.items()]
        )
        return dg.SensorResult(run_requests=requests, cursor="\n".join(sorted(seen)) or "-")

    return late_exports
