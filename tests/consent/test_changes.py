"""Whom a run judges: those whose answer can have changed, and everybody where that cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pytest

from assets.consent import changes, stage
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.contract.city import City
from assets.contract.schemas import CONSENT_PROVISIONS
from assets.lake.lake import Lake

START = date(2024, 12, 30)
DAY = timedelta(1)
PERMIT: dict[str, Any] = {
    "clinic": "klinik-nord", "arrival_day": START, "export_id": "e", "source_file": "f", "source_line": 1, "status": "active",
    "code": "2.16.840.1.113883.3.1937.777.24.5.3.8", "decision": "permit", "valid_from": START - DAY, "period_readable": True,
}  # fmt: skip


@pytest.fixture
def judged(lake: Lake, city: City) -> Callable[..., list[str] | None]:
    """Patients whom a run of the second day must judge, after one of the first day: one permit ends, two go on."""
    rows = [PERMIT | {"patient_id": who, "consent_id": who, "valid_to": end} for who, end in
            (("ends", START), ("goes-on", START + 9 * DAY), ("open", None))]  # fmt: skip
    register = pa.Table.from_pylist(rows, schema=CONSENT_PROVISIONS)
    lake.write_days("consent_register", [START], register, "arrival_day")
    changes.remember(lake, city, START, register.num_rows, stage.full_exports(lake, city))

    def ask(within: City = city, day: date = START + DAY) -> list[str] | None:
        lake.write_days("consent_register", [day], register.slice(0, 0), "arrival_day", keep_empty=True)
        found = stage.judged_now(lake, within, [day])
        return None if found is None else found.column("patient_id").to_pylist()

    return ask


def test_a_day_on_which_nothing_comes_judges_whose_period_ends(judged: Callable[..., list[str] | None]):
    assert judged() == ["ends"]


def test_an_earlier_day_or_the_same_again_judges_everybody(judged: Callable[..., list[str] | None]):
    assert judged(day=START - DAY) is None and judged(day=START) is None


def test_another_rule_judges_everybody(judged: Callable[..., list[str] | None], city: City):
    rule = city.consent.model_copy(update={"retrospective_module": True})
    assert judged(city.model_copy(update={"consent": rule})) is None


def test_the_first_run_and_an_interrupted_erasure_judge_everybody(judged: Callable[..., list[str] | None], lake: Lake):
    lake.write_record(changes.BEGUN, {"patients": []})
    assert judged() is None
    lake.erase_record(changes.BEGUN)
    assert judged() == ["ends"]
    lake.erase_record(changes.RECORD)
    assert judged() is None


def test_a_register_that_is_not_the_one_that_was_left_judges_everybody(
    judged: Callable[..., list[str] | None], lake: Lake
):
    rows = lake.read("consent_register", CONSENT_PROVISIONS)
    lake.write_days("consent_register", [START], rows.slice(1), "arrival_day")
    assert judged() is None


@pytest.mark.parametrize(("begins", "everybody"), [(START - DAY, False), (START, False), (START + DAY, True)])
def test_a_remembered_withdrawal_that_begins_only_now_judges_everybody(
    judged: Callable[..., list[str] | None], lake: Lake, begins: date, everybody: bool
):
    denied = PERMIT | {"patient_id": "0" * 32, "consent_id": "0" * 32, "decision": "deny", "valid_from": begins}
    lake.write_days(TOMBSTONES, [START], pa.Table.from_pylist([denied], schema=CONSENT_PROVISIONS), "arrival_day")
    assert (judged() is None) == everybody


def test_a_clinic_that_begins_or_ceases_to_deliver_in_full_has_all_its_patients_judged(
    judged: Callable[..., list[str] | None], lake: Lake, city: City
):
    clinics = tuple(c.model_copy(update={"consent_delivery": "full"}) for c in city.clinics)
    full = city.model_copy(update={"clinics": clinics})
    came = pa.table(
        {"clinic": ["klinik-nord"], "arrival_day": pa.array([START]), "export_id": ["e"]},
        schema=stage.CONSENT_DELIVERIES,
    )
    lake.write_days("consent_deliveries", [START], came, "arrival_day")
    assert judged(full) == ["ends", "goes-on", "open"]
    changes.remember(lake, city, START, 3, stage.full_exports(lake, full))
    assert judged(full) == ["ends"] and judged(city) == ["ends", "goes-on", "open"]
