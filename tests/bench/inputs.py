"""Inputs of the benches, synthetic, made once below `.bench/input/` from a seed and kept."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from measure import BENCH, note

from assets.contract.city import City, load_city
from assets.contract.codes import AGE_GROUP_KEYS, CHAPTER_KEYS
from assets.contract.terms import WINDOW_DAYS
from pipelines.demo.generate import DEFAULT_PATIENTS, generate

PROVENANCE = ["clinic", "arrival_day", "export_id", "source_file", "source_line"]
KINDS = ("Patient", "Encounter", "Condition", "Procedure", "Consent")
LINES_OF_A_CITY_YEAR = 950_000
"""Resources in a demo year if its FHIR clinic were the only one, about."""


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `.bench/input/<name>`, made by `make` unless it is there whole."""
    folder = BENCH / "input" / name
    if not folder.exists():
        note(f"making input {name}")
        building = folder.with_name(f"{name}.building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        make(building)
        building.rename(folder)
    return folder


def fhir_city() -> City:
    """The shipped city with its FHIR clinic alone."""
    city = load_city()
    return city.model_copy(update={"clinics": tuple(c for c in city.clinics if c.format == "fhir")})


def fhir_export(resources: int) -> Path:
    """One bulk export of `resources` resources in five NDJSON files, in the mix of the demo city."""

    def make(folder: Path) -> None:
        city = load_city()
        source = folder / "demo"
        generate(source, city, patients=DEFAULT_PATIENTS * resources // 500_000 + 1000, days=365, seed=7, dirt=0.01)
        days = sorted((source / "inbox" / fhir_city().clinics[0].key).iterdir())
        lines: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
        for day in days:
            for kind in KINDS:
                for path in day.glob(f"{kind}.*"):
                    data = path.read_bytes()
                    lines[kind] += (gzip.decompress(data) if path.name.endswith(".gz") else data).splitlines()
        total = sum(map(len, lines.values()))
        if total < resources:
            raise ValueError(f"the demo has {total} resources only")
        for kind, found in lines.items():
            # The first of each kind: those are the earliest days', so references stay inside.
            kept = found[: len(found) * resources // total]
            (folder / f"{kind}.000.ndjson").write_bytes(b"\n".join(kept) + b"\n")
        shutil.rmtree(source)

    return once(f"fhir-{resources}", make)


def events(rows: int) -> Path:
    """`events.parquet`: person (32 hex digits), week (0–51), day (0–363), area, chapter, age group of `rows` events in a year.

    Persons have a skewed number of events, as in the demo city: a few very many.
    """

    def make(folder: Path) -> None:
        rng = np.random.default_rng(11)
        city = load_city()
        areas = [a.key for a in city.areas]
        weight = rng.gamma(0.5, size=rows // 2)
        person = rng.choice(rows // 2, size=rows, p=weight / weight.sum())
        day = rng.integers(0, 364, rows)

        def text(keys: list[str] | tuple[str, ...]) -> pa.Array:
            place = rng.integers(0, len(keys), rows)
            return pa.DictionaryArray.from_arrays(pa.array(place, pa.int32()), pa.array(list(keys))).cast(pa.string())

        table = pa.table(
            {"person": pa.array([f"{p * 0x9E3779B97F4A7C15 % 2**128:032x}" for p in range(rows // 2)]).take(pa.array(person)),
             "day": day, "week": day // 7, "area": text(areas), "chapter": text(CHAPTER_KEYS),
             "age_group": text(AGE_GROUP_KEYS)}
        )  # fmt: skip
        pq.write_table(table, folder / "events.parquet")

    return once(f"events-{rows}", make) / "events.parquet"


def canonical(rows: int) -> Path:
    """Canonical `cases.parquet` of `rows` cases, `persons`, and few `diagnoses` and `procedures`; 1% faulty."""

    def make(folder: Path) -> None:
        from assets.contract.schemas import CANONICAL

        rng = np.random.default_rng(12)
        city = load_city()
        n, people = rows, max(rows // 3, 1)

        def choose(
            values: list[object], size: int, kind: pa.DataType | None = None, p: list[float] | None = None
        ) -> pa.Array:
            return pa.array(values, kind or pa.string()).take(pa.array(rng.choice(len(values), size=size, p=p)))

        def names(prefix: str, numbers: np.ndarray) -> pa.Array:
            return pa.array(np.char.add(prefix, numbers.astype(str)), pa.string())

        def provenance(size: int, file: str) -> dict[str, pa.Array]:
            return {
                "clinic": pa.repeat(city.clinics[0].key, size), "arrival_day": pa.repeat(pa.scalar(city.start + timedelta(300)), size),
                "export_id": pa.repeat("bench", size), "source_file": pa.repeat(file, size),
                "source_line": pa.array(np.arange(1, size + 1)),
            }  # fmt: skip

        def write(name: str, size: int, columns: dict[str, pa.Array]) -> None:
            schema = CANONICAL[name]
            whole = {f.name: columns.get(f.name, pa.nulls(size, f.type)) for f in schema}
            pq.write_table(pa.table(whole).cast(schema), folder / f"{name}.parquet")

        begin = np.datetime64(city.start, "D")
        admitted = begin + rng.integers(0, 300, n)
        stay = rng.geometric(0.2, n) - (rng.random(n) < 0.005) * 90
        patient = rng.integers(0, people, n)
        write("cases", n, {
            **provenance(n, "Encounter.000.ndjson"), "case_id": names("c", np.arange(n)), "patient_id": names("p", patient),
            "status": choose(["finished", "in-progress", "cancelled", None], n, p=[0.95, 0.03, 0.018, 0.002]),
            "care": choose(["inpatient", "emergency_visit", "other", "?"], n, p=[0.7, 0.28, 0.018, 0.002]),
            "admission_type": choose(["emergency", "other"], n),
            "admission_cause": choose(["E", "N", "B", "Ä"], n, p=[0.5, 0.48, 0.018, 0.002]),
            "admission_reason": choose(["0101", "0107", "01", None], n, p=[0.5, 0.4, 0.002, 0.098]),
            "admitted_on": pa.array(admitted), "discharged_on": pa.array(admitted + stay),
            "discharge_reason": choose(["011", "079", "0x", None], n, p=[0.8, 0.1, 0.002, 0.098]),
            "died": choose([False, True], n, pa.bool_(), p=[0.98, 0.02]),
        })  # fmt: skip
        write("persons", people, {
            **provenance(people, "Patient.000.ndjson"), "patient_id": names("p", np.arange(people)),
            "birth_year": pa.array(rng.integers(1925, 2025, people), pa.int16()),
            "sex": choose(["m", "w", "other", None], people, p=[0.49, 0.49, 0.018, 0.002]),
            "postal_code": choose(["64283", "64285", "64", "D-642"], people, p=[0.5, 0.4, 0.098, 0.002]),
        })  # fmt: skip
        for name, column, code in (("diagnoses", "icd_code", "I10.00"), ("procedures", "ops_code", "5-470.0")):
            write(name, 1000, {**provenance(1000, "x"), "case_id": names("c", np.arange(1000)),
                               "patient_id": names("p", patient[:1000]), column: pa.repeat(code, 1000)})  # fmt: skip

    folder = once(f"canonical-{rows}", make)
    prepare(folder, load_city())
    return folder


def _provisions(of: pa.Table, decision: str, declared: date, arrival: date, codes: list[str]) -> pa.Table:
    """Canonical `consent_provisions`: a document of each patient `of` (provenance, patient_id) that says `decision` of all `codes`."""
    from assets.contract.schemas import CANONICAL

    n, schema = of.num_rows * len(codes), CANONICAL["consent_provisions"]
    each = of.take(pa.array(np.repeat(np.arange(of.num_rows), len(codes))))
    stated = {
        **{name: each.column(name) for name in each.column_names}, "arrival_day": pa.repeat(pa.scalar(arrival), n),
        "consent_id": pc.binary_join_element_wise(each.column("patient_id"), decision, "-"),
        "status": pa.repeat("active", n), "declared_at": pa.repeat(pa.scalar(declared), n),
        "valid_from": pa.repeat(pa.scalar(declared), n), "decision": pa.repeat(decision, n),
        "code": pa.array(codes).take(pa.array(np.tile(np.arange(len(codes)), of.num_rows))), "period_readable": pa.repeat(True, n),
    }  # fmt: skip
    return pa.table({f.name: stated.get(f.name, pa.nulls(n, f.type)) for f in schema}).cast(schema)


def staged(rows: int) -> Path:
    """A data root with keys in which intake staged `rows` cases in ten runs, a year of arrival days each (one below a million).

    Each year's are the cases of `canonical`, their patients delivered with them, of whom every fifth came the year before,
    a consent of each new patient to all that counts, and a withdrawal of one in a thousand of the year before.
    """
    years = 10 if rows > 1_000_000 else 1

    def make(folder: Path) -> None:
        from assets.contract.schemas import CANONICAL
        from assets.lake.keys import create_keys
        from assets.lake.lake import Lake

        create_keys(folder / "keys")
        lake, city, source = Lake.open(folder / "data", folder / "keys"), load_city(), canonical(rows // years)
        cases, people, diagnoses, procedures = (
            pq.read_table(source / f"{n}.parquet", use_threads=False)
            for n in ("cases", "persons", "diagnoses", "procedures")
        )
        number = np.char.lstrip(cases.column("patient_id").to_numpy().astype(str), "p").astype(int)
        codes = [*city.consent.required_on_evaluation_day, *city.consent.required_over_case]

        def replaced(table: pa.Table, **columns: pa.Array) -> pa.Table:
            for name, values in columns.items():
                table = table.set_column(table.column_names.index(name), name, values)
            return table

        leaving = people.slice(0, 0).select([*PROVENANCE, "patient_id"])
        for year in range(years):
            shift, begin = np.timedelta64(year * WINDOW_DAYS, "D"), city.start + timedelta(year * WINDOW_DAYS)
            admitted, left = (
                cases.column(n).to_numpy().astype("datetime64[D]") + shift for n in ("admitted_on", "discharged_on")
            )
            each, again = np.arange(people.num_rows), np.arange(people.num_rows) % 5 == 0
            names = np.char.add(np.where(again, f"y{max(year - 1, 0)}p", f"y{year}p"), (each + again).astype(str))
            who, day = pa.array(names, pa.string()), pa.array(admitted + 3)
            case_id = pc.binary_join_element_wise(f"y{year}", cases.column("case_id"), "")
            rows_of = {
                "cases": replaced(cases, arrival_day=day, case_id=case_id, patient_id=who.take(pa.array(number)), admitted_on=pa.array(admitted), discharged_on=pa.array(left)),
                "persons": replaced(replaced(people, patient_id=who).take(pa.array(number)), arrival_day=day),
            }  # fmt: skip
            for name, few in (("diagnoses", diagnoses), ("procedures", procedures)):
                theirs = rows_of["cases"].slice(0, few.num_rows)
                rows_of[name] = replaced(few, **{n: theirs.column(n) for n in ("arrival_day", "case_id", "patient_id")})
            new = people.select(PROVENANCE).append_column("patient_id", who)
            first_time = new.filter(pa.array(~again)) if year else new
            rows_of["consent_provisions"] = pa.concat_tables([
                _provisions(first_time, "permit", begin - timedelta(700), begin, codes),
                _provisions(leaving, "deny", begin, begin, codes),
            ])  # fmt: skip
            leaving = new.filter(pa.array(each % 1000 == 2))  # none of whom comes again
            for name, schema in CANONICAL.items():
                table = rows_of.get(name, schema.empty_table())
                lake.write(f"staging/canonical/{name}", begin + timedelta(WINDOW_DAYS - 1), table)

    return once(f"years-{rows}", make)


def open_data(years: int) -> Path:
    """`cases.parquet` and `cases.csv`: daily estimates of each area and kind of care, as published."""

    def make(folder: Path) -> None:
        city = load_city()
        with duckdb.connect() as con:
            con.execute("SET enable_progress_bar = false")
            con.register("areas", pa.table({"area": [a.key for a in city.areas]}))
            con.execute("SELECT setseed(0.5)")
            con.execute(f"""CREATE TABLE cases AS
                SELECT 'day' AS time_level, CAST(d AS DATE) AS unit_start, care, area, round(10 + 20 * random(), 2) AS value,
                  14.1 AS variance, 'final' AS status
                FROM range(DATE '2005-01-03', DATE '2005-01-03' + {364 * years}, INTERVAL 1 DAY) t(d), areas,
                  (VALUES ('inpatient'), ('emergency_visit')) c(care)""")
            con.execute(f"COPY (FROM cases ORDER BY ALL) TO '{folder}/cases.parquet'")
            con.execute(f"COPY (FROM cases ORDER BY ALL) TO '{folder}/cases.csv'")

    return once(f"open-data-{years}", make)


def prepare(folder: Path, city: City) -> None:
    """Beside canonical tables, what a peer is given: `prepared.parquet` of the cases, and `rules.json`; anew for other rules."""
    from assets.quality.rules import PREPARED, rules

    about = json.dumps(
        [{"id": r.id, "expectation": r.expectation, **r.kwargs} for r in rules(city) if r.table == "cases"]
    )
    if (folder / "rules.json").exists() and (folder / "rules.json").read_text() == about:
        return
    with duckdb.connect() as con:
        con.execute("SET enable_progress_bar = false")
        for name in ("cases", "persons"):
            con.execute(
                f"CREATE TABLE {name} AS SELECT *, file_row_number AS _row FROM read_parquet('{folder}/{name}.parquet', file_row_number = true)"
            )
        con.execute(f"COPY (WITH person AS ({PREPARED['person']}) {PREPARED['cases']}) TO '{folder}/prepared.parquet'")
    (folder / "rules.json").write_text(about)
