"""The sieve before erasure never holds back a line that names an id, however it is written and whatever stands around it."""

from __future__ import annotations

import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from assets.intake.needles import Sieve

IDS = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]) | st.sampled_from("-._"), min_size=1, max_size=40), min_size=1, max_size=5)  # fmt: skip
FILLER = st.binary(max_size=60)


@settings(deadline=None)
@given(ids=IDS | st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3),
       lines=st.lists(st.tuples(FILLER, st.integers(0, 9), FILLER), max_size=12), end=st.booleans())  # fmt: skip
def test_every_line_that_holds_an_id_passes(ids: list[str], lines: list[tuple[bytes, int, bytes]], end: bool):
    ids = [i for i in ids if "\n" not in i] or ["x"]
    whole = b"\n".join(a.replace(b"\n", b" ") + (ids[n].encode() if n < len(ids) else b"") + b.replace(b"\n", b" ")
                       for a, n, b in lines) + (b"\n" if end and lines else b"")  # fmt: skip
    passed = dict(Sieve(ids).lines(whole))
    every = re.findall(rb"[^\n]*\n|[^\n]+", whole)
    assert b"".join(every) == whole
    for number, line in enumerate(every):
        assert passed.get(number, line) == line
        if any(i.encode() in line for i in ids):
            assert number in passed


def json_character(character: str, way: int) -> str:
    """`character` in one of the ways in which JSON may write it."""
    short = dict(zip('"\\/\b\f\n\r\t', ('\\"', "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"), strict=True))
    ways = [json.dumps(character, ensure_ascii=False)[1:-1], short.get(character), *(f"\\u{ord(character):{form}}" for form in ("04x", "04X"))]  # fmt: skip
    ways = [w for w in ways if w]
    return ways[way % len(ways)]


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0x7F), min_size=1, max_size=20), st.data())
def test_a_line_passes_however_json_writes_an_id(ident: str, data: st.DataObject):
    written = "".join(json_character(c, data.draw(st.integers(0, 3))) for c in ident)
    line = f'{{"id":"{written}"}}'
    assert json.loads(line)["id"] == ident
    assert [n for n, _ in Sieve([ident, "another-id"]).lines(f'{{"id":"x"}}\n{line}\n'.encode()) if n] == [1]


def test_no_escape_of_a_single_character_hides_an_id():
    for code in range(0x20, 0x7F):
        for way in range(4):
            line = f'{{"id":"id{json_character(chr(code), way)}xyz"}}'.encode()
            ident = f"id{chr(code)}xyz"
            assert json.loads(line)["id"] == ident and Sieve([ident]).lines(line) == [(0, line)], (code, way)


def test_most_lines_that_name_no_id_do_not_pass():
    other = [{"id": f"P{n:07d}", "family": "M\u00fcller", "div": '<div xmlns="http://www.w3.org/1999/xhtml">'} for n in range(1_000)]  # fmt: skip
    content = "".join(json.dumps(row) + "\n" for row in other).encode()
    assert b"\\u00fc" in content and b'\\"' in content
    assert [n for n, _ in Sieve(["P0000007", "kis/7"]).lines(content)] == list(range(1_000)), "an id with a slash"
    assert [n for n, _ in Sieve(["P0000007"]).lines(content)] == [7]


def test_ids_that_overlap_are_found_in_every_line():
    assert [n for n, _ in Sieve(["abcd", "cdef"]).lines(b"abcdef\n....\nabcd\ncdef\n.cdef.")] == [0, 2, 3, 4]
