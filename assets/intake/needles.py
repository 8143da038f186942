"""Which lines of a raw file could name one of many ids: a fast sieve before lines are parsed.

It may pass lines that name none, but never holds back one that does. An id stands in a line as its own bytes, with two
exceptions: a line with a JSON escape of a printable character always passes, and so does every line of a block with a
NUL byte, as in UTF-16. Not here: what names a patient (`naming`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import ahocorasick_rs
import numpy as np

_SHORTEST: Final = 4
"""Shorter ids occur by chance in so many lines that searching for them saves nothing."""
_ESCAPES: Final = tuple(rb"\u00%d" % n for n in range(2, 8))
"""How JSON (RFC 8259, 7) may write a character of ASCII other than as itself; `_ESCAPED` may be written shorter."""
_ESCAPED: Final = frozenset('"\\/')


class Sieve:
    """All `ids` are looked for in one pass; every line passes where one is too short or not plain ASCII."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._all = not all(len(i) >= _SHORTEST and i.isascii() and i.isprintable() for i in ids)
        escapes = _ESCAPES if _ESCAPED.isdisjoint("".join(ids)) else (b"\\",)
        self._needles = ahocorasick_rs.BytesAhoCorasick([*escapes, *(i.encode() for i in ids if i)])

    def lines(self, content: bytes, returns: bool = False) -> list[tuple[int, bytes]]:
        """(number from 0, line with its end) of each line of `content` (`line_bounds`) that could name an id."""
        every = self._all or b"\0" in content
        places = () if every else [first for _, first, _ in self._needles.find_matches_as_indexes(content)]
        if not every and not places:
            return []
        bounds = line_bounds(content, returns)
        # Matches that overlap are told once; they lie in one line, because no needle holds a newline.
        numbers = np.unique(np.searchsorted(bounds, places, side="right") - 1) if places else range(len(bounds) - 1)
        return [(int(n), content[bounds[n] : bounds[n + 1]]) for n in numbers]


def line_bounds(content: bytes, returns: bool = False) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each line begins, and the end of the last; lines end with a newline, with `returns` also with a lone CR."""
    data = np.frombuffer(content, np.uint8)
    ends = data == ord("\n")
    if returns:
        ends[:-1] |= (data[:-1] == ord("\r")) & ~ends[1:]
    begins = np.flatnonzero(ends) + 1
    open_end = [len(content)] if content and not content.endswith(b"\n") else []
    return np.concatenate([[0], begins, open_end]).astype(np.int64)
