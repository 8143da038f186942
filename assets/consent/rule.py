"""The consent rule of the MII broad consent, as set logic over provisions. No state, no files.

A permit grants its code from its first to its last day (an open one until the evaluation day). A deny removes its days
from every permit declared at the same time or earlier (an open one for ever). So a code holds on a day if and only if
the last permit that covers the day was declared after the last deny that does. Whatever is unclear counts against use:

- a deny without a readable period denies every code on every day; without a declaration time it counts as declared
  last, with a day but no time as declared at the end of that day
- a permit without a readable period grants nothing; without a declaration time, or with one after the evaluation day,
  it counts as declared first
- a provision that is neither permit nor deny counts as deny
- a document once inactive, rejected, entered in error or deleted stays so until it is declared anew
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.majority import MAJORITY
from assets.consent.numbers import among, load_numbered
from assets.contract.city import ConsentRule
from assets.contract.codes import (
    CONSENT_COLLECT,
    CONSENT_DOCUMENTS,
    CONSENT_MODULE_OF,
    CONSENT_RETROSPECTIVE,
    CONSENT_TAKEN_BACK,
    until_sql,
)
from assets.contract.schemas import CASES, CONSENT_DECISIONS
from assets.lake.distribute import in_order
from assets.lake.engine import connect, load, rows_of

# Denies everything, whatever is nested in it, or nothing.
FULL_WITHDRAWAL: Final = rf"{re.escape(CONSENT_DOCUMENTS)}\.({'|'.join(CONSENT_TAKEN_BACK)})( |$)"
FULL_EXPORTS: Final = pa.schema([("clinic", pa.string()), ("day", pa.date32()), ("export_id", pa.string())])
"""Each clinic's newest delivery of all of its consents; only of clinics that declare to deliver all."""

_UNTIL: Final = until_sql("declared_at")
# A permit dated into the future by mistake must not outlast every withdrawal until then.
_DECLARED: Final = "CAST(declared_at AS DATE) <= $evaluation_day"

_VERSIONS: Final = f"""
CREATE TEMP TABLE versions AS
WITH documents AS (
  SELECT document, max(delivery) AS newest, max(delivery) FILTER (status = 'active') AS newest_active,
    max(coalesce({_UNTIL}, CAST(arrival_day AS TIMESTAMP)))
      FILTER (status IN ('inactive', 'rejected', 'entered-in-error')) AS revoked_at
  FROM register GROUP BY ALL)
SELECT r.person, r.status, r.declared_at, r.policy_uri, r.code, r.decision, r.valid_from, r.valid_to, r.period_readable,
  r.delivery = d.newest AS newest, coalesce(d.newest = d.newest_active, false) AS still_active,
  coalesce(r.status = 'active', false) AND (d.revoked_at IS NULL OR coalesce(r.declared_at > d.revoked_at AND {_DECLARED}, false))
    AND NOT r.vanished AS effective
FROM register r JOIN documents d ON d.document = r.document"""

_PERMITS: Final = f"""
CREATE TEMP TABLE permits AS
SELECT person, code, CASE WHEN {_DECLARED} THEN declared_at ELSE TIMESTAMP '0001-01-01' END AS declared_at, valid_from,
  coalesce(valid_to, $evaluation_day) AS valid_to
FROM versions WHERE newest AND effective AND decision = 'permit' AND period_readable AND code <> '*'"""

# A document that vanished or was set inactive grants nothing any more. What an active one denies stays denied
# until it is permitted anew by a later declaration: an old version that is delivered again takes nothing back. Who denies
# a module denies what is part of it; who permits one permits nothing, for it says nothing of the periods of its parts.
_DENIES: Final = f"""
CREATE TEMP TABLE denies AS
WITH said AS (
  SELECT * REPLACE ({_UNTIL} AS declared_at) FROM versions WHERE still_active AND status = 'active'),
stated AS (
  SELECT person, CASE WHEN period_readable THEN code ELSE '*' END AS code,
    coalesce(declared_at, TIMESTAMP '9999-01-01') AS declared_at,
    CASE WHEN period_readable THEN valid_from ELSE DATE '0001-01-01' END AS valid_from,
    CASE WHEN period_readable THEN coalesce(valid_to, DATE '9999-12-31') ELSE DATE '9999-12-31' END AS valid_to
  FROM said WHERE decision IS DISTINCT FROM 'permit' AND decision IS DISTINCT FROM 'none'
  UNION ALL
  SELECT DISTINCT person, '*', coalesce(declared_at, TIMESTAMP '9999-01-01'),
    coalesce(CAST(declared_at AS DATE), DATE '0001-01-01'), DATE '9999-12-31'
  FROM said WHERE regexp_matches(policy_uri, '{FULL_WITHDRAWAL}')
  UNION ALL
  SELECT person, '*', of_age_by, of_age_from, DATE '9999-12-31' FROM majority)
SELECT s.* REPLACE (c.code AS code) FROM stated s JOIN needed_codes c ON s.code IN (c.code, c.module, '*')"""

# For `points` (person, code, day): when the permits and the denies that cover the day were last declared. Two hash
# joins and two aggregates; nested EXISTS would become a join over a join.
_STATED: Final = """
  SELECT n.*, p.permitted_at, d.denied_at,
    p.permitted_at IS NOT NULL AND (d.denied_at IS NULL OR p.permitted_at > d.denied_at) AS ok
  FROM {points} n
  LEFT JOIN (
    SELECT n.person, n.code, n.day, max(p.declared_at) AS permitted_at FROM {points} n
    JOIN permits p ON p.person = n.person AND p.code = n.code
      AND n.day BETWEEN p.valid_from AND p.valid_to GROUP BY ALL) p USING (person, code, day)
  LEFT JOIN (
    SELECT n.person, n.code, n.day, max(d.declared_at) AS denied_at FROM {points} n
    JOIN denies d ON d.person = n.person AND d.code = n.code
      AND n.day BETWEEN d.valid_from AND d.valid_to GROUP BY ALL) d USING (person, code, day)
"""

# `erase`: withdrawn, ended, or without any document in force. Whoever only lacks a code may still sign for it.
_PATIENTS: Final = f"""
CREATE TEMP TABLE needed AS
SELECT p.person, c.code, CAST($day AS DATE) AS day
FROM people p, (SELECT unnest(CAST($codes AS VARCHAR[])) AS code) c;
CREATE TEMP TABLE patients AS
WITH stated AS ({_STATED.format(points="needed")}),
lasting AS (SELECT person, code, max(valid_to) AS last FROM permits GROUP BY ALL),
by_patient AS (
  SELECT s.person, bool_and(s.ok) AS ok,
    bool_or(s.denied_at IS NOT NULL AND NOT s.ok) AS denied, bool_or(l.last < CAST($day AS DATE)) AS ended,
    bool_and(s.ok OR coalesce(s.permitted_at IS NOT NULL AND s.denied_at = m.of_age_by, false)) AS of_age
  FROM stated s LEFT JOIN lasting l USING (person, code)
  LEFT JOIN majority m ON m.person = s.person GROUP BY ALL),
granting AS (SELECT DISTINCT person FROM permits),
ineffective AS (SELECT DISTINCT person FROM versions WHERE newest AND NOT effective)
SELECT b.person, b.ok,
  CASE WHEN b.ok THEN 'permitted' WHEN b.of_age THEN 'guardian_consent_ended' WHEN b.denied THEN 'withdrawn'
    WHEN g.person IS NULL AND i.person IS NOT NULL THEN 'document_not_active' WHEN g.person IS NULL THEN 'no_consent'
    WHEN b.ended THEN 'consent_ended' ELSE 'not_permitted_on_evaluation_day' END AS reason,
  NOT b.ok AND (b.denied OR coalesce(b.ended, false) OR g.person IS NULL) AS erase
FROM by_patient b LEFT JOIN granting g ON g.person = b.person LEFT JOIN ineffective i ON i.person = b.person
"""

# A consent signed during a case reaches back to that case's first day (MII: "Erhebung im laufenden Fall").
_REACH_BACK: Final = """
INSERT INTO permits
SELECT DISTINCT p.person, p.code, p.declared_at, c.admitted_on, p.valid_to
FROM permits p JOIN cases c ON c.person = p.person
WHERE list_contains(CAST($codes AS VARCHAR[]), p.code) AND c.admitted_on < p.valid_from
  AND CAST(p.declared_at AS DATE) BETWEEN c.admitted_on AND coalesce(c.discharged_on, CAST($day AS DATE))"""

# With the retrospective module in force on the evaluation day, collecting reaches back without limit.
_RETROSPECTIVE: Final = f"""
CREATE TEMP TABLE looking_back AS
SELECT person, '{CONSENT_RETROSPECTIVE}' AS code, CAST($day AS DATE) AS day FROM people;
INSERT INTO permits
SELECT s.person, '{CONSENT_COLLECT}', s.permitted_at, DATE '0001-01-01', CAST($day AS DATE)
FROM ({_STATED.format(points="looking_back")}) s WHERE s.ok"""

# Coverage can only break on the first day, on the day after a permit ends, or on the day a deny begins: if these days
# are covered, so are all between them.
_OUTSIDE: Final = f"""
CREATE TEMP TABLE points AS
WITH spans AS (
  SELECT DISTINCT person, admitted_on AS first,
    greatest(admitted_on, coalesce(discharged_on, CAST($day AS DATE))) AS last
  FROM cases SEMI JOIN (SELECT * FROM patients WHERE ok) USING (person) WHERE admitted_on IS NOT NULL),
codes AS (SELECT unnest(CAST($codes AS VARCHAR[])) AS code)
SELECT s.*, c.code, s.first AS day FROM spans s, codes c
UNION SELECT s.*, c.code, p.valid_to + 1 FROM spans s CROSS JOIN codes c JOIN permits p
  ON p.person = s.person AND p.code = c.code
  AND p.valid_to + 1 BETWEEN s.first AND s.last
UNION SELECT s.*, c.code, d.valid_from FROM spans s CROSS JOIN codes c JOIN denies d
  ON d.person = s.person AND d.code = c.code
  AND d.valid_from BETWEEN s.first AND s.last;
CREATE TEMP TABLE asked AS SELECT DISTINCT person, code, day FROM points;
CREATE TEMP TABLE outside AS
SELECT DISTINCT p.person, p.first, p.last
FROM points p JOIN ({_STATED.format(points="asked")}) s USING (person, code, day) WHERE NOT s.ok"""


_REASONS: Final = """
SELECT CASE WHEN NOT coalesce(p.ok, false) THEN coalesce(p.reason, 'no_consent')
  WHEN c.admitted_on IS NULL THEN 'dates_unreadable'
  WHEN o.person IS NOT NULL THEN 'case_outside_collection_window'
  ELSE 'permitted' END AS reason
FROM cases c LEFT JOIN patients p USING (person)
LEFT JOIN outside o ON o.person = c.person AND o.first = c.admitted_on
  AND o.last = greatest(c.admitted_on, coalesce(c.discharged_on, CAST($day AS DATE)))
ORDER BY c.n"""
_STANDING: Final = (
    "SELECT clinic, patient_id, ok, reason, erase FROM patients JOIN people USING (person) ORDER BY clinic, patient_id"
)


def _codes(codes: tuple[str, ...]) -> list[str]:
    return [code.removeprefix("urn:oid:") for code in codes]


def _run(con: duckdb.DuckDBPyConnection, script: str, **values: object) -> None:
    """Run the statements of `script`, each with those of `values` that it names."""
    for statement in filter(str.strip, script.split(";")):
        con.execute(statement, {k: v for k, v in values.items() if f"${k}" in statement} or None)


def _vanished(register: pa.Table, full_exports: pa.Table) -> pa.Array:
    """Mask of the rows of `register` that are older than their clinic's newest full export, hence missing from it."""
    day, export = register.column("arrival_day"), register.column("export_id")
    gone = pa.chunked_array([pa.repeat(False, register.num_rows)])
    for full in full_exports.to_pylist():
        # The second delivery of a day is the newer one: what only the first holds is missing.
        same_day = pc.and_kleene(pc.equal(day, full["day"]), pc.less(export, full["export_id"]))
        older = pc.or_kleene(pc.less(day, full["day"]), same_day)
        gone = pc.or_(gone, pc.fill_null(pc.and_(pc.equal(register.column("clinic"), full["clinic"]), older), False))
    return gone


def _prepare(
    con: duckdb.DuckDBPyConnection,
    register: pa.Table,
    rule: ConsentRule,
    day: date,
    full_exports: pa.Table | None,
    majority: pa.Table | None,
    cases: pa.Table | None = None,
) -> None:
    """Create the tables `permits`, `denies` and `patients` of what is in force, and `cases`."""
    on_day, over_case = _codes(rule.required_on_evaluation_day), _codes(rule.required_over_case)
    needed = list(dict.fromkeys([*on_day, *over_case, CONSENT_RETROSPECTIVE]))
    full_exports = FULL_EXPORTS.empty_table() if full_exports is None else full_exports
    load_numbered(
        con,
        register.append_column("vanished", _vanished(register, full_exports)),
        CASES.empty_table() if cases is None else cases,
        MAJORITY.empty_table() if majority is None else majority,
    )
    modules = pa.array([CONSENT_MODULE_OF.get(code) for code in needed], pa.string())
    load(con, needed_codes=pa.table({"code": needed, "module": modules}))
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
        reasons = con.execute(_REASONS, {"day": evaluation_day}).to_arrow_table().column("reason")
        decisions = {
            "permitted": pc.equal(reasons, "permitted"),
            "reason": reasons,
            "evaluated_on": pa.repeat(pa.scalar(evaluation_day, pa.date32()), cases.num_rows),
        }
        columns = [decisions[name] if name in decisions else cases.column(name) for name in CONSENT_DECISIONS.names]
        return in_order(pa.table(columns, schema=CONSENT_DECISIONS)), rows_of(con, _STANDING)


def decide(
    cases: pa.Table,
    register: pa.Table,
    rule: ConsentRule,
    evaluation_day: date,
    full_exports: pa.Table | None = None,
    majority: pa.Table | None = None,
) -> pa.Table:
    """One decision for each row of `cases` (canonical), as `CONSENT_DECISIONS`, in a total order.

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

    `ok`: storing and using is permitted. `erase`: it is not, and not merely because a document is still missing:
    all data of the patient must go.
    """
    with connect() as con:
        _prepare(con, register, rule, evaluation_day, full_exports, majority)
        return rows_of(con, _STANDING)


KEPT: Final[tuple[str, ...]] = ("cases", "diagnoses", "procedures", "persons")
"""The canonical tables that are passed on."""


def keep_permitted(tables: dict[str, pa.Table], decisions: pa.Table) -> dict[str, pa.Table]:
    """Those of `KEPT` among `tables`, reduced to permitted cases and to persons with a permitted case."""
    permitted = decisions.filter(decisions.column("permitted"))
    kept: dict[str, pa.Table] = {}
    for name in (n for n in KEPT if n in tables):
        keys = ["clinic", "patient_id"] if name == "persons" else ["clinic", "arrival_day", "case_id"]
        kept[name] = tables[name].filter(among(tables[name], permitted.select(keys)))
    return kept
