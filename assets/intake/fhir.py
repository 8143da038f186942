"""Reader for FHIR R4 bulk exports (NDJSON) in the shape of the MII core data set and ISiK.

Everything is SQL over lines: a line that is no JSON object becomes a finding, never an exception. Sources:
MII KDS modules Person, Fall, Diagnose, Prozedur, Consent; `Kontaktebene` of the German base profiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.codes import CONSENT_CODE_SYSTEM
from assets.contract.schemas import CANONICAL
from assets.intake.connector import Export
from assets.intake.connectors.transfer import SCOPE_FILE
from assets.intake.findings import Findings, RejectedExport, empty_canonical
from assets.intake.text import detect_encoding

MAX_LINE_BYTES: Final = 16 * 2**20
_CODING: Final = '{"coding":[{"system":"VARCHAR","code":"VARCHAR"}]}'
_REFERENCE: Final = '{"reference":"VARCHAR"}'
_NESTED_EXTENSION: Final = '[{"url":"VARCHAR","extension":[{"url":"VARCHAR","valueCoding":{"code":"VARCHAR"}}]}]'
_PERIOD: Final = '{"start":"VARCHAR","end":"VARCHAR"}'

# What is read of each resource type; anything else in a line is never looked at.
STRUCTURES: Final = {
    "Patient": f"""{{"resourceType":"VARCHAR","id":"VARCHAR","birthDate":"VARCHAR","gender":"VARCHAR",
        "deceasedDateTime":"VARCHAR","address":[{{"postalCode":"VARCHAR"}}],
        "identifier":[{{"system":"VARCHAR","value":"VARCHAR","type":{_CODING}}}]}}""",
    "Encounter": f"""{{"resourceType":"VARCHAR","id":"VARCHAR","status":"VARCHAR","class":{{"code":"VARCHAR"}},
        "type":[{_CODING}],"partOf":{_REFERENCE},"subject":{_REFERENCE},"period":{_PERIOD},
        "serviceType":{_CODING},"extension":{_NESTED_EXTENSION},
        "hospitalization":{{"admitSource":{_CODING},"dischargeDisposition":{{"extension":{_NESTED_EXTENSION}}}}},
        "diagnosis":[{{"condition":{_REFERENCE},"use":{_CODING},"rank":"INTEGER"}}]}}""",
    "Condition": f"""{{"resourceType":"VARCHAR","id":"VARCHAR","subject":{_REFERENCE},"encounter":{_REFERENCE},
        "verificationStatus":{_CODING},"code":{{"coding":[{{"system":"VARCHAR","code":"VARCHAR",
        "extension":[{{"url":"VARCHAR","valueCoding":{{"code":"VARCHAR"}}}}]}}]}}}}""",
    "Procedure": f"""{{"resourceType":"VARCHAR","id":"VARCHAR","status":"VARCHAR","subject":{_REFERENCE},
        "encounter":{_REFERENCE},"code":{_CODING},"performedDateTime":"VARCHAR","performedPeriod":{_PERIOD}}}""",
    "Consent": f"""{{"resourceType":"VARCHAR","id":"VARCHAR","status":"VARCHAR","patient":{_REFERENCE},
        "dateTime":"VARCHAR","policy":[{{"uri":"VARCHAR"}}],"provision":{{"type":"VARCHAR","period":{_PERIOD},
        "provision":[{{"type":"VARCHAR","period":{_PERIOD},"code":[{_CODING}]}}]}}}}""",
}


def _macros(time_zone: str) -> str:
    """SQL helpers: reference → id, FHIR date(-time) → local calendar day, code of a nested extension."""
    zone = time_zone.replace("'", "")
    return f"""
    CREATE MACRO ref_id(r) AS nullif(regexp_extract(regexp_replace(r, '/_history/.*$', ''), '([^/:]+)$', 1), '');
    CREATE MACRO wall(t) AS CASE
        WHEN regexp_matches(t, '(Z|[+-][0-9]{{2}}:[0-9]{{2}})$') THEN timezone('{zone}', try_cast(t AS TIMESTAMPTZ))
        WHEN regexp_matches(t, '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}') THEN try_cast(t AS TIMESTAMP) END;
    CREATE MACRO local_day(t) AS CAST(wall(t) AS DATE);
    CREATE MACRO coded(codings, sys) AS list_filter(codings, lambda c: c.system LIKE sys)[1].code;
    CREATE MACRO sub_code(extensions, outer_url, inner_url) AS
        list_filter(list_filter(extensions, lambda e: e.url LIKE outer_url)[1].extension,
                    lambda e: e.url = inner_url)[1].valueCoding.code;
    """


def _type_of(path: Path) -> str | None:
    """Resource type a file name announces: `Encounter.000.ndjson` or `Encounter.ndjson.gz` → Encounter."""
    name = path.name
    if not name.endswith((".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz")):
        return None
    return next((t for t in STRUCTURES if name.split(".")[0].split("-")[0].lower() == t.lower()), None)


def check(export: Export) -> None:
    """Raise `RejectedExport` where the export as a whole cannot be read."""
    for file in export.files():
        if _type_of(file) and not file.name.endswith(".gz") and detect_encoding(file, ("utf-8-sig",)) is None:
            raise RejectedExport("encoding_not_utf8", file.name)
    # A bulk export in which nothing changed holds its scope file alone.
    if not any(_type_of(f) or f.name == SCOPE_FILE for f in export.files()):
        raise RejectedExport("no_known_file")


def _load_lines(con: duckdb.DuckDBPyConnection, kind: str, files: list[Path], time_zone: str) -> None:
    """Create `<kind>`: provenance and the parsed structure `r` of every line that is a resource of that type.

    Blank lines are not counted in line numbers. Lines that cannot be used go to table `bad_lines`.
    """
    con.execute(
        f"""CREATE TEMP TABLE "{kind}_lines" AS
        SELECT filename, row_number() OVER () AS n, line,
               from_json(CASE WHEN json_valid(line) THEN line END, $structure) AS r
        FROM read_csv($files, columns = {{'line': 'VARCHAR'}}, delim = '\x01', quote = '', escape = '', header = false,
            auto_detect = false, filename = true, strict_mode = false, nullstr = '\x02',
            max_line_size = {MAX_LINE_BYTES})""",
        {"structure": STRUCTURES[kind], "files": [str(f) for f in files]},
    )
    con.execute(
        f"""CREATE TEMP TABLE "{kind}" AS
        SELECT e.clinic, e.arrival_day, e.export_id, e.source_file, l.n - o.first + 1 AS source_line, l.r
        FROM "{kind}_lines" l JOIN exports e USING (filename)
        JOIN (SELECT filename, min(n) AS first FROM "{kind}_lines" GROUP BY ALL) o USING (filename);
        DROP TABLE "{kind}_lines";
        INSERT INTO bad_lines
        SELECT clinic, arrival_day, export_id, source_file, source_line,
               CASE WHEN r IS NULL OR r.resourceType IS NULL THEN 'json_unreadable' ELSE 'wrong_resource_type' END
        FROM "{kind}" WHERE r IS NULL OR r.resourceType IS DISTINCT FROM '{kind}';
        INSERT INTO bad_lines SELECT clinic, arrival_day, export_id, source_file, source_line, 'id_missing'
        FROM "{kind}" WHERE r.resourceType = '{kind}' AND coalesce(r.id, '') = '';
        DELETE FROM "{kind}" WHERE r IS NULL OR r.resourceType IS DISTINCT FROM '{kind}' OR coalesce(r.id, '') = ''"""
    )


_PROVENANCE: Final = "clinic, arrival_day, export_id, source_file, source_line"
_LAST_OF_DAY: Final = (
    "QUALIFY row_number() OVER (PARTITION BY clinic, arrival_day, r.id ORDER BY export_id DESC, source_line DESC) = 1"
)

CASES_SQL: Final = f"""
CREATE TEMP TABLE contacts AS
SELECT {_PROVENANCE}, r.id AS id, ref_id(r.partOf.reference) AS parent, r,
       list_distinct(flatten(list_transform(r.type, lambda t: t.coding))) AS types
FROM "Encounter" {_LAST_OF_DAY};
CREATE TEMP TABLE facility AS
SELECT *, coded(types, '%Kontaktebene') AS level FROM contacts
WHERE coded(types, '%Kontaktebene') = 'einrichtungskontakt'
   OR (coded(types, '%Kontaktebene') IS NULL AND parent IS NULL);
CREATE TEMP TABLE cases AS
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
CREATE TEMP TABLE persons AS
SELECT {_PROVENANCE}, r.id AS patient_id,
  list_filter(r.identifier, lambda i: i.system = 'http://fhir.de/sid/gkv/kvid-10')[1].value AS insured_id,
  try_cast(r.birthDate[1:4] AS SMALLINT) AS birth_year, try_cast(r.birthDate[6:7] AS TINYINT) AS birth_month,
  try_cast(r.birthDate[9:10] AS TINYINT) AS birth_day,
  CASE r.gender WHEN 'male' THEN 'm' WHEN 'female' THEN 'w' WHEN 'other' THEN 'other' WHEN 'unknown' THEN 'other'
       ELSE CASE WHEN r.gender IS NULL THEN 'other' END END AS sex,
  r.address[1].postalCode AS postal_code, local_day(r.deceasedDateTime) AS deceased_on
FROM "Patient" {_LAST_OF_DAY};
"""

# A diagnosis belongs to a case by Encounter.diagnosis (of the case or of a contact below it) or by
# Condition.encounter. Principal: use CC before DD before AD, then rank; without a use, only if it is alone.
DIAGNOSES_SQL: Final = f"""
CREATE TEMP TABLE case_of AS
SELECT c.clinic, c.id AS contact, coalesce(g.id, p.id, c.id) AS case_id
FROM (SELECT DISTINCT clinic, id, parent FROM contacts) c
LEFT JOIN (SELECT DISTINCT clinic, id, parent FROM contacts) p ON p.clinic = c.clinic AND p.id = c.parent
LEFT JOIN (SELECT DISTINCT clinic, id FROM contacts) g ON g.clinic = p.clinic AND g.id = p.parent;
CREATE TEMP TABLE icd AS
SELECT {_PROVENANCE}, r.id AS condition_id, ref_id(r.encounter.reference) AS contact,
  list_filter(r.code.coding, lambda c: c.system LIKE '%/icd-10-gm')[1] AS coding,
FROM "Condition" WHERE r.verificationStatus.coding[1].code IS DISTINCT FROM 'entered-in-error'
QUALIFY row_number() OVER (PARTITION BY clinic, r.id ORDER BY arrival_day DESC, export_id DESC, source_line DESC) = 1;
CREATE TEMP TABLE links AS
WITH named AS (
  SELECT clinic, arrival_day, id AS contact, unnest(r.diagnosis) AS d FROM contacts)
SELECT o.clinic, n.arrival_day, o.case_id, ref_id(n.d.condition.reference) AS condition_id,
  CASE WHEN list_contains(list_transform(n.d.use.coding, lambda u: u.code), 'cause-of-death') THEN 8
       WHEN list_contains(list_transform(n.d.use.coding, lambda u: u.code), 'CC') THEN 0
       WHEN list_contains(list_transform(n.d.use.coding, lambda u: u.code), 'DD') THEN 1
       WHEN list_contains(list_transform(n.d.use.coding, lambda u: u.code), 'AD') THEN 2 ELSE 7 END AS use_order,
  coalesce(n.d.rank, 99) AS place
FROM named n JOIN case_of o ON o.clinic = n.clinic AND o.contact = n.contact
UNION ALL
SELECT o.clinic, i.arrival_day, o.case_id, i.condition_id, 6, 99
FROM icd i JOIN case_of o ON o.clinic = i.clinic AND o.contact = i.contact;
CREATE TEMP TABLE diagnoses AS
WITH best AS (
  SELECT c.clinic, c.arrival_day, c.export_id, i.source_file, i.source_line, c.case_id, c.patient_id,
    i.coding, min(l.use_order) AS use_order, min(l.place) AS place, l.condition_id
  FROM cases c JOIN links l ON l.clinic = c.clinic AND l.case_id = c.case_id
  JOIN icd i ON i.clinic = l.clinic AND i.condition_id = l.condition_id
  WHERE i.coding IS NOT NULL GROUP BY ALL),
ranked AS (
  SELECT *, row_number() OVER w AS nth, count(*) OVER (PARTITION BY clinic, arrival_day, case_id) AS n
  FROM best WINDOW w AS (PARTITION BY clinic, arrival_day, case_id ORDER BY use_order, place, condition_id))
SELECT {_PROVENANCE}, case_id, patient_id,
  regexp_replace(upper(trim(coding.code)), '[^A-Z0-9.]', '', 'g') AS icd_code,
  CASE WHEN nth = 1 AND (use_order <= 2 OR n = 1) THEN 'principal' ELSE 'secondary' END AS role,
  list_filter(coding.extension, lambda e: e.url LIKE '%diagnosesicherheit')[1].valueCoding.code AS certainty
FROM ranked;
"""

PROCEDURES_SQL: Final = f"""
CREATE TEMP TABLE procedures AS
SELECT p.clinic, p.arrival_day, p.export_id, p.source_file, p.source_line, o.case_id,
  ref_id(p.r.subject.reference) AS patient_id, trim(coded(p.r.code.coding, '%/ops')) AS ops_code,
  local_day(coalesce(p.r.performedDateTime, p.r.performedPeriod.start)) AS performed_on
FROM (SELECT * FROM "Procedure" {_LAST_OF_DAY}) p
JOIN case_of o ON o.clinic = p.clinic AND o.contact = ref_id(p.r.encounter.reference)
WHERE coded(p.r.code.coding, '%/ops') IS NOT NULL AND p.r.status IS DISTINCT FROM 'entered-in-error';
"""

# A consent without nested provisions still counts: its status may withdraw an earlier version (code `*`).
CONSENT_SQL: Final = f"""
CREATE TEMP TABLE consent_provisions AS
WITH documents AS (SELECT * FROM "Consent" {_LAST_OF_DAY}),
provisions AS (
  SELECT {_PROVENANCE}, r, unnest(CASE WHEN len(r.provision.provision) > 0 THEN r.provision.provision
    ELSE [{{'type': 'none', 'period': {{'start': NULL, 'end': NULL}}, 'code': NULL}}] END) AS p FROM documents),
codes AS (
  SELECT {_PROVENANCE}, r, p, unnest(CASE WHEN len(p.code) > 0 THEN flatten(list_transform(p.code, lambda c: c.coding))
    ELSE [{{'system': NULL, 'code': '*'}}] END) AS c FROM provisions)
SELECT {_PROVENANCE}, ref_id(r.patient.reference) AS patient_id, r.id AS consent_id, r.status AS status,
  wall(r.dateTime) AS declared_at, r.policy[1].uri AS policy_uri,
  regexp_replace(c.code, '^urn:oid:', '') AS code, p.type AS decision,
  local_day(p.period.start) AS valid_from, local_day(p.period.end) AS valid_to,
  (local_day(p.period.start) IS NOT NULL AND (p.period.end IS NULL OR local_day(p.period.end) IS NOT NULL))
    AS period_readable
FROM codes WHERE c.code = '*' OR regexp_replace(c.code, '^urn:oid:', '') LIKE '{CONSENT_CODE_SYSTEM}.%';
"""


def read(
    con: duckdb.DuckDBPyConnection,
    exports: list[Export],
    findings: Findings,
    time_zone: str,
    consent_only: bool = False,
) -> dict[str, pa.Table]:
    """Canonical tables of all `exports`, which have passed `check`.

    `con` must be allowed to read their folders. With `consent_only`, only Consent files are read: the side
    file of another format.
    """
    wanted = {"Consent"} if consent_only else set(STRUCTURES)
    files = [(e, f, kind) for e in exports for f in e.files() if (kind := _type_of(f)) and kind in wanted]
    if not files:
        return empty_canonical()
    table = pa.table(
        {
            "filename": [str(f) for _, f, _ in files],
            "clinic": [e.clinic.key for e, _, _ in files],
            "arrival_day": pa.array([e.arrival_day for e, _, _ in files], pa.date32()),
            "export_id": [e.export_id for e, _, _ in files],
            "source_file": [f.name for _, f, _ in files],
        }
    )
    by_id = {e.export_id: e for e in exports}
    con.register("exports", table)
    con.execute(_macros(time_zone))
    con.execute(
        "CREATE TEMP TABLE bad_lines (clinic VARCHAR, arrival_day DATE, export_id VARCHAR, source_file VARCHAR,"
        " source_line BIGINT, rule VARCHAR)"
    )
    for kind in STRUCTURES:
        of_kind = [f for _, f, k in files if k == kind]
        if of_kind:
            _load_lines(con, kind, of_kind, time_zone)
        else:
            con.execute(
                f'CREATE TEMP TABLE "{kind}" AS SELECT clinic, arrival_day, export_id, source_file,'
                f" CAST(0 AS BIGINT) AS source_line, from_json('null', '{STRUCTURES[kind]}') AS r FROM exports WHERE false"
            )
    for sql in (CASES_SQL, PERSONS_SQL, DIAGNOSES_SQL, PROCEDURES_SQL, CONSENT_SQL):
        con.execute(sql)
    for _, _, export_id, file, line, rule in con.execute("SELECT * FROM bad_lines ORDER BY ALL").fetchall():
        findings.add(by_id[export_id], rule, "quarantined", file, line)
    return {
        name: con.execute(f"SELECT {', '.join(schema.names)} FROM {name}").to_arrow_table().cast(schema)
        for name, schema in CANONICAL.items()
        if name != "findings"
    } | {"findings": CANONICAL["findings"].empty_table()}
