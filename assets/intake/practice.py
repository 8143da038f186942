"""Reader for the practice template: one CSV that a spreadsheet can write, for practices without a hospital system.

`practice.csv`, `;`-separated, one row a visit; dates as `dates` reads them; `visit_type` is
`emergency` (Notfall) or `planned` (geplant). Consents come in `consent.csv` beside it.
"""

from __future__ import annotations

from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.schemas import CANONICAL
from assets.intake import consent_csv
from assets.intake.connector import Export
from assets.intake.dates import macros
from assets.intake.delimited import note_repeated, read_all
from assets.intake.findings import Findings, RejectedExport

FILE: Final = "practice.csv"
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    name: (name,)
    for name in (
        "case_id", "patient_id", "insured_id", "birth_date", "sex", "postal_code", "visited_on", "left_on",
        "visit_type", "principal_diagnosis", "further_diagnoses",
    )
}  # fmt: skip
_PROVENANCE: Final = "clinic, arrival_day, export_id, source_file, source_line"

_ADDED: Final = "[GVAZ][LRB]?|[LRB][GVAZ]?"
"""What practice software writes behind a code, with or without a blank: certainty and side, in either order (KBV)."""

_SQL: Final = rf"""
CREATE MACRO dotted(t) AS CASE WHEN regexp_matches(t, '^[A-Z][0-9]{{2}}[0-9]+$') THEN t[1:3] || '.' || t[4:] ELSE t END;
CREATE MACRO joined(t) AS regexp_replace(upper(t), '\s+([GVAZLRB]{{1,2}})\b', '\1', 'g');
CREATE TEMP TABLE newest AS SELECT * FROM visits
  QUALIFY row_number() OVER (PARTITION BY clinic, arrival_day, case_id ORDER BY export_id DESC, source_line DESC) = 1
    OR case_id IS NULL;
CREATE TEMP TABLE cases AS
SELECT {_PROVENANCE}, case_id, patient_id, 'finished' AS status,
  CASE WHEN lower(visit_type) IN ('emergency', 'notfall') THEN 'emergency_visit'
       WHEN lower(visit_type) IN ('planned', 'geplant') THEN 'other' END AS care,
  CASE WHEN lower(visit_type) IN ('emergency', 'notfall') THEN 'emergency' ELSE 'other' END AS admission_type,
  CAST(NULL AS VARCHAR) AS admission_cause, CAST(NULL AS VARCHAR) AS admission_reason,
  day(visited_on) AS admitted_on, CASE WHEN left_on IS NULL THEN day(visited_on) ELSE day(left_on) END AS discharged_on,
  CAST(NULL AS VARCHAR) AS discharge_reason, false AS died, CAST(NULL AS SMALLINT) AS age_years,
  CAST(NULL AS VARCHAR) AS department
FROM newest;
CREATE TEMP TABLE persons AS
SELECT {_PROVENANCE}, patient_id, insured_id,
  coalesce(year(day(birth_date)), try_cast(regexp_extract(birth_date, '^[0-9]{{4}}') AS SMALLINT)) AS birth_year,
  month(day(birth_date)) AS birth_month, dayofmonth(day(birth_date)) AS birth_day,
  CASE lower(sex) WHEN 'm' THEN 'm' WHEN 'w' THEN 'w' WHEN 'f' THEN 'w' WHEN 'd' THEN 'other' WHEN 'x' THEN 'other'
    END AS sex,
  CASE WHEN regexp_matches(postal_code, '^[0-9]{{4}}$') THEN '0' || postal_code ELSE postal_code END AS postal_code,
  CAST(NULL AS DATE) AS deceased_on
FROM visits WHERE patient_id IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY clinic, arrival_day, patient_id ORDER BY export_id DESC, source_line DESC) = 1;
CREATE TEMP TABLE diagnoses AS
WITH codes AS (
  SELECT {_PROVENANCE}, case_id, patient_id, joined(principal_diagnosis) AS code, 'principal' AS role FROM newest
  UNION ALL
  SELECT {_PROVENANCE}, case_id, patient_id, unnest(regexp_split_to_array(trim(joined(further_diagnoses)), '[ ,]+')), 'secondary'
  FROM newest WHERE further_diagnoses IS NOT NULL),
parted AS (
  SELECT *, regexp_extract(code, '^([A-Z][0-9]{{2}}[^A-Z]*)({_ADDED})?$', ['icd', 'added']) AS part FROM (
    SELECT * REPLACE (regexp_replace(code, '[^A-Z0-9.]', '', 'g') AS code) FROM codes))
SELECT {_PROVENANCE}, case_id, patient_id, dotted(rtrim(CASE WHEN part.icd = '' THEN code ELSE part.icd END, '.')) AS icd_code, role,
  nullif(regexp_extract(part.added, '[GVAZ]'), '') AS certainty
FROM parted WHERE code <> '';
"""


def check(export: Export) -> None:
    """Raise `RejectedExport` where the template is not there."""
    if FILE not in {f.name.lower() for f in export.files()}:
        raise RejectedExport("practice_csv_missing")


def read(
    con: duckdb.DuckDBPyConnection, exports: list[Export], findings: Findings, time_zone: str
) -> dict[str, pa.Table]:
    """Canonical tables of all `exports`."""
    required = {"case_id", "patient_id", "sex", "visited_on", "visit_type"}
    con.register("visits", read_all(exports, FILE, COLUMNS, required, findings))
    note_repeated(con, "visits", COLUMNS, exports, findings)
    con.execute(macros(time_zone) + _SQL)
    tables = {
        name: con.execute(f"SELECT {', '.join(CANONICAL[name].names)} FROM {name}")
        .to_arrow_table()
        .cast(CANONICAL[name])
        for name in ("cases", "persons", "diagnoses")
    }
    tables["procedures"] = CANONICAL["procedures"].empty_table()
    owners = con.execute(f"SELECT {', '.join(consent_csv.OWNERS)} FROM visits").to_arrow_table()
    tables["consent_provisions"] = consent_csv.read(con, exports, owners, findings, time_zone)
    tables["findings"] = CANONICAL["findings"].empty_table()
    return tables
