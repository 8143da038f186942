"""Mean error of the published tables of a year against four other ways to spend the same budget on them.

All noise is drawn and all errors are of drawn noise, which does not depend on the true counts. The same ε and δ for one
patient over the whole window, the same tables and the same caps where a side uses them. No side but ours makes numbers
consistent: a level is taken from whichever of its tables gives it best, for every side.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from diffprivlib.mechanisms import Geometric
from measure import BENCH, note
from peers import NotInstalled, python_of

from assets.contract.city import City, load_city
from assets.contract.terms import WINDOW_DAYS
from assets.privacy.accounting import sensitivity
from assets.privacy.consistency import Level, Product, estimate
from assets.privacy.mechanism import DiscreteGaussian, Noise, draw
from assets.privacy.plan import level_of, price, product_of, published_levels

HERE = Path(__file__).parent
PROMISED_RATIO = 10
OURS, SPLIT, PLAIN, OPENDP, PER_RELEASE = (
    "ours", "(a) ε split over days", "(b) without consistency", "(c) OpenDP", "(d) each release composed",
)  # fmt: skip
Tables = dict[Level, np.ndarray]
Errors = dict[Level, float]


def cells_of(product: Product, level: Level) -> tuple[int, ...]:
    return product.time[level[0]], *(product.dimensions[d] for d in level[1])


def summed(product: Product, table: np.ndarray, level: Level, query: Level) -> np.ndarray:
    """The marginal `query` of one table that holds it, by adding up."""
    out = table.reshape(product.time[query[0]], -1, *table.shape[1:]).sum(axis=1)
    drop = tuple(1 + n for n, d in enumerate(level[1]) if d not in query[1])
    return np.asarray(out.sum(axis=drop))


def best_single(product: Product, noise: Tables, variance_of: Callable[[Level], float], levels: list[Level]) -> Errors:
    """Mean absolute error of each level, from the table that by its variance gives it best."""
    errors: Errors = {}
    for q in levels:
        holding = [m for m in noise if q[0] <= m[0] and set(q[1]) <= set(m[1])]
        best = min(holding, key=lambda m: variance_of(m) * product.cells(m) / product.cells(q))
        errors[q] = float(np.abs(summed(product, noise[best], best, q)).mean())
    return errors


def average(years: list[Errors]) -> Errors:
    return {q: float(np.mean([y[q] for y in years])) for q in years[0]}


def split_over_days(city: City, product: Product, levels: list[Level], years: int) -> Errors:
    """diffprivlib's histogram mechanism with integers, ε/364 a day: for each level a daily histogram with all of a day's ε.

    Generous: as if no other table had to be paid for.
    """
    mechanism = Geometric(epsilon=city.budget.epsilon / WINDOW_DAYS, sensitivity=1)
    errors: Errors = {}
    for dimensions in {q[1] for q in levels}:
        day = (len(product.time) - 1, dimensions)
        shape = cells_of(product, day)
        found: dict[Level, list[float]] = {}
        for _ in range(years):
            noise = np.array([mechanism.randomise(0) for _ in range(int(np.prod(shape)))]).reshape(shape)
            for q in (q for q in levels if q[1] == dimensions):
                found.setdefault(q, []).append(float(np.abs(summed(product, noise, day, q)).mean()))
        errors |= {q: float(np.mean(x)) for q, x in found.items()}
    return errors


def peer(name: str, script: str, asked: dict[str, object]) -> dict[str, list[list[int]]]:
    """Noise of each table from a peer's library. Raises `NotInstalled`."""
    command = [str(python_of(name)), str(HERE / "sides" / script)]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalled(done.stderr.strip().splitlines()[-1][-200:])
    return dict(json.loads(done.stdout))


def measured(city: City, years: int) -> tuple[dict[str, Errors | str], dict[Level, str]]:
    """Mean absolute error of each side at each level; a text where a peer could not be measured."""
    plan, product = price(city), product_of(city)
    names: dict[Level, str] = {level_of(t, d): f"{t} × {' × '.join(d) or 'city'}" for t, d in published_levels(city)}
    levels = list(names)
    tables = {level_of(p.table.time, p.table.dimensions): p for p in plan.tables if not p.table.at_cap}
    variances = {m: p.noise.variance for m, p in tables.items()}

    def drawn(noise_of: Callable[[Level], Noise]) -> Tables:
        return {m: np.array(draw([0] * product.cells(m), noise_of(m))).reshape(cells_of(product, m)) for m in tables}

    noise = [drawn(lambda m: tables[m].noise) for _ in range(years)]
    note("ours and the same tables without consistency are drawn")
    found: dict[str, Errors | str] = {
        OURS: average([
            {q: float(np.abs(e).mean()) for q, e in estimate(product, year, variances, levels).items()} for year in noise
        ]),
        SPLIT: split_over_days(city, product, levels, max(1, years // 5)),
        PLAIN: average([best_single(product, year, variances.__getitem__, levels) for year in noise]),
    }  # fmt: skip
    note("splitting over days is drawn")
    asked: dict[str, object] = {
        "epsilon": city.budget.epsilon, "delta": city.budget.delta, "years": years,
        "tables": [
            {"name": p.table.name, "cells": product.cells(m), "squared_sensitivity": sensitivity(p.table.time, city.caps, 2),
             "releases": product.time[m[0]], "of_one": {"period": city.caps.period, "window": city.caps.window}.get(p.table.time, 1)}
            for m, p in tables.items()
        ],
    }  # fmt: skip
    for side, name, script in (
        (OPENDP, "opendp-core", "accuracy_opendp.py"),
        (PER_RELEASE, "dp-accounting", "accuracy_per_release.py"),
    ):
        note(side)
        try:
            answer = peer(name, script, asked)
        except NotInstalled as problem:
            found[side] = str(problem)
            continue
        if name == "dp-accounting":  # it calibrates and draws nothing: the release code's sampler draws
            of_side = {
                m: DiscreteGaussian(Fraction(float(answer[p.table.name][0][0])) ** 2)  # type: ignore[arg-type]
                for m, p in tables.items()
            }
            each = [drawn(of_side.__getitem__) for _ in range(max(1, years // 4))]
            spread = {m: n.variance for m, n in of_side.items()}
        else:
            each = [{m: np.array(answer[p.table.name][y]).reshape(cells_of(product, m)) for m, p in tables.items()}
                    for y in range(years)]  # fmt: skip
            spread = {m: float(np.mean([np.var(e[m]) for e in each])) for m in tables}
        found[side] = average([best_single(product, year, spread.__getitem__, levels) for year in each])
    return found, names


def report(found: dict[str, Errors | str], names: dict[Level, str], years: int, city: City, plot: Path) -> bool:
    """Markdown and plot; whether the promised ratio holds and every side was measured."""
    sides = {s: e for s, e in found.items() if isinstance(e, dict)}
    ours = sides[OURS]
    print("### Error of the published tables of a year\n")
    print(
        f"Mean absolute error of the noise, in cases; ε {city.budget.epsilon:g}, δ {city.budget.delta:g} for one patient over "
        f"364 days. {years} years of noise. Ratio: (a) by ours. (a) diffprivlib's integer Geometric, ε/364 a day, all of it "
        "for this one level; (b) our tables and noise, no least squares; (c) the same tables and caps in OpenDP, ρ split "
        "evenly, calibrated by OpenDP; (d) every release a mechanism of its own, composed and calibrated by dp-accounting. "
        "(c) differs from (b) in the shares of the budget alone: the plan spends more on days by area and weeks by chapter and "
        "less on whole windows than an even split. Each side is drawn by itself, so a level with one cell a year is known to "
        f"about {0.76 / math.sqrt(years):.0%}.\n"
    )
    print("| level | " + " | ".join(sides) + " | ratio |\n|---|" + "--:|" * (len(sides) + 1))
    for q, name in names.items():
        row = " | ".join(f"{sides[s][q]:,.1f}" for s in sides)
        print(f"| {name} | {row} | {sides[SPLIT][q] / ours[q]:.1f} |")
    for side, problem in ((s, e) for s, e in found.items() if isinstance(e, str)):
        print(f"\n{side} could not be measured: {problem}")
    day = level_of("day", ())
    ratio = sides[SPLIT][day] / ours[day]
    print(f"\n![Mean absolute error of each side at each published level, logarithmic](images/{plot.name})")
    print(f"\n<!-- metric accuracy_city_day_ratio {ratio:.3f} -->")
    rows = [{"level": names[q], "side": s, "error": e[q]} for s, e in sides.items() for q in names]
    chart = (
        alt.Chart(pd.DataFrame(rows)).mark_point(filled=True, size=60)
        .encode(x=alt.X("error:Q", scale=alt.Scale(type="log"), title="mean absolute error, cases"),
                y=alt.Y("level:N", sort=None, title=None), color=alt.Color("side:N", sort=None))
        .properties(width=460)
    )  # fmt: skip
    BENCH.mkdir(exist_ok=True)
    plot.write_text(vl_convert.vegalite_to_svg(json.dumps(chart.to_dict())))
    return ratio >= PROMISED_RATIO and len(sides) == len(found) and not math.isnan(ratio)


def main() -> int:
    quick, city = "--quick" in sys.argv, load_city()
    years = 2 if quick else 20
    found, names = measured(city, years)
    return 0 if report(found, names, years, city, BENCH / f"accuracy{'-quick' if quick else ''}.svg") else 1


if __name__ == "__main__":
    sys.exit(main())
