"""A clinic's entry stays in the city file for good: its patients stay the same persons and can withdraw for ever."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from assets.contract.city import City, CityFileError
from assets.contract.schemas import PSEUDONYMISED_CASES
from assets.lake.lake import Lake
from pipelines.environments import Environment
from pipelines.operation import problems

START = date(2024, 12, 30)
LATER = START + timedelta(300)
Run = Callable[..., None]


@pytest.fixture
def run(stages: dict[str, Any], lake: Lake) -> Run:
    """The first stages; 5: up to the one that erases who withdraws."""

    def execute(city: City, day: date, number: int = 5) -> None:
        for stage in islice(stages.values(), number):
            stage(lake, city, [day])

    return execute


def stored(lake: Lake) -> list[str]:
    return sorted(lake.read("cases", PSEUDONYMISED_CASES).column("clinic").to_pylist())


def entry(city: City, of: str, **changes: Any) -> City:
    """`city` in which the entry of the clinic `of` is changed."""
    clinics = tuple(c.model_copy(update=changes) if c.key == of else c for c in city.clinics)
    return city.model_copy(update={"clinics": clinics})


@pytest.fixture
def delivered(prompt_city: City, deliver: Callable[..., Path], small_export: Any, run: Run) -> None:
    deliver("klinik-nord", START, small_export(START, ["anna", "bert"]))
    run(prompt_city, START, 2)


@pytest.mark.parametrize("left", ["landing", "confidential"])
@pytest.mark.parametrize("renamed", [True, False])
def test_a_run_without_the_entry_of_a_clinic_that_data_are_stored_of_is_refused(
    delivered: None, lake: Lake, prompt_city: City, run: Run, left: str, renamed: bool
):
    without = prompt_city.model_copy(update={"clinics": prompt_city.clinics[1:]})
    changed = entry(prompt_city, "klinik-nord", key="klinik-neu") if renamed else without
    if left == "confidential":  # as after a restore
        shutil.rmtree(lake.landing / "klinik-nord")
    before = {p: p.read_bytes() for p in lake.root.rglob("*") if p.is_file()}
    with pytest.raises(CityFileError, match=r"no clinic klinik-nord .*delivers_until"):
        run(changed, START + timedelta(1), 2)
    assert {p: p.read_bytes() for p in lake.root.rglob("*") if p.is_file()} == before


def test_whoever_watches_is_told_before_the_night(
    delivered: None, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt_city: City
):
    changed = entry(prompt_city, "klinik-nord", key="klinik-neu")
    monkeypatch.setattr("pipelines.operation.load_city", lambda _: changed)
    (alert,) = problems(Environment("test", tmp_path / "city.yaml", lake.root, tmp_path / "keys"))
    assert alert.kind == "site_unusable" and "klinik-nord" in alert.what


def test_patients_of_a_clinic_that_left_can_still_withdraw(
    lake: Lake, prompt_city: City, deliver: Callable[..., Path], small_export: Any, run: Run
):
    deliver("klinik-nord", START, small_export(START, ["anna", "bert"]))
    run(prompt_city, START)
    left = entry(prompt_city, "klinik-nord", delivers_until=START)
    withdrawn = small_export(START, [], withdrawn=("anna",))["Consent.ndjson"]
    deliver("klinik-nord", LATER, {"Consent.ndjson": withdrawn})
    run(left, LATER)
    assert stored(lake) == ["klinik-nord"]
    assert not any(b"anna" in p.read_bytes() for p in lake.landing.rglob("*.ndjson"))
