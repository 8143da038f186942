"""Reader for the CSV set of §21 KHEntgG, which every German hospital produces for InEK.

Direct identifiers that nothing here needs (month of birth, place, insurer) are never read. Damage by a spreadsheet is
repaired, and reported, only where the original value is certain; the rest is left to quality.
"""

from __future__ import annotations

from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.codes import ADMISSION_REASONS_UNCOUNTED
from assets.contract.schemas import CANONICAL
from assets.intake import consent_csv
from assets.intake.connector import Export
from assets.intake.consent_csv import OF_CASE
from assets.intake.delimited import note_repeated, read_all
from assets.intake.findings import Findings, RejectedExport

FALL: Final[dict[str, tuple[str, ...]]] = {
    "case_id": ("KH-internes-Kennzeichen",),
    "insured_id": ("Versicherten-ID",),
    "birth_year": ("Geburtsjahr",),
    "sex": ("Geschlecht",),
    "postal_code": ("PLZ",),
    "admitted": ("Aufnahmedatum",),
    "cause": ("Aufnahmeanlass",),
    "reason": ("Aufnahmegrund",),
    "discharged": ("Entlassungsdatum",),
    "discharge_reason": ("Entlassungsgrund",),
    "age": ("Alter-in-Jahren-am-Aufnahmetag",),
    "patient_id": ("Patientennummer",),
    "segment": ("Entgeltbereich",),
    "merged": ("Fallzusammenführung", "Fallzusammenfuehrung"),
}
FAB: Final[dict[str, tuple[str, ...]]] = {
    "case_id": ("KH-internes-Kennzeichen",),
    "department": ("Fachabteilung", "FAB"),
    "entered": ("FAB-Aufnahmedatum",),
}
ICD: Final[dict[str, tuple[str, ...]]] = {
    "case_id": ("KH-internes-Kennzeichen",),
    "kind": ("Diagnoseart",),
    "code": ("ICD-Kode",),
    "certainty": ("Diagnosensicherheit",),
}
OPS: Final[dict[str, tuple[str, ...]]] = {
    "case_id": ("KH-internes-Kennzeichen",),
    "code": ("OPS-Kode",),
    "day": ("OPS-Datum",),
}

FILES: Final = ("fall.csv", "fab.csv", "icd.csv", "ops.csv")
_PROVENANCE: Final = "clinic, arrival_day, export_id, source_file, source_line"

# A case without a patient number is a patient of its own, under a prefix: the bare number of the case may be somebody
# else's patient number.
_PATIENT: Final = f"coalesce(patient_id, '{OF_CASE}' || case_id)"
# By §21 the hour `24` is the end of that day, so the calendar day stays the same.
_SQL: Final = f"""
CREATE MACRO p21_day(t) AS CASE WHEN regexp_matches(t, '^[0-9]{{12}}$|^[0-9]{{8}}$')
  THEN CAST(try_strptime(t[1:8], '%Y%m%d') AS DATE) END;
CREATE MACRO dotted_icd(t) AS CASE
  WHEN regexp_matches(t, '^[A-Z][0-9]{{2}}[0-9]+$') THEN t[1:3] || '.' || t[4:] ELSE t END;
CREATE MACRO dotted_ops(t) AS CASE
  WHEN regexp_matches(t, '^[1-9][0-9a-z]{{3}}') THEN t[1] || '-' || t[2:4]
    || CASE WHEN length(t) > 4 AND t[5] <> '.' THEN '.' ELSE '' END || t[5:] ELSE t END;
CREATE TEMP TABLE fall_rows AS SELECT * REPLACE ({_PATIENT} AS patient_id) FROM fall
  QUALIFY row_number() OVER (PARTITION BY clinic, arrival_day, case_id ORDER BY export_id DESC, source_line DESC) = 1
    OR case_id IS NULL;
CREATE TEMP TABLE cases AS
SELECT {_PROVENANCE}, case_id, patient_id,
  CASE WHEN discharged IS NULL THEN 'in-progress' ELSE 'finished' END AS status,
  CASE WHEN upper(cause) = 'B' OR upper(segment) = 'PIA' OR lpad(reason, 4, '0')[1:2] IN {ADMISSION_REASONS_UNCOUNTED}
       THEN 'other' ELSE 'inpatient' END AS care,
  CASE WHEN upper(cause) = 'N' OR lpad(reason, 4, '0')[4] = '7' THEN 'emergency' ELSE 'other' END AS admission_type,
  upper(cause) AS admission_cause, CASE WHEN length(reason) = 3 THEN '0' || reason ELSE reason END AS admission_reason,
  p21_day(admitted) AS admitted_on, p21_day(discharged) AS discharged_on,
  CASE WHEN length(discharge_reason) = 1 THEN '0' || discharge_reason
       WHEN length(discharge_reason) = 2 AND merged IS DISTINCT FROM 'J' AND discharge_reason > '29'
       THEN '0' || discharge_reason ELSE discharge_reason END AS discharge_reason,
  coalesce(discharge_reason LIKE '07%' OR discharge_reason IN ('7', '79'), false) AS died,
  try_cast(age AS SMALLINT) AS age_years,
  (SELECT regexp_replace(first(f.department ORDER BY f.entered), '^(HA|BA|BE)', '') FROM fab f
    WHERE f.clinic = fall_rows.clinic AND f.export_id = fall_rows.export_id AND f.case_id = fall_rows.case_id)
    AS department
FROM fall_rows;
CREATE TEMP TABLE persons AS
SELECT {_PROVENANCE}, patient_id, insured_id,
  try_cast(birth_year AS SMALLINT) AS birth_year, CAST(NULL AS TINYINT) AS birth_month, CAST(NULL AS TINYINT) AS birth_day,
  CASE lower(sex) WHEN 'm' THEN 'm' WHEN 'w' THEN 'w' WHEN 'd' THEN 'other' WHEN 'x' THEN 'other' WHEN 'u' THEN 'other'
    END AS sex,
  CASE WHEN regexp_matches(postal_code, '^[0-9]{{4}}$') THEN '0' || postal_code ELSE postal_code END AS postal_code,
  CAST(NULL AS DATE) AS deceased_on
FROM fall_rows WHERE patient_id IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY clinic, arrival_day, patient_id ORDER BY export_id DESC, source_line DESC) = 1;
CREATE TEMP TABLE diagnoses AS
SELECT {", ".join("i." + c for c in _PROVENANCE.split(", "))}, i.case_id, f.patient_id,
  dotted_icd(rtrim(regexp_replace(upper(i.code), '[^A-Z0-9.]', '', 'g'), '.')) AS icd_code,
  CASE WHEN upper(i.kind) = 'HD' THEN 'principal' WHEN upper(i.kind) IN ('ND', 'SD') THEN 'secondary' ELSE 'other' END
    AS role, i.certainty
FROM icd i JOIN fall_rows f USING (clinic, export_id, case_id) WHERE i.code IS NOT NULL;
CREATE TEMP TABLE procedures AS
SELECT {", ".join("o." + c for c in _PROVENANCE.split(", "))}, o.case_id, f.patient_id,
  dotted_ops(o.code) AS ops_code, p21_day(o.day) AS performed_on
FROM ops o JOIN fall_rows f USING (clinic, export_id, case_id) WHERE o.code IS NOT NULL;
CREATE TEMP TABLE repairs AS
SELECT export_id, source_file, source_line, unnest([
  CASE WHEN regexp_matches(postal_code, '^[0-9]{{4}}$') THEN 'postal_code_leading_zero' END,
  CASE WHEN length(reason) = 3 THEN 'admission_reason_leading_zero' END,
  CASE WHEN regexp_matches(admitted, '^[0-9]{{8}}24') OR regexp_matches(discharged, '^[0-9]{{8}}24')
    THEN 'hour_24' END]) AS rule FROM fall_rows;
"""
# A set may hold diagnoses of more cases than it delivers, so each file is reported once, by its first such row.
_OF_NO_CASE: Final = """
SELECT export_id, source_file, min(source_line) FROM (
  SELECT export_id, source_file, source_line, case_id FROM icd UNION ALL SELECT export_id, source_file, source_line, case_id FROM ops)
ANTI JOIN fall_rows USING (export_id, case_id) GROUP BY ALL ORDER BY ALL"""

_UNKNOWN_KIND: Final = """
SELECT export_id, source_file, min(source_line) FROM icd
WHERE upper(kind) NOT IN ('HD', 'ND', 'SD') AND code IS NOT NULL GROUP BY ALL ORDER BY ALL"""


def check(export: Export) -> None:
    """Raise `RejectedExport` where the set has no FALL.csv."""
    if FILES[0] not in {f.name.lower() for f in export.files()}:
        raise RejectedExport("fall_csv_missing")


def read(
    con: duckdb.DuckDBPyConnection, exports: list[Export], findings: Findings, time_zone: str
) -> dict[str, pa.Table]:
    """Canonical tables of all `exports`. Raises `RejectedExport` only when called with one export."""
    required = {"case_id", "admitted", "sex"}
    for name, columns, needed in (
        ("fall", FALL, required), ("fab", FAB, {"case_id"}), ("icd", ICD, {"case_id", "code"}),
        ("ops", OPS, {"case_id", "code"}),
    ):  # fmt: skip
        con.register(name, read_all(exports, f"{name}.csv", columns, needed, findings))
    note_repeated(con, "fall", FALL, exports, findings)
    con.execute(_SQL)
    by_id = {e.export_id: e for e in exports}
    for export_id, file, line, rule in con.execute("SELECT * FROM repairs WHERE rule IS NOT NULL").fetchall():
        findings.add(by_id[export_id], rule, "repaired", file, line, table="cases")
    for rule, column, query in (
        ("rows_of_no_case", "case_id", _OF_NO_CASE),
        ("diagnosis_kind_unknown", "kind", _UNKNOWN_KIND),
    ):
        for export_id, file, line in con.execute(query).fetchall():
            findings.add(by_id[export_id], rule, "info", file, line, column)
    tables = {
        name: con.execute(f"SELECT {', '.join(CANONICAL[name].names)} FROM {name}")
        .to_arrow_table()
        .cast(CANONICAL[name])
        for name in ("cases", "persons", "diagnoses", "procedures")
    }
    owners = con.execute(f"SELECT * REPLACE ({_PATIENT} AS patient_id) FROM fall").to_arrow_table()
    tables["consent_provisions"] = consent_csv.read(con, exports, owners, findings, time_zone)
    tables["findings"] = CANONICAL["findings"].empty_table()
    return tables
