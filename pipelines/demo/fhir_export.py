"""The FHIR clinic of the demo city: NDJSON in the shape of the MII core data set, one export a day.

Expects the DuckDB tables `versions` (a row for each delivered version of a case) and `documents` (consents), see
`generate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import duckdb

from assets.contract.codes import CONSENT_CODE_SYSTEM
from pipelines.demo.lines import write_lines, zipped_on_some_days

_TEST: Final = '"meta":{"security":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ActReason","code":"HTEST"}]}'
_MACROS: Final = f"""
CREATE OR REPLACE MACRO ref(kind, id) AS '{{"reference":"' || kind || '/' || id || '"}}';
CREATE OR REPLACE MACRO coding(sys, code) AS '{{"coding":[{{"system":"' || sys || '","code":"' || code || '"}}]}}';
CREATE OR REPLACE MACRO head(kind, id) AS '{{"resourceType":"' || kind || '","id":"' || id || '",{_TEST}';
CREATE OR REPLACE MACRO nested(url, inner_url, system, code) AS '{{"url":"' || url || '","extension":[{{"url":"'
  || inner_url || '","valueCoding":{{"system":"' || system || '","code":"' || code || '"}}}}]}}';
"""

_PATIENT: Final = """
SELECT DISTINCT arrival, head('Patient', patient_id)
  || ',"identifier":[{"type":' || coding('http://terminology.hl7.org/CodeSystem/v2-0203', 'MR')
  || ',"system":"https://example.org/klinik/mrn","value":"' || patient_id || '"}'
  || coalesce(',{"type":' || coding('http://fhir.de/CodeSystem/identifier-type-de-basis', 'KVZ10')
  || ',"system":"http://fhir.de/sid/gkv/kvid-10","value":"' || insured_id || '"}', '') || ']'
  || ',"name":[{"use":"official","family":"Musterperson-' || patient_id || '","given":["Synthetisch"]}]'
  || ',"gender":"' || CASE sex WHEN 'm' THEN 'male' WHEN 'w' THEN 'female' WHEN 'd' THEN 'other' ELSE 'unbekannt' END || '"'
  || CASE WHEN sex = 'd' THEN ',"_gender":{"extension":[{"url":"http://fhir.de/StructureDefinition/gender-amtlich-de",'
     || '"valueCoding":{"system":"http://fhir.de/CodeSystem/gender-amtlich-de","code":"D"}}]}' ELSE '' END
  || ',"birthDate":"' || CASE WHEN dirt = 'birth_year_only' THEN birth[1:4] ELSE birth END || '"'
  || ',"address":[{"type":"both","line":["Musterweg 1"],"city":"Musterstadt"'
  || coalesce(',"postalCode":"' || postal_code || '"', '') || ',"country":"DE"}]}' AS line
FROM versions"""

# A facility contact and below it a department contact; the principal diagnosis hangs on either.
_ENCOUNTER: Final = """
WITH parts AS (
  SELECT *, CASE WHEN dirt = 'entered_in_error' THEN 'entered-in-error' WHEN dirt = 'cancelled' THEN 'cancelled'
      WHEN discharged IS NULL THEN 'in-progress' ELSE 'finished' END AS status,
    CASE WHEN code IS NULL THEN '' ELSE ',"diagnosis":[{"condition":' || ref('Condition', case_id || '-dx')
      || ',"use":' || coding('http://terminology.hl7.org/CodeSystem/diagnosis-role', 'CC') || ',"rank":1}]' END AS diagnosis,
    case_number % 10 < 7 AS on_facility FROM versions),
common AS (
  SELECT *, ',"status":"' || status || '","class":{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"'
    || CASE WHEN care = 'inpatient' THEN 'IMP' ELSE 'EMER' END || '"},"subject":' || ref('Patient', patient_id)
    || ',"period":{"start":"' || begins || '"' || coalesce(',"end":"' || ends || '"', '') || '}' AS body FROM parts)
SELECT arrival, head('Encounter', case_id) || body
  || ',"type":[' || coding('http://fhir.de/CodeSystem/Kontaktebene', 'einrichtungskontakt') || ']'
  || CASE WHEN on_facility THEN diagnosis ELSE '' END
  || CASE WHEN care <> 'inpatient' THEN '' ELSE ',"extension":['
     || '{"url":"http://fhir.de/StructureDefinition/Aufnahmegrund","extension":['
     || '{"url":"ErsteUndZweiteStelle","valueCoding":{"system":"http://fhir.de/CodeSystem/dkgev/AufnahmegrundErsteUndZweiteStelle","code":"01"}},'
     || '{"url":"DritteStelle","valueCoding":{"system":"http://fhir.de/CodeSystem/dkgev/AufnahmegrundDritteStelle","code":"0"}},'
     || '{"url":"VierteStelle","valueCoding":{"system":"http://fhir.de/CodeSystem/dkgev/AufnahmegrundVierteStelle","code":"'
     || CASE WHEN admission = 'emergency' THEN '7' ELSE '1' END || '"}}]}]' END
  || ',"hospitalization":{"admitSource":' || coding('http://fhir.de/CodeSystem/dgkev/Aufnahmeanlass',
       CASE WHEN dirt = 'companion' THEN 'B' WHEN admission = 'emergency' THEN 'N' ELSE 'E' END)
  || CASE WHEN discharged IS NULL THEN '' ELSE ',"dischargeDisposition":{"extension":['
     || nested('http://fhir.de/StructureDefinition/Entlassungsgrund', 'ErsteUndZweiteStelle',
               'http://fhir.de/CodeSystem/dkgev/EntlassungsgrundErsteUndZweiteStelle',
               CASE WHEN died THEN '07' ELSE '01' END) || ']}' END || '}}' AS line
FROM common
UNION ALL
SELECT arrival, head('Encounter', case_id || '-A1') || body
  || ',"type":[' || coding('http://fhir.de/CodeSystem/Kontaktebene', 'abteilungskontakt') || ']'
  || ',"serviceType":' || coding('http://fhir.de/CodeSystem/dkgev/Fachabteilungsschluessel', department)
  || CASE WHEN on_facility THEN '' ELSE diagnosis END
  || ',"partOf":' || ref('Encounter', case_id) || '}'
FROM common"""

_CONDITION: Final = """
SELECT arrival, head('Condition', case_id || '-dx') || ',"code":' || coding('http://fhir.de/CodeSystem/bfarm/icd-10-gm', code)
  || ',"subject":' || ref('Patient', patient_id)
  || CASE WHEN case_number % 5 = 0 THEN '' ELSE ',"encounter":' || ref('Encounter', case_id || '-A1') END
  || ',"recordedDate":"' || strftime(admitted, '%Y-%m-%d') || '"}' AS line
FROM versions WHERE code IS NOT NULL
UNION ALL
SELECT arrival, head('Condition', case_id || '-nd' || n) || ',"code":' || coding('http://fhir.de/CodeSystem/bfarm/icd-10-gm', s)
  || ',"subject":' || ref('Patient', patient_id) || ',"encounter":' || ref('Encounter', case_id || '-A1')
  || ',"recordedDate":"' || strftime(admitted, '%Y-%m-%d') || '"}'
FROM (SELECT *, unnest(secondary) AS s, generate_subscripts(secondary, 1) AS n FROM versions WHERE len(secondary) > 0)
UNION ALL
-- A line that the sender's disk cut off: it belongs to no case.
SELECT arrival, '{"resourceType":"Condition","id":"cut-off' FROM (SELECT DISTINCT arrival FROM versions)
WHERE $cut AND CAST(strftime(arrival, '%j') AS INTEGER) % 50 = 7"""

_PROCEDURE: Final = """
SELECT arrival, head('Procedure', case_id || '-op') || ',"status":"completed","code":'
  || coding('http://fhir.de/CodeSystem/bfarm/ops', procedure) || ',"subject":' || ref('Patient', patient_id)
  || ',"encounter":' || ref('Encounter', case_id || '-A1')
  || ',"performedDateTime":"' || strftime(admitted, '%Y-%m-%d') || '"}' AS line
FROM versions WHERE procedure IS NOT NULL AND discharged IS NOT NULL"""

_FOREVER: Final = "3000-01-01"


def _consent_query() -> str:
    """Documents and, later, what withdraws them: a new document, a recalculated state, or another status."""

    def provision(decision: str, start: str, end: str, n: int) -> str:
        return (
            f"""'{{"type":"{decision}","period":{{"start":"' || {start} || '","end":"' || {end} || '"}},"code":["""
            f"""{{"coding":[{{"system":"urn:oid:{CONSENT_CODE_SYSTEM}","code":"{CONSENT_CODE_SYSTEM}.{n}"}}]}}]}}'"""
        )

    signed, collect, store = (f"strftime({c}, '%Y-%m-%d')" for c in ("signed", "collect_to", "store_to"))
    permits = {n: provision("permit", signed, collect if n == 6 else store, n) for n in (6, 7, 8)}
    every = " || ',' || ".join(permits.values())
    denied = " || ',' || ".join([permits[6], permits[7], provision("deny", signed, store, 8)])
    withdrawn = "strftime(withdrawn_on, '%Y-%m-%d')"
    denies = " || ',' || ".join(provision("deny", withdrawn, f"'{_FOREVER}'", n) for n in (6, 7, 8))

    def document(arrival: str, suffix: str, status: str, at: str, policy: str, nested: str, where: str) -> str:
        return f"""SELECT {arrival} AS arrival, head('Consent', patient_id || '-{suffix}') || ',"status":"{status}"'
          || ',"scope":{{"coding":[{{"system":"http://terminology.hl7.org/CodeSystem/consentscope","code":"research"}}]}}'
          || ',"patient":' || ref('Patient', patient_id) || ',"dateTime":"' || {at} || 'T10:00:00+01:00"'
          || ',"policy":[{{"uri":"urn:oid:2.16.840.1.113883.3.1937.777.24.2.{policy}"}}]'
          || ',"provision":{{"type":"deny","provision":[' || {nested} || ']}}}}' AS line
        FROM documents WHERE {where}"""

    whole = "scenario NOT IN ('none', 'permit_split', 'use_denied')"
    parts = [
        document("arrival", "c1", "active", signed, "1791", every, whole),
        document("arrival", "c1", "active", signed, "1791", denied, "scenario = 'use_denied'"),
        *(document("arrival", f"c1-{n}", "active", signed, "1791", p, "scenario = 'permit_split'") for n, p in permits.items()),
        document("withdrawal_arrival", "c2", "active", withdrawn, "2720", denies, "scenario = 'withdrawn_new'"),
        document("withdrawal_arrival", "state", "active", withdrawn, "1791", denies, "scenario = 'withdrawn_state'"),
        document("withdrawal_arrival", "c1", "inactive", signed, "1791", every, "scenario = 'withdrawn_status'"),
    ]  # fmt: skip
    return " UNION ALL ".join(parts)


def write(con: duckdb.DuckDBPyConnection, inbox: Path, dirty: bool) -> int:
    """Write every export of one clinic below `inbox`; returns the number of resources."""
    con.execute(_MACROS)
    queries = {
        "Patient": _PATIENT, "Encounter": _ENCOUNTER, "Condition": _CONDITION.replace("$cut", str(dirty)),
        "Procedure": _PROCEDURE, "Consent": _consent_query(),
    }  # fmt: skip
    return sum(
        write_lines(con, query, inbox, f"{kind}.000.ndjson", encode=zipped_on_some_days)
        for kind, query in queries.items()
    )
