"""A clinic learns what is wrong with its export, where and what to do, and never reads a value of a person."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from assets.contract.city import Clinic, load_city
from assets.quality.check import READER_RULES, check_export, clinic_of_format, ignored_files
from pipelines import check_cli
from pipelines.cli import app
from pipelines.terminal import console

ROOT = Path(__file__).resolve().parents[1]
OID = "2.16.840.1.113883.3.1937.777.24.5.3"
CONSENT = "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n"
FALL = "KH-internes-Kennzeichen;Versicherten-ID;Geburtsjahr;Geschlecht;PLZ;Aufnahmedatum;Aufnahmeanlass;Aufnahmegrund;Entlassungsdatum;Alter-in-Jahren-am-Aufnahmetag;Patientennummer\n"
PRACTICE = "case_id;patient_id;birth_date;sex;postal_code;visited_on;left_on;visit_type;principal_diagnosis\n"
PERIOD = {"start": "2024-01-01", "end": "2054-01-01"}
PROVISIONS = [{"type": "permit", "period": PERIOD, "code": [{"coding": [{"system": f"urn:oid:{OID}", "code": f"{OID}.{n}"}]}]} for n in (6, 7, 8)]  # fmt: skip


def resources(who: str, **encounter: Any) -> dict[str, dict[str, Any]]:
    return {
        "Patient": {"resourceType": "Patient", "id": who, "gender": "female", "birthDate": "1980-05-05", "name": [{"family": "CANARYname"}],
                    "address": [{"postalCode": "64283"}]},
        "Encounter": {"resourceType": "Encounter", "id": f"e-{who}", "status": "finished", "class": {"code": "IMP"},
                      "subject": {"reference": f"Patient/{who}"}, "period": {"start": "2025-01-05", "end": "2025-01-06"}} | encounter,
        "Consent": {"resourceType": "Consent", "id": f"c-{who}", "status": "active", "patient": {"reference": f"Patient/{who}"},
                    "dateTime": "2024-01-01T10:00:00+01:00", "provision": {"type": "deny", "provision": PROVISIONS}},
    }  # fmt: skip


def ndjson(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    def write(files: dict[str, str]) -> Path:
        where = tmp_path / "export"
        where.mkdir()
        for name, text in files.items():
            (where / name).write_text(text)
        return where

    return write


@pytest.fixture(autouse=True)
def without_keys_and_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIGITALSTADT_KEYS", str(tmp_path / "no-keys"))
    monkeypatch.setenv("DIGITALSTADT_DATA", str(tmp_path / "no-data"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def call(*arguments: str) -> tuple[int, Any, str]:
    plain = CliRunner().invoke(app, ["check-export", *arguments])
    machine = CliRunner().invoke(app, ["check-export", *arguments, "--json"])
    assert plain.exit_code == machine.exit_code
    assert "CANARY" not in plain.output and "CANARY" not in machine.output
    return plain.exit_code, json.loads(machine.stdout), plain.output


def found(result: Any) -> set[tuple[str, str, str | None, int | None]]:
    return {(f["rule"], f["file"], f["column"], f["lines"][0] if f["lines"] else None) for f in result["findings"]}


def test_a_clean_export_passes(folder: Callable[..., Path], tmp_path: Path):
    r = resources("CANARYp1")
    code, result, text = call("klinik-nord", str(folder({f"{k}.ndjson": ndjson(v) for k, v in r.items()})))
    assert code == 0 and result["passed"] and (result["cases"], result["usable"]) == (1, 1) and result["findings"] == []
    assert "1 cases read" in text and "No fault was found" in text
    assert not (tmp_path / "no-keys").exists() and not (tmp_path / "no-data").exists()


def test_a_dirty_fhir_export_is_told_by_file_line_and_element(folder: Callable[..., Path]):
    a, b, c, d = resources("CANARYa"), resources("CANARYb", period={"start": "yesterday CANARY"}), resources("CANARYc"), resources("CANARYd")  # fmt: skip
    c["Patient"]["address"] = [{"postalCode": "CANARY"}]
    where = folder({
        "Patient.ndjson": ndjson(*(x["Patient"] for x in (a, b, c, d))) + '{"resourceType":"Patient","id":"CANARYx","na',
        "Encounter.ndjson": ndjson(*(x["Encounter"] for x in (a, b, c, d))),
        "Consent.ndjson": ndjson(a["Consent"], b["Consent"], c["Consent"]),
        "report.pdf": "CANARY",
    })  # fmt: skip
    code, result, text = call("-", str(where), "--format", "fhir")
    assert code == 1 and (result["cases"], result["permitted"], result["usable"]) == (4, 2, 1)
    assert {
        ("json_unreadable", "Patient.ndjson", None, 5),
        ("cases.admitted_on_missing", "Encounter.ndjson", "Encounter.period.start", 2),
        ("persons.postal_code_malformed", "Patient.ndjson", "Patient.address.postalCode", 3),
    } <= found(result)
    assert result["ignored_files"] == ["report.pdf"] and result["reasons"]["no_consent"] == 1
    assert all(f["text"] and f["remedy"] for f in result["findings"]) and "no consent" in text


def test_a_dirty_p21_set_is_told_in_the_words_of_the_law(folder: Callable[..., Path]):
    where = folder({
        "FALL.csv": FALL + "CANARY1;A123456780;1970;w;64297;202501050800;E;0101;202501061200;54;CANARYq\n"
                    "CANARY2;;1970;CANARY;64297;202501050800;CANARY;0101;202501041200;54;CANARYr\nCANARY3;;1970\n",
        "ICD.csv": "KH-internes-Kennzeichen;Diagnoseart;ICD-Kode\nCANARY1;HD;CANARY\n",
        "consent.csv": CONSENT + "CANARY1;;2024-01-01;6 7 8;2024-01-01;;\n",
    })  # fmt: skip
    code, result, _ = call("hospital-sued", str(where))
    assert code == 1 and (result["cases"], result["usable"]) == (2, 1)
    assert {
        ("persons.sex_unlisted", "FALL.csv", "Geschlecht", 3),
        ("cases.discharged_before_admission", "FALL.csv", "Entlassungsdatum", 3),
        ("diagnoses.icd_code_malformed", "ICD.csv", "ICD-Kode", 2),
        ("wrong_number_of_fields", "FALL.csv", None, 4),
    } <= found(result)


def test_a_dirty_practice_table_is_told_by_row_and_column(folder: Callable[..., Path]):
    where = folder({
        "practice.csv": PRACTICE + "CANARY1;CANARYa;1980-01-01;w;64283;2025-01-05;;emergency;I21.0\nCANARY2;CANARYb;1980-01-01;w;64283;CANARY;;emergency;I21.0\n",
        "consent.csv": CONSENT + ";CANARYa;2024-01-01;6 7 8;2024-01-01;;\n;CANARYb;2024-01-01;6 7 8;2024-01-01;;\n",
    })  # fmt: skip
    code, result, _ = call("-", str(where), "--format", "practice")
    assert code == 1 and ("cases.admitted_on_missing", "practice.csv", "visited_on", 3) in found(result)


def test_an_export_without_a_case_says_so(folder: Callable[..., Path]):
    """Nothing at all is a problem; consents or deletions alone are a delivery."""
    r = resources("CANARYp1")
    where = folder({"Patient.ndjson": ndjson(r["Patient"]), "Encounter.ndjson": ""})
    code, result, text = call("klinik-nord", str(where))
    assert code == 1 and not result["passed"] and "There is no case in it, and no consent." in " ".join(text.split())
    (where / "Consent.ndjson").write_text(ndjson(r["Consent"]))
    code, result, text = call("klinik-nord", str(where))
    assert code == 0 and (result["cases"], result["consenting"]) == (0, 1)
    assert "There is no case in it. Everything else can be used: 1 patients' consents" in " ".join(text.split())
    (where / "Consent.ndjson").unlink()
    entry = {"request": {"method": "DELETE", "url": "Consent/c"}}
    (where / "deleted.ndjson").write_text(ndjson({"resourceType": "Bundle", "type": "transaction", "entry": [entry]}))
    code, result, text = call("klinik-nord", str(where))
    assert code == 0 and result["deletions"] == 1 and "1 deletions" in " ".join(text.split())


def packed(how: str, where: Path) -> None:
    """Pack the files of a folder, each by itself or all together."""
    files = {p.name: p.read_bytes() for p in where.iterdir()}
    if how == "each":
        for name, content in files.items():
            (where / f"{name}.bz2").write_bytes(bz2.compress(content))
    elif how == "zip":
        with zipfile.ZipFile(where / "CANARY.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(f"CANARY folder/{name}", content)
    else:
        with tarfile.open(where / "all.tgz", "w:gz") as archive:
            for name in files:
                archive.add(where / name, f"./{name}")
    for name in files:
        (where / name).unlink()


@pytest.mark.parametrize("how", ["each", "zip", "tar"])
def test_a_packed_export_is_checked_like_a_plain_one_and_nothing_unpacked_is_left(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    r, s = resources("CANARYp1"), resources("CANARYp2", period={"start": "yesterday CANARY"})
    where = folder({f"{k}.ndjson": ndjson(r[k], s[k]) for k in r} | {"report.pdf": "CANARY"})
    plain = call("-", str(where), "--format", "fhir")
    packed(how, where)
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    before = {p: p.read_bytes() for p in where.iterdir()}
    assert (
        call("-", str(where), "--format", "fhir") == plain
        and plain[0] == 1
        and plain[1]["ignored_files"] == ["report.pdf"]
    )
    assert list(room.iterdir()) == [] and {p: p.read_bytes() for p in where.iterdir()} == before


def test_an_archive_that_cannot_be_read_is_told_and_nothing_unpacked_is_left(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[..., Any]
):
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    where = folder({"Patient.ndjson": ndjson(resources("CANARYp")["Patient"]) * 4000})
    packed("zip", where)
    whole = (where / "CANARY.zip").read_bytes()
    with small_disk(room, "1m"):
        code, result, text = call("-", str(where), "--format", "fhir")
        assert code == 1 and "half of the free room" in result["refused"] and "would not be taken in" in text
        (where / "Encounter.ndjson").write_bytes(b"\n" * 2_000_000)
        assert "TMPDIR" in call("-", str(where), "--format", "fhir")[1]["refused"] and list(room.iterdir()) == []
    (where / "CANARY.zip").write_bytes(whole[:-3000])
    code, result, text = call("-", str(where), "--format", "fhir")
    assert code == 1 and "damaged, cut off" in result["refused"] and list(room.iterdir()) == []


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_check_that_is_stopped_leaves_nothing_unpacked(tmp_path: Path, sign: signal.Signals):
    where, room = tmp_path / "export", tmp_path / "room"
    where.mkdir()
    room.mkdir()
    part = os.urandom(2**20).hex().encode() + b"\n"
    (where / "Patient.ndjson.bz2").write_bytes(bz2.compress(part) * 30)
    command = [str(Path(sys.executable).parent / "digitalstadt"), "check-export", "-", str(where), "--format", "fhir"]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(room)}, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(room.glob("*/Patient.ndjson")):
        time.sleep(0.02)
    (unpacked,) = room.iterdir()
    assert stat.S_IMODE(unpacked.stat().st_mode) == 0o700
    process.send_signal(sign)
    assert process.wait(60) != 0 and list(room.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "files", "ignored"),
    [
        ("fhir", {"encounters.ndjson": "{}", "patients.ndjson": '{"resourceType":"Patient"}', "Observation.ndjson": "", "Consent.ndjson": "", "export.json": "{}", "b.json": "{}"},
         ["Observation.ndjson", "encounters.ndjson"]),
        ("p21", {"FALL.csv": FALL, "Faelle.csv": FALL, "consent.csv": CONSENT, "Consent.ndjson": ""}, ["Consent.ndjson", "Faelle.csv"]),
        ("practice", {"Practice.CSV": PRACTICE, "practice.xlsx": "", "fall.csv": FALL}, ["fall.csv", "practice.xlsx"]),
    ],
)  # fmt: skip
def test_a_file_from_which_nothing_is_read_is_named(
    folder: Callable[..., Path], kind: str, files: Any, ignored: list[str]
):
    _, result, text = call("-", str(folder(files)), "--format", kind)
    assert result["ignored_files"] == ignored and all(f"nothing is read from {name}" in text for name in ignored)


def test_what_says_consent_in_fhir_beside_tables_is_read(folder: Callable[..., Path]):
    of = Clinic(key="k", name="k", format="p21", consent_source="fhir")
    where = folder({"FALL.csv": FALL, "Consent.ndjson": "", "Patient.ndjson": "", "deleted.ndjson": ""})
    assert ignored_files(where, of) == ["Patient.ndjson"]


def test_of_many_files_from_which_nothing_is_read_some_are_named(folder: Callable[..., Path]):
    _, result, text = call("-", str(folder({f"Observation.{n:03d}.ndjson": "" for n in range(15)})), "--format", "fhir")
    assert (
        len(result["ignored_files"]) == 15 and text.count("nothing is read from") == 10 and "nor from 5 further" in text
    )


def test_a_bracket_in_a_finding_is_shown_as_it_is(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    where = folder({"practice.csv": "x;y\n"})
    result = check_export(where, clinic_of_format("practice"), load_city(), date(2025, 2, 1))
    result.findings[0]["column"] = "[b]x"
    check_cli._print(console(), result)
    assert "[b]x" in (told := capsys.readouterr().out) and "\\" not in told


def test_a_missing_header_rejects_the_export_and_says_which(folder: Callable[..., Path]):
    code, result, text = call("-", str(folder({"practice.csv": "case_id;CANARY\n1;2\n"})), "--format", "practice")
    assert code == 1 and result["usable"] == 0 and result["findings"][0]["severity"] == "rejected"
    assert "header_misses_" in result["findings"][0]["rule"] and "rejected" in text


def test_a_set_without_any_consent_is_a_problem(folder: Callable[..., Path]):
    where = folder({"FALL.csv": FALL + "1;;1970;w;64297;202501050800;E;0101;202501061200;54;q\n"})
    code, result, text = call("hospital-sued", str(where))
    assert (
        code == 1
        and result["reasons"] == {"no_consent": 1}
        and "no case has a valid consent today" in " ".join(text.split())
    )


def test_wrong_use_is_told_apart_from_a_wrong_export(folder: Callable[..., Path], tmp_path: Path):
    where = folder({"a b.csv": "x"})
    runner = CliRunner()
    assert runner.invoke(app, ["check-export", "nobody", str(where)]).exit_code == 2
    assert runner.invoke(app, ["check-export", "klinik-nord", str(tmp_path / "missing")]).exit_code == 2
    assert runner.invoke(app, ["check-export", "-", str(where), "--format", "xml"]).exit_code == 2
    refused = runner.invoke(app, ["check-export", "klinik-nord", str(where)])
    assert refused.exit_code == 1 and "other characters than" in " ".join(refused.output.split())


def test_everything_that_a_reader_finds_has_a_text_and_a_remedy():
    raised: set[str] = set()
    for source in Path("assets/intake").glob("*.py"):
        text = source.read_text("utf-8")
        raised |= set(re.findall(r'RejectedExport\("([a-z_0-9]+)"', text))
        raised |= set(re.findall(r'findings\.add\([^"()]*, "([a-z_0-9]+)"', text))
        raised |= set(re.findall(r'\.note\("([a-z_]+)"', text))
        raised |= set(re.findall(r"(?:THEN|ELSE|\(\?, \?,) '([a-z]+_[a-z_]+)'", text))
        raised |= set(re.findall(r'(?:rule = |^ +\()"([a-z]+_[a-z_]+)"(?: if|, pc)', text, re.MULTILINE))
    raised -= {"emergency_visit", "info", "repaired", "quarantined", "rejected"}  # of a column; severities
    assert {
        "gzip_bomb",
        "consent_of_nobody",
        "wrong_number_of_fields",
        "id_not_allowed",
        "line_too_long",
        "formula_in_cell",
    } <= raised
    assert raised <= set(READER_RULES), raised - set(READER_RULES)


def test_a_file_that_is_not_what_its_name_says_is_told_how_to_name_it(folder: Callable[..., Path]):
    where = folder({})
    (where / "Patient.ndjson.gz").write_bytes(b"no gzip")
    (rejected,) = call("klinik-nord", str(where))[1]["findings"]
    assert rejected["rule"] == "gzip_unreadable" and "without .gz" in rejected["remedy"]
    (where / "Patient.ndjson.gz").rename(where / "Other.ndjson.gz")
    (where / "Patient.ndjson").write_bytes(gzip.compress(b"{}"))
    (rejected,) = call("klinik-nord", str(where))[1]["findings"]
    assert rejected["rule"] == "encoding_not_utf8" and ".gz" in rejected["remedy"]


def test_a_missing_column_is_named_as_the_format_names_it(folder: Callable[..., Path]):
    missing = call("hospital-sued", str(folder({"FALL.csv": FALL.replace("Aufnahmedatum;", "")})))[1]["findings"]
    assert [f["text"] for f in missing] == ["The header has no column for Aufnahmedatum."]
