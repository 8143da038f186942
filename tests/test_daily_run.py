"""The daily run through Dagster on small exports: three formats, bad neighbours, canaries, a second run."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from rich.console import Console

from assets.contract.city import DEFAULT_CITY, City
from assets.contract.schemas import EVENTS, PSEUDONYMISED_CASES
from assets.lake.lake import Lake
from assets.metadata import counts_table
from assets.privacy.ledger import Ledger
from pipelines import runner
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment
from pipelines.runner import Outcome
from pipelines.summary import summarise

START = date(2024, 12, 30)
OID = "2.16.840.1.113883.3.1937.777.24.5.3"


def consent(patient: str) -> dict[str, Any]:
    period = {"start": "2024-01-01", "end": "2054-01-01"}
    nested = [
        {"type": "permit", "period": period, "code": [{"coding": [{"system": f"urn:oid:{OID}", "code": f"{OID}.{n}"}]}]}
        for n in (6, 7, 8)
    ]
    return {"resourceType": "Consent", "id": f"consent-{patient}", "status": "active", "patient": {"reference": f"Patient/{patient}"},
            "dateTime": "2024-01-01T10:00:00+01:00", "provision": {"type": "deny", "provision": nested}}  # fmt: skip


def patient(name: str, **over: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": name, "gender": "female", "birthDate": "1980-05-05",
            "name": [{"family": "CANARYNAME"}], "address": [{"line": ["CANARYSTREET 1"], "postalCode": "64283"}],
            "identifier": [{"system": "http://fhir.de/sid/gkv/kvid-10", "value": "A123456780"}]} | over  # fmt: skip


def encounter(name: str, who: str, start: str, **over: Any) -> dict[str, Any]:
    return {"resourceType": "Encounter", "id": name, "status": "finished", "class": {"code": "IMP"},
            "subject": {"reference": f"Patient/{who}"}, "period": {"start": start, "end": start}} | over  # fmt: skip


def materialization(event: dg.DagsterEvent) -> dg.AssetMaterialization | None:
    return event.step_materialization_data.materialization if event.is_step_materialization else None


@pytest.fixture
def run(lake: Lake, tmp_path: Path) -> Callable[[date, date], dg.ExecuteInProcessResult]:
    def execute(first: date, last: date) -> dg.ExecuteInProcessResult:
        environment = Environment("test", DEFAULT_CITY, lake.root, tmp_path / "keys", unattended=False)
        tags = {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)}
        (tmp_path / "dagster").mkdir(exist_ok=True)
        with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
            return build_definitions(environment).resolve_job_def(JOB).execute_in_process(instance=instance, tags=tags)

    return execute


def test_the_code_location_builds_as_the_server_builds_it():
    from pipelines.definitions import defs

    assert defs.resolve_job_def(JOB) and list(defs.schedules or []) and list(defs.sensors or [])


def pack(folder: Path) -> None:
    """Put the files of a delivery into one ZIP, below a folder with a name of a person."""
    files = [p for p in folder.iterdir() if p.name != "_COMPLETE"]
    with zipfile.ZipFile(folder / "CANARYZIP.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, f"CANARYFOLDER Müller/{path.name}")
            path.unlink()


@pytest.mark.parametrize("packed", [False, True])
def test_a_week_end_to_end(
    run: Callable[..., Any],
    lake: Lake,
    city: City,
    deliver: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))  # what is left there is searched, too
    deliver("klinik-nord", START, {
        "Patient.ndjson": [patient("CANARYLOCAL1"), patient("p2", identifier=[])],
        "Encounter.ndjson": [
            # local midnight: in UTC it would fall on 29 December, outside the window
            encounter("e1", "CANARYLOCAL1", "2024-12-30T00:00:00+01:00"),
            encounter("e1d", "CANARYLOCAL1", "2024-12-30", partOf={"reference": "Encounter/e1"}),
            encounter("e2", "p2", "2024-12-30"),
        ],
        "Consent.ndjson": [consent("CANARYLOCAL1")],
    })  # fmt: skip
    deliver("hospital-sued", START, {
        "FALL.csv": "KH-internes-Kennzeichen;Versicherten-ID;Geburtsjahr;Geschlecht;PLZ;Wohnort;Aufnahmedatum;Aufnahmeanlass;Aufnahmegrund;Entlassungsdatum;Entlassungsgrund;Alter-in-Jahren-am-Aufnahmetag;Patientennummer\n"
        "f1;A123456780;1980;w;64283;CANARYTOWN;202501051230;N;101;202501052430;011;44;q1\n"
        "f2;;1990;m;64285;Darmstadt;202412301200;E;0101;;;34;q2\n",
        "consent.csv": "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\nf1;;2024-01-01;6 7 8;2024-01-01;2050-01-01;\n",
    })  # fmt: skip
    deliver("hospital-sued", START + timedelta(6), {
        "FALL.csv": "KH-internes-Kennzeichen;Geburtsjahr;Geschlecht;PLZ;Aufnahmedatum;Aufnahmeanlass;Aufnahmegrund;Alter-in-Jahren-am-Aufnahmetag;Patientennummer\n"
        "f3;1970;w;64297;202501050800;E;0101;54;q3\n",
        "consent.csv": "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n;q3;2024-01-01;6,7,8;2024-01-01;;\n",
    })  # fmt: skip
    deliver("praxisnetz", START, {"broken.txt": "CANARYBROKEN"})
    if packed:
        for folder in lake.inbox.glob("*/2*"):
            pack(folder)
        deliver("praxisnetz", START, {"CANARY.zip": b"CANARYBROKEN"}, suffix="-second")
    result = run(START, START + timedelta(9))
    assert result.success
    made = [m for m in map(materialization, result.all_events) if m and m.asset_key == dg.AssetKey("open_data")]
    assert [m.partition for m in made] == [str(START + timedelta(n)) for n in range(10)]
    assert ["trend" in m.metadata and "preview" in m.metadata for m in made] == [False] * 9 + [True]
    cases = lake.read("cases", PSEUDONYMISED_CASES).to_pylist()
    # f1 was admitted after its delivery and is quarantined; e2 and f2 have no consent
    assert [(c["clinic"], c["admitted_on"], c["area"], c["age_group"]) for c in cases] == [
        ("klinik-nord", START, "64283", "25-44"), ("hospital-sued", START + timedelta(6), "64297", "45-64"),
    ]  # fmt: skip
    assert lake.read("events", EVENTS).num_rows == 2
    ledger = Ledger(lake.ledger_path)
    names = {m.split(":")[0] for m in ledger.committed()}
    assert names == {"day", "day_area", "week_area", "week_chapter", "week_admission"}
    before = (ledger.windows(), {m: c.values for m, c in ledger.committed().items()})
    assert run(START, START + timedelta(9)).success
    assert (ledger.windows(), {m: c.values for m, c in ledger.committed().items()}) == before
    with duckdb.connect(str(lake.open_data / "city_health.duckdb"), read_only=True) as con:
        (rows,) = con.execute("SELECT count(*) FROM cases_by_area WHERE measure = 'count'").fetchone() or (0,)
    assert rows == 2 * (
        7 * 11 + 11 + 11
    )  # both kinds of case; seven days, late cases and the week, ten areas and the city
    assert (lake.open_data / "cases_by_area" / "latest" / "data.parquet").exists()
    for path in (*tmp_path.rglob("*"),):
        inside = {"inbox", "landing"} & set(path.relative_to(tmp_path).parts)
        if path.is_file() and not inside:
            content = path.read_bytes()
            for canary in (b"CANARY", b"A123456780"):
                assert canary not in content and canary.decode() not in path.name, path


def test_the_command_line_moves_on_with_each_stage(
    lake: Lake, deliver: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(
        runner.Progress, "update", lambda _self, _task, description="", **_more: seen.append(description)
    )
    deliver("klinik-nord", START, {"Patient.ndjson": [patient("p1")], "Encounter.ndjson": [encounter("e1", "p1", "2024-12-30")]})  # fmt: skip
    environment = Environment("test", DEFAULT_CITY, lake.root, tmp_path / "keys", unattended=False)
    runner.execute(environment, START, START, Console(file=io.StringIO()))
    assert set(runner.STAGES) <= set(seen)


def test_one_day_without_those_before_it_draws_nothing_and_publishes_nothing(
    run: Callable[..., Any], lake: Lake, deliver: Callable[..., Path]
):
    late = START + timedelta(9)
    deliver("klinik-nord", late, {
        "Patient.ndjson": [patient("p1")], "Encounter.ndjson": [encounter("e1", "p1", "2025-01-05")], "Consent.ndjson": [consent("p1")],
    })  # fmt: skip
    result = run(late, late)
    (measured,) = result.asset_materializations_for_node("noisy_measurements")
    assert measured.metadata["missing_arrival_days"].value == f"9, the first is {START}"
    assert Ledger(lake.ledger_path).reserved() == {} and not list(lake.open_data.glob("*/latest"))
    assert run(START, late - timedelta(1)).success
    assert Ledger(lake.ledger_path).committed() and list(lake.open_data.glob("*/latest"))


def test_a_withdrawn_patient_is_erased_by_the_next_run(
    run: Callable[..., Any], lake: Lake, deliver: Callable[..., Path]
):
    deliver("klinik-nord", START, {
        "Patient.ndjson": [patient("p1")], "Encounter.ndjson": [encounter("e1", "p1", "2024-12-30")], "Consent.ndjson": [consent("p1")],
    })  # fmt: skip
    run(START, START)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
    deliver("klinik-nord", START + timedelta(1), {"Consent.ndjson": [consent("p1") | {"status": "inactive"}]})
    run(START + timedelta(1), START + timedelta(1))
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0
    assert lake.read("events", EVENTS).num_rows == 0


def test_the_summary_of_a_run_names_late_cases_by_clinic(lake: Lake, city: City):
    late, none = counts_table("clinic", {"klinik-nord": 3, "praxisnetz": 1}), counts_table("clinic", {})
    privacy = {"measurements": 0, "late_cases": late.value, "too_late_cases": none.value}
    rows = summarise(Outcome("r", True, {"noisy_measurements": privacy}), lake, city)
    shown = [(r["what"], r["count"], r["details"]) for r in rows if "late" in str(r["what"])]
    assert shown == [
        ("cases that came late: in no day, but in their week and longer", 4, "klinik-nord 3, praxisnetz 1"),
        ("cases that came too late: counted nowhere", 0, ""),
    ]
