"""Who a person is: the patient of a clinic, until an insured number links them to one person over all clinics.

Bounding, patients at their cap, erasure and a patient's report all ask here, so that their answers cannot differ. A
link is learnt from a patient's first valid number and never changes, even if a day runs again or comes late with
another number or without; of several in one run the first by arrival day counts, then by pseudonym. Rows stored before a link was
known are not rewritten: they become the person's when they are read. Links of an erased patient are sealed, readable
only with the patient's pseudonym, so that whoever comes again is the same person. Not here: counters of the erased
(`tombstones`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.lake.engine import connect, load
from assets.lake.keys import Keyring, derive, keyed_hashes
from assets.lake.lake import Lake

LINKS: Final = pa.schema([("arrival_day", pa.date32()), ("patient_key", pa.string()), ("person_key", pa.string())])
SEALED_LINKS: Final = pa.schema(
    [("arrival_day", pa.date32()), ("patient_hash", pa.string()), ("sealed_person", pa.string())]
)
"""`sealed_person`: the person's pseudonym, readable only with the patient's pseudonym and the key."""
SEALED_TABLE: Final = "link_tombstones"

THAT_COUNTS: Final = "QUALIFY row_number() OVER (PARTITION BY patient_key ORDER BY arrival_day, person_key) = 1"
"""SQL that ends a query of links: of each patient, the one that counts."""


def known_links(lake: Lake) -> pa.Table:
    """`LINKS` of everybody who is not erased."""
    return lake.read("links", LINKS)


def links_with(lake: Lake, back: Callable[[], pa.Array | pa.ChunkedArray]) -> pa.Table:
    """`known_links`, and `LINKS` of those who were erased and are among the patients `back` (pseudonyms).

    `back` is called only if any link is sealed: each pseudonym costs a hash.
    """
    sealed = lake.read(SEALED_TABLE, SEALED_LINKS)
    known = known_links(lake)
    return pa.concat_tables([known, _opened(sealed, back(), lake.keys)]) if sealed.num_rows else known


def learnt(lake: Lake, days: Sequence[date], links: pa.Table, known: pa.Table) -> pa.Table:
    """`LINKS` to be stored of `days`: `links` of this run, those of earlier runs of these days, and those of who comes again.

    A second delivery without the number takes nothing back: the patient's cases would be another person's from then on.
    `known`: `links_with`. Whoever comes again, with a number or without, is linked for everybody to see from the last of `days` on.
    """
    parts = [lake.read("links", LINKS, days), links]
    if lake.rows(SEALED_TABLE):
        linked_before = pc.is_in(
            known.column("patient_key"), value_set=known_links(lake).column("patient_key").unique()
        )
        again = known.filter(pc.invert(linked_before))
        parts.append(again.set_column(0, "arrival_day", pa.repeat(days[-1], again.num_rows).cast(pa.date32())))
    every = pa.concat_tables(parts).group_by(LINKS.names).aggregate([])
    return every.sort_by([(n, "ascending") for n in LINKS.names]).cast(LINKS)


def linked(rows: pa.Table, known: pa.Table, as_of: str | None = None) -> pa.Table:
    """`rows` with each patient in `person_key` as the person that `known` (`LINKS`) names.

    `as_of`: a column of days; a link counts where it had arrived by then.
    """
    theirs = known.filter(pc.is_in(known.column("patient_key"), value_set=rows.column("person_key").unique()))
    if not theirs.num_rows:
        return rows
    first = theirs.sort_by([("arrival_day", "ascending"), ("person_key", "ascending")])
    # Of several links of a patient the place of the first.
    place = pc.index_in(rows.column("person_key"), value_set=first.column("patient_key").combine_chunks())
    if as_of:
        in_time = pc.less_equal(first.column("arrival_day").take(place), rows.column(as_of))
        place = pc.if_else(in_time, place, pa.scalar(None, place.type))
    person = pc.coalesce(first.column("person_key").take(place), rows.column("person_key"))
    return rows.set_column(rows.column_names.index("person_key"), "person_key", person)


def pseudonyms_of_person(lake: Lake, patient: pa.Array) -> pa.Array:
    """All pseudonyms under which the person of `patient` (pseudonym) may have been counted, in any clinic: the
    patient's own, the person that a link names, sealed or not, and every patient linked to that person."""
    with connect() as con:
        load(con, known=links_with(lake, lambda: patient), asked=pa.table({"patient_key": patient}))
        query = f"SELECT person_key FROM known SEMI JOIN asked USING (patient_key) {THAT_COUNTS}"
        named = con.execute(query).to_arrow_table().column("person_key")
    everyone = known_links(lake)
    others = everyone.filter(pc.is_in(everyone.column("person_key"), value_set=named)).column("patient_key")
    return pa.array([*named.to_pylist(), *patient.to_pylist(), *others.to_pylist()], pa.string()).unique()


def seal(lake: Lake, ended: pa.Table) -> None:
    """Keep `ended` (`LINKS` of patients who are erased) as `SEALED_LINKS`: one-time pad by a keyed hash of the patient."""
    if not ended.num_rows:
        return
    patients, persons = (ended.column(n).combine_chunks() for n in ("patient_key", "person_key"))
    hashes, pads = _hashes_and_pads(patients, lake.keys)
    persons = lake.keys.cover(_xor(lake.keys.uncover(persons), pads))
    sealed = pa.table([ended.column("arrival_day"), hashes, persons], schema=SEALED_LINKS)
    days = set(sealed.column("arrival_day").to_pylist())
    whole = pa.concat_tables([lake.read(SEALED_TABLE, SEALED_LINKS), sealed])
    lake.write_days(SEALED_TABLE, days, whole, "arrival_day")


def _opened(sealed: pa.Table, patients: pa.Array | pa.ChunkedArray, keys: Keyring) -> pa.Table:
    """`LINKS` of those `patients` of whom a link was sealed; of several the first, by which they were counted before."""
    asked = patients.combine_chunks() if isinstance(patients, pa.ChunkedArray) else patients
    hashes, pads = _hashes_and_pads(asked, keys)
    by_day = sealed.sort_by("arrival_day")
    place = pc.index_in(hashes, by_day.column("patient_hash").combine_chunks())
    rows, known = by_day.take(place.drop_null()), pc.is_valid(place)
    persons = keys.cover(_xor(keys.uncover(rows.column("sealed_person").combine_chunks()), pads.filter(known)))
    return pa.table([rows.column("arrival_day"), asked.filter(known), persons], schema=LINKS)


def _hashes_and_pads(patients: pa.Array, keys: Keyring) -> tuple[pa.Array, pa.Array]:
    """For each patient (stored pseudonym): the hash it is found under, and the pad that seals its person."""
    bare = keys.uncover(patients)
    hashes, pads = (
        keyed_hashes(bare, derive(keys.pseudonym, "tombstone", "link", kind)) for kind in ("patient", "pad")
    )
    return keys.cover(hashes), pads


def _xor(values: pa.Array, pads: pa.Array) -> pa.Array:
    pairs = zip(values.to_pylist(), pads.to_pylist(), strict=True)
    return pa.array([f"{int(value, 16) ^ int(pad, 16):032x}" for value, pad in pairs], pa.string())
