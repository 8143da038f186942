"""Which lines of a raw file could name one of many ids: a fast sieve before a line is taken apart.

It may let lines through that name none, never hold one back that does: an id stands in a line as its own bytes,
unless an escape stands for one of them, so a line with a backslash always passes. Not here: what names a patient
(`landing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_MOST_BITS: Final = 22
_LEAST_BITS: Final = 19
"""A table for few ids (512 KiB) fits the processor's cache, where looking up every word of a file takes two thirds of the time."""
_MULTIPLIER: Final = 0x9E3779B97F4A7C15
"""Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4): the upper bits of the product are well spread."""
_NEWLINE: Final = 10
_BACKSLASH: Final = 92
_BLOCK: Final = 2**22


class Sieve:
    """The last bytes of every id, hashed; `passes` all where an id is too short or not plain ASCII."""

    def __init__(self, ids: Sequence[str]) -> None:
        shortest = min((len(i) for i in ids), default=0)
        self._width = 8 if shortest >= 8 else 4
        self._all = shortest < 4 or not all(i.isascii() for i in ids)
        if not self._all:
            ends = b"".join(i.encode()[-self._width :] for i in ids)
            # Some 16,000 places for each id, so that few lines of a thousand words pass by chance.
            self._bits = min(max((len(ids) << 14).bit_length(), _LEAST_BITS), _MOST_BITS)
            self._marked = np.zeros(1 << self._bits, dtype=bool)
            self._marked[self._hashes(np.frombuffer(ends, f"<u{self._width}"))] = True

    def _hashes(self, words: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.int64]:
        hashes = (words.astype(np.uint64) * np.uint64(_MULTIPLIER)) >> np.uint64(64 - self._bits)
        return hashes.view(np.int64)  # numpy would copy unsigned places

    def lines(self, content: bytes) -> list[tuple[int, bytes]]:
        """(number from 0, line with its end) of each line of `content` that could name an id."""
        if self._all:
            return list(enumerate(split_lines(content)))
        data = np.frombuffer(content, np.uint8)
        hits = [np.flatnonzero(data == _BACKSLASH)]
        for begin in range(0, len(content), _BLOCK):
            for shift in range(begin, min(begin + self._width, len(content))):
                number = (min(begin + _BLOCK + self._width - 1, len(content)) - shift) // self._width
                words = np.frombuffer(content, f"<u{self._width}", number, shift)
                hits.append(np.flatnonzero(self._marked[self._hashes(words)]) * self._width + shift)
        places = np.concatenate(hits)
        ends = np.flatnonzero(data == _NEWLINE) + 1
        numbers = np.unique(np.searchsorted(ends, places, side="right")).tolist()
        begins = [0, *ends.tolist()]
        bounds = [*begins[1:], len(content)]
        return [(n, content[begins[n] : bounds[n]]) for n in numbers]


def split_lines(content: bytes) -> list[bytes]:
    """Lines end with a newline only."""
    parts = content.split(b"\n")
    return [*(part + b"\n" for part in parts[:-1]), *([parts[-1]] if parts[-1] else [])]
