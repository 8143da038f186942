"""The consent side file of formats without consent: one CSV row for each signed document.

Columns: `case_id` or `patient_id`, `signed_on`, `policy_codes` (`6 7 8` or full codes), `valid_from`,
`valid_to`, `withdrawn_on`. A withdrawal is a deny of every code, without end, from that day on.
"""

from __future__ import annotations

from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.codes import CONSENT_CODE_SYSTEM
from assets.contract.schemas import CONSENT_PROVISIONS
from assets.intake.connector import Export
from assets.intake.delimited import read_all
from assets.intake.findings import Findings

FILE: Final = "consent.csv"
COLUMNS: Final = {
    "case_id": ("case_id", "KH-internes-Kennzeichen"),
    "patient_id": ("patient_id", "Patientennummer"),
    "signed_on": ("signed_on",),
    "policy_codes": ("policy_codes",),
    "valid_from": ("valid_from",),
    "valid_to": ("valid_to",),
    "withdrawn_on": ("withdrawn_on",),
}

_SQL: Final = f"""
WITH rows AS (
  SELECT c.* REPLACE (coalesce(c.patient_id, k.patient_id) AS patient_id), c.patient_id IS NULL AS by_case
  FROM consent_rows c
  LEFT JOIN (SELECT DISTINCT clinic, case_id, patient_id FROM case_patients) k USING (clinic, case_id)),
permits AS (
  SELECT *, unnest(list_filter(regexp_split_to_array(trim(policy_codes), '[ ,|]+'), lambda x: x <> '')) AS code,
         'permit' AS decision, valid_from AS period_from, valid_to AS period_to, signed_on AS declared FROM rows),
denies AS (
  SELECT *, '*' AS code, 'deny' AS decision, withdrawn_on AS period_from, CAST(NULL AS VARCHAR) AS period_to,
         withdrawn_on AS declared FROM rows WHERE withdrawn_on IS NOT NULL)
SELECT clinic, arrival_day, export_id, source_file, source_line, patient_id,
  concat_ws(':', patient_id, signed_on, policy_codes) AS consent_id, 'active' AS status,
  try_cast(declared AS TIMESTAMP) AS declared_at, CAST(NULL AS VARCHAR) AS policy_uri,
  CASE WHEN code = '*' THEN code WHEN regexp_matches(code, '^[.]?[0-9]+$')
       THEN '{CONSENT_CODE_SYSTEM}.' || ltrim(code, '.') ELSE regexp_replace(code, '^urn:oid:', '') END AS code,
  decision, try_cast(period_from AS DATE) AS valid_from, try_cast(period_to AS DATE) AS valid_to,
  (try_cast(period_from AS DATE) IS NOT NULL AND (period_to IS NULL OR try_cast(period_to AS DATE) IS NOT NULL))
    AS period_readable
FROM (SELECT * FROM permits UNION ALL BY NAME SELECT * FROM denies) WHERE patient_id IS NOT NULL
"""


def read(
    con: duckdb.DuckDBPyConnection, exports: list[Export], case_patients: pa.Table, findings: Findings
) -> pa.Table:
    """Consent provisions of all side files. `case_patients` (clinic, case_id, patient_id) resolves case ids."""
    con.register("consent_rows", read_all(exports, FILE, COLUMNS, {"signed_on", "policy_codes"}, findings))
    con.register("case_patients", case_patients)
    return con.execute(_SQL).to_arrow_table().cast(CONSENT_PROVISIONS)
