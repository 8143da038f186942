"""Files of one line a row, written for every delivery day at once, without a loop over rows."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Encode = Callable[[bytes, np.datetime64], tuple[str, bytes]]
"""File name suffix and bytes to write, from the text of a day and the day."""


def plain(data: bytes, _: np.datetime64) -> tuple[str, bytes]:
    return "", data


def zipped_on_some_days(data: bytes, day: np.datetime64) -> tuple[str, bytes]:
    """Every seventh day is delivered compressed, with a fixed time stamp so that a seed gives the same bytes."""
    if day.astype(np.int64) % 7:
        return "", data
    return ".gz", gzip.compress(data, compresslevel=1, mtime=0)


def latin_on_some_days(data: bytes, day: np.datetime64) -> tuple[str, bytes]:
    """Every tenth day comes from a machine that still writes Windows-1252."""
    return "", data.decode().encode("cp1252") if day.astype(np.int64) % 10 == 0 else data


def write_lines(
    con: duckdb.DuckDBPyConnection, query: str, inbox: Path, name: str, header: str = "", encode: Encode = plain
) -> int:
    """Write `inbox/<day>/<name>` for each day of `query` (columns arrival, line); returns the number of lines.

    The lines of a day lie side by side in Arrow's buffer, so a file is one slice of it.
    """
    table = con.execute(
        f"SELECT arrival, line || chr(10) AS line FROM ({query}) ORDER BY arrival, line"
    ).to_arrow_table()
    days = table.column("arrival").to_numpy().astype("datetime64[D]")
    lines = pc.cast(table.column("line"), pa.large_string()).combine_chunks()
    if isinstance(lines, pa.ChunkedArray):
        lines = pa.concat_arrays(lines.chunks) if lines.num_chunks else pa.array([], pa.large_string())
    if not len(lines):
        return 0
    offsets = np.frombuffer(lines.buffers()[1], dtype=np.int64)
    text = memoryview(lines.buffers()[2])
    edges = np.flatnonzero(np.concatenate([[True], days[1:] != days[:-1], [True]]))
    for first, last in itertools.pairwise(edges):
        folder = inbox / str(days[first])
        folder.mkdir(parents=True, exist_ok=True)
        suffix, data = encode(header.encode() + bytes(text[offsets[first] : offsets[last]]), days[first])
        (folder / f"{name}{suffix}").write_bytes(data)
    return len(lines)
