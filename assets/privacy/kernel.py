"""Bounding and counting in shards: bounding by person, counting by any rows at all.

Why sharding changes nothing: whether an event of a person is kept depends on that person's events only, new and decided
(`bounding`), and a count of cells is the sum of the counts of any parts. Noise sees the sum and is drawn here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Final

import numpy as np
import pyarrow as pa

from assets.contract.city import City
from assets.contract.terms import Caps, MeasuredTable
from assets.lake.distribute import Engine, Tables, by_column, merged
from assets.privacy import bounding, counting

COUNTED_HERE: Final = 1_000_000
"""Fewer events than this are counted in this process: that takes a blink, a job of a cluster a large part of a second."""
_NEW_ORDER: Final = ("decided_on", "person_key", "case_key", "clinic", "event_day")


def decide_shard(tables: Tables, caps: Caps, epoch: date, former: Sequence[tuple[date, Caps]]) -> Tables:
    """`decide` for one shard of persons."""
    return {"decisions": bounding.decide(tables["new"], tables["decided"], caps, epoch, former)}


def decide(
    engine: Engine, new: pa.Table, decided: pa.Table, caps: Caps, epoch: date, former: Sequence[tuple[date, Caps]] = ()
) -> pa.Table:
    """What `bounding.decide` returns for `new`, which is sorted by all its columns."""
    tables = {"new": new, "decided": decided}
    parts = engine.each(
        decide_shard, tables, lambda: by_column(tables, "person_key"), caps=caps, epoch=epoch, former=former
    )
    return merged(parts, {"decisions": _NEW_ORDER})["decisions"]


def count_shard(tables: Tables, table: MeasuredTable, city: City) -> Tables:
    """`count` of some events, as one column of cells."""
    return {"cells": pa.table({"events": counting.count(tables["events"], table, city).ravel()})}


def count(engine: Engine, events: pa.Table, table: MeasuredTable, city: City) -> np.ndarray:
    """What `counting.count` returns."""
    if events.num_rows < COUNTED_HERE:
        return counting.count(events, table, city)
    tables = {"events": events}
    parts = engine.each(count_shard, tables, lambda: by_column(tables, "case_key"), table=table, city=city)
    shape = [len(city.categories(axis)) for axis in ("care", *table.axes)]
    whole: np.ndarray = sum(part["cells"].column("events").to_numpy() for part in parts).reshape(shape)
    return whole
