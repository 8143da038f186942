"""Ours: `validate` of canonical tables: every rule judged by DuckDB and Great Expectations, rows split, findings."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from assets.contract.city import load_city
from assets.quality.rules import TABLES
from assets.quality.validate import validate


def main() -> None:
    city = load_city()
    begin = time.perf_counter()
    result = validate({name: pq.read_table(Path(sys.argv[1]) / f"{name}.parquet") for name in TABLES}, city)
    failed = sum(r.failed for r in result.rule_results if r.table == "cases")
    print(json.dumps({"seconds": time.perf_counter() - begin, "failed": failed}))


if __name__ == "__main__":
    main()
