"""The sieve before erasure never holds back a line that names an id, whatever stands around it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.intake import needles
from assets.intake.needles import Sieve, split_lines

IDS = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]) | st.sampled_from("-._"), min_size=1, max_size=40), min_size=1, max_size=5)  # fmt: skip
FILLER = st.binary(max_size=60)


@given(ids=IDS | st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3),
       lines=st.lists(st.tuples(FILLER, st.integers(0, 9), FILLER), max_size=12), end=st.booleans())  # fmt: skip
def test_every_line_that_holds_an_id_passes(ids: list[str], lines: list[tuple[bytes, int, bytes]], end: bool):
    ids = [i for i in ids if "\n" not in i] or ["x"]
    whole = b"\n".join(a.replace(b"\n", b" ") + (ids[n].encode() if n < len(ids) else b"") + b.replace(b"\n", b" ")
                       for a, n, b in lines) + (b"\n" if end and lines else b"")  # fmt: skip
    passed = dict(Sieve(ids).lines(whole))
    every = split_lines(whole)
    assert b"".join(every) == whole
    for number, line in enumerate(every):
        assert passed.get(number, line) == line
        if any(i.encode() in line for i in ids) or b"\\" in line:
            assert number in passed


def test_an_escaped_id_passes_and_most_other_lines_do_not():
    named = json.dumps({"id": "P0000007"}).replace("P", "\\u0050")
    content = "".join(json.dumps({"id": f"P{n:07d}"}) + "\n" for n in range(1_000)) + named + "\n"
    assert [n for n, _ in Sieve(["P0000007"]).lines(content.encode())] == [7, 1_000]


@pytest.mark.parametrize("block", [16, 24, 64])
def test_an_id_over_the_border_of_two_blocks_passes(monkeypatch: pytest.MonkeyPatch, block: int):
    monkeypatch.setattr(needles, "_BLOCK", block)
    for width in ("ABCD", "ABCDEFGHIJ"):
        for place in range(100):
            assert Sieve([width]).lines(b"." * place + width.encode() + b"." * 30)
