"""Erasure: what is no longer permitted leaves every table, and a patient who withdrew leaves the data root.

In every run each stored case is decided again by today's consents; what is not permitted any more is erased
from the pseudonymised tables. A patient who withdrew, or whose consent ended, is erased from landing,
quarantine, decisions and the consent register as well; tombstones (`consent.tombstones`,
`identity.tombstones`) remember the withdrawal and the contribution counters under keyed hashes. What is
published stays: it is differentially private and holds nobody's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.changes import BEGUN, remember, with_documents
from assets.consent.majority import MAJORITY
from assets.consent.numbers import among
from assets.consent.rule import decide
from assets.consent.stage import PATIENTS, STANDING, evaluation_day, full_exports, judged_now, majority
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.consent.tombstones import bury, patient_hashes, recognise
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
)
from assets.identity.deleted import DELETED_CASES, is_deleted
from assets.identity.persons import LINKS, known_links, linked, seal
from assets.identity.pseudonymise import case_keys, patient_keys
from assets.identity.record import RECORDED, announce_erasure, conclude_erasure
from assets.identity.tombstones import retire
from assets.intake.landing import Erased, erase_patients
from assets.lake import audit
from assets.lake.distribute import in_order
from assets.lake.engine import connect, load
from assets.lake.lake import Lake

_FROZEN: Final = ("events", "late_events")
"""Tables in which a day means that it is closed; one of the consent register means that it ran."""
_DECIDED: Final = ("clinic", "arrival_day", "export_id", "case_id", "patient_id", "permitted")
"""What erasure asks of decisions: text about where they stood is most of them."""
_JUDGED_BY: Final = ("clinic", "arrival_day", "case_key", "patient_key", "admitted_on", "discharged_on")
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
    ("consent_register", CONSENT_PROVISIONS),
    ("majority", MAJORITY),
)  # fmt: skip


def _rewrite(lake: Lake, table: str, schema: pa.Schema, column: str, rows: pa.Table, gone: Any) -> int:
    """Rewrite those days of `table` that hold a row of the mask `gone`; number of erased rows."""
    erased = rows.filter(gone)
    days = erased.column(column).unique()
    kept = rows.filter(pc.and_(pc.is_in(rows.column(column), days), pc.invert(gone)))
    days = days.to_pylist()
    if table in RECORDED and days:
        announce_erasure(lake, table, days, kept)
    lake.write_days(table, days, kept.cast(schema), column, keep_empty=table in (*_FROZEN, "consent_register"))
    if table in RECORDED:
        conclude_erasure(lake)
    return len(erased)


def no_longer_permitted(
    lake: Lake, city: City, days: Sequence[date], stored: pa.Table, documents: pa.Table
) -> pa.Array:
    """Keys of `stored` cases that today's consents (`documents`: the register) do not permit, by their newest version.

    Those whose newest version came in this run were just judged, by the same consents on the same day; of the others
    only those are judged whose patient's answer can have changed.
    """
    if pc.all(pc.is_in(stored.column("arrival_day"), pa.array(days, pa.date32())), min_count=0).as_py():
        return pa.array([], pa.string())
    tombstones = lake.read(TOMBSTONES, CONSENT_PROVISIONS)
    judged, versions = judged_now(lake, city, days, documents, tombstones), stored.select(_JUDGED_BY)
    if judged is not None:
        documents = with_documents(documents, judged)
        theirs = pc.is_in(
            versions.column("patient_key"), patient_keys(judged, lake.keys).column("key").combine_chunks()
        )
        of_cases = versions.filter(theirs).column("case_key").unique()
        versions = versions.filter(pc.is_in(versions.column("case_key"), of_cases))
    register, _ = recognise(tombstones, documents, PATIENTS.empty_table(), lake.keys)
    with connect() as con:
        load(con, stored=versions, patients=patient_keys(register if judged is None else judged, lake.keys))
        absent = ", ".join(f"NULL AS {n}" for n in CASES.names if n not in (*_JUDGED_BY, "case_id", "patient_id"))
        newest = con.execute(
            f"""SELECT s.clinic, arrival_day, case_key AS case_id, p.id AS patient_id, admitted_on, discharged_on,
            {absent} FROM (FROM stored QUALIFY row_number() OVER (PARTITION BY case_key ORDER BY arrival_day DESC) = 1) s
            LEFT JOIN patients p ON p.clinic = s.clinic AND p.key = s.patient_key
            WHERE arrival_day NOT IN (SELECT unnest(CAST($days AS DATE[]))) AND ($everybody OR p.id IS NOT NULL)""",
            {"days": list(days), "everybody": judged is None},
        ).to_arrow_table()
    if not newest.num_rows:
        return pa.array([], pa.string())
    decisions = decide(
        newest.select(CASES.names).cast(CASES), register, city.consent, evaluation_day(lake, days),
        full_exports(lake, city), majority(lake, city),
    )  # fmt: skip
    return decisions.filter(pc.invert(decisions.column("permitted"))).column("case_id").combine_chunks()


def _erase_pseudonymised(lake: Lake, stored: pa.Table, patients: pa.Array, cases: pa.Array, on: date) -> dict[str, int]:
    """Erase `patients` and `cases` (pseudonyms) from `stored`, all cases, and every other table; rows by table."""
    counts = {table: 0 for table in ("cases", *(name for name, _, _ in _FOLLOWING))}
    theirs = stored.filter(pc.is_in(stored.column("patient_key"), patients)).column("case_key")
    everything = pa.chunked_array([cases, *theirs.chunks], pa.string()).unique()
    events = {table: lake.read(table, EVENTS) for table in _FROZEN}
    held = any(pc.any(pc.is_in(t.column("case_key"), everything)).as_py() for t in (stored, *events.values()))
    for table, schema, column in _FOLLOWING if held else ():
        rows = events.get(table)
        rows = lake.read(table, schema) if rows is None else rows
        counts[table] = _rewrite(lake, table, schema, column, rows, pc.is_in(rows.column("case_key"), everything))
    links = known_links(lake)
    ended = pc.is_in(links.column("patient_key"), patients)
    erased = pc.is_in(stored.column("case_key"), everything)
    living = stored.filter(pc.invert(erased)).column("person_key").unique()
    bounding = lake.read("bounding", BOUNDING_DECISIONS)
    # What was counted before a link was known becomes the person's, who may live on at another clinic; then the link goes.
    retired = retire(linked(bounding, links.filter(ended)), everything, living, on, lake.keys)
    if not retired.equals(bounding):
        lake.write_days("bounding", lake.days("bounding"), retired, "decided_on")
    seal(lake, links.filter(ended))
    counts["links"] = _rewrite(lake, "links", LINKS, "arrival_day", links, ended)
    # Last, because what has to go is told from this table: a process that dies before leaves it all to the next run.
    counts["cases"] = _rewrite(lake, "cases", PSEUDONYMISED_CASES, "arrival_day", stored, erased)
    return counts


def _of(rows: pa.Table, patients: pa.Table, cases: pa.Table) -> pa.Array:
    """Which rows belong to `patients` (clinic, patient_id) or `cases` (clinic, case_id)."""
    hits = among(rows, patients.select(["clinic", "patient_id"]))
    return pc.or_(hits, among(rows, cases.select(["clinic", "case_id"]))) if "case_id" in rows.column_names else hits


def _anywhere(gone: pa.Table, documents: pa.Table, decisions: pa.Table, days: Sequence[date]) -> pa.Array:
    """Whose raw lines can lie in deliveries of before this run: all but who was erased and did not come back since.

    Who signed again after a withdrawal was kept until now, with documents and decisions of an earlier day.
    """
    rows = pa.concat_tables([t.select([*PATIENTS.names, "arrival_day"]) for t in (documents, decisions)])
    rows = rows.filter(among(rows, gone.select(PATIENTS.names)))
    earlier = pc.invert(pc.is_in(rows.column("arrival_day"), pa.array(days, pa.date32())))
    return pc.or_(pc.invert(gone.column("erased_before")), among(gone, rows.filter(earlier).select(PATIENTS.names)))


def _erase_original(
    lake: Lake, register: pa.Table, gone: pa.Table, fresh: pa.Table, cases: pa.Table, days: Sequence[date], on: date
) -> tuple[dict[str, int], Erased]:
    """Erase patients `gone` and their `cases` from landing, the `register` and every table that holds original ids.

    Tombstones come first: once its raw line is gone, nothing else tells a run that is repeated of a withdrawal. What
    was begun is noted until all is done, so that after a crash the next run does it again.
    `fresh`: those for whom all of landing is searched (`_anywhere`), and not only what just came.
    """
    raw, documents = Erased(), register.filter(_of(register, gone, CASES.empty_table()))
    lake.write_record(BEGUN, {"patients": sorted(patient_hashes(fresh, lake.keys).column("key").to_pylist())})
    buried = bury(documents, gone, on, lake.keys)
    known = lake.read(TOMBSTONES, CONSENT_PROVISIONS)
    tombstones = in_order(pa.concat_tables([known, buried]).group_by(CONSENT_PROVISIONS.names).aggregate([]))
    lake.write_days(
        TOMBSTONES, set(buried.column("arrival_day").to_pylist()), tombstones.cast(CONSENT_PROVISIONS), "arrival_day"
    )
    for clinic in gone.column("clinic").unique().to_pylist():
        of_clinic, new, chart = (t.filter(pc.equal(t.column("clinic"), clinic)) for t in (gone, fresh, cases))
        ids, known = set(of_clinic.column("patient_id").to_pylist()), set(new.column("patient_id").to_pylist())
        charts = chart.column("case_id").to_pylist()
        own = documents.filter(pc.equal(documents.column("clinic"), clinic))
        consents = own.column("consent_id").unique().drop_null().to_pylist()
        for who, where in ((known, None), (ids - known, days)):
            if who:
                raw += erase_patients(lake, clinic, sorted(who), charts, where, on, consents)
    counts = {}
    for table, schema in _ORIGINAL:
        rows = register if table == "consent_register" else lake.read(table, schema)
        counts[table] = _rewrite(lake, table, schema, "arrival_day", rows, _of(rows, gone, cases))
    lake.erase_record(BEGUN)
    return counts, raw


def _with_interrupted(lake: Lake, gone: pa.Table, standing: pa.Table) -> pa.Table:
    """`gone` with the patients whose erasure a crash interrupted, as not erased before, but those permitted again."""
    begun = (lake.read_record(BEGUN) or {}).get("patients", [])
    if not begun:
        return gone
    tables = [lake.read(table, schema).select(PATIENTS.names) for table, schema in _ORIGINAL]
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
    """(clinic, case_id) of cases of this run whose newest version is not permitted."""
    with connect() as con:
        load(con, decisions=decisions)
        return con.execute(
            """WITH now AS (FROM decisions WHERE arrival_day BETWEEN $first AND $last),
            newest AS (
              FROM decisions SEMI JOIN now USING (clinic, case_id)
              QUALIFY row_number() OVER (PARTITION BY clinic, case_id ORDER BY arrival_day DESC, export_id DESC) = 1)
            SELECT clinic, case_id FROM newest WHERE NOT permitted AND arrival_day BETWEEN $first AND $last""",
            {"first": days[0], "last": days[-1]},
        ).to_arrow_table()


def _deleted_patients(deletions: pa.Table, decisions: pa.Table) -> pa.Table:
    """(clinic, patient_id) whom a clinic deleted, and of whom nothing came after that."""
    if not deletions.num_rows:
        return PATIENTS.empty_table()
    with connect() as con:
        load(con, deletions=deletions, decisions=decisions)
        rows = con.execute(
            """SELECT DISTINCT clinic, d.id AS patient_id FROM deletions d WHERE kind = 'Patient' AND NOT EXISTS (
              FROM decisions s WHERE s.clinic = d.clinic AND s.patient_id = d.id AND s.arrival_day > d.arrival_day)"""
        )
        return rows.to_arrow_table().cast(PATIENTS)


def erase(lake: Lake, city: City, days: Sequence[date], deletions: pa.Table) -> dict[str, int]:
    """Erase everything that is no longer permitted or that a clinic deleted (`deletions`, canonical); counts.

    Reads `staging/standing` of this run.
    """
    conclude_erasure(lake, {"cases": PSEUDONYMISED_CASES, **{name: schema for name, schema, _ in _FOLLOWING}})
    on = evaluation_day(lake, days)
    standing = lake.read("staging/standing", STANDING, [days[-1]])
    decisions = lake.read("consent_decisions", pa.schema([CONSENT_DECISIONS.field(n) for n in _DECIDED]))
    deleted = _deleted_patients(deletions, decisions)
    refused = pa.concat_tables([standing.filter(pc.invert(standing.column("ok"))).select(PATIENTS.names), deleted])
    gone = standing.filter(standing.column("erase")).select([*PATIENTS.names, "erased_before"])
    gone = pa.concat_tables([gone, deleted.append_column("erased_before", pa.repeat(False, deleted.num_rows))])
    gone = _with_interrupted(lake, gone, standing)
    theirs = decisions.filter(_of(decisions, gone, CASES.empty_table())).select(["clinic", "case_id"])
    keys = case_keys(pa.concat_tables([theirs, _refused_now(decisions, days)]), lake.keys).column("key")
    stored = lake.read("cases", PSEUDONYMISED_CASES)
    removed = stored.filter(is_deleted(stored, lake.read("deleted_cases", DELETED_CASES))).column("case_key")
    documents = lake.read("consent_register", CONSENT_PROVISIONS)
    stale = no_longer_permitted(lake, city, days, stored, documents)
    counts = _erase_pseudonymised(
        lake, stored, patient_keys(refused, lake.keys).column("key").combine_chunks(),
        pa.chunked_array([*keys.chunks, *removed.chunks, stale], pa.string()).unique(), on,
    )  # fmt: skip
    raw = Erased()
    if gone.num_rows:
        fresh = gone.filter(_anywhere(gone, documents, decisions, days))
        original, raw = _erase_original(lake, documents, gone, fresh, theirs, days, on)
        counts |= original
    else:
        lake.erase_record(BEGUN)  # whose erasure was interrupted is permitted again: nobody is left to erase
    remember(lake, city, on, documents.num_rows - counts.get("consent_register", 0), full_exports(lake, city))
    if any(counts.values()) or raw.lines or raw.files:
        hashes = patient_hashes(gone, lake.keys).column("key").to_pylist() if gone.num_rows else []
        about = {"rows": counts, "landing": {"lines": raw.lines, "files": raw.files}}
        _keep_record(lake, on, hashes, about)
        audit.record(lake, "erasure", on=on, patients=gone.num_rows, **about)
    return {"erased_cases": counts["cases"], "erased_patients": gone.num_rows, "erased_raw_lines": raw.lines}
