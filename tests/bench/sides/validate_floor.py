"""The floor of validation: one DuckDB SELECT that counts the failing rows of each rule."""

from __future__ import annotations

import json
import sys
import time

import duckdb

from assets.contract.city import load_city
from assets.quality.rules import PREPARED, rules


def main() -> None:
    declared = [r for r in rules(load_city()) if r.table == "cases"]
    begin = time.perf_counter()
    counts = ", ".join(f"count(*) FILTER ({r.predicate})" for r in declared)
    with duckdb.connect() as con:
        for name in ("cases", "persons"):
            con.execute(f"""CREATE VIEW {name} AS SELECT *, file_row_number AS _row
                FROM read_parquet('{sys.argv[1]}/{name}.parquet', file_row_number = true)""")
        row = con.execute(
            f"WITH person AS ({PREPARED['person']}) SELECT {counts} FROM ({PREPARED['cases']})"
        ).fetchone()
    print(json.dumps({"seconds": time.perf_counter() - begin, "failed": sum(row or ())}))


if __name__ == "__main__":
    main()
