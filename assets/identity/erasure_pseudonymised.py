"""Erasure from the pseudonymised tables: of patients, of cases, and of what today's consents no longer permit.

Contribution counters stay as tombstones (`identity.tombstones`). Not here: who goes (`erasure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import cache
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.numbers import among
from assets.consent.rule import decide
from assets.consent.stage import (
    PATIENTS,
    REGISTER,
    evaluation_day,
    full_exports,
    groups,
    judged_now,
    majority,
    register_of,
)
from assets.contract.city import City
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    CASES,
    EVENTS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
    PSEUDONYMISED_PROCEDURES,
    only,
)
from assets.identity.persons import LINKS, known_links, linked, links_with, seal
from assets.identity.pseudonyms import patient_keys
from assets.identity.rewriting import FROZEN, mask, rewrite
from assets.identity.tombstones import RETURNED, copy_counters, only_retired, retire
from assets.lake.engine import connect, load
from assets.lake.lake import Lake, Mask

# The tables grow with the years: only these columns are read, and whole rows of the months in which some must go.
_JUDGED_BY: Final = ("clinic", "arrival_day", "case_key", "patient_key", "admitted_on", "discharged_on")
STORED: Final = only(PSEUDONYMISED_CASES, *_JUDGED_BY)
_CASE_KEY: Final = only(PSEUDONYMISED_CASES, "case_key")
FOLLOWING: Final = (
    ("diagnoses", PSEUDONYMISED_DIAGNOSES, "arrival_day"),
    ("procedures", PSEUDONYMISED_PROCEDURES, "arrival_day"),
    *((table, EVENTS, "event_day") for table in FROZEN),
)


def no_longer_permitted(lake: Lake, city: City, days: Sequence[date], stored: pa.Table) -> pa.Array:
    """Keys of `stored` cases whose newest version today's consents do not permit.

    Cases whose newest version came in this run have just been judged; of the others, only those are judged whose
    patient's answer may have changed.
    """
    before = pc.invert(pc.is_in(stored.column("arrival_day"), pa.array(days, pa.date32())))
    if not pc.any(before, min_count=0).as_py():
        return pa.array([], pa.string())
    judged, found = judged_now(lake, city, days), [pa.array([], pa.string())]
    who = groups(lake.read(REGISTER, PATIENTS) if judged is None else judged)
    names = [patient_keys(group, lake.keys) for group in who]
    on, full, of_age = evaluation_day(lake, days), full_exports(lake, city), majority(lake, city)
    for group, keys in zip(who, names, strict=True):
        newest = _newest_before(stored, keys, days)
        if newest.num_rows:
            register, _ = register_of(lake, group, PATIENTS.empty_table())
            decisions = decide(newest, register, city.consent, on, full, of_age)
            found.append(decisions.filter(pc.invert(decisions.column("permitted"))).column("case_id").combine_chunks())
    if judged is None:  # and cases of patients of whom the register knows no document
        known = pa.chunked_array([chunk for keys in names for chunk in keys.column("key").chunks], pa.string())
        unknown = pc.and_(before, pc.invert(pc.is_in(stored.column("patient_key"), known)))
        strangers = stored.filter(unknown).select(["clinic", "patient_key"]).rename_columns(["clinic", "key"])
        found.append(
            _newest_before(stored, strangers.append_column("id", strangers.column("key")), days)
            .column("case_id")
            .combine_chunks()
        )
    return pa.concat_arrays(found)


def _newest_before(stored: pa.Table, patients: pa.Table, days: Sequence[date]) -> pa.Table:
    """`CASES` under pseudonyms: the newest version of each `stored` case, where it is one of `patients` (clinic, id,
    key) and did not come on `days`; `patient_id`: the patient's id."""
    theirs = stored.column("case_key").filter(
        pc.is_in(stored.column("patient_key"), patients.column("key").combine_chunks())
    )
    with connect() as con:
        load(
            con,
            stored=stored.filter(pc.is_in(stored.column("case_key"), theirs.unique())).select(_JUDGED_BY),
            patients=patients.group_by(["clinic", "id", "key"]).aggregate([]),
        )
        absent = ", ".join(f"NULL AS {n}" for n in CASES.names if n not in (*_JUDGED_BY, "case_id", "patient_id"))
        rows = con.execute(
            f"""SELECT s.clinic, arrival_day, case_key AS case_id, p.id AS patient_id, admitted_on, discharged_on, {absent}
            FROM (FROM stored QUALIFY row_number() OVER (PARTITION BY case_key ORDER BY arrival_day DESC) = 1) s
            JOIN patients p ON p.clinic = s.clinic AND p.key = s.patient_key
            WHERE arrival_day NOT IN (SELECT unnest(CAST($days AS DATE[])))""",
            {"days": list(days)},
        ).to_arrow_table()
    return rows.select(CASES.names).cast(CASES)


def _still_of(stored: pa.Table, own: pa.Array, theirs: pa.Array) -> pa.Array:
    """Those cases of `theirs` whose newest version in `stored` is one of the rows `own`."""
    if not len(theirs):
        return theirs
    with connect() as con:
        of_them = stored.select(["case_key", "arrival_day"]).append_column("own", own)
        load(con, versions=of_them.filter(pc.is_in(of_them.column("case_key"), value_set=theirs)))
        newest = con.execute("SELECT case_key FROM versions GROUP BY case_key HAVING arg_max(own, arrival_day)")
        return newest.to_arrow_table().column("case_key").combine_chunks()


def erase_pseudonymised(
    lake: Lake, stored: pa.Table, patients: pa.Array, cases: pa.Array, since: date
) -> dict[str, int]:
    """Erase `patients` and `cases` (pseudonyms) from `stored`, all cases, and every other table; rows by table.

    `since`: the first event day of which counters are kept (`needed_from`).
    """
    counts = {table: 0 for table in ("cases", *(name for name, _, _ in FOLLOWING))}
    own = pc.is_in(stored.column("patient_key"), patients)
    theirs = stored.column("case_key").filter(own).unique()
    # A case that its clinic moved to somebody else is theirs now: only the former patient's versions go.
    everything = pa.chunked_array([cases, _still_of(stored, own, theirs)], pa.string()).unique()
    erased = mask(pc.or_(own, pc.is_in(stored.column("case_key"), everything)))
    versions = stored.filter(pa.array(erased)).select(["case_key", "arrival_day"])
    counted = pa.chunked_array([everything, theirs], pa.string()).unique()

    def gone_of(table: str) -> Mask:
        if table in FROZEN:
            return mask(pc.is_in(lake.read(table, _CASE_KEY).column("case_key"), counted))
        rows = lake.read(table, only(PSEUDONYMISED_CASES, *versions.column_names))
        return mask(pc.or_(pc.is_in(rows.column("case_key"), everything), among(rows, versions)))

    if erased.any() or any(gone_of(table).any() for table in FROZEN):
        for table, schema, column in FOLLOWING:
            counts[table] = rewrite(lake, table, schema, column, gone_of(table))
    known = known_links(lake)
    ended = pc.is_in(known.column("patient_key"), patients)
    # Sealed ones too: a restored backup may hold the rows of somebody who was linked, and left, after it was made.
    links = links_with(lake, stored.column("patient_key").filter(own).unique)

    @cache  # read only if asked for
    def names_of_the_living() -> pa.Array:
        persons = lake.read("cases", only(PSEUDONYMISED_CASES, "person_key")).column("person_key")
        of_persons, own_names = (n.filter(pa.array(~erased)).unique() for n in (persons, stored.column("patient_key")))
        by_now = linked(pa.table({"person_key": own_names}), links).column("person_key")
        return pa.chunked_array([of_persons, own_names, *by_now.chunks], pa.string()).unique()

    def living(persons: pa.Array) -> pa.Array:
        return persons.filter(pc.is_in(persons, value_set=names_of_the_living()))

    counters = [BOUNDING_DECISIONS.empty_table()]
    for held, _ in lake.months("bounding"):
        bounding = lake.read("bounding", BOUNDING_DECISIONS, held)
        retired = retire(bounding, patients, everything, theirs, links, living, since, lake.keys)
        if not retired.equals(bounding):
            lake.erase_record(RETURNED)
            lake.write_days("bounding", held, retired, "decided_on")
        counters.append(only_retired(retired))
    seal(lake, known.filter(ended))
    copy_counters(lake, pa.concat_tables(counters))
    counts["links"] = rewrite(lake, "links", LINKS, "arrival_day", mask(ended))
    # Last, because this table tells what must go: if the process dies before, the next run starts over.
    counts["cases"] = rewrite(lake, "cases", PSEUDONYMISED_CASES, "arrival_day", erased)
    lake.write_record(RETURNED, {"all": True})
    return counts
