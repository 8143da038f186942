"""`consent.csv`, for formats without consent: one row, or several, for each signed document.

Columns: `case_id` or `patient_id`, `signed_on`, `policy_codes` (`6 7 8` or full codes), `valid_from`, `valid_to`,
`withdrawn_on`; dates as `dates` reads them. A withdrawal denies every code from that day on, without end. A document is
known by patient and `signed_on`; delivering it again replaces the former version. A date that cannot be read permits
nothing or denies everything, and becomes a finding.
"""

from __future__ import annotations

from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.codes import CONSENT_CODE_SYSTEM, until_sql
from assets.contract.schemas import CONSENT_PROVISIONS
from assets.intake.connector import Export
from assets.intake.dates import macros
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

OWNERS: Final = ["clinic", "export_id", "source_line", "case_id", "patient_id"]
OF_CASE: Final = "case:"
"""Prefix of a case's id where that stands for something else: in the `consent_id` of a row whose case this run does
not know (`of_elsewhere`), and for the patient of a case that names none."""


def id_of(patient: str, signed: str) -> str:
    """SQL: what a document is known by, of a patient and the moment at which it was signed."""
    return f"concat_ws(':', {patient}, {signed})"


def of_elsewhere(column: str) -> tuple[str, str]:
    """SQL: case and moment of signature in the `consent_id` of a row whose case the run that read it did not know."""
    return (
        f"regexp_replace({column}, '^{OF_CASE}[^|]*[|]', '')",
        f"nullif(regexp_extract({column}, '^{OF_CASE}([^|]*)', 1), '')",
    )


_ROWS: Final = """
CREATE TEMP MACRO codes(t) AS list_filter(regexp_split_to_array(trim(t), '[ ,|]+'), lambda x: x <> '');
CREATE TEMP TABLE case_owners AS
WITH asked AS (SELECT DISTINCT clinic, export_id, case_id FROM consent_rows WHERE patient_id IS NULL)
SELECT a.clinic, a.export_id, a.case_id, arg_max(k.patient_id, (k.export_id, k.source_line)) AS patient_id
FROM asked a JOIN case_patients k ON k.clinic = a.clinic AND k.case_id = a.case_id AND k.export_id <= a.export_id
WHERE k.patient_id IS NOT NULL GROUP BY ALL;
CREATE TEMP TABLE rows AS
SELECT c.* REPLACE (coalesce(c.patient_id, o.patient_id) AS patient_id)
FROM consent_rows c LEFT JOIN case_owners o USING (clinic, export_id, case_id);
"""
"""A case may move to another patient between deliveries: a row is of the patient whose case it was by then. An export's id
begins with clinic and day and goes on with its place in the day. A later delivery tells nothing of an earlier row, else it
would matter which days run together."""

_PROBLEMS: Final = """
SELECT export_id, source_file, source_line, unnest(list_concat(
  list_transform(list_filter([{'name': 'signed_on', 't': CASE WHEN withdrawn_on IS NULL OR policy_codes IS NOT NULL
      THEN coalesce(signed_on, '') ELSE signed_on END}, {'name': 'valid_from', 't': valid_from},
      {'name': 'valid_to', 't': valid_to}, {'name': 'withdrawn_on', 't': withdrawn_on}],
      lambda d: d.t IS NOT NULL AND moment(d.t) IS NULL),
    lambda d: {'rule': 'consent_date_unreadable', 'severity': 'quarantined', 'name': d.name}),
  CASE WHEN withdrawn_on IS NULL AND valid_from IS NULL
    THEN [{'rule': 'consent_without_start', 'severity': 'quarantined', 'name': 'valid_from'}] ELSE [] END,
  CASE WHEN withdrawn_on IS NULL AND (coalesce(len(codes(policy_codes)), 0) = 0
      OR len(list_filter(codes(policy_codes), lambda c: NOT regexp_matches(c, '^[.]?[0-9]{1,4}$|^(urn:oid:)?[0-9]+([.][0-9]+){4,}$'))) > 0)
    THEN [{'rule': 'consent_codes_unreadable', 'severity': 'quarantined', 'name': 'policy_codes'}] ELSE [] END,
  CASE WHEN patient_id IS NULL AND case_id IS NULL
    THEN [{'rule': 'consent_of_nobody', 'severity': 'quarantined', 'name': 'patient_id'}]
    WHEN patient_id IS NULL THEN [{'rule': 'consent_of_case_elsewhere', 'severity': 'info', 'name': 'case_id'}]
    ELSE [] END)) AS problem
FROM rows ORDER BY ALL"""

_SQL: Final = f"""
WITH permits AS (
  SELECT *, unnest(codes(policy_codes)) AS code,
         'permit' AS decision, valid_from AS period_from, valid_to AS period_to, signed_on AS declared FROM rows),
denies AS (
  SELECT *, '*' AS code, 'deny' AS decision, withdrawn_on AS period_from, CAST(NULL AS VARCHAR) AS period_to,
         CASE WHEN moment(signed_on) > {until_sql("moment(withdrawn_on)")} THEN signed_on ELSE withdrawn_on END AS declared
  FROM rows WHERE withdrawn_on IS NOT NULL)
SELECT clinic, arrival_day, export_id, source_file, source_line, patient_id,
  CASE WHEN patient_id IS NULL THEN concat('{OF_CASE}', moment(signed_on), '|', case_id)
    ELSE {id_of("patient_id", "moment(signed_on)")} END AS consent_id, 'active' AS status,
  moment(declared) AS declared_at, CAST(NULL AS VARCHAR) AS policy_uri,
  CASE WHEN code = '*' THEN code WHEN regexp_matches(code, '^[.]?[0-9]+$')
       THEN '{CONSENT_CODE_SYSTEM}.' || ltrim(code, '.') ELSE regexp_replace(code, '^urn:oid:', '') END AS code,
  decision, day(period_from) AS valid_from, day(period_to) AS valid_to,
  (moment(period_from) IS NOT NULL AND (period_to IS NULL OR moment(period_to) IS NOT NULL)) AS period_readable
FROM (SELECT * FROM permits UNION ALL BY NAME SELECT * FROM denies) WHERE coalesce(patient_id, case_id) IS NOT NULL
"""


def read(
    con: duckdb.DuckDBPyConnection, exports: list[Export], owners: pa.Table, findings: Findings, time_zone: str
) -> pa.Table:
    """Consent provisions of all side files. `owners` tells the patient of a row that names only a case: `OWNERS` of each
    delivery, also of those that a later one of the same day corrects.

    A row of any other case keeps the case's id in `consent_id` (`of_elsewhere`) and no patient: an earlier delivery may
    have held it.
    """
    con.register("consent_rows", read_all(exports, FILE, COLUMNS, {"signed_on", "policy_codes"}, findings))
    con.register("case_patients", owners.select(OWNERS))
    con.execute(macros(time_zone) + _ROWS)
    by_id = {e.export_id: e for e in exports}
    for export, file, line, problem in con.execute(_PROBLEMS).fetchall():
        findings.add(
            by_id[export], problem["rule"], problem["severity"], file, line, problem["name"], "consent_provisions"
        )
    return con.execute(_SQL).to_arrow_table().cast(CONSENT_PROVISIONS)
