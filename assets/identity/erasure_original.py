"""Erasure under original ids: raw files, decisions, quarantine, consent register; and whose is what there.

Tombstones (`consent.tombstones`) remember a withdrawal under keyed hashes. Not here: who goes (`erasure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.changes import BEGUN
from assets.consent.majority import MAJORITY
from assets.consent.numbers import among
from assets.consent.stage import PATIENTS, REGISTER
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.consent.tombstones import bury, copy_beside_raw, distinct, patient_hashes
from assets.contract.schemas import CANONICAL, CASES, CONSENT_DECISIONS, CONSENT_PROVISIONS, only
from assets.identity.rewriting import mask, rewrite
from assets.intake.landing import Erased, erase_patients
from assets.lake.engine import connect, load
from assets.lake.lake import Lake

_IDS: Final = ("clinic", "patient_id", "case_id")
# The tables grow with the years: only these columns are read, and whole rows of the months in which some must go.
DECIDED: Final = only(CONSENT_DECISIONS, *_IDS, "arrival_day", "export_id", "permitted", "reason")
_GRANTED: Final = only(CONSENT_PROVISIONS, "clinic", "consent_id", "decision", "status")
# A quarantined row may lack one of its two ids.
ORIGINAL: Final = (
    ("consent_decisions", CONSENT_DECISIONS),
    *((f"quarantine/{n}", CANONICAL[n].append(pa.field("rule", pa.string())))
      for n in ("cases", "persons", "diagnoses", "procedures")),
    (REGISTER, CONSENT_PROVISIONS),
    ("majority", MAJORITY),
)  # fmt: skip


def decisions_of(lake: Lake, patients: pa.Table, cases: pa.Table) -> pa.Table:
    """`DECIDED` of all versions of `cases` and of every case that was ever of `patients` (clinic, patient_id)."""
    ids = _ids(lake, "consent_decisions", CONSENT_DECISIONS)
    theirs = ids.filter(among(ids, patients.select(PATIENTS.names))).select(["clinic", "case_id"])
    of_cases = pa.concat_tables([theirs, cases.select(theirs.column_names)])
    return lake.read("consent_decisions", DECIDED, where=mask(among(ids, of_cases)))


def cases_of(decisions: pa.Table, gone: pa.Table) -> pa.Table:
    """(clinic, case_id) of the patients `gone`, without cases that were moved to somebody who stays."""
    theirs = decisions.filter(_of(decisions, gone, CASES.empty_table())).select(["clinic", "case_id"])
    return _newest_of(decisions.filter(among(decisions, theirs)), "case_id", gone) if theirs.num_rows else theirs


def with_interrupted(lake: Lake, gone: pa.Table, standing: pa.Table) -> pa.Table:
    """`gone` plus the patients whose erasure a crash interrupted, as not erased before, unless permitted again."""
    begun = (lake.read_record(BEGUN) or {}).get("patients", [])
    if not begun:
        return gone
    tables = [lake.read(table, PATIENTS) for table, _ in ORIGINAL]
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


def anywhere(gone: pa.Table, documents: pa.Table, decisions: pa.Table, days: Sequence[date]) -> pa.Array:
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


def erase_original(
    lake: Lake, documents: pa.Table, gone: pa.Table, fresh: pa.Table, cases: pa.Table, days: Sequence[date], on: date
) -> tuple[dict[str, int], Erased]:
    """Erase the patients `gone`, their documents and `cases` from landing and from every table with original ids.

    Tombstones come first: once the raw line is gone, nothing else would tell a repeated run of the withdrawal. `BEGUN`
    notes who is being erased until all is done, so that the next run finishes after a crash.
    `documents`: the register of every document that names one of them. `fresh`: those for whom all of landing is searched
    (`anywhere`), not only this run's deliveries.
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
    for table, schema in ORIGINAL:
        rows = mask(_of(_ids(lake, table, schema), gone, cases))
        if table == REGISTER and others.num_rows:
            rows = rows | mask(_grants(lake.read(REGISTER, _GRANTED), theirs))
        counts[table] = rewrite(lake, table, schema, "arrival_day", rows)
    lake.erase_record(BEGUN)
    return counts, raw


def _grants(documents: pa.Table, theirs: pa.Table) -> pa.Array:
    """Mask of the permits of active `documents` among `theirs` (clinic, consent_id)."""
    permits = pc.and_(pc.equal(documents.column("decision"), "permit"), pc.equal(documents.column("status"), "active"))
    return pc.and_(among(documents, theirs), pc.fill_null(permits, False))


def _newest_of(versions: pa.Table, name: str, gone: pa.Table) -> pa.Table:
    """(clinic, `name`) of what, by its newest of `versions`, is of one of `gone`; what moved to somebody who stays is not."""
    with connect() as con:
        load(con, versions=versions, gone=gone)
        return con.execute(
            f"""WITH newest AS (FROM versions
              QUALIFY row_number() OVER (PARTITION BY clinic, {name} ORDER BY arrival_day DESC, export_id DESC) = 1)
            SELECT clinic, {name} FROM newest SEMI JOIN gone USING (clinic, patient_id) WHERE {name} IS NOT NULL"""
        ).to_arrow_table()


def _ids(lake: Lake, table: str, schema: pa.Schema) -> pa.Table:
    """The original ids that `table` has, of all its rows."""
    return lake.read(table, only(schema, *(name for name in _IDS if name in schema.names)))


def _of(rows: pa.Table, patients: pa.Table, cases: pa.Table) -> pa.Array:
    """Which rows belong to `patients` (clinic, patient_id) or `cases` (clinic, case_id)."""
    hits = among(rows, patients.select(["clinic", "patient_id"]))
    return pc.or_(hits, among(rows, cases.select(["clinic", "case_id"]))) if "case_id" in rows.column_names else hits
