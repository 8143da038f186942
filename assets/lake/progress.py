"""Which arrival days are done: gone through every stage to publication. Small records, no key needed.

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
from assets.lake.lake import DamagedTable

RECORDS: Final = Path("confidential") / "records"
FINISHED: Final = "finished_days"
STORED: Final = "stored_days"
MEASURED: Final = "measured_days"
"""How far a day has come: Dagster can start any stage alone, and a day with a stage left out must not pass as done."""
ONE_DAY: Final = timedelta(days=1)

Stretch = tuple[date, date]
"""First and last day of an unbroken stretch of days."""


class NotStaged(FileNotFoundError):
    """A stage was run without the one before it."""


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


def finished_days(root: Path, mark: str = FINISHED) -> set[date]:
    """Arrival days that are done in the data root `root`, or that came as far as `mark`. Raises `DamagedTable`."""
    path = root / RECORDS / f"{mark}.json"
    try:
        pairs = json.loads(path.read_bytes()) if path.exists() else []
        return {day for a, b in pairs for day in days_between(date.fromisoformat(a), date.fromisoformat(b))}
    except (ValueError, TypeError):
        raise DamagedTable(f"the record {mark} cannot be read: it is damaged") from None


def _text(days: Iterable[date]) -> bytes:
    return json.dumps([[str(first), str(last)] for first, last in stretches(days)]).encode()


def mark_finished(root: Path, days: Sequence[date], mark: str = FINISHED) -> None:
    """Remember that `days` are done, or came as far as `mark`."""
    make_directory(root / RECORDS)
    atomic_write(root / RECORDS / f"{mark}.json", _text(finished_days(root, mark) | set(days)))


def require_passed(root: Path, days: Sequence[date], mark: str) -> None:
    """Raise `NotStaged` unless each of `days` is done, or came as far as `mark` since it last got a delivery."""
    if missing := set(days) - finished_days(root, mark) - finished_days(root):
        raise NotStaged(
            f"{len(missing)} days, the first is {min(missing)}, did not go through the stages before this one"
        )


def reopen(root: Path, days: Sequence[date]) -> None:
    """Forget that `days` are done, because something new was taken for them; unknown ones are fine."""
    for mark in (FINISHED, MEASURED, STORED):
        left = finished_days(root, mark)
        if left & set(days):
            atomic_write(root / RECORDS / f"{mark}.json", _text(left - set(days)))
