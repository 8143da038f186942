"""Exact counts of events in the full cross product of public lists. They live in memory only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City, MeasuredTable
from assets.contract.codes import CARE, LOS_BIN_KEYS


def count(events: pa.Table, table: MeasuredTable, city: City) -> np.ndarray:
    """int64 array of shape (care, *dimensions of `table`): events in each cell, zeros included.

    `events`: `EVENTS` of the unit of time, with a column `los` where the table needs it; a case that is
    still in hospital counts in the open bin, which the table's extra lag makes true. Raises `ValueError`
    where an event lies outside a public list.
    """
    axes = [("care", CARE), *((d, city.categories(d)) for d in table.dimensions)]
    flat = np.zeros(events.num_rows, dtype=np.int64)
    for name, categories in axes:
        column = events.column(name).combine_chunks()
        if name == "los":
            column = column.fill_null(LOS_BIN_KEYS[-1])
        place = pc.index_in(column, pa.array(categories)).to_numpy(zero_copy_only=False)
        if events.num_rows and np.isnan(place.astype(float)).any():
            raise ValueError(f"an event lies outside the public list of {name}")
        flat = flat * len(categories) + place.astype(np.int64)
    shape = tuple(len(categories) for _, categories in axes)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
