"""Data Packages as others see them: the v2 profile (as dplib ships it) and frictionless over the data itself."""

from __future__ import annotations

import importlib.resources
import json
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from frictionless import Package

from assets.contract.city import City
from assets.publication.bundle import publish
from assets.publication.catalogue import DATASETS
from assets.publication.guarantee import Guarantee

Frames = dict[str, pd.DataFrame]
KEYS = [d.key for d in DATASETS]


@pytest.fixture(scope="module")
def root(frames: Frames, city: City, plan: Guarantee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    publish(frames, city, folder, date(2025, 12, 28), plan)
    return folder


def _descriptor(root: Path, key: str) -> dict[str, Any]:
    return dict(json.loads((root / key / "latest" / "datapackage.json").read_text()))


@pytest.mark.parametrize("key", KEYS)
def test_the_descriptor_conforms_to_data_package_v2(root: Path, key: str) -> None:
    descriptor = _descriptor(root, key)
    assert descriptor["$schema"] == "https://datapackage.org/profiles/2.0/datapackage.json"
    profile = json.loads((importlib.resources.files("dplib") / "profiles/2.0/datapackage.json").read_text())
    validator = jsonschema.validators.validator_for(profile)(profile)
    assert [e.message for e in validator.iter_errors(descriptor)] == []
    assert [*validator.iter_errors(descriptor | {"version": 1})] and [*validator.iter_errors({"resources": []})]


@pytest.mark.parametrize("key", KEYS)
def test_frictionless_finds_nothing_wrong_with_the_data(root: Path, frames: Frames, key: str) -> None:
    """Over the CSV: its Parquet reader goes through pandas floats and takes every empty age for NaN."""
    report = Package(str(root / key / "latest" / "datapackage.json")).get_resource("data-csv").validate()
    assert report.valid, report.flatten(["rowNumber", "fieldName", "type", "note"])[:3]
    (task,) = report.tasks
    assert task.stats["rows"] == len(frames[key]) and task.stats["fields"] == len(frames[key].columns)


@pytest.mark.parametrize("key", KEYS)
def test_the_parquet_file_has_the_types_and_values_that_its_table_schema_states(root: Path, key: str) -> None:
    (resource,) = (r for r in _descriptor(root, key)["resources"] if r["path"] == "data.parquet")
    table = pq.read_table(root / key / "latest" / "data.parquet")
    fields = {f["name"]: f for f in resource["schema"]["fields"]}
    assert list(fields) == table.column_names
    fits = {
        "string": pa.types.is_string,
        "date": pa.types.is_date,
        "integer": pa.types.is_integer,
        "number": pa.types.is_floating,
    }
    for column in table.schema:
        field = fields[column.name]
        assert fits[field["type"]](column.type), column.name
        values = table.column(column.name)
        limits = field.get("constraints", {})
        assert not (limits.get("required") and values.null_count), column.name
        assert set(values.drop_null().unique().to_pylist()) <= set(limits.get("enum", values.to_pylist())), column.name
    (unique,) = resource["schema"]["uniqueKeys"]
    assert not table.select(unique).to_pandas().duplicated().any()


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (',"week",', ',"wek",', "constraint-error"),
        (",2025-01-0", ",2025-13-0", "type-error"),
        ("\n", "\n,\n", "blank-row"),
        ("0.", "1.", "hash-count"),
    ],
)
def test_frictionless_sees_a_changed_file(root: Path, tmp_path: Path, old: str, new: str, found: str) -> None:
    for name in ("datapackage.json", "data.csv"):
        (tmp_path / name).write_bytes((root / "emergency_share" / "latest" / name).read_bytes())
    text = (tmp_path / "data.csv").read_text()
    assert old in text
    (tmp_path / "data.csv").write_text(text.replace(old, new, 1))
    report = Package(str(tmp_path / "datapackage.json")).get_resource("data-csv").validate()
    assert found in {kind for (kind,) in report.flatten(["type"])} and not report.valid
