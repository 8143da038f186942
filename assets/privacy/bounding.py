"""Contribution bounding: which events of a person count. Causal and per person: no one else's data matters.

An event is kept iff afterwards the person has at most `caps.window` kept events in every 364-day interval,
at most one in its ISO week and at most `caps.period` in its 28-day period. Events are decided in order of
arrival, once, and never again, so that a decision never depends on what comes later.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa

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


def decide(new: pa.Table, decided: pa.Table, caps: Caps, epoch: date) -> pa.Table:
    """`BOUNDING_DECISIONS` for the events of `new`, given all earlier decisions.

    `new`: decided_on, person_key, case_key, clinic, event_day; each case once and not in `decided`.
    """
    frame: pd.DataFrame = new.to_pandas(date_as_object=False)
    if frame.empty:
        return BOUNDING_DECISIONS.empty_table()
    frame = frame.sort_values(["decided_on", "event_day", "case_key"], kind="stable", ignore_index=True)
    origin = np.datetime64(epoch, "D")
    day = (frame["event_day"].to_numpy().astype("datetime64[D]") - origin).astype(np.int64)
    person, persons = pd.factorize(frame["person_key"])
    earlier: pd.DataFrame = decided.to_pandas(date_as_object=False)
    earlier = earlier[earlier["kept"] & earlier["person_key"].isin(persons)]
    before = pd.Index(persons).get_indexer(earlier["person_key"])
    before_day = (earlier["event_day"].to_numpy().astype("datetime64[D]") - origin).astype(np.int64)
    n_before = np.bincount(before, minlength=len(persons))
    place = frame.groupby(person).cumcount().to_numpy()
    slots = int(n_before.max(initial=0)) + int(place.max(initial=0)) + 1
    kept_days = np.full((len(persons), slots), _NEVER, dtype=np.int64)
    kept_days[before, pd.Series(before).groupby(before).cumcount().to_numpy()] = before_day
    used = n_before.copy()
    kept = np.zeros(len(frame), dtype=bool)
    for turn in range(int(place.max()) + 1):
        rows = np.flatnonzero(place == turn)
        who, when = person[rows], day[rows]
        mine = kept_days[who][:, : int(used[who].max()) + 1]
        week = (mine // WEEK_DAYS == (when // WEEK_DAYS)[:, None]).sum(axis=1) >= caps.week
        period = (mine // PERIOD_DAYS == (when // PERIOD_DAYS)[:, None]).sum(axis=1) >= caps.period
        keep = ~(week | period | _window_full(mine, when, caps.window))
        kept[rows] = keep
        kept_days[who[keep], used[who[keep]]] = when[keep]
        used[who[keep]] += 1
    frame["kept"] = kept
    return pa.Table.from_pandas(frame[BOUNDING_DECISIONS.names], schema=BOUNDING_DECISIONS, preserve_index=False)
