"""A second consent rule, slow and naive, written from the rule's text alone, must agree on generated patients.

`CONSENT_PATIENTS=100000` runs it at the size of a city. The properties are checked on the same population.
"""

from __future__ import annotations

import os
from collections import defaultdict
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from assets.consent.changes import among_documents_of, changed
from assets.consent.majority import MAJORITY
from assets.consent.rule import FULL_EXPORTS, decide, evaluate
from assets.contract.city import Clinic, ConsentRule
from assets.contract.schemas import CASES, CONSENT_PROVISIONS
from assets.intake import fhir
from assets.intake.connector import Export
from assets.intake.findings import Findings
from assets.lake.engine import connect

PATIENTS = int(os.environ.get("CONSENT_PATIENTS", "4000"))
SYSTEM = "2.16.840.1.113883.3.1937.777.24.5.3"
MODULE, COLLECT, STORE, USE = (f"{SYSTEM}.{n}" for n in (1, 6, 7, 8))
TODAY = date(2025, 6, 1)
ORIGIN = date(2024, 6, 1)
FULL_DAY = ORIGIN + timedelta(200)
RULE = ConsentRule(decided_by="test", decided_on=None, note="")
FORMS = tuple(f"urn:oid:2.16.840.1.113883.3.1937.777.24.2.{n}" for n in (2718, 4054))
ENDED = ("inactive", "rejected", "entered-in-error")


def population(n: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """(cases, register) of `n` patients; columns are drawn at once. Two clinics, one of which delivers in full."""
    rng = np.random.default_rng(seed)
    # A statement is drawn for a document (three a patient at most) that comes in up to two versions.
    size = n * 7
    who = rng.integers(0, n, size)
    document = rng.integers(0, 3, size)
    version = (rng.random(size) < 0.25).astype(int)
    of_document = who * 3 + document
    arrival = rng.integers(150, 230, n * 6)[of_document * 2] + version * rng.integers(1, 40, n * 6)[of_document * 2 + 1]
    status = np.where(rng.random(n * 6) < 0.88, "active", rng.choice([*ENDED, "draft", ""], n * 6))[
        of_document * 2 + version
    ]
    declared = np.where(
        rng.random(size) < 0.6, rng.integers(0, 300, n * 6)[of_document * 2 + version], rng.integers(0, 300, size)
    )
    start = rng.integers(-100, 300, size)
    length = rng.choice([3, 30, 200, 3000], size)
    open_end, readable = rng.random(size) < 0.25, rng.random(size) > 0.05
    decision = rng.choice(["permit", "deny", "none", "odd"], size, p=[0.85, 0.12, 0.02, 0.01])
    code = rng.choice([COLLECT, STORE, USE, f"{SYSTEM}.9", MODULE, "*"], size, p=[0.31, 0.31, 0.31, 0.03, 0.03, 0.01])
    # Half of the patients hold one broad consent on top, so that many are permitted.
    broad = np.repeat(np.flatnonzero(rng.random(n) < 0.7), 3)
    m = len(broad)

    def day(values: np.ndarray) -> pa.Array:
        return pa.array((np.datetime64(ORIGIN, "D") + values).astype("datetime64[D]"), pa.date32())

    def both(first: Any, second: Any) -> np.ndarray:
        return np.concatenate([np.asarray(first), np.asarray(second)])

    patient = both(who, broad)
    declared = both(declared, np.full(m, 10))
    # Of a third only the day is known; two on one day are common among so few hours.
    form = rng.random(size + m) < both(np.where(decision == "none", 0.5, 0.01), np.full(m, 0.01))
    hour = np.random.default_rng(seed + 1000).choice([0, 9, 15], size + m)
    columns = {
        "clinic": pa.array(np.where(patient % 2, "odd", "even").tolist()),
        "arrival_day": day(both(arrival, rng.integers(150, 230, n)[broad])),
        "export_id": pa.array(np.char.add("e", both(arrival, np.zeros(m, int)).astype(str)).tolist()),
        "source_file": pa.array(np.char.add("f", rng.integers(0, 3, size + m).astype(str)).tolist()),
        "source_line": pa.array(np.arange(size + m)),
        "patient_id": pa.array(np.char.add("p", patient.astype(str)).tolist()),
        "consent_id": pa.array(np.char.add("c", both(of_document, n * 3 + broad).astype(str)).tolist()),
        "status": pa.array(both(status, np.full(m, "active")).tolist()),
        "declared_at": pa.array((np.datetime64(ORIGIN, "us") + declared * np.timedelta64(1, "D") + hour * np.timedelta64(1, "h")), pa.timestamp("us"),
                                mask=both(rng.random(size) < 0.05, np.zeros(m, bool))),
        "policy_uri": pa.array(np.where(form, np.array(FORMS)[np.arange(size + m) % 2], "urn:oid:other").tolist()),
        "code": pa.array(both(code, np.tile([COLLECT, STORE, USE], m // 3)).tolist()),
        "decision": pa.array(both(decision, np.full(m, "permit")).tolist()),
        "valid_from": day(both(start, np.full(m, 10))),
        "valid_to": pa.array(np.datetime64(ORIGIN, "D") + both(start + length, np.full(m, 4000)),
                             pa.date32(), mask=both(open_end, np.zeros(m, bool))),
        "period_readable": pa.array(both(readable, np.ones(m, bool))),
    }  # fmt: skip
    register = pa.table(columns).select(CONSENT_PROVISIONS.names).cast(CONSENT_PROVISIONS)
    # All rows of a version come in one file.
    files = [f"f{a}" for a in register.column("arrival_day").to_pylist()]
    register = register.set_column(CONSENT_PROVISIONS.get_field_index("source_file"), "source_file", pa.array(files))
    first, stay = rng.integers(100, 360, n), rng.choice([0, 1, 4, 15], n)
    about = {
        "clinic": pa.array(np.where(np.arange(n) % 2, "odd", "even").tolist()), "arrival_day": day(first),
        "case_id": pa.array([f"x{i}" for i in range(n)]), "patient_id": pa.array([f"p{i}" for i in range(n)]),
        "admitted_on": day(first), "discharged_on": day(np.minimum(first + stay, 364)),
    }  # fmt: skip
    cases = pa.table([about.get(f.name, pa.nulls(n, f.type)) for f in CASES], schema=CASES)
    return cases, register.cast(CONSENT_PROVISIONS)


def coming_of_age(n: int, seed: int) -> pa.Table:
    """`MAJORITY` of a fifth of the patients of `population`: some on a known day, some within a year."""
    rng = np.random.default_rng(seed)
    who = np.flatnonzero(rng.random(n) < 0.2)
    first = np.datetime64(ORIGIN, "D") + rng.integers(-200, 400, len(who))
    latest = first + np.where(rng.random(len(who)) < 0.5, 0, 364)
    columns = {
        "clinic": pa.array(np.where(who % 2, "odd", "even").tolist()), "arrival_day": pa.repeat(pa.scalar(TODAY), len(who)),
        "patient_id": pa.array([f"p{i}" for i in who]), "of_age_from": pa.array(first), "of_age_by": pa.array(latest.astype("datetime64[us]")),
    }  # fmt: skip
    return pa.table(columns).cast(MAJORITY)


FULL = pa.table({"clinic": ["odd"], "day": pa.array([FULL_DAY], pa.date32()), "export_id": ["e"]}, schema=FULL_EXPORTS)


def permitted(
    cases: pa.Table, register: pa.Table, full: pa.Table | None = FULL, majority: pa.Table | None = None
) -> set[str]:
    rows = decide(cases, register, RULE, TODAY, full, majority)
    return set(rows.filter(rows.column("permitted")).column("case_id").to_pylist())


def naive(
    rows: list[dict[str, Any]],
    first: date,
    last: date,
    full_day: date | None,
    of_age: tuple[date, datetime] | None = None,
) -> bool:
    """The rule again, day by day and document by document, from its text.

    `of_age`: the first day on which the person may be of age, and when they are for sure.
    """

    def since(r: dict[str, Any]) -> datetime:
        """When a refusal or a revocation was declared: unknown is last, and of a day alone its end."""
        at: datetime = r["declared_at"] or datetime.max
        return at.replace(hour=23, minute=59, second=59) if at.time() == time.min else at

    def signed(r: dict[str, Any]) -> datetime | None:
        """When a permit was declared: a day that has not come is no day."""
        return r["declared_at"] if r["declared_at"] and r["declared_at"].date() <= TODAY else None

    documents: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        documents[row["consent_id"]].append(row)
    grants, refusals = [], []
    for versions in documents.values():
        newest = max((r["arrival_day"], r["export_id"], r["source_file"]) for r in versions)
        now = [r for r in versions if (r["arrival_day"], r["export_id"], r["source_file"]) == newest]
        ended = [
            since(r) if r["declared_at"] else datetime.combine(r["arrival_day"], datetime.min.time())
            for r in versions
            if r["status"] in ENDED
        ]
        for r in now:
            if r["status"] != "active" or r["decision"] != "permit" or not r["period_readable"] or r["code"] == "*":
                continue
            if full_day and r["arrival_day"] < full_day:
                continue  # gone from the newest full export
            if ended and (signed(r) is None or signed(r) <= max(ended)):
                continue  # revoked, and not declared anew
            grants.append(r)
        if any(r["status"] == "active" for r in now):
            refusals += [r for r in versions if r["status"] == "active"]

    def refuses(r: dict[str, Any], code: str, day: date) -> bool:
        if r["policy_uri"] in FORMS and day >= (r["declared_at"].date() if r["declared_at"] else date.min):
            return True
        if r["decision"] in ("permit", "none"):
            return False
        if not r["period_readable"]:
            return True
        return r["code"] in (code, MODULE, "*") and r["valid_from"] <= day <= (r["valid_to"] or date.max)

    def covered(code: str, day: date) -> bool:
        for g in grants:
            if g["code"] != code or not g["valid_from"] <= day <= (g["valid_to"] or TODAY):
                continue
            declared = signed(g) or datetime.min
            if of_age and day >= of_age[0] and declared <= of_age[1]:
                continue  # a guardian signed it
            if not any(refuses(r, code, day) and since(r) >= declared for r in refusals):
                return True
        return False

    span = [first + timedelta(n) for n in range((last - first).days + 1)]
    return covered(STORE, TODAY) and covered(USE, TODAY) and all(covered(COLLECT, day) for day in span)


def by_patient(register: pa.Table) -> dict[tuple[str, str], list[dict[str, Any]]]:
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in register.to_pylist():
        rows[row["clinic"], row["patient_id"]].append(row)
    return rows


def expected_of(cases: pa.Table, register: pa.Table, full: bool = True, majority: pa.Table | None = None) -> set[str]:
    """Cases that the naive rule permits."""
    statements = by_patient(register)
    born = {
        (r["clinic"], r["patient_id"]): (r["of_age_from"], r["of_age_by"])
        for r in (majority.to_pylist() if majority else [])
    }
    return {
        c["case_id"]
        for c in cases.to_pylist()
        if naive(statements[c["clinic"], c["patient_id"]], c["admitted_on"], c["discharged_on"],
                 FULL_DAY if full and c["clinic"] == "odd" else None, born.get((c["clinic"], c["patient_id"])))
    }  # fmt: skip


@pytest.mark.parametrize("minors", [False, True])
def test_a_naive_second_rule_agrees_on_every_generated_patient(minors: bool):
    cases, register = population(PATIENTS, 1)
    majority = coming_of_age(PATIENTS, 1) if minors else None
    expected = expected_of(cases, register, majority=majority)
    assert permitted(cases, register, majority=majority) == expected
    assert 0.1 * PATIENTS < len(expected) < 0.7 * PATIENTS
    assert not minors or expected < permitted(cases, register), "coming of age only takes away"


def test_it_agrees_on_the_real_input(shared: Path):
    folder = shared / "mii-kds-testdata"
    with connect([folder]) as con:
        export = Export(Clinic(key="mii", name="MII test data", format="fhir"), TODAY, "mii:1", folder)
        tables = fhir.read(con, [export], Findings(), "Europe/Berlin")
    statements = by_patient(tables["consent_provisions"])
    expected = {
        c["case_id"] for c in tables["cases"].to_pylist()
        if naive(statements["mii", c["patient_id"]], c["admitted_on"], c["discharged_on"] or TODAY, None)
    }  # fmt: skip
    assert permitted(tables["cases"], tables["consent_provisions"], None) == expected


@pytest.mark.parametrize("seed", range(3))
def test_adding_a_deny_never_adds_a_case(seed: int):
    cases, register = population(1500, seed)
    _, others = population(1500, seed + 100)
    denies = [r | {"decision": "deny", "consent_id": f"new-{r['consent_id']}"} for r in others.to_pylist()[:3000]]
    more = pa.concat_tables([register, pa.Table.from_pylist(denies, schema=CONSENT_PROVISIONS)])
    assert permitted(cases, more) < permitted(cases, register)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_and_files_never_matters(seed: int):
    cases, register = population(1500, seed)
    rng = np.random.default_rng(seed)
    shuffled = register.take(pa.array(rng.permutation(register.num_rows)))
    lines = pa.array(rng.permutation(register.num_rows), pa.int64())
    shuffled = shuffled.set_column(CONSENT_PROVISIONS.get_field_index("source_line"), "source_line", lines)
    assert permitted(cases, shuffled.cast(CONSENT_PROVISIONS)) == permitted(cases, register)


@pytest.mark.parametrize("seed", range(3))
def test_splitting_a_consent_into_several_resources_never_matters(seed: int):
    cases, register = population(1500, seed)
    rows = register.to_pylist()
    # Only documents with one version: a later version replaces the whole of an earlier one.
    versions = defaultdict(set)
    for row in rows:
        versions[row["consent_id"]].add((row["arrival_day"], row["export_id"], row["source_file"]))
    split = [r | {"consent_id": f"{r['consent_id']}-{i}"} if len(versions[r["consent_id"]]) == 1 else r for i, r in enumerate(rows)]  # fmt: skip
    assert sum(a != b for a, b in zip(rows, split, strict=True)) > len(rows) / 3
    assert permitted(cases, pa.Table.from_pylist(split, schema=CONSENT_PROVISIONS)) == permitted(cases, register)


def replaced(table: pa.Table, column: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values).cast(table.schema)


@pytest.mark.parametrize("later", [1, 7, 60])
@pytest.mark.parametrize("seed", range(3))
def test_who_is_not_named_as_changed_is_answered_as_before(seed: int, later: int):
    """Days on which documents come, change hands and end, and minors come of age; in a week a clinic delivers in full."""
    cases, register = population(1500, seed)
    rng = np.random.default_rng(seed)
    cases = replaced(cases, "discharged_on", pc.if_else(pa.array(rng.random(1500) < 0.3), pa.scalar(None, pa.date32()), cases.column("discharged_on")))  # fmt: skip
    others = register.column("consent_id").take(pa.array(rng.integers(0, register.num_rows, register.num_rows)))
    shared = pc.if_else(pa.array(rng.random(register.num_rows) < 0.01), others, register.column("consent_id"))
    without = pc.if_else(pa.array(rng.random(register.num_rows) < 0.02), pa.scalar(None, pa.string()), shared)
    register = replaced(register, "consent_id", without)
    since, on = ORIGIN + timedelta(215), ORIGIN + timedelta(215 + later)
    majority = replaced(coming_of_age(1500, seed), "arrival_day", pa.repeat(pa.scalar(ORIGIN), len(coming_of_age(1500, seed))))  # fmt: skip
    both = {"reach_back_to_case_of_signature": seed == 1, "retrospective_module": seed == 2}
    rule, newly = RULE.model_copy(update=both), ["odd"] if later == 7 else []
    full = replaced(FULL, "day", pa.array([on if newly else FULL_DAY], pa.date32()))

    def known(day: date) -> pa.Table:
        return register.filter(pc.less_equal(register.column("arrival_day"), pa.scalar(day)))

    def answers(rows: pa.Table, day: date, full: pa.Table) -> tuple[set[str], dict[str, tuple[Any, ...]]]:
        decisions, standing = evaluate(cases, rows, rule, day, full, majority)
        kept = decisions.filter(decisions.column("permitted")).column("patient_id")
        return set(kept.to_pylist()), {r["patient_id"]: tuple(r.values()) for r in standing.to_pylist()}

    (kept, stood), (keeps, stands) = answers(known(since), since, FULL), answers(known(on), on, full)
    patients = changed(known(on), majority, since, on, newly)
    named = set(patients.column("patient_id").to_pylist())
    assert 0 < len(named) < len(stands)
    assert kept - named <= keeps and (kept & named) - keeps
    assert {p: row for p, row in stood.items() if p not in named} == {p: row for p, row in stands.items() if p not in named}  # fmt: skip
    few, few_stand = answers(known(on).filter(pa.array(among_documents_of(known(on), patients))), on, full)
    assert few & named == keeps & named
    assert {p: few_stand[p] for p in named} == {p: stands[p] for p in named}
