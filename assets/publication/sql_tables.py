"""What the SQL box of the page reads: which Parquet files are its tables, and what is added to them.

Here: the file `page/tables.json`. Not here: DuckDB for the browser (`sql_box`), or how it is asked (`web/sql.js`).
The datasets are read from the immutable `data.parquet` of their versions, each checked against its SHA-256. Four
small tables that no dataset holds, the views, macros and comments are those of the analyst database.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa

from assets.contract.city import City
from assets.publication.analyst_sql import statements
from assets.publication.bundle import Published, stamped
from assets.publication.database import about, datasets
from assets.publication.guarantee import Guarantee

TABLES: Final = "tables.json"


def _arrow_stream(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def tables_json(
    frames: dict[str, pd.DataFrame], published: Sequence[Published], city: City, open_data: Path, promise: Guarantee
) -> bytes:
    """Published Parquet files by table, small tables as Arrow streams, and the statements that follow."""
    data = datasets(stamped(frames, published), city)
    small = about(data, city, promise)
    paths = {p.dataset: f"{p.dataset}/{p.version}/data.parquet" for p in published}
    digests = {key: hashlib.sha256((open_data / path).read_bytes()).digest() for key, path in paths.items()}
    return json.dumps(
        {
            "parquet": [
                {"name": key, "path": path, "integrity": f"sha256-{base64.b64encode(digests[key]).decode()}"}
                for key, path in paths.items()
            ],
            "arrow": {name: _arrow_stream(found.table) for name, found in small.items()},
            "statements": [
                *(comment for name, found in (data | small).items() for comment in found.comments(name)),
                *statements(list(data)),
            ],
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
