"""Made-up pseudonymised cases, and places for a ledger."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import postgres_server
import pyarrow as pa
import pytest

from assets.contract.city import City
from assets.contract.schemas import PSEUDONYMISED_CASES

MakeCase = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def make_case(city: City) -> MakeCase:
    """`make_case(person, key, admitted, delay=0, **columns)`: one version of a case; days count from the epoch."""

    def make(person: str, key: str, admitted: int, delay: int = 0, **over: Any) -> dict[str, Any]:
        day = city.budget.epoch + timedelta(admitted)
        plain = {"clinic": "klinik-nord", "arrival_day": day + timedelta(delay), "case_key": key, "patient_key": person,
                 "person_key": person, "key_id": "k", "admitted_on": day, "discharged_on": None, "care": "inpatient",
                 "admission": "emergency", "area": "64283", "age_group": "25-44", "sex": "w", "chapter": "IX",
                 "los": None, "died": False, "consent_reason": "permitted"}  # fmt: skip
        return plain | over

    return make


@pytest.fixture(scope="module")
def case_table() -> Callable[[list[dict[str, Any]]], pa.Table]:
    return lambda rows: pa.Table.from_pylist(rows, schema=PSEUDONYMISED_CASES)


@pytest.fixture
def arrival(city: City) -> Callable[[int], date]:
    return lambda n: city.budget.epoch + timedelta(n)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real PostgreSQL server."""
    if postgres_server.binaries() is None:
        pytest.skip("no PostgreSQL at hand: install the Debian package postgresql")
    with postgres_server.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_location(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where an empty ledger may lie: a file, and a database."""
    if request.param == "sqlite":
        return tmp_path / "ledger.sqlite"
    return postgres_server.schema_url(request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}")
