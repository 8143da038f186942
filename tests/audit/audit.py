"""`make audit`: what an outsider can rerun. Tries the promises of the privacy engine and writes a report.

    python tests/audit/audit.py FOLDER [--trials N] [--seeds N] [--accuracy-seeds N] [--noise-years N]

Exit code 1 where a planted fault was not flagged, the release code was, the accounting disagrees with that of others,
or noise, errors or intervals are not as promised.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from audit_accounting import committed_year, crosschecks
from audit_accuracy import Accuracy, demo_year, exact_counts, of_counts, of_releases, released_frames
from audit_canary import ENGINES, Verdict, audit, false_alarms, few_tables, replay
from audit_sampler import p_value
from rich.progress import Progress

from assets.contract.city import City, load_city
from assets.privacy.accounting import UNITS
from assets.privacy.certificate import certificate
from assets.privacy.mechanism import Noise, draw
from assets.privacy.plan import price
from assets.publication.bundle import publish
from assets.publication.catalogue import KEY
from assets.publication.guarantee import guarantee

DRAWS = 50_000
SMALLEST_P = 1e-4


def svg(chart: alt.TopLevelMixin) -> str:
    return str(vl_convert.vegalite_to_svg(json.dumps(chart.to_dict())))


def loss_plot(verdicts: list[Verdict]) -> str:
    rows = pd.DataFrame([{"engine": v.engine, "shown": v.shown, "flagged": v.flagged} for v in verdicts])
    points = alt.Chart(rows).mark_point(filled=True, size=90).encode(
        x=alt.X("shown:Q", title=f"privacy loss shown with 99% confidence ({verdicts[0].measure})"), y=alt.Y("engine:N", sort=None, title=None),
        color=alt.Color("flagged:N"),
    )  # fmt: skip
    claim = alt.Chart(pd.DataFrame({"x": [verdicts[0].claimed]})).mark_rule(strokeDash=[4, 3]).encode(x="x:Q")
    return svg((points + claim).properties(width=520, title="Dashed: what is claimed"))


def accuracy_plot(rows: list[Accuracy]) -> str:
    data = pd.DataFrame([{"level": r.level, "coverage": r.coverage, "ratio": r.error_ratio} for r in rows])
    base = alt.Chart(data).encode(y=alt.Y("level:N", sort=None, title=None))
    left = base.mark_point(filled=True).encode(x=alt.X("coverage:Q", scale=alt.Scale(domain=[0.9, 1.0])))
    right = base.mark_point(filled=True).encode(
        x=alt.X("ratio:Q", title="realised / expected error", scale=alt.Scale(zero=False))
    )
    return svg(alt.hconcat(left.properties(width=240), right.properties(width=240)))


def table(rows: list[dict[str, object]]) -> str:
    head = "".join(f"<th>{html.escape(k)}</th>" for k in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in r.values()) + "</tr>" for r in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def certified(city: City, year: tuple[object, object]) -> str:
    """Layer A: exact loss of the worst person of the demo city, as the release code certifies it."""
    events, left_out = (
        t.set_column(0, "event_day", [[city.budget.epoch + timedelta(d) for d in t["event_day"].to_pylist()]])  # type: ignore[attr-defined]
        for t in year
    )
    plan = price(city)
    loss = certificate(events, city, plan, left_out)
    return f"{loss / UNITS:.5f} of ρ {plan.budget_units / UNITS:.5f}"


def published_alike(city: City, patients: int) -> bool:
    """Layer B: with the noise frozen, a neighbouring city publishes the same files with the same rows and columns."""
    plan, (events, left_out) = price(city), demo_year(city, patients)
    canary = events["person_key"][0].as_py()
    neighbours = [tuple(t.filter([p != canary for p in t["person_key"].to_pylist()]) for t in (events, left_out))]
    seen = []
    for kept, dropped in [(events, left_out), *neighbours]:
        rng = np.random.default_rng(5)  # the same noise for both

        def frozen(values: list[int], noise: Noise, rng: np.random.Generator = rng) -> list[int]:
            drawn = np.rint(rng.normal(0, noise.variance**0.5, len(values)))
            return [v + int(n) for v, n in zip(values, drawn, strict=True)]

        frames = released_frames(city, plan, exact_counts(city, plan, kept, dropped), frozen)
        with tempfile.TemporaryDirectory() as folder:
            publish(frames, city, Path(folder), date(2026, 1, 2), guarantee(city))
            files = sorted(str(f.relative_to(folder)) for f in Path(folder).rglob("*"))
        rows = {k: (list(f.columns), f[list(KEY)].astype(str).to_numpy().tolist()) for k, f in frames.items()}
        seen.append((files, rows))
    return seen[0] == seen[1]


def found_by(city: City, options: argparse.Namespace, tick: Callable[[str], None]) -> tuple[dict[str, bool], list[str]]:
    """What holds, and the parts of the report."""
    plan, year = price(city), demo_year(city, options.patients)
    loss = certified(city, year)
    tick("certificate")
    noise: list[dict[str, object]] = []
    few = few_tables(city)
    for priced in (*plan.tables, *price(few).tables):
        p = p_value(np.array(draw([0] * DRAWS, priced.noise)), priced.noise)
        noise.append({"table": priced.table.name, "noise": priced.noise.title, "variance": f"{priced.noise.variance:.2f}",
                      "p": f"{p:.3g}", "holds": p > SMALLEST_P})  # fmt: skip
        tick(f"sampler: {priced.table.name}")
    verdicts, of_geometric = [], []
    for engine in ENGINES:
        verdicts.append(audit(city, engine, options.trials, 7))
        tick(f"canary: {engine.name}")
        of_geometric.append(audit(few, engine, options.trials, 7))
        tick(f"canary, geometric noise: {engine.name}")
    alarms = false_alarms(city, options.seeds, 5_000, lambda: tick("canary: false alarms"))
    entries, spent, cap = committed_year(city, *year)
    checks = crosschecks(city, entries, spent)
    tick("accounting of others")
    alike = replay(city) and published_alike(city, 3_000)
    tick("replay")
    counts = of_counts(city, options.noise_years)
    tick("errors of counts")
    releases = of_releases(city, options.accuracy_seeds, options.patients, lambda: tick("errors of published rows"))
    found = {
        "every person of the demo city is within the budget": True,  # the certificate raises otherwise
        "a neighbouring city publishes the same files, rows and columns": alike,
        "noise has its exact distribution": all(bool(n["holds"]) for n in noise),
        "each planted fault is flagged, the release code is not": all(
            found == (v.engine != "correct")
            for v, found in (*((v, v.flagged) for v in verdicts), *((v, v.caught) for v in of_geometric))
        ),
        f"no false alarm over {options.seeds} seeds": alarms == 0,
        "the ledger's sum agrees with the accounting of others": spent <= cap and all(c.holds for c in checks),
        "errors and intervals of counts are as promised at every level": all(a.holds for a in counts),
        "errors and intervals of everything published are as promised": all(a.holds for a in releases),
    }

    def rows(found: list[Accuracy]) -> str:
        return table([
            {"level": a.level, "realised / expected error": f"{a.error_ratio:.3f} ± {a.error_ratio_se:.3f}",
             "interval covers": f"{a.coverage:.1%} ± {a.coverage_se:.1%}", "holds": a.holds} for a in found
        ])  # fmt: skip

    parts = [
        "<h2>A. Certificate</h2>", f"<p>Largest exact loss of a person of the demo city: {loss}.</p>",
        "<h2>B. Replay</h2><p>One patient less, the noise frozen: the same files, rows, columns and shapes: "
        f"{'yes' if alike else 'NO'}.</p>",
        "<h2>C. Noise against its exact distribution</h2>", table(noise),
        "<h2>D. A canary patient at every cap</h2>", loss_plot(verdicts), loss_plot(of_geometric),
        table([{"engine": v.engine, "trials": v.trials, "measure": v.measure, "shown": f"{v.shown:.3f}", "claimed": f"{v.claimed:.3f}",
                "same keys": v.same_keys, "certificate": v.certificate, "flagged": v.flagged} for v in (*verdicts, *of_geometric)]),
        "<p>μ of Gaussian differential privacy: the city's plan. ε: a plan of two tables with geometric noise.</p>",
        f"<p>False alarms of the correct engine over {options.seeds} seeds of 5,000 trials: {alarms}.</p>",
        "<h2>The accounting of others</h2>", f"<p>{len(entries)} committed measurements, {spent / cap:.2%} of the budget.</p>",
        table([{"by": c.who, "ε": f"{c.epsilon:.3f}", "must be": c.should_be, "claimed ε": f"{c.claimed:.3f}", "holds": c.holds}
               for c in checks]),
        f"<h2>Errors and intervals of counts, {options.noise_years:,} years of noise</h2>"
        "<p>Least squares is linear and the noise is added, so the error of a count is the least squares of the noise alone, "
        "whatever the true counts are.</p>", accuracy_plot(counts), rows(counts),
        f"<h2>Errors and intervals of published rows, demo city, {options.accuracy_seeds} seeds</h2>"
        "<p>By the release code's own sampler, estimates and indicators. ‘All patients’: scaled by the coverage.</p>",
        accuracy_plot(releases), rows(releases),
    ]  # fmt: skip
    return found, parts


def main() -> int:
    parser = argparse.ArgumentParser(description="Audit the privacy engine and write an HTML report.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--accuracy-seeds", type=int, default=50)
    parser.add_argument("--noise-years", type=int, default=1_000)
    parser.add_argument("--patients", type=int, default=160_000, help="residents of the demo city")
    options = parser.parse_args()
    began, city = time.monotonic(), load_city()
    plan = price(city)
    with Progress() as progress:
        steps = len(plan.tables) + 2 + 2 * len(ENGINES) + options.seeds + options.accuracy_seeds + 4
        task = progress.add_task("audit", total=steps)
        found, parts = found_by(city, options, lambda what: progress.update(task, advance=1, description=what))
    seconds = time.monotonic() - began
    page = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Privacy audit</title><style>body{font:15px/1.5 sans-serif;"
        "max-width:60rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .6rem;"
        "text-align:left}</style>",
        f"<h1>Privacy audit: {html.escape(city.name.en)}</h1><p>ε {plan.epsilon_year:.3f} a year, corrections included, at δ {city.budget.delta:g}; "
        f"{options.trials:,} trials an engine; {seconds:.0f} seconds. Synthetic data: no real person.</p>",
        "<h2>Found</h2>", table([{"statement": k, "holds": "yes" if v else "NO"} for k, v in found.items()]), *parts,
    ]  # fmt: skip
    options.folder.mkdir(parents=True, exist_ok=True)
    report = options.folder / "privacy_audit.html"
    report.write_text("\n".join(page), encoding="utf-8")
    for statement, holds in found.items():
        sys.stdout.write(f"{'ok  ' if holds else 'FAIL'} {statement}\n")
    sys.stdout.write(f"report: {report} ({seconds:.0f} s)\n")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
