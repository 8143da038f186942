"""Every rule catches its row, GX and DuckDB count alike, certificates break with the data, nothing leaks."""

import gc
import json
import weakref
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.contract.city import City, load_city
from assets.contract.schemas import CANONICAL, FINDINGS
from assets.lake.keys import Keyring
from assets.lake.lake import Lake
from assets.quality import certificate as hashing
from assets.quality import validate as module
from assets.quality.certificate import (
    CertificateMismatch,
    certificate,
    rules_sha256,
    sha256_by_day,
    table_sha256,
    verify_certificate,
)
from assets.quality.report import report_markdown
from assets.quality.rules import EXEMPT, FAMILIES, TABLES, predicate, rules
from assets.quality.suite import SuiteFailed, run_gx
from assets.quality.validate import QualityDisagreement, validate

DAY = date(2025, 3, 10)
WATCHED = pa.proxy_memory_pool(pa.default_memory_pool())  # of the module: it must outlive whatever it gave memory to
CANARY = "CANARY-4711"
PROVENANCE = {"clinic": "c1", "arrival_day": DAY, "export_id": "e1"}
CLEAN: dict[str, dict[str, Any]] = {
    "cases": {
        "case_id": "f", "patient_id": "p", "status": "finished", "care": "inpatient", "admission_type": "other",
        "admission_cause": "E", "admission_reason": "0101", "admitted_on": DAY - timedelta(3), "discharged_on": DAY,
        "discharge_reason": "01", "died": False,
    },
    "persons": {"patient_id": "p", "birth_year": 1980, "sex": "w", "postal_code": "64283"},
    "diagnoses": {"case_id": "f", "patient_id": "p", "icd_code": "I21.0", "role": "principal"},
    "procedures": {"case_id": "f", "patient_id": "p", "ops_code": "8-837.00", "performed_on": DAY},
}  # fmt: skip


def tables(**rows: list[dict[str, Any]]) -> dict[str, pa.Table]:
    """Two clean units (f/p and g/q); `rows` replaces what is told of the first row of a table, or adds rows."""
    out = {}
    for name in TABLES:
        first = {**CLEAN[name], "source_line": 2}
        second = {**first, "source_line": 3, "patient_id": "q"} | ({} if name == "persons" else {"case_id": "g"})
        changes = rows.get(name, [{}])
        full = [first | changes[0], second, *({**first, "source_line": 4 + i} | c for i, c in enumerate(changes[1:]))]
        full = [{**PROVENANCE, "source_file": f"{name}.csv"} | row for row in full]
        out[name] = pa.Table.from_pylist(full, schema=CANONICAL[name])
    return out


@pytest.fixture(scope="module")
def city() -> City:
    return load_city()


BREAKS: dict[str, dict[str, Any]] = {
    "persons.patient_id_missing": {"patient_id": None},
    "cases.case_id_missing": {"case_id": None},
    "cases.patient_id_missing": {"patient_id": None},
    "diagnoses.case_id_missing": {"case_id": None},
    "diagnoses.patient_id_missing": {"patient_id": None},
    "procedures.case_id_missing": {"case_id": None},
    "procedures.patient_id_missing": {"patient_id": None},
    "cases.person_missing": {"patient_id": CANARY},
    "cases.status_unlisted": {"status": CANARY},
    "cases.care_unlisted": {"care": CANARY},
    "cases.admission_type_unlisted": {"admission_type": None},
    "cases.admission_cause_unlisted": {"admission_cause": CANARY},
    "cases.admission_reason_malformed": {"admission_reason": CANARY},
    "cases.discharge_reason_malformed": {"discharge_reason": CANARY},
    "persons.sex_unlisted": {"sex": None},
    "persons.postal_code_malformed": {"postal_code": CANARY},
    "diagnoses.icd_code_malformed": {"icd_code": CANARY},
    "procedures.ops_code_malformed": {"ops_code": CANARY},
    "cases.admitted_on_missing": {"admitted_on": None},
    "cases.admitted_on_too_early": {"admitted_on": date(1899, 12, 31)},
    "cases.admitted_on_in_future": {"admitted_on": DAY + timedelta(1), "discharged_on": None},
    "cases.discharged_before_admission": {"discharged_on": DAY - timedelta(4)},
    "cases.discharged_on_missing": {"discharged_on": None},
    "cases.age_unknown": {},  # needs a person, see below
    "cases.age_impossible": {"age_years": 121},
    "cases.age_contradicts_birth_year": {},  # needs both, see below
    "persons.born_in_future": {"birth_year": DAY.year + 1},
}


def test_every_rule_has_a_row_that_breaks_it(city: City):
    declared = rules(city)
    assert set(BREAKS) == {r.id for r in declared} and len(declared) == len(BREAKS)
    assert {r.family for r in declared} == set(FAMILIES)


@pytest.mark.parametrize("rule_id", BREAKS)
def test_a_breaking_row_is_caught_with_rule_and_line(rule_id: str, city: City):
    rule = next(r for r in rules(city) if r.id == rule_id)
    rows = {
        "cases.age_unknown": {"persons": [{"birth_year": None}]},
        "cases.age_contradicts_birth_year": {"persons": [{"birth_year": DAY.year - 40}], "cases": [{"age_years": 38}]},
    }
    given_tables = tables(**rows.get(rule_id, {rule.table: [BREAKS[rule_id]]}))
    result = validate(dict(given_tables), city)
    outcome = next(r for r in result.rule_results if r.rule == rule_id)
    assert (outcome.failed, outcome.checked) == (1, 2)
    found = [f for f in result.findings.to_pylist() if f["rule"] == rule_id and f["table_name"] == rule.table]
    assert [(f["source_line"], f["column_name"], f["source_file"]) for f in found] == [
        (2, rule.columns[0], f"{rule.table}.csv")
    ]
    if rule.severity == "quarantine":
        assert found[0]["severity"] == "quarantined"
        assert result.valid[rule.table].column("source_line").to_pylist() == [3]
    else:
        assert found[0]["severity"] == "info" and result.valid[rule.table].num_rows == 2
    for name in TABLES:
        assert result.valid[name].num_rows + result.quarantined[name].num_rows == given_tables[name].num_rows
        assert "g" not in result.quarantined[name].to_pydict().get("case_id", [])
    said = json.dumps([result.findings.to_pylist(), [vars(r) for r in result.rule_results]], default=str)
    assert CANARY not in said + report_markdown(result.rule_results, {"c1": 2})


CLEAN_VARIANTS: list[dict[str, list[dict[str, Any]]]] = [
    {},
    {"cases": [{"discharged_on": None, "status": "in-progress", "admission_cause": None, "admission_reason": None,
                "discharge_reason": None}]},
    {"cases": [{"care": "other", "admission_cause": "B"}]},
    {"cases": [{"admitted_on": DAY, "discharged_on": DAY, "age_years": 0}], "persons": [{"birth_year": DAY.year}]},
    {"cases": [{"admitted_on": date(1900, 1, 1), "discharged_on": None, "status": "in-progress", "age_years": 120}],
     "persons": [{"birth_year": 1780}]},
    {"cases": [{"age_years": 44}]},
    {"cases": [{"age_years": 45}]},
    {"persons": [{"postal_code": "64"}]},
    {"persons": [{"postal_code": None, "sex": "other", "birth_year": DAY.year - 120}]},
    {"cases": [{"age_years": 40}], "persons": [{"birth_year": None}]},
    {"cases": [{"status": "planned", "admitted_on": DAY + timedelta(30), "discharged_on": None}]},
    {"cases": [{"status": "cancelled", "admitted_on": None}]},
    {"cases": [{"status": "entered-in-error", "care": None, "patient_id": "nobody", "age_years": 300}]},
]  # fmt: skip


@pytest.mark.parametrize("rows", CLEAN_VARIANTS)
def test_clean_rows_pass_unchanged(rows: dict[str, list[dict[str, Any]]], city: City):
    given_tables = tables(**rows)
    result = validate(dict(given_tables), city)
    assert result.findings.num_rows == 0 and result.findings.schema.equals(FINDINGS)
    for name in TABLES:
        assert result.valid[name].equals(given_tables[name])
        assert result.valid[name].schema.equals(CANONICAL[name], check_metadata=True)
        assert result.quarantined[name].column_names == [*CANONICAL[name].names, "rule"]


def test_empty_tables_pass(city: City):
    result = validate({name: CANONICAL[name].empty_table() for name in TABLES}, city)
    assert all(t.num_rows == 0 for t in result.valid.values()) and not any(r.failed for r in result.rule_results)


def test_a_failing_person_takes_the_cases_of_that_day_and_their_codes(city: City):
    retracted = {"case_id": "r", "status": "entered-in-error"}
    given_tables = tables(
        persons=[{"sex": None}, {"arrival_day": DAY + timedelta(1)}],
        cases=[{}, retracted, {"case_id": "h", "arrival_day": DAY + timedelta(1)}],
    )
    result = validate(given_tables, city)
    assert result.valid["cases"].column("case_id").to_pylist() == ["g", "r", "h"]
    for name in TABLES:
        assert result.quarantined[name].column("rule").to_pylist() == ["persons.sex_unlisted"]
    follows = {(f["table_name"], f["rule"], f["column_name"]) for f in result.findings.to_pylist()}
    assert follows == {(n, "persons.sex_unlisted", "sex" if n == "persons" else None) for n in TABLES}
    assert sum(r.failed for r in result.rule_results) == 1
    assert not any(r.failed for r in validate(result.valid, city).rule_results)  # what is valid stays valid


def test_a_failing_code_row_goes_alone_and_a_row_is_quarantined_once(city: City):
    bad = {"icd_code": "x", "patient_id": None}
    result = validate(tables(diagnoses=[bad]), city)
    assert result.quarantined["diagnoses"].column("rule").to_pylist() == ["diagnoses.patient_id_missing"]
    assert result.findings.num_rows == 2
    assert [result.valid[n].num_rows for n in TABLES] == [2, 2, 1, 2]


def test_retractions_are_exempt_and_a_missing_status_is_not():
    assert all(s in EXEMPT for s in ("planned", "cancelled", "entered-in-error")) and "finished" not in EXEMPT


text = st.one_of(st.none(), st.sampled_from(["", "m", "w", "I21.0", "I21\n", "I21.0\n", "64283", "64283\n", "0101", "01\n",
                                             "E", "finished", "planned", "entered-in-error", "inpatient", "other", "8-837",
                                             "'", "NaN", "None", "٣٣٣٣٣", "p", "f"]), st.text(max_size=6))  # fmt: skip
day = st.one_of(st.none(), st.dates(date(1890, 1, 1), date(2030, 1, 1)), st.just(DAY))


def frames(name: str) -> st.SearchStrategy[pa.Table]:
    kinds = {pa.string(): text, pa.date32(): day, pa.bool_(): st.none() | st.booleans(),
             pa.int16(): st.none() | st.integers(-300, 3000), pa.int8(): st.none() | st.integers(-1, 40),
             pa.int64(): st.integers(1, 9)}  # fmt: skip
    row = st.fixed_dictionaries({f.name: st.just("c") if f.name == "clinic" else st.just(DAY) if f.name == "arrival_day"
                                 else kinds[f.type] for f in CANONICAL[name]})  # fmt: skip
    return st.lists(row, max_size=20).map(lambda rows: pa.Table.from_pylist(rows, schema=CANONICAL[name]))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.fixed_dictionaries({name: frames(name) for name in TABLES}))
def test_gx_and_duckdb_agree_and_no_row_is_lost(given_tables: dict[str, pa.Table]):
    result = validate(dict(given_tables), load_city())  # raises QualityDisagreement otherwise
    for name in TABLES:
        assert result.valid[name].num_rows + result.quarantined[name].num_rows == given_tables[name].num_rows


@settings(deadline=None, max_examples=5, suppress_health_check=list(HealthCheck))
@given(st.fixed_dictionaries({name: frames(name) for name in TABLES}))
def test_judging_distinct_values_finds_what_judging_rows_finds(given_tables: dict[str, pa.Table]):
    by_row = validate(dict(given_tables), load_city())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NATIVE_ROWS", -1)
        by_value = validate(dict(given_tables), load_city())
    assert by_value == by_row


def test_a_case_that_follows_two_failing_rows_is_named_after_what_failed_itself(city: City):
    # Both have the case's id: the first follows its person (an early rule), the second fails a later rule itself.
    given_tables = tables(persons=[{"sex": CANARY}], cases=[{}, {"patient_id": "q", "admitted_on": None}])
    followers = validate(given_tables, city).quarantined["diagnoses"]
    assert followers.filter(pc.equal(followers.column("case_id"), "f")).column("rule").to_pylist() == [
        "cases.admitted_on_missing"
    ]


def test_cases_are_never_built_into_a_hash_table_however_many_they_are(city: City, monkeypatch: pytest.MonkeyPatch):
    plans: list[str] = []
    find = module._judge

    def explained(con: Any, table: str, own: Any, columns: Any) -> None:
        plans.append(con.execute(f"EXPLAIN SELECT * FROM ({module.PREPARED[table]})").fetchall()[0][1])
        find(con, table, own, columns)

    monkeypatch.setattr(module, "_judge", explained)
    validate(tables(cases=[{}] * 3000, persons=[{"patient_id": str(n)} for n in range(3000)]), city)
    assert "Join Type: LEFT" in plans[0] and "RIGHT" not in plans[0]


@pytest.mark.parametrize("lie", [0, 2])
def test_gx_must_agree_on_distinct_values_too(city: City, monkeypatch: pytest.MonkeyPatch, lie: int):
    monkeypatch.setattr(module, "NATIVE_ROWS", -1)
    monkeypatch.setattr(module, "run_gx", lambda table, frame, declared: {r.id: lie for r in declared})
    with pytest.raises(QualityDisagreement, match=rf"cases\.care_unlisted \(DuckDB 1, GX {lie}\)") as caught:
        validate(tables(cases=[{"care": CANARY}, {"care": CANARY, "case_id": "h"}]), city)
    assert CANARY not in str(caught.value)


def test_extreme_days_are_caught_not_raised(city: City):
    broken = tables(cases=[{"admitted_on": None}])
    column = pa.array([2**31 - 1, 20000], pa.int32()).cast(pa.date32())
    cases = broken["cases"].set_column(
        CANONICAL["cases"].get_field_index("admitted_on"), CANONICAL["cases"].field("admitted_on"), column
    )
    result = validate({**broken, "cases": cases}, city)
    assert result.quarantined["cases"].column("rule").to_pylist() == ["cases.admitted_on_missing"]


def test_gx_is_asked_about_tables_with_rows_only(city: City, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def agreeing(table: str, _frame: Any, declared: Any) -> dict[str, int]:
        asked.append(table)
        return {rule.id: 0 for rule in declared}

    monkeypatch.setattr(module, "run_gx", agreeing)
    given = tables()
    for empty in ("diagnoses", "procedures"):
        given[empty] = given[empty].slice(0, 0)
    result = validate(given, city)
    assert asked == ["cases", "persons"]
    assert {r.table for r in result.rule_results} == set(TABLES), "what holds of no row is told all the same"


def test_disagreement_and_gx_errors_fail_closed_without_values(city: City, monkeypatch: pytest.MonkeyPatch):
    broken = tables(cases=[{"care": CANARY}])
    monkeypatch.setattr(module, "run_gx", lambda table, frame, declared: {r.id: 0 for r in declared})
    with pytest.raises(QualityDisagreement, match=r"cases\.care_unlisted \(DuckDB 1, GX 0\)") as caught:
        validate(broken, city)
    assert CANARY not in str(caught.value)
    frame = pa.table({"_sex": [CANARY]}).to_pandas()
    with pytest.raises(SuiteFailed) as failed:
        run_gx("persons", frame, rules(city))
    assert CANARY not in str(failed.value)


def test_the_suite_is_silent(city: City, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    validate(tables(cases=[{"care": CANARY}]), city)
    out, err = capfd.readouterr()
    assert out == "" and err == "" and CANARY not in caplog.text


def test_gx_keeps_no_row_after_a_run(city: City):
    frame = pa.table(
        {"_sex": ["w"], "patient_id": ["p"], "_postal_code": ["64283"], "_years_since_birth": [40]}
    ).to_pandas()
    assert set(run_gx("persons", frame, rules(city)).values()) == {0}
    kept = weakref.ref(frame)
    del frame
    gc.collect()
    assert kept() is None


def test_an_expectation_without_predicate_is_refused():
    with pytest.raises(ValueError, match="no predicate"):
        predicate("expect_column_values_to_be_unique", {"column": "a"})


def test_certificate_holds_for_the_data_in_any_order_and_breaks_when_a_row_is_altered(city: City, lake: Lake):
    result = validate(tables(cases=[{"care": CANARY}]), city)
    cert = json.loads(json.dumps(certificate(result.valid, result.rule_results, city, lake.keys)))
    assert cert["rules"]["cases.care_unlisted"]["failed"] == 1 and CANARY not in json.dumps(cert)
    verify_certificate(cert, result.valid, lake.keys)
    shuffled = {n: pa.concat_tables([t.slice(1), t.slice(0, 1)]) for n, t in result.valid.items()}
    verify_certificate(cert, shuffled, lake.keys)
    persons = result.valid["persons"].to_pylist()
    persons[0]["sex"] = "m"
    altered = {**result.valid, "persons": pa.Table.from_pylist(persons, schema=CANONICAL["persons"])}
    with pytest.raises(CertificateMismatch, match=r"certified: persons$"):
        verify_certificate(cert, altered, lake.keys)
    with pytest.raises(CertificateMismatch, match="persons"):
        verify_certificate(cert, {**result.valid, "persons": result.valid["persons"].slice(1)}, lake.keys)
    with pytest.raises(CertificateMismatch, match="not given: cases"):
        verify_certificate(cert, {n: t for n, t in result.valid.items() if n != "cases"}, lake.keys)
    cert["rules"]["cases.care_unlisted"]["failed"] = 0
    with pytest.raises(CertificateMismatch, match="altered"):
        verify_certificate(cert, result.valid, lake.keys)


def test_whoever_guesses_the_one_row_of_a_day_cannot_try_it_on_the_certificate(city: City, lake: Lake):
    """It stands in the clear, and its own hash in Dagster and among file names."""
    valid = validate(tables(), city).valid
    cert = certificate(valid, [], city, lake.keys)
    assert not {about["sha256"] for about in cert["tables"].values()} & {table_sha256(t) for t in valid.values()}
    stranger = Keyring(bytes(range(32)), lake.keys.encryption)
    assert certificate(valid, [], city, stranger)["sha256"] != cert["sha256"]
    with pytest.raises(CertificateMismatch, match="not the data"):
        verify_certificate(cert, valid, stranger)


def test_the_hash_tells_null_from_empty_and_ignores_what_lies_under_a_null():
    schema = pa.schema([("a", pa.string()), ("b", pa.int16())])
    null = pa.table({"a": [None], "b": [None]}, schema=schema)
    assert table_sha256(null) != table_sha256(pa.table({"a": [""], "b": [0]}, schema=schema))
    dirty = pa.Array.from_buffers(pa.int16(), 1, [pa.py_buffer(b"\x00"), pa.py_buffer(b"\x07\x00")])
    assert table_sha256(pa.table([null.column("a"), dirty], schema=schema)) == table_sha256(null)


def test_the_version_of_the_rules_changes_with_a_rule(city: City):
    assert rules_sha256(rules(city)) != rules_sha256(rules(city)[1:])


def test_a_large_day_loses_nothing(city: City):
    import duckdb

    n = 120_000
    con = duckdb.connect()

    def made(name: str, columns: str, rows: int) -> pa.Table:
        sql = f"SELECT 'c1' AS clinic, DATE '2025-03-10' AS arrival_day, 'e' AS export_id, 'f' AS source_file, i AS source_line, {columns} FROM range({rows}) t(i)"
        made = con.execute(sql).to_arrow_table()
        return pa.table({f.name: made.column(f.name).cast(f.type) if f.name in made.column_names else pa.nulls(rows, f.type)
                         for f in CANONICAL[name]}, schema=CANONICAL[name])  # fmt: skip

    big = {
        "cases": made("cases", "'f' || i AS case_id, 'p' || i AS patient_id, 'finished' AS status, CASE WHEN i % 100 = 0 THEN 'x' ELSE 'inpatient' END AS care, 'other' AS admission_type, '0101' AS admission_reason, DATE '2025-03-01' AS admitted_on, DATE '2025-03-09' AS discharged_on", n),
        "persons": made("persons", "'p' || i AS patient_id, 1920 + i % 100 AS birth_year, 'w' AS sex, '64283' AS postal_code", n),
        "diagnoses": made("diagnoses", f"'f' || (i % {n}) AS case_id, 'p' || (i % {n}) AS patient_id, 'I21.0' AS icd_code", 250_000),
        "procedures": made("procedures", f"'f' || (i % {n}) AS case_id, 'p' || (i % {n}) AS patient_id, '8-837.00' AS ops_code", 50_000),
    }  # fmt: skip
    result = validate(big, city)
    assert result.valid["cases"].num_rows == n - n // 100


def test_what_is_validated_is_given_up_and_never_held_twice(city: City, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "NATIVE_ROWS", -1)  # as of millions of rows
    rows = [{"case_id": f"{n}", "status": "?" if n % 50 == 0 else "finished"} for n in range(10_000)]
    made = {**tables(cases=rows), "deletions": CANONICAL["deletions"].empty_table()}
    usual, watched = pa.default_memory_pool(), WATCHED
    pa.set_memory_pool(watched)
    try:
        given_tables = {name: table.take(pa.array(range(table.num_rows), pa.int64())) for name, table in made.items()}
        before = watched.bytes_allocated()
        result = validate(given_tables, city)
        after, peak = watched.bytes_allocated(), watched.max_memory()
    finally:
        pa.set_memory_pool(usual)
    assert list(given_tables) == ["deletions"] and result.quarantined["cases"].num_rows == 200
    assert after < 1.1 * before and peak < 1.5 * before, (before, after, peak)


def test_a_hash_in_parts_ignores_the_order_and_sees_every_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hashing, "HASHED_ROWS", 7)
    rows = [{"a": f"x{n % 5}" if n % 3 else None, "b": n} for n in range(20)]
    schema = pa.schema([("a", pa.string()), ("b", pa.int32())])
    whole = table_sha256(pa.Table.from_pylist(rows, schema=schema))
    assert table_sha256(pa.Table.from_pylist(rows[::-1], schema=schema)) == whole
    for n in range(20):
        altered = [*rows[:n], {**rows[n], "a": "y"}, *rows[n + 1 :]]
        assert table_sha256(pa.Table.from_pylist(altered, schema=schema)) != whole
    assert len({table_sha256(pa.Table.from_pylist(rows[:n], schema=schema)) for n in range(20)}) == 20


@pytest.mark.parametrize("sorted_rows", [1, 25, 1000])
def test_hashing_all_days_at_once_gives_the_hash_of_each_day(monkeypatch: pytest.MonkeyPatch, sorted_rows: int):
    monkeypatch.setattr(hashing, "SORTED_ROWS", sorted_rows)
    days = [DAY + timedelta(n) for n in (2, 0, 1)]
    rows = [
        {"day": days[n % 2], "a": None if n % 3 else f"x{n % 5}", "b": n % 4 or None, "c": n % 7 < 3} for n in range(40)
    ]
    table = pa.Table.from_pylist(
        rows, schema=pa.schema([("a", pa.string()), ("day", pa.date32()), ("b", pa.int32()), ("c", pa.bool_())])
    )
    found = sha256_by_day(table, "day", days)
    for day in days:
        own = table.filter(pc.equal(table.column("day"), pa.scalar(day)))
        assert found[day] == (own.num_rows, table_sha256(own))
    assert found[days[2]][0] == 0 and len({sha256 for _, sha256 in found.values()}) == 3
