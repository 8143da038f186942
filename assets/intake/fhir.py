"""Reader for FHIR R4 bulk exports (NDJSON) in the shape of the MII core data set and ISiK.

Everything is SQL over lines: a line that is no JSON object becomes a finding, never an exception. Sources:
MII KDS modules Person, Fall, Diagnose, Prozedur, Consent; `Kontaktebene` of the German base profiles.
"""

from __future__ import annotations

from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.codes import CONSENT_CODE_SYSTEM
from assets.contract.schemas import CANONICAL
from assets.intake.connector import Export
from assets.intake.connectors.transfer import SCOPE_FILE
from assets.intake.fhir_load import ID, Loader, kind_of
from assets.intake.findings import Findings, RejectedExport, empty_canonical


def _macros(time_zone: str) -> str:
    """SQL helpers: reference → id, FHIR date(-time) → local calendar day, code of a nested extension."""
    zone = time_zone.replace("'", "")
    return f"""
    CREATE MACRO ref_id(r) AS CASE WHEN length(r) < 2048
        THEN nullif(regexp_extract(r, '([^/:]+)(?:/_history/.*)?$', 1), '') END;
    CREATE MACRO wall(t) AS CASE
        WHEN regexp_matches(t, '(Z|[+-][0-9]{{2}}:[0-9]{{2}})$') THEN timezone('{zone}', try_cast(t AS TIMESTAMPTZ))
        WHEN regexp_matches(t, '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}') THEN try_cast(t AS TIMESTAMP) END;
    CREATE MACRO local_day(t) AS CAST(wall(t) AS DATE);
    CREATE MACRO coded(codings, sys) AS list_filter(codings, lambda c: c.system LIKE sys)[1].code;
    CREATE MACRO sub_code(extensions, outer_url, inner_url) AS
        list_filter(list_filter(extensions, lambda e: e.url LIKE outer_url)[1].extension,
                    lambda e: e.url = inner_url)[1].valueCoding.code;
    """


def check(export: Export) -> None:
    """Raise `RejectedExport` where the export as a whole cannot be read."""
    # A bulk export in which nothing changed holds its scope file alone.
    if not any(kind_of(f) or f.name == SCOPE_FILE for f in export.files()):
        raise RejectedExport("no_known_file")


_PROVENANCE: Final = "clinic, arrival_day, export_id, source_file, source_line"

CASES_SQL: Final = f"""
CREATE TEMP TABLE contacts AS
SELECT clinic, arrival_day, id, ref_id(r.partOf.reference) AS parent FROM "Encounter";
CREATE TEMP TABLE named AS
SELECT clinic, arrival_day, contact, ref_id(d.condition.reference) AS condition_id,
  CASE WHEN list_contains(uses, 'cause-of-death') THEN 8 WHEN list_contains(uses, 'CC') THEN 0
       WHEN list_contains(uses, 'DD') THEN 1 WHEN list_contains(uses, 'AD') THEN 2 ELSE 7 END AS use_order,
  coalesce(d.rank, 99) AS place
FROM (SELECT *, list_transform(d.use.coding, lambda u: u.code) AS uses
      FROM (SELECT clinic, arrival_day, id AS contact, unnest(r.diagnosis) AS d FROM "Encounter"));
CREATE TEMP VIEW facility AS
WITH levels AS (
  SELECT *, flatten(list_transform(r.type, lambda t: t.coding)) AS types, coded(types, '%Kontaktebene') AS level
  FROM "Encounter")
SELECT * FROM levels WHERE level = 'einrichtungskontakt' OR (level IS NULL AND ref_id(r.partOf.reference) IS NULL);
CREATE TEMP VIEW cases AS
WITH raw AS (
  SELECT {_PROVENANCE}, id AS case_id, ref_id(r.subject.reference) AS patient_id,
    r.status AS fhir_status, r.class.code AS class_code, coded(types, '%kontaktart-de') AS kind,
    upper(r.hospitalization.admitSource.coding[1].code) AS admission_cause,
    sub_code(r.extension, '%Aufnahmegrund', 'ErsteUndZweiteStelle')
      || coalesce(sub_code(r.extension, '%Aufnahmegrund', 'DritteStelle'), '0')
      || coalesce(sub_code(r.extension, '%Aufnahmegrund', 'VierteStelle'), '0') AS admission_reason,
    local_day(r.period.start) AS admitted_on, local_day(r.period.end) AS discharged_on,
    sub_code(r.hospitalization.dischargeDisposition.extension, '%Entlassungsgrund', 'ErsteUndZweiteStelle')
      || coalesce(sub_code(r.hospitalization.dischargeDisposition.extension, '%Entlassungsgrund', 'DritteStelle'), '')
      AS discharge_reason,
    coded(r.serviceType.coding, '%Fachabteilungsschluessel%') AS department
  FROM facility)
SELECT {_PROVENANCE}, case_id, patient_id,
  CASE WHEN fhir_status IN ('planned', 'finished', 'cancelled', 'entered-in-error', 'in-progress') THEN fhir_status
       WHEN fhir_status IN ('arrived', 'triaged', 'onleave') THEN 'in-progress' ELSE 'unknown' END AS status,
  CASE WHEN admission_cause = 'B' OR kind = 'begleitperson' THEN 'other'
       WHEN class_code IN ('IMP', 'ACUTE', 'NONAC') THEN 'inpatient'
       WHEN class_code = 'EMER' THEN 'emergency_visit' ELSE 'other' END AS care,
  CASE WHEN class_code = 'EMER' OR admission_cause = 'N' OR admission_reason[4] = '7' THEN 'emergency' ELSE 'other' END
    AS admission_type,
  admission_cause, admission_reason, admitted_on, discharged_on, discharge_reason,
  coalesce(discharge_reason[1:2] = '07', false) AS died, CAST(NULL AS SMALLINT) AS age_years, department
FROM raw;
"""

PERSONS_SQL: Final = f"""
CREATE TEMP VIEW persons AS
SELECT {_PROVENANCE}, id AS patient_id,
  list_filter(r.identifier, lambda i: i.system = 'http://fhir.de/sid/gkv/kvid-10')[1].value AS insured_id,
  try_cast(r.birthDate[1:4] AS SMALLINT) AS birth_year, try_cast(r.birthDate[6:7] AS TINYINT) AS birth_month,
  try_cast(r.birthDate[9:10] AS TINYINT) AS birth_day,
  CASE r.gender WHEN 'male' THEN 'm' WHEN 'female' THEN 'w' WHEN 'other' THEN 'other' WHEN 'unknown' THEN 'other'
       ELSE CASE WHEN r.gender IS NULL THEN 'other' END END AS sex,
  r.address[1].postalCode AS postal_code, local_day(r.deceasedDateTime) AS deceased_on
FROM "Patient";
"""

# A diagnosis belongs to a case by Encounter.diagnosis (of the case or of a contact below it) or by
# Condition.encounter. Principal: use CC before DD before AD, then rank; without a use, only if it is alone.
DIAGNOSES_SQL: Final = f"""
CREATE TEMP TABLE case_of AS
WITH c AS (SELECT DISTINCT clinic, id, parent FROM contacts)
SELECT clinic, id AS contact, id AS case_id FROM c WHERE parent IS NULL
UNION ALL
SELECT c.clinic, c.id, coalesce(g.id, p.id, c.id) FROM c
LEFT JOIN c p ON p.clinic = c.clinic AND p.id = c.parent
LEFT JOIN (SELECT DISTINCT clinic, id FROM c) g ON g.clinic = p.clinic AND g.id = p.parent
WHERE c.parent IS NOT NULL;
CREATE TEMP TABLE icd AS
WITH versions AS (
  SELECT {_PROVENANCE}, id AS condition_id, ref_id(r.encounter.reference) AS contact,
    r.verificationStatus.coding[1].code AS verification,
    list_filter(r.code.coding, lambda c: c.system LIKE '%/icd-10-gm')[1] AS coding
  FROM "Condition"
  QUALIFY row_number() OVER (PARTITION BY clinic, id ORDER BY arrival_day DESC, export_id DESC, source_line DESC) = 1)
SELECT * EXCLUDE (verification, coding), coding.code AS code,
  list_filter(coding.extension, lambda e: e.url LIKE '%diagnosesicherheit')[1].valueCoding.code AS certainty
FROM versions WHERE verification IS DISTINCT FROM 'entered-in-error';
CREATE TEMP TABLE links AS
SELECT o.clinic, n.arrival_day, o.case_id, n.condition_id, n.use_order, n.place
FROM named n JOIN case_of o ON o.clinic = n.clinic AND o.contact = n.contact
UNION ALL
SELECT o.clinic, i.arrival_day, o.case_id, i.condition_id, 6, 99
FROM icd i JOIN case_of o ON o.clinic = i.clinic AND o.contact = i.contact;
CREATE TEMP VIEW diagnoses AS
WITH distinct_links AS (
  SELECT clinic, case_id, condition_id, min(use_order) AS use_order, min(place) AS place FROM links GROUP BY ALL),
ranked AS (
  SELECT c.clinic, c.arrival_day, c.export_id, i.source_file, i.source_line, c.case_id, c.patient_id, i.code, i.certainty,
    use_order, row_number() OVER w AS nth, count(*) OVER (PARTITION BY c.clinic, c.arrival_day, c.case_id) AS n
  FROM distinct_links l JOIN icd i ON i.clinic = l.clinic AND i.condition_id = l.condition_id
  JOIN cases c ON c.clinic = l.clinic AND c.case_id = l.case_id
  WHERE i.code IS NOT NULL
  WINDOW w AS (PARTITION BY c.clinic, c.arrival_day, c.case_id ORDER BY use_order, place, l.condition_id))
SELECT {_PROVENANCE}, case_id, patient_id,
  regexp_replace(upper(trim(code)), '[^A-Z0-9.]', '', 'g') AS icd_code,
  CASE WHEN nth = 1 AND (use_order <= 2 OR n = 1) THEN 'principal' ELSE 'secondary' END AS role, certainty
FROM ranked;
"""

PROCEDURES_SQL: Final = """
CREATE TEMP VIEW procedures AS
SELECT p.clinic, p.arrival_day, p.export_id, p.source_file, p.source_line, o.case_id,
  ref_id(p.r.subject.reference) AS patient_id, trim(coded(p.r.code.coding, '%/ops')) AS ops_code,
  local_day(coalesce(p.r.performedDateTime, p.r.performedPeriod.start)) AS performed_on
FROM "Procedure" p
JOIN case_of o ON o.clinic = p.clinic AND o.contact = ref_id(p.r.encounter.reference)
WHERE coded(p.r.code.coding, '%/ops') IS NOT NULL AND p.r.status IS DISTINCT FROM 'entered-in-error';
"""

# A consent without nested provisions still counts: its status may withdraw an earlier version (code `*`). So does
# a deleted one: it ends what its earlier versions granted, whoever the patient was.
CONSENT_SQL: Final = f"""
CREATE TEMP VIEW consent_provisions AS
WITH provisions AS (
  SELECT {_PROVENANCE}, id, r, unnest(CASE WHEN len(r.provision.provision) > 0 THEN r.provision.provision
    ELSE [{{'type': 'none', 'period': {{'start': NULL, 'end': NULL}}, 'code': NULL}}] END) AS p FROM "Consent"),
codes AS (
  SELECT {_PROVENANCE}, id, r, p, unnest(CASE WHEN len(p.code) > 0 THEN flatten(list_transform(p.code, lambda c: c.coding))
    ELSE [{{'system': NULL, 'code': '*'}}] END) AS c FROM provisions)
SELECT {_PROVENANCE}, ref_id(r.patient.reference) AS patient_id, id AS consent_id, r.status AS status,
  wall(r.dateTime) AS declared_at, r.policy[1].uri AS policy_uri,
  regexp_replace(c.code, '^urn:oid:', '') AS code, p.type AS decision,
  local_day(p.period.start) AS valid_from, local_day(p.period.end) AS valid_to,
  (local_day(p.period.start) IS NOT NULL AND (p.period.end IS NULL OR local_day(p.period.end) IS NOT NULL))
    AS period_readable
FROM codes WHERE c.code = '*' OR regexp_replace(c.code, '^urn:oid:', '') LIKE '{CONSENT_CODE_SYSTEM}.%'
UNION ALL
SELECT DISTINCT ON (s.clinic, s.arrival_day, d.id) {", ".join("s." + c for c in _PROVENANCE.split(", ")[:-1])},
  CAST(1 AS BIGINT), CAST(NULL AS VARCHAR), d.id, 'entered-in-error', CAST(NULL AS TIMESTAMP), CAST(NULL AS VARCHAR),
  '*', 'none', CAST(NULL AS DATE), CAST(NULL AS DATE), false
FROM deleted d JOIN sources s USING (file) WHERE d.kind = 'Consent' AND regexp_full_match(d.id, '{ID}');
"""


DELETIONS_SQL: Final = f"""
CREATE TEMP VIEW deletions AS
SELECT s.clinic, s.arrival_day, s.export_id, s.source_file, CAST(1 AS BIGINT) AS source_line, d.kind, d.id
FROM deleted d JOIN sources s USING (file) WHERE regexp_full_match(d.id, '{ID}');
"""

# The persons of the exports, and of an export of changes those whom its cases name: as they last came before.
OWN_PERSONS_SQL: Final = """
SELECT p.* FROM persons p SEMI JOIN own USING (export_id)
UNION ALL BY NAME
SELECT p.* REPLACE (c.arrival_day AS arrival_day, c.export_id AS export_id) FROM (
  SELECT DISTINCT ON (c.arrival_day, c.patient_id) c.clinic, c.arrival_day, c.export_id, c.patient_id
  FROM cases c SEMI JOIN (FROM own WHERE changes) o USING (export_id)
  ANTI JOIN persons p ON p.clinic = c.clinic AND p.patient_id = c.patient_id AND p.arrival_day = c.arrival_day
  ORDER BY c.export_id) c
JOIN persons p ON p.clinic = c.clinic AND p.patient_id = c.patient_id AND p.arrival_day < c.arrival_day
QUALIFY row_number() OVER (PARTITION BY c.arrival_day, c.patient_id ORDER BY p.arrival_day DESC, p.export_id DESC) = 1"""


def read(
    con: duckdb.DuckDBPyConnection,
    exports: list[Export],
    findings: Findings,
    time_zone: str,
    consent_only: bool = False,
    earlier: list[Export] | None = None,
) -> dict[str, pa.Table]:
    """Canonical tables of all `exports`, which have passed `check`.

    `earlier`: exports that those of changes build upon. Nothing of them is in the tables but what a changed case
    refers to: its patient and its diagnoses, which a server does not send again while they stay the same.

    `con` must be allowed to read their folders. With `consent_only`, only Consent files are read: the side
    file of another format.
    """
    con.execute(_macros(time_zone))
    loader = Loader(con, exports, consent_only, earlier or [])
    con.register(
        "own", pa.table({"export_id": [e.export_id for e in exports], "changes": [e.changes_only for e in exports]})
    )
    tables = empty_canonical()

    def canonical(name: str, sql: str) -> None:
        con.execute(sql)
        schema = CANONICAL[name]
        rows = f"{name} SEMI JOIN own USING (export_id)" if earlier and name not in ("persons", "diagnoses") else name
        tables[name] = con.execute(f"SELECT {', '.join(schema.names)} FROM {rows}").to_arrow_table().cast(schema)
        con.execute(f"DROP VIEW {name}")

    # Each type is dropped as soon as nothing needs it any more: together they would not fit into memory.
    loader.load("Consent")
    canonical("consent_provisions", CONSENT_SQL)
    loader.drop("Consent")
    canonical("deletions", DELETIONS_SQL)
    if not consent_only:
        loader.load("Patient")
        canonical("persons", PERSONS_SQL)
        loader.drop("Patient")
        loader.load("Encounter")
        canonical("cases", CASES_SQL)
        con.execute("DROP VIEW facility")
        con.register("cases", tables["cases"])
        con.register("persons", tables["persons"])
        tables["persons"] = con.execute(OWN_PERSONS_SQL).to_arrow_table().cast(CANONICAL["persons"])
        loader.drop("Encounter")
        loader.load("Condition")
        canonical("diagnoses", DIAGNOSES_SQL)
        con.execute("DROP TABLE icd; DROP TABLE links; DROP TABLE named")
        loader.drop("Condition")
        loader.load("Procedure")
        canonical("procedures", PROCEDURES_SQL)
    loader.report(findings)
    return tables
