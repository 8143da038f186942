"""Reading and pseudonymising a FHIR export: our whole stage, cumulus-etl, and bare extraction as the floor."""

from __future__ import annotations

import sys

from inputs import fhir_export
from measure import BENCH, ROOT, Side, note, side_by_side, table
from peers import NotInstalled, python_of

OURS, FLOOR, PEER = (
    "ours: read, consent, validate, pseudonymise, encrypt",
    "floor: bare DuckDB extraction",
    "cumulus-etl 4.3.6",
)


def main() -> int:
    quick = "--quick" in sys.argv
    resources = 20_000 if quick else 500_000
    source = fhir_export(resources)
    megabytes = sum(p.stat().st_size for p in source.iterdir()) / 1e6
    here = ROOT / "tests" / "bench" / "sides"
    sides = [
        Side(FLOOR, [sys.executable, str(here / "extract.py"), str(source)]),
        Side(OURS, [sys.executable, str(here / "stages.py"), str(source)], {"PYTHONPATH": str(ROOT)}),
    ]
    missing = ""
    try:
        python = python_of("cumulus-etl")
        command = [
            "bash",
            str(here / "cumulus.sh"),
            str(python.parent / "cumulus-etl"),
            str(source),
            str(BENCH / "cumulus"),
        ]
        sides.append(Side(PEER, command, rounds=2))
    except NotInstalled as problem:
        note(str(problem))
        missing = f"\n\ncumulus-etl does not install here: {problem}"
    results = side_by_side(sides, 1 if quick else 5)
    whole = {r.side.name: r.of("wall") for r in results if r.samples}
    print(
        f"### Reading and pseudonymising a FHIR export\n\n{resources:,} resources of five types in {megabytes:.0f} MB of NDJSON. "
        "Ours writes every intermediate table encrypted and decides consent, which cumulus-etl does not; cumulus-etl writes "
        "NDJSON, its fastest format, and has no task for `Consent`. The floor reads the fields that we need of each line into "
        f"Parquet and does nothing else.\n\n{table(results, OURS)}{missing}\n"
    )
    for key, other, over in (("intake_over_floor", OURS, FLOOR), ("cumulus_over_intake", PEER, OURS)):
        if other in whole and over in whole:
            print(f"<!-- metric {key} {whole[other] / whole[over]:.2f} -->")
    for r in results:
        if r.side.name == OURS and r.samples:
            print(f"<!-- metric intake_cpu_us_per_resource {r.of('cpu') / resources * 1e6:.1f} -->")
    return 0 if len(whole) == 3 else 1


if __name__ == "__main__":
    sys.exit(main())
