"""Shared fixtures: a small city, a lake with keys, and writers of tiny exports. Everything is synthetic."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from assets.contract.city import City, load_city
from assets.lake.distribute import split
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import measure as measuring
from assets.privacy.mechanism import Noise

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Few tests that take long come first, then the longest files: what runs side by side shall end together."""
    first = {TESTS, TESTS / "audit", TESTS / "deploy", TESTS / "faults", TESTS / "privacy" / "test_crashes.py"}
    items.sort(key=lambda item: (first.isdisjoint({item.path, item.path.parent}), -item.path.stat().st_size))


@pytest.fixture(scope="session")
def city() -> City:
    return load_city()


@pytest.fixture(scope="session")
def made_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "keys"
    create_keys(folder)
    return folder


@pytest.fixture
def lake(tmp_path: Path, made_keys: Path) -> Lake:
    """An empty data root. Keys are the same for every test, so that `once` can copy what was made with them."""
    shutil.copytree(made_keys, tmp_path / "keys")
    return Lake(tmp_path / "data", Keyring.load(tmp_path / "keys"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Lake, Callable[[], None]], None]:
    """`once(lake, make)`: what `make` does to an empty data root, done for the first test of a file that asks.

    The others get a copy, also of the witness beside the keys.
    """
    kept = tmp_path_factory.mktemp("once")

    def prepare(lake: Lake, make: Callable[[], None]) -> None:
        copy, site = kept / make.__name__, lake.root.parent
        if copy.exists():
            shutil.copytree(copy, site, symlinks=True, dirs_exist_ok=True)
            return
        make()
        for name in (lake.root.name, "keys"):
            shutil.copytree(site / name, copy / name, symlinks=True)

    return prepare


@pytest.fixture
def shared() -> Path:
    if not SHARED.exists():
        pytest.skip("real input not at hand: ../shared/data is missing")
    return SHARED


@pytest.fixture
def deliver(lake: Lake) -> Callable[..., Path]:
    """Write an export: `deliver(clinic, day, {"Patient.ndjson": [resources] or bytes or text})`."""

    def write(clinic: str, day: date, files: dict[str, Any], complete: bool = True, suffix: str = "") -> Path:
        folder = lake.inbox / clinic / f"{day.isoformat()}{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if isinstance(content, list):
                content = "".join(json.dumps(r) + "\n" for r in content)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if complete:
            (folder / "_COMPLETE").touch()
        return folder

    return write


@pytest.fixture(scope="session")
def small_disk() -> Callable[[Path, str], AbstractContextManager[None]]:
    """`with small_disk(folder, "16m")`: the folder lies on a disk of that size."""

    @contextmanager
    def mounted(folder: Path, size: str) -> Iterator[None]:
        if (
            os.geteuid()
            or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]).returncode
        ):
            pytest.skip("a small disk can be mounted by root only; injected faults do without")
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)

    return mounted


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed values are the exact counts: for comparing two runs, never for a release."""

    def exact(values: list[int], noise: Noise) -> list[int]:
        return list(values)

    monkeypatch.setattr(measuring, "draw", exact)


OID = "2.16.840.1.113883.3.1937.777.24.5.3"


def _consent(patient: str, **over: Any) -> dict[str, Any]:
    period = {"start": "2024-01-01", "end": "2054-01-01"}
    nested = [
        {"type": "permit", "period": period, "code": [{"coding": [{"system": f"urn:oid:{OID}", "code": f"{OID}.{n}"}]}]}
        for n in (6, 7, 8)
    ]
    return {"resourceType": "Consent", "id": f"consent-{patient}", "status": "active",
            "patient": {"reference": f"Patient/{patient}"}, "dateTime": "2024-01-01T10:00:00+01:00",
            "provision": {"type": "deny", "provision": nested}} | over  # fmt: skip


@pytest.fixture(scope="session")
def small_export() -> Callable[..., dict[str, Any]]:
    """`small_export(day, names, withdrawn=())`: a FHIR export with one consented inpatient case of each patient."""

    def make(day: date, names: list[str], withdrawn: tuple[str, ...] = ()) -> dict[str, Any]:
        people = [{"resourceType": "Patient", "id": n, "gender": "female", "birthDate": "1980-05-05",
                   "address": [{"postalCode": "64283"}]} for n in names]  # fmt: skip
        cases = [{"resourceType": "Encounter", "id": f"{n}-{day}", "status": "finished", "class": {"code": "IMP"},
                  "subject": {"reference": f"Patient/{n}"}, "period": {"start": str(day), "end": str(day)}} for n in names]  # fmt: skip
        consents = [_consent(n) for n in names] + [_consent(n, status="inactive") for n in withdrawn]
        return {"Patient.ndjson": people, "Encounter.ndjson": cases, "Consent.ndjson": consents}

    return make


@pytest.fixture(scope="session")
def prompt_city() -> City:
    """A city that measures each day at once: no lag, a few small tables."""
    city = load_city()
    tables = tuple(t for t in city.plan.tables if t.name in ("day", "day_area"))
    plan = city.plan.model_copy(update={"tables": tables, "acceptance": ()})
    return city.model_copy(update={"freeze_lag_days": 0, "plan": plan})


def _stages() -> dict[str, Callable[[Lake, City, list[date]], Any]]:
    """Every stage of a run by name, in order, as plain functions."""
    from assets.consent import stage as consent
    from assets.identity import stage as identity
    from assets.intake import stage as intake
    from assets.privacy import stage as privacy
    from assets.publication import stage as publication
    from assets.quality import stage as quality

    return {
        "landed_exports": lambda lake, city, days: intake.take(lake, city, days, date.today()),
        "canonical_records": intake.read,
        "consented_records": consent.run,
        "validated_records": quality.run,
        "pseudonymised_cases": identity.run,
        "noisy_measurements": privacy.run,
        "open_data": lambda lake, city, days: publication.run(lake, city),
    }


@pytest.fixture(scope="session")
def stages() -> dict[str, Callable[[Lake, City, list[date]], Any]]:
    return _stages()


class Shards:
    """An engine that deals out like Spark's, into `number` shards, and computes them in this process."""

    def __init__(self, number: int) -> None:
        self.number, self.used = number, 0

    def each(self, kernel: Any, tables: Any, keys: Any, /, **settings: Any) -> list[Any]:
        parts = split(tables, keys(), self.number)
        self.used += len(parts) > 1
        return [kernel(part, **settings) for part in parts]


@pytest.fixture(scope="session")
def shards() -> Callable[[int], Shards]:
    return Shards


@pytest.fixture(scope="session")
def run_days(stages: dict[str, Callable[[Lake, City, list[date]], Any]]) -> Callable[[Lake, City, list[date]], None]:
    """A whole run without Dagster."""

    def run(lake: Lake, city: City, days: list[date]) -> None:
        for stage in stages.values():
            stage(lake, city, days)

    return run
