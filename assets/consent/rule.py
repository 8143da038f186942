"""The consent rule of the MII broad consent, as set logic over provisions. No state, no files.

A permit grants its code from its first to its last day (until the evaluation day where it is open). A deny
removes its days from every permit declared at the same time or earlier; open, it removes for ever. So a code
holds on a day iff the last permit that holds the day was declared after the last deny that does. What is
unclear is decided against use: a deny without readable period denies every code on every day, one without a
declaration time counts as declared last; a permit without readable period grants nothing, one without
declaration time counts as declared first. A provision that is neither permit nor deny counts as deny. A
document once inactive, rejected or entered in error (or deleted) stays so until it is declared anew.
"""

from __future__ import annotations

from datetime import date
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from assets.consent.majority import MAJORITY
from assets.contract.city import ConsentRule
from assets.contract.codes import CONSENT_COLLECT, CONSENT_RETROSPECTIVE
from assets.contract.schemas import CASES, CONSENT_DECISIONS
from assets.lake.engine import connect, load

# Komplettwiderruf (all versions of the MII form): denies everything even without nested provisions.
FULL_WITHDRAWAL: Final = r"\.24\.2\.(2718|2720|2722)$"
FULL_EXPORTS: Final = pa.schema([("clinic", pa.string()), ("day", pa.date32())])
"""Newest day on which a clinic delivered all of its consents; only of clinics that say they do."""

_VERSIONS: Final = """
CREATE TEMP TABLE documents AS
SELECT *, coalesce(consent_id, concat_ws('|', export_id, source_file, source_line)) AS document FROM register;
CREATE TEMP TABLE versions AS
SELECT *, dense_rank() OVER (PARTITION BY clinic, document
  ORDER BY arrival_day DESC, export_id DESC, source_file DESC) = 1 AS newest FROM documents;
CREATE TEMP TABLE current_documents AS
WITH revoked AS (
  SELECT clinic, document, max(coalesce(declared_at, CAST(arrival_day AS TIMESTAMP))) AS revoked_at FROM versions
  WHERE status IN ('inactive', 'rejected', 'entered-in-error') GROUP BY ALL)
SELECT v.*, coalesce(v.status = 'active', false) AND coalesce(v.declared_at > r.revoked_at, r.clinic IS NULL)
    AND coalesce(v.arrival_day >= f.day, true) AS effective
FROM versions v LEFT JOIN revoked r ON r.clinic = v.clinic AND r.document = v.document
LEFT JOIN full_exports f ON f.clinic = v.clinic WHERE v.newest"""

_PERMITS: Final = """
CREATE TEMP TABLE permits AS
SELECT clinic, patient_id, code, coalesce(declared_at, TIMESTAMP '0001-01-01') AS declared_at, valid_from,
  coalesce(valid_to, $evaluation_day) AS valid_to
FROM current_documents WHERE effective AND decision = 'permit' AND period_readable AND code <> '*'"""

# A document that vanished or was set inactive grants nothing any more. What an active one denies stays denied
# until it is permitted anew by a later declaration: an old version that is delivered again takes nothing back.
_DENIES: Final = f"""
CREATE TEMP TABLE denies AS
WITH active AS (
  SELECT * FROM versions
  QUALIFY bool_or(newest AND status IS NOT DISTINCT FROM 'active') OVER (PARTITION BY clinic, document)),
stated AS (
  SELECT clinic, patient_id, CASE WHEN period_readable THEN code ELSE '*' END AS code,
    coalesce(declared_at, TIMESTAMP '9999-01-01') AS declared_at,
    CASE WHEN period_readable THEN valid_from ELSE DATE '0001-01-01' END AS valid_from,
    CASE WHEN period_readable THEN coalesce(valid_to, DATE '9999-12-31') ELSE DATE '9999-12-31' END AS valid_to
  FROM active WHERE status = 'active' AND decision IS DISTINCT FROM 'permit' AND decision IS DISTINCT FROM 'none'
  UNION ALL
  SELECT clinic, patient_id, '*', coalesce(declared_at, TIMESTAMP '9999-01-01'),
    coalesce(CAST(declared_at AS DATE), DATE '0001-01-01'), DATE '9999-12-31'
  FROM active
  WHERE status = 'active' AND decision = 'none' AND regexp_matches(policy_uri, '{FULL_WITHDRAWAL}')
  UNION ALL
  SELECT clinic, patient_id, '*', of_age_by, of_age_from, DATE '9999-12-31' FROM majority)
SELECT s.* REPLACE (c.code AS code) FROM stated s JOIN needed_codes c ON s.code IN (c.code, '*')"""

# For `points` (clinic, patient_id, code, day): when permitting and denying statements that hold the day were
# last declared. Two hash joins and two aggregates, where nested EXISTS would be a join of a join.
_STATED: Final = """
  SELECT n.*, p.permitted_at, d.denied_at,
    p.permitted_at IS NOT NULL AND (d.denied_at IS NULL OR p.permitted_at > d.denied_at) AS ok
  FROM {points} n
  LEFT JOIN (
    SELECT n.clinic, n.patient_id, n.code, n.day, max(p.declared_at) AS permitted_at FROM {points} n
    JOIN permits p ON p.clinic = n.clinic AND p.patient_id = n.patient_id AND p.code = n.code
      AND n.day BETWEEN p.valid_from AND p.valid_to GROUP BY ALL) p USING (clinic, patient_id, code, day)
  LEFT JOIN (
    SELECT n.clinic, n.patient_id, n.code, n.day, max(d.declared_at) AS denied_at FROM {points} n
    JOIN denies d ON d.clinic = n.clinic AND d.patient_id = n.patient_id AND d.code = n.code
      AND n.day BETWEEN d.valid_from AND d.valid_to GROUP BY ALL) d USING (clinic, patient_id, code, day)
"""

# `erase`: withdrawn, ended, or without any document in force; one who only lacks a code may still deliver it.
_PATIENTS: Final = f"""
CREATE TEMP TABLE needed AS
SELECT DISTINCT r.clinic, r.patient_id, c.code, CAST($day AS DATE) AS day
FROM register r, (SELECT unnest(CAST($codes AS VARCHAR[])) AS code) c WHERE r.patient_id IS NOT NULL;
CREATE TEMP TABLE patients AS
WITH stated AS ({_STATED.format(points="needed")}),
lasting AS (SELECT clinic, patient_id, code, max(valid_to) AS last FROM permits GROUP BY ALL),
by_patient AS (
  SELECT s.clinic, s.patient_id, bool_and(s.ok) AS ok,
    bool_or(s.denied_at IS NOT NULL AND NOT s.ok) AS denied, bool_or(l.last < CAST($day AS DATE)) AS ended,
    bool_and(s.ok OR coalesce(s.permitted_at IS NOT NULL AND s.denied_at = m.of_age_by, false)) AS of_age
  FROM stated s LEFT JOIN lasting l USING (clinic, patient_id, code)
  LEFT JOIN majority m ON m.clinic = s.clinic AND m.patient_id = s.patient_id GROUP BY ALL),
granting AS (SELECT DISTINCT clinic, patient_id FROM permits),
ineffective AS (SELECT DISTINCT clinic, patient_id FROM current_documents WHERE NOT effective)
SELECT b.clinic, b.patient_id, b.ok,
  CASE WHEN b.ok THEN 'permitted' WHEN b.of_age THEN 'guardian_consent_ended' WHEN b.denied THEN 'withdrawn'
    WHEN g.clinic IS NULL AND i.clinic IS NOT NULL THEN 'document_not_active' WHEN g.clinic IS NULL THEN 'no_consent'
    WHEN b.ended THEN 'consent_ended' ELSE 'not_permitted_on_evaluation_day' END AS reason,
  NOT b.ok AND (b.denied OR coalesce(b.ended, false) OR g.clinic IS NULL) AS erase
FROM by_patient b LEFT JOIN granting g ON g.clinic = b.clinic AND g.patient_id = b.patient_id
LEFT JOIN ineffective i ON i.clinic = b.clinic AND i.patient_id = b.patient_id
"""

# A consent signed during a case reaches back to that case's first day (MII: "Erhebung im laufenden Fall").
_REACH_BACK: Final = """
INSERT INTO permits
SELECT DISTINCT p.clinic, p.patient_id, p.code, p.declared_at, c.admitted_on, p.valid_to
FROM permits p JOIN cases c ON c.clinic = p.clinic AND c.patient_id = p.patient_id
WHERE list_contains(CAST($codes AS VARCHAR[]), p.code) AND c.admitted_on < p.valid_from
  AND CAST(p.declared_at AS DATE) BETWEEN c.admitted_on AND coalesce(c.discharged_on, CAST($day AS DATE))"""

# With the retrospective module in force on the evaluation day, collecting reaches back without limit.
_RETROSPECTIVE: Final = f"""
CREATE TEMP TABLE looking_back AS
SELECT DISTINCT clinic, patient_id, '{CONSENT_RETROSPECTIVE}' AS code, CAST($day AS DATE) AS day FROM register;
INSERT INTO permits
SELECT s.clinic, s.patient_id, '{CONSENT_COLLECT}', s.permitted_at, DATE '0001-01-01', CAST($day AS DATE)
FROM ({_STATED.format(points="looking_back")}) s WHERE s.ok"""

# Coverage can only break on the first day, the day after a permit ends, or the day a deny starts: if those
# days are covered, all days between are.
_OUTSIDE: Final = f"""
CREATE TEMP TABLE points AS
WITH spans AS (
  SELECT DISTINCT clinic, patient_id, admitted_on AS first,
    greatest(admitted_on, coalesce(discharged_on, CAST($day AS DATE))) AS last
  FROM cases SEMI JOIN (SELECT * FROM patients WHERE ok) USING (clinic, patient_id) WHERE admitted_on IS NOT NULL),
codes AS (SELECT unnest(CAST($codes AS VARCHAR[])) AS code)
SELECT s.*, c.code, s.first AS day FROM spans s, codes c
UNION SELECT s.*, c.code, p.valid_to + 1 FROM spans s CROSS JOIN codes c JOIN permits p
  ON p.clinic = s.clinic AND p.patient_id = s.patient_id AND p.code = c.code
  AND p.valid_to + 1 BETWEEN s.first AND s.last
UNION SELECT s.*, c.code, d.valid_from FROM spans s CROSS JOIN codes c JOIN denies d
  ON d.clinic = s.clinic AND d.patient_id = s.patient_id AND d.code = c.code
  AND d.valid_from BETWEEN s.first AND s.last;
CREATE TEMP TABLE asked AS SELECT DISTINCT clinic, patient_id, code, day FROM points;
CREATE TEMP TABLE outside AS
SELECT DISTINCT p.clinic, p.patient_id, p.first, p.last
FROM points p JOIN ({_STATED.format(points="asked")}) s USING (clinic, patient_id, code, day) WHERE NOT s.ok"""


_DECISIONS: Final = """
WITH reasoned AS (
  SELECT c.*, CASE WHEN NOT coalesce(p.ok, false) THEN coalesce(p.reason, 'no_consent')
    WHEN c.admitted_on IS NULL THEN 'dates_unreadable'
    WHEN o.patient_id IS NOT NULL THEN 'case_outside_collection_window'
    ELSE 'permitted' END AS why
  FROM cases c LEFT JOIN patients p USING (clinic, patient_id)
  LEFT JOIN outside o ON o.clinic = c.clinic AND o.patient_id = c.patient_id AND o.first = c.admitted_on
    AND o.last = greatest(c.admitted_on, coalesce(c.discharged_on, CAST($day AS DATE))))
SELECT clinic, arrival_day, export_id, source_file, source_line, case_id, patient_id,
  why = 'permitted' AS permitted, why AS reason, CAST($day AS DATE) AS evaluated_on
FROM reasoned
ORDER BY ALL"""
_STANDING: Final = "SELECT clinic, patient_id, ok, reason, erase FROM patients ORDER BY ALL"


def _codes(codes: tuple[str, ...]) -> list[str]:
    return [code.removeprefix("urn:oid:") for code in codes]


def _run(con: duckdb.DuckDBPyConnection, script: str, **values: object) -> None:
    """Run the statements of `script`, each with those of `values` that it names."""
    for statement in filter(str.strip, script.split(";")):
        con.execute(statement, {k: v for k, v in values.items() if f"${k}" in statement} or None)


def _prepare(
    con: duckdb.DuckDBPyConnection,
    register: pa.Table,
    rule: ConsentRule,
    day: date,
    full_exports: pa.Table | None,
    majority: pa.Table | None,
    cases: pa.Table | None = None,
) -> None:
    """Tables `permits`, `denies` and `patients` of what is in force, and `cases`."""
    on_day, over_case = _codes(rule.required_on_evaluation_day), _codes(rule.required_over_case)
    needed = list(dict.fromkeys([*on_day, *over_case, CONSENT_RETROSPECTIVE]))
    load(
        con,
        register=register,
        needed_codes=pa.table({"code": needed}),
        full_exports=FULL_EXPORTS.empty_table() if full_exports is None else full_exports,
        majority=MAJORITY.empty_table() if majority is None else majority,
        cases=CASES.empty_table() if cases is None else cases,
    )
    _run(con, ";".join((_VERSIONS, _PERMITS, _DENIES)), evaluation_day=day)
    if rule.reach_back_to_case_of_signature:
        _run(con, _REACH_BACK, codes=over_case, day=day)
    if rule.retrospective_module:
        _run(con, _RETROSPECTIVE, day=day)
    _run(con, _PATIENTS, codes=on_day, day=day)


def evaluate(
    cases: pa.Table,
    register: pa.Table,
    rule: ConsentRule,
    evaluation_day: date,
    full_exports: pa.Table | None = None,
    majority: pa.Table | None = None,
) -> tuple[pa.Table, pa.Table]:
    """What `decide` and `standing` return, from one evaluation."""
    with connect() as con:
        _prepare(con, register, rule, evaluation_day, full_exports, majority, cases)
        _run(con, _OUTSIDE, codes=_codes(rule.required_over_case), day=evaluation_day)
        decisions = con.execute(_DECISIONS, {"day": evaluation_day}).to_arrow_table().cast(CONSENT_DECISIONS)
        return decisions, con.execute(_STANDING).to_arrow_table()


def decide(
    cases: pa.Table,
    register: pa.Table,
    rule: ConsentRule,
    evaluation_day: date,
    full_exports: pa.Table | None = None,
    majority: pa.Table | None = None,
) -> pa.Table:
    """One decision for each row of `cases` (canonical), as `CONSENT_DECISIONS`.

    `register`: every consent provision ever received (`CONSENT_PROVISIONS`); of a document delivered several
    times the newest version counts, and one that is missing from its clinic's newest full export
    (`full_exports`: `FULL_EXPORTS`) grants nothing. An open case reaches until the evaluation day. `majority`
    (`MAJORITY`): from when on a guardian's consent is not enough, where the city's rule asks for it.
    """
    return evaluate(cases, register, rule, evaluation_day, full_exports, majority)[0]


def standing(
    register: pa.Table,
    rule: ConsentRule,
    evaluation_day: date,
    full_exports: pa.Table | None = None,
    majority: pa.Table | None = None,
) -> pa.Table:
    """(clinic, patient_id, ok, reason, erase) of every patient of the register on the evaluation day.

    `ok`: storing and using is permitted; `erase`: not, and not for want of a further document: everything of
    the patient has to go.
    """
    with connect() as con:
        _prepare(con, register, rule, evaluation_day, full_exports, majority)
        return con.execute(_STANDING).to_arrow_table()


def keep_permitted(tables: dict[str, pa.Table], decisions: pa.Table) -> dict[str, pa.Table]:
    """Canonical tables with the rows of permitted cases only; persons only of patients with such a case."""
    with connect() as con:
        load(con, decisions=decisions)
        con.execute(
            "CREATE TEMP TABLE ok AS SELECT DISTINCT clinic, arrival_day, case_id, patient_id FROM decisions WHERE permitted"
        )
        kept = {}
        for name in ("cases", "diagnoses", "procedures", "persons"):
            keys = ["clinic", "patient_id"] if name == "persons" else ["clinic", "arrival_day", "case_id"]
            numbered = tables[name].select(keys).append_column("n", pa.array(np.arange(tables[name].num_rows)))
            con.register("rows", numbered)
            rows = con.execute(f"SELECT n FROM rows SEMI JOIN ok USING ({', '.join(keys)}) ORDER BY n").to_arrow_table()
            kept[name] = tables[name].take(rows.column("n"))
        return kept
