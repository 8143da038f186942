"""Noise of OpenDP's discrete Gaussian for every table, ρ split evenly, calibrated by OpenDP to (ε, δ)."""

from __future__ import annotations

import json
import math
import sys

import opendp.prelude as dp

dp.enable_features("contrib", "honest-but-curious", "floating-point")


def main() -> None:
    asked = json.load(sys.stdin)
    tables, epsilon, delta = asked["tables"], asked["epsilon"], asked["delta"]
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)

    def scale(table: dict[str, float], rho: float) -> float:
        return math.sqrt(table["squared_sensitivity"] / (2 * rho / len(tables)))

    def spent(rho: float) -> float:
        """ε of all tables together at δ, by OpenDP's own maps."""
        total = 0.0
        for table in tables:
            measurement = dp.m.make_gaussian(*space, scale=scale(table, rho))
            total += measurement.map(d_in=math.sqrt(table["squared_sensitivity"]))
        whole = dp.c.make_zCDP_to_approxDP(dp.m.make_gaussian(*space, scale=1 / math.sqrt(2 * total)))
        return float(whole.map(d_in=1.0).epsilon(delta=delta))

    low, high = 1e-6, epsilon
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) <= epsilon else (low, middle)
    noise = {}
    for table in tables:
        measurement = dp.m.make_gaussian(*space, scale=scale(table, low))
        noise[table["name"]] = [measurement([0] * table["cells"]) for _ in range(asked["years"])]
    json.dump(noise, sys.stdout)


if __name__ == "__main__":
    main()
