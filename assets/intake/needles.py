"""Which lines of a raw file could name one of many ids: a fast sieve before a line is taken apart.

It may let lines through that name none, never hold one back that does: an id stands in a line as its own bytes,
unless an escape stands for one of them, so a line with such an escape always passes. Not here: what names a patient
(`landing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import ahocorasick_rs
import numpy as np

_SHORTEST: Final = 4
"""Shorter ids stand by chance in so many lines that looking for them saves nothing."""
_ESCAPES: Final = tuple(rb"\u00%d" % n for n in range(2, 8))
"""How JSON (RFC 8259, 7) may write a character of ASCII other than as itself; `_ESCAPED` may be written shorter."""
_ESCAPED: Final = frozenset('"\\/')


class Sieve:
    """All `ids` are looked for in one pass; every line passes where one is too short or not plain ASCII."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._all = not all(len(i) >= _SHORTEST and i.isascii() and i.isprintable() for i in ids)
        escapes = _ESCAPES if _ESCAPED.isdisjoint("".join(ids)) else (b"\\",)
        self._needles = ahocorasick_rs.BytesAhoCorasick([*escapes, *(i.encode() for i in ids if i)])

    def lines(self, content: bytes) -> list[tuple[int, bytes]]:
        """(number from 0, line with its end) of each line of `content` that could name an id."""
        if self._all:
            return list(enumerate(split_lines(content)))
        # Matches that overlap are told once; they lie in one line, because no needle holds a newline.
        places = [first for _, first, _ in self._needles.find_matches_as_indexes(content)]
        if not places:
            return []
        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
        numbers = np.unique(np.searchsorted(ends, places, side="right")).tolist()
        bounds = [0, *ends.tolist(), len(content)]
        return [(n, content[bounds[n] : bounds[n + 1]]) for n in numbers]


def split_lines(content: bytes) -> list[bytes]:
    """Lines end with a newline only."""
    parts = content.split(b"\n")
    return [*(part + b"\n" for part in parts[:-1]), *([parts[-1]] if parts[-1] else [])]
