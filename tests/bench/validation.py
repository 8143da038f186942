"""Validation: our Great Expectations path, plain pandas Great Expectations, pandera, and one DuckDB SELECT."""

from __future__ import annotations

import sys

from inputs import canonical
from measure import ROOT, Side, note, side_by_side, table
from peers import NotInstalled, python_of

OURS, FLOOR, GX, PANDERA = (
    "ours: validate, quarantine, findings",
    "floor: one DuckDB SELECT",
    "Great Expectations, pandas",
    "pandera",
)


def main() -> int:
    quick = "--quick" in sys.argv
    rows = 100_000 if quick else 10_000_000
    folder, here = canonical(rows), ROOT / "tests" / "bench" / "sides"
    ours = {"PYTHONPATH": str(ROOT)}
    sides = [
        Side(FLOOR, [sys.executable, str(here / "validate_floor.py"), str(folder)], ours),
        Side(OURS, [sys.executable, str(here / "validate_ours.py"), str(folder)], ours),
        Side(GX, [sys.executable, str(here / "validate_gx.py"), str(folder)], ours, rounds=1),
    ]
    missing = ""
    try:
        sides.append(
            Side(PANDERA, [str(python_of("pandera")), str(here / "validate_pandera.py"), str(folder)], rounds=1)
        )
    except NotInstalled as problem:
        note(str(problem))
        missing = f"\n\npandera does not install here: {problem}"
    results = side_by_side(sides, 1 if quick else 5)
    said = {r.side.name: {s.said["failed"] for s in r.samples} for r in results if r.samples}
    unequal = {name: n for name, n in said.items() if n != said[FLOOR]}
    print(
        f"### Validation\n\n{rows:,} cases, {rows // 3:,} persons, {len(said)} sides, the same rules; all must count the same "
        f"failures{'' if not unequal else f', but do not: {unequal}'}. Ours also judges persons, splits valid from quarantined rows "
        "and writes a finding for each. Great Expectations and pandera get the prepared columns and so are spared the join.\n\n"
        f"{table(results, FLOOR)}{missing}\n"
    )
    whole = {r.side.name: r.of("wall") for r in results if r.samples}
    for key, other, over in (
        ("validation_over_floor", OURS, FLOOR),
        ("gx_over_validation", GX, OURS),
        ("pandera_over_validation", PANDERA, OURS),
    ):
        if other in whole and over in whole:
            print(f"<!-- metric {key} {whole[other] / whole[over]:.2f} -->")
    return 0 if OURS in whole and FLOOR in whole and not unequal else 1


if __name__ == "__main__":
    sys.exit(main())
