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

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from assets.lake.engine import connect
from assets.lake.files import atomic_write, make_directory
from assets.lake.keys import Keyring

DATA_VARIABLE: Final = "DIGITALSTADT_DATA"
# DuckDB 1.5.5 fails to decrypt a column chunk of more than one page as Arrow writes it ("Computed AES tag differs"),
# and Arrow begins a page every 20,000 rows or MiB: so a row group is one page. Drop when DuckDB reads them.
ROWS_PER_PAGE: Final = 20_000
PAGE_BYTES: Final = 1 << 30


def default_data_root() -> Path:
    """`$DIGITALSTADT_DATA`, else `data/` below the current folder."""
    return Path(os.environ.get(DATA_VARIABLE) or "data")


@dataclass(frozen=True)
class Lake:
    """A data root with its four zones. Only `confidential` needs the keys."""

    root: Path
    keys: Keyring

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

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A sealed connection that reads landing and the confidential zone."""
        return connect((self.landing, self.confidential), self.keys.encryption)

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
            row_group_size=ROWS_PER_PAGE,
            data_page_size=PAGE_BYTES,
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
        """All rows of `table`, or those of `days`; days without a file count as empty."""
        files = [f for f in (self._file(table, d) for d in (self.days(table) if days is None else days)) if f.exists()]
        if not files:
            return schema.empty_table()
        with self.connect() as con:
            names = ", ".join(f'"{name}"' for name in schema.names)
            # Encrypted Parquet takes the name of the key, not the key.
            query = f"SELECT {names} FROM read_parquet(?, encryption_config = {{footer_key: 'lake'}})"
            return con.execute(query, [[str(f) for f in files]]).to_arrow_table().cast(schema)

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
