"""SmartNoise SQL over its SQLite reader for pandas: at most 4 rows of a person, area × week, Gaussian noise."""

import json
import sys
import time

import pandas as pd
import snsql
from snsql import Privacy


def main() -> None:
    begin = time.perf_counter()
    events = pd.read_parquet(sys.argv[1], columns=["person", "week", "area"])
    meta = {"": {"bench": {"events": {
        "row_privacy": False, "max_ids": 4, "rows": len(events), "censor_dims": False, "sample_max_ids": True,
        "person": {"type": "string", "private_id": True}, "week": {"type": "int", "lower": 0, "upper": 51},
        "area": {"type": "string"},
    }}}}  # fmt: skip
    reader = snsql.from_df(events, privacy=Privacy(epsilon=1.0, delta=1e-6), metadata=meta)
    rows = reader.execute("SELECT week, area, COUNT(*) AS n FROM bench.events GROUP BY week, area")
    print(json.dumps({"seconds": time.perf_counter() - begin, "cells": len(rows) - 1}))


if __name__ == "__main__":
    main()
