"""Nights with faults at random (seeded) beside a faultless twin: late clinics, crashes, withdrawals.

Both run stage by stage with the same keys and without noise, so that values can be compared. The short version
is part of the suite; `make faults` runs 30 nights (DIGITALSTADT_NIGHTS).
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from assets.consent import stage as consent
from assets.contract.city import City
from assets.contract.schemas import PSEUDONYMISED_CASES
from assets.identity import stage as identity
from assets.identity.pseudonyms import case_keys
from assets.intake import stage as intake
from assets.lake.keys import create_keys
from assets.lake.lake import Lake
from assets.lake.progress import finished_days, mark_finished
from assets.privacy import stage as privacy
from assets.privacy.ledger import open_ledger
from assets.publication import stage as publication
from assets.quality import stage as quality
from pipelines.demo.generate import generate
from pipelines.nightly import wanted

NIGHTS = int(os.environ.get("DIGITALSTADT_NIGHTS", "7"))
STAGES = ("take", "read", "consent", "quality", "identity", "privacy", "publication")
SEED = 20250301


class Fault(Exception):
    """A crash at the end of a stage: what it wrote is there, nobody was told."""


def night(lake: Lake, city: City, days: Sequence[date], fails: str | None) -> None:
    """One run of `days`; it ends after the stage `fails`."""
    last = days[-1]
    steps: dict[str, Any] = {
        "take": lambda: intake.take(lake, city, days, last + timedelta(1)),
        "read": lambda: intake.read(lake, city, days),
        "consent": lambda: consent.run(lake, city, days),
        "quality": lambda: quality.run(lake, city, days),
        "identity": lambda: identity.run(lake, city, days),
        "privacy": lambda: privacy.run(lake, city, days),
        "publication": lambda: publication.run(lake, city),
    }
    for name in STAGES:
        if name == "publication" and last < city.start + timedelta(NIGHTS - 1):
            continue  # it only shows what the ledger holds: once at the end is enough here
        steps[name]()
        if name == fails:
            raise Fault(name)
    mark_finished(lake.root, days)


def withdraw(folder: Path, rng: random.Random, patients: list[str]) -> str:
    """One withdrawal of this day, in the export of the clinic that delivers FHIR, by one of `patients`; who withdrew."""
    who = rng.choice(patients)
    document = {"resourceType": "Consent", "id": f"withdrawal-{who}", "status": "active",
                "patient": {"reference": f"Patient/{who}"}, "dateTime": f"{folder.name}T12:00:00+01:00",
                "provision": {"type": "deny", "provision": [{"type": "deny", "code": [{"coding": [
                    {"system": "urn:oid:2.16.840.1.113883.3.1937.777.24.5.3", "code": f"2.16.840.1.113883.3.1937.777.24.5.3.{n}"}]}]}
                    for n in (6, 7, 8)]}}  # fmt: skip
    with (folder / "Consent.withdrawn.ndjson").open("w") as file:
        file.write(json.dumps(document) + "\n")
    return who


def deliver(world: Path, lake: Lake, clinic: str, day: date) -> None:
    source, target = world / "inbox" / clinic / str(day), lake.inbox / clinic / str(day)
    if source.exists():
        shutil.copytree(source, target)


def month(world: Path, lake: Lake, city: City, faulty: bool) -> list[str]:
    """All nights in order; what is not done is asked for as the schedule asks. Returns what went wrong."""
    rng, log, late = random.Random(SEED), [], {}
    for n in range(NIGHTS):
        day = city.start + timedelta(n)
        for clinic in (c.key for c in city.clinics):
            if faulty and clinic != "klinik-nord" and n < NIGHTS - 4 and rng.random() < 0.2:
                late[clinic, day] = n + rng.randint(1, 2)
                log.append(f"{clinic} late")
            else:
                deliver(world, lake, clinic, day)
        again = []
        for (clinic, missed), at in list(late.items()):
            if at <= n:
                deliver(world, lake, clinic, missed)
                again.append(missed)
                del late[clinic, missed]
        fails = rng.choice(STAGES[:-1]) if faulty and n < NIGHTS - 1 and rng.random() < 0.35 else None
        for first, last in wanted(finished_days(lake.root), again, city.start, day):
            days = [first + timedelta(i) for i in range((last - first).days + 1)]
            try:
                night(lake, city, days, fails)
            except Fault as fault:
                log.append(f"crash after {fault}")
    return log


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, city: City) -> Any:
    root = tmp_path_factory.mktemp("month")
    world = root / "world"
    generate(world, city, patients=3_000, days=NIGHTS, seed=11, dirt=0.02)
    truth = pd.read_parquet(world / "truth" / "cases.parquet")
    nord = truth[(truth["clinic"] == "klinik-nord") & truth["consented"]]
    # Patients sign at their first admission: who withdraws before that signs again later, and is permitted.
    signed, rng, withdrawn = nord.groupby("patient_id")["admitted_on"].min(), random.Random(SEED), set()
    for n in range(NIGHTS):
        day = city.start + timedelta(n)
        folder = world / "inbox" / "klinik-nord" / str(day)
        patients = sorted(set(signed[signed <= day].index) - withdrawn)
        if folder.exists() and patients:
            withdrawn.add(withdraw(folder, rng, patients))
    assert len(withdrawn) >= NIGHTS - 2
    truth["withdrawn"] = (truth["clinic"] == "klinik-nord") & truth["patient_id"].isin(withdrawn)
    create_keys(root / "keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assets.privacy.measure.draw", lambda counts, _variance: list(counts))
        lakes, logs = [], []
        for name, faulty in (("calm", False), ("rough", True)):
            (root / name).mkdir()
            keys = shutil.copytree(root / "keys", root / f"keys-{name}")
            lakes.append(Lake.open(root / name, keys))
            logs.append(month(world, lakes[-1], city, faulty))
    return lakes[0], lakes[1], logs[1], truth


def test_every_night_is_made_up_for_and_the_ledger_verifies(twins: Any, city: City):
    calm, rough, log, _ = twins
    assert sum("crash" in line for line in log) >= 2 and sum("late" in line for line in log) >= 2, log
    for lake in (calm, rough):
        assert finished_days(lake.root) == {city.start + timedelta(n) for n in range(NIGHTS)}
        assert open_ledger(lake, city).verify() == []


def test_the_same_is_measured_and_spent_and_equal_inputs_give_equal_values(twins: Any, city: City):
    calm, rough, _, _ = twins
    measured = [open_ledger(lake, city).committed() for lake in (calm, rough)]
    assert measured[0].keys() == measured[1].keys() and measured[0]
    spent = [{s: w.spent_units for s, w in open_ledger(lake, city).windows().items()} for lake in (calm, rough)]
    assert spent[0] == spent[1]
    same = [name for name in measured[0] if measured[0][name].values == measured[1][name].values]
    # a late export or a withdrawal seen a day later changes the units around it, not the others
    assert len(same) >= len(measured[0]) / 4


def test_what_is_stored_in_the_end_is_the_recount_of_the_truth_without_who_withdrew(twins: Any, city: City):
    calm, rough, _, truth = twins
    delivered = truth[(truth["fate"] == "ok") & truth["consented"]]
    stays = delivered[~delivered["withdrawn"]]
    assert len(delivered) - len(stays) >= NIGHTS / 2, "withdrawals took cases away"
    for lake in (calm, rough):
        ids = pa.table({"clinic": list(stays["clinic"]), "case_id": list(stays["case_id"])})
        wanted_keys = set(case_keys(ids, lake.keys).column("key").to_pylist())
        cases = lake.read("cases", PSEUDONYMISED_CASES).to_pandas()
        assert set(cases[cases["care"] != "other"]["case_key"]) == wanted_keys


def test_nobody_leaves_the_confidential_zone(twins: Any):
    _, rough, _, truth = twins
    ids = {
        value.encode()
        for value in (*truth["insured_id"].dropna(), *truth["patient_id"], *truth["case_id"])
        if len(value) >= 8
    }
    assert ids
    for path in rough.root.rglob("*"):
        zone = path.relative_to(rough.root).parts[0]
        if path.is_file() and zone not in ("inbox", "landing"):
            content = path.read_bytes()
            assert not any(value in content for value in ids), path
