"""Taking rows out of a stored table, month by month, so that a day's record holds at every moment."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.stage import REGISTER
from assets.identity.record import RECORDED, announce_erasure, conclude_erasure
from assets.lake.lake import Lake, Mask

FROZEN: Final = ("events", "late_events")
"""Tables in which a stored day, even an empty one, means that it is closed; in the consent register, that it ran."""


def rewrite(lake: Lake, table: str, schema: pa.Schema, column: str, gone: Mask) -> int:
    """Erase the rows of the mask `gone` from `table`, month by month; number of erased rows."""
    first = 0
    for held, number in lake.months(table):
        erased, first = gone[first : first + number], first + number
        if not erased.any():
            continue
        rows = lake.read(table, schema, held)
        kept = rows.filter(pa.array(~erased))
        if table in RECORDED:
            days = rows.column(column).filter(pa.array(erased)).unique()
            announce_erasure(lake, table, days.to_pylist(), kept.filter(pc.is_in(kept.column(column), days)))
        # The whole month, because its other days are at hand and would otherwise be read again.
        lake.write_days(table, held, kept, column, keep_empty=table in (*FROZEN, REGISTER))
        if table in RECORDED:
            conclude_erasure(lake)
    return int(gone.sum())


def mask(rows: pa.Array | pa.ChunkedArray) -> Mask:
    found: Mask = rows.to_numpy(zero_copy_only=False) if isinstance(rows, pa.Array) else rows.to_numpy()
    return found
