"""Exact counts of events in the full cross product of public lists. They live in memory only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.contract.codes import CARE, LOS_BIN_KEYS, OUTCOMES
from assets.contract.terms import MeasuredTable

STILL_IN_HOSPITAL = {"los": LOS_BIN_KEYS[-1], "outcome": OUTCOMES[-1]}
"""Category of a case that has not ended when its table is measured; the table's extra lag makes that rare."""


def count(events: pa.Table, table: MeasuredTable, city: City) -> np.ndarray:
    """int64 array of shape (care, *axes of `table`): events in each cell, zeros included.

    `events`: `EVENTS` of the unit of time, with `los` and `outcome` where the table needs them. Raises `ValueError`
    where an event lies outside a public list.
    """
    axes = [("care", CARE), *((d, city.categories(d)) for d in table.axes)]
    flat = np.zeros(events.num_rows, dtype=np.int64)
    for name, categories in axes:
        column = events.column(name).combine_chunks()
        if name in STILL_IN_HOSPITAL:
            column = column.fill_null(STILL_IN_HOSPITAL[name])
        place = pc.index_in(column, pa.array(categories)).to_numpy(zero_copy_only=False)
        if events.num_rows and np.isnan(place.astype(float)).any():
            raise ValueError(f"an event lies outside the public list of {name}")
        flat = flat * len(categories) + place.astype(np.int64)
    shape = tuple(len(categories) for _, categories in axes)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
