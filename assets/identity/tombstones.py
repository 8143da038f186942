"""Contribution counters of erased patients, under keyed hashes.

So that leaving and joining again cannot spend more than one budget: what was counted stays counted until its
window ends, though nothing says any more whose it was. Not here: consents (`consent.tombstones`), links (`persons`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.schemas import BOUNDING_DECISIONS
from assets.contract.terms import WINDOW_DAYS
from assets.lake.keys import Keyring, derive, keyed_hashes

MARK: Final = "tombstone:"
# Cases are admitted up to 60 days (the largest freeze lag) before the day on which they are decided.
_KEPT_DAYS: Final = WINDOW_DAYS + 60


def _hashes(values: pa.Array | pa.ChunkedArray, keys: Keyring, kind: str) -> pa.Array:
    """Marked hashes of stored pseudonyms, under the cover of the period as these are; null stays null."""
    key = derive(keys.pseudonym, "tombstone", "counter", kind)
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pc.binary_join_element_wise(pa.scalar(MARK), keys.cover(keyed_hashes(keys.uncover(whole), key)), "")


def retire(
    bounding: pa.Table, case_keys: pa.Array, living: Callable[[pa.ChunkedArray], pa.Array], on: date, keys: Keyring
) -> pa.Table:
    """`BOUNDING_DECISIONS` with the pseudonyms of erased cases as hashes, and of persons without any case.

    `case_keys`: erased cases; `living`: which of the persons given still have one. Tombstones whose window is over on
    `on` are dropped.
    """
    cases, persons = bounding.column("case_key"), bounding.column("person_key")
    before = pc.starts_with(cases, MARK)
    now = pc.and_(pc.invert(before), pc.is_in(cases, case_keys))
    erased = pc.or_(before, now)
    if not pc.any(erased).as_py():
        return bounding
    still = pc.is_in(persons, value_set=living(persons.filter(erased)))
    lost = pc.and_(erased, pc.invert(pc.or_(pc.starts_with(persons, MARK), still)))
    table = _replaced(_replaced(bounding, "case_key", now, keys), "person_key", lost, keys)
    over = pc.less(table.column("event_day"), pa.scalar(on - timedelta(_KEPT_DAYS)))
    return table.filter(pc.invert(pc.and_(erased, over))).cast(BOUNDING_DECISIONS)


def _replaced(table: pa.Table, column: str, where: pa.Array, keys: Keyring) -> pa.Table:
    """`table` with the hashes of `column` in the rows `where`; nothing else is hashed."""
    values = table.column(column)
    hashes = _hashes(pc.if_else(where, values, pa.scalar(None, pa.string())), keys, column)
    return table.set_column(table.column_names.index(column), column, pc.if_else(where, hashes, values))


def recognise(bounding: pa.Table, cases: Callable[[], pa.Table], keys: Keyring) -> pa.Table:
    """`bounding` with the pseudonyms of persons and cases that are in `cases` again, in memory only.

    `cases` are asked only where a counter was retired at all: each of their pseudonyms costs a hash. A person is found by the patient too: who had no insured number before may come again with one.
    """
    if not any(pc.any(pc.starts_with(bounding.column(n), MARK)).as_py() for n in ("person_key", "case_key")):
        return bounding
    named = cases()
    for column, names in (("person_key", ("person_key", "patient_key")), ("case_key", ("case_key",))):
        values = bounding.column(column)
        back = pa.chunked_array([c for n in names for c in named.column(n).chunks], pa.string()).unique()
        place = pc.index_in(values, _hashes(back, keys, column))
        known = pc.if_else(pc.is_null(place), values, back.take(pc.fill_null(place, 0))) if len(back) else values
        bounding = bounding.set_column(bounding.column_names.index(column), column, known)
    return bounding.cast(BOUNDING_DECISIONS)


def person_rows(bounding: pa.Table, person_keys: pa.Array, keys: Keyring) -> list[dict[str, Any]]:
    """Rows of `bounding` of one person, by all pseudonyms it was counted under, erased ones included, with `erased`."""
    names = pa.concat_arrays([person_keys, _hashes(person_keys, keys, "person_key")])
    rows = bounding.filter(pc.is_in(bounding.column("person_key"), names)).to_pylist()
    return [row | {"erased": row["case_key"].startswith(MARK)} for row in rows]
