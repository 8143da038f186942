"""Bad deliveries are refused or quarantined with a reason, good ones are taken once, neighbours go on."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from assets.consent.rule import decide
from assets.contract.city import City, CityFileError, Pause, load_city
from assets.intake import read, stage
from assets.intake.connector import delivered, landed, pull
from assets.intake.landing import RawFilesErased, require_raw_files
from assets.intake.read import read_exports
from assets.lake.lake import Lake

DAY, TODAY = date(2025, 1, 6), date(2025, 2, 1)
PATIENT = {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1980"}
ENCOUNTER = {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "IMP"},
             "subject": {"reference": "Patient/p"}, "period": {"start": "2025-01-05", "end": "2025-01-06"}}  # fmt: skip
Deliver = Callable[..., Path]


def test_the_same_export_twice_is_taken_once(lake: Lake, city: City, deliver: Deliver):
    deliver("klinik-nord", DAY, {"Patient.ndjson": [PATIENT]})
    assert [pull(lake, city, [DAY], TODAY)[0].outcome for _ in range(2)] == ["taken", "known"]
    assert len(landed(lake, city, [DAY])) == 1


def test_two_exports_of_one_day_are_both_taken_and_the_later_version_counts(lake: Lake, city: City, deliver: Deliver):
    deliver("klinik-nord", DAY, {"Encounter.ndjson": [ENCOUNTER]})
    deliver("klinik-nord", DAY, {"Encounter.ndjson": [ENCOUNTER | {"id": "e2"}]}, suffix="-second")
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken", "taken"]
    tables, _ = read_exports(landed(lake, city, [DAY]), city)
    assert sorted(tables["cases"].column("case_id").to_pylist()) == ["e", "e2"]


@pytest.mark.parametrize("first", ["finished", "entered-in-error"])
def test_what_comes_second_on_a_day_corrects_what_came_first(lake: Lake, city: City, deliver: Deliver, first: str):
    second = {"finished": "entered-in-error", "entered-in-error": "finished"}[first]
    for suffix, status in (("", first), ("-second", second)):
        deliver("klinik-nord", DAY, {"Encounter.ndjson": [ENCOUNTER | {"status": status}]}, suffix=suffix)
    pull(lake, city, [DAY], TODAY)
    tables, _ = read_exports(landed(lake, city, [DAY]), city)
    assert tables["cases"].column("status").to_pylist() == [second]
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["known", "known"]


def test_what_a_mac_leaves_in_a_folder_is_no_part_of_the_delivery(lake: Lake, city: City, deliver: Deliver):
    litter = {".DS_Store": b"\0\0\0\1Bud1", "._Patient.ndjson": b"\0\5\x16\7", "._all.json": b"\0\5\x16\7"}
    folder = deliver("klinik-nord", DAY, {"Patient.ndjson": [PATIENT]} | litter)
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    (export,) = landed(lake, city, [DAY])
    assert [p.name for p in export.files()] == [p.name for p in delivered(folder)] == ["Patient.ndjson"]


def test_a_visit_that_a_practice_corrects_on_the_same_day_has_the_diagnoses_of_one_row(
    lake: Lake, city: City, deliver: Deliver
):
    head = "case_id;patient_id;sex;visited_on;visit_type;principal_diagnosis;further_diagnoses\n"
    for code, suffix in (("J45.0 ;I10.00", ""), ("J18.9;E86", "-corrected")):
        deliver("praxisnetz", DAY, {"practice.csv": f"{head}v;p;w;2025-01-05;emergency;{code}\n"}, suffix=suffix)
    pull(lake, city, [DAY], TODAY)
    tables, _ = read_exports(landed(lake, city, [DAY]), city)
    (case,), found = tables["cases"].to_pylist(), tables["diagnoses"].to_pylist()
    assert sorted(d["role"] for d in found) == ["principal", "secondary"]
    assert {d["export_id"] for d in found} == {case["export_id"]}


@pytest.mark.parametrize(("cell", "code", "certainty"), [
    ("I21.0", "I21.0", None), ("I21.0 G", "I21.0", "G"), ("I21.0G", "I21.0", "G"), ("j06.9 v", "J06.9", "V"), ("I63.9 Z", "I63.9", "Z"),
    ("I26.9A", "I26.9", "A"), ("M17.1 G R", "M17.1", "G"), ("M171RG", "M17.1", "G"), ("M17.1 L", "M17.1", None), ("I48.- BV", "I48", "V"),
    ("I21.0 GG", "I21.0GG", None), ("I21.0X", "I21.0X", None),
])  # fmt: skip
def test_a_practice_writes_certainty_and_side_behind_a_code(
    lake: Lake, city: City, deliver: Deliver, cell: str, code: str, certainty: str | None
):
    head = "case_id;patient_id;sex;visited_on;visit_type;principal_diagnosis;further_diagnoses\n"
    deliver("praxisnetz", DAY, {"practice.csv": f"{head}v;p;w;2025-01-05;emergency;{cell};B20 G {cell},A09.9\n"})
    pull(lake, city, [DAY], TODAY)
    tables, _ = read_exports(landed(lake, city, [DAY]), city)
    found = [(d["role"], d["icd_code"], d["certainty"]) for d in tables["diagnoses"].to_pylist()]
    assert sorted(found, key=str) == sorted(
        [
            ("principal", code, certainty),
            *(("secondary", *c) for c in (("B20", "G"), (code, certainty), ("A09.9", None))),
        ],
        key=str,
    )


def test_days_whose_raw_files_are_gone_are_named_as_few_stretches(lake: Lake, city: City, deliver: Deliver):
    days = [DAY + timedelta(n) for n in (0, 1, 2, 4)]
    for clinic in ("klinik-nord", "praxisnetz"):
        for day in days:
            deliver(clinic, day, {"Encounter.ndjson": [ENCOUNTER], "practice.csv": "x\n"})
    pull(lake, city, days, TODAY + timedelta(9))
    exports = landed(lake, city, days)
    for raw in (f for export in exports for f in export.files()):
        raw.unlink()
    with pytest.raises(
        RawFilesErased, match=f"of klinik-nord, praxisnetz were .* again: {days[0]} to {days[2]}, {days[3]};"
    ):
        require_raw_files(exports)


def test_a_raw_file_that_is_gone_is_missed_whoever_took_it(lake: Lake, city: City, deliver: Deliver):
    """As after a process that died between erasing a file and saying so: without it a withdrawal could be unknown."""
    deliver("klinik-nord", DAY, {"Encounter.ndjson": [ENCOUNTER], "Consent.ndjson": []})
    pull(lake, city, [DAY], TODAY)
    (export,) = landed(lake, city, [DAY])
    require_raw_files([export])
    (export.folder / "Consent.ndjson").unlink()
    with pytest.raises(RawFilesErased, match=f"klinik-nord .* again: {DAY};"):
        require_raw_files([export])


def test_a_half_written_export_waits(lake: Lake, city: City, deliver: Deliver):
    deliver("klinik-nord", DAY, {"Patient.ndjson": [PATIENT]}, complete=False)
    found = pull(lake, city, [DAY], TODAY)
    assert found[0].outcome == "waiting" and "_COMPLETE" in found[0].reason
    assert landed(lake, city, [DAY]) == []


@pytest.mark.parametrize(
    ("clinic", "day", "files", "reason"),
    [
        ("nobody", DAY, {"Patient.ndjson": "{}"}, "names no clinic"),
        ("klinik-nord", DAY, {}, "empty"),
        ("klinik-nord", date(2031, 1, 1), {"Patient.ndjson": "{}"}, "future"),
        ("klinik-nord", DAY, {"a b;c.ndjson": "{}"}, "characters"),
        ("klinik-nord", DAY, {"Patient.ndjson": "{}", "manifest.json": '{"resourceType": "Bundle"}'}, "manifest.json"),
    ],
)
def test_a_folder_that_cannot_be_taken_says_why(lake: Lake, city: City, deliver: Deliver, clinic, day, files, reason):
    deliver(clinic, day, files)
    found = pull(lake, city, [DAY], TODAY)
    assert [d.outcome for d in found] == ["rejected"] and reason in found[0].reason


def test_a_servers_own_list_of_files_is_no_part_of_the_delivery(lake: Lake, city: City, deliver: Deliver):
    deliver("klinik-nord", DAY, {"Patient.ndjson": "{}", "manifest.json": '{"transactionTime": "2025-01-06"}'})
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    (export,) = landed(lake, city, [DAY])
    assert [p.name for p in export.files()] == ["Patient.ndjson"] and not export.erased


def test_a_file_that_goes_while_it_is_taken_holds_up_nobody_else(
    lake: Lake, city: City, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
):
    deliver("klinik-nord", DAY, {"Patient.ndjson": [PATIENT]})
    deliver("praxisnetz", DAY, {"practice.csv": "case_id\n"})
    real = shutil.copyfile

    def renamed_meanwhile(source: Path, target: Path) -> Path:
        if source.name == "Patient.ndjson":
            source.rename(source.with_name("Patient.1.ndjson"))
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", renamed_meanwhile)
        found = {d.clinic: d for d in pull(lake, city, [DAY], TODAY)}
    assert found["klinik-nord"].outcome == "waiting" and "changed while it was taken" in found["klinik-nord"].reason
    assert found["praxisnetz"].outcome == "taken"
    assert {d.clinic: d.outcome for d in pull(lake, city, [DAY], TODAY)}["klinik-nord"] == "taken"


def test_the_number_of_a_case_is_nobodys_patient_number(lake: Lake, city: City, deliver: Deliver):
    """Both are running numbers: what patient 17 signed must not permit case 17 of somebody else."""
    head = "KH-internes-Kennzeichen;Geschlecht;Aufnahmedatum;Patientennummer\n"
    rows = "17;w;202501050800;\n18;m;202501050800;17\n19;m;202501050800;\n"
    consent = "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n"
    signed = ";17;2024-11-02;6 7 8;2024-11-02;;\n19;;2024-11-02;6 7 8;2024-11-02;;\n"
    deliver("hospital-sued", DAY, {"FALL.csv": head + rows, "consent.csv": consent + signed})
    pull(lake, city, [DAY], TODAY)
    tables, _ = read_exports(landed(lake, city, [DAY]), city)
    decided = decide(tables["cases"], tables["consent_provisions"], city.consent, DAY).to_pylist()
    assert sorted(d["case_id"] for d in decided if d["permitted"]) == ["18", "19"]


def test_what_is_removed_from_the_inbox_is_on_the_disk_before(
    lake: Lake, remote_city: Callable[..., City], deliver: Deliver, monkeypatch: pytest.MonkeyPatch
):
    """A fetched export is fetched once: a power cut must not leave an empty copy as the only one."""
    city = remote_city(kind="s3", endpoint_url="http://127.0.0.1:1", bucket="b", region="r", access_key={"env": "A"}, secret_key={"env": "B"})  # fmt: skip
    folder, synced, real = deliver("klinik-nord", DAY, {"Patient.ndjson": [PATIENT]}), set[int](), os.fsync
    monkeypatch.setattr("assets.intake.connector.fetch", lambda *_: [])
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.add(os.fstat(handle).st_ino), real(handle)))
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"] and not folder.exists()
    (export,) = landed(lake, city, [DAY])
    assert {p.stat().st_ino for p in export.files()} <= synced


def test_a_file_in_the_place_of_an_inbox_holds_up_nobody(lake: Lake, city: City, deliver: Deliver):
    deliver("praxisnetz", DAY, {"practice.csv": "case_id\n"})
    (lake.inbox / "klinik-nord").write_bytes(b"")
    assert sorted(d.outcome for d in pull(lake, city, [DAY], TODAY)) == ["rejected", "taken"]


def test_a_link_out_of_the_inbox_is_refused(lake: Lake, city: City, deliver: Deliver, tmp_path: Path):
    folder = deliver("klinik-nord", DAY, {"Patient.ndjson": [PATIENT]})
    (folder / "Encounter.ndjson").symlink_to(tmp_path / "keys" / "pseudonym.key")
    assert pull(lake, city, [DAY], TODAY)[0].outcome == "rejected"


def test_a_truncated_line_is_a_finding_with_its_line_and_the_rest_is_read(lake: Lake, city: City, deliver: Deliver):
    text = json.dumps(ENCOUNTER) + "\n" + json.dumps(ENCOUNTER | {"id": "CANARY"})[:60] + "\n"
    deliver("klinik-nord", DAY, {"Encounter.ndjson": text, "Patient.ndjson": [PATIENT]})
    pull(lake, city, [DAY], TODAY)
    tables, rejected = read_exports(landed(lake, city, [DAY]), city)
    assert rejected == {} and tables["cases"].num_rows == 1
    found = tables["findings"].to_pylist()
    assert [(f["rule"], f["source_file"], f["source_line"]) for f in found] == [
        ("json_unreadable", "Encounter.ndjson", 2)
    ]
    assert "CANARY" not in str(found)


@pytest.mark.parametrize("closed", ["praxisnetz", "2025-03-03", "practice.csv"])
def test_what_the_service_may_not_read_is_refused_and_the_others_go_on(
    lake: Lake, city: City, deliver: Deliver, monkeypatch: pytest.MonkeyPatch, closed: str
):
    """By the answer of `os.access`: whoever runs the tests may be root, who may read everything."""
    day = date(2025, 3, 3)
    deliver("praxisnetz", day, {"practice.csv": "case_id\n"})
    deliver("klinik-nord", day, {"Patient.ndjson": "{}"}, suffix="-n")
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name != closed)
    found = {d.clinic: d for d in pull(lake, city, [day], day)}
    assert found["klinik-nord"].outcome == "taken"
    assert found["praxisnetz"].outcome == "rejected" and "the service may not read it" in found["praxisnetz"].reason


@pytest.mark.parametrize(
    ("clinic", "files", "rule"),
    [
        ("klinik-nord", {"Patient.ndjson": '{"name":"Müller"}'.encode("latin-1")}, "encoding_not_utf8"),
        ("klinik-nord", {"readme.txt": "hello"}, "no_known_file"),
        ("klinik-nord", {"export.json": '{"resourceType": "Bundle", "entry": []}'}, "name_taken"),
        ("hospital-sued", {"ICD.csv": "KH-internes-Kennzeichen;ICD-Kode\n"}, "fall_csv_missing"),
        ("hospital-sued", {"FALL.csv": "KH-internes-Kennzeichen;Geschlecht\n1;m\n"}, "header_misses_admitted"),
        ("praxisnetz", {"practice.csv": b"\x00\x01\x02"}, "encoding_unreadable"),
        ("praxisnetz", {"practice.csv": b""}, "file_empty"),
        ("praxisnetz", {"practice.csv": "case_id,patient_id,sex\n1,2,m\n"}, "header_not_separated"),
        ("hospital-sued", {"FALL.csv": "KH-internes-Kennzeichen\tGeschlecht\n1\tm\n"}, "header_not_separated"),
    ],
)
def test_a_broken_export_is_rejected_as_a_whole_and_the_others_go_on(
    lake: Lake, city: City, deliver: Deliver, clinic, files, rule
):
    deliver(clinic, DAY, files)
    deliver("klinik-nord", DAY, {"Encounter.ndjson": [ENCOUNTER]}, suffix="-good")
    pull(lake, city, [DAY], TODAY)
    tables, rejected = read_exports(landed(lake, city, [DAY]), city)
    assert list(rejected.values()) == [rule]
    assert tables["cases"].num_rows == 1


@pytest.mark.parametrize(
    ("clinic", "name", "good", "bad"),
    [
        ("klinik-nord", "Encounter.ndjson", b"\n", b'{"id":"\xff"}\n'),
        ("praxisnetz", "practice.csv", b"case_id;patient_id;sex;visited_on;visit_type\n", b"case_id\n"),
    ],
)
def test_however_many_exports_are_broken_the_good_ones_are_read_twice_at_most(
    lake: Lake, city: City, deliver: Deliver, monkeypatch: pytest.MonkeyPatch, clinic, name, good, bad
):
    days = [date(2025, 1, 1 + n) for n in range(20)]
    for n, day in enumerate(days):
        deliver(clinic, day, {name: bad if n % 2 else good})
    pull(lake, city, days, TODAY)
    passes = []
    together = read._read_together
    monkeypatch.setattr(read, "_read_together", lambda *a: passes.append(len(a[0])) or together(*a))
    tables, rejected = read_exports(landed(lake, city, days), city)
    assert passes == [20, 10] and len(rejected) == 10
    assert len([f for f in tables["findings"].to_pylist() if f["severity"] == "rejected"]) == 10


def test_a_row_whose_number_another_case_has_too_is_not_lost_in_silence(lake: Lake, city: City, deliver: Deliver):
    visit, stay = "{};p{};1980;w;2025-01-0{};;emergency\n", "{};{};w;20250105080{};\n"
    deliver("praxisnetz", DAY, {
        "practice.csv": "case_id;patient_id;birth_date;sex;visited_on;left_on;visit_type\n"
                        + visit.format("v", 1, 4) + visit.format("v", 2, 5) + visit.format("w", 3, 5) * 2})  # fmt: skip
    deliver("hospital-sued", DAY, {
        "FALL.csv": "KH-internes-Kennzeichen;Patientennummer;Geschlecht;Aufnahmedatum;Entlassungsdatum\n"
                    + stay.format("007", 1, 1) + stay.format("008", 2, 2) + stay.format("008", 3, 3),
        "ICD.csv": "KH-internes-Kennzeichen;Diagnoseart;ICD-Kode\n008;HD;I210\n7;HD;I210\n7;ND;I10\n"})  # fmt: skip
    pull(lake, city, [DAY], TODAY)
    tables, _ = read_exports(landed(lake, city, [DAY]), city)
    found = [(f["severity"], f["rule"], f["source_file"], f["source_line"]) for f in tables["findings"].to_pylist()]
    assert sorted(found) == [
        ("info", "rows_of_no_case", "ICD.csv", 3),
        ("quarantined", "case_repeated", "FALL.csv", 3),
        ("quarantined", "case_repeated", "practice.csv", 2),
    ]
    assert tables["cases"].num_rows == 4


def test_what_a_spreadsheet_damaged_is_repaired_and_said(lake: Lake, city: City, deliver: Deliver):
    head = "KH-internes-Kennzeichen;Geschlecht;PLZ;Aufnahmedatum;Aufnahmegrund;Entlassungsdatum\n"
    deliver(
        "hospital-sued",
        DAY,
        {"FALL.csv": head + "1;m;1067;202501050800;107;202501062400\n2;w;zu;viele;Felder;hier;!\n"},
    )
    pull(lake, city, [DAY], TODAY)
    tables, _ = read_exports(landed(lake, city, [DAY]), city)
    case, person = tables["cases"].to_pylist()[0], tables["persons"].to_pylist()[0]
    assert (case["admission_reason"], case["admission_type"], case["discharged_on"]) == (
        "0107",
        "emergency",
        date(2025, 1, 6),
    )
    assert person["postal_code"] == "01067"
    rules = {f["rule"]: f["source_line"] for f in tables["findings"].to_pylist()}
    assert rules["wrong_number_of_fields"] == 3
    assert {"postal_code_leading_zero", "admission_reason_leading_zero", "hour_24"} <= set(rules)


def test_a_foreign_export_is_read_and_holds_no_consent(lake: Lake, city: City, shared: Path, deliver: Deliver):
    files = {p.name: p.read_bytes() for p in (shared / "synthea-us-10").glob("*.ndjson")}
    deliver("klinik-nord", DAY, files)
    pull(lake, city, [DAY], TODAY)
    tables, rejected = read_exports(landed(lake, city, [DAY]), city)
    assert rejected == {} and tables["cases"].num_rows == 1215
    assert tables["consent_provisions"].num_rows == 0 and tables["diagnoses"].num_rows == 0
    found = [(f["severity"], f["rule"], f["source_file"], f["source_line"]) for f in tables["findings"].to_pylist()]
    assert found == [("info", "diagnosis_not_icd_10_gm", "Condition.000.ndjson", 1)]


def test_an_error_in_the_city_file_names_its_line(tmp_path: Path):
    from assets.contract.city import DEFAULT_CITY

    lines = DEFAULT_CITY.read_text().splitlines()
    line = next(i for i, text in enumerate(lines) if "epsilon:" in text)
    lines[line] = "  epsilon: lots"
    broken = tmp_path / "city.yaml"
    broken.write_text("\n".join(lines))
    with pytest.raises(CityFileError, match=rf"city.yaml:{line + 1}: budget.epsilon"):
        load_city(broken)


def test_days_without_an_export_are_counted_except_those_of_a_pause(
    deliver: Callable[..., Path], lake: Lake, city: City
):
    pause = Pause(first=DAY + timedelta(2), last=DAY + timedelta(3))
    nord = city.clinic("klinik-nord").model_copy(update={"pauses": (pause,)})
    paused = city.model_copy(update={"clinics": (nord, city.clinic("praxisnetz"))})
    deliver("klinik-nord", DAY, {"Patient.ndjson": [PATIENT]})
    days = [DAY + timedelta(n) for n in range(5)]
    stage.take(lake, paused, days, DAY + timedelta(10))
    assert stage.read(lake, paused, days)["days_without_export"] == {"klinik-nord": 2, "praxisnetz": 5}


def test_an_export_of_which_most_lines_are_lost_is_told_apart_from_one_with_a_bad_line(
    lake: Lake, city: City, deliver: Deliver
):
    """A separator inside a field spoils rows, not the file: no quality rule ever sees them."""
    head = "KH-internes-Kennzeichen;Geschlecht;PLZ;Aufnahmedatum;Geburtsjahr\n"
    good = [f"{n};m;64283;202501050800;1980\n" for n in range(40)]
    bad = [f"b{n};m;64283;202501050800;1980;Darmstadt; Eberstadt\n" for n in range(60)]
    deliver("hospital-sued", DAY, {"FALL.csv": "".join([head, *good, *bad])})
    deliver(
        "praxisnetz",
        DAY,
        {"practice.csv": "case_id;patient_id;sex;visited_on;visit_type\nv;p;w;2025-01-05;emergency\nx\n"},
    )
    pull(lake, city, [DAY], TODAY)
    assert stage.read(lake, city, [DAY])["unread"] == {"hospital-sued": 0.6}


def test_contacts_of_departments_are_left_out_on_purpose_and_not_unread(lake: Lake, city: City, deliver: Deliver):
    level = [{"coding": [{"system": "http://fhir.de/CodeSystem/Kontaktebene", "code": "abteilungskontakt"}]}]
    wards = [{**ENCOUNTER, "id": f"w{n}", "type": level, "partOf": {"reference": "Encounter/e"}} for n in range(59)]
    text = "\n".join([*(json.dumps(r) for r in [ENCOUNTER, *wards]), "", *["{"] * 20])
    deliver("klinik-nord", DAY, {"Encounter.ndjson": text})
    deliver("klinik-nord", DAY + timedelta(1), {"Encounter.ndjson.gz": gzip.compress(text.encode())})
    deliver("klinik-nord", DAY + timedelta(2), {"x.ndjson": text})
    for day in (DAY, DAY + timedelta(1), DAY + timedelta(2)):
        pull(lake, city, [day], TODAY)
        assert stage.read(lake, city, [day])["unread"] == {"klinik-nord": 0.25}


def test_lines_of_types_that_are_not_used_do_not_hide_how_many_are_lost(lake: Lake, city: City, deliver: Deliver):
    rows = [json.dumps({**ENCOUNTER, "id": f"e{n}"}) for n in range(60)]
    labs = [f'{{"resourceType":"Observation","id":"{n}"}}' for n in range(2000)]
    deliver("klinik-nord", DAY, {"x.ndjson": "\n".join([*rows, *["{"] * 20])})
    deliver("klinik-nord", DAY + timedelta(1), {"Encounter.ndjson": "\n".join([*rows, *labs, *["{"] * 20])})
    for day in (DAY, DAY + timedelta(1)):
        pull(lake, city, [day], TODAY)
        assert stage.read(lake, city, [day])["unread"] == {"klinik-nord": 0.25}


def test_a_stay_of_part_of_a_day_is_no_inpatient_case_and_an_eaten_zero_hides_no_death(
    lake: Lake, city: City, deliver: Deliver
):
    head = "KH-internes-Kennzeichen;Geschlecht;Aufnahmedatum;Aufnahmegrund;Entlassungsdatum;Entlassungsgrund\n"
    stays = (("0101", "079"), ("301", "011"), ("0301", "011"), ("0407", "011"), ("", "7"), ("0801", "79"))
    rows = (f"{n};w;202501050800;{reason};202501060900;{end}\n" for n, (reason, end) in enumerate(stays))
    deliver("hospital-sued", DAY, {"FALL.csv": head + "".join(rows)})
    pull(lake, city, [DAY], TODAY)
    cases = read_exports(landed(lake, city, [DAY]), city)[0]["cases"].sort_by("case_id").to_pylist()
    assert [c["care"] for c in cases] == ["inpatient", "other", "other", "other", "inpatient", "inpatient"]
    assert [c["died"] for c in cases] == [True, False, False, False, True, True]


def test_a_kind_of_diagnosis_that_is_none_is_named_once_a_file(lake: Lake, city: City, deliver: Deliver):
    fall = "KH-internes-Kennzeichen;Geschlecht;Aufnahmedatum\n1;w;202501050800\n"
    icd = "KH-internes-Kennzeichen;Diagnoseart;ICD-Kode\n1;ND;E119\n1;H;I210\n1;X;I211\n"
    deliver("hospital-sued", DAY, {"FALL.csv": fall, "ICD.csv": icd})
    pull(lake, city, [DAY], TODAY)
    tables = read_exports(landed(lake, city, [DAY]), city)[0]
    found = [(f["rule"], f["source_file"], f["source_line"]) for f in tables["findings"].to_pylist()]
    assert found == [("diagnosis_kind_unknown", "ICD.csv", 3)]
    assert sorted(tables["diagnoses"].column("role").to_pylist()) == ["other", "other", "secondary"]


@pytest.mark.parametrize("source", ["fhir", "bundle", "csv"])
@pytest.mark.parametrize("form", ["p21", "practice", "fhir"])
def test_a_withdrawal_needs_no_case_beside_it(
    lake: Lake, city: City, deliver: Deliver, small_export: Callable[..., dict[str, list[object]]], form: str, source: str
):  # fmt: skip
    said = "csv" if source == "csv" else "fhir"
    clinics = [c.model_copy(update={"format": form, "consent_source": said}) for c in city.clinics]
    withdrawn = small_export(DAY, [], withdrawn=("anna",))["Consent.ndjson"]
    csv = "patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\nanna;2024-01-01;;;;2025-01-05\n"
    bundle = {"resourceType": "Bundle", "entry": [{"resource": r} for r in withdrawn]}
    files = {
        "csv": {"consent.csv": csv},
        "fhir": {"Consent.ndjson": withdrawn},
        "bundle": {"gics.json": json.dumps(bundle)},
    }
    deliver("praxisnetz", DAY, files[source])
    changed = city.model_copy(update={"clinics": tuple(clinics)})
    pull(lake, changed, [DAY], TODAY)
    tables, rejected = read_exports(landed(lake, changed, [DAY]), changed)
    assert rejected == {} and set(tables["consent_provisions"].column("patient_id").to_pylist()) == {"anna"}
