"""Contribution bounding: which events of a person count. Causal and per person: no one else's data matters.

An event is kept iff afterwards the person has at most `caps.window` kept events in every 364-day interval that holds
it, at most one in its ISO week and at most `caps.period` in its 28-day period. Events are decided once, in order of
arrival, so that a decision never depends on what comes later.

The caps are those of the event's own budget window. Where windows have different caps, each window still holds no more than
its own: the window is one of those intervals, and the event of it that is kept last was checked against all the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.schemas import BOUNDING_DECISIONS
from assets.contract.terms import PERIOD_DAYS, WEEK_DAYS, WINDOW_DAYS, Caps

_NEVER = -(10**9)


def _fits(days: np.ndarray, new: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Whether each person may keep the event on `new` beside the kept `days` (slots × persons), given `_limits` of `new`.

    An overfull interval can be shifted to start at one of its events, and only intervals that contain the new day can become
    overfull. So only persons with at least as many events within a window's length as a window may hold need a closer look.
    """
    in_week, in_period, in_window = limits
    same_week = (days // WEEK_DAYS == new // WEEK_DAYS).sum(axis=0, dtype=np.int16)
    same_period = (days // PERIOD_DAYS == new // PERIOD_DAYS).sum(axis=0, dtype=np.int16)
    near = (np.abs(days - new) < WINDOW_DAYS).sum(axis=0, dtype=np.int16)
    fits: np.ndarray = (same_week < in_week) & (same_period < in_period)
    close = np.flatnonzero(fits & (near >= in_window))
    mine, added = days[:, close], new[close]
    for start in (*mine, added):
        holds_new = (start <= added) & (added < start + WINDOW_DAYS)
        inside = ((mine >= start) & (mine < start + WINDOW_DAYS)).sum(axis=0, dtype=np.int16) + 1
        fits[close[holds_new & (inside > in_window[close])]] = False
    return fits


def _limits(day: np.ndarray, caps: Caps, former: Sequence[tuple[date, Caps]], epoch: date) -> np.ndarray:
    """Caps of a week, a period and a window that hold for events on each `day` (since `epoch`): int16, 3 × events."""
    ends = [(until - epoch).days for until, _ in former]
    every = np.array([[c.week, c.period, c.window] for c in (*(c for _, c in former), caps)], dtype=np.int16)
    limits: np.ndarray = every[np.searchsorted(ends, day)].T
    return limits


def _days(column: pa.ChunkedArray, epoch: date) -> np.ndarray:
    days: np.ndarray = column.combine_chunks().cast(pa.int32()).to_numpy(zero_copy_only=False).astype(np.int64)
    return days - np.datetime64(epoch, "D").astype(np.int64)


def _order(new: pa.Table, person: np.ndarray, decided_on: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Rows by person, then arrival, admission and case: names are compared only where days leave a tie."""
    arrival, admission = decided_on - decided_on.min(), day - day.min()
    key = (person * (arrival.max() + 1) + arrival) * (admission.max() + 1) + admission  # one integer sorts fastest
    order = np.argsort(key)
    same = np.diff(key[order]) == 0
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    if len(tied):
        rows = order[tied]
        names = new.column("case_key").take(pa.array(rows))
        rank = pc.rank(names, tiebreaker="first").to_numpy(zero_copy_only=False)
        order[tied] = rows[np.lexsort((rank, key[rows]))]
    return order


def _before(decided: pa.Table, people: pa.Array, day: np.ndarray, epoch: date) -> tuple[np.ndarray, np.ndarray]:
    """Person (place in `people`) and day of the events kept earlier that can matter to events on the days `day`."""
    kept = decided.filter(decided.column("kept"))
    who = pc.index_in(kept.column("person_key"), value_set=people).combine_chunks().fill_null(-1).to_numpy()
    days = _days(kept.column("event_day"), epoch)
    near = (who >= 0) & (days > day.min() - WINDOW_DAYS) & (days < day.max() + WINDOW_DAYS)
    return who[near].astype(np.int64), days[near]


def decide(
    new: pa.Table, decided: pa.Table, caps: Caps, epoch: date, former: Sequence[tuple[date, Caps]] = ()
) -> pa.Table:
    """`BOUNDING_DECISIONS` for the events of `new`, in their order, given all earlier decisions.

    `new`: decided_on, person_key, case_key, clinic, event_day; each case once and not in `decided`. `former`: last day
    and caps of windows with others than `caps`, in order of time (`City.former_caps`). All persons
    take their next event at the same time, so the loop runs as often as the busiest person has events. Persons are sorted by
    number of events, busiest first, so those with a next event are a prefix.
    """
    if not new.num_rows:
        return BOUNDING_DECISIONS.empty_table()
    encoded = new.column("person_key").combine_chunks().dictionary_encode()
    person = encoded.indices.to_numpy().astype(np.int64)
    decided_on, day = _days(new.column("decided_on"), epoch), _days(new.column("event_day"), epoch)
    events = np.bincount(person)
    busiest = np.argsort(-events, kind="stable")
    first, events = (np.cumsum(events) - events)[busiest], events[busiest]
    order = _order(new, person, decided_on, day)
    limits = _limits(day, caps, former, epoch)

    who, days = _before(decided, encoded.dictionary, day, epoch)
    used = np.bincount(who, minlength=len(busiest))
    by_person = np.argsort(who, kind="stable")
    slot = np.arange(len(who)) - (np.cumsum(used) - used)[who[by_person]]
    windows = int(day.max() - day.min()) // WINDOW_DAYS + 1
    room = int(used.max()) + min(
        int(events[0]), int(limits[2].max()) * windows
    )  # of each window that `day` spans no more is kept
    used = used[busiest]
    kept_days = np.full((room, len(busiest)), _NEVER, dtype=np.int32)
    kept_days[slot, np.argsort(busiest)[who[by_person]]] = days[by_person]

    kept = np.zeros(new.num_rows, dtype=bool)
    for turn in range(int(events[0])):
        active = int(np.searchsorted(-events, -turn))
        rows = order[first[:active] + turn]
        when = day[rows].astype(np.int32)
        keep = _fits(kept_days[: int(used[:active].max()), :active], when, limits[:, rows])
        kept[rows] = keep
        keeping = np.flatnonzero(keep)
        kept_days[used[keeping], keeping] = when[keeping]
        used[keeping] += 1
    return new.append_column("kept", pa.array(kept)).select(BOUNDING_DECISIONS.names).cast(BOUNDING_DECISIONS)
