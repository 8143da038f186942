"""Dealt out or whole, every kernel gives the same: random rows, random numbers of shards, shared cases and documents."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from assets.consent import kernel as consent
from assets.consent.rule import FULL_EXPORTS
from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS, CANONICAL, CONSENT_DECISIONS, CONSENT_PROVISIONS, EVENTS
from assets.identity import kernel as identity
from assets.identity.persons import LINKS
from assets.identity.pseudonyms import patient_keys
from assets.lake.distribute import LOCAL, by_patient, choose, in_order, split
from assets.lake.engine import connect
from assets.lake.keys import Keyring
from assets.lake.lake import Lake
from assets.lake.spark import EngineMissing
from assets.privacy import kernel as privacy
from assets.quality import kernel as quality

SYSTEM = "2.16.840.1.113883.3.1937.777.24.5.3"
ORIGIN = date(2025, 1, 6)
CLINICS = ("klinik-nord", "hospital-sued", "praxisnetz")


def columns(rng: np.random.Generator, schema: pa.Schema, n: int, **given: Any) -> pa.Table:
    """`n` rows of `schema`: provenance made up, columns that are not `given` null."""
    own = {
        "clinic": rng.choice(CLINICS, n), "arrival_day": [ORIGIN + timedelta(int(d)) for d in rng.integers(0, 5, n)],
        "export_id": [f"x{d}" for d in rng.integers(0, 3, n)], "source_file": rng.choice(["a", "b"], n),
        "source_line": rng.permutation(n) + 1,
    }  # fmt: skip
    made = own | given
    return pa.table([pa.array(made.get(f.name, [None] * n), f.type) for f in schema], schema=schema)


def some(rng: np.random.Generator, values: Any, n: int, missing: float = 0.03) -> list[Any]:
    picked = rng.choice(np.array(values, dtype=object), n)
    return [None if gone else v for v, gone in zip(picked, rng.random(n) < missing, strict=True)]


def records(seed: int, cases: int = 160) -> dict[str, pa.Table]:
    """Dirty canonical tables in which some patients share a case, some rows lack an id, some codes are wrong."""
    rng = np.random.default_rng(seed)
    people = [f"p{n}" for n in range(80)]
    owner = [people[int(n)] for n in rng.integers(0, 80, cases)]
    ids = [f"c{n}" for n in range(cases)]
    for here, there in rng.integers(0, cases, (6, 2)):  # a case of two patients
        ids[here] = ids[there]
    admitted = [ORIGIN + timedelta(int(d)) for d in rng.integers(-20, 8, cases)]
    place = dict(zip(ids, owner, strict=True))
    table = columns(
        rng, CANONICAL["cases"], cases, case_id=[None if rng.random() < 0.02 else i for i in ids],
        patient_id=[None if rng.random() < 0.02 else o for o in owner],
        status=some(rng, ["finished", "in-progress", "cancelled", "odd"], cases),
        care=some(rng, ["inpatient", "emergency_visit", "other"], cases), admission_type=some(rng, ["emergency", "other"], cases),
        admitted_on=admitted, discharged_on=[a + timedelta(int(d)) for a, d in zip(admitted, rng.integers(-1, 9, cases), strict=True)],
        died=[False] * cases, age_years=some(rng, [3, 44, 80, 200], cases, 0.5),
    )  # fmt: skip
    n = 240
    persons = columns(
        rng, CANONICAL["persons"], n, patient_id=some(rng, people, n), birth_year=some(rng, [1800, 1950, 1980, 2020], n),
        insured_id=some(rng, ["A123456780", "B000000005", "nonsense"], n, 0.5), sex=some(rng, ["m", "w", "x"], n),
        postal_code=some(rng, ["64283", "64285", "99999", "6"], n),
    )  # fmt: skip
    theirs = [str(c) for c in rng.choice(ids, n)]
    diagnoses = columns(
        rng, CANONICAL["diagnoses"], n, case_id=[None if rng.random() < 0.02 else c for c in theirs],
        patient_id=[place[c] if rng.random() < 0.95 else None for c in theirs],
        icd_code=some(rng, ["I21.0", "J18.9", "??"], n), role=some(rng, ["principal", "secondary"], n),
    )  # fmt: skip
    procedures = columns(
        rng, CANONICAL["procedures"], n, case_id=theirs, patient_id=[place[c] for c in theirs],
        ops_code=some(rng, ["5-470.1", "odd"], n),
    )  # fmt: skip
    return {"cases": table, "persons": persons, "diagnoses": diagnoses, "procedures": procedures}


def register(seed: int, n: int = 200) -> pa.Table:
    """Versions of documents with three provisions each; some change their patient from version to version."""
    rng = np.random.default_rng(seed + 1000)
    document = np.repeat(rng.integers(0, 150, n), 3)
    patient = np.repeat(
        [f"p{int(d) % 80}" if rng.random() < 0.95 else f"p{int(rng.integers(0, 80))}" for d in document[::3]], 3
    )
    starts = [ORIGIN + timedelta(int(d)) for d in np.repeat(rng.integers(-90, 5, n), 3)]
    return columns(
        rng, CONSENT_PROVISIONS, 3 * n, clinic=[CLINICS[int(d) % 3] for d in document], patient_id=patient,
        arrival_day=[ORIGIN + timedelta(int(d)) for d in np.repeat(rng.integers(0, 5, n), 3)],
        export_id=["x"] * 3 * n, source_file=["a"] * 3 * n, source_line=np.repeat(np.arange(n), 3) + 1,
        consent_id=[f"d{d}" for d in document], status=np.repeat(some(rng, ["active"] * 9 + ["inactive"], n), 3),
        declared_at=[datetime(2024, 12, 1) + timedelta(hours=int(h)) for h in np.repeat(rng.integers(0, 900, n), 3)],
        code=[f"{SYSTEM}.{c}" for c in (6, 7, 8)] * n, decision=some(rng, ["permit"] * 15 + ["deny"], 3 * n),
        valid_from=starts, valid_to=[s + timedelta(int(d)) for s, d in zip(starts, rng.integers(60, 900, 3 * n), strict=True)],
        period_readable=[True] * 3 * n,
    )  # fmt: skip


CASES = [(seed, number) for seed, number in enumerate((2, 3, 5, 8, 13, 40))]


@pytest.mark.parametrize(("seed", "number"), CASES)
def test_consent(seed: int, number: int, city: City, shards: Callable[[int], Any]):
    cases, provisions, day = records(seed)["cases"], register(seed), ORIGIN + timedelta(5)
    full = pa.table(
        {"clinic": ["klinik-nord"], "day": [ORIGIN + timedelta(2)], "export_id": ["e"]}, schema=FULL_EXPORTS
    )
    whole = consent.evaluate(LOCAL, cases, provisions, city.consent, day, full)
    engine = shards(number)
    dealt = consent.evaluate(engine, cases, provisions, city.consent, day, full)
    assert engine.used and whole[0].equals(dealt[0]) and whole[1].equals(dealt[1])
    assert 0 < sum(whole[1].column("ok").to_pylist()) < whole[1].num_rows


@pytest.mark.parametrize(("seed", "number"), [(0, 3), (1, 8)])
def test_quality(seed: int, number: int, city: City, shards: Callable[[int], Any]):
    tables = records(seed)
    whole, dealt = quality.run(LOCAL, dict(tables), city), quality.run(shards(number), dict(tables), city)
    assert whole.rule_results == dealt.rule_results
    assert whole.findings.equals(dealt.findings) and whole.findings.num_rows
    for name in whole.valid:
        assert whole.quarantined[name].equals(dealt.quarantined[name]), name
        assert in_order(whole.valid[name]).equals(in_order(dealt.valid[name])), name
    assert whole.valid["cases"].num_rows and whole.quarantined["diagnoses"].num_rows


@pytest.mark.parametrize(("seed", "number"), CASES)
def test_pseudonyms(seed: int, number: int, city: City, lake: Lake, shards: Callable[[int], Any]):
    valid = records(seed)
    decisions = valid["cases"].select(CONSENT_DECISIONS.names[:7])
    for name, value in (
        ("permitted", pa.scalar(True)),
        ("reason", pa.scalar("permitted")),
        ("evaluated_on", pa.scalar(ORIGIN)),
    ):
        decisions = decisions.append_column(name, pa.repeat(value, decisions.num_rows))
    people = patient_keys(valid["cases"], lake.keys).column("key").slice(0, 30)
    known = pa.table(
        [pa.array([ORIGIN] * len(people)), people, pa.array([f"{n % 7:032x}" for n in range(len(people))])],
        schema=LINKS,
    )
    arguments = (valid, decisions, known, city, lake.keys)
    whole, dealt = (identity.pseudonymise(engine, *arguments) for engine in (LOCAL, shards(number)))
    for name, table in whole.items():
        assert table.num_rows and table.equals(dealt[name]), name
    linked = set(known.column("person_key").to_pylist()) & set(whole["cases"].column("person_key").to_pylist())
    assert linked, "links that were known are used"


@pytest.mark.parametrize(("seed", "number"), CASES)
def test_bounding(seed: int, number: int, city: City, shards: Callable[[int], Any]):
    rng = np.random.default_rng(seed)
    n = 600
    rows = pa.table(
        {
            "decided_on": [city.budget.epoch + timedelta(int(d)) for d in rng.integers(300, 500, n)],
            "person_key": [f"p{int(k)}" for k in rng.integers(0, 60, n)], "case_key": [f"c{k}" for k in range(n)],
            "clinic": rng.choice(CLINICS, n),
            "event_day": [city.budget.epoch + timedelta(int(d)) for d in rng.integers(0, 500, n)],
        },
        schema=pa.schema([BOUNDING_DECISIONS.field(c) for c in ("decided_on", "person_key", "case_key", "clinic", "event_day")]),
    )  # fmt: skip
    earlier = privacy.decide(
        LOCAL, in_order(rows.slice(0, 200)), BOUNDING_DECISIONS.empty_table(), city.caps, city.budget.epoch
    )
    new = in_order(rows.slice(200))
    whole, dealt = (privacy.decide(e, new, earlier, city.caps, city.budget.epoch) for e in (LOCAL, shards(number)))
    assert whole.equals(dealt) and 0 < sum(whole.column("kept").to_pylist()) < whole.num_rows


@pytest.mark.parametrize(("seed", "number"), CASES)
def test_counts_add_up(
    seed: int, number: int, city: City, shards: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(privacy, "COUNTED_HERE", 0)
    table = next(t for t in city.plan.tables if t.axes and not t.needs_outcome)
    values = {axis: rng.choice(city.categories(axis), 500) for axis in ("care", *table.axes)}
    events = pa.table({"case_key": [f"c{k}" for k in range(500)], **values})
    engine = shards(number)
    dealt = privacy.count(engine, events, table, city)
    assert engine.used and dealt.sum() == 500
    assert np.array_equal(dealt, privacy.count(LOCAL, events, table, city))


@pytest.mark.parametrize("seed", range(5))
def test_no_two_shards_share_a_patient_or_a_case(seed: int):
    tables = records(seed)
    parts = split(tables, by_patient(tables, "case_id"), 7)
    assert sum(p["cases"].num_rows for p in parts) == tables["cases"].num_rows and len(parts) > 1
    for column in ("patient_id", "case_id"):
        seen: set[tuple[str, str | None]] = set()
        for part in parts:
            named = [t for t in part.values() if column in t.column_names]
            here = {
                pair
                for t in named
                for pair in zip(t.column("clinic").to_pylist(), t.column(column).to_pylist(), strict=True)
            }
            assert not seen & here
            seen |= here


def test_an_empty_run_is_one_empty_shard(city: City, shards: Callable[[int], Any]):
    empty = {n: CANONICAL[n].empty_table() for n in ("cases", "persons", "diagnoses", "procedures")}
    assert quality.run(shards(4), empty, city).findings.num_rows == 0
    assert privacy.decide(
        shards(4), BOUNDING_DECISIONS.empty_table(), BOUNDING_DECISIONS.empty_table(), city.caps, city.budget.epoch
    ).num_rows == 0  # fmt: skip


def test_the_environment_goes_before_the_city_file(monkeypatch: pytest.MonkeyPatch, lake: Lake):
    monkeypatch.setenv("DIGITALSTADT_ENGINE", "duckdb")
    assert choose("spark://nowhere:7077", lake.confidential) is LOCAL


def test_spark_without_its_extra_is_said_clearly(monkeypatch: pytest.MonkeyPatch, lake: Lake):
    monkeypatch.setenv("DIGITALSTADT_ENGINE", "local[1]")
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "py4j", None)
    monkeypatch.setitem(sys.modules, "py4j.protocol", None)
    with pytest.raises(EngineMissing, match=r"needs the extra \[spark\]"):
        choose("duckdb", lake.confidential)


@pytest.mark.parametrize(
    "engine", ["duckdb", "spark", "local[4]", "spark://master:7077", "k8s://https://host:6443", "yarn"]
)
def test_the_city_file_may_name_an_engine(engine: str, city: City):
    assert City.model_validate(city.model_dump() | {"engine": engine}).engine == engine


def test_any_other_engine_is_refused(city: City):
    with pytest.raises(ValueError, match="engine"):
        City.model_validate(city.model_dump() | {"engine": "spark://user:secret@master"})  # pragma: allowlist secret


def test_a_keyring_does_not_travel(lake: Lake):
    import copy

    with pytest.raises(TypeError, match="stays in its process"):
        copy.deepcopy(lake.keys)
    assert isinstance(lake.keys, Keyring) and lake.keys.folder and EVENTS


@pytest.mark.parametrize("first", [(), ("day", "text")])
def test_rows_are_in_the_order_of_the_engine(first: tuple[str, ...]):
    """Else tables that Spark's shards put together, and those of another version, would differ."""
    dice = np.random.default_rng(1)
    values = {
        "same": pa.array(["x"] * 500), "nothing": pa.nulls(500, pa.string()), "yes": pa.array(dice.random(500) < 0.5),
        "text": pa.array([[None, "", "a", "Z", "ä", "a b"][n] for n in dice.integers(0, 6, 500)]),
        "day": pa.array([None if n == 5 else date(2025, 1, 1 + n) for n in dice.integers(0, 6, 500)]),
        "n": pa.array(dice.integers(-3, 3, 500)),
    }  # fmt: skip
    rows = pa.concat_tables([(whole := pa.table(values)).slice(0, 200), whole.slice(200)])
    names = ", ".join([*first, *(n for n in rows.column_names if n not in first)])
    with connect() as con:
        con.register("rows", rows)
        expected = con.execute(f"SELECT * FROM rows ORDER BY {names}").to_arrow_table().cast(rows.schema)
    assert in_order(rows, first).equals(expected)
    assert in_order(expected, first) is expected  # nothing is copied
    for n in range(0, 499, 7):
        swapped = expected.take(pa.array([*range(n), n + 1, n, *range(n + 2, 500)]))
        assert in_order(swapped, first).equals(expected), n
