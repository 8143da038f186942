"""Contribution bounding: which events of a person count. Causal and per person: no one else's data matters.

An event is kept iff afterwards the person has at most `caps.window` kept events in every 364-day interval,
at most one in its ISO week and at most `caps.period` in its 28-day period. Events are decided in order of
arrival, once, and never again, so that a decision never depends on what comes later.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import PERIOD_DAYS, WEEK_DAYS, WINDOW_DAYS, Caps
from assets.contract.schemas import BOUNDING_DECISIONS

_NEVER = -(10**9)


def _window_full(days: np.ndarray, new: np.ndarray, cap: int) -> np.ndarray:
    """Whether adding `new` puts more than `cap` of the kept `days` (persons × slots) into some 364 days.

    An interval that is too full can be moved to start at one of its events; only intervals that hold the
    new day can become too full.
    """
    starts = np.concatenate([days, new[:, None]], axis=1)
    full = np.zeros(len(new), dtype=bool)
    for column in range(starts.shape[1]):
        start = starts[:, column]
        holds_new = (start <= new) & (new < start + WINDOW_DAYS)
        inside = ((days >= start[:, None]) & (days < start[:, None] + WINDOW_DAYS)).sum(axis=1) + 1
        full |= holds_new & (inside > cap)
    return full


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


def decide(new: pa.Table, decided: pa.Table, caps: Caps, epoch: date) -> pa.Table:
    """`BOUNDING_DECISIONS` for the events of `new`, in their order, given all earlier decisions.

    `new`: decided_on, person_key, case_key, clinic, event_day; each case once and not in `decided`. All persons
    take their next event at the same time, so Python runs as often as the busiest person has events.
    """
    if not new.num_rows:
        return BOUNDING_DECISIONS.empty_table()
    encoded = new.column("person_key").combine_chunks().dictionary_encode()
    person = encoded.indices.to_numpy().astype(np.int64)
    n_persons = len(encoded.dictionary)
    decided_on, day = _days(new.column("decided_on"), epoch), _days(new.column("event_day"), epoch)
    order = _order(new, person, decided_on, day)

    earlier = decided.filter(decided.column("kept"))
    before_day = _days(earlier.column("event_day"), epoch)
    before = pc.index_in(earlier.column("person_key"), value_set=encoded.dictionary).combine_chunks()
    who_before = before.fill_null(-1).to_numpy().astype(np.int64)
    near = (who_before >= 0) & (before_day > day.min() - WINDOW_DAYS) & (before_day < day.max() + WINDOW_DAYS)
    who_before, before_day = who_before[near], before_day[near]
    used = np.bincount(who_before, minlength=n_persons)
    events = np.bincount(person, minlength=n_persons)
    kept_days = np.full((n_persons, int(used.max() + events.max())), _NEVER, dtype=np.int32)
    by_person = np.argsort(who_before, kind="stable")
    starts = np.concatenate([[0], np.cumsum(used)[:-1]])
    slot = np.arange(len(by_person)) - starts[who_before[by_person]]
    kept_days[who_before[by_person], slot] = before_day[by_person]

    kept = np.zeros(new.num_rows, dtype=bool)
    first = np.concatenate([[0], np.cumsum(events)[:-1]])
    for turn in range(int(events.max())):
        who = np.flatnonzero(events > turn)
        rows = order[first[who] + turn]
        when = day[rows].astype(np.int32)
        mine = kept_days[:, : int(used[who].max()) + 1][who]
        week = (mine // WEEK_DAYS == (when // WEEK_DAYS)[:, None]).sum(axis=1) >= caps.week
        period = (mine // PERIOD_DAYS == (when // PERIOD_DAYS)[:, None]).sum(axis=1) >= caps.period
        keep = ~(week | period | _window_full(mine, when, caps.window))
        kept[rows] = keep
        kept_days[who[keep], used[who[keep]]] = when[keep]
        used[who[keep]] += 1
    return new.append_column("kept", pa.array(kept)).select(BOUNDING_DECISIONS.names).cast(BOUNDING_DECISIONS)
