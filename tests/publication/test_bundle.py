from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from assets.contract.city import City
from assets.publication import bundle
from assets.publication.bundle import csv_bytes, publish, stamp, stamped, to_arrow
from assets.publication.catalogue import COLUMNS, DATASETS, SCHEMA, dataset
from assets.publication.guarantee import Guarantee, guarantee
from assets.publication.plots import latest_series, preview_table, trend_png

pytestmark = pytest.mark.usefixtures("umask_of_a_service")
FILES = set(bundle.FILES)
Frames = dict[str, pd.DataFrame]


def _state(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p.relative_to(root)): (p.lstat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


def _altered(frames: Frames) -> Frames:
    return {k: f.assign(value=f["value"] + 1.0) if k == "cases_by_area" else f for k, f in frames.items()}


def test_a_release_is_complete_and_readable(
    frames: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
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
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
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
        for needed in ("onsent", "Synthetic", "Privacy", "Accuracy", "Limits", "Revision", "epsilon of one year"):
            assert needed in text


def test_the_csv_holds_the_types_that_the_descriptor_declares(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
) -> None:
    patterns = {"integer": r"-?\d+", "number": r"-?\d+(\.\d+)?(e-?\d+)?", "date": r"\d{4}-\d{2}-\d{2}", "string": r".*"}
    for p in publish(small, city, tmp_path, as_of, plan):
        folder = tmp_path / p.dataset / "latest"
        fields = json.loads((folder / "datapackage.json").read_text())["resources"][1]["schema"]["fields"]
        cells = pd.read_csv(folder / "data.csv", dtype=str, keep_default_na=False, na_values=[""])
        for field in fields:
            column = cells[field["name"]].dropna()
            assert column.str.fullmatch(patterns[field["type"]]).all(), (p.dataset, field["name"])
    assert pd.read_csv(tmp_path / "cases_by_age_sex" / "latest" / "data.csv", dtype=str)["age_upper"].iloc[0] == "4"


def test_publishing_again_unchanged_writes_nothing(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
) -> None:
    publish(small, city, tmp_path, as_of, plan)
    before = _state(tmp_path)
    for day in (as_of, date(2026, 1, 1)):
        again = publish(small, city, tmp_path, day, plan)
        assert not any(p.changed for p in again) and {p.version for p in again} == {"2025-12-31"}
    assert _state(tmp_path) == before


def test_another_licence_is_another_version_though_every_value_is_the_same(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
) -> None:
    publish(small, city, tmp_path, as_of, plan)
    freed = city.model_copy(update={"publication": city.publication.model_copy(update={"licence": "http://dcat-ap.de/def/licenses/cc-zero"})})  # fmt: skip
    again = publish(small, freed, tmp_path, as_of, plan)
    assert all(p.changed for p in again)
    assert "every value is the same" in (tmp_path / "cases_by_area" / "latest" / "CHANGELOG.md").read_text()


def test_changed_content_of_the_same_day_gets_a_number(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
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


def test_a_data_root_that_was_copied_with_links_followed_gets_its_link_back(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
) -> None:
    publish(small, city, tmp_path, as_of, plan)
    before, latest = _state(tmp_path), tmp_path / "cases_by_area" / "latest"
    held = latest.resolve()
    latest.unlink()
    shutil.copytree(held, latest)
    publish(small, city, tmp_path, as_of, plan)
    assert os.readlink(latest) == held.name and _state(tmp_path) == before


def test_bytes_are_deterministic(small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date) -> None:
    publish(small, city, tmp_path / "a", as_of, plan)
    publish(small, city, tmp_path / "b", as_of, plan)
    one, two = _state(tmp_path / "a"), _state(tmp_path / "b")
    assert {k: v[1] for k, v in one.items()} == {k: v[1] for k, v in two.items()}


def _digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in sorted(folder.iterdir()))).hexdigest()


def _killed_at(step: int, publish_now: Callable[[Callable[[str], None]], object]) -> bool:
    """Run in a forked child that kills itself at the given step; whether it got that far."""
    seen = 0

    def hook(_name: str) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            publish_now(hook)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_killed_publisher_leaves_the_old_release_or_the_new_one(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
) -> None:
    one = {"cases_by_area": small["cases_by_area"].head(400)}
    whole = tmp_path / "whole"
    publish(one, city, whole, as_of, plan)
    old = _digest(whole / "cases_by_area" / "latest")
    publish(_altered(one), city, whole, as_of, plan)
    new = _digest(whole / "cases_by_area" / "latest")
    assert old != new
    seen, step = set(), 0
    while True:
        step += 1
        root = tmp_path / str(step)
        publish(one, city, root, as_of, plan)
        folder = root / "cases_by_area"
        killed = _killed_at(step, lambda hook, root=root: publish(_altered(one), city, root, as_of, plan, hook))
        seen.add(found := _digest(folder / "latest"))
        assert found in (old, new)
        for version in bundle.versions(folder):
            assert {p.name for p in (folder / version).iterdir()} == FILES
        publish(_altered(one), city, root, as_of, plan)
        assert {p.name for p in folder.iterdir()} == {"2025-12-31", "2025-12-31.1", "latest"}
        assert _digest(folder / "latest") == new
        if not killed:
            break
    assert seen == {old, new} and step > len(FILES) + 5


def test_a_version_is_moved_to_its_place_whole_and_not_copied(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
) -> None:
    """A reader may look at any moment: also between two files of a copy, where no step of ours stands."""
    folder, built = tmp_path / "cases_by_area", list[int]()

    def hook(step: str) -> None:
        if step == "complete":
            built.extend(p.stat().st_ino for p in folder.glob(f"{bundle.BUILDING}*"))
            assert bundle.versions(folder) == []

    publish({"cases_by_area": small["cases_by_area"].head(400)}, city, tmp_path, as_of, plan, hook)
    assert built == [(folder / "2025-12-31").stat().st_ino]


def test_formulas_are_neutralised(small: Frames) -> None:
    frame = stamp(small["cases_by_area"].head(4), "2025-12-31").assign(area_name_de=["=1+1", "+x", "@y", "-z"])
    text = csv_bytes(to_arrow(frame)).decode()
    read = pd.read_csv(io.StringIO(text))
    assert list(read["area_name_de"]) == ["'=1+1", "'+x", "'@y", "'-z"]
    assert read["value"].to_numpy() == pytest.approx(frame["value"].to_numpy())


def test_an_empty_dataset_can_be_published(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
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


def test_the_card_states_unit_bounds_budget_and_errors(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
) -> None:
    for p in publish(small, city, tmp_path, as_of, plan):
        folder = tmp_path / p.dataset / "latest"
        card = yaml.safe_load((folder / "release-card.yaml").read_text())["deployment"]
        assert set(card) >= {
            "product",
            "dp_flavor",
            "privacy_loss",
            "model",
            "accounting",
            "implementation",
            "resources",
        }
        loss = card["privacy_loss"]
        assert "one patient" in loss["privacy_unit_description"]
        assert loss["contribution_bounds"] == {"week": 1, "period": 2, "window": 4}
        spent = loss["privacy_parameters"]
        assert 0 < spent["rho"] < 0.18507 and 0 < spent["epsilon_one_year"] <= 3 < spent["epsilon_five_years"]
        assert spent["delta"] == 1e-6
        parts = [*card["accounting"]["tables"], card["accounting"]["corrections"]]
        assert sum(p["rho"] for p in parts) == pytest.approx(spent["rho"])
        levels = card["implementation"]["accuracy"]["levels"]
        assert levels and all(level["mae"] > 0 for level in levels)
        assert {level["care"] for level in levels} == set(dataset(p.dataset).care)
        cited = yaml.safe_load((folder / "CITATION.cff").read_text())
        assert cited["cff-version"] == "1.2.0" and cited["type"] == "dataset" and cited["version"] == p.version


def test_a_readme_names_what_there_is_and_no_more(small: Frames, city: City, tmp_path: Path, as_of: date) -> None:
    tables = tuple(t for t in city.plan.tables if not t.at_cap)
    acceptance = tuple(a for a in city.plan.acceptance if a.time != "quarter")
    plan = city.plan.model_copy(update={"tables": tables, "acceptance": acceptance})
    poor = city.model_copy(update={"plan": plan})
    publish({"cases_by_area": small["cases_by_area"]}, poor, tmp_path, as_of, guarantee(poor))
    text = (tmp_path / "cases_by_area" / "latest" / "README.md").read_text()
    assert "share of cases left out by the bounds: not measured in this plan" in text and "patients_at_cap" not in text
    assert "week × area; month × area; period × area" in text and "(`corrected`)" in text


def test_codebooks_explain_every_column_and_code_in_both_languages(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee, as_of: date
) -> None:
    publish(small, city, tmp_path, as_of, plan)
    for language in ("de", "en"):
        text = (tmp_path / "cases_by_chapter" / "latest" / f"codebook.{language}.md").read_text()
        for column in COLUMNS:
            assert f"| `{column.name}` |" in text and getattr(column.comment, language) in text
            for code in column.values if column.name not in ("indicator", "measure") else ():
                assert f"| `{code}` |" in text, (column.name, code)
        for area in city.areas:
            assert f"| `{area.key}` | {getattr(area.name, language)} |" in text


def test_the_change_log_tells_what_was_added_and_revised(
    frames: Frames, city: City, tmp_path: Path, plan: Guarantee
) -> None:
    weeks = frames["cases_by_chapter"].query("time_level == 'week'")
    first = weeks[weeks["period_start"] < "2025-03-01"]
    second = weeks[weeks["period_start"] < "2025-03-08"].copy()
    second.loc[second["period_start"] < "2025-01-08", "value"] += 1000.0
    second.loc[second["period_start"] < "2025-01-01", "status"] = "final"
    second.loc[second["period_start"] == "2025-01-13", ["value", "status"]] = [7.0, "corrected"]
    for day, frame in (("2025-03-02", first), ("2025-03-09", second), ("2025-03-10", second.head(100))):
        publish({"cases_by_chapter": frame}, city, tmp_path, date.fromisoformat(day), plan)
    log = (tmp_path / "cases_by_chapter" / "latest" / "CHANGELOG.md").read_text()
    assert [line for line in log.splitlines() if line.startswith("## ")] == [
        "## 2025-03-10", "## 2025-03-09", "## 2025-03-02"]  # fmt: skip
    assert "46 new rows, 2025-03-03 to 2025-03-09" in log
    assert "92 provisional values revised (2024-12-30 to 2025-01-12)" in log and "92 of them by more" in log
    assert "46 values corrected (2025-01-13 to 2025-01-19): a week was measured again" in log
    assert "46 values became final" in log and "no longer there" in log and "First version" in log


def test_the_preview_shows_published_numbers_and_is_small(frames: Frames) -> None:
    series = latest_series(frames)
    table = preview_table(series)
    assert len(series) == 120 and len(table.splitlines()) == 2 + 8
    assert table.splitlines()[2].startswith("| 2025-12-28 | ")
    assert f"{series['value_display'].iloc[-1]:,.0f}" in table.splitlines()[2]
    assert len(trend_png(series, "x")) < 60_000
    assert latest_series({}).empty
