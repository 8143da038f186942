"""Valid canonical rows → pseudonymised rows: identifiers to pseudonyms, values to published categories."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from assets.contract.city import City
from assets.contract.codes import (
    AGE_GROUPS,
    AREA_ELSEWHERE,
    CARE,
    CARE_UNCOUNTED,
    COUNTED_STATUS,
    LOS_BINS,
    bin_case_sql,
    chapter_case_sql,
)
from assets.contract.schemas import (
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
    PSEUDONYMISED_PROCEDURES,
)
from assets.identity.persons import LINKS, THAT_COUNTS
from assets.identity.pseudonyms import case_keys, linked_persons, patient_keys
from assets.lake.distribute import in_order
from assets.lake.engine import connect, load, rows_of
from assets.lake.keys import Keyring

_READ: Final = {
    "cases": ["clinic", "arrival_day", "case_id", "patient_id", "status", "care", "admission_type", "admitted_on",
              "discharged_on", "died", "age_years"],
    "diagnoses": ["clinic", "arrival_day", "case_id", "icd_code", "role", "certainty"],
    "procedures": ["clinic", "arrival_day", "case_id", "ops_code", "performed_on"],
}  # fmt: skip
"""What is looked at: provenance above all is long and stays behind."""


# Of each patient the row that came last; whom an insured number links to whom, in this run and before; the principal
# diagnosis of a case where there is exactly one, and confirmed: a suspicion (V), what is over (Z) or ruled out (A) is no illness of it.
_PREPARE: Final = f"""
CREATE TEMP TABLE latest_person AS SELECT * FROM persons
QUALIFY row_number() OVER (PARTITION BY clinic, patient_id, arrival_day
  ORDER BY source_line DESC, source_file DESC, export_id DESC) = 1;
CREATE TEMP TABLE links AS
SELECT min(p.arrival_day) AS arrival_day, k.key AS patient_key, arg_min(p.linked, (p.arrival_day, p.linked)) AS person_key
FROM persons p JOIN patient_keys k ON k.clinic = p.clinic AND k.id = p.patient_id
WHERE p.linked IS NOT NULL GROUP BY k.key;
CREATE TEMP TABLE resolved AS
WITH counting AS (FROM known_links {THAT_COUNTS})
SELECT patient_key, coalesce(k.person_key, l.person_key) AS person_key FROM counting k FULL JOIN links l USING (patient_key);
CREATE TEMP TABLE principal AS SELECT clinic, arrival_day, case_id, min(icd_code) AS icd_code
FROM diagnoses WHERE role = 'principal' AND coalesce(upper(certainty), 'G') = 'G' GROUP BY ALL HAVING count(DISTINCT icd_code) = 1;
"""

_COUNTED: Final = ", ".join(f"'{s}'" for s in COUNTED_STATUS)
_CARE: Final = ", ".join(f"'{c}'" for c in CARE)
_CASES: Final = f"""
WITH joined AS (
  SELECT c.*, p.sex, p.postal_code, p.birth_year, coalesce(p.birth_month, 7) AS month,
    CASE WHEN p.birth_month IS NULL THEN 1 ELSE coalesce(p.birth_day, 15) END AS day,
    ck.key AS case_key, pk.key AS patient_key, d.reason AS consent_reason, dx.icd_code
  FROM cases c
  LEFT JOIN latest_person p
    ON p.clinic = c.clinic AND p.patient_id = c.patient_id AND p.arrival_day = c.arrival_day
  JOIN patient_keys pk ON pk.clinic = c.clinic AND pk.id = c.patient_id
  JOIN case_keys ck ON ck.clinic = c.clinic AND ck.id = c.case_id
  LEFT JOIN (SELECT DISTINCT clinic, arrival_day, case_id, reason FROM decisions WHERE permitted) d
    ON d.clinic = c.clinic AND d.arrival_day = c.arrival_day AND d.case_id = c.case_id
  LEFT JOIN principal dx
    ON dx.clinic = c.clinic AND dx.arrival_day = c.arrival_day AND dx.case_id = c.case_id),
aged AS (
  SELECT *, coalesce(age_years, year(admitted_on) - birth_year
    - CASE WHEN (month(admitted_on), dayofmonth(admitted_on)) < (month, day) THEN 1 ELSE 0 END) AS age,
    discharged_on - admitted_on AS stay FROM joined)
SELECT clinic, arrival_day, case_key, a.patient_key, coalesce(r.person_key, a.patient_key) AS person_key,
  key_id, admitted_on, discharged_on,
  CASE WHEN status IN ({_COUNTED}) AND care IN ({_CARE}) THEN care ELSE '{CARE_UNCOUNTED}' END AS care,
  admission_type AS admission, coalesce(ar.area, '{AREA_ELSEWHERE}') AS area,
  {bin_case_sql("CASE WHEN age < 0 THEN 0 ELSE age END", AGE_GROUPS)} AS age_group, coalesce(sex, 'other') AS sex,
  {chapter_case_sql("icd_code")} AS chapter, {bin_case_sql("stay", LOS_BINS)} AS los, died, consent_reason
FROM aged a CROSS JOIN keyring LEFT JOIN resolved r USING (patient_key) LEFT JOIN areas ar USING (postal_code)"""
_DIAGNOSES: Final = """
SELECT d.clinic, d.arrival_day, k.key AS case_key, left(d.icd_code, 3) AS icd_code, d.role FROM diagnoses d
JOIN case_keys k ON k.clinic = d.clinic AND k.id = d.case_id"""
_PROCEDURES: Final = """
SELECT p.clinic, p.arrival_day, k.key AS case_key, left(p.ops_code, 5) AS ops_code, p.performed_on
FROM procedures p JOIN case_keys k ON k.clinic = p.clinic AND k.id = p.case_id"""
# What was learnt before stands, whatever a second delivery of a day, or a late one of an earlier day, says.
_LINKS: Final = """
SELECT l.arrival_day, patient_key, r.person_key FROM links l JOIN resolved r USING (patient_key) ORDER BY ALL"""


def pseudonymise(
    valid: dict[str, pa.Table], decisions: pa.Table, known_links: pa.Table, city: City, keys: Keyring
) -> dict[str, pa.Table]:
    """Pseudonymised `cases`, `diagnoses`, `procedures`, and `links` learnt from insured numbers.

    A person is the keyed insured number where any delivery of the patient held a valid one (`known_links`:
    earlier ones), else the patient of that clinic. Age is exact from a full birth date; a missing day or
    month counts as the middle of the year or month; the age that the source states goes first.
    """
    persons = valid["persons"]
    areas = pa.table(
        {
            "postal_code": [p for a in city.areas for p in a.postal_codes],
            "area": [a.key for a in city.areas for _ in a.postal_codes],
        }
    )
    with connect() as con:
        load(
            con,
            **{name: valid[name].select(columns) for name, columns in _READ.items()},
            areas=areas,
            keyring=pa.table({"key_id": [keys.key_id]}),
            patient_keys=patient_keys(valid["cases"], keys),
            case_keys=case_keys(valid["cases"], keys),
            persons=persons.drop_columns(["insured_id", "deceased_on"]).append_column(
                "linked", linked_persons(persons.column("insured_id"), keys)
            ),
            known_links=known_links,
            decisions=decisions.select(["clinic", "arrival_day", "case_id", "permitted", "reason"]),
        )
        con.execute(_PREPARE)
        cases, diagnoses, procedures, links = (
            rows_of(con, query) for query in (_CASES, _DIAGNOSES, _PROCEDURES, _LINKS)
        )
    return {
        "cases": in_order(cases.cast(PSEUDONYMISED_CASES), ("arrival_day", "case_key")),
        "diagnoses": in_order(diagnoses.cast(PSEUDONYMISED_DIAGNOSES)),
        "procedures": in_order(procedures.cast(PSEUDONYMISED_PROCEDURES)),
        "links": links.cast(LINKS),
    }
