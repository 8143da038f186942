"""Identity takes only what quality certified, and publication only what identity recorded. Tampering stops both."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from assets.consent import stage as consent
from assets.contract.city import City
from assets.contract.schemas import CANONICAL, CASES, PSEUDONYMISED_CASES
from assets.identity import stage as identity
from assets.identity.record import require_certified, verify_cases
from assets.intake import stage as intake
from assets.lake.lake import Lake
from assets.privacy import stage as privacy
from assets.publication import stage as publication
from assets.quality import stage as quality
from assets.quality.certificate import CertificateMismatch

START = date(2024, 12, 30)
DAYS = [START + timedelta(n) for n in range(10)]
FALL = "KH-internes-Kennzeichen;Geburtsjahr;Geschlecht;PLZ;Aufnahmedatum;Aufnahmeanlass;Alter-in-Jahren-am-Aufnahmetag;Patientennummer\n"
CONSENT = "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n"


@pytest.fixture
def to_quality(lake: Lake, city: City, deliver: Callable[..., Path]) -> Callable[[], None]:
    """A clinic's export, up to the certificate."""

    def run() -> None:
        deliver("hospital-sued", START, {
            "FALL.csv": FALL + "f1;1970;w;64297;202412300800;E;54;q1\nf2;1960;m;64283;202412300900;N;64;q2\n",
            "consent.csv": CONSENT + ";q1;2024-01-01;6 7 8;2024-01-01;;\n;q2;2024-01-01;6 7 8;2024-01-01;;\n",
        })  # fmt: skip
        intake.take(lake, city, DAYS, date(2025, 6, 1))
        intake.read(lake, city, DAYS)
        consent.run(lake, city, DAYS)
        quality.run(lake, city, DAYS)

    return run


def alter(lake: Lake, table: str, schema: pa.Schema, day: date, **values: Any) -> None:
    rows = lake.read(table, schema, [day]).to_pylist()
    lake.write(table, day, pa.Table.from_pylist([rows[0] | values, *rows[1:]], schema=schema))


def test_identity_refuses_rows_that_changed_after_quality(lake: Lake, city: City, to_quality: Callable[[], None]):
    to_quality()
    alter(lake, "staging/valid/cases", CASES, DAYS[-1], age_years=3)
    with pytest.raises(CertificateMismatch, match="cases"):
        identity.run(lake, city, DAYS)
    assert lake.days("cases") == []


def test_identity_refuses_the_certificate_of_other_days(lake: Lake, city: City, to_quality: Callable[[], None]):
    to_quality()
    for table, schema in CANONICAL.items():
        lake.write(f"staging/valid/{table}", DAYS[-2], lake.read(f"staging/valid/{table}", schema, [DAYS[-1]]))
    with pytest.raises(CertificateMismatch, match="run quality"):
        identity.run(lake, city, DAYS[:-1])


def test_identity_refuses_an_altered_certificate(lake: Lake, city: City, to_quality: Callable[[], None]):
    to_quality()
    cert = lake.read_record("quality_certificate")
    lake.write_record("quality_certificate", cert | {"city": "elsewhere"})
    with pytest.raises(CertificateMismatch, match="altered"):
        identity.run(lake, city, DAYS)


def test_every_day_has_a_record_bound_to_its_certificate(lake: Lake, city: City, to_quality: Callable[[], None]):
    to_quality()
    sha256 = identity.run(lake, city, DAYS)["certificate"]
    assert require_certified(lake, DAYS) == len(DAYS)
    record = lake.read_record(f"identity/{START}")
    assert record["certificate"] == sha256 and record["tables"]["cases"]["rows"] == 2
    assert "q1" not in json.dumps(record)


def test_privacy_refuses_cases_that_identity_did_not_write(lake: Lake, city: City, to_quality: Callable[[], None]):
    to_quality()
    identity.run(lake, city, DAYS)
    verify_cases(lake)
    alter(lake, "cases", PSEUDONYMISED_CASES, START, area="elsewhere")
    with pytest.raises(CertificateMismatch, match=f"{START}.*not what identity wrote"):
        privacy.run(lake, city, DAYS)
    lake.erase("cases", [START])
    with pytest.raises(CertificateMismatch):
        privacy.run(lake, city, DAYS)


def test_a_case_in_a_month_that_is_not_its_own_is_noticed(lake: Lake, city: City, to_quality: Callable[[], None]):
    to_quality()
    identity.run(lake, city, DAYS)
    moved = lake.read("cases", PSEUDONYMISED_CASES, [START]).slice(0, 1)
    lake.write("cases", START + timedelta(200), moved)
    with pytest.raises(CertificateMismatch, match="not theirs"):
        verify_cases(lake)


@pytest.mark.parametrize("damage", ["record_missing", "record_altered", "certificate_missing", "certificate_altered"])
def test_publication_stops_where_a_day_is_not_certified(
    lake: Lake, city: City, to_quality: Callable[[], None], damage: str
):
    to_quality()
    sha256 = identity.run(lake, city, DAYS)["certificate"]
    privacy.run(lake, city, DAYS)
    records = lake.confidential / "records"
    name = f"identity/{START + timedelta(1)}" if damage.startswith("record") else f"quality_certificates/{sha256}"
    if damage.endswith("missing"):
        (records / f"{name}.json").unlink()
    else:
        lake.write_record(name, lake.read_record(name) | {"tables": {}})
    with pytest.raises(CertificateMismatch):
        publication.run(lake, city)
    assert not lake.open_data.exists()


def test_a_measured_day_with_an_arrival_day_that_never_ran_is_not_published(
    lake: Lake, city: City, to_quality: Callable[[], None]
):
    to_quality()
    identity.run(lake, city, DAYS)
    privacy.run(lake, city, DAYS)
    day = DAYS[2]
    (lake.confidential / "records" / "identity" / f"{day}.json").unlink()
    with pytest.raises(CertificateMismatch, match=f"{day} was never certified"):
        publication.run(lake, city)
