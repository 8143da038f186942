"""The floor of reading: one DuckDB SELECT for each resource type, the fields that we need, into Parquet."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import duckdb

CODING = 'STRUCT(coding STRUCT("system" VARCHAR, code VARCHAR)[])'
REFERENCE = "STRUCT(reference VARCHAR)"
NESTED = "STRUCT(url VARCHAR, extension STRUCT(url VARCHAR, valueCoding STRUCT(code VARCHAR))[])[]"
PERIOD = 'STRUCT("start" VARCHAR, "end" VARCHAR)'
COLUMNS = {
    "Patient": {"id": "VARCHAR", "birthDate": "VARCHAR", "gender": "VARCHAR", "deceasedDateTime": "VARCHAR",
                "address": "STRUCT(postalCode VARCHAR)[]", "identifier": 'STRUCT("system" VARCHAR, value VARCHAR)[]'},
    "Encounter": {"id": "VARCHAR", "status": "VARCHAR", "class": "STRUCT(code VARCHAR)", "type": f"{CODING}[]",
                  "partOf": REFERENCE, "subject": REFERENCE, "period": PERIOD, "serviceType": CODING, "extension": NESTED,
                  "hospitalization": f"STRUCT(admitSource {CODING}, dischargeDisposition STRUCT(extension {NESTED}))",
                  "diagnosis": f'STRUCT(condition {REFERENCE}, "use" {CODING}, rank INTEGER)[]'},
    "Condition": {"id": "VARCHAR", "subject": REFERENCE, "encounter": REFERENCE, "code": CODING},
    "Procedure": {"id": "VARCHAR", "status": "VARCHAR", "subject": REFERENCE, "encounter": REFERENCE, "code": CODING,
                  "performedDateTime": "VARCHAR"},
    "Consent": {"id": "VARCHAR", "status": "VARCHAR", "patient": REFERENCE, "dateTime": "VARCHAR",
                "policy": "STRUCT(uri VARCHAR)[]", "provision": 'STRUCT("type" VARCHAR, provision STRUCT("type" VARCHAR, '
                f"period {PERIOD}, code {CODING}[])[])"},
}  # fmt: skip


def main() -> None:
    source = Path(sys.argv[1])
    begin, rows = time.perf_counter(), 0
    with tempfile.TemporaryDirectory(dir=".") as out, duckdb.connect() as con:
        for kind, columns in COLUMNS.items():
            fields = ", ".join(f"'{name}': '{form}'" for name, form in columns.items())
            rows += con.execute(
                f"""COPY (SELECT * FROM read_json('{source}/{kind}.000.ndjson', format = 'newline_delimited',
                ignore_errors = true, columns = {{{fields}}})) TO '{out}/{kind}.parquet'"""
            ).fetchone()[0]
    print(json.dumps({"seconds": time.perf_counter() - begin, "rows": rows}))


if __name__ == "__main__":
    main()
