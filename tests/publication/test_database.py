from __future__ import annotations

import itertools
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from assets.contract.city import City
from assets.contract.schemas import ESTIMATES
from assets.privacy.consistency import variance_of_sum
from assets.privacy.measure import units_of
from assets.privacy.plan import level_of, price, product_of
from assets.publication.analyst_sql import MACROS, Macro
from assets.publication.bundle import Published, stamped
from assets.publication.catalogue import DATASETS, KEY
from assets.publication.database import build_database, install
from assets.publication.guarantee import Guarantee
from assets.publication.indicators import build

pytestmark = pytest.mark.usefixtures("umask_of_a_service")

Frames = dict[str, pd.DataFrame]


def _release(frames: Frames, version: str) -> Frames:
    return stamped(frames, [Published(k, version, len(f), True) for k, f in frames.items()])


@pytest.fixture(scope="module")
def built(frames: Frames, city: City, plan: Guarantee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open") / "city_health.duckdb"
    build_database(_release(frames, "2025-12-31"), city, path, plan)
    return path


def _one(path: Path, sql: str) -> Any:
    with duckdb.connect(str(path), read_only=True) as con:
        return con.execute(sql).fetchall()


def test_everything_is_there_and_explained(built: Path, frames: Frames) -> None:
    assert stat.S_IMODE(built.stat().st_mode) == 0o644
    assert [p.name for p in built.parent.iterdir()] == [built.name]
    tables = dict(_one(built, "SELECT table_name, comment FROM duckdb_tables()"))
    assert set(tables) == {d.key for d in DATASETS} | {"catalogue", "release", "privacy", "geography"}
    assert all(tables.values())
    assert (
        _one(built, "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL") == []
    )
    macros = _one(built, "SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal")
    assert {m for m, _ in macros} == {m.name for m in MACROS} and all(c for _, c in macros)
    views = dict(_one(built, "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal"))
    assert set(views) == {"indicators_long", *(f"{d.key}_wide" for d in DATASETS)} and all(views.values())
    for key, frame in frames.items():
        assert _one(built, f"SELECT count(*) FROM {key}") == [(len(frame),)]
    assert _one(built, "SELECT DISTINCT release_version, data_as_of FROM release") == [
        ("2025-12-31", date(2025, 12, 31))
    ]
    assert _one(built, "SELECT statement FROM privacy WHERE item = 'delta of a window'") == [("1e-06",)]
    assert _one(built, "SELECT sum(residents) FROM geography WHERE area_key = '64283'")[0][0] > 10_000


def test_macros_answer(built: Path) -> None:
    assert _one(built, "SELECT rate_per_100000(5, 20000), rate_per_100000(5, 0)") == [(25.0, None)]
    rows = _one(built, "FROM moving_average_with_interval('inpatient', NULL, 7) ORDER BY day")
    assert len(rows) == 364 - 6
    day, average, low, high = rows[0]
    assert day == date(2025, 1, 5) and low < average < high
    week = _one(
        built,
        "SELECT sum(if(time_level = 'week', value, -value)) / 7 FROM cases_by_area "  # without its late cases
        "WHERE time_level IN ('week', 'late') AND iso_week = '2025-W01' "
        "AND area_key IS NULL AND care = 'inpatient' AND measure = 'count'",
    )[0][0]
    assert average == pytest.approx(week)
    compared = _one(built, "FROM compare_areas('inpatient', 'week', 'count', '64283', '64285')")
    assert len(compared) == 52
    verdicts = [row[-1] for row in compared]
    assert verdicts.count("inside the noise") >= 45  # both areas have the same mean
    rates = _one(
        built, "SELECT DISTINCT verdict FROM compare_areas('inpatient', 'window', 'rate_per_100000', '64283', 'umland')"
    )
    assert rates == [("larger than the noise",)]


def test_a_moving_average_leaps_no_gap(small: Frames, city: City, plan: Guarantee, tmp_path: Path) -> None:
    """A day that is not measured: the seven rows around it are not seven days."""
    area = small["cases_by_area"]
    holed = area[(area["time_level"] != "day") | (area["period_start"] != "2025-01-10")]
    build_database(_release({"cases_by_area": holed}, "2025-02-23"), city, tmp_path / "city_health.duckdb", plan)
    ends = [
        row[0]
        for row in _one(tmp_path / "city_health.duckdb", "FROM moving_average_with_interval('inpatient', NULL, 7)")
    ]
    whole = [date(2025, 1, 5) + timedelta(n) for n in range(56 - 6)]
    assert sorted(ends) == [day for day in whole if not date(2025, 1, 10) <= day <= date(2025, 1, 16)]


def test_a_difference_has_the_interval_of_the_largest_correlation_that_there_can_be(built: Path, city: City) -> None:
    def half(low: float, high: float) -> float:
        return (high - low) / 2

    def of(time: str, start: str, area: str) -> float:
        return half(*_one(
            built, f"SELECT ci95_lower, ci95_upper FROM cases_by_area WHERE care = 'inpatient' AND measure = 'count' "
            f"AND time_level = '{time}' AND period_start = '{start}' AND area_key {area}",
        )[0])  # fmt: skip

    a, b = of("week", "2025-01-06", "= '64283'"), of("week", "2025-01-06", "= '64285'")
    areas = "SELECT ci95_lower, ci95_upper FROM compare_areas('inpatient', 'week', 'count', '64283', '64285') WHERE period_start = '2025-01-06'"
    assert half(*_one(built, areas)[0]) ** 2 == pytest.approx(a**2 + b**2 + 2 * a * b / (len(city.areas) - 1))
    for time, one, other in (("week", "2025-01-06", "2025-01-13"), ("month", "2025-03-01", "2025-02-01")):
        a, b = of(time, one, "IS NULL"), of(time, other, "IS NULL")
        periods = f"SELECT ci95_lower, ci95_upper FROM compare_periods('inpatient', '{time}', 'count', NULL, '{one}', '{other}')"
        assert half(*_one(built, periods)[0]) ** 2 == pytest.approx(a**2 + b**2 + 2 * a * b / 3)


def test_no_units_of_time_of_the_shipped_plan_are_correlated_more_than_the_macro_takes(city: City) -> None:
    """Two months share weeks, whose totals are known better than their days: nearest to the limit of -1/3."""
    product = product_of(city)
    spread = {
        level_of(p.table.time, p.table.dimensions): p.noise.variance for p in price(city).tables if not p.table.at_cap
    }
    days = units_of("window", city.budget.epoch, "day")

    def variance(weights: np.ndarray) -> float:
        found = variance_of_sum(product, level_of("day", ()), spread, weights, {})
        assert found
        return found

    def correlation(one: np.ndarray, other: np.ndarray) -> float:
        a, b = variance(one), variance(other)
        return float((variance(one + other) - a - b) / 2 / np.sqrt(a * b))

    of_month = [(d.start + timedelta(3 * d.late)).month for d in days]
    months = [np.array([m == n for m in of_month], float) for n in range(1, 13)]
    each = np.eye(len(days))
    pairs = [*itertools.pairwise(months), *((each[0], each[n]) for n in range(1, 40))]
    assert -1 / 3 < min(correlation(*pair) for pair in pairs) < -0.2
    week = sum(each[n] for n in range(7))
    assert variance(week) <= 7 * variance(each[0]), "days taken as independent make no average too certain"


def test_a_reader_of_the_old_file_keeps_reading(
    frames: Frames, small: Frames, city: City, plan: Guarantee, tmp_path: Path
) -> None:
    path = tmp_path / "city_health.duckdb"
    build_database(_release(frames, "2025-12-31"), city, path, plan)
    with duckdb.connect(str(path), read_only=True) as reader:
        build_database(_release(small, "2026-01-01"), city, path, plan)
        assert reader.execute("SELECT count(*) FROM cases_by_area").fetchone() == (len(frames["cases_by_area"]),)
        assert reader.execute("SELECT DISTINCT release_version FROM release").fetchall() == [("2025-12-31",)]
        code = "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True).sql('FROM release').fetchall()[0][1])"
        new = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert new.stdout.strip() == "2026-01-01"


def test_a_failed_build_leaves_the_old_file(
    small: Frames, city: City, plan: Guarantee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "city_health.duckdb"
    build_database(_release(small, "2025-12-31"), city, path, plan)
    before = path.read_bytes()
    monkeypatch.setattr("assets.publication.analyst_sql.MACROS", (Macro("MACRO", "broken", "(a) AS (", ""),))
    with pytest.raises(duckdb.Error):
        build_database(_release(small, "2026-01-01"), city, path, plan)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_wide_and_long_forms_hold_the_same_numbers(built: Path, frames: Frames) -> None:
    assert _one(built, "SELECT count(*) FROM indicators_long") == [(sum(len(f) for f in frames.values()),)]
    wide = _one(
        built,
        "SELECT count(*), count(rate_per_100000), sum(count), sum(rate_per_100000_ci95_upper) FROM cases_by_area_wide "
        "WHERE time_level = 'week'",
    )[0]
    weeks = frames["cases_by_area"].query("time_level == 'week'")
    counts, rates = weeks.query("measure == 'count'"), weeks.query("measure == 'rate_per_100000'")
    assert wide[:2] == (len(counts), len(rates))
    assert wide[2:] == pytest.approx((counts["value"].sum(), rates["ci95_upper"].sum()))


def test_the_wide_form_has_one_row_for_each_cell_though_its_measures_differ_in_status(
    make_estimates: Callable[..., pa.Table], city: City, plan: Guarantee, tmp_path: Path
) -> None:
    """Patients at their cap are final as measured; cases of that quarter are not while their window is open."""
    cells = make_estimates(182).to_pandas()
    cells.loc[cells["dimensions"] == "patients_at_cap", "status"] = "final"
    frames = build(pa.Table.from_pandas(cells, schema=ESTIMATES, preserve_index=False), city)
    path = tmp_path / "city_health.duckdb"
    build_database(_release(frames, "2025-06-29"), city, path, plan)
    statuses = "SELECT DISTINCT patients_status, corrected_count_status FROM patients_at_cap_wide"
    assert _one(path, statuses) == [("final", "provisional")]
    cell = ", ".join(c for c in KEY if c != "measure")
    for key in frames:
        assert _one(path, f"SELECT count(*) FROM {key}_wide") == _one(
            path, f"SELECT count(DISTINCT ({cell})) FROM {key}"
        )


def test_two_periods_are_compared_with_their_noise(built: Path) -> None:
    call = "FROM compare_periods('inpatient', 'week', 'count', {}, '2025-02-03', '2025-01-27')"
    for area in ("NULL", "'64283'"):
        ((a, b, left, right, difference, low, high, verdict),) = _one(built, call.format(area))
        assert (a, b) == (date(2025, 2, 3), date(2025, 1, 27)) and difference == pytest.approx(left - right)
        assert low < difference < high and (verdict == "inside the noise") == (low <= 0 <= high)
    far = "SELECT compare_values(100, 90, 110, 200, 190, 210), compare_values(100, 90, 110, 115, 105, 125)"
    assert _one(built, far) == [("larger than the noise", "inside the noise")]


def test_year_on_year_takes_the_same_weekday_of_the_window_before(
    make_estimates: Callable[..., pa.Table], city: City, plan: Guarantee, tmp_path: Path
) -> None:
    two = build(make_estimates(728, 3), city)
    path = tmp_path / "city_health.duckdb"
    build_database(_release({"cases_by_area": two["cases_by_area"]}, "2026-12-27"), city, path, plan)
    rows = _one(path, "FROM year_on_year('inpatient', 'week', 'count', NULL)")
    assert len(rows) == 52 and rows[0][0] == date(2025, 12, 29)
    before = dict(
        _one(
            path,
            "SELECT period_start, value FROM cases_by_area WHERE time_level = 'week' AND area_key IS NULL "
            "AND care = 'inpatient' AND measure = 'count'",
        )
    )
    for start, _end, value, earlier, difference, low, high, verdict, relative in rows:
        assert value == before[start] and earlier == before[start - timedelta(364)]
        assert relative == pytest.approx(difference / earlier) and (verdict == "inside the noise") == (low <= 0 <= high)
    assert sum(r[7] == "inside the noise" for r in rows) >= 45  # both years have the same mean


_READER = """
import duckdb, pathlib, sys
path, stop, seen, mixed = sys.argv[1], pathlib.Path(sys.argv[2]), set(), 0
while not stop.exists():
    with duckdb.connect(path, read_only=True) as con:
        found = {v for t in sys.argv[3:] for (v,) in con.execute(f"SELECT DISTINCT release_version FROM {t}").fetchall()}
    mixed += len(found) != 1
    seen |= found
print(mixed, *sorted(seen))
"""


def test_readers_in_a_loop_never_see_a_mixture(small: Frames, city: City, plan: Guarantee, tmp_path: Path) -> None:
    path, stop = tmp_path / "city_health.duckdb", tmp_path / "stop"
    built = []
    for version in ("2025-12-31", "2026-01-01"):
        built.append(tmp_path / version / path.name)
        build_database(_release(small, version), city, built[-1], plan)
    shutil.copy(built[0], path)
    command = [sys.executable, "-c", _READER, str(path), str(stop), "release", "cases_by_area", "length_of_stay"]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for turn in range(1000):
            beside = tmp_path / ".beside"
            shutil.copy(built[turn % 2], beside)
            install(beside, path)
    finally:
        stop.touch()
    for reader in readers:
        out, _ = reader.communicate(timeout=60)
        assert reader.returncode == 0 and out.split() == ["0", "2025-12-31", "2026-01-01"]
