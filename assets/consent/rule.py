"""The consent rule of the MII broad consent, as set logic over provisions. No state, no files.

A permit grants its code from its first to its last day (until the evaluation day where it is open). A deny
removes its days from every permit declared at the same time or earlier; open, it removes for ever. What is
unclear is decided against use: a deny without readable period denies every code on every day, one without a
declaration time counts as declared last; a permit without readable period grants nothing, one without
declaration time counts as declared first. A provision that is neither permit nor deny counts as deny.
"""

from __future__ import annotations

from datetime import date
from typing import Final

import duckdb
import pyarrow as pa

from assets.contract.city import ConsentRule
from assets.contract.schemas import CONSENT_DECISIONS

# Komplettwiderruf (all versions of the MII form): denies everything even without nested provisions.
FULL_WITHDRAWAL: Final = r"\.24\.2\.(2718|2720|2722)$"

_PREPARE: Final = f"""
CREATE TEMP TABLE current_documents AS
SELECT * FROM register
QUALIFY dense_rank() OVER (PARTITION BY clinic, consent_id ORDER BY arrival_day DESC, export_id DESC, source_file DESC,
  CASE WHEN consent_id IS NULL THEN 0 ELSE source_line END DESC) = 1;
CREATE TEMP TABLE permits AS
SELECT clinic, patient_id, code, coalesce(declared_at, TIMESTAMP '0001-01-01') AS declared_at, valid_from,
  coalesce(valid_to, $evaluation_day) AS valid_to
FROM current_documents
WHERE status = 'active' AND decision = 'permit' AND period_readable AND code <> '*';
CREATE TEMP TABLE denies AS
SELECT clinic, patient_id, CASE WHEN period_readable THEN code ELSE '*' END AS code,
  coalesce(declared_at, TIMESTAMP '9999-01-01') AS declared_at,
  CASE WHEN period_readable THEN valid_from ELSE DATE '0001-01-01' END AS valid_from,
  CASE WHEN period_readable THEN coalesce(valid_to, DATE '9999-12-31') ELSE DATE '9999-12-31' END AS valid_to
FROM current_documents
WHERE status = 'active' AND decision IS DISTINCT FROM 'permit' AND decision IS DISTINCT FROM 'none'
UNION ALL
SELECT clinic, patient_id, '*', coalesce(declared_at, TIMESTAMP '9999-01-01'),
  coalesce(CAST(declared_at AS DATE), DATE '0001-01-01'), DATE '9999-12-31'
FROM current_documents WHERE status = 'active' AND decision = 'none' AND regexp_matches(policy_uri, '{FULL_WITHDRAWAL}');
"""

# A day is covered for a code iff some permit holds it and no deny that overrides this permit does.
_COVERED: Final = """
  EXISTS (SELECT 1 FROM permits p WHERE p.clinic = {t}.clinic AND p.patient_id = {t}.patient_id AND p.code = {t}.code
    AND {t}.day BETWEEN p.valid_from AND p.valid_to
    AND NOT EXISTS (SELECT 1 FROM denies d WHERE d.clinic = p.clinic AND d.patient_id = p.patient_id
      AND d.code IN (p.code, '*') AND d.declared_at >= p.declared_at AND {t}.day BETWEEN d.valid_from AND d.valid_to))
"""


def _codes(codes: tuple[str, ...]) -> list[str]:
    return [code.removeprefix("urn:oid:") for code in codes]


def _prepare(con: duckdb.DuckDBPyConnection, register: pa.Table, rule: ConsentRule, evaluation_day: date) -> None:
    con.register("register", register)
    for statement in filter(str.strip, _PREPARE.split(";")):
        used = {"evaluation_day": evaluation_day} if "$evaluation_day" in statement else None
        con.execute(statement, used)
    con.execute(
        f"""CREATE TEMP TABLE patients AS
        WITH needed AS (
          SELECT DISTINCT r.clinic, r.patient_id, c.code, CAST($day AS DATE) AS day
          FROM register r, (SELECT unnest(CAST($codes AS VARCHAR[])) AS code) c),
        covered AS (SELECT *, {_COVERED.format(t="needed")} AS ok FROM needed)
        SELECT clinic, patient_id, bool_and(ok) AS ok FROM covered GROUP BY ALL""",
        {"day": evaluation_day, "codes": _codes(rule.required_on_evaluation_day)},
    )


def decide(cases: pa.Table, register: pa.Table, rule: ConsentRule, evaluation_day: date) -> pa.Table:
    """One decision for each row of `cases` (canonical), as `CONSENT_DECISIONS`.

    `register`: every consent provision ever received (`CONSENT_PROVISIONS`); of a document delivered several
    times the newest version counts. An open case reaches until the evaluation day.
    """
    with duckdb.connect() as con:
        _prepare(con, register, rule, evaluation_day)
        con.register("cases", cases)
        # Coverage can only break on the first day, the day after a permit ends, or the day a deny starts:
        # if those days are covered, all days between are.
        con.execute(
            f"""CREATE TEMP TABLE outside AS
            WITH spans AS (
              SELECT DISTINCT clinic, patient_id, admitted_on AS first,
                greatest(admitted_on, coalesce(discharged_on, CAST($day AS DATE))) AS last
              FROM cases WHERE admitted_on IS NOT NULL),
            codes AS (SELECT unnest(CAST($codes AS VARCHAR[])) AS code),
            points AS (
              SELECT s.*, c.code, s.first AS day FROM spans s, codes c
              UNION SELECT s.*, c.code, p.valid_to + 1 FROM spans s CROSS JOIN codes c JOIN permits p
                ON p.clinic = s.clinic AND p.patient_id = s.patient_id AND p.code = c.code
                AND p.valid_to + 1 BETWEEN s.first AND s.last
              UNION SELECT s.*, c.code, d.valid_from FROM spans s CROSS JOIN codes c JOIN denies d
                ON d.clinic = s.clinic AND d.patient_id = s.patient_id AND d.code IN (c.code, '*')
                AND d.valid_from BETWEEN s.first AND s.last)
            SELECT DISTINCT clinic, patient_id, first, last FROM points WHERE NOT {_COVERED.format(t="points")}""",
            {"day": evaluation_day, "codes": _codes(rule.required_over_case)},
        )
        return (
            con.execute(
                """
            WITH granted AS (SELECT DISTINCT clinic, patient_id FROM permits),
            denied AS (SELECT DISTINCT clinic, patient_id FROM denies
              WHERE CAST($day AS DATE) BETWEEN valid_from AND valid_to),
            reasoned AS (
              SELECT c.*, CASE
                WHEN g.patient_id IS NULL AND d.patient_id IS NULL THEN 'no_consent'
                WHEN NOT coalesce(p.ok, false) AND d.patient_id IS NOT NULL THEN 'withdrawn'
                WHEN NOT coalesce(p.ok, false) THEN 'not_permitted_on_evaluation_day'
                WHEN c.admitted_on IS NULL THEN 'dates_unreadable'
                WHEN o.patient_id IS NOT NULL THEN 'case_outside_collection_window'
                ELSE 'permitted' END AS reason
              FROM cases c
              LEFT JOIN granted g USING (clinic, patient_id)
              LEFT JOIN denied d USING (clinic, patient_id)
              LEFT JOIN patients p USING (clinic, patient_id)
              LEFT JOIN outside o ON o.clinic = c.clinic AND o.patient_id = c.patient_id AND o.first = c.admitted_on
                AND o.last = greatest(c.admitted_on, coalesce(c.discharged_on, CAST($day AS DATE))))
            SELECT clinic, arrival_day, export_id, source_file, source_line, case_id, patient_id,
              reason = 'permitted' AS permitted, reason, CAST($day AS DATE) AS evaluated_on
            FROM reasoned ORDER BY ALL""",
                {"day": evaluation_day},
            )
            .to_arrow_table()
            .cast(CONSENT_DECISIONS)
        )


def not_permitted_patients(register: pa.Table, rule: ConsentRule, evaluation_day: date) -> pa.Table:
    """(clinic, patient_id) of known patients whose data may not be kept on the evaluation day."""
    with duckdb.connect() as con:
        _prepare(con, register, rule, evaluation_day)
        return con.execute("SELECT clinic, patient_id FROM patients WHERE NOT ok ORDER BY ALL").to_arrow_table()


def keep_permitted(tables: dict[str, pa.Table], decisions: pa.Table) -> dict[str, pa.Table]:
    """Canonical tables with the rows of permitted cases only; persons only of patients with such a case."""
    with duckdb.connect() as con:
        con.register("decisions", decisions)
        con.execute(
            "CREATE TEMP TABLE ok AS SELECT DISTINCT clinic, arrival_day, case_id, patient_id FROM decisions WHERE permitted"
        )
        kept = {}
        for name in ("cases", "diagnoses", "procedures", "persons"):
            con.register("rows", tables[name])
            keys = "clinic, patient_id" if name == "persons" else "clinic, arrival_day, case_id"
            query = f"SELECT * FROM rows SEMI JOIN ok USING ({keys}) ORDER BY ALL"
            kept[name] = con.execute(query).to_arrow_table().cast(tables[name].schema)
        return kept
