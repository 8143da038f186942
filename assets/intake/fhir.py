"""Reader for FHIR R4 bulk exports (NDJSON) in the shape of the MII core data set and ISiK.

Everything is SQL over lines: a line that is no JSON object becomes a finding, never an exception. Sources:
MII KDS modules Person, Fall, Diagnose, Prozedur; `Kontaktebene` of the German base profiles. Not here: what a Consent
says (`fhir_consent`).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.codes import (
    CONTACT_KINDS_UNCOUNTED,
    ENCOUNTER_CLASSES_UNCOUNTED,
)
from assets.contract.schemas import CANONICAL
from assets.intake import fhir_changes
from assets.intake.connector import Export
from assets.intake.connectors.transfer import SCOPE_FILE
from assets.intake.fhir_consent import CONSENT_SQL, MACROS, load_consents
from assets.intake.fhir_files import kind_of
from assets.intake.fhir_load import PROVENANCE, Loader, allowed_id
from assets.intake.findings import Findings, RejectedExport, empty_canonical
from assets.lake.engine import load, rows_of


def _macros(time_zone: str) -> str:
    """SQL helpers: reference → id, FHIR date(-time) → local calendar day, code of a nested extension.

    They run on every line, so a cheap test stands before what is dear. A reference to another type, to what is
    contained in the line itself (`#`) or to whatever a search finds (`?`) names nobody: ids repeat between them.
    `icd_of`: the first code that may stand alone, not its manifestation (`*`) or addition (`!`). `coded_in`: of that
    code system, or one of the codes `unnamed` without any, as test data of the MII have them. `home`: neither a
    former address nor a post box; postal codes of other countries repeat ours.
    """
    zone = time_zone.replace("'", "")
    return f"""
    CREATE MACRO named(r, kind) AS CASE WHEN split_part(r, '/', -2) = kind THEN nullif(split_part(r, '/', -1), '') END;
    CREATE MACRO ref_id(r, kind) AS CASE WHEN strlen(r) >= 2048 OR starts_with(r, '#') OR contains(r, '?') THEN NULL
        WHEN contains(r, '/_history/') THEN named(split_part(r, '/_history/', 1), kind)
        WHEN contains(r, '/') THEN named(r, kind) ELSE nullif(split_part(r, ':', -1), '') END;
    CREATE MACRO wall(t) AS CASE
        WHEN regexp_matches(t, 'T[0-9:.]+(Z|[+-][0-9]{{2}}(:?[0-9]{{2}})?)$') THEN timezone('{zone}', try_cast(t AS TIMESTAMPTZ))
        WHEN regexp_matches(t, '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}') THEN try_cast(t AS TIMESTAMP) END;
    CREATE MACRO local_day(t) AS CASE WHEN strlen(t) = 10 AND CAST(try_cast(t AS DATE) AS VARCHAR) = t THEN try_cast(t AS DATE)
        ELSE CAST(wall(t) AS DATE) END;
    CREATE MACRO coding_of(codings, sys) AS list_filter(codings, lambda c: c.system LIKE sys)[1];
    CREATE MACRO coded(codings, sys) AS coding_of(codings, sys).code;
    CREATE MACRO beside(c) AS coalesce(list_has_any(list_transform(list_filter(c.extension,
        lambda e: e.url LIKE '%mehrfachcodierungs-kennzeichen'), lambda e: e.valueCoding.code), ['*', '!']), false);
    CREATE MACRO icd_of(codings) AS CASE WHEN len(codings) > 1 THEN coalesce(list_filter(codings,
        lambda c: c.system LIKE '%/icd-10-gm' AND NOT beside(c))[1], coding_of(codings, '%/icd-10-gm'))
        ELSE coding_of(codings, '%/icd-10-gm') END;
    CREATE MACRO counts_on(d, since, until) AS (since IS NULL OR d >= since) AND (until IS NULL OR d < until);
    CREATE MACRO home(addresses) AS list_filter(addresses, lambda a: a.postalCode IS NOT NULL
        AND a.use IS DISTINCT FROM 'old' AND a.type IS DISTINCT FROM 'postal')[1];
    CREATE MACRO german_code(a) AS CASE WHEN a.country IS NULL
        OR upper(trim(a.country)) IN ('DE', 'DEU', 'D', '276', 'DEUTSCHLAND', 'GERMANY') THEN a.postalCode END;
    CREATE MACRO codings(concepts) AS CASE WHEN len(concepts) = 1 THEN concepts[1].coding
        ELSE flatten(list_transform(concepts, lambda t: t.coding)) END;
    CREATE MACRO coded_in(concepts, sys, unnamed) AS coalesce(coded(codings(concepts), sys),
        list_filter(codings(concepts), lambda c: c.system IS NULL AND c.code IN unnamed)[1].code);
    CREATE MACRO sub_code(extensions, outer_url, inner_url) AS CASE WHEN len(extensions) > 0 THEN
        list_filter(list_filter(extensions, lambda e: e.url LIKE outer_url)[1].extension,
                    lambda e: e.url = inner_url)[1].valueCoding.code END;
    """


def check(export: Export) -> None:
    """Raise `RejectedExport` where the export as a whole cannot be read."""
    # A bulk export in which nothing changed holds its scope file alone.
    if not any(kind_of(f) or f.name == SCOPE_FILE for f in export.files()):
        raise RejectedExport("no_known_file")
    for about in (f for f in export.files() if f.name == SCOPE_FILE):
        with about.open("rb") as file:
            if b'"resourceType"' in file.read(1 << 16):
                raise RejectedExport("name_taken", about)


# What is kept of each resource: SQL over the parsed line `r`, run once for each line.
FIELDS: Final = {
    "Patient": """
  list_filter(r.identifier, lambda i: i.system = 'http://fhir.de/sid/gkv/kvid-10')[1].value AS insured_id,
  try_cast(r.birthDate[1:4] AS SMALLINT) AS birth_year, month(try_cast(r.birthDate[1:7] || '-01' AS DATE)) AS birth_month,
  dayofmonth(try_cast(r.birthDate[1:10] AS DATE)) AS birth_day,
  CASE r.gender WHEN 'male' THEN 'm' WHEN 'female' THEN 'w' WHEN 'other' THEN 'other' WHEN 'unknown' THEN 'other'
       ELSE CASE WHEN r.gender IS NULL THEN 'other' END END AS sex,
  german_code(home(r.address)) AS postal_code, local_day(r.deceasedDateTime) AS deceased_on,
  list_contains(list_transform(r.link, lambda l: l.type), 'replaced-by') AS replaced""",
    "Encounter": f"""
  CASE WHEN r.partOf IS NOT NULL THEN coalesce(ref_id(r.partOf.reference, 'Encounter'), '#') END AS parent,
  ref_id(r.subject.reference, 'Patient') AS patient_id, r.status AS fhir_status,
  CASE r.class.code WHEN 'I' THEN 'IMP' WHEN 'E' THEN 'EMER' ELSE r.class.code END AS class_code,
  coded_in(r.type, '%Kontaktebene', ('einrichtungskontakt', 'abteilungskontakt', 'versorgungsstellenkontakt')) AS level,
  coded_in(r.type, '%kontaktart-de', {CONTACT_KINDS_UNCOUNTED}) AS contact_kind,
  upper(coalesce(coded(r.hospitalization.admitSource.coding, '%Aufnahmeanlass'),
    list_filter(r.hospitalization.admitSource.coding, lambda c: c.system IS NULL)[1].code)) AS admission_cause,
  sub_code(r.extension, '%Aufnahmegrund', 'ErsteUndZweiteStelle')
    || coalesce(sub_code(r.extension, '%Aufnahmegrund', 'DritteStelle'), '0')
    || coalesce(sub_code(r.extension, '%Aufnahmegrund', 'VierteStelle'), '0') AS admission_reason,
  r.period.start AS starts, r.period.end AS ends,
  sub_code(r.hospitalization.dischargeDisposition.extension, '%Entlassungsgrund', 'ErsteUndZweiteStelle')
    || coalesce(sub_code(r.hospitalization.dischargeDisposition.extension, '%Entlassungsgrund', 'DritteStelle'), '')
    AS discharge_reason,
  coded(r.serviceType.coding, '%Fachabteilungsschluessel%') AS department, r.diagnosis AS diagnosis""",
    "Condition": """
  ref_id(r.encounter.reference, 'Encounter') AS contact, r.verificationStatus.coding[1].code AS verification,
  icd_of(r.code.coding).code AS code,
  list_filter(icd_of(r.code.coding).extension, lambda e: e.url LIKE '%diagnosesicherheit')[1].valueCoding.code
    AS certainty""",
    "Procedure": """
  ref_id(r.subject.reference, 'Patient') AS patient_id, ref_id(r.encounter.reference, 'Encounter') AS contact,
  r.status AS status,
  trim(coded(r.code.coding, '%/ops')) AS ops_code,
  local_day(coalesce(r.performedDateTime, r.performedPeriod.start)) AS performed_on""",
}

_IS_CASE: Final = "coalesce(level = 'einrichtungskontakt', parent IS NULL)"
CASES_SQL: Final = f"""
CREATE TEMP TABLE replaced AS
SELECT id, arrival_day, lead(arrival_day) OVER (PARTITION BY id ORDER BY arrival_day) AS until
FROM (SELECT DISTINCT id, arrival_day FROM "Encounter"
  SEMI JOIN (SELECT id FROM "Encounter" GROUP BY id HAVING min(arrival_day) < max(arrival_day)) USING (id));
CREATE TEMP TABLE contacts AS
SELECT DISTINCT id, CASE WHEN level IS DISTINCT FROM 'einrichtungskontakt' THEN parent END AS parent FROM "Encounter"
ANTI JOIN (FROM replaced WHERE until IS NOT NULL) USING (id, arrival_day);
CREATE TEMP TABLE named AS
SELECT contact, until, ref_id(d.condition.reference, 'Condition') AS condition_id,
  CASE WHEN list_has_any(uses, ['hospital-main-diagnosis', 'principle-DRG']) THEN 0
       WHEN list_contains(uses, 'cause-of-death') THEN 8 WHEN list_contains(uses, 'CC') THEN 1
       WHEN list_contains(uses, 'DD') THEN 2 WHEN list_contains(uses, 'AD') THEN 3 ELSE 7 END AS use_order,
  coalesce(d.rank, 99) AS place
FROM (SELECT *, list_transform(d.use.coding, lambda u: u.code) AS uses
      FROM (SELECT id AS contact, until, unnest(diagnosis) AS d FROM "Encounter" LEFT JOIN replaced USING (id, arrival_day)));
CREATE TEMP VIEW cases AS
SELECT {PROVENANCE}, id AS case_id, patient_id,
  CASE WHEN fhir_status IN ('planned', 'finished', 'cancelled', 'entered-in-error', 'in-progress') THEN fhir_status
       WHEN fhir_status IN ('arrived', 'triaged', 'onleave') THEN 'in-progress' WHEN fhir_status = 'unknown' THEN 'unknown' END AS status,
  CASE WHEN admission_cause = 'B' OR contact_kind IN {CONTACT_KINDS_UNCOUNTED} THEN 'other'
       WHEN class_code IN ('IMP', 'ACUTE', 'NONAC') THEN 'inpatient'
       WHEN class_code = 'EMER' THEN 'emergency_visit' WHEN class_code IN {ENCOUNTER_CLASSES_UNCOUNTED} THEN 'other' END AS care,
  CASE WHEN class_code = 'EMER' OR admission_cause = 'N' OR admission_reason[4] = '7' THEN 'emergency' ELSE 'other' END
    AS admission_type,
  admission_cause, admission_reason, local_day(starts) AS admitted_on, local_day(ends) AS discharged_on, discharge_reason,
  coalesce(starts_with(discharge_reason, '07'), false) AS died, CAST(NULL AS SMALLINT) AS age_years, department
FROM "Encounter" WHERE {_IS_CASE};
"""
# A contact that belongs to a case delivered on another day is no fault, so a file is named once, by its first.
_OF_NO_CASE: Final = f"""SELECT file, min(source_line) AS source_line FROM "Encounter"
WHERE NOT ({_IS_CASE}) AND NOT EXISTS (FROM contacts c WHERE c.id = "Encounter".parent) GROUP BY file"""

# So are diagnoses and procedures of no case.
_ICD_OF_NO_CASE: Final = "SELECT file, min(source_line) AS source_line FROM icd ANTI JOIN links ON icd_row = icd.rowid WHERE until IS NULL GROUP BY file"
_OPS_OF_NO_CASE: Final = """SELECT file, min(source_line) AS source_line FROM "Procedure" ANTI JOIN contact_cases USING (contact)
WHERE ops_code IS NOT NULL AND status IS DISTINCT FROM 'entered-in-error' GROUP BY file"""
# Not followed is what gives no type and id: a number only, something contained, a search.
_NOT_FOLLOWED: Final = f"""SELECT file, min(source_line) AS source_line FROM (
  SELECT file, source_line FROM "Encounter" WHERE patient_id IS NULL AND {_IS_CASE}
  UNION ALL SELECT file, source_line FROM (SELECT file, source_line, unnest(diagnosis) AS d
    FROM "Encounter" SEMI JOIN (SELECT contact AS id FROM named WHERE condition_id IS NULL) USING (id))
  WHERE coalesce(ref_id(d.condition.reference, 'Condition'), ref_id(d.condition.reference, 'Procedure')) IS NULL) GROUP BY file"""

# Findings coded otherwise stand beside German diagnoses too: a file is named once, by its first.
_OTHER_CODES: Final = 'SELECT file, min(source_line) AS source_line FROM "Condition" WHERE code IS NULL GROUP BY file'

PERSONS_SQL: Final = f"""
CREATE TEMP TABLE replaced_on AS SELECT id AS patient_id, arrival_day AS day FROM "Patient" WHERE replaced;
CREATE TEMP VIEW persons AS
SELECT {PROVENANCE}, id AS patient_id, insured_id, birth_year, birth_month, birth_day, sex, postal_code, deceased_on
FROM "Patient" WHERE replaced IS DISTINCT FROM true;
"""
_REPLACED: Final = 'SELECT file, source_line FROM "Patient" WHERE replaced'

# A diagnosis belongs to a case by Encounter.diagnosis (of the case or of a contact below it) or by
# Condition.encounter. Principal: the hospital's main diagnosis (code system KontaktDiagnoseProzedur), then use CC
# before DD before AD, then rank; without a use, only if it is alone. An older version of a contact, diagnosis or procedure
# counts until the day on which a newer one came, so it does not matter which days are read together.
_CASE_OF_SQL: Final = """
CREATE TEMP TABLE case_of AS
WITH below AS (
  SELECT c.id, p.id AS above, p.parent AS top FROM contacts c LEFT JOIN contacts p ON p.id = c.parent WHERE c.parent IS NOT NULL)
SELECT id AS contact, id AS case_id FROM contacts WHERE parent IS NULL
UNION ALL
SELECT b.id, coalesce(g.id, b.above, b.id) FROM below b
LEFT JOIN (SELECT DISTINCT id FROM contacts SEMI JOIN below ON top = contacts.id) g ON g.id = b.top;
"""
_ICD_SQL: Final = """
CREATE TEMP TABLE icd AS
SELECT file, source_file, source_line, id AS condition_id, contact, code, certainty, since, until
FROM "Condition" LEFT JOIN "Condition_spans" USING (id, arrival_day) WHERE coalesce(verification, '') NOT IN ('entered-in-error', 'refuted') AND code IS NOT NULL;
"""
DIAGNOSES_SQL: Final = f"""
{_CASE_OF_SQL}
CREATE TEMP TABLE contact_cases AS
SELECT o.contact, c.rowid AS case_row, c.arrival_day FROM case_of o JOIN case_rows c ON c.case_id = o.case_id;
CREATE TEMP TABLE links AS
SELECT case_row, icd_row, min(use_order) AS use_order, min(place) AS place FROM (
  SELECT o.case_row, i.rowid AS icd_row, n.use_order, n.place FROM named n
  JOIN contact_cases o ON o.contact = n.contact AND (n.until IS NULL OR o.arrival_day < n.until)
  JOIN icd i ON i.condition_id = n.condition_id AND counts_on(o.arrival_day, i.since, i.until)
  UNION ALL
  SELECT o.case_row, i.rowid, 6, 99 FROM icd i JOIN contact_cases o ON o.contact = i.contact
    AND counts_on(o.arrival_day, i.since, i.until)) GROUP BY ALL;
CREATE TEMP VIEW diagnoses AS
WITH ranked AS (
  SELECT case_row, icd_row, use_order, row_number() OVER w AS nth, lead(icd_row) OVER w AS next
  FROM links JOIN icd i ON i.rowid = icd_row
  WINDOW w AS (PARTITION BY case_row ORDER BY use_order, place, i.condition_id))
SELECT c.clinic, c.arrival_day, c.export_id, i.source_file, i.source_line, c.case_id, c.patient_id,
  CASE WHEN regexp_full_match(code, '[A-Z0-9.]*') THEN code
    ELSE regexp_replace(upper(trim(code)), '[^A-Z0-9.]', '', 'g') END AS icd_code,
  CASE WHEN nth = 1 AND (use_order <= 3 OR next IS NULL) THEN 'principal' ELSE 'secondary' END AS role, certainty
FROM ranked JOIN icd i ON i.rowid = icd_row JOIN case_rows c ON c.rowid = case_row;
"""

PROCEDURES_SQL: Final = """
CREATE TEMP VIEW procedures AS
SELECT c.clinic, c.arrival_day, c.export_id, p.source_file, p.source_line, c.case_id, p.patient_id, p.ops_code, p.performed_on
FROM "Procedure" p LEFT JOIN "Procedure_spans" s USING (id, arrival_day)
JOIN contact_cases o ON o.contact = p.contact AND counts_on(o.arrival_day, s.since, s.until) JOIN case_rows c ON c.rowid = o.case_row
WHERE p.ops_code IS NOT NULL AND p.status IS DISTINCT FROM 'entered-in-error';
"""

DELETIONS_SQL: Final = f"""
CREATE TEMP VIEW deletions AS
SELECT s.clinic, s.arrival_day, s.export_id, s.source_file, CAST(1 AS BIGINT) AS source_line, d.kind, d.id
FROM deleted d JOIN sources s USING (file) WHERE {allowed_id("d.id")};
"""


def _canonical(con: duckdb.DuckDBPyConnection, tables: dict[str, pa.Table], name: str, sql: str) -> None:
    """Put the view `name` that `sql` creates into `tables`."""
    con.execute(sql)
    schema = CANONICAL[name]
    rows = f"{name} SEMI JOIN own USING (export_id)" if name in ("consent_provisions", "deletions") else name
    tables[name] = rows_of(con, f"SELECT {', '.join(schema.names)} FROM {rows}").cast(schema)
    con.execute(f"DROP VIEW {name}")


def _read_cases(con: duckdb.DuckDBPyConnection, loader: Loader, tables: dict[str, pa.Table], changing: bool) -> None:
    """Put cases and what belongs to them into `tables`; `changing`: also cases of which only something beside them changed.

    Each type is dropped as soon as nothing needs it any more: together they would not fit into memory.
    """

    def touch(kind: str) -> None:
        if changing:
            fhir_changes.touch(con, kind, _IS_CASE)

    loader.load("Patient", FIELDS["Patient"])
    loader.note("patient_replaced", _REPLACED)
    _canonical(con, tables, "persons", PERSONS_SQL)
    touch("Patient")
    loader.drop("Patient")
    loader.load("Encounter", FIELDS["Encounter"])
    _canonical(con, tables, "cases", CASES_SQL)
    loader.note("rows_of_no_case", _OF_NO_CASE)
    loader.note("reference_not_followed", _NOT_FOLLOWED)
    touch("Encounter")
    loader.drop("Encounter")
    if changing:
        loader.load("Procedure", FIELDS["Procedure"])
        touch("Procedure")
        loader.drop("Procedure")
    loader.load("Condition", FIELDS["Condition"])
    loader.note("diagnosis_not_icd_10_gm", _OTHER_CODES)
    touch("Condition")
    tables["cases"], tables["persons"] = fhir_changes.of_own(con, tables["cases"], tables["persons"])
    load(con, case_rows=tables["cases"].select(["clinic", "arrival_day", "export_id", "case_id", "patient_id"]))
    loader.span("Condition")
    con.execute(_ICD_SQL)
    loader.drop("Condition")
    _canonical(con, tables, "diagnoses", DIAGNOSES_SQL)
    loader.note("rows_of_no_case", _ICD_OF_NO_CASE)
    for name in ("icd", "links", "named", "replaced", "contacts", "case_of"):
        con.execute(f"DROP TABLE {name}")
    loader.load("Procedure", FIELDS["Procedure"])
    loader.span("Procedure")
    _canonical(con, tables, "procedures", PROCEDURES_SQL)
    loader.note("rows_of_no_case", _OPS_OF_NO_CASE)


def read(
    con: duckdb.DuckDBPyConnection,
    exports: list[Export],
    findings: Findings,
    time_zone: str,
    consent_only: bool = False,
    earlier: list[Export] | None = None,
    mixed: Collection[Path] = (),
) -> dict[str, pa.Table]:
    """Canonical tables of all `exports`, which are of one clinic and have passed `check`.

    `earlier`: exports that those of changes build upon. Nothing of them is in the tables but a case of which something
    changed, and what a changed case refers to: a server does not send again what stays the same.

    `mixed`: files that are named after a type and hold others. Raises `MixedFiles` with such as are not among them.
    `con` must be allowed to read their folders. With `consent_only`, only Consent files are read: the side
    file of another format.
    """
    con.execute(_macros(time_zone) + MACROS)
    loader = Loader(con, exports, consent_only, earlier or [], mixed)
    con.register(
        "own", pa.table({"export_id": [e.export_id for e in exports], "changes": [e.changes_only for e in exports]})
    )
    tables = empty_canonical()
    load_consents(con, loader, alone=consent_only)
    _canonical(con, tables, "consent_provisions", CONSENT_SQL)
    loader.drop("Consent")
    _canonical(con, tables, "deletions", DELETIONS_SQL)
    if not consent_only:
        changing = [e for e in exports if e.changes_only]
        # Put together from half of what it was made of, a stored case would lose what it has.
        erased = any(e.erased for e in earlier or ())
        for export in changing if erased else ():
            findings.add(export, "base_erased", "info", SCOPE_FILE)
        fhir_changes.begin(con)
        _read_cases(con, loader, tables, bool(changing) and not erased)
    loader.report(findings)
    return tables
