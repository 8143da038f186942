"""The nightly schedule: asks for every arrival day up to yesterday that is not done, in as few runs as possible.

A night that was missed, or a day that failed, is made up for by the next night, in order. What is done is read
from the data root, not from Dagster's history, which is pruned. Not here: late exports (`late_exports`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import dagster as dg

from assets.contract.city import City
from assets.contract.terms import WEEK_DAYS, WINDOW_DAYS
from assets.intake.connectors.transfer import refused_days
from assets.lake.progress import Stretch, days_between, finished_days, stretches

HOUR, MINUTE = 3, 30
"""Local time: after midnight's exports, never inside the hour that a change of clocks repeats or leaves out."""
REASON_TAG: Final = "reason"
DAYS_TAG: Final = "days"
"""Shown in the list of runs, where Dagster hides its own tags."""


def shown_days(first: date, last: date) -> str:
    """One day, or a range in ISO's short form: more does not fit into the list of runs."""
    return str(first) if first == last else f"{first}/{last}"


def one_run(stretch: Stretch, reason: str, mark: str) -> dg.RunRequest:
    """Ask for all days of `stretch` as one run. `mark`: the same request with the same mark is made once only."""
    first, last = stretch[0].isoformat(), stretch[1].isoformat()
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    tags |= {REASON_TAG: reason, DAYS_TAG: shown_days(*stretch)}
    return dg.RunRequest(run_key=f"{reason}/{first}/{last}/{mark}", tags=tags)


def not_there_yet(root: Path, city: City, yesterday: date) -> list[date]:
    """Days for which a clinic that is asked over the network has delivered nothing so far, or what was refused, while it
    could still count. `root`: of the data.

    After the freeze lag an export counts in the late leaf of its week, until the week takes no more late cases.
    """
    longest = city.freeze_lag_days + WEEK_DAYS - 1 + city.late_days
    near = days_between(max(city.first_arrival, yesterday - timedelta(longest)), yesterday)
    recent = [d for d in near if yesterday <= city.week_known_on(d)]
    remote = [c for c in city.clinics if c.connector.kind != "folder"]
    refused = set[date]().union(*(refused_days(root / "inbox" / c.key) for c in remote))
    return [
        d
        for d in recent
        if d in refused or not all((root / "landing" / c.key / str(d)).is_dir() for c in remote if c.delivers_on(d))
    ]


def wanted(done: Iterable[date], again: Iterable[date], first: date, yesterday: date) -> Iterator[Stretch]:
    """Stretches of days from `first` to `yesterday` that are not `done`, or asked for `again`; oldest first.

    A stretch longer than a budget window is cut into windows.
    """
    missing = (set(days_between(first, yesterday)) - set(done)) | set(again)
    for begin, end in stretches(missing):
        days = days_between(begin, end)
        for n in range(0, len(days), WINDOW_DAYS):
            part = days[n : n + WINDOW_DAYS]
            yield part[0], part[-1]


def nightly_schedule(job: Any, city: City, data_root: Path, status: dg.DefaultScheduleStatus) -> dg.ScheduleDefinition:
    """The schedule. Dagster evaluates the newest missed tick when its daemon comes back."""

    @dg.schedule(
        job=job,
        cron_schedule=f"{MINUTE} {HOUR} * * *",
        execution_timezone=city.time_zone,
        default_status=status,
        description="Every night: all arrival days up to yesterday that are not done yet, as one run.",
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        at = context.scheduled_execution_time.astimezone(ZoneInfo(city.time_zone))
        yesterday = at.date() - timedelta(days=1)
        again = not_there_yet(data_root, city, yesterday)
        found = list(wanted(finished_days(data_root), again, city.first_arrival, yesterday))
        if not found:
            return dg.SkipReason(f"every arrival day up to {yesterday} is done")
        return [one_run(stretch, "nightly", str(at.date())) for stretch in found]

    return nightly
