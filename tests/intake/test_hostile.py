"""Hostile or mutilated files are refused or quarantined with a reason, in bounded memory and time."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from assets.contract.city import City
from assets.intake import lines
from assets.intake.connector import Export, landed, pull
from assets.intake.lines import Lines
from assets.intake.read import read_exports
from assets.lake.lake import Lake

DAY, TODAY = date(2025, 1, 6), date(2025, 2, 1)
EXAMPLES, LINES = (350, (90, 110)) if os.environ.get("DIGITALSTADT_FUZZ") == "all" else (60, (1, 40))
"""Files tried by each of the three fuzz tests, and how many lines a file holds: with `all` 100,000 lines altogether."""
ENCOUNTER = {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "IMP"},
             "subject": {"reference": "Patient/p"}, "period": {"start": "2025-01-05", "end": "2025-01-06"}}  # fmt: skip
FALL_HEAD = "KH-internes-Kennzeichen;Geschlecht;PLZ;Aufnahmedatum;Aufnahmegrund;Entlassungsdatum"
FALL_ROW = "1;m;64283;202501050800;0107;202501062300"
PRACTICE_HEAD = "case_id;patient_id;sex;visited_on;visit_type"
PRACTICE_ROW = "1;p;w;2025-01-05;emergency"


def read_files(city: City, clinic: str, folder: Path, files: dict[str, bytes]):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    tables, rejected = read_exports([Export(city.clinic(clinic), DAY, "x", folder)], city)
    return tables, rejected.get("x"), sorted({f["rule"] for f in tables["findings"].to_pylist()})


def resource(**change: object) -> bytes:
    return json.dumps(ENCOUNTER | change).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "rules"),
    [
        (resource() + b"[" * 2_000_000 + b"\n", ["json_unreadable"]),
        (
            resource()
            + b'{"resourceType":"Encounter","id":"x","extension":'
            + b"[" * 200_000
            + b"]" * 200_000
            + b"}\n",
            None,
        ),
        (resource() + b'{"a":' * 300_000 + b"1" + b"}" * 300_000 + b"\n", ["json_unreadable"]),
        (resource() + resource(id="a" * 2**20), ["id_not_allowed"]),
        (resource() + resource(id="CANARY\0")[:-1].replace(b"\\u0000", b"\0") + b"\n", ["json_unreadable"]),
        (resource() + b"\0" * 1000 + b"\n", ["json_unreadable"]),
        (resource() + resource(id={"a": [1]}), ["id_not_allowed"]),
        (resource() + b'{"resourceType":"Encounter","id":"a","id":"b"}\n', None),
        (resource() + b"1e999999\n" + b'"CANARY"\n' + b"null\n", ["json_unreadable"]),
    ],
)
def test_hostile_lines_are_quarantined_and_the_good_one_is_read(city: City, tmp_path: Path, content: bytes, rules):
    started = time.process_time()
    tables, rejected, found = read_files(city, "klinik-nord", tmp_path / "x", {"Encounter.ndjson": content})
    assert rejected is None and "e" in tables["cases"].column("case_id").to_pylist()
    assert rules is None or found == rules
    assert time.process_time() - started < 20 and "CANARY" not in str(tables["findings"].to_pylist())


def test_a_reference_of_a_megabyte_links_to_nobody(city: City, tmp_path: Path):
    content = resource(subject={"reference": "Patient/" + "p" * 2**20})
    tables, _, _ = read_files(city, "klinik-nord", tmp_path / "x", {"Encounter.ndjson": content})
    assert tables["cases"].column("patient_id").to_pylist() == [None]


def test_an_endless_line_is_left_out_and_named_without_being_held(
    city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**20)
    monkeypatch.setattr(lines, "BLOCK", 2**18)
    file = tmp_path / "x" / "Encounter.ndjson"
    file.parent.mkdir()
    with file.open("wb") as out:
        out.write(resource())
        for _ in range(64):
            out.write(b"a" * 2**20)
        out.write(b"\n" + resource(id="e2"))
    tracemalloc.start()
    read = Lines([file])
    kept = [line for batch in read.reader() for line in batch.column("source_line").to_pylist()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept == [1, 3] and read.too_long == [(0, 2)] and peak < 8 * 2**20
    tables, rejected = read_exports([Export(city.clinic("klinik-nord"), DAY, "x", file.parent)], city)
    assert rejected == {} and sorted(tables["cases"].column("case_id").to_pylist()) == ["e", "e2"]
    assert [(f["rule"], f["source_line"]) for f in tables["findings"].to_pylist()] == [("line_too_long", 2)]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (gzip.compress(b"\n" * 200_000_000, mtime=0), "gzip_bomb"),
        (gzip.compress(resource() * 1000, mtime=0)[:-20], "gzip_unreadable"),
        (b"no gzip", "gzip_unreadable"),
        (gzip.compress(resource(), mtime=0) + b"rubbish behind", "gzip_unreadable"),
        (gzip.compress(b'{"id":"\xff"}\n', mtime=0), "encoding_not_utf8"),
        (gzip.compress('{"id":"ü"}\n'.encode("utf-16"), mtime=0), "encoding_not_utf8"),
    ],
)
@pytest.mark.parametrize(
    "name", ["Encounter.ndjson.gz", "bundle.json.gz", "OperationOutcome.ndjson.gz", "deleted.ndjson.gz"]
)
def test_a_hostile_packed_file_rejects_its_export(city: City, tmp_path: Path, content: bytes, rule: str, name: str):
    started = time.process_time()
    _, rejected, _ = read_files(city, "klinik-nord", tmp_path / "x", {name: content})
    assert time.process_time() - started < 20, "bounded work; processor time, for a wall clock shows the load"
    assert rejected == rule or (name == "bundle.json.gz" and rule == "gzip_bomb"), "a bundle stops at its own limit"


def test_a_name_cannot_leave_its_folder(lake: Lake, city: City, deliver: Callable):
    folder = deliver("klinik-nord", DAY, {"Encounter.ndjson": resource()})
    (folder / "..%2f..%2fkeys.ndjson").write_bytes(b"{}")
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["rejected"]
    (folder / "..%2f..%2fkeys.ndjson").unlink()
    (folder / "sub").mkdir()
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["rejected"] and landed(lake, city, [DAY]) == []


@pytest.mark.parametrize("formula", ["=cmd|' /C calc'!A0", "@SUM(1+1)", "+1+1", "-2+3", "\t=1", '"=HYPERLINK(""x"")"'])
def test_a_formula_in_a_cell_never_becomes_an_id(city: City, tmp_path: Path, formula: str):
    content = f"{FALL_HEAD}\n{FALL_ROW}\n{formula};m;64283;202501050800;0107;202501062300\n".encode()
    tables, rejected, rules = read_files(city, "hospital-sued", tmp_path / "x", {"FALL.csv": content})
    assert rejected is None and rules == ["formula_in_cell"] and tables["cases"].column("case_id").to_pylist() == ["1"]


@pytest.mark.parametrize(
    ("clinic", "name", "head", "row"),
    [("hospital-sued", "FALL.csv", FALL_HEAD, FALL_ROW), ("praxisnetz", "practice.csv", PRACTICE_HEAD, PRACTICE_ROW)],
)
@pytest.mark.parametrize(
    ("cell", "rule"),
    [
        ("x" * 2**20, "cell_too_long"),
        ("x" * 10 * 2**20, "cell_too_long"),
        ('"open', "wrong_number_of_fields"),
        ('9;x"y;"z', "wrong_number_of_fields"),
        ("\r", None),
        ("9\0", "nul_byte"),
        ('9;"\0', "nul_byte"),
        ("\0" * 2**21, "cell_too_long"),
        ("1;" * 5000, "wrong_number_of_fields"),
        ("1;" * 5_000_000, "wrong_number_of_fields"),
    ],
    ids=["long", "very long", "open", "opened later", "return", "NUL", "NUL and quote", "NULs", "many", "very many"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_hostile_cell_costs_its_own_row_only(
    city: City, tmp_path: Path, clinic, name, head, row, cell, rule, end: str
):
    content = end.join((head, row, cell + row[1:], "2" + row[1:], "3" + row[1:])).encode()
    tables, rejected, _ = read_files(city, clinic, tmp_path / "x", {name: content})
    lines = [(f["rule"], f["source_line"], f["column_name"]) for f in tables["findings"].to_pylist()]
    expected = [(rule, 3, "case_id" if rule == "cell_too_long" else None)] if rule else []
    assert rejected is None and lines == expected
    # A lone return ends a line: what follows it is a row without an id, which quality sorts out.
    found = {c["source_line"]: c["case_id"] for c in tables["cases"].to_pylist()}
    assert found == ({2: "1", 4: None, 5: "2", 6: "3"} if rule is None else {2: "1", 4: "2", 5: "3"})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_in_utf_16_is_refused_as_a_whole(city: City, tmp_path: Path, encoding: str, end: str):
    content = f"{FALL_HEAD}{end}{FALL_ROW}{end}".encode(encoding)
    _, rejected, _ = read_files(city, "hospital-sued", tmp_path / "x", {"FALL.csv": content})
    assert rejected == "encoding_unreadable"


def test_a_damaged_byte_in_a_consent_costs_that_consent_only(city: City, tmp_path: Path):
    head = "patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on"
    rows = [f"{who};2025-01-01;6 7 8;2025-01-01;;" for who in ("p", "q\0", "r")]
    files = {
        "practice.csv": f"{PRACTICE_HEAD}\n{PRACTICE_ROW}\n".encode(),
        "consent.csv": "\n".join((head, *rows)).encode(),
    }
    tables, rejected, _ = read_files(city, "praxisnetz", tmp_path / "x", files)
    assert rejected is None and set(tables["consent_provisions"].column("patient_id").to_pylist()) == {"p", "r"}
    found = [(f["rule"], f["source_file"], f["source_line"]) for f in tables["findings"].to_pylist()]
    assert found == [("nul_byte", "consent.csv", 3)]


def test_rows_in_which_nothing_stands_are_no_rows(city: City, tmp_path: Path):
    content = "\r\n".join((FALL_HEAD, "", FALL_ROW, ";;;;;", ";;", " ", f"2{FALL_ROW[1:]}", ";;;;;", "", ""))
    tables, rejected, rules = read_files(city, "hospital-sued", tmp_path / "x", {"FALL.csv": content.encode()})
    assert rejected is None and rules == []
    assert {c["source_line"]: c["case_id"] for c in tables["cases"].to_pylist()} == {3: "1", 7: "2"}


def test_an_endless_cell_is_named_by_its_column_without_being_held(city: City, tmp_path: Path):
    """Read block by block: what is held does not grow with a cell that no table of ours has."""
    file = tmp_path / "x" / "FALL.csv"
    file.parent.mkdir()
    with file.open("wb") as out:
        out.write(f"{FALL_HEAD};Wohnort\n{FALL_ROW};a\n{FALL_ROW};".encode())
        for _ in range(64):
            out.write(b"a" * 2**20)
        out.write(f"\n2{FALL_ROW[1:]};b".encode())
    tracemalloc.start()
    tables, rejected = read_exports([Export(city.clinic("hospital-sued"), DAY, "x", file.parent)], city)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rejected == {} and sorted(tables["cases"].column("case_id").to_pylist()) == ["1", "2"]
    found = [(f["rule"], f["source_line"], f["column_name"]) for f in tables["findings"].to_pylist()]
    assert found == [("cell_too_long", 3, "column 7")] and peak < 32 * 2**20


def test_a_header_without_end_is_refused(city: City, tmp_path: Path):
    _, rejected, _ = read_files(city, "hospital-sued", tmp_path / "x", {"FALL.csv": b"a;" * 2_000_000 + b"\n1;2\n"})
    assert rejected == "header_too_long"


quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """`good` with some bytes replaced, inserted or cut, without a line end inside."""
    edit = st.tuples(st.integers(0, len(good)), st.integers(0, 12), st.binary(max_size=8))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        text = good
        for place, gone, new in edits:
            text = text[:place] + new + text[place + gone :]
        text = text.decode("utf-8", "ignore").encode()  # another encoding refuses the file: its own test
        return text.replace(b"\n", b" ").replace(b"\r", b" ")

    return st.lists(edit, max_size=4).map(apply)


@quick
@example([resource()[:-1].replace(b"Patient/p", b" Patient/p")])  # read, with a reference that is told and not followed
@given(
    st.lists(
        st.one_of(
            mutated(resource()[:-1]),
            st.binary(max_size=40).map(
                lambda b: b.decode("utf-8", "ignore").encode().replace(b"\n", b"").replace(b"\r", b"")
            ),
        ),
        min_size=LINES[0],
        max_size=LINES[1],
    )
)
def test_every_mutated_line_lands_or_is_quarantined(city: City, tmp_path_factory, texts: list[bytes]):
    numbered = [t.replace(b'"id": "e"', b'"id": "e%d"' % i) for i, t in enumerate(texts)]
    tables, rejected, _ = read_files(
        city, "klinik-nord", tmp_path_factory.getbasetemp() / "fuzz", {"Encounter.ndjson": b"\n".join(numbered) + b"\n"}
    )
    assert rejected is None
    found = tables["findings"].to_pylist()
    told, bad = {f["source_line"] for f in found}, {f["source_line"] for f in found if f["severity"] == "quarantined"}
    good = {c["source_line"] for c in tables["cases"].to_pylist()}
    # A byte order mark is none in the middle of a file.
    whole = [numbered[0].removeprefix(b"\xef\xbb\xbf"), *numbered[1:]]
    given_lines = {i for i, t in enumerate(whole, 1) if t.strip(b" \t\r\n")}
    assert not bad & good and told <= given_lines and good <= given_lines
    # Only a later version of itself, or being part of another contact, may keep a good line out of the cases.
    names = {i: _loads(t).get("id") for i, t in enumerate(numbered, 1)}
    for lost in given_lines - bad - good:
        later = {n for n in given_lines - bad if n != lost and names[n] == names[lost]}
        assert later or "partOf" in _loads(numbered[lost - 1])


def _loads(text: bytes) -> dict:
    try:
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    except ValueError:
        return {}


@pytest.mark.parametrize(
    ("clinic", "name", "head", "row"),
    [("hospital-sued", "FALL.csv", FALL_HEAD, FALL_ROW), ("praxisnetz", "practice.csv", PRACTICE_HEAD, PRACTICE_ROW)],
)
def test_every_mutated_row_lands_or_is_quarantined(city: City, tmp_path: Path, clinic, name, head, row):
    @quick
    @given(st.lists(mutated(row.encode()), min_size=LINES[0], max_size=LINES[1]))
    def check(texts: list[bytes]) -> None:
        content = b"\n".join((head.encode(), *texts)) + b"\n"
        tables, rejected, _ = read_files(city, clinic, tmp_path / "fuzz", {name: content})
        if rejected is not None:
            return
        bad = {f["source_line"] for f in tables["findings"].to_pylist() if f["severity"] == "quarantined"}
        cases = tables["cases"].to_pylist()
        good = {c["source_line"] for c in cases}
        rows = {i for i, t in enumerate(texts, 2) if t.strip(b"; \t\v\f")}
        assert not bad & good and bad | good <= rows
        names = {i: t.split(b";")[0] for i, t in enumerate(texts, 2)}
        for lost in rows - bad - good:
            assert any(n != lost and names[n].strip(b'"') == names[lost].strip(b'"') for n in good), "no later version"

    check()
