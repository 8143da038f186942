"""Exports of changes: a case that came before takes over what changed of it, though it did not come again itself.

A server lists each resource that changed and nothing that refers to it. So a case whose patient, contacts, diagnoses
or procedures changed (or were deleted) is put together anew, from all that its clinic delivered since the last whole
export, and arrives on the day of the change: from there on it is a version like one that the clinic sent. It is of
the same content as in a whole export of that day. Not here: how files are read (`fhir_load`), what a resource means
for a case (`fhir`).
"""

from __future__ import annotations

from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.schemas import CASES, PERSONS
from assets.lake.engine import load

# `own`: the exports that are read (export_id, changes); `above`: every contact that any version of a contact was part of.
_BEGIN: Final = """
CREATE TEMP TABLE touched (contact VARCHAR, patient_id VARCHAR, arrival_day DATE, export_id VARCHAR);
CREATE TEMP TABLE above (id VARCHAR, parent VARCHAR);
CREATE TEMP TABLE versions (case_id VARCHAR, arrival_day DATE, is_case BOOLEAN)"""
_CHANGED: Final = """
SELECT id, arrival_day, export_id FROM "{kind}" SEMI JOIN (FROM own WHERE changes) USING (export_id)
UNION SELECT d.id, s.arrival_day, s.export_id FROM deleted d JOIN sources s USING (file)
  SEMI JOIN (FROM own WHERE changes) USING (export_id) WHERE d.kind = '{kind}'"""
_EVERY: Final = """(FROM "{kind}_rows" UNION ALL BY NAME SELECT * EXCLUDE (place) FROM "{kind}_deleted")"""

# What a resource belongs to now and what it belonged to before: the one case gains what the other loses.
_OF_CONTACT: Final = f"""INSERT INTO touched SELECT DISTINCT contact, NULL, t.arrival_day, t.export_id
FROM ({_CHANGED}) t JOIN {_EVERY} v USING (id) WHERE contact IS NOT NULL"""
_TOUCHED: Final = {
    "Patient": f"INSERT INTO touched SELECT NULL, id, arrival_day, export_id FROM ({_CHANGED})",
    "Encounter": f"""INSERT INTO touched SELECT id, NULL, arrival_day, export_id FROM ({_CHANGED});
      INSERT INTO above SELECT DISTINCT id, parent FROM {_EVERY} WHERE parent IS NOT NULL;
      INSERT INTO versions SELECT id, arrival_day, {{is_case}} FROM "{{kind}}\"""",
    "Condition": f"""{_OF_CONTACT};
      INSERT INTO touched SELECT DISTINCT n.contact, NULL, t.arrival_day, t.export_id
      FROM ({_CHANGED}) t JOIN named n ON n.condition_id = t.id""",
    "Procedure": _OF_CONTACT,
}

# A case is a contact, or stands one or two contacts above what changed. Its newest version by then must be an older one,
# else it came itself, and must be a case still.
_CARRIED: Final = """
WITH place AS (
  SELECT contact AS id, arrival_day, export_id FROM touched WHERE contact IS NOT NULL
  UNION SELECT a.parent, arrival_day, export_id FROM touched JOIN above a ON a.id = contact
  UNION SELECT b.parent, arrival_day, export_id FROM touched JOIN above a ON a.id = contact JOIN above b ON b.id = a.parent
  UNION SELECT c.case_id, t.arrival_day, t.export_id FROM touched t JOIN every_case c ON c.patient_id = t.patient_id),
due AS (SELECT id AS case_id, arrival_day, max(export_id) AS export_id FROM place GROUP BY ALL)
SELECT c.* REPLACE (d.arrival_day AS arrival_day, d.export_id AS export_id)
FROM due d ASOF JOIN versions v ON v.case_id = d.case_id AND v.arrival_day <= d.arrival_day
JOIN every_case c ON c.case_id = v.case_id AND c.arrival_day = v.arrival_day
WHERE v.is_case AND v.arrival_day < d.arrival_day"""
_CASES: Final = f"FROM every_case SEMI JOIN own USING (export_id) UNION ALL FROM ({_CARRIED})"

# The persons of the exports, and of an export of changes those whom its cases name: as they last came before.
_PERSONS: Final = """
SELECT p.* FROM every_person p SEMI JOIN own USING (export_id)
UNION ALL BY NAME
SELECT p.* REPLACE (c.arrival_day AS arrival_day, c.export_id AS export_id) FROM (
  SELECT DISTINCT ON (c.arrival_day, c.patient_id) c.clinic, c.arrival_day, c.export_id, c.patient_id
  FROM own_cases c SEMI JOIN (FROM own WHERE changes) o USING (export_id)
  ANTI JOIN every_person p ON p.clinic = c.clinic AND p.patient_id = c.patient_id AND p.arrival_day = c.arrival_day
  ORDER BY c.export_id) c
JOIN every_person p ON p.clinic = c.clinic AND p.patient_id = c.patient_id AND p.arrival_day < c.arrival_day
ANTI JOIN replaced_on r ON r.patient_id = c.patient_id AND r.day > p.arrival_day AND r.day <= c.arrival_day
QUALIFY row_number() OVER (PARTITION BY c.arrival_day, c.patient_id ORDER BY p.arrival_day DESC, p.export_id DESC) = 1"""


def begin(con: duckdb.DuckDBPyConnection) -> None:
    """Create what `touch` fills; `con` holds `own` (export_id, changes): the exports that are read."""
    con.execute(_BEGIN)


def touch(con: duckdb.DuckDBPyConnection, kind: str, is_case: str = "") -> None:
    """Note what the exports of changes among `own` change, of the resources `kind` that are loaded.

    `is_case`: SQL, whether a row of `Encounter` is a case.
    """
    con.execute(_TOUCHED[kind].format(kind=kind, is_case=is_case))


def of_own(con: duckdb.DuckDBPyConnection, cases: pa.Table, persons: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Of all `cases` and `persons` (canonical) those of the exports `own`, with the cases that these changed."""
    others = "SELECT 1 FROM own WHERE changes UNION ALL SELECT 1 FROM sources ANTI JOIN own USING (export_id) LIMIT 1"
    if con.execute(others).fetchone() is None:
        return cases, persons
    load(con, every_case=cases, every_person=persons)
    own_cases = con.execute(_CASES).to_arrow_table().cast(CASES)
    load(con, own_cases=own_cases)
    own_persons = con.execute(_PERSONS).to_arrow_table().cast(PERSONS)
    con.execute("DROP TABLE every_case; DROP TABLE every_person; DROP TABLE own_cases")
    return own_cases, own_persons
