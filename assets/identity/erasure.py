"""Erasure: what is no longer permitted leaves every table, and a patient who withdrew leaves the data root.

Every run judges stored cases again by today's consents, and erases what is no longer permitted from the
pseudonymised tables. A patient who withdrew, or whose consent ended, is erased from landing,
quarantine, decisions and the consent register as well; tombstones (`consent.tombstones`,
`identity.tombstones`) remember the withdrawal and the contribution counters under keyed hashes. What is
published stays: it is differentially private and holds nobody's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.changes import BEGUN, remember
from assets.consent.majority import MAJORITY
from assets.consent.numbers import among
from assets.consent.rule import decide
from assets.consent.stage import (
    PATIENTS,
    REGISTER,
    STANDING,
    documents_of,
    evaluation_day,
    full_exports,
    groups,
    judged_now,
    majority,
    register_of,
)
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.consent.tombstones import bury, copy_beside_raw, distinct, patient_hashes
from assets.contract.city import City
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    CANONICAL,
    CASES,
    CONSENT_DECISIONS,
    CONSENT_PROVISIONS,
    EVENTS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
    PSEUDONYMISED_PROCEDURES,
    only,
)
from assets.identity.deleted import DELETED_CASES, is_deleted
from assets.identity.persons import LINKS, known_links, linked, links_with, seal
from assets.identity.pseudonyms import case_keys, patient_keys
from assets.identity.record import RECORDED, announce_erasure, conclude_erasure
from assets.identity.tombstones import RETURNED, copy_counters, needed_from, only_retired, retire
from assets.intake.landing import Erased, erase_patients
from assets.lake import audit
from assets.lake.engine import connect, load
from assets.lake.lake import Lake, Mask

_FROZEN: Final = ("events", "late_events")
"""Tables in which a stored day, even an empty one, means that it is closed; in the consent register, that it ran."""
_IDS: Final = ("clinic", "patient_id", "case_id")
# These tables grow with the years: only these columns are read, and whole rows of the months in which some must go.
_DECIDED: Final = only(CONSENT_DECISIONS, *_IDS, "arrival_day", "export_id", "permitted", "reason")
_JUDGED_BY: Final = ("clinic", "arrival_day", "case_key", "patient_key", "admitted_on", "discharged_on")
_STORED: Final = only(PSEUDONYMISED_CASES, *_JUDGED_BY)
_GRANTED: Final = only(CONSENT_PROVISIONS, "clinic", "consent_id", "decision", "status")
_CASE_KEY: Final = only(PSEUDONYMISED_CASES, "case_key")
_FOLLOWING: Final = (
    ("diagnoses", PSEUDONYMISED_DIAGNOSES, "arrival_day"),
    ("procedures", PSEUDONYMISED_PROCEDURES, "arrival_day"),
    *((table, EVENTS, "event_day") for table in _FROZEN),
)
# Tables under original ids; a quarantined row may lack one of its two ids.
_ORIGINAL: Final = (
    ("consent_decisions", CONSENT_DECISIONS),
    *((f"quarantine/{n}", CANONICAL[n].append(pa.field("rule", pa.string())))
      for n in ("cases", "persons", "diagnoses", "procedures")),
    (REGISTER, CONSENT_PROVISIONS),
    ("majority", MAJORITY),
)  # fmt: skip


def _rewrite(lake: Lake, table: str, schema: pa.Schema, column: str, gone: Mask) -> int:
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
        lake.write_days(table, held, kept, column, keep_empty=table in (*_FROZEN, REGISTER))
        if table in RECORDED:
            conclude_erasure(lake)
    return int(gone.sum())


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


def _erase_pseudonymised(
    lake: Lake, stored: pa.Table, patients: pa.Array, cases: pa.Array, since: date
) -> dict[str, int]:
    """Erase `patients` and `cases` (pseudonyms) from `stored`, all cases, and every other table; rows by table.

    `since`: the first event day of which counters are kept (`needed_from`).
    """
    counts = {table: 0 for table in ("cases", *(name for name, _, _ in _FOLLOWING))}
    own = pc.is_in(stored.column("patient_key"), patients)
    theirs = stored.column("case_key").filter(own).unique()
    # A case that its clinic moved to somebody else is theirs now: only the former patient's versions go.
    everything = pa.chunked_array([cases, _still_of(stored, own, theirs)], pa.string()).unique()
    erased = _mask(pc.or_(own, pc.is_in(stored.column("case_key"), everything)))
    versions = stored.filter(pa.array(erased)).select(["case_key", "arrival_day"])
    counted = pa.chunked_array([everything, theirs], pa.string()).unique()

    def gone_of(table: str) -> Mask:
        if table in _FROZEN:
            return _mask(pc.is_in(lake.read(table, _CASE_KEY).column("case_key"), counted))
        rows = lake.read(table, only(PSEUDONYMISED_CASES, *versions.column_names))
        return _mask(pc.or_(pc.is_in(rows.column("case_key"), everything), among(rows, versions)))

    if erased.any() or any(gone_of(table).any() for table in _FROZEN):
        for table, schema, column in _FOLLOWING:
            counts[table] = _rewrite(lake, table, schema, column, gone_of(table))
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
    counts["links"] = _rewrite(lake, "links", LINKS, "arrival_day", _mask(ended))
    # Last, because this table tells what must go: if the process dies before, the next run starts over.
    counts["cases"] = _rewrite(lake, "cases", PSEUDONYMISED_CASES, "arrival_day", erased)
    lake.write_record(RETURNED, {"all": True})
    return counts


def _mask(rows: pa.Array | pa.ChunkedArray) -> Mask:
    found: Mask = rows.to_numpy(zero_copy_only=False) if isinstance(rows, pa.Array) else rows.to_numpy()
    return found


def _ids(lake: Lake, table: str, schema: pa.Schema) -> pa.Table:
    """The original ids that `table` has, of all its rows."""
    return lake.read(table, only(schema, *(name for name in _IDS if name in schema.names)))


def _of(rows: pa.Table, patients: pa.Table, cases: pa.Table) -> pa.Array:
    """Which rows belong to `patients` (clinic, patient_id) or `cases` (clinic, case_id)."""
    hits = among(rows, patients.select(["clinic", "patient_id"]))
    return pc.or_(hits, among(rows, cases.select(["clinic", "case_id"]))) if "case_id" in rows.column_names else hits


def _anywhere(gone: pa.Table, documents: pa.Table, decisions: pa.Table, days: Sequence[date]) -> pa.Array:
    """Whose raw lines may lie in earlier deliveries: everybody's but of those erased who have not come back since.

    Whoever signed again after a withdrawal was kept until now, with documents and decisions of earlier days. So were
    the former patient's versions of a case that has just become theirs.
    """
    now = pa.array(days, pa.date32())
    kept, decided = (
        rows.filter(pc.invert(pc.is_in(rows.column("arrival_day"), now))) for rows in (documents, decisions)
    )
    of_kept_cases = decisions.filter(among(decisions, decided.select(["clinic", "case_id"])))
    whose = pa.concat_tables([kept.select(PATIENTS.names), of_kept_cases.select(PATIENTS.names)])
    return pc.or_(pc.invert(gone.column("erased_before")), among(gone, whose))


def _erase_original(
    lake: Lake, documents: pa.Table, gone: pa.Table, fresh: pa.Table, cases: pa.Table, days: Sequence[date], on: date
) -> tuple[dict[str, int], Erased]:
    """Erase the patients `gone`, their documents and `cases` from landing and from every table with original ids.

    Tombstones come first: once the raw line is gone, nothing else would tell a repeated run of the withdrawal. `BEGUN`
    notes who is being erased until all is done, so that the next run finishes after a crash.
    `documents`: the register of every document that names one of them. `fresh`: those for whom all of landing is searched
    (`_anywhere`), not only this run's deliveries.
    """
    raw, theirs = Erased(), _newest_of(documents, "consent_id", gone)
    # What was moved to who goes now would be the former patient's again, whom it permits nothing any more.
    others = documents.filter(
        pc.and_(_grants(documents, theirs), pc.invert(among(documents, gone.select(PATIENTS.names))))
    )
    lake.write_record(BEGUN, {"patients": sorted(patient_hashes(fresh, lake.keys).column("key").to_pylist())})
    buried = bury(documents, gone, on, lake.keys)
    known = lake.read(TOMBSTONES, CONSENT_PROVISIONS)
    tombstones = distinct(pa.concat_tables([known, buried]))
    lake.write_days(TOMBSTONES, set(buried.column("arrival_day").to_pylist()), tombstones, "arrival_day")
    copy_beside_raw(lake)
    for clinic in gone.column("clinic").unique().to_pylist():
        of_clinic, new, chart = (t.filter(pc.equal(t.column("clinic"), clinic)) for t in (gone, fresh, cases))
        ids, known = set(of_clinic.column("patient_id").to_pylist()), set(new.column("patient_id").to_pylist())
        charts = chart.column("case_id").to_pylist()
        consents, shared = (
            t.column("consent_id").filter(pc.equal(t.column("clinic"), clinic)).unique().to_pylist()
            for t in (theirs, others)
        )
        for who, where in ((known, None), (ids - known, days)):
            if who or (shared and where is None):
                raw += erase_patients(lake, clinic, sorted(who), charts, where, on, consents)
    counts = {}
    for table, schema in _ORIGINAL:
        rows = _mask(_of(_ids(lake, table, schema), gone, cases))
        if table == REGISTER and others.num_rows:
            rows = rows | _mask(_grants(lake.read(REGISTER, _GRANTED), theirs))
        counts[table] = _rewrite(lake, table, schema, "arrival_day", rows)
    lake.erase_record(BEGUN)
    return counts, raw


def _grants(documents: pa.Table, theirs: pa.Table) -> pa.Array:
    """Mask of the permits of active `documents` among `theirs` (clinic, consent_id)."""
    permits = pc.and_(pc.equal(documents.column("decision"), "permit"), pc.equal(documents.column("status"), "active"))
    return pc.and_(among(documents, theirs), pc.fill_null(permits, False))


def _with_interrupted(lake: Lake, gone: pa.Table, standing: pa.Table) -> pa.Table:
    """`gone` plus the patients whose erasure a crash interrupted, as not erased before, unless permitted again."""
    begun = (lake.read_record(BEGUN) or {}).get("patients", [])
    if not begun:
        return gone
    tables = [lake.read(table, PATIENTS) for table, _ in _ORIGINAL]
    with connect() as con:
        load(con, gone=gone, standing=standing, held=pa.concat_tables(tables).group_by(PATIENTS.names).aggregate([]))
        con.execute(
            "CREATE TEMP TABLE known AS SELECT clinic, patient_id FROM held UNION SELECT clinic, patient_id FROM gone"
        )
        known = con.execute("SELECT * FROM known WHERE patient_id IS NOT NULL ORDER BY ALL").to_arrow_table()
        load(con, hashes=patient_hashes(known, lake.keys), begun=pa.table({"key": begun}))
        return con.execute(
            """WITH open AS (SELECT clinic, id AS patient_id FROM hashes SEMI JOIN begun USING (key))
            SELECT clinic, patient_id, erased_before FROM gone ANTI JOIN open USING (clinic, patient_id)
            UNION ALL SELECT clinic, patient_id, false FROM open
              ANTI JOIN (FROM standing WHERE ok) USING (clinic, patient_id) ORDER BY ALL"""
        ).to_arrow_table()


def _keep_record(lake: Lake, on: date, hashes: list[str], about: dict[str, Any]) -> None:
    """Append to the day's erasure record: keyed hashes of patients, counts by table. No value of a person."""
    name = f"erasure/{on.isoformat()}"
    record = lake.read_record(name) or {"day": on.isoformat(), "erasures": []}
    record["erasures"].append({"patients": sorted(hashes), **about})
    lake.write_record(name, record)


def _refused_now(decisions: pa.Table, days: Sequence[date]) -> pa.Table:
    """(clinic, case_id) of cases of this run whose newest version is not permitted; `decisions`: of all that may have one.

    Also where the newest came before, and only an older day runs again: what was said last of a case stands. Not those
    that only lacked the consent which came late, with a version of before.
    """
    with connect() as con:
        load(con, decisions=decisions)
        return con.execute(
            """WITH now AS (FROM decisions WHERE arrival_day BETWEEN $first AND $last),
            newest AS (
              FROM decisions SEMI JOIN now USING (clinic, case_id)
              QUALIFY row_number() OVER (PARTITION BY clinic, case_id ORDER BY arrival_day DESC, export_id DESC) = 1)
            SELECT clinic, case_id FROM newest WHERE NOT permitted AND NOT (reason = 'no_consent' AND EXISTS (
              FROM now n WHERE n.permitted AND n.clinic = newest.clinic AND n.case_id = newest.case_id AND n.patient_id = newest.patient_id))""",
            {"first": days[0], "last": days[-1]},
        ).to_arrow_table()


def _decisions(lake: Lake, patients: pa.Table, cases: pa.Table) -> pa.Table:
    """`_DECIDED` of all versions of `cases` and of every case that was ever of `patients` (clinic, patient_id)."""
    ids = _ids(lake, "consent_decisions", CONSENT_DECISIONS)
    theirs = ids.filter(among(ids, patients.select(PATIENTS.names))).select(["clinic", "case_id"])
    of_cases = pa.concat_tables([theirs, cases.select(theirs.column_names)])
    return lake.read("consent_decisions", _DECIDED, where=_mask(among(ids, of_cases)))


def _cases_of(decisions: pa.Table, gone: pa.Table) -> pa.Table:
    """(clinic, case_id) of the patients `gone`, without cases that were moved to somebody who stays."""
    theirs = decisions.filter(_of(decisions, gone, CASES.empty_table())).select(["clinic", "case_id"])
    return _newest_of(decisions.filter(among(decisions, theirs)), "case_id", gone) if theirs.num_rows else theirs


def _newest_of(versions: pa.Table, name: str, gone: pa.Table) -> pa.Table:
    """(clinic, `name`) of what, by its newest of `versions`, is of one of `gone`; what moved to somebody who stays is not."""
    with connect() as con:
        load(con, versions=versions, gone=gone)
        return con.execute(
            f"""WITH newest AS (FROM versions
              QUALIFY row_number() OVER (PARTITION BY clinic, {name} ORDER BY arrival_day DESC, export_id DESC) = 1)
            SELECT clinic, {name} FROM newest SEMI JOIN gone USING (clinic, patient_id) WHERE {name} IS NOT NULL"""
        ).to_arrow_table()


def _deleted_patients(lake: Lake, deletions: pa.Table) -> pa.Table:
    """(clinic, patient_id) of patients whom a clinic deleted and who were not delivered since."""
    if not deletions.num_rows:
        return PATIENTS.empty_table()
    patients = deletions.filter(pc.equal(deletions.column("kind"), "Patient")).rename_columns({"id": "patient_id"})
    decisions = _decisions(lake, patients, CASES.empty_table())
    with connect() as con:
        load(con, deletions=deletions, decisions=decisions)
        rows = con.execute(
            """SELECT DISTINCT clinic, d.id AS patient_id FROM deletions d WHERE kind = 'Patient' AND NOT EXISTS (
              FROM decisions s WHERE s.clinic = d.clinic AND s.patient_id = d.id AND s.arrival_day > d.arrival_day)"""
        )
        return rows.to_arrow_table().cast(PATIENTS)


def erase(lake: Lake, city: City, days: Sequence[date], deletions: pa.Table) -> dict[str, int]:
    """Erase everything that is no longer permitted or that a clinic deleted (`deletions`, canonical); returns counts.

    Reads `staging/standing` of this run.
    """
    conclude_erasure(lake, {"cases": PSEUDONYMISED_CASES, **{name: schema for name, schema, _ in _FOLLOWING}})
    on = evaluation_day(lake, days)
    standing = lake.read("staging/standing", STANDING, [days[-1]])
    deleted = _deleted_patients(lake, deletions)
    refused = pa.concat_tables([standing.filter(pc.invert(standing.column("ok"))).select(PATIENTS.names), deleted])
    gone = standing.filter(standing.column("erase")).select([*PATIENTS.names, "erased_before"])
    gone = pa.concat_tables([gone, deleted.append_column("erased_before", pa.repeat(False, deleted.num_rows))])
    gone = _with_interrupted(lake, gone, standing)
    now = lake.read("consent_decisions", _DECIDED, days)
    # Where later days ran before, any case of this run may have been refused by then.
    ahead = days[-1] < max(lake.days("consent_decisions"), default=days[-1])
    asked = now if ahead else now.filter(pc.invert(now.column("permitted")))
    decisions = _decisions(lake, gone, asked)
    theirs = _cases_of(decisions, gone)
    keys = case_keys(pa.concat_tables([theirs, _refused_now(decisions, days)]), lake.keys).column("key")
    stored = lake.read("cases", _STORED)
    removed = stored.filter(is_deleted(stored, lake.read("deleted_cases", DELETED_CASES))).column("case_key")
    stale = no_longer_permitted(lake, city, days, stored)
    counts = _erase_pseudonymised(
        lake, stored, patient_keys(refused, lake.keys).column("key").combine_chunks(),
        pa.chunked_array([*keys.chunks, *removed.chunks, stale], pa.string()).unique(), needed_from(lake, city),
    )  # fmt: skip
    raw = Erased()
    if gone.num_rows:
        documents = documents_of(lake, gone.select(PATIENTS.names))
        own = documents.filter(among(documents, gone.select(PATIENTS.names)))
        fresh = gone.filter(_anywhere(gone, own, decisions, days))
        original, raw = _erase_original(lake, documents, gone, fresh, theirs, days, on)
        counts |= original
    else:
        lake.erase_record(BEGUN)  # whose erasure was interrupted is permitted again: nobody is left to erase
    remember(lake, city, on, lake.rows(REGISTER), full_exports(lake, city))
    if any(counts.values()) or raw.lines or raw.files:
        hashes = patient_hashes(gone, lake.keys).column("key").to_pylist() if gone.num_rows else []
        about = {"rows": counts, "landing": {"lines": raw.lines, "files": raw.files}}
        _keep_record(lake, on, hashes, about)
        audit.record(lake, "erasure", on=on, patients=gone.num_rows, **about)
    return {"erased_cases": counts["cases"], "erased_patients": gone.num_rows, "erased_raw_lines": raw.lines}
