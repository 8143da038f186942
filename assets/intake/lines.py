"""Text files as Arrow batches of numbered lines, in memory that does not grow with the file or the line.

Every line counts, blank ones too, so that a line number is the one an editor shows. An over-long line is left out and
reported; a packed file that unpacks without end is refused. Not here: what a line holds.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from assets.intake.archives import allowed_bytes
from assets.intake.findings import RejectedExport, raise_all

MAX_LINE_BYTES: Final = 16 * 2**20
BLOCK: Final = 4 * 2**20
COUNTED: Final = 256 * 2**10
"""Small enough to stay in a processor's cache between being read and being counted."""
_FIRST: Final = 100
SCHEMA: Final = pa.schema([("file", pa.int32()), ("source_line", pa.int64()), ("line", pa.string())])
_BOM: Final = b"\xef\xbb\xbf"
_END: Final = ord("\n")
_BLANKS: Final = np.zeros(256, dtype=bool)
_BLANKS[list(b" \t\r\n")] = True


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file for reading bytes, unpacked where its name ends in `.gz`. `RejectedExport` where unpacking fails."""
    with path.open("rb", buffering=0) as raw:
        try:
            yield gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise RejectedExport("gzip_unreadable", path) from None


def first_lines(path: Path) -> Iterator[bytes]:
    """The first lines of a file, packed or not: a hundred, or as much as a single line may have, with the last one cut off."""
    with _opened(path) as file:
        lines, left = io.BufferedReader(file), MAX_LINE_BYTES
        for number in range(_FIRST):
            if left <= 0 or not (line := lines.readline(left)):
                return
            left -= len(line)
            yield line if number else line.removeprefix(_BOM)


def read_text(path: Path, most_bytes: int) -> str | None:
    """A whole small text file (UTF-8, packed or not), None where it is larger than `most_bytes`."""
    allowed, data = allowed_bytes(path), b""
    with _opened(path) as file:
        while block := file.read(BLOCK):
            data += block
            if len(data) > allowed:
                raise RejectedExport("gzip_bomb", path)
            if len(data) > most_bytes:
                return None
    try:
        return data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise RejectedExport("encoding_not_utf8", path, data.count(b"\n", 0, error.start) + 1) from None


def count_lines(path: Path) -> int | None:
    """How many lines a file has; None where DuckDB's own reader must not read it.

    It must not where the file is packed, begins with a byte order mark, has a wildcard in its name, or may hold an
    over-long line.
    """
    if path.name.lower().endswith(".gz") or any(sign in str(path.resolve()) for sign in "*?["):
        return None
    count, last, without_end, block = 0, b"", 0, bytearray(COUNTED)
    seen = np.frombuffer(block, dtype=np.uint8)  # counts three times as fast as the bytes themselves
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            ends = int(np.count_nonzero(seen[:size] == _END))
            # Whole blocks only are told apart, so this asks for half of the length that is too much.
            without_end = 0 if ends else without_end + size
            if (not last and block.startswith(_BOM)) or without_end > MAX_LINE_BYTES // 2:
                return None
            count, last = count + ends, bytes(block[size - 1 : size])
    return count + (last not in (b"", b"\n"))


@dataclass
class Lines:
    """The lines of `files` as batches of `SCHEMA`; `file` is the position in the list.

    Once the batches are consumed, `too_long` holds (file, line) of what was left out, and `problems` the files that
    cannot be read: an exception cannot pass through the engine that pulls the batches, so it is kept there.
    """

    files: list[Path]
    too_long: list[tuple[int, int]] = field(default_factory=list)
    problems: list[RejectedExport] = field(default_factory=list)

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(SCHEMA, self._all())

    def _all(self) -> Iterator[pa.RecordBatch]:
        for number, path in enumerate(self.files):
            try:
                yield from self._of(number, path)
            except RejectedExport as problem:
                self.problems.append(problem)

    def _of(self, number: int, path: Path) -> Iterator[pa.RecordBatch]:
        # Each block is read into a buffer of its own behind what is left of the last line, so nothing is copied
        # but that rest; Arrow's pool gives the same memory again and again.
        rest, before, total, skipping = b"", 0, 0, False
        allowed = allowed_bytes(path)
        with _opened(path) as file:
            while True:
                buffer = pa.allocate_buffer(len(rest) + BLOCK)
                data = np.frombuffer(buffer, dtype=np.uint8)
                data[: len(rest)] = np.frombuffer(rest, dtype=np.uint8)
                size = file.readinto(data[len(rest) :])
                if not size:
                    break
                total += size
                if total > allowed:
                    raise RejectedExport("gzip_bomb", path)
                last = len(rest) + size
                first = len(_BOM) if total == last and data[: len(_BOM)].tobytes() == _BOM else 0
                ends = np.flatnonzero(data[:last] == _END) + 1
                if skipping and len(ends):
                    before += 1
                    self.too_long.append((number, before))
                    first, ends, skipping = int(ends[0]), ends[1:], False
                if len(ends):
                    yield from _batch(number, before, buffer, first, ends, path)
                    before += len(ends)
                    first = int(ends[-1])
                skipping = skipping or last - first > MAX_LINE_BYTES
                rest = b"" if skipping else data[first:last].tobytes()
        if skipping:
            self.too_long.append((number, before + 1))
        elif rest:
            whole = _owned(np.frombuffer(rest + b"\n", dtype=np.uint8))
            yield from _batch(number, before, whole, 0, np.array([whole.size]), path)


def number_of_lines(path: Path) -> int:
    """How many lines of a file are not blank, over-long ones too. Raises `RejectedExport` where it cannot be read."""
    lines = Lines([path])
    count = sum(int(batch.num_rows) for batch in lines.reader())
    raise_all(lines.problems)
    return count + len(lines.too_long)


def _owned(values: np.ndarray[Any, Any]) -> pa.Buffer:
    """A copy in Arrow's own memory: freeing it takes no interpreter lock, on which an engine's thread might hang."""
    buffer = pa.allocate_buffer(values.nbytes)
    np.frombuffer(buffer, dtype=values.dtype)[:] = values
    return buffer


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _batch(
    number: int, before: int, buffer: pa.Buffer, first: int, ends: np.ndarray[Any, Any], path: Path
) -> Iterator[pa.RecordBatch]:
    """The lines of `buffer` from `first` that end at `ends`, without blank ones.

    Each keeps its line end, which JSON does not mind.
    """
    offsets = np.concatenate(([first], ends)).astype(np.int32)
    count = len(ends)
    lines = pa.StringArray.from_buffers(count, _owned(offsets), buffer)
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        bad = next(n for n, line in enumerate(lines.cast(pa.binary()), 1) if not _is_text(line.as_py()))
        raise RejectedExport("encoding_not_utf8", path, before + bad) from None
    numbers = pa.Array.from_buffers(pa.int64(), count, [None, _owned(np.arange(before + 1, before + 1 + count))])
    batch = pa.RecordBatch.from_arrays([pa.repeat(pa.scalar(number, pa.int32()), count), numbers, lines], schema=SCHEMA)
    data = np.frombuffer(buffer, dtype=np.uint8)
    if _BLANKS[data[offsets[:-1]]].any():
        written = np.logical_or.reduceat(~_BLANKS[data[: offsets[-1]]], offsets[:-1])
        batch = batch.filter(pa.array(written))
    if batch.num_rows:
        yield batch
