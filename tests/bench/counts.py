"""Bounded private counts per cell: our kernel and the common libraries of differential privacy."""

from __future__ import annotations

import sys

from inputs import events
from measure import ROOT, Side, note, side_by_side, table
from peers import NotInstalled, python_of

from assets.contract.city import load_city

OURS = "ours"
PEERS = {"opendp": "OpenDP (polars)", "smartnoise": "SmartNoise SQL (SQLite)", "pipelinedp": "PipelineDP (local)",
         "tumult": "Tumult (Spark, local)"}  # fmt: skip
ROUNDS = {"smartnoise": 2, "pipelinedp": 2, "tumult": 1}
"""Of those that take minutes."""


def main() -> int:
    quick = "--quick" in sys.argv
    rows = 50_000 if quick else 1_000_000
    path, here = events(rows), ROOT / "tests" / "bench" / "sides"
    areas = ",".join(a.key for a in load_city().areas)
    sides = [Side(OURS, [sys.executable, str(here / "counts_ours.py"), str(path)], {"PYTHONPATH": str(ROOT)})]
    missing = []
    for peer, name in PEERS.items():
        try:
            command = [str(python_of(peer)), str(here / f"counts_{peer}.py"), str(path), areas]
            sides.append(Side(name, command, rounds=ROUNDS.get(peer)))
        except NotInstalled as problem:
            note(str(problem))
            missing.append(f"{name} does not install here: {problem}")
    results = side_by_side(sides, 1 if quick else 5)
    print(
        f"### Bounded private counts per cell\n\n{rows:,} events of {rows // 2:,} persons, counted by area and week (520 public "
        "cells) with Gaussian noise at ε = 1, δ = 10⁻⁶. Every side keeps at most four events of a person; ours also keeps at "
        "most one in an ISO week, two in 28 days and four in *any* 364 days, and decides in order of arrival, which none of the "
        f"others offers.\n\n{table(results, OURS, by='seconds')}\n\nThe ratio is of the work alone, without starting Python and importing.\n"
    )
    for line in missing:
        print(f"\n{line}\n")
    work = {r.side.name: r.of("seconds") for r in results if r.samples}
    for peer, name in PEERS.items():
        if name in work and OURS in work:
            print(f"<!-- metric {peer}_over_counts {work[name] / work[OURS]:.2f} -->")
    return 0 if OURS in work else 1


if __name__ == "__main__":
    sys.exit(main())
