"""The §21 clinic and the practice network of the demo city: CSV sets with a consent side file.

Expects the DuckDB tables `versions` and `documents`, see `generate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import duckdb

from pipelines.demo.lines import latin_on_some_days, write_lines

FALL_HEADER: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;Versicherten-ID;"
    "Vertragskennzeichen-64b-Modellvorhaben;IK-der-Krankenkasse;Geburtsjahr;Geburtsmonat;Geschlecht;PLZ;Wohnort;"
    "Aufnahmedatum;Aufnahmeanlass;Aufnahmegrund;Fallzusammenführung;Fallzusammenführungsgrund;Aufnahmegewicht;"
    "Entlassungsdatum;Entlassungsgrund;Alter-in-Tagen-am-Aufnahmetag;Alter-in-Jahren-am-Aufnahmetag;Patientennummer;"
    "interkurrente-Dialysen;Beatmungsstunden;Behandlungsbeginn-vorstationär;Behandlungstage-vorstationär;"
    "Behandlungsende-nachstationär;Behandlungstage-nachstationär;IK-Verlegungs-KH;"
    "Belegungstage-in-anderem-Entgeltbereich;Beurlaubungstage-PSY;Kennung-Besonderer-Fall-Modellvorhaben;"
    "Verweildauer-intensiv\n"
)
FAB_HEADER: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;Standortnummer-Behandlungsort;Fachabteilung;"
    "FAB-Aufnahmedatum;FAB-Entlassungsdatum;Kennung-Intensivbett\n"
)
ICD_HEADER: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;Diagnoseart;ICD-Version;ICD-Kode;Lokalisation;"
    "Diagnosensicherheit;Sekundär-Kode;Lokalisation;Diagnosensicherheit\n"
)
OPS_HEADER: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;OPS-Version;OPS-Kode;Lokalisation;OPS-Datum;"
    "Belegoperateur;Beleganästhesist;Beleghebamme\n"
)
CONSENT_HEADER: Final = "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n"
PRACTICE_HEADER: Final = (
    "case_id;patient_id;insured_id;birth_date;sex;postal_code;visited_on;left_on;visit_type;principal_diagnosis;"
    "further_diagnoses\n"
)
# A made-up Institutionskennzeichen and site.
_KEY: Final = "'260600000;770000;' || CASE WHEN dirt = 'pia' THEN 'PIA' ELSE 'DRG' END || ';' || case_id"

_FALL: Final = f"""
SELECT arrival, {_KEY} || ';' || coalesce(insured_id, '') || ';;109999999;' || birth[1:4] || ';'
  || CAST(birth[6:7] AS INTEGER) || ';' || sex || ';'
  || CASE WHEN starts_with(postal_code, '0') AND case_number % 2 = 0 THEN postal_code[2:] ELSE coalesce(postal_code, '') END
  || ';Mühlstadt;'
  || strftime(admitted, '%Y%m%d') || replace(clock, ':', '') || ';'
  || CASE WHEN dirt = 'companion' THEN 'B' WHEN admission = 'emergency' THEN 'N' ELSE 'E' END || ';'
  || CASE WHEN dirt = 'reason_three_digits' THEN '' ELSE '0' END || CASE WHEN admission = 'emergency' THEN '107' ELSE '101' END
  || ';N;;;'
  || coalesce(strftime(discharged, '%Y%m%d') || CASE WHEN dirt = 'hour_24' THEN '2400' ELSE '1230' END, '') || ';'
  || CASE WHEN discharged IS NULL THEN '' WHEN died THEN '079' ELSE '011' END || ';;'
  || age || ';' || patient_id || ';;;;;;;;;;;' AS line
FROM versions"""
_FAB: Final = f"""
SELECT arrival, {_KEY} || ';770001;HA' || department || ';' || strftime(admitted, '%Y%m%d') || replace(clock, ':', '')
  || ';' || coalesce(strftime(discharged, '%Y%m%d') || '1230', '') || ';N' AS line FROM versions"""
_ICD: Final = f"""
SELECT arrival, {_KEY} || ';HD;2025;' || code || ';;;;;' AS line FROM versions WHERE code IS NOT NULL
UNION ALL
SELECT arrival, {_KEY} || ';ND;2025;' || s || ';;;;;' FROM (SELECT *, unnest(secondary) AS s FROM versions)"""
_OPS: Final = f"""
SELECT arrival, {_KEY} || ';2025;' || procedure || ';;' || strftime(admitted, '%Y%m%d') || '1200;N;N;N' AS line
FROM versions WHERE procedure IS NOT NULL AND discharged IS NOT NULL"""

# One row for each set of codes with the same term; a withdrawal comes as the same rows once more, with its day.
_CONSENT: Final = """
WITH sets AS (
  SELECT *, unnest(CASE
    WHEN scenario = 'permit_split' THEN [{'codes': '6', 'until': collect_to}, {'codes': '7', 'until': store_to}, {'codes': '8', 'until': store_to}]
    WHEN scenario = 'use_denied' THEN [{'codes': '6', 'until': collect_to}, {'codes': '7', 'until': store_to}]
    ELSE [{'codes': '6', 'until': collect_to}, {'codes': '7 8', 'until': store_to}] END) AS part FROM documents WHERE scenario <> 'none'),
rows AS (
  SELECT *, arrival AS told, NULL AS gone FROM sets
  UNION ALL SELECT *, withdrawal_arrival, withdrawn_on FROM sets WHERE withdrawn_on IS NOT NULL)
SELECT told AS arrival, CASE WHEN by_case AND gone IS NULL THEN first_case || ';' ELSE ';' || patient_id END || ';'
  || strftime(signed, '%Y-%m-%d') || ';' || part.codes || ';' || strftime(signed, '%Y-%m-%d') || ';'
  || strftime(part.until, '%Y-%m-%d') || ';' || coalesce(strftime(gone, '%Y-%m-%d'), '') AS line
FROM rows"""

_PRACTICE: Final = """
SELECT arrival, case_id || ';' || CASE WHEN dirt = 'patient_id_missing' THEN '' ELSE patient_id END || ';'
  || coalesce(insured_id, '') || ';' || birth || ';' || sex || ';' || coalesce(postal_code, '') || ';'
  || CASE WHEN dirt = 'date_german' THEN strftime(admitted, '%d.%m.%Y') || ';' || strftime(discharged, '%d.%m.%Y')
     ELSE strftime(admitted, '%Y-%m-%d') || ';' || strftime(discharged, '%Y-%m-%d') END || ';'
  || CASE WHEN dirt = 'planned_visit' THEN 'geplant' WHEN case_number % 3 = 0 THEN 'Notfall' ELSE 'emergency' END || ';'
  || coalesce(code, '') || ';' || array_to_string(secondary, ' ')
  || CASE WHEN dirt = 'ragged_row' THEN ';one;too;many' ELSE '' END AS line
FROM versions"""


def write_p21(con: duckdb.DuckDBPyConnection, inbox: Path) -> int:
    """Write every §21 set of one clinic below `inbox`; returns the number of rows."""
    files = (
        ("FALL.csv", _FALL, FALL_HEADER), ("FAB.csv", _FAB, FAB_HEADER), ("ICD.csv", _ICD, ICD_HEADER),
        ("OPS.csv", _OPS, OPS_HEADER), ("consent.csv", _CONSENT, CONSENT_HEADER),
    )  # fmt: skip
    return sum(write_lines(con, query, inbox, name, header, latin_on_some_days) for name, query, header in files)


def write_practice(con: duckdb.DuckDBPyConnection, inbox: Path) -> int:
    """Write every practice export of one network below `inbox`; returns the number of rows."""
    files = (("practice.csv", _PRACTICE, PRACTICE_HEADER), ("consent.csv", _CONSENT, CONSENT_HEADER))
    return sum(write_lines(con, query, inbox, name, header) for name, query, header in files)
