"""Files that DuckDB's own reader takes and files that are read line by line give the same tables and findings."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.contract.city import City
from assets.intake import fhir_load
from assets.intake.connector import Export
from assets.intake.read import read_exports

GOOD = {"resourceType": "Encounter", "status": "finished", "class": {"code": "IMP"},
        "subject": {"reference": "Patient/p"}, "period": {"start": "2025-01-05", "end": "2025-01-06"}}  # fmt: skip
ODD = (
    "", "   ", "\r", "\x0b", "null", "5", '"x"', "[]", "garbage", "{", "}", '{"resourceType":"Encounter",', '"id":"w"}', "\x00",
    '{"resourceType":"Encounter","id":"two"} {"resourceType":"Encounter","id":"in one"}',
    '{"resourceType":"Encounter","id":"rest"} rest', '[{"resourceType":"Encounter","id":"listed"}]',
    '{"resourceType":"Encounter","id":{"k":1}}', '{"resourceType":"Encounter","id":7,"id":"again"}',
    '{"resourceType":"Encounter","id":"comma",}', '{"resourceType":"Encounter","id":"lone\\ud800"}',
    '{"resourceType":"Encounter","id":"ranked","diagnosis":[{"rank":"7"},{"rank":1e99},"x"],"subject":["Patient/p"]}',
    '{"resourceType":"Encounter","id":"shapes","class":"IMP","type":{"coding":"x"},"period":[],"partOf":null}',
    '{"ResourceType":"Encounter","ID":"case"}', '{"resourceType":"Patient","id":"other"}', '{"resourceType":"Encounter"}',
    '{"a":' * 3000 + "1" + "}" * 3000, "\ufeff" + json.dumps(GOOD | {"id": "mark"}),
)  # fmt: skip


def read(city: City, folder: Path, by_line: bool) -> tuple[dict[str, list[dict[str, object]]], dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        if by_line:
            patch.setattr(fhir_load, "count_lines", lambda path: None)
        tables, rejected = read_exports([Export(city.clinic("klinik-nord"), date(2025, 1, 6), "x", folder)], city)
    return {name: sorted(table.to_pylist(), key=repr) for name, table in tables.items()}, rejected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(st.lists(st.sampled_from(ODD) | st.integers(0, 9), max_size=8), min_size=1, max_size=3),
       ends=st.booleans())  # fmt: skip
def test_both_ways_of_reading_agree(city: City, tmp_path: Path, files: list[list[str | int]], ends: bool):
    for old in tmp_path.iterdir():
        old.unlink()
    for number, lines in enumerate(files):
        text = "\n".join(json.dumps(GOOD | {"id": f"e{n}"}) if isinstance(n, int) else n for n in lines)
        (tmp_path / f"Encounter.{number}.ndjson").write_bytes((text + "\n" * ends).encode())
    tables, rejected = read(city, tmp_path, by_line=False)
    assert not rejected
    assert (tables, rejected) == read(city, tmp_path, by_line=True)


def test_a_line_keeps_its_number_among_many_files_and_blocks(city: City, tmp_path: Path):
    for number in range(3):
        rows = [GOOD | {"id": f"e{number}-{n}", "text": "x" * (n * 7919 % 900)} for n in range(1, 30_001)]
        (tmp_path / f"Encounter.{number}.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables, _ = read(city, tmp_path, by_line=False)
    expected = [(f"e{number}-{n}", f"Encounter.{number}.ndjson", n) for number in range(3) for n in range(1, 30_001)]
    assert sorted((str(c["case_id"]), c["source_file"], c["source_line"]) for c in tables["cases"]) == sorted(expected)


def test_a_clean_export_is_not_read_line_by_line(city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else every export would take a third longer, and nobody would notice."""
    monkeypatch.delattr(fhir_load, "Lines")
    (tmp_path / "Encounter.ndjson").write_text(json.dumps(GOOD | {"id": "e"}) + "\n")
    tables, rejected = read(city, tmp_path, by_line=False)
    assert len(tables["cases"]) == 1
    assert not rejected


@pytest.mark.parametrize("name", ["Encounter.[a].ndjson", "Encounter.*.ndjson", "Encounter.it's.ndjson"])
def test_a_name_that_is_a_pattern_names_its_file_only(city: City, tmp_path: Path, name: str):
    (tmp_path / "Encounter.a.ndjson").write_text(json.dumps(GOOD | {"id": "e"}) + "\n")
    (tmp_path / name).write_text(json.dumps(GOOD | {"id": "f"}) + "\n")
    tables, _ = read(city, tmp_path, by_line=False)
    assert sorted((str(c["case_id"]), c["source_file"]) for c in tables["cases"]) == [
        ("e", "Encounter.a.ndjson"),
        ("f", name),
    ]


def test_text_that_is_not_utf8_still_rejects_the_export(city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("assets.intake.lines.BLOCK", 64)  # the line lies in a later block than the first
    good = json.dumps(GOOD | {"id": "e"}).encode()
    (tmp_path / "Encounter.ndjson").write_bytes(good + b"\n" + good.replace(b"finished", b"\xe4") + b"\n")
    tables, rejected = read(city, tmp_path, by_line=False)
    assert rejected == {"x": "encoding_not_utf8"}
    assert [(f["source_file"], f["source_line"]) for f in tables["findings"]] == [("Encounter.ndjson", 2)]
    (tmp_path / "Encounter.ndjson").unlink()
    (tmp_path / "all.json").write_bytes(b'{"resourceType": "Bundle",\n"entry": [],\n"id": "\xe4"}')
    assert [f["source_line"] for f in read(city, tmp_path, by_line=False)[0]["findings"]] == [3]


def test_of_many_files_only_the_largest_are_given_to_the_reader_that_keeps_buffers_for_each(
    city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number in range(5):
        rows = "".join(json.dumps(GOOD | {"id": f"e{number}-{n}"}) + "\n" for n in range(number + 1))
        (tmp_path / f"Encounter.{number}.ndjson").write_text(rows)
    expected = read(city, tmp_path, by_line=True)
    counted: list[str] = []

    def count(path: Path, real: Callable[[Path], int | None] = fhir_load.count_lines) -> int | None:
        counted.append(path.name)
        return real(path)

    monkeypatch.setattr(fhir_load, "MOST_FILES", 2)
    monkeypatch.setattr(fhir_load, "count_lines", count)
    assert read(city, tmp_path, by_line=False) == expected and len(expected[0]["cases"]) == 15
    assert counted == ["Encounter.3.ndjson", "Encounter.4.ndjson"]
