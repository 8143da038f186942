from __future__ import annotations

import stat
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from assets.contract.city import City
from assets.publication.bundle import Published, stamped
from assets.publication.catalogue import DATASETS
from assets.publication.database import build_database
from assets.publication.guarantee import Guarantee

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
    assert len(macros) == 3 and all(c for _, c in macros)
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
        "SELECT value / 7 FROM cases_by_area WHERE time_level = 'week' AND iso_week = '2025-W01' "
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
    monkeypatch.setattr("assets.publication.database._MACROS", (("MACRO", "broken", "(a) AS (", ""),))
    with pytest.raises(duckdb.Error):
        build_database(_release(small, "2026-01-01"), city, path, plan)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
