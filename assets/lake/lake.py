"""The zones of the data root and the tables inside the confidential one.

Confidential tables are encrypted Parquet, one file for each table and month, in which days follow each other. The file
stores where each day's rows are, so that a day can be written, read or erased. Few files, because opening one costs
more than the rows of a day. Not here: what a table holds (`contract.schemas`).
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from assets.lake.engine import spill_into
from assets.lake.files import atomic_write, make_directory
from assets.lake.keys import Keyring

DATA_VARIABLE: Final = "DIGITALSTADT_DATA"
STAGING: Final = "staging"
"""Folder of the tables that the stages of one run hand to each other."""
_PLACES: Final = b"days"
"""In the (encrypted) footer of each file: how many rows each of its days has, in the order of the rows."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_SAMPLE: Final = 1_000
"""Rows that decide how a column is written."""


def default_data_root() -> Path:
    """`$DIGITALSTADT_DATA`, else `data/` below the current folder."""
    return Path(os.environ.get(DATA_VARIABLE) or "data")


def _places(file: pq.ParquetFile) -> dict[date, tuple[int, int]]:
    """Where the rows of each day lie: first row and number."""
    places, first = {}, 0
    for day, number in json.loads((file.metadata.metadata or {})[_PLACES]).items():
        places[date.fromisoformat(day)] = (first, number)
        first += number
    return places


def _repeats(column: pa.ChunkedArray) -> bool:
    """Whether dictionary encoding pays: for ids, all different, it is slower and larger."""
    some = column.slice(0, _SAMPLE)
    return len(some.unique()) * 2 < len(some)


class DamagedTable(RuntimeError):
    """A file of the confidential zone cannot be read. Names table and month only."""


@dataclass(frozen=True)
class Lake:
    """A data root with its four zones. Only `confidential` needs the keys."""

    root: Path
    keys: Keyring

    @classmethod
    def open(cls, root: Path, key_folder: Path) -> Lake:
        """The lake below `root`; from now on what the engine cannot hold in memory is spilled into it, encrypted.

        Raises `KeyFileError` where a key is missing or unsafe.
        """
        lake = cls(root, Keyring.load(key_folder))
        spill_into(lake.confidential / "spill")
        return lake

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def landing(self) -> Path:
        return self.root / "landing"

    @property
    def confidential(self) -> Path:
        return self.root / "confidential"

    @property
    def open_data(self) -> Path:
        return self.root / "open_data"

    @property
    def ledger_path(self) -> Path:
        make_directory(self.confidential)
        return self.confidential / "ledger.sqlite"

    def _file(self, table: str, month: date) -> Path:
        return self.confidential / table / f"{month:%Y-%m}.parquet"

    def _months(self, table: str) -> list[Path]:
        return sorted((self.confidential / table).glob("[0-9]*.parquet"))

    @contextmanager
    def _open(self, path: Path) -> Iterator[pq.ParquetFile]:
        """Raises `DamagedTable` where the file, or what is read of it, is not whole."""
        key = pe.create_decryption_properties(footer_key=self.keys.encryption)
        try:
            with pq.ParquetFile(path, decryption_properties=key) as file:
                yield file
        except MemoryError:
            raise
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # the system's own word: no such file, no permission
                raise
            table = path.parent.relative_to(self.confidential).as_posix()
            raise DamagedTable(
                f"the file of table {table}, month {path.stem}, cannot be read: it is damaged or under another key"
            ) from None

    def days(self, table: str) -> list[date]:
        """Days that `table` holds, ascending; with or without rows."""
        found: list[date] = []
        for path in self._months(table):
            with self._open(path) as file:
                found += _places(file)
        return found

    def months(self, table: str) -> Iterator[tuple[list[date], int]]:
        """Of each month of `table`, in the order of `read`: the days it holds, and the number of their rows."""
        for path in self._months(table):
            with self._open(path) as file:
                places = _places(file)
            yield list(places), sum(number for _, number in places.values())

    def rows(self, table: str) -> int:
        """How many rows `table` has."""
        return sum(number for _, number in self.months(table))

    def read_month(self, table: str, month: date) -> dict[date, pa.Table]:
        """All days of one month with all columns, as they are stored."""
        path = self._file(table, month)
        if not path.exists():
            return {}
        with self._open(path) as file:
            rows = file.read().replace_schema_metadata()
            return {day: rows.slice(*place) for day, place in _places(file).items()}

    def write_month(self, table: str, month: date, days: Mapping[date, pa.Table]) -> None:
        """Let one month hold exactly `days`."""
        path = self._file(table, month)
        if days:
            make_directory(path.parent)
            atomic_write(path, self._encrypted(dict(sorted(days.items()))))
        else:
            path.unlink(missing_ok=True)

    def _replace(self, table: str, month: date, new: Mapping[date, pa.Table | None]) -> None:
        """Replace days of one month (None: remove); the others keep their rows."""
        path, former = self._file(table, month), dict[date, pa.Table | None]()
        if path.exists():
            with self._open(path) as file:
                former = dict.fromkeys(_places(file))
        if former.keys() - new.keys():  # else nothing of the file is kept, and it need not be read
            former.update(self.read_month(table, month))
        if any(rows is not None or day in former for day, rows in new.items()):
            self.write_month(table, month, {d: r for d, r in {**former, **new}.items() if r is not None})

    def _encrypted(self, days: Mapping[date, pa.Table]) -> bytes:
        rows = pa.concat_tables(days.values(), promote_options="default")
        places = json.dumps({day.isoformat(): part.num_rows for day, part in days.items()})
        buffer = io.BytesIO()
        pq.write_table(
            rows.replace_schema_metadata({_PLACES: places}),
            buffer,
            compression="zstd",
            use_dictionary=[n for n in rows.column_names if _repeats(rows.column(n))],
            write_statistics=False,  # files are read whole, so nothing would use them
            encryption_properties=pe.create_encryption_properties(footer_key=self.keys.encryption),
        )
        return buffer.getvalue()

    def write(self, table: str, day: date, rows: pa.Table) -> None:
        """Replace one day, which stays there without rows too."""
        self._replace(table, day, {day: rows})

    def write_days(
        self, table: str, days: Iterable[date], rows: pa.Table, column: str, keep_empty: bool = False
    ) -> None:
        """Replace `days` with the rows whose `column` is that day.

        A day without rows is removed, or stays with `keep_empty`, where its existence means something.
        """
        values = rows.column(column).to_numpy().astype("datetime64[D]")
        if not (values[1:] >= values[:-1]).all():
            order = np.argsort(values, kind="stable")
            rows, values = rows.take(pa.array(order)), values[order]
        months: dict[date, dict[date, pa.Table | None]] = defaultdict(dict)
        for day in days:
            first, last = (int(values.searchsorted(np.datetime64(day), side)) for side in ("left", "right"))
            kept = rows.slice(first, last - first) if last > first or keep_empty else None
            months[day.replace(day=1)][day] = kept
        for month, new in sorted(months.items()):
            self._replace(table, month, new)

    def read(
        self, table: str, schema: pa.Schema, days: Iterable[date] | None = None, where: Mask | None = None
    ) -> pa.Table:
        """The columns of `schema` of all rows of `table`, or of those of `days`; a day that it lacks counts as empty.

        `where` (without `days`): mask over all rows, found by a few of their columns; tables grow with the years, so
        whoever needs many columns asks for some rows only. Arrow reads, because DuckDB 1.5.5 fails to decrypt column
        chunks of more than one page.
        """
        asked = None if days is None else set(days)
        paths = self._months(table) if asked is None else sorted({self._file(table, day) for day in asked})
        parts, first = [schema.empty_table()], 0
        for path in paths if asked is None else filter(Path.exists, paths):
            with self._open(path) as file:
                places, number = _places(file), file.metadata.num_rows
                some = None if where is None else where[first : first + number]
                first += number
                if some is not None and not some.any():
                    continue
                rows = file.read(schema.names).replace_schema_metadata().cast(schema)
            if some is not None:
                parts.append(rows.filter(pa.array(some)))
            elif asked is None or places.keys() <= asked:
                parts.append(rows)
            else:
                parts += [rows.slice(*place) for day, place in places.items() if day in asked]
        return pa.concat_tables(parts)

    def erase(self, table: str, days: Iterable[date]) -> None:
        """Remove `days`; missing ones are fine."""
        gone = set(days)
        for month in sorted({day.replace(day=1) for day in gone}):
            self._replace(table, month, {day: None for day in gone if day.replace(day=1) == month})

    def discard_staged(self) -> None:
        """Remove all staged tables, of failed runs too: they hold original ids, and no erasure searches them."""
        if (self.confidential / STAGING).exists():
            shutil.rmtree(self.confidential / STAGING)

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Write a small value-free JSON record below the confidential zone."""
        path = self.confidential / "records" / f"{name}.json"
        make_directory(path.parent)
        atomic_write(path, json.dumps(record, indent=1, sort_keys=True, default=str).encode())

    def read_record(self, name: str) -> dict[str, Any] | None:
        path = self.confidential / "records" / f"{name}.json"
        try:
            return json.loads(path.read_bytes()) if path.exists() else None
        except ValueError:
            raise DamagedTable(f"the record {name} cannot be read: it is damaged") from None

    def erase_record(self, name: str) -> None:
        """Remove a record; a missing one is fine."""
        (self.confidential / "records" / f"{name}.json").unlink(missing_ok=True)
