"""Which bytes erasure finds in raw files however they are written, and what it leaves of them."""

from __future__ import annotations

import gzip
from datetime import date
from pathlib import Path

import pytest

from assets.intake import landing
from assets.lake.lake import Lake

VISITS = "patient_id;case_id;sex;visited_on;visit_type\nGONE;v1;w;2025-01-05;planned\nSTAYS;v2;w;2025-01-05;planned\n"


@pytest.fixture
def erased(lake: Lake):
    """What is left of a practice's table after the erasure of the patient GONE; nothing if the file went."""

    def erase(content: bytes) -> bytes:
        path = lake.landing / "praxisnetz" / "2025-01-06" / "0000abcd" / "practice.csv"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        landing.erase_patients(lake, "praxisnetz", ["GONE"], [], None, date(2025, 1, 7))
        return path.read_bytes() if path.exists() else b""

    return erase


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_row_goes_and_the_next_stays_whatever_ends_a_line(erased, end: str):
    left = [line for n, line in enumerate(VISITS.split("\n")) if n != 1]
    assert erased(VISITS.replace("\n", end).encode()) == end.join(left).encode()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_patient_is_found_in_a_table_that_no_reader_takes(erased, encoding: str):
    """Such an export is rejected, and its raw copy lies there until its retention is over."""
    assert b"GONE" not in erased(VISITS.encode(encoding)).replace(b"\0", b"")


def test_a_nul_byte_does_not_hide_a_patient(erased):
    assert (
        erased(VISITS.replace("GONE", "GO\0NE").encode())
        == VISITS.replace("GONE;v1;w;2025-01-05;planned\n", "").encode()
    )


def test_a_packed_file_is_rewritten_to_the_same_bytes_whenever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = []
    for now in (1_000_000_000, 1_700_000_000):
        monkeypatch.setattr("gzip.time.time", lambda now=now: now)
        path = tmp_path / f"{now}.ndjson.gz"
        path.write_bytes(gzip.compress(b'{"id":"gone"}\n{"id":"kept"}\n', mtime=0))
        landing._without(path, {0: b""})
        assert gzip.decompress(path.read_bytes()) == b'{"id":"kept"}\n'
        left.append(path.read_bytes())
    assert left[0] == left[1]
