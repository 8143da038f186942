"""The city file names channels and where secrets are; it never holds one, and never an open channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets.contract.city import DEFAULT_CITY, CityFileError, load_city

S3 = "kind: s3, bucket: b, access_key: {env: A}, secret_key: {env: B}"
BULK = "kind: fhir_bulk, base_url: 'https://fhir.example.org/r4'"
AUTH = "auth: {{token_url: 'https://fhir.example.org/token', client_id: c, key_file: k, key_id: k, scopes: [{}]}}"


def write(tmp_path: Path, connector: str, clinic: str = "klinik-nord") -> Any:
    file = tmp_path / "city.yaml"
    entry = f"  - key: {clinic}\n"
    text = DEFAULT_CITY.read_text()
    assert entry in text
    file.write_text(text.replace(entry, f"{entry}    connector: {{{connector}}}\n"))
    return load_city(file).clinic(clinic).connector


@pytest.mark.parametrize(
    ("connector", "kind"),
    [
        ("settle_seconds: 5", "folder"),
        ("kind: sftp, host: h, user: u, known_hosts: k, private_key: p", "sftp"),
        (S3, "s3"),
        (BULK, "fhir_bulk"),
        (f"{BULK}, {AUTH.format('system/*.read')}", "fhir_bulk"),
        (f"{BULK}, {AUTH.format('https://fhir.example.org/.default')}", "fhir_bulk"),
        (f"{BULK}, types: [Consent], {AUTH.format('system/Consent.rs')}", "fhir_bulk"),
    ],
)
def test_each_channel_is_chosen_by_its_kind(tmp_path: Path, connector: str, kind: str):
    assert write(tmp_path, connector).kind == kind


@pytest.mark.parametrize(
    ("connector", "reason"),
    [
        ("kind: fax", "fax"),
        ("kind: sftp, host: h, user: u, private_key: p", "known_hosts"),
        ("kind: sftp, host: h, user: u, known_hosts: k", "private_key or a password"),
        ("kind: sftp, host: h, user: u, known_hosts: k, password: CANARY", "never the secret itself"),
        (S3.replace("{env: B}", "CANARY"), "never the secret itself"),
        (S3.replace("{env: B}", "{env: B, file: c}"), "exactly one"),
        (S3 + ", endpoint_url: 'http://store.example.org'", "https"),
        (BULK.replace("https", "http"), "https"),
        (BULK.replace("fhir.", "user:pass@fhir."), "no user"),
        (BULK + ", level: group", "group"),
        (f"{BULK}, {AUTH.format('system/Patient.rs, system/Encounter.rs')}", "no scope covers Condition"),
        (BULK + ", type_filters: ['Encounter?status=finished,planned']", "one filter for each value"),
    ],
)
def test_what_is_unsafe_or_incomplete_is_refused_with_its_line(tmp_path: Path, connector: str, reason: str):
    with pytest.raises(CityFileError, match=reason) as error:
        write(tmp_path, connector)
    line = next(i for i, t in enumerate((tmp_path / "city.yaml").read_text().splitlines(), 1) if "connector:" in t)
    assert f"city.yaml:{line}:" in str(error.value) and "CANARY" not in str(error.value)


def test_a_bulk_export_delivers_fhir_only(tmp_path: Path):
    with pytest.raises(CityFileError, match="format fhir only"):
        write(tmp_path, BULK, clinic="hospital-sued")


@pytest.mark.parametrize(("said", "delivery"), [("", "full"), ("\n    consent_delivery: incremental", "incremental")])
def test_a_whole_bulk_export_holds_all_consents_unless_the_city_file_says_otherwise(
    tmp_path: Path, said: str, delivery: str
):
    write(tmp_path, BULK)
    text = (tmp_path / "city.yaml").read_text()
    (tmp_path / "city.yaml").write_text(text.replace("  - key: klinik-nord", f"  - key: klinik-nord{said}"))
    found = {c.key: c.consent_delivery for c in load_city(tmp_path / "city.yaml").clinics}
    assert found == {"klinik-nord": delivery, "hospital-sued": "incremental", "praxisnetz": "incremental"}


def test_what_changes_build_upon_is_kept_until_the_next_whole_export(tmp_path: Path):
    write(tmp_path, BULK)
    text = (tmp_path / "city.yaml").read_text().replace("freeze_lag_days:", "retention_days: 14\nfreeze_lag_days:")
    (tmp_path / "city.yaml").write_text(text)
    with pytest.raises(CityFileError, match=r"klinik-nord: whole_every_days .* retention_days \(14\)"):
        load_city(tmp_path / "city.yaml")
    (tmp_path / "city.yaml").write_text(text.replace(BULK, f"{BULK}, whole_every_days: 14"))
    assert load_city(tmp_path / "city.yaml").retention_days == 14


def test_the_documented_entry_of_a_fhir_server_is_one(tmp_path: Path):
    docs = (Path(__file__).parents[2] / "docs" / "onboarding.md").read_text()
    block = next(b for b in docs.split("```") if b.startswith("yaml\nconnector: "))
    found = write(tmp_path, " ".join(block.removeprefix("yaml\nconnector: {").split()).removesuffix("}"))
    assert (found.kind, found.auth.algorithm) == ("fhir_bulk", "ES384")
