"""The zones of the data root and the tables inside the confidential one.

Confidential tables are encrypted Parquet, one file for each table and arrival or event day, so that a day
can be rewritten or erased without touching another. Not here: what a table holds (`contract.schemas`).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from assets.lake.engine import spill_into
from assets.lake.files import atomic_write, make_directory
from assets.lake.keys import Keyring

DATA_VARIABLE: Final = "DIGITALSTADT_DATA"


def default_data_root() -> Path:
    """`$DIGITALSTADT_DATA`, else `data/` below the current folder."""
    return Path(os.environ.get(DATA_VARIABLE) or "data")


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

    def _file(self, table: str, day: date) -> Path:
        return self.confidential / table / f"{day.isoformat()}.parquet"

    def days(self, table: str) -> list[date]:
        """Days for which `table` has a file, ascending."""
        return sorted(date.fromisoformat(p.stem) for p in (self.confidential / table).glob("[0-9]*.parquet"))

    def write(self, table: str, day: date, rows: pa.Table) -> None:
        """Replace the file of one day."""
        make_directory(self.confidential / table)
        buffer = io.BytesIO()
        pq.write_table(
            rows,
            buffer,
            compression="zstd",
            encryption_properties=pe.create_encryption_properties(footer_key=self.keys.encryption),
        )
        atomic_write(self._file(table, day), buffer.getvalue())

    def write_days(
        self, table: str, days: Iterable[date], rows: pa.Table, column: str, keep_empty: bool = False
    ) -> None:
        """Replace the files of `days` with the rows whose `column` is that day.

        A day without rows has no file, or an empty one with `keep_empty`, where its existence means something.
        """
        rows = rows.take(pc.sort_indices(rows, sort_keys=[(column, "ascending")]))
        values = rows.column(column).to_numpy().astype("datetime64[D]")
        for day in days:
            first, last = (
                values.searchsorted(np.datetime64(day), "left"),
                values.searchsorted(np.datetime64(day), "right"),
            )
            if last > first or keep_empty:
                self.write(table, day, rows.slice(int(first), int(last - first)))
            else:
                self.erase(table, [day])

    def read(self, table: str, schema: pa.Schema, days: Iterable[date] | None = None) -> pa.Table:
        """All rows of `table`, or those of `days`; days without a file count as empty.

        Arrow reads what Arrow wrote: DuckDB 1.5.5 fails to decrypt column chunks of more than one page.
        """
        files = [f for f in (self._file(table, d) for d in (self.days(table) if days is None else days)) if f.exists()]
        key = pe.create_decryption_properties(footer_key=self.keys.encryption)
        parts = [pq.ParquetFile(f, decryption_properties=key).read(schema.names) for f in files]
        return pa.concat_tables([part.cast(schema) for part in parts]) if parts else schema.empty_table()

    def erase(self, table: str, days: Iterable[date]) -> None:
        """Remove the files of `days`; missing ones are fine."""
        for day in days:
            self._file(table, day).unlink(missing_ok=True)

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Write a small value-free JSON record below the confidential zone."""
        path = self.confidential / "records" / f"{name}.json"
        make_directory(path.parent)
        atomic_write(path, json.dumps(record, indent=1, sort_keys=True, default=str).encode())

    def read_record(self, name: str) -> dict[str, Any] | None:
        path = self.confidential / "records" / f"{name}.json"
        return json.loads(path.read_bytes()) if path.exists() else None
