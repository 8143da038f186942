"""Text files to Arrow batches of numbered lines, in memory that does not grow with the file or the line.

Every line counts, blank ones too, so that a line number is the one an editor shows. A line that is longer than
any resource is left out and named; a packed file that unpacks without end is refused. Not here: what a line holds.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from assets.intake.findings import RejectedExport

MAX_LINE_BYTES: Final = 16 * 2**20
BLOCK: Final = 4 * 2**20
MAX_RATIO: Final = 200
"""FHIR text shrinks to a thirtieth; a thousandth is a bomb."""
RATIO_FREE_BYTES: Final = 64 * 2**20
"""Below this, unpacking is harmless whatever the ratio."""
SCHEMA: Final = pa.schema([("file", pa.int32()), ("source_line", pa.int64()), ("line", pa.string())])
_BOM: Final = b"\xef\xbb\xbf"
_BLANKS: Final = np.zeros(256, dtype=bool)
_BLANKS[list(b" \t\r\n")] = True


def blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked where its name ends in `.gz`. Raises `RejectedExport` for a bad or hostile one."""
    allowed = max(path.stat().st_size * MAX_RATIO, RATIO_FREE_BYTES)
    with path.open("rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        total = 0
        try:
            while block := file.read(BLOCK):
                total += len(block)
                if total > allowed:
                    raise RejectedExport("gzip_bomb", path)
                yield block
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise RejectedExport("gzip_unreadable", path) from None


def read_text(path: Path, most_bytes: int) -> str | None:
    """A whole small text file (UTF-8, packed or not), None where it is larger than `most_bytes`."""
    data = b""
    for block in blocks(path):
        data += block
        if len(data) > most_bytes:
            return None
    try:
        return data.removeprefix(_BOM).decode()
    except UnicodeDecodeError:
        raise RejectedExport("encoding_not_utf8", path) from None


@dataclass
class Lines:
    """The lines of `files` as batches of `SCHEMA`; `file` is the position in the list.

    After the batches are used up: `too_long` holds (file, line) of what was left out, `problem` why reading
    ended early. An exception cannot pass through the engine that pulls the batches, so it waits there.
    """

    files: list[Path]
    too_long: list[tuple[int, int]] = field(default_factory=list)
    problem: RejectedExport | None = None

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(SCHEMA, self._all())

    def _all(self) -> Iterator[pa.RecordBatch]:
        for number, path in enumerate(self.files):
            try:
                yield from self._of(number, path)
            except RejectedExport as problem:
                self.problem = problem
                return

    def _of(self, number: int, path: Path) -> Iterator[pa.RecordBatch]:
        carry, before, first, skipping = b"", 0, True, False
        for block in _ended(blocks(path)):
            data = block.removeprefix(_BOM) if first else block
            first = False
            if skipping:
                end = data.find(b"\n")
                if end < 0:
                    continue
                before += 1
                self.too_long.append((number, before))
                data, skipping = data[end + 1 :], False
            data = carry + data
            cut = data.rfind(b"\n") + 1
            carry = data[cut:]
            if cut:
                batch = _batch(number, before, data, cut, path)
                before += data.count(b"\n")
                if batch.num_rows:
                    yield batch
            if len(carry) > MAX_LINE_BYTES:
                carry, skipping = b"", True


def _ended(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes with a line end at the very end."""
    last = b"\n"
    for part in parts:
        last = part[-1:]
        yield part
    if last != b"\n":
        yield b"\n"


def _batch(number: int, before: int, data: bytes, cut: int, path: Path) -> pa.RecordBatch:
    """The lines of `data[:cut]` without blank ones; each keeps its line end, which JSON does not mind."""
    view = np.frombuffer(data, dtype=np.uint8, count=cut)
    ends = np.flatnonzero(view == 10) + 1
    offsets = np.concatenate(([0], ends)).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        raise RejectedExport("encoding_not_utf8", path) from None
    batch = pa.RecordBatch.from_arrays(
        [
            pa.repeat(pa.scalar(number, pa.int32()), len(ends)),
            pa.array(np.arange(before + 1, before + 1 + len(ends))),
            lines,
        ],
        schema=SCHEMA,
    )
    if _BLANKS[view[offsets[:-1]]].any():
        written = np.logical_or.reduceat(~_BLANKS[view], offsets[:-1])
        batch = batch.filter(pa.array(written))
    return batch
