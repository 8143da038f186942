"""Pandera on a pandas frame of the prepared rows: the same rules, all failures collected."""

import json
import sys
import time
from pathlib import Path

import pandas as pd
import pandera.pandas as pandera


def check(rule):
    """The pandera check of one of our rules; nulls are left alone, as by ours."""
    kind = rule["expectation"]
    if kind.endswith("in_set"):
        return pandera.Check.isin(rule["value_set"])
    if kind.endswith("match_regex"):
        return pandera.Check.str_matches(rule["regex"])
    low, high = rule.get("min_value"), rule.get("max_value")
    return pandera.Check(lambda s: (s >= low if low is not None else True) & (s <= high if high is not None else True))


def main() -> None:
    folder = Path(sys.argv[1])
    rules = json.loads((folder / "rules.json").read_text())
    begin = time.perf_counter()
    columns = list(dict.fromkeys(r["column"] for r in rules))
    frame = pd.read_parquet(folder / "prepared.parquet", columns=columns)
    schema = pandera.DataFrameSchema({
        c: pandera.Column(
            checks=[check(r) for r in rules if r["column"] == c and not r["expectation"].endswith("not_be_null")],
            nullable=not any(r["column"] == c and r["expectation"].endswith("not_be_null") for r in rules),
        )
        for c in columns
    })  # fmt: skip
    failed = 0
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        failed = len(errors.failure_cases)
    print(json.dumps({"seconds": time.perf_counter() - begin, "failed": failed}))


if __name__ == "__main__":
    main()
