"""Which arrival days are done: gone through every stage to publication. One small record, no key needed.

Dagster knows it too, but forgets it with its history; the data root must be able to say it on its own. Not
here: what a stage did with a day.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from assets.lake.files import atomic_write, make_directory

RECORD: Final = Path("confidential") / "records" / "finished_days.json"
ONE_DAY: Final = timedelta(days=1)

Stretch = tuple[date, date]
"""First and last day of an unbroken stretch of days."""


def stretches(days: Iterable[date]) -> list[Stretch]:
    """The fewest unbroken stretches that hold exactly `days`, in order."""
    found: list[Stretch] = []
    for day in sorted(set(days)):
        if found and day - found[-1][1] == ONE_DAY:
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found


def days_between(first: date, last: date) -> list[date]:
    """Every day from `first` to `last`; none where `last` lies before."""
    return [first + timedelta(n) for n in range((last - first).days + 1)]


def finished_days(root: Path) -> set[date]:
    """Arrival days that are done in the data root `root`."""
    path = root / RECORD
    pairs = json.loads(path.read_bytes()) if path.exists() else []
    return {day for first, last in pairs for day in days_between(date.fromisoformat(first), date.fromisoformat(last))}


def _text(days: Iterable[date]) -> bytes:
    return json.dumps([[str(first), str(last)] for first, last in stretches(days)]).encode()


def mark_finished(root: Path, days: Sequence[date]) -> None:
    """Remember that `days` are done."""
    path = root / RECORD
    make_directory(path.parent)
    atomic_write(path, _text(finished_days(root) | set(days)))


def reopen(root: Path, days: Sequence[date]) -> None:
    """Forget that `days` are done, because something new was taken for them; unknown ones are fine."""
    left = finished_days(root)
    if left & set(days):
        atomic_write(root / RECORD, _text(left - set(days)))
