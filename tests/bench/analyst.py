"""An analyst's question to open data: the published Parquet through DuckDB, and its CSV twin in pandas."""

from __future__ import annotations

import sys

from inputs import open_data
from measure import ROOT, Side, side_by_side, table

OURS, TWIN = "ours: DuckDB on the published Parquet", "pandas on the CSV twin"


def main() -> int:
    quick = "--quick" in sys.argv
    years = 1 if quick else 20
    folder, here = open_data(years), str(ROOT / "tests" / "bench" / "sides" / "query.py")
    sides = [
        Side(OURS, [sys.executable, here, "parquet", str(folder)]),
        Side(TWIN, [sys.executable, here, "csv", str(folder)]),
    ]
    results = side_by_side(sides, 1 if quick else 7)
    answers = {s.said["answer"] for r in results for s in r.samples}
    print(
        f"### An analyst's query\n\nWeekly emergency visits by area, the change on the week before: {years} years of daily "
        f"estimates by area as published (schema and files of `cases_by_area`, synthetic numbers).\n\n{table(results, OURS)}\n"
    )
    whole = {r.side.name: r.of("wall") for r in results if r.samples}
    if len(whole) == 2:
        print(f"<!-- metric csv_over_parquet {whole[TWIN] / whole[OURS]:.2f} -->")
    return 0 if len(whole) == 2 and len(answers) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
