"""Contribution counters and person links of erased patients, under keyed hashes.

So that leaving and joining again cannot spend more than one budget: what was counted stays counted until its
window ends, though nothing says any more whose it was. Not here: consents (`consent.tombstones`).
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.schemas import BOUNDING_DECISIONS
from assets.contract.terms import WINDOW_DAYS
from assets.lake.keys import Keyring, derive, keyed_hashes

MARK: Final = "tombstone:"
LINK_TOMBSTONES: Final = pa.schema(
    [("arrival_day", pa.date32()), ("patient_hash", pa.string()), ("sealed_person", pa.string())]
)
"""`sealed_person`: the person's pseudonym, readable only with the patient's pseudonym and the key."""
# Cases are admitted up to 60 days (the largest freeze lag) before the day on which they are decided.
_KEPT_DAYS: Final = WINDOW_DAYS + 60


def _hashes(values: pa.Array | pa.ChunkedArray, keys: Keyring, kind: str) -> pa.Array:
    """Marked hashes of stored pseudonyms, under the cover of the period as these are; null stays null."""
    key = derive(keys.pseudonym, "tombstone", "counter", kind)
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pc.binary_join_element_wise(pa.scalar(MARK), keys.cover(keyed_hashes(keys.uncover(whole), key)), "")


def retire(bounding: pa.Table, case_keys: pa.Array, living: pa.Array, on: date, keys: Keyring) -> pa.Table:
    """`BOUNDING_DECISIONS` with the pseudonyms of erased cases as hashes, and of persons without any case.

    `case_keys`: erased cases; `living`: persons who still have one. Tombstones whose window is over on `on`
    are dropped.
    """
    cases, persons = bounding.column("case_key"), bounding.column("person_key")
    before = pc.starts_with(cases, MARK)
    now = pc.and_(pc.invert(before), pc.is_in(cases, case_keys))
    lost = pc.and_(pc.or_(before, now), pc.invert(pc.or_(pc.starts_with(persons, MARK), pc.is_in(persons, living))))
    table = _replaced(_replaced(bounding, "case_key", now, keys), "person_key", lost, keys)
    over = pc.less(table.column("event_day"), pa.scalar(on - timedelta(_KEPT_DAYS)))
    return table.filter(pc.invert(pc.and_(pc.or_(before, now), over))).cast(BOUNDING_DECISIONS)


def _replaced(table: pa.Table, column: str, where: pa.Array, keys: Keyring) -> pa.Table:
    """`table` with the hashes of `column` in the rows `where`; nothing else is hashed."""
    values = table.column(column)
    hashes = _hashes(pc.if_else(where, values, pa.scalar(None, pa.string())), keys, column)
    return table.set_column(table.column_names.index(column), column, pc.if_else(where, hashes, values))


def recognise(bounding: pa.Table, cases: pa.Table, keys: Keyring) -> pa.Table:
    """`bounding` with the pseudonyms of persons and cases that are in `cases` again, in memory only.

    A person is found by the patient too: who had no insured number before may come again with one.
    """
    for column, names in (("person_key", ("person_key", "patient_key")), ("case_key", ("case_key",))):
        values = bounding.column(column)
        if not pc.any(pc.starts_with(values, MARK)).as_py():
            continue
        back = pa.chunked_array([c for n in names for c in cases.column(n).chunks], pa.string()).unique()
        place = pc.index_in(values, _hashes(back, keys, column))
        known = pc.if_else(pc.is_null(place), values, back.take(pc.fill_null(place, 0))) if len(back) else values
        bounding = bounding.set_column(bounding.column_names.index(column), column, known)
    return bounding.cast(BOUNDING_DECISIONS)


def person_rows(bounding: pa.Table, person_keys: pa.Array, keys: Keyring) -> list[dict[str, Any]]:
    """Rows of `bounding` of one person, by all pseudonyms it was counted under, erased ones included, with `erased`."""
    names = pa.concat_arrays([person_keys, _hashes(person_keys, keys, "person_key")])
    rows = bounding.filter(pc.is_in(bounding.column("person_key"), names)).to_pylist()
    return [row | {"erased": row["case_key"].startswith(MARK)} for row in rows]


def _of_links(keys: Keyring, patients: pa.Array) -> tuple[pa.Array, pa.Array]:
    """For each patient (stored pseudonym): the hash it is found under, and the pad that seals its person."""
    bare = keys.uncover(patients)
    hashes, pads = (
        keyed_hashes(bare, derive(keys.pseudonym, "tombstone", "link", kind)) for kind in ("patient", "pad")
    )
    return keys.cover(hashes), pads


def _xor(values: pa.Array, pads: pa.Array) -> pa.Array:
    pairs = zip(values.to_pylist(), pads.to_pylist(), strict=True)
    return pa.array([f"{int(value, 16) ^ int(pad, 16):032x}" for value, pad in pairs], pa.string())


def seal_links(links: pa.Table, keys: Keyring) -> pa.Table:
    """`LINK_TOMBSTONES` of links of erased patients: one-time pad by a keyed hash of the patient's pseudonym."""
    patients, persons = (links.column(n).combine_chunks() for n in ("patient_key", "person_key"))
    hashes, pads = _of_links(keys, patients)
    sealed = keys.cover(_xor(keys.uncover(persons), pads))
    return pa.table([links.column("arrival_day"), hashes, sealed], schema=LINK_TOMBSTONES)


def open_links(
    sealed: pa.Table, patient_keys: pa.Array | pa.ChunkedArray, keys: Keyring, schema: pa.Schema
) -> pa.Table:
    """Links (`schema`: arrival_day, patient_key, person_key) of those `patient_keys` that have a tombstone."""
    if not sealed.num_rows:
        return schema.empty_table()
    patients = patient_keys.combine_chunks() if isinstance(patient_keys, pa.ChunkedArray) else patient_keys
    hashes, pads = _of_links(keys, patients)
    # The last tombstone of a patient counts: the table is turned round, and the first hit taken.
    newest = sealed.take(pa.array(range(sealed.num_rows - 1, -1, -1)))
    place = pc.index_in(hashes, newest.column("patient_hash").combine_chunks())
    rows, known = newest.take(place.drop_null()), pc.is_valid(place)
    persons = keys.cover(_xor(keys.uncover(rows.column("sealed_person").combine_chunks()), pads.filter(known)))
    return pa.table([rows.column("arrival_day"), patients.filter(known), persons], schema=schema)
