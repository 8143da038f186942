from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from assets.contract.city import City
from assets.publication import bundle
from assets.publication.bundle import csv_bytes, publish, stamp, stamped, to_arrow
from assets.publication.catalogue import COLUMNS, DATASETS, SCHEMA
from assets.publication.plots import trend_png

FILES = {"data.parquet", "data.csv", "datapackage.json", "README.md", "checksums.sha256"}
Frames = dict[str, pd.DataFrame]


def _state(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p.relative_to(root)): (p.lstat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


def _altered(frames: Frames) -> Frames:
    return {k: f.assign(value=f["value"] + 1.0) if k == "cases_by_area" else f for k, f in frames.items()}


def test_a_release_is_complete_and_readable(
    frames: Frames, city: City, tmp_path: Path, plan: dict[str, Any], as_of: date
) -> None:
    done = publish(frames, city, tmp_path / "open_data", as_of, plan)
    assert [(p.dataset, p.version, p.changed) for p in done] == [(d.key, "2025-12-31", True) for d in DATASETS]
    for p in done:
        folder = tmp_path / "open_data" / p.dataset
        assert {x.name for x in folder.iterdir()} == {"2025-12-31", "latest"}
        assert os.readlink(folder / "latest") == "2025-12-31"
        assert {x.name for x in (folder / "latest").iterdir()} == FILES
        assert stat.S_IMODE((folder / p.version).stat().st_mode) == 0o755
        assert {stat.S_IMODE(x.stat().st_mode) for x in (folder / p.version).iterdir()} == {0o644}
        for line in (folder / p.version / "checksums.sha256").read_text().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256((folder / p.version / name).read_bytes()).hexdigest() == digest
        table = pq.read_table(folder / p.version / "data.parquet")
        assert table.num_rows == p.rows == len(frames[p.dataset])
        assert table.schema.names == SCHEMA.names and table.schema.types == SCHEMA.types
        assert set(table["release_version"].to_pylist()) == {"2025-12-31"} and set(table["data_as_of"].to_pylist()) == {
            as_of
        }
        metadata = pq.read_metadata(folder / p.version / "data.parquet").metadata
        assert {b"title", b"licence", b"version", b"schema"} <= set(metadata)
        csv = pd.read_csv(folder / "latest" / "data.csv", dtype={"region_key": str, "area_key": str})
        assert list(csv.columns) == SCHEMA.names and len(csv) == p.rows
        assert csv["value"].to_numpy() == pytest.approx(table["value"].to_numpy())


def test_the_descriptor_describes_every_column(
    small: Frames, city: City, tmp_path: Path, plan: dict[str, Any], as_of: date
) -> None:
    for p in publish(small, city, tmp_path, as_of, plan):
        folder = tmp_path / p.dataset / p.version
        package = json.loads((folder / "datapackage.json").read_text())
        assert package["version"] == p.version and package["licenses"][0]["path"] == city.publication.licence
        for resource in package["resources"]:
            data = (folder / resource["path"]).read_bytes()
            assert resource["bytes"] == len(data)
            assert resource["hash"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
            fields = resource["schema"]["fields"]
            assert [f["name"] for f in fields] == [c.name for c in COLUMNS]
            assert all(f["description"] and f["description_de"] and f["type"] for f in fields)
        frame = pq.read_table(folder / "data.parquet").to_pandas()
        for field in package["resources"][0]["schema"]["fields"]:
            limits = field.get("constraints", {})
            if limits.get("required"):
                assert frame[field["name"]].notna().all()
            if "enum" in limits:
                assert set(frame[field["name"]].dropna()) <= set(limits["enum"])
        text = (folder / "README.md").read_text()
        for needed in ("onsent", "Synthetic", "Privacy", "Accuracy", "Limits", "Revision", "epsilon_year"):
            assert needed in text


def test_publishing_again_unchanged_writes_nothing(
    small: Frames, city: City, tmp_path: Path, plan: dict[str, Any], as_of: date
) -> None:
    publish(small, city, tmp_path, as_of, plan)
    before = _state(tmp_path)
    for day in (as_of, date(2026, 1, 1)):
        again = publish(small, city, tmp_path, day, plan)
        assert not any(p.changed for p in again) and {p.version for p in again} == {"2025-12-31"}
    assert _state(tmp_path) == before


def test_changed_content_of_the_same_day_gets_a_number(
    small: Frames, city: City, tmp_path: Path, plan: dict[str, Any], as_of: date
) -> None:
    publish(small, city, tmp_path, as_of, plan)
    before = _state(tmp_path)
    current = small
    for n in range(1, 12):
        current = _altered(current)
        done = {p.dataset: p for p in publish(current, city, tmp_path, as_of, plan)}
        assert done["cases_by_area"].version == f"2025-12-31.{n}" and done["cases_by_area"].changed
        assert [k for k, p in done.items() if p.changed] == ["cases_by_area"]
    assert os.readlink(tmp_path / "cases_by_area" / "latest") == "2025-12-31.11"
    after = _state(tmp_path)
    assert all(after[name] == content for name, content in before.items() if "/latest/" not in name)
    assert not publish(current, city, tmp_path, as_of, plan)[0].changed
    assert publish(_altered(current), city, tmp_path, date(2025, 1, 1), plan)[0].version == "2025-12-31.12"


def test_bytes_are_deterministic(small: Frames, city: City, tmp_path: Path, plan: dict[str, Any], as_of: date) -> None:
    publish(small, city, tmp_path / "a", as_of, plan)
    publish(small, city, tmp_path / "b", as_of, plan)
    one, two = _state(tmp_path / "a"), _state(tmp_path / "b")
    assert {k: v[1] for k, v in one.items()} == {k: v[1] for k, v in two.items()}


class Crash(BaseException):
    pass


def test_a_crash_at_any_step_leaves_the_previous_release(
    small: Frames, city: City, tmp_path: Path, plan: dict[str, Any], as_of: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"cases_by_area": small["cases_by_area"]}
    publish(one, city, tmp_path, as_of, plan)
    folder = tmp_path / "cases_by_area"
    before = {p.name: p.read_bytes() for p in (folder / "latest").iterdir()}
    steps = 0
    real = {name: getattr(os, name) for name in ("rename", "replace", "fsync")}
    stop_at = -1

    def counting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise Crash
            return real[name](*args, **kwargs)

        return call

    for name in real:
        monkeypatch.setattr(os, name, counting(name))
    monkeypatch.setattr(bundle.shutil, "rmtree", lambda *a, **k: None)  # a real crash cleans nothing up
    crashes = 0
    while True:
        stop_at, steps = crashes + 1, 0
        try:
            publish(_altered(one), city, tmp_path, as_of, plan)
            break
        except Crash:
            crashes += 1
        now = {p.name: p.read_bytes() for p in (folder / "latest").iterdir()}
        assert set(now) == FILES
        if os.readlink(folder / "latest") == "2025-12-31":
            assert now == before
        for version in bundle.versions(folder):
            assert {p.name for p in (folder / version).iterdir()} == FILES
    assert crashes >= 8
    monkeypatch.undo()
    publish(_altered(one), city, tmp_path, as_of, plan)
    assert {p.name for p in folder.iterdir()} == {"2025-12-31", "2025-12-31.1", "latest"}
    assert os.readlink(folder / "latest") == "2025-12-31.1"


def test_formulas_are_neutralised(small: Frames) -> None:
    frame = stamp(small["cases_by_area"].head(4), "2025-12-31").assign(area_name_de=["=1+1", "+x", "@y", "-z"])
    text = csv_bytes(to_arrow(frame)).decode()
    read = pd.read_csv(io.StringIO(text))
    assert list(read["area_name_de"]) == ["'=1+1", "'+x", "'@y", "'-z"]
    assert read["value"].to_numpy() == pytest.approx(frame["value"].to_numpy())


def test_an_empty_dataset_can_be_published(
    small: Frames, city: City, tmp_path: Path, plan: dict[str, Any], as_of: date
) -> None:
    empty = {k: f.head(0) for k, f in small.items()}
    done = publish(empty, city, tmp_path, as_of, plan)
    assert all(p.rows == 0 for p in done)
    assert stamped(empty, done)["cases_by_area"].empty


def test_a_year_of_days_is_a_small_picture(frames: Frames) -> None:
    area = frames["cases_by_area"]
    series = area[(area["time_level"] == "day") & area["area_key"].isna() & (area["care"] == "inpatient")]
    picture = trend_png(series, "Inpatient cases a day / Stationäre Fälle je Tag")
    assert picture.startswith(b"\x89PNG") and len(picture) < 60_000
