"""A patient who withdrew is gone: from every byte of the data root but the clinic's own inbox."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from assets.consent import stage as consent
from assets.consent.rule import standing
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.consent.tombstones import bury
from assets.consent.tombstones import recognise as recognise_consents
from assets.contract.city import City
from assets.contract.codes import insured_id_is_valid
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    CANONICAL,
    CONSENT_PROVISIONS,
    EVENTS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
)
from assets.identity import erasure_original, erasure_pseudonymised
from assets.identity import stage as identity
from assets.identity.record import verify_cases
from assets.identity.tombstones import MARK
from assets.intake import archives, landing, naming
from assets.intake import stage as intake
from assets.intake.landing import RawFilesErased, erase_patients
from assets.lake.lake import Lake
from assets.privacy import stage as privacy
from assets.publication import stage as publication
from assets.quality import stage as quality
from assets.quality.certificate import CertificateMismatch

START = date(2024, 12, 30)
TODAY = date(2026, 1, 1)
OID = "2.16.840.1.113883.3.1937.777.24.5.3"
FALL = "KH-internes-Kennzeichen;Versicherten-ID;Geburtsjahr;Geschlecht;PLZ;Aufnahmedatum;Aufnahmeanlass;Alter-in-Jahren-am-Aufnahmetag;Patientennummer\n"
CONSENT = "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n"
Run = Callable[..., None]


def fhir_consent(who: str, status: str = "active", kind: str = "permit", on: str = "2024-01-01", start: str = "2024-01-01", ident: str = "", **over: Any) -> dict[str, Any]:  # fmt: skip
    period = {"start": start, "end": "2054-01-01"}
    nested = [{"type": kind, "period": period, "code": [{"coding": [{"system": f"urn:oid:{OID}", "code": f"{OID}.{n}"}]}]}
              for n in (6, 7, 8)]  # fmt: skip
    return {"resourceType": "Consent", "id": ident or f"consent-{who}", "status": status, "patient": {"reference": f"Patient/{who}"},
            "dateTime": f"{on}T10:00:00+01:00", "provision": {"type": "deny", "provision": nested}} | over  # fmt: skip


def person(name: str, **over: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": name, "gender": "female", "birthDate": "1980-05-05",
            "address": [{"postalCode": "64283"}]} | over  # fmt: skip


def stay(name: str, who: str, start: str = "2024-12-30", **over: Any) -> dict[str, Any]:
    return {"resourceType": "Encounter", "id": name, "status": "finished", "class": {"code": "IMP"},
            "subject": {"reference": f"Patient/{who}"}, "period": {"start": start, "end": start}} | over  # fmt: skip


@pytest.fixture
def run(lake: Lake, city: City) -> Run:
    """Run days, counted from START, up to the measurements; `public`: and publish, which knows of no person."""

    def execute(first: int, last: int | None = None, within: City = city, public: bool = False) -> None:
        days = [START + timedelta(n) for n in range(first, (first if last is None else last) + 1)]
        intake.take(lake, within, days, TODAY)
        intake.read(lake, within, days)
        consent.run(lake, within, days)
        quality.run(lake, within, days)
        identity.run(lake, within, days)
        privacy.run(lake, within, days)
        if public:
            publication.run(lake, within)

    return execute


@pytest.fixture
def week(once: Callable[..., None], run: Run, lake: Lake, deliver: Callable[..., Path]) -> None:
    """`hospital_week`, measured and published."""

    def measured_week() -> None:
        hospital_week(deliver)
        run(0, 5, public=True)

    once(lake, measured_week)


def places(lake: Lake, needles: list[str]) -> set[str]:
    """Files of the data root, but the inbox, whose name or content, decrypted and unpacked, holds a needle."""
    found = set()
    for path in sorted(p for p in lake.root.rglob("*") if p.is_file() and lake.inbox not in p.parents):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content += gzip.decompress(content)
        if path.suffix == ".parquet" and lake.confidential in path.parents:
            key = pe.create_decryption_properties(footer_key=lake.keys.encryption)
            content += repr(pq.ParquetFile(path, decryption_properties=key).read().to_pylist()).encode()
        name = str(path.relative_to(lake.root))
        if any(needle.encode() in content or needle in name for needle in needles):
            found.add(name)
    return found


def pseudonyms(lake: Lake, *clinics: str) -> list[str]:
    """Every pseudonym of the cases of these clinics."""
    rows = [r for r in lake.read("cases", PSEUDONYMISED_CASES).to_pylist() if r["clinic"] in clinics]
    return sorted({r[c] for r in rows for c in ("patient_key", "case_key", "person_key")})


def hospital_week(deliver: Callable[..., Path]) -> None:
    """Patients GONE (to withdraw) and STAYS in three formats; a row in quarantine and a broken line of GONE."""
    deliver("klinik-nord", START, {
        "Patient.ndjson": [person("GONEfhir", identifier=[{"system": "http://fhir.de/sid/gkv/kvid-10", "value": "A123456780"}]), person("STAYS")],
        "Encounter.ndjson.gz": gzip.compress("".join(json.dumps(r) + "\n" for r in (
            stay("caseGONEfhir", "GONEfhir"), stay("caseSTAYS", "STAYS"),
            stay("badGONEfhir", "GONEfhir", class_=0, period={"start": "1700-01-01"}))).encode()),
        "Observation.ndjson": '{"resourceType":"Observation","id":"o1","subject":{"reference":"https:\\/\\/kis.example\\/Patient\\/GONEfhir"}}\n{"resourceType":"Observation","id":"o2","subject":{"reference":"Patient\\u002fGONEfhir"}}\n{"resourceType":"Observation","id":"o3","subject":{"reference":"Patient/STAYS"}}\n{"resourceType":"Observation","id":"o4","subject":{"reference":"Patient/GONEfhir',
        "letter.txt": "Dear GONEfhir", "scan.pdf": b"\xff\x00\x01",
        "Consent.ndjson": [fhir_consent("GONEfhir"), fhir_consent("STAYS")],
    })  # fmt: skip
    deliver("hospital-sued", START, {
        "FALL.csv": FALL + "caseGONEcsv;;1970;w;64297;202412300800;E;54;GONEcsv\ncaseSTAYScsv;;1960;m;64283;202412300900;N;64;STAYScsv\n"
                    "badGONEcsv;;1970;w;64297;202412300800;Q;54;GONEcsv\nragged;GONEcsv;\n",
        "ICD.csv": "KH-internes-Kennzeichen;Diagnoseart;ICD-Kode\ncaseGONEcsv;HD;I210\ncaseSTAYScsv;HD;I210\n",
        "consent.csv": CONSENT + ";GONEcsv;2024-01-01;6 7 8;2024-01-01;;\n;STAYScsv;2024-01-01;6 7 8;2024-01-01;;\n",
    })  # fmt: skip
    deliver("praxisnetz", START, {
        "practice.csv": "case_id;patient_id;birth_date;sex;postal_code;visited_on;left_on;visit_type;principal_diagnosis\n"
                        "caseGONEprx;GONEprx;1980-01-01;w;64283;2024-12-30;;emergency;I21.0\n",
        "consent.csv": CONSENT + ";GONEprx;2024-01-01;6 7 8;2024-01-01;;\n",
    })  # fmt: skip


NEEDLES = ["GONEfhir", "GONEcsv", "GONEprx", "A123456780"]


def withdrawals(deliver: Callable[..., Path], day: date) -> None:
    """The three shapes: a later deny, a withdrawal date, a document set inactive (by CSV: a withdrawal date)."""
    deliver(
        "klinik-nord", day, {"Consent.ndjson": [fhir_consent("GONEfhir", kind="deny", on="2025-01-04", ident="w1")]}
    )
    deliver(
        "hospital-sued",
        day,
        {"FALL.csv": FALL, "consent.csv": CONSENT + ";GONEcsv;2024-01-01;6 7 8;2024-01-01;;2025-01-04\n"},
    )
    deliver("praxisnetz", day, {"consent.csv": CONSENT + ";GONEprx;2024-01-01;6 7 8;2024-01-01;;2025-01-04\n"})


def test_after_a_withdrawal_no_byte_outside_the_inbox_tells_of_the_patient(
    run: Run, week: None, lake: Lake, city: City, deliver: Callable[..., Path]
):
    mine = [k for k in pseudonyms(lake, *(c.key for c in city.clinics))]
    assert len(places(lake, NEEDLES)) > 8 and places(lake, mine)
    staying = {r["case_key"] for r in lake.read("cases", PSEUDONYMISED_CASES).to_pylist()}
    withdrawals(deliver, START + timedelta(6))
    run(6, public=True)
    left = lake.read("cases", PSEUDONYMISED_CASES)
    stays = {r[c] for r in left.to_pylist() for c in ("patient_key", "case_key", "person_key")}
    assert sorted(left.column("clinic").to_pylist()) == ["hospital-sued", "klinik-nord"] and len(staying) == 5
    assert places(lake, NEEDLES) == set()
    assert places(lake, sorted(set(mine) - stays)) == set()
    assert len(lake.read("events", EVENTS)) == 2
    verify_cases(lake)
    landed = "".join(
        p.read_text("utf-8", "replace") for p in lake.landing.rglob("*") if p.suffix in (".csv", ".ndjson")
    )
    assert "STAYScsv;HD" in landed and '"o3"' in landed and not list(lake.landing.rglob("scan.pdf"))


def test_who_came_in_an_archive_is_gone_from_every_byte_outside_the_inbox(
    run: Run, lake: Lake, city: City, deliver: Callable[..., Path]
):
    """The archive stays where the clinic put it, and is known when it is found there again."""
    hospital_week(deliver)
    for folder in lake.inbox.glob("*/2*"):
        files = [p for p in folder.iterdir() if p.name != "_COMPLETE"]
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:  # stored, so that a copy of it would be found
            for path in files:
                archive.write(path, path.name)
                path.unlink()
    run(0, 5)
    assert len(lake.read("cases", PSEUDONYMISED_CASES)) == 5 and len(places(lake, NEEDLES)) > 5
    withdrawals(deliver, START + timedelta(6))
    run(6)
    assert places(lake, NEEDLES) == set() and not list(lake.landing.rglob("*.zip"))
    found = intake.take(lake, city, [START], TODAY)
    assert {d.outcome for d in found} == {"known"} and places(lake, NEEDLES) == set()
    run(0, 6)
    assert places(lake, NEEDLES) == set()


def test_what_a_failed_run_left_staged_goes_with_the_next_run_whatever_its_days(
    run: Run, lake: Lake, city: City, deliver: Callable[..., Path]
):
    hospital_week(lambda clinic, _, files: deliver(clinic, START + timedelta(5), files))
    for stage in (lambda *a: intake.take(*a, TODAY), intake.read, consent.run):
        stage(lake, city, [START + timedelta(5)])
    assert any("staging/" in place for place in places(lake, NEEDLES))
    withdrawals(deliver, START + timedelta(6))
    run(5, 6)
    assert places(lake, NEEDLES) == set()


def test_documents_that_name_their_patient_by_number_only_go_too(run: Run, lake: Lake, deliver: Callable[..., Path]):
    number = {"system": "https://kis.example/number", "value": "GONEnumber"}
    by_number = {"patient": {"type": "Patient", "identifier": number}}
    people = [person("GONEfhir", identifier=[number]), person("STAYS")]
    signed = [fhir_consent("GONEfhir", **by_number), fhir_consent("STAYS")]
    deliver("klinik-nord", START, {"Patient.ndjson": people, "Encounter.ndjson": [stay("c", "GONEfhir"), stay("d", "STAYS")],
                                   "Consent.ndjson": signed})  # fmt: skip
    run(0)
    assert len(lake.read("cases", PSEUDONYMISED_CASES)) == 2
    denied = fhir_consent("GONEfhir", kind="deny", on="2025-01-02", ident="w1", **by_number)
    deliver("klinik-nord", START + timedelta(1), {"Patient.ndjson": people[:1], "Consent.ndjson": [denied]})
    run(1)
    assert len(lake.read("cases", PSEUDONYMISED_CASES)) == 1 and places(lake, ["GONE"]) == set()


def test_a_withdrawal_that_names_only_a_case_of_an_earlier_delivery_withdraws(
    run: Run, week: None, lake: Lake, deliver: Callable[..., Path]
):
    rows = "caseGONEcsv;;;;;;2025-01-04\ncaseUNKNOWN;;2025-01-01;6 7 8;2025-01-01;;\n;other;2025-13-01;6;x;;\n"
    deliver("hospital-sued", START + timedelta(6), {"consent.csv": CONSENT + rows})
    run(6)
    left = lake.read("cases", PSEUDONYMISED_CASES).to_pylist()
    assert sorted(r["clinic"] for r in left) == ["hospital-sued", "klinik-nord", "klinik-nord", "praxisnetz"]
    assert places(lake, ["GONEcsv"]) == set()
    # of a case that nobody knows nothing is kept beside the raw file
    assert not places(lake, ["caseUNKNOWN"]) - {
        str(p.relative_to(lake.root)) for p in lake.landing.rglob("consent.csv")
    }


def test_a_process_that_dies_while_it_erases_leaves_nothing_that_the_next_run_does_not_heal(
    run: Run,
    week: None,
    lake: Lake,
    city: City,
    deliver: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Killed before the n-th change of a file, for every 6th n (every one in `make faults`); then the same day again."""
    mine, day = pseudonyms(lake, *(c.key for c in city.clinics)), START + timedelta(6)
    withdrawals(deliver, day)
    for stage in (lambda *a: intake.take(*a, TODAY), intake.read, consent.run, quality.run):
        stage(lake, city, [day])
    before, calls, left = tmp_path / "before", 0, None
    shutil.copytree(lake.root, before, symlinks=True)
    witness = lake.keys.witness.read_bytes()

    def counted(real: Callable[..., Any], last: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > last:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    for last in range(0, 10_000, 1 if os.environ.get("DIGITALSTADT_FAULTS") == "all" else 6):
        shutil.rmtree(lake.root)
        shutil.copytree(before, lake.root, symlinks=True)
        lake.keys.witness.write_bytes(witness)
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(os.replace, last))
            patch.setattr(Path, "unlink", counted(Path.unlink, last))
            try:
                identity.run(lake, city, [day])
            except KeyboardInterrupt:
                pass
        whole = calls <= last
        run(6)
        cases = lake.read("cases", PSEUDONYMISED_CASES)
        stays = {r[c] for r in cases.to_pylist() for c in ("patient_key", "case_key", "person_key")}
        assert len(cases) == 2 and len(lake.read("events", EVENTS)) == 2, f"after change {last}"
        assert places(lake, NEEDLES) == set(), f"after change {last}"
        assert places(lake, sorted(set(mine) - stays)) == set(), f"after change {last}"
        left = left or lake.read("bounding", BOUNDING_DECISIONS)
        assert lake.read("bounding", BOUNDING_DECISIONS).equals(left), f"after change {last}"
        if whole:
            break
    assert last > 20


def test_an_erasure_that_died_behind_the_register_is_finished_by_the_next_run(
    run: Run, lake: Lake, city: City, deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    """By then nothing that is delivered or registered names the patient any more: only what was noted before does."""
    rule = city.consent.model_copy(update={"guardian_consent_ends_at": 18})
    minors, real = city.model_copy(update={"consent": rule}), erasure_original.rewrite
    hospital_week(deliver)
    run(0, 5, within=minors)
    assert "confidential/majority/2024-12.parquet" in places(lake, ["GONEfhir"])
    withdrawals(deliver, START + timedelta(6))

    def dying(lake: Lake, table: str, *rest: Any) -> int:
        if table == "majority":
            raise KeyboardInterrupt
        return real(lake, table, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(erasure_original, "rewrite", dying)
        run(6, within=minors)
    run(6, within=minors)
    assert places(lake, NEEDLES) == set()


def test_who_is_permitted_again_after_an_interrupted_erasure_is_not_erased_later(
    run: Run, week: None, lake: Lake, city: City, deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    denied = fhir_consent("GONEfhir", kind="deny", on="2025-01-04", ident="w1")
    deliver("klinik-nord", START + timedelta(6), {"Consent.ndjson": [denied]})
    with monkeypatch.context() as patch:
        patch.setattr(erasure_original, "bury", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(6)
    assert lake.read_record(erasure_original.BEGUN)
    signed = fhir_consent("GONEfhir", on="2025-01-05", ident="again")
    deliver("klinik-nord", START + timedelta(7), {"Consent.ndjson": [signed]})
    run(6, 7)
    assert lake.read_record(erasure_original.BEGUN) is None
    assert "GONEfhir" in lake.read("consent_register", CONSENT_PROVISIONS).column("patient_id").to_pylist()


def test_the_erasure_record_is_machine_readable_and_holds_no_value(
    run: Run, week: None, lake: Lake, deliver: Callable[..., Path]
):
    withdrawals(deliver, START + timedelta(6))
    run(6)
    record = lake.read_record(f"erasure/{START + timedelta(6)}")
    (entry,) = record["erasures"]
    assert len(entry["patients"]) == 3 and all(len(p) == 32 for p in entry["patients"])
    assert entry["rows"]["cases"] == 3 and entry["rows"]["quarantine/cases"] == 1 and entry["landing"]["files"] == 2
    assert not any(needle in json.dumps(record) for needle in NEEDLES)


def test_the_same_export_and_an_old_consent_delivered_again_do_not_bring_the_patient_back(
    run: Run, week: None, lake: Lake, deliver: Callable[..., Path]
):
    withdrawals(deliver, START + timedelta(6))
    run(6)
    run(0, 6)
    assert places(lake, NEEDLES) == set()
    hospital_week(lambda clinic, day, files: deliver(clinic, START + timedelta(7), files))
    run(7)
    assert (
        lake.read("cases", PSEUDONYMISED_CASES).column("clinic").to_pylist().count("klinik-nord") == 2
    )  # STAYS, twice
    assert places(lake, NEEDLES) == set()


def test_a_document_once_inactive_stays_revoked_when_its_old_version_comes_again(
    run: Run, lake: Lake, deliver: Callable[..., Path]
):
    deliver("klinik-nord", START, {"Patient.ndjson": [person("GONE")], "Encounter.ndjson": [stay("c1", "GONE")], "Consent.ndjson": [fhir_consent("GONE")]})  # fmt: skip
    run(0)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
    deliver("klinik-nord", START + timedelta(1), {"Consent.ndjson": [fhir_consent("GONE", status="inactive")]})
    run(1)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0 and places(lake, ["GONE"]) == set()
    deliver("klinik-nord", START + timedelta(2), {"Patient.ndjson": [person("GONE")], "Encounter.ndjson": [stay("c1", "GONE")], "Consent.ndjson": [fhir_consent("GONE")]})  # fmt: skip
    run(2)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0 and places(lake, ["GONE"]) == set()


def test_who_withdraws_signs_again_and_withdraws_again_is_gone_from_the_deliveries_in_between(
    run: Run, lake: Lake, deliver: Callable[..., Path]
):
    files = {"Patient.ndjson": [person("GONE", **INSURED)], "Encounter.ndjson": [stay("c1GONE", "GONE")]}
    deliver("klinik-nord", START, files | {"Consent.ndjson": [fhir_consent("GONE")]})
    deny = fhir_consent("GONE", kind="deny", on="2024-12-31", ident="w1")
    deliver("klinik-nord", START + timedelta(1), {"Consent.ndjson": [deny]})
    run(0, 1)
    anew = fhir_consent("GONE", on="2025-01-01", ident="anew")
    deliver("klinik-nord", START + timedelta(2), files | {"Consent.ndjson": [anew]})
    run(2)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1 and places(lake, ["GONE"])
    deliver("klinik-nord", START + timedelta(3), {"Consent.ndjson": [anew | {"status": "inactive"}]})
    run(3)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0 and places(lake, ["GONE", "A123456780"]) == set()


def test_leaving_and_joining_again_keeps_the_counter(run: Run, lake: Lake, deliver: Callable[..., Path]):
    insured = [{"system": "http://fhir.de/sid/gkv/kvid-10", "value": "A123456780"}]
    both = {"Patient.ndjson": [person("BACK", identifier=insured)], "Encounter.ndjson": [stay("c1", "BACK")]}
    deliver("klinik-nord", START, both | {"Consent.ndjson": [fhir_consent("BACK")]})
    run(0)
    before = lake.read("bounding", BOUNDING_DECISIONS).to_pylist()
    assert [r["kept"] for r in before] == [True]
    deliver(
        "klinik-nord",
        START + timedelta(1),
        {"Consent.ndjson": [fhir_consent("BACK", kind="deny", on="2024-12-31", ident="w")]},
    )
    run(1)
    (row,) = lake.read("bounding", BOUNDING_DECISIONS).to_pylist()
    assert row["person_key"].startswith(MARK) and row["case_key"].startswith(MARK) and row["kept"]
    # Joins again, now without the insured number, with the old case and a new one in the same ISO week.
    deliver("klinik-nord", START + timedelta(2), {
        "Patient.ndjson": [person("BACK")], "Encounter.ndjson": [stay("c1", "BACK"), stay("c2", "BACK", "2025-01-01")],
        "Consent.ndjson": [fhir_consent("BACK", on="2025-01-01", ident="anew")],
    })  # fmt: skip
    run(2)
    cases = lake.read("cases", PSEUDONYMISED_CASES)
    assert {r["person_key"] for r in cases.to_pylist()} == {before[0]["person_key"]}
    decided = lake.read("bounding", BOUNDING_DECISIONS).to_pylist()
    assert sorted((r["kept"], r["person_key"]) for r in decided) == [(False, before[0]["person_key"]), (True, before[0]["person_key"])]  # fmt: skip


def test_a_process_that_dies_while_somebody_joins_again_restarts_nobodys_budget(
    run: Run, lake: Lake, deliver: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Dies before each step that follows the pseudonymised tables; then the day runs again, or a later one on which they leave."""

    def come(day: int, *consents: dict[str, Any], **files: Any) -> None:
        deliver("klinik-nord", START + timedelta(day), {"Consent.ndjson": list(consents), **{f"{k}.ndjson": rows for k, rows in files.items()}})  # fmt: skip

    come(0, fhir_consent("BACK"), fhir_consent("STAYS"), Patient=[person("BACK"), person("STAYS")], Encounter=[stay("c1", "BACK"), stay("d1", "STAYS")])  # fmt: skip
    run(0)
    come(1, fhir_consent("BACK", kind="deny", on="2024-12-31", ident="w"))
    run(1)
    came = [stay("c1", "BACK"), stay("c2", "BACK", "2025-01-01")]
    come(2, fhir_consent("BACK", on="2025-01-01", ident="anew"), Patient=[person("BACK")], Encounter=came)
    come(3, fhir_consent("BACK", kind="deny", on="2025-01-02", ident="w2"))
    before, witness = tmp_path / "before", lake.keys.witness.read_bytes()
    shutil.copytree(lake.root, before, symlinks=True)

    def decided(dies_before: str, *runs: tuple[int, ...]) -> pa.Table:
        shutil.rmtree(lake.root)
        shutil.copytree(before, lake.root, symlinks=True)
        lake.keys.witness.write_bytes(witness)
        if dies_before:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(identity, dies_before, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                run(2)
            with pytest.raises(CertificateMismatch, match="run that day"):
                verify_cases(lake)
        for days in runs:
            run(*days)
        verify_cases(lake)
        return lake.read("bounding", BOUNDING_DECISIONS)

    again, gone = decided("", (2,)), decided("", (2, 3))
    assert again.column("kept").to_pylist().count(True) == 2 and again.num_rows == 3, (
        "c1 and d1; c2 lies in the same week"
    )
    assert decided("restore_counters", (2,)).equals(again)
    assert decided("record_days", (2,)).equals(again)
    assert decided("record_days", (2, 3)).equals(gone)


def test_who_signs_again_after_an_erasure_that_died_is_not_counted_twice(
    run: Run, lake: Lake, deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    """Dies when the counters are retired and the cases are still there; the next night takes both days at once."""
    first = {"Patient": [person("BACK")], "Encounter": [stay("c1", "BACK")], "Consent": [fhir_consent("BACK")]}
    denied = {"Consent": [fhir_consent("BACK", kind="deny", on="2024-12-31", ident="w")]}
    signed = {"Consent": [fhir_consent("BACK", on="2025-01-03", ident="anew")]}
    for day, files in enumerate((first, {}, {}, {}, denied, signed)):
        deliver("klinik-nord", START + timedelta(day), changes(**files))
    run(0, 3)
    counted = lake.read("bounding", BOUNDING_DECISIONS)
    assert counted.column("kept").to_pylist() == [True] and lake.read("events", EVENTS).num_rows == 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(erasure_pseudonymised, "seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(4)
    run(4, 5)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1, "permitted again before anybody erased it"
    assert lake.read("bounding", BOUNDING_DECISIONS).equals(counted), "it is the case that was counted"


INSURED: dict[str, Any] = {"identifier": [{"system": "http://fhir.de/sid/gkv/kvid-10", "value": "A123456780"}]}


def test_counters_that_a_former_version_left_retired_are_given_back(run: Run, lake: Lake, deliver: Callable[..., Path]):
    """Former versions recognised whoever had come again in memory only: the hashes stayed in the table."""
    both = {"Patient.ndjson": [person("BACK")], "Encounter.ndjson": [stay("c1", "BACK")]}
    deliver("klinik-nord", START, both | {"Consent.ndjson": [fhir_consent("BACK")]})
    run(0)
    counted = lake.read("bounding", BOUNDING_DECISIONS)
    deny = fhir_consent("BACK", kind="deny", on="2024-12-31", ident="w")
    deliver("klinik-nord", START + timedelta(1), {"Consent.ndjson": [deny]})
    run(1)
    retired = lake.read("bounding", BOUNDING_DECISIONS)
    assert retired != counted
    anew = fhir_consent("BACK", on="2025-01-01", ident="anew")
    deliver("klinik-nord", START + timedelta(2), both | {"Consent.ndjson": [anew]})
    run(2)
    assert lake.read("bounding", BOUNDING_DECISIONS) == counted
    lake.write_days("bounding", [START], retired, "decided_on")
    lake.erase_record("counters_returned")
    run(3)
    assert lake.read("bounding", BOUNDING_DECISIONS) == counted


def test_a_case_that_is_erased_stays_counted_for_a_patient_who_stays_and_is_known_by_another_name_since(
    run: Run, lake: Lake, deliver: Callable[..., Path]
):
    first = {"Patient": [person("STAYS")], "Encounter": [stay("c1", "STAYS")], "Consent": [fhir_consent("STAYS")]}
    removal = {"resourceType": "Bundle", "type": "transaction", "entry": [{"request": {"method": "DELETE", "url": "Encounter/c1"}}]}  # fmt: skip
    numbered = {"Patient": [person("STAYS", **INSURED)], "Encounter": [stay("c9", "STAYS", "2024-12-31")]}
    for day, files in enumerate((first, numbered, {"deleted": [removal]})):
        deliver("klinik-nord", START + timedelta(day), changes(**files))
        run(day)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
    deliver("hospital-sued", START + timedelta(3), {
        "FALL.csv": FALL + "f1;A123456780;1980;w;64283;202501020800;E;44;q\n",
        "consent.csv": CONSENT + ";q;2024-01-01;6,7,8;2024-01-01;;\n",
    })  # fmt: skip
    run(3)
    decided = lake.read("bounding", BOUNDING_DECISIONS).sort_by("decided_on").to_pylist()
    assert [r["kept"] for r in decided] == [True, False, False], "all three lie in one ISO week of one person"
    assert decided[0]["case_key"].startswith(MARK) and not decided[0]["person_key"].startswith(MARK)


@pytest.mark.parametrize("others", [[], ["GONE"]])
def test_on_which_day_consents_are_judged_does_not_depend_on_who_came(
    run: Run, lake: Lake, deliver: Callable[..., Path], others: list[str]
):
    for who in others:
        files = {
            "Patient.ndjson": [person(who)],
            "Encounter.ndjson": [stay("c", who)],
            "Consent.ndjson": [fhir_consent(who)],
        }
        deliver("klinik-nord", START + timedelta(4), files)
    run(0, 4)
    assert consent.evaluation_day(lake, [START]) == START + timedelta(4)
    for who in others:
        deliver(
            "klinik-nord",
            START + timedelta(5),
            {"Consent.ndjson": [fhir_consent(who, kind="deny", on="2025-01-04", ident="w")]},
        )
    run(5)
    assert places(lake, ["GONE"]) == set() and consent.evaluation_day(lake, [START]) == START + timedelta(5)


def test_joining_again_with_a_first_insured_number_keeps_the_counter(
    run: Run, lake: Lake, deliver: Callable[..., Path]
):
    """What was counted before the number was known is found by the patient, whose link leads to the person."""

    def deliver_all(day: int, **files: Any) -> None:
        deliver("klinik-nord", START + timedelta(day), {f"{name}.ndjson": rows for name, rows in files.items()})
        run(day)

    deliver_all(0, Patient=[person("BACK")], Encounter=[stay("c1", "BACK")], Consent=[fhir_consent("BACK")])
    deliver_all(1, Consent=[fhir_consent("BACK", kind="deny", on="2024-12-31", ident="w")])
    assert lake.read("bounding", BOUNDING_DECISIONS).column("person_key")[0].as_py().startswith(MARK)
    deliver_all(2, Patient=[person("BACK", **INSURED)], Encounter=[stay("c2", "BACK", "2025-01-01")],
                Consent=[fhir_consent("BACK", on="2025-01-01", ident="anew")])  # fmt: skip
    assert lake.read("bounding", BOUNDING_DECISIONS).column("kept").to_pylist() == [True, False]


def test_who_withdraws_at_one_clinic_keeps_at_the_other_what_was_counted_before_they_were_linked(
    run: Run, lake: Lake, deliver: Callable[..., Path]
):
    csv = CONSENT + ";q;2024-01-01;6,7,8;2024-01-01;;\n"
    deliver("klinik-nord", START, {
        "Patient.ndjson": [person("GONE")], "Encounter.ndjson": [stay("c1", "GONE")], "Consent.ndjson": [fhir_consent("GONE")],
    })  # fmt: skip
    run(0)
    deliver("klinik-nord", START + timedelta(1), {"Patient.ndjson": [person("GONE", **INSURED)], "Encounter.ndjson": [stay("c1", "GONE")]})  # fmt: skip
    run(1)
    deliver("klinik-nord", START + timedelta(2), {"Consent.ndjson": [fhir_consent("GONE", kind="deny", on="2025-01-01", ident="w")]})  # fmt: skip
    run(2)
    deliver("hospital-sued", START + timedelta(3), {
        "FALL.csv": FALL + "f1;A123456780;1980;w;64283;202501020800;E;44;q\n", "consent.csv": csv,
    })  # fmt: skip
    run(3)
    cases = lake.read("cases", PSEUDONYMISED_CASES)
    decided = lake.read("bounding", BOUNDING_DECISIONS).to_pylist()
    assert [r["kept"] for r in decided] == [True, False], "both lie in one ISO week of one person"
    assert {r["person_key"] for r in decided} == set(cases.column("person_key").to_pylist())


def test_a_consent_gone_from_a_full_delivery_counts_as_withdrawn(run: Run, lake: Lake, city: City, deliver: Callable[..., Path]):  # fmt: skip
    clinics = tuple(
        c.model_copy(update={"consent_delivery": "full"}) if c.key == "klinik-nord" else c for c in city.clinics
    )
    full = city.model_copy(update={"clinics": clinics})
    deliver("klinik-nord", START, {
        "Patient.ndjson": [person("GONE"), person("STAYS")], "Encounter.ndjson": [stay("c1GONE", "GONE"), stay("c2", "STAYS")],
        "Consent.ndjson": [fhir_consent("GONE"), fhir_consent("STAYS")],
    })  # fmt: skip
    run(0, within=full)
    deliver("klinik-nord", START + timedelta(1), {"Patient.ndjson": [person("STAYS")]})
    run(1, within=full)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 2  # no delivery of consents at all
    deliver("klinik-nord", START + timedelta(2), {"Consent.ndjson": [fhir_consent("STAYS")]})
    run(2)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 2  # incremental: absence says nothing
    run(2, within=full)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1 and places(lake, ["GONE"]) == set()


def test_a_consent_that_the_server_could_not_export_does_not_count_as_withdrawn(run: Run, lake: Lake, city: City, deliver: Callable[..., Path]):  # fmt: skip
    full = city.model_copy(
        update={"clinics": tuple(c.model_copy(update={"consent_delivery": "full"}) for c in city.clinics)}
    )
    deliver("klinik-nord", START, {
        "Patient.ndjson": [person("p")], "Encounter.ndjson": [stay("c1", "p")], "Consent.ndjson": [fhir_consent("p"), fhir_consent("q")],
    })  # fmt: skip
    run(0, within=full)
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "timeout"}]}
    rest = {"Consent.ndjson": [fhir_consent("q")]}
    deliver("klinik-nord", START + timedelta(1), rest | {"OperationOutcome.000.ndjson": [outcome]})
    run(1, within=full)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
    outcome["issue"][0]["severity"] = "warning"
    deliver("klinik-nord", START + timedelta(2), rest | {"OperationOutcome.000.ndjson": [outcome]})
    run(2, within=full)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0


@pytest.mark.parametrize("bundled", [False, True])
def test_a_consent_gone_from_the_second_full_delivery_of_a_day_counts_as_withdrawn(run: Run, lake: Lake, city: City, deliver: Callable[..., Path], bundled: bool):  # fmt: skip
    clinics = tuple(c.model_copy(update={"consent_delivery": "full"}) for c in city.clinics)
    full = city.model_copy(update={"clinics": clinics})

    def files(*consents: dict[str, Any]) -> dict[str, Any]:
        rows = {
            "Patient.ndjson": [person("p")],
            "Encounter.ndjson": [stay("c1", "p")],
            "Consent.ndjson": list(consents),
        }
        if not bundled:
            return rows
        entries = [{"resource": r} for of_type in rows.values() for r in of_type]
        return {"all.json": json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries})}

    deliver("klinik-nord", START, files(fhir_consent("p"), fhir_consent("q")))
    run(0, within=full)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
    deliver("klinik-nord", START, files(fhir_consent("q")), suffix="-second")
    run(0, within=full)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0


def test_a_stored_case_leaves_when_its_collection_window_is_taken_back(run: Run, lake: Lake, deliver: Callable[..., Path]):  # fmt: skip
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p")], "Encounter.ndjson": [stay("c1", "p")], "Consent.ndjson": [fhir_consent("p")]})  # fmt: skip
    run(0, 4)
    assert lake.read("events", EVENTS).num_rows == 1
    taken_back = fhir_consent("p", kind="deny", on="2025-01-04", start="2024-12-01", ident="w")
    taken_back["provision"]["provision"] = taken_back["provision"]["provision"][:1]  # collecting only
    deliver("klinik-nord", START + timedelta(5), {"Consent.ndjson": [taken_back]})
    run(5)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == lake.read("events", EVENTS).num_rows == 0


def test_a_consent_that_ends_on_a_day_on_which_nobody_comes_takes_the_patient_along(run: Run, lake: Lake, deliver: Callable[..., Path]):  # fmt: skip
    ends = fhir_consent("GONE")
    for nested in ends["provision"]["provision"]:
        nested["period"] = {"start": "2024-01-01", "end": str(START + timedelta(1))}
    deliver("klinik-nord", START, {"Patient.ndjson": [person("GONE"), person("STAYS")], "Encounter.ndjson": [stay("c1", "GONE"), stay("c2", "STAYS")],
            "Consent.ndjson": [ends, fhir_consent("STAYS")]})  # fmt: skip
    run(0)
    run(1)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 2
    run(2)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1 and places(lake, ["GONE"]) == set()


PADDED = (" 1 ", '" 1"', "1\t", "\u00a01\u00a0")


def test_erasing_spares_others_with_similar_ids(lake: Lake):
    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    rows = [person("1"), person("11"), stay("1", "11"), stay("2", "1"), stay("3", "11", diagnosis=[{"rank": 1}])]
    (folder / "mixed.ndjson").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "FALL.csv").write_text(FALL + "7;;1970;w;64297;202412300800;E;1;1\n1;;1970;w;64297;202412300800;E;1;11\n"
                                     "9;\0;1970;w;64297;202412300800;E;1;1\0\n")  # fmt: skip
    erased = erase_patients(lake, "klinik-nord", ["1"], ["7"], None, START)
    assert (folder / "mixed.ndjson").read_text() == "".join(json.dumps(r) + "\n" for r in (rows[1], rows[2], rows[4]))
    assert (folder / "FALL.csv").read_text() == FALL + "1;;1970;w;64297;202412300800;E;1;11\n" and erased.lines == 4
    assert erase_patients(lake, "klinik-nord", ["1"], ["7"], None, START).lines == 0
    (folder / "FALL.csv").write_text(
        FALL + "".join(f"9;;1970;w;64297;202412300800;E;1;{who}\n" for who in PADDED), "utf-8"
    )
    assert erase_patients(lake, "klinik-nord", ["1"], ["7"], None, START).lines == len(PADDED)


def test_a_line_that_names_no_patient_goes_with_its_case(lake: Lake, city: City):
    """FHIR forbids it, but such a diagnosis counts for the case that it names. A child within its mother's case is named itself."""
    code = {"code": {"coding": [{"system": "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "code": "I21.0"}]}}
    ward = {
        "resourceType": "Encounter",
        "id": "ward",
        "partOf": {"reference": "https://example.org/Encounter/GONEcase"},
    }
    mine = {"resourceType": "Condition", "id": "d1", "encounter": {"reference": "Encounter/GONEcase"}} | code
    other = {"resourceType": "Condition", "id": "d2", "encounter": {"reference": "Encounter/GONEcase-2"}} | code
    child = stay("child", "CHILD", partOf={"reference": "Encounter/GONEcase"})
    folder = lake.landing / "klinik-nord" / str(START) / "aa"
    folder.mkdir(parents=True)
    for name, lines in (("Condition", [mine, other]), ("Encounter", [ward, child])):
        (folder / f"{name}.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bundle = {"resourceType": "Bundle", "entry": [{"resource": r} for r in (mine, other, child)]}
    (folder / "all.json").write_text(json.dumps(bundle))
    assert erase_patients(lake, "klinik-nord", ["GONEfhir"], ["GONEcase"], None, TODAY).lines == 3
    left = {
        name: [json.loads(line)["id"] for line in (folder / f"{name}.ndjson").open()]
        for name in ("Condition", "Encounter")
    }
    assert left == {"Condition": ["d2"], "Encounter": ["child"]}
    assert [e["resource"]["id"] for e in json.loads((folder / "all.json").read_bytes())["entry"]] == ["d2", "child"]


def test_what_no_reader_takes_goes_without_being_looked_at(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    """A line without end, a header without end, a packed file without end: one clinic's rubbish stops no withdrawal."""
    monkeypatch.setattr(naming, "MAX_LINE_BYTES", 2**16)
    monkeypatch.setattr(naming, "BATCH_BYTES", 2**16)
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 2**18)
    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    keep = "".join(json.dumps(stay(f"c{n}", "STAYS")) + "\n" for n in range(400))
    with (folder / "Encounter.ndjson").open("w") as out:
        out.write(keep)
        for _ in range(32):
            out.write("x" * 2**20)
        out.write("GONE\n" + keep + json.dumps(stay("c", "GONE")) + "\n" + keep)
        out.write('{"id":"' + "y" * 2**20)
    (folder / "FALL.csv").write_text("a;" * 100_000 + "GONE\n1;2\n")
    (folder / "Patient.ndjson.gz").write_bytes(gzip.compress(b"\n" * 2_000_000))
    tracemalloc.start()
    erased = erase_patients(lake, "klinik-nord", ["GONE"], [], None, START)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (folder / "Encounter.ndjson").read_text() == 3 * keep
    assert not (folder / "Patient.ndjson.gz").exists() and "GONE" not in (folder / "FALL.csv").read_text()
    assert (erased.lines, erased.files) == (4, 1) and peak < 16 * 2**20


def test_raw_files_go_after_their_retention_and_a_run_that_needs_them_says_so(run: Run, lake: Lake, city: City, deliver: Callable[..., Path]):  # fmt: skip
    kept = city.model_copy(update={"retention_days": 30})
    hospital_week(deliver)
    run(0, 2, within=kept)
    days = [START + timedelta(n) for n in range(3, 8)]
    intake.take(lake, kept, days, START + timedelta(60))
    assert list(lake.landing.rglob("FALL.csv"))  # old enough, but its day is not frozen yet
    run(3, 7, within=city)
    before = lake.read("cases", PSEUDONYMISED_CASES)
    intake.take(lake, kept, days, START + timedelta(29))
    assert list(lake.landing.rglob("FALL.csv"))
    intake.take(lake, kept, days, START + timedelta(30))
    manifests = {p: p.stat().st_ino for p in lake.landing.rglob("*") if p.is_file()}
    assert [p.name for p in manifests] == ["manifest.json"] * 3
    with pytest.raises(RawFilesErased, match=f"hospital-sued, .* again: {START};.*newer day"):
        run(0, within=kept)
    intake.take(lake, kept, days, START + timedelta(31))
    assert all(p.stat().st_ino == file for p, file in manifests.items())  # what is empty is not written every night
    assert lake.read("cases", PSEUDONYMISED_CASES).equals(before)
    run(8, within=kept)


def test_tombstones_hold_no_permit_and_no_id(run: Run, week: None, lake: Lake, deliver: Callable[..., Path]):
    withdrawals(deliver, START + timedelta(6))
    run(6)
    rows = lake.read(TOMBSTONES, CONSENT_PROVISIONS).to_pylist()
    assert {r["decision"] for r in rows} == {"deny", "none"} and not any(n in str(rows) for n in NEEDLES)


def bundle(*entries: dict[str, Any], **more: Any) -> str:
    return json.dumps({"resourceType": "Bundle", "type": "transaction", **more, "entry": list(entries)}) + "\n"


@pytest.mark.parametrize("name", ["deleted.ndjson", "all.json"])
def test_a_bundle_loses_the_patients_entries_and_keeps_the_others(lake: Lake, city: City, name: str):
    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    stays, elsewhere = {"resource": person("STAYS")}, {"request": {"method": "DELETE", "url": "Consent/other"}}
    gone = [
        {"resource": person("GONE")},
        {"request": {"method": "DELETE", "url": "Patient/GONE"}},
        {"request": {"method": "DELETE", "url": "Encounter/c1"}},
        {"fullUrl": "https://kis.example/Consent/d1", "resource": {"resourceType": "Consent"}},
    ]
    mixed = [bundle(stays), bundle(stays, *gone), bundle(elsewhere, gone[1]), bundle(*gone)]
    (folder / name).write_text("".join(mixed))
    (folder / "manifest.json").write_text(json.dumps({"files": [{"name": name}]}))
    assert erase_patients(lake, "klinik-nord", ["GONE"], ["c1"], None, START, ["d1"]).lines == 3
    assert (folder / name).read_text() == bundle(stays) * 2 + bundle(elsewhere) + bundle()
    intake.read(lake, city, [START])  # nobody else's rows are missing


@pytest.mark.parametrize("document", [False, True])
def test_bundles_within_a_bundle_lose_the_patients_entries_too(lake: Lake, city: City, document: bool):
    """As a consent service lists its consents, each with its patient."""

    def signed(who: str, **more: Any) -> dict[str, Any]:
        of = {"resource": {"resourceType": "Patient"}, "fullUrl": f"urn:uuid:{who}"}  # its id is this address
        inner = json.loads(bundle(of, {"resource": fhir_consent(who, patient={"reference": f"urn:uuid:{who}"})}))
        return {"resource": inner | more}

    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    name = "consents.json" if document else "consents.ndjson"
    both = json.loads(bundle(signed("STAYS"), signed("GONE"), {"resource": person("GONE")}))
    (folder / name).write_text(bundle(signed("a"), signed("GONE"), {"resource": both}, {"resource": person("b")}))
    (folder / "manifest.json").write_text(json.dumps({"files": [{"name": name}]}))
    erase_patients(lake, "klinik-nord", ["GONE"], [], None, START)
    left = json.loads(bundle(signed("STAYS")))
    assert json.loads((folder / name).read_text()) == json.loads(
        bundle(signed("a"), {"resource": left}, {"resource": person("b")})
    )
    intake.read(lake, city, [START])  # nobody else's rows are missing


@pytest.mark.parametrize("name", ["export.ndjson", "patient.ndjson", "all.json", "x.jsonl.gz", "Consent.000.ndjson"])
def test_a_file_of_all_types_loses_the_patients_lines_and_keeps_the_others(lake: Lake, city: City, name: str):
    """Byte for byte, whatever its name says; and what is left can be read again."""
    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    pack, unpack = (gzip.compress, gzip.decompress) if name.endswith("gz") else (bytes, bytes)

    def lines(who: str) -> list[str]:
        lab = {"resourceType": "Observation", "id": f"o{who}", "subject": {"reference": f"Patient/{who}"}}
        ward = stay(f"w-{who}", who, partOf={"reference": f"Encounter/c-{who}"})
        rows = [person(who), stay(f"c-{who}", who), ward, fhir_consent(who), lab]
        return [json.dumps(r) + "\n" for r in rows] + [bundle({"resource": person(who)})]

    kept, gone = lines("STAYS"), lines("GONE")
    mixed = [line for pair in zip(kept, gone, strict=True) for line in pair]
    (folder / name).write_bytes(pack("".join(mixed).encode()))
    (folder / "manifest.json").write_text(json.dumps({"files": [{"name": name}]}))
    intake.read(lake, city, [START])
    assert lake.read("staging/canonical/cases", CANONICAL["cases"], [START]).num_rows == 2
    assert erase_patients(lake, "klinik-nord", ["GONE"], ["c-GONE"], None, START, ["consent-GONE"]).lines == 6
    assert unpack((folder / name).read_bytes()).decode() == "".join([*kept, bundle()])
    assert intake.read(lake, city, [START])["cases_by_clinic"] == {"klinik-nord": 1}
    before = (folder / name).read_bytes()
    erase_patients(lake, "klinik-nord", ["GONE"], ["c-GONE"], None, START, ["consent-GONE"])
    assert (folder / name).read_bytes() == before


def test_who_came_in_a_file_of_all_types_is_gone_from_every_byte_outside_the_inbox(
    run: Run, lake: Lake, deliver: Callable[..., Path]
):
    """Also when the withdrawal comes that way, beside somebody else's consent."""
    rows = [[person(n), stay(f"case{n}", n), fhir_consent(n)] for n in ("GONEfhir", "STAYS")]
    parts = [[r for pair in zip(*rows, strict=True) for r in pair][n::2] for n in range(2)]
    text = ["".join(json.dumps(r) + "\n" for r in part) for part in parts]
    deliver("klinik-nord", START, {"patient.ndjson": text[0], "x.ndjson.gz": gzip.compress(text[1].encode())})
    run(0)
    assert len(lake.read("cases", PSEUDONYMISED_CASES)) == 2
    denied = fhir_consent("GONEfhir", kind="deny", on="2025-01-04", ident="w1")
    deliver("klinik-nord", START + timedelta(1), {"Patient.ndjson": [person("STAYS"), denied, fhir_consent("STAYS")]})
    run(1)
    assert len(lake.read("cases", PSEUDONYMISED_CASES)) == 1 and places(lake, ["GONE"]) == set()
    kept = "".join((gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()).decode()
                   for p in lake.landing.rglob("*.ndjson*"))  # fmt: skip
    assert "caseSTAYS" in kept and "consent-STAYS" in kept


def test_files_that_may_say_whose_a_case_is_are_rewritten_last(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    """After a crash the next run finds the cases of a patient in what is left."""
    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    for name in ("Patient.ndjson", "All.json", "Any.ndjson", "Condition.ndjson", "Observation.ndjson"):
        (folder / name).write_text(json.dumps(person("GONE")) + "\n" + json.dumps(person("STAYS")) + "\n")
    (folder / "Observation.ndjson").write_text(
        '{"resourceType":"Observation","subject":{"reference":"Patient/GONE"}}\n'
    )
    order, real = [], landing._without
    monkeypatch.setattr(landing, "_without", lambda path, lines: (order.append(path.name), real(path, lines)))
    erase_patients(lake, "klinik-nord", ["GONE"], [], None, START)
    assert sorted(order[:2]) == ["Condition.ndjson", "Observation.ndjson"] and len(order) == 5


@pytest.mark.parametrize("document", [False, True])
def test_a_record_loses_the_link_to_another_that_goes_and_nothing_else(lake: Lake, city: City, document: bool):
    """That it was replaced is its own, and nothing else tells of it."""
    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    name, write = ("b.json", lambda *records: bundle(*({"resource": r} for r in records))) if document else (
        "Patient.ndjson", lambda *records: "".join(json.dumps(r) + "\n" for r in records))  # fmt: skip
    other = {"other": {"reference": "Patient/GONE"}}
    linked = [
        person("p", link=[{"type": "replaced-by"} | other], text={"div": "now GONE"}),
        person("q", link=[{"type": "replaces"}]),
    ]
    named = [person("GONE", link=[other]), person("r", link=[other], generalPractitioner=[other["other"]]), person("t", link="GONE", managingOrganization=other["other"])]  # fmt: skip
    (folder / name).write_text(write(*linked, *named))
    (folder / "manifest.json").write_text(json.dumps({"files": [{"name": name}]}))
    assert erase_patients(lake, "klinik-nord", ["GONE"], [], None, START).lines == (1 if document else 4)
    assert (folder / name).read_text() == write(person("p", link=[{"type": "replaced-by"}]), linked[1])


def test_a_record_that_loses_a_link_keeps_its_address(lake: Lake, city: City):
    """Contacts refer to it by that: a day that runs again would have cases of nobody known."""
    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    linked = person("p", link=[{"type": "replaces", "other": {"reference": "Patient/GONE"}}])
    case = stay("c", "p", subject={"reference": "urn:uuid:1-2"})
    entries = [{"fullUrl": "urn:uuid:1-2", "resource": linked}, {"resource": case}, {"resource": person("GONE")}]
    (folder / "b.json").write_text(bundle(*entries))
    (folder / "manifest.json").write_text(json.dumps({"files": [{"name": "b.json"}]}))
    erase_patients(lake, "klinik-nord", ["GONE"], [], None, START)
    left = json.loads((folder / "b.json").read_text())["entry"]
    assert [e.get("fullUrl") for e in left] == ["urn:uuid:1-2", None]
    intake.read(lake, city, [START])
    stored = lake.read("staging/canonical/cases", CANONICAL["cases"], [START])
    assert stored.column("patient_id").to_pylist() == ["p"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_document_loses_the_patients_entries_under_whatever_address(lake: Lake, city: City, packed: bool):
    def entries(who: str, at: str, own_id: bool) -> list[dict[str, Any]]:
        where = {"subject": {"reference": f"urn:uuid:{at}"}}
        rows = [
            person(who),
            stay(f"case-{who}", who, **where),
            fhir_consent(who, patient={"reference": f"urn:uuid:{at}"}),
        ]
        if not own_id:
            del rows[0]["id"]
        return [{"fullUrl": f"urn:uuid:{at if n == 0 else f'{at}-{n}'}", "resource": r} for n, r in enumerate(rows)]

    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    name, pack = ("b.json.gz", gzip.compress) if packed else ("b.json", bytes)
    unpack = gzip.decompress if packed else bytes
    gone, unnamed = entries("GONE", "a-1", True), entries("", "GONE2", False)
    kept = entries("STAYS", "a-2", True)
    (folder / name).write_bytes(
        pack(json.dumps(json.loads(bundle(*kept[:1], *gone, *unnamed, *kept[1:], id="b")), indent=1).encode())
    )
    (folder / "manifest.json").write_text(json.dumps({"files": [{"name": name}]}))
    erase_patients(lake, "klinik-nord", ["GONE", "GONE2"], [], None, START)
    assert unpack((folder / name).read_bytes()).decode() == bundle(*kept, id="b")
    assert intake.read(lake, city, [START])["cases_by_clinic"] == {"klinik-nord": 1}
    before = (folder / name).read_bytes()
    erase_patients(lake, "klinik-nord", ["GONE", "GONE2"], [], None, START)
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(person("GONE"), indent=1),
        bundle(id="GONE", identifier={"value": "x"}, link=[{"url": "https://kis.example/Patient/GONE"}]),
        bundle({"resource": person("STAYS")}, {"resource": person("GONE")})[:-9],
        '{"resourceType":"Bundle","entry":{"resource":{"resourceType":"Patient","id":"GONE"}}}',
    ],
    ids=["no Bundle", "named beside the entries", "cut short", "entries are no list"],
)
def test_a_document_that_cannot_be_taken_apart_goes_as_a_whole(lake: Lake, city: City, text: str):
    folder = lake.landing / "klinik-nord" / str(START) / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "b.json").write_text(text)
    (folder / "other.json").write_text(text.replace("GONE", "STAYS"))
    (folder / "manifest.json").write_text(json.dumps({"files": [{"name": "b.json"}, {"name": "other.json"}]}))
    assert erase_patients(lake, "klinik-nord", ["GONE"], [], None, START).files == 1
    assert not (folder / "b.json").exists() and (folder / "other.json").exists()
    with pytest.raises(RawFilesErased, match="klinik-nord"):
        intake.read(lake, city, [START])


def test_changes_only_say_nothing_of_consents_that_are_missing(
    run: Run, lake: Lake, city: City, deliver: Callable[..., Path]
):
    clinics = tuple(c.model_copy(update={"consent_delivery": "full"}) for c in city.clinics)
    full = city.model_copy(update={"clinics": clinics})
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p")], "Encounter.ndjson": [stay("c1", "p")], "Consent.ndjson": [fhir_consent("p")]})  # fmt: skip
    run(0, within=full)
    deliver("klinik-nord", START + timedelta(1), {"Consent.ndjson": [fhir_consent("q")], "export.json": '{"scope": "incremental"}'})  # fmt: skip
    run(1, within=full)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1


def test_a_deleted_consent_is_remembered_as_revoked(lake: Lake, city: City):
    days = [START, START + timedelta(1)]
    schema = CONSENT_PROVISIONS
    active = {"clinic": "k", "arrival_day": days[0], "export_id": "e", "source_file": "f", "source_line": 1, "patient_id": "p", "consent_id": "c",
              "status": "active", "code": f"{OID}.8", "decision": "permit", "valid_from": START, "period_readable": True}  # fmt: skip
    deleted = active | {"arrival_day": days[1], "patient_id": None, "status": "entered-in-error", "code": "*", "decision": "none", "period_readable": False}  # fmt: skip
    lake.write_days("consent_register", days[:1], pa.Table.from_pylist([active], schema=schema), "arrival_day")
    owned = consent._with_owners(lake, pa.Table.from_pylist([deleted], schema=schema))
    assert owned.column("patient_id").to_pylist() == ["p"]
    register = pa.concat_tables([pa.Table.from_pylist([active], schema=schema), owned])
    patients = pa.table({"clinic": ["k"], "patient_id": ["p"]})
    buried = bury(register, patients, days[1], lake.keys)
    again, back = recognise_consents(buried, pa.Table.from_pylist([active | {"arrival_day": START + timedelta(9)}], schema=schema), patients, lake.keys)  # fmt: skip
    (row,) = standing(again, city.consent, START + timedelta(9)).to_pylist()
    assert back.num_rows == 1 and (row["patient_id"], row["reason"], row["erase"]) == ("p", "document_not_active", True)


def test_to_a_register_only_what_is_remembered_of_who_comes_back_is_added(lake: Lake):
    row = {"arrival_day": START, "export_id": "e", "source_file": "f", "source_line": 1, "status": "active", "code": f"{OID}.8",
           "decision": "permit", "valid_from": START, "period_readable": True}  # fmt: skip
    people = [("k", "p"), ("k", "other"), ("elsewhere", "p"), ("k", None)]
    rows = [row | {"clinic": clinic, "patient_id": who, "consent_id": "same"} for clinic, who in people]
    register = pa.Table.from_pylist(rows, schema=CONSENT_PROVISIONS)
    nobody = register.slice(0, 0).select(["clinic", "patient_id"])
    denied = pa.Table.from_pylist([rows[0] | {"decision": "deny"}], schema=CONSENT_PROVISIONS)
    buried = bury(denied, denied.select(["clinic", "patient_id"]), START, lake.keys)
    found, back = recognise_consents(buried, register, nobody, lake.keys)
    assert back.to_pylist() == [{"clinic": "k", "patient_id": "p"}]
    assert found.slice(0, 4).equals(register)
    added = {(r["clinic"], r["patient_id"], r["decision"]): r["consent_id"] for r in found.slice(4).to_pylist()}
    assert set(added) == {("k", "p", "deny"), ("k", "p", "none")} and found.num_rows == 6
    assert added["k", "p", "deny"] == "same", "old and new version are one document"
    untouched, back = recognise_consents(buried, register.slice(1), nobody, lake.keys)
    assert untouched.equals(register.slice(1)) and not back.num_rows


def test_who_comes_of_age_is_erased_unless_they_sign_for_themselves(run: Run, lake: Lake, city: City, deliver: Callable[..., Path]):  # fmt: skip
    rule = city.consent.model_copy(update={"guardian_consent_ends_at": 18})
    minors = city.model_copy(update={"consent": rule})
    born = {"birthDate": "2007-01-05"}
    deliver("klinik-nord", START, {
        "Patient.ndjson": [person("GONE", **born), person("SIGNS", **born), person("YOUNGER", birthDate="2007-01-06")],
        "Encounter.ndjson": [stay(f"case{who}", who) for who in ("GONE", "SIGNS", "YOUNGER")],
        "Consent.ndjson": [fhir_consent(who) for who in ("GONE", "SIGNS", "YOUNGER")],
    })  # fmt: skip
    run(0, 5, within=minors)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 3
    own = fhir_consent("SIGNS", on="2025-01-05", start="2025-01-05", ident="own")
    deliver("klinik-nord", START + timedelta(6), {"Consent.ndjson": [own]})
    run(6, within=minors)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 2 and places(lake, ["GONE"]) == set()
    deliver("klinik-nord", START + timedelta(7), {"Patient.ndjson": [person("GONE", **born)], "Encounter.ndjson": [stay("caseGONE", "GONE")],
            "Consent.ndjson": [fhir_consent("GONE")]})  # fmt: skip
    run(7, within=minors)
    (back,) = [r for r in lake.read("cases", PSEUDONYMISED_CASES).to_pylist()]
    assert back["arrival_day"] == START and places(lake, ["GONE", "YOUNGER"]) == set()
    run(8, within=city)


def changes(**files: Any) -> dict[str, Any]:
    return {"export.json": '{"scope": "incremental"}', **{f"{kind}.ndjson": rows for kind, rows in files.items()}}


@pytest.mark.parametrize("whole", [True, False])
def test_a_consent_that_moved_stays_when_its_former_patient_goes(run: Run, lake: Lake, deliver: Callable[..., Path], whole: bool):  # fmt: skip
    """It was taken out of the raw copies with the former patient's, so a day that ran again erased whose it is."""
    rows = {"Patient": [person("GONE"), person("q")], "Encounter": [stay("c1", "GONE"), stay("c2", "q")]}
    deliver("klinik-nord", START, {f"{kind}.ndjson": of for kind, of in rows.items()} | {"Consent.ndjson": [fhir_consent("GONE", ident="k")]})  # fmt: skip
    run(0)
    moved = {"Encounter": [stay("c2", "q")], "Consent": [fhir_consent("q", ident="k")]}
    deliver("klinik-nord", START + timedelta(1), {f"{kind}.ndjson": of for kind, of in (rows | moved).items()} if whole else changes(**moved))  # fmt: skip
    run(1)
    assert places(lake, ["GONE"]) == set()
    for _ in range(2):
        assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
        run(1)


def test_a_consent_that_moved_permits_its_former_patient_nothing_when_the_new_one_goes(run: Run, lake: Lake, deliver: Callable[..., Path]):  # fmt: skip
    own, moving = fhir_consent("p", ident="k2"), {who: fhir_consent(who, ident="k") for who in ("p", "GONE")}
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p"), person("GONE")], "Encounter.ndjson": [stay("c1", "p"), stay("c2", "GONE")],
            "Consent.ndjson": [own, moving["p"]]})  # fmt: skip
    run(0)
    deliver("klinik-nord", START + timedelta(1), changes(Consent=[moving["GONE"]]))
    run(1)
    withdrawal = fhir_consent("GONE", kind="deny", on="2024-12-01", ident="w")
    deliver("klinik-nord", START + timedelta(2), changes(Consent=[withdrawal]))
    run(2)
    assert places(lake, ["GONE"]) == set() and lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
    deliver("klinik-nord", START + timedelta(3), changes(Consent=[own | {"status": "inactive"}]))
    run(3)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0


OF_GONE = {"subject": {"reference": "Patient/GONE"}}


@pytest.mark.parametrize("scope", [{}, {"export.json": '{"scope": "incremental"}'}], ids=["new", "changes"])
@pytest.mark.parametrize("line", [
    {"resourceType": "Observation", "id": "o", **OF_GONE}, {"resourceType": "Condition", "id": "d", **OF_GONE},
    {"resourceType": "Encounter", "id": "ward", "partOf": {"reference": "Encounter/c1"}, **OF_GONE},
    person("p", link=[{"type": "replaced-by", "other": OF_GONE["subject"]}]),
], ids=lambda line: line["resourceType"])  # fmt: skip
def test_whoever_is_gone_leaves_no_line_that_comes_alone_later(run: Run, lake: Lake, deliver: Callable[..., Path], line: dict[str, Any], scope: dict[str, str]):  # fmt: skip
    """No table holds such a line, a laboratory value or what names the patient beside another, so none tells whose it is."""
    deliver("klinik-nord", START, {"Patient.ndjson": [person("GONE")], "Encounter.ndjson": [stay("c1", "GONE")], "Consent.ndjson": [fhir_consent("GONE")]})  # fmt: skip
    run(0)
    deliver("klinik-nord", START + timedelta(1), {"Consent.ndjson": [fhir_consent("GONE", "inactive")]})
    run(1)
    assert places(lake, ["GONE"]) == set()
    deliver("klinik-nord", START + timedelta(2), {"Patient.ndjson": [person("p")], f"{line['resourceType']}.ndjson": [line], **scope})  # fmt: skip
    run(2)
    assert places(lake, ["GONE"]) == set()


def test_changes_build_upon_what_came_before(run: Run, lake: Lake, deliver: Callable[..., Path]):
    insured = [{"system": "http://fhir.de/sid/gkv/kvid-10", "value": "A123456780"}]
    coded = {"resourceType": "Condition", "id": "d", "subject": {"reference": "Patient/p"}, "encounter": {"reference": "Encounter/c1"},
             "code": {"coding": [{"system": "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "code": "I21.0"}]}}  # fmt: skip
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p", identifier=insured), person("other")], "Encounter.ndjson": [stay("c1", "p")],
            "Condition.ndjson": [coded], "Consent.ndjson": [fhir_consent("p")]})  # fmt: skip
    run(0)
    # The stay goes on, and a second one begins: neither the patient nor the diagnosis changed, so neither comes again.
    longer = stay("c1", "p", period={"start": "2024-12-30", "end": "2025-01-02"})
    deliver("klinik-nord", START + timedelta(2), changes(Encounter=[longer, stay("c2", "p", "2025-01-01")]))
    run(2)
    rows = lake.read("cases", PSEUDONYMISED_CASES).to_pylist()
    assert sorted((r["arrival_day"], r["chapter"]) for r in rows) == [
        (START, "IX"), (START + timedelta(2), "IX"), (START + timedelta(2), "unknown"),
    ]  # fmt: skip
    assert {r["area"] for r in rows} == {"64283"} and len({r["person_key"] for r in rows}) == 1


def test_changes_of_a_patient_who_was_replaced_build_upon_nobody(run: Run, lake: Lake, deliver: Callable[..., Path]):
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p")], "Consent.ndjson": [fhir_consent("p")]})
    run(0)
    merged = person("p", link=[{"type": "replaced-by", "other": {"reference": "Patient/q"}}])
    deliver("klinik-nord", START + timedelta(1), changes(Patient=[merged], Encounter=[stay("c", "p")]))
    run(1)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0
    deliver("klinik-nord", START + timedelta(2), changes(Patient=[person("p")]))  # by mistake, as it turns out
    run(2)
    deliver("klinik-nord", START + timedelta(3), changes(Encounter=[stay("d", "p")]))
    run(3)
    assert lake.read("cases", PSEUDONYMISED_CASES, [START + timedelta(3)]).num_rows == 1


def test_a_case_that_was_moved_to_somebody_else_stays_when_the_former_patient_goes(run: Run, lake: Lake, deliver: Callable[..., Path]):  # fmt: skip
    def of(who: str, icd: str) -> dict[str, Any]:
        coded = {"resourceType": "Condition", "id": "d", "subject": {"reference": f"Patient/{who}"}, "encounter": {"reference": "Encounter/c1"},
                 "code": {"coding": [{"system": "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "code": icd}]}}  # fmt: skip
        return {"Patient": [person(who)], "Encounter": [stay("c1", who)], "Condition": [coded]}

    both = {"Consent": [fhir_consent("GONEtwin"), fhir_consent("q")]}
    deliver("klinik-nord", START, {f"{kind}.ndjson": rows for kind, rows in (of("GONEtwin", "I21.0") | both).items()})
    run(0, 4)
    needles = [r["patient_key"] for r in lake.read("cases", PSEUDONYMISED_CASES).to_pylist()]
    removal = {"resourceType": "Bundle", "type": "transaction", "entry": [{"request": {"method": "DELETE", "url": "Patient/GONEtwin"}}]}  # fmt: skip
    deliver("klinik-nord", START + timedelta(5), changes(**of("q", "J45.0"), deleted=[removal]))
    run(5)
    (stored,) = lake.read("cases", PSEUDONYMISED_CASES).to_pylist()
    assert (stored["arrival_day"], stored["chapter"]) == (START + timedelta(5), "X")
    assert lake.read("diagnoses", PSEUDONYMISED_DIAGNOSES).column("icd_code").to_pylist() == ["J45"]
    assert not lake.read("events", EVENTS).num_rows, "what was counted of it was the former patient's"
    assert places(lake, [*needles, "GONEtwin"]) == set()
    verify_cases(lake)


@pytest.mark.parametrize("whose, until", [("q", START), ("p", START + timedelta(9))], ids=["another's", "too long"])
def test_a_case_that_is_refused_does_not_come_back_when_an_older_day_runs_again(run: Run, lake: Lake, deliver: Callable[..., Path], whose: str, until: date):  # fmt: skip
    """It is somebody's now who permitted nothing, or lasts longer than it may be collected."""
    consents = [
        fhir_consent("p"),
        fhir_consent("p", kind="deny", on="2024-02-02", start=str(START + timedelta(5)), ident="no-more"),
    ]
    consents[1]["provision"]["provision"] = consents[1]["provision"]["provision"][:1]
    both = {"Patient.ndjson": [person("p"), person("q")], "Consent.ndjson": consents}
    deliver("klinik-nord", START, both | {"Encounter.ndjson": [stay("c1", "p")]})
    run(0)
    assert len(lake.read("cases", PSEUDONYMISED_CASES)) == 1
    newer = stay("c1", whose) | {"period": {"start": str(START), "end": str(until)}}
    deliver("klinik-nord", START + timedelta(1), both | {"Encounter.ndjson": [newer]})
    for day in (1, 0):
        run(day)
        assert not lake.read("cases", PSEUDONYMISED_CASES).num_rows


def test_a_case_that_was_moved_counts_neither_for_the_former_patient_nor_beside_the_new_ones(run: Run, lake: Lake, deliver: Callable[..., Path]):  # fmt: skip
    """It was decided by the room that the former patient's other cases left."""
    consents = [fhir_consent("p"), fhir_consent("q")]
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p"), person("q", birthDate="1940-01-01")],
            "Encounter.ndjson": [stay("c1", "p"), stay("d1", "q")], "Consent.ndjson": consents})  # fmt: skip
    run(0)
    deliver("klinik-nord", START + timedelta(1), changes(Encounter=[stay("c1", "q")]))
    run(1, 3)
    assert len(lake.read("cases", PSEUDONYMISED_CASES)) == 3
    assert lake.read("events", EVENTS).column("age_group").to_pylist() == ["75-84"], "one case of a person in a week"


def test_a_case_that_was_moved_counts_for_nobody_when_the_former_patient_is_gone_either(run: Run, lake: Lake, deliver: Callable[..., Path]):  # fmt: skip
    both = [fhir_consent("p"), fhir_consent("q")]
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p"), person("q")], "Encounter.ndjson": [stay("c1", "p")], "Consent.ndjson": both})  # fmt: skip
    run(0)
    (case,) = lake.read("bounding", BOUNDING_DECISIONS).column("case_key").to_pylist()
    deliver("klinik-nord", START + timedelta(1), changes(Encounter=[stay("c1", "q")]))
    run(1)
    deliver("klinik-nord", START + timedelta(2), changes(Consent=[fhir_consent("p", "inactive")]))
    run(2)
    deliver("klinik-nord", START + timedelta(3), changes(Encounter=[stay("c1", "q", **{"class": {"code": "EMER"}})]))
    run(3)
    assert set(lake.read("cases", PSEUDONYMISED_CASES).column("case_key").to_pylist()) == {case}
    (decision,) = lake.read("bounding", BOUNDING_DECISIONS).to_pylist()
    assert decision["case_key"] == case and decision["person_key"].startswith(MARK) and decision["kept"]
    assert not lake.read("events", EVENTS).num_rows, "it was decided for somebody else"


def test_a_consent_that_becomes_somebody_elses_who_once_withdrew_permits_the_former_patient_nothing(run: Run, lake: Lake, deliver: Callable[..., Path]):  # fmt: skip
    signed = [fhir_consent("p", ident="k"), fhir_consent("q")]
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p"), person("q")], "Encounter.ndjson": [stay("c1", "p"), stay("d1", "q")], "Consent.ndjson": signed})  # fmt: skip
    run(0)
    deliver("klinik-nord", START + timedelta(1), changes(Consent=[fhir_consent("q", "inactive")]))
    run(1)
    deliver("klinik-nord", START + timedelta(2), changes(Consent=[fhir_consent("q", on="2024-12-31", ident="new")]))
    run(2)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
    deliver("klinik-nord", START + timedelta(3), changes(Consent=[fhir_consent("q", ident="k")]))
    run(3)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 0


@pytest.mark.parametrize("bundled", [False, True])
def test_a_case_of_who_withdrew_does_not_come_back_as_the_former_patients(run: Run, lake: Lake, deliver: Callable[..., Path], bundled: bool):  # fmt: skip
    """The clinic moved it to `q`. Once the lines of `q` are gone, the newest that is left names `p`."""
    before = [person("p"), person("q"), stay("MOVED", "p"), stay("own1", "p"), fhir_consent("p"), fhir_consent("q")]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [{"fullUrl": f"https://kis/{r['resourceType']}/{r['id']}", "resource": r} for r in before]}  # fmt: skip
    lines = {f"{kind}.ndjson": [r for r in before if r["resourceType"] == kind] for kind in ("Patient", "Encounter", "Consent")}  # fmt: skip
    deliver("klinik-nord", START, {"all.json": json.dumps(bundle)} if bundled else lines)
    run(0)
    deliver("klinik-nord", START + timedelta(1), changes(Encounter=[stay("MOVED", "q")]))
    run(1)
    deliver("klinik-nord", START + timedelta(2), changes(Consent=[fhir_consent("q", "inactive")]))
    run(2)
    deliver("klinik-nord", START + timedelta(3), changes(Patient=[person("p", birthDate="1940-01-01")]))
    run(3)
    newest = lake.read("cases", PSEUDONYMISED_CASES, [START + timedelta(3)])
    assert newest.column("age_group").to_pylist() == ["75-84"], "the other case of `p`"
    assert places(lake, ["MOVED"]) == set()
    deliver("klinik-nord", START + timedelta(4), changes(Encounter=[stay("own1", "q")]))  # to who is gone already
    run(4)
    assert places(lake, ["own1"]) == set()


def insured_ids(number: int) -> list[str]:
    """Different valid ones."""
    every = (f"A1234{n:05}" for n in range(10**5))
    return list(islice(filter(insured_id_is_valid, every), number))


def test_a_link_stays_when_its_day_runs_again_without_the_number(run: Run, lake: Lake, deliver: Callable[..., Path]):
    came = {"Patient.ndjson": [person("p", **INSURED)], "Encounter.ndjson": [stay("c1", "p")], "Consent.ndjson": [fhir_consent("p")]}  # fmt: skip
    deliver("klinik-nord", START, came)
    run(0)
    deliver("klinik-nord", START, came | {"Patient.ndjson": [person("p")]}, suffix="-second")
    run(0)
    deliver("klinik-nord", START + timedelta(1), came | {"Patient.ndjson": [person("p")], "Encounter.ndjson": [stay("c2", "p", "2024-12-31")]})  # fmt: skip
    run(1)
    persons = {r["person_key"] for r in lake.read("cases", PSEUDONYMISED_CASES).to_pylist()}
    assert len(persons) == 1
    assert sorted(lake.read("bounding", BOUNDING_DECISIONS).column("kept").to_pylist()) == [False, True]


@pytest.mark.parametrize("again", [0, -1])
def test_another_insured_number_on_a_day_that_runs_again_or_late_makes_nobody_another_person(
    run: Run, lake: Lake, deliver: Callable[..., Path], again: int
):
    people = [f"p{n}" for n in range(8)]  # which of two numbers has the lower pseudonym is a matter of luck

    def export(numbers: list[str], case: str) -> dict[str, Any]:
        return {"Patient.ndjson": [person(p, identifier=[{"system": "http://fhir.de/sid/gkv/kvid-10", "value": n}]) for p, n in zip(people, numbers, strict=True)],
                "Encounter.ndjson": [stay(case + p, p) for p in people], "Consent.ndjson": [fhir_consent(p) for p in people]}  # fmt: skip

    numbers = insured_ids(16)
    deliver("klinik-nord", START + timedelta(1), export(numbers[:8], "c"))
    run(1)
    before = lake.read("cases", PSEUDONYMISED_CASES).column("person_key").to_pylist()
    deliver("klinik-nord", START + timedelta(1 + again), export(numbers[8:], "d"), suffix="-second")
    run(1 + again, 1)
    after = lake.read("cases", PSEUDONYMISED_CASES).column("person_key").to_pylist()
    assert len(after) == 16 and set(after) == set(before)
    kept = lake.read("bounding", BOUNDING_DECISIONS).column("kept").to_pylist()
    assert sorted(kept) == [False] * 8 + [True] * 8, "the two of each lie in one week"


def test_a_case_that_the_clinic_deleted_is_removed_and_stays_away(run: Run, lake: Lake, deliver: Callable[..., Path]):
    deliver("klinik-nord", START, {"Patient.ndjson": [person("p"), person("q")], "Encounter.ndjson": [stay("c1", "p"), stay("c2", "p"), stay("c3", "q")],
            "Consent.ndjson": [fhir_consent("p"), fhir_consent("q")]})  # fmt: skip
    run(0, 4)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 3
    removal = {"resourceType": "Bundle", "type": "transaction", "entry": [{"request": {"method": "DELETE", "url": "Encounter/c1"}},
               {"request": {"method": "DELETE", "url": "Patient/q"}}]}  # fmt: skip
    deliver("klinik-nord", START + timedelta(5), changes(deleted=[removal]))
    run(5)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1
    run(0, 4)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 1, "the old days read again bring nothing back"
    verify_cases(lake)
    deliver("klinik-nord", START + timedelta(6), changes(Encounter=[stay("c1", "p")]))
    run(6)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 2, "created again after its deletion"
