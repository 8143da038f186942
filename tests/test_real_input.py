"""Real input that this project did not write, as the clinic of a city of its own, through the whole daily run.

Each clinic delivers its history with its first export, so the city opens with it (`opened_on`).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from assets.contract.city import DEFAULT_CITY, load_city
from assets.contract.schemas import CONSENT_DECISIONS, EVENTS, PSEUDONYMISED_CASES
from assets.lake.lake import Lake
from assets.privacy.ledger import Ledger
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment

ARRIVAL = date(2024, 8, 5)

# Worked out by hand from Consent and Encounter: the only stays whose whole period lies inside the consent to
# collect, with storing and use permitted on the day of evaluation.
MII_ADMITTED = {
    "patient-4": date(2020, 9, 15),
    "patient-5": date(2023, 7, 10),
    "patient-6": date(2022, 3, 12),
    "patient-7": date(2024, 1, 8),
    "patient-9": date(2024, 2, 20),
    "patient-10": date(2019, 5, 14),
}


@pytest.fixture
def take_in(lake: Lake, tmp_path: Path) -> Callable[[Path, date], tuple[Lake, dg.ExecuteInProcessResult]]:
    """Run the export `folder` as the only clinic of a city that measures from the Monday `start` on."""

    def run(folder: Path, start: date) -> tuple[Lake, dg.ExecuteInProcessResult]:
        values: dict[str, Any] = yaml.safe_load(DEFAULT_CITY.read_text("utf-8"))
        values |= {"key": "elsewhere-city", "start": start, "opened_on": ARRIVAL, "synthetic": False}
        values["clinics"] = [{"key": "real", "name": "Real input", "format": "fhir"}]
        values["budget"]["epoch"] = start
        # two tables are enough to see every case counted, over years of which most days are empty
        values["plan"]["tables"] = [t for t in values["plan"]["tables"] if t["name"] in ("day", "window_area_chapter")]
        values["plan"]["acceptance"] = []
        city_file = tmp_path / "city.yaml"
        city_file.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
        inbox = lake.inbox / "real" / ARRIVAL.isoformat()
        shutil.copytree(folder, inbox)
        (inbox / "_COMPLETE").touch()
        environment = Environment("test", city_file, lake.root, tmp_path / "keys", unattended=False)
        last = ARRIVAL + timedelta(load_city(city_file).freeze_lag_days)
        tags = {"dagster/asset_partition_range_start": str(ARRIVAL), "dagster/asset_partition_range_end": str(last)}
        with dg.DagsterInstance.ephemeral() as instance:
            job = build_definitions(environment).resolve_job_def(JOB)
            return lake, job.execute_in_process(instance=instance, tags=tags)

    return run


def _encounters(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "Encounter.000.ndjson").read_text("utf-8").splitlines()]


def test_german_test_data_become_a_city_of_their_own(shared: Path, take_in: Any, no_noise: None):
    folder = shared / "mii-kds-testdata"
    start = date(2022, 1, 3)
    lake, result = take_in(folder, start)
    assert result.success
    facility = [e for e in _encounters(folder) if _level(e) in (None, "einrichtungskontakt") and "partOf" not in e]
    decisions = lake.read("consent_decisions", CONSENT_DECISIONS).to_pylist()
    # every encounter is read: the two that are no facility contacts (a ward's and a department's) are no cases
    ended = "mii-exa-test-data-patient-8-encounter-1"  # every code ended on 15 November 2023: erased, decision included
    assert sorted([*(d["case_id"] for d in decisions), ended]) == sorted(e["id"] for e in facility)
    record = lake.read_record(f"consent/{ARRIVAL + timedelta(3)}")
    assert record is not None
    assert sum(row["cases"] for row in record["rows"]) == len(facility) == 21
    permitted = {d["patient_id"].removeprefix("mii-exa-test-data-") for d in decisions if d["permitted"]}
    assert permitted == set(MII_ADMITTED)
    cases = lake.read("cases", PSEUDONYMISED_CASES)
    assert Counter(cases.column("admitted_on").to_pylist()) == Counter(MII_ADMITTED.values())
    counted = Counter(d for d in MII_ADMITTED.values() if d >= start)
    assert Counter(lake.read("events", EVENTS).column("event_day").to_pylist()) == counted
    committed = Ledger(lake.ledger_path).committed()
    days = {
        name.split(":")[1]: sum(c.values)
        for name, c in committed.items()
        if name.startswith("day:") and "+late" not in name
    }
    assert len(days) == (ARRIVAL - start).days + 1
    assert {d: n for d, n in days.items() if n} == {str(d): n for d, n in counted.items()}
    assert (lake.open_data / "city_health.duckdb").exists()


def test_a_foreign_export_is_read_whole_and_nobody_in_it_has_consented(shared: Path, take_in: Any):
    folder = shared / "synthea-us-10"
    lake, result = take_in(folder, date(2024, 1, 1))
    assert result.success
    decisions = lake.read("consent_decisions", CONSENT_DECISIONS)
    encounters = _encounters(folder)
    assert decisions.num_rows == len(encounters) == 1215
    assert set(decisions.column("reason").to_pylist()) == {"no_consent"}
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == lake.read("events", EVENTS).num_rows == 0
    ids = {e["id"].encode() for e in encounters}
    for path in [p for p in lake.open_data.rglob("*") if p.is_file()]:
        content = path.read_bytes()
        assert not [i for i in ids if i in content], path


def _level(encounter: dict[str, Any]) -> str | None:
    codings = [c for t in encounter.get("type", []) for c in t.get("coding", [])]
    return next((c["code"] for c in codings if c.get("system", "").endswith("Kontaktebene")), None)
