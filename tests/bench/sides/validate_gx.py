"""Plain Great Expectations on a pandas frame of the prepared rows."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pandas as pd

from assets.contract.city import load_city
from assets.quality.rules import rules
from assets.quality.suite import run_gx


def main() -> None:
    declared = [r for r in rules(load_city()) if r.table == "cases"]
    begin = time.perf_counter()
    columns = list(dict.fromkeys(r.checked_column for r in declared))
    frame = pd.read_parquet(Path(sys.argv[1]) / "prepared.parquet", columns=columns)
    failed = sum(run_gx("cases", frame, declared).values())
    print(json.dumps({"seconds": time.perf_counter() - begin, "failed": failed}))


if __name__ == "__main__":
    main()
