"""A demo year is recounted from its truth by plain Python: every exact count before noise must be the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from assets.contract.city import DEFAULT_CITY, City, load_city
from assets.contract.codes import CARE, LOS_BINS
from assets.contract.schemas import PSEUDONYMISED_CASES
from assets.contract.terms import LEVEL_DAYS
from assets.identity.pseudonyms import case_keys
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy.ledger import Ledger
from pipelines.definitions import JOB, build_definitions
from pipelines.demo.generate import DEFAULT_DAYS, generate
from pipelines.environments import Environment

PATIENTS, DIRT = 3_000, 0.15
LATE_DAYS = 6
"""How long weeks wait for late cases, so that nearly all of them count; the run is as much longer."""
DAYS = DEFAULT_DAYS + LATE_DAYS


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    return load_city(city_file(tmp_path_factory.mktemp("city")))


def city_file(folder: Path) -> Path:
    path = folder / "city.yaml"
    path.write_text(DEFAULT_CITY.read_text("utf-8") + f"\nlate_days: {LATE_DAYS}\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory, city: City) -> Any:
    """A whole dirty demo year run as one, with the noise taken out: the ledger then holds the exact counts."""
    root = tmp_path_factory.mktemp("year")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assets.privacy.measure.draw", lambda counts, _variance: list(counts))
        generate(root / "demo", city, patients=PATIENTS, days=DAYS, seed=3, dirt=DIRT)
        (root / "data").mkdir()
        (root / "demo" / "inbox").rename(root / "data" / "inbox")
        create_keys(root / "keys")
        environment = Environment("test", city_file(root), root / "data", root / "keys", unattended=False)
        last = city.start + timedelta(DAYS - 1)
        tags = {"dagster/asset_partition_range_start": str(city.start), "dagster/asset_partition_range_end": str(last)}
        with dg.DagsterInstance.ephemeral() as instance:
            result = (
                build_definitions(environment).resolve_job_def(JOB).execute_in_process(instance=instance, tags=tags)
            )
    assert result.success
    lake = Lake(root / "data", Keyring.load(root / "keys"))
    return lake, pd.read_parquet(root / "demo" / "truth" / "cases.parquet")


def eligible_cases(truth: pd.DataFrame, lake: Lake, city: City) -> list[dict[str, Any]]:
    """Valid and consented cases that arrived in time, in the order in which they are decided."""
    rows = truth[(truth["fate"] == "ok") & truth["consented"]].to_dict("records")
    for row in rows:
        row["late"] = (row["first_arrival_day"] - row["admitted_on"]).days > city.freeze_lag_days
        sunday = row["admitted_on"] + timedelta(6 - row["admitted_on"].weekday())
        row["open"] = (row["first_arrival_day"] - sunday).days <= city.freeze_lag_days + city.late_days
    rows = [r for r in rows if r["open"]]
    for row in rows:
        ids = pa.table({"clinic": [row["clinic"]], "case_id": [row["case_id"]]})
        row["case_key"] = case_keys(ids, lake.keys).column("key")[0].as_py()
        row["who"] = row["insured_id"] if row["insured_id_valid"] else (row["clinic"], row["patient_id"])
    return sorted(rows, key=lambda r: (r["first_arrival_day"], r["case_key"]))


def patients_at_cap(truth: pd.DataFrame, counted: list[dict[str, Any]], lake: Lake, city: City) -> Counter[Any]:
    """(quarter, care of the first such case) → patients with a case in the quarter that did not count."""
    kept, first = {r["case_key"] for r in counted}, dict[Any, Any]()
    rows = [r for r in eligible_cases(truth, lake, city) if r["case_key"] not in kept]
    for row in sorted(rows, key=lambda r: (r["admitted_on"], r["case_key"])):
        first.setdefault((row["who"], str(city.unit_start("quarter", row["admitted_on"]))), row["care"])
    return Counter((quarter, care) for (_, quarter), care in first.items())


def counted_cases(truth: pd.DataFrame, lake: Lake, city: City) -> list[dict[str, Any]]:
    """What should count, by the rules as the documents state them, one case at a time."""
    kept: dict[Any, list[date]] = defaultdict(list)
    counted = []
    for row in eligible_cases(truth, lake, city):
        day, mine = row["admitted_on"], kept[row["who"]]
        same_week = sum(city.unit_start("week", d) == city.unit_start("week", day) for d in mine)
        same_period = sum(city.unit_start("period", d) == city.unit_start("period", day) for d in mine)
        days = sorted([*mine, day])
        crowded = any(
            sum(first <= d < first + timedelta(364) for d in days) > city.caps.window
            for first in days
            if first <= day < first + timedelta(364)
        )
        if same_week < city.caps.week and same_period < city.caps.period and not crowded:
            mine.append(day)
            counted.append(row)
    return counted


def test_every_exact_count_equals_the_recount_from_the_truth(year: Any, city: City):
    lake, truth = year
    counted = counted_cases(truth, lake, city)
    assert 1_000 < len(counted) < truth["consented"].sum()
    for row in counted:
        row["outcome"] = "died" if row["died"] else "other"
        row["los"] = next(
            key for key, low, high in LOS_BINS if low <= row["los_days"] and (high is None or row["los_days"] <= high)
        )
    committed = Ledger(lake.ledger_path).committed()
    seen: Counter[str] = Counter()
    left_out, late_cases = patients_at_cap(truth, counted, lake, city), 0
    for name, entry in committed.items():
        table = next(t for t in city.plan.tables if t.name == entry.parameters["table"])
        if table.at_cap:
            first = entry.parameters["unit_start"]
            assert entry.values == [left_out.get((first, care), 0) for care in CARE], name
            seen[table.name] += 1
            continue
        first = date.fromisoformat(entry.parameters["unit_start"])
        late, by_day = entry.parameters.get("late", False), table.time == "day"
        last = first + timedelta((7 if late else LEVEL_DAYS[table.time]) - 1)
        held = [r for r in counted if first <= r["admitted_on"] <= last and (not by_day or r["late"] == late)]
        axes = [CARE, *(city.categories(d) for d in table.dimensions)]
        cells = Counter((r["care"], *(r[d] for d in table.dimensions)) for r in held)
        assert dict(zip(pd.MultiIndex.from_product(axes), entry.values, strict=True)) == {
            cell: cells.get(cell if isinstance(cell, tuple) else (cell,), 0)
            for cell in pd.MultiIndex.from_product(axes)
        }, name
        seen[table.name + "+late" * late] += 1
        late_cases += sum(entry.values) if late and table.name == "day" else 0
    # a window, its periods, weeks and days are all there
    assert {t.name for t in city.plan.tables} == {name.partition("+")[0] for name in seen}
    assert sum(left_out.values()) > 20 and seen["quarter_at_cap"] == 4
    assert seen["day"] == DAYS - city.freeze_lag_days and late_cases >= 10
    assert seen["day+late"] == seen["day_area+late"] == 52 + 4
    assert seen["period_los"] == 13 and seen["window_area_chapter"] == 1


def test_what_reaches_the_confidential_zone_is_what_the_truth_says(year: Any):
    lake, truth = year
    cases = lake.read("cases", PSEUDONYMISED_CASES)
    with duckdb.connect() as con:
        con.register("cases", cases)
        con.register("truth", truth)
        (keys,) = con.execute("SELECT count(DISTINCT case_key) FROM cases WHERE care <> 'other'").fetchone() or (0,)
        (should,) = con.execute("SELECT count(*) FROM truth WHERE fate = 'ok' AND consented").fetchone() or (0,)
    assert keys == should
    assert set(truth["fate"]) == {"ok", "quarantined", "not_counted", "rejected", "not_delivered"}


def test_the_same_seed_gives_the_same_city(tmp_path: Path, city: City):
    for name in ("one", "two"):
        generate(tmp_path / name, city, patients=400, days=10, seed=5)
    generate(tmp_path / "three", city, patients=400, days=10, seed=6)
    content = [
        {str(p.relative_to(tmp_path / n)): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in ("one", "two", "three")
    ]
    assert content[0] == content[1] and content[0] != content[2]
