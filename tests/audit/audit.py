"""`make audit`: what an outsider can rerun. Tries the promises of the privacy engine and writes a report.

    python tests/audit/audit.py FOLDER [--trials N] [--seeds N] [--accuracy-seeds N]

Exit code 1 where a planted fault was not flagged, the release code was, or noise or intervals are not as promised.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
import time
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from audit_accuracy import Accuracy, accuracy
from audit_canary import ENGINES, Verdict, audit, false_alarms, replay
from audit_sampler import p_value
from rich.progress import Progress

from assets.contract.city import load_city
from assets.privacy.mechanism import draw
from assets.privacy.plan import price

DRAWS = 50_000
SMALLEST_P = 1e-4


def svg(chart: alt.TopLevelMixin) -> str:
    return str(vl_convert.vegalite_to_svg(json.dumps(chart.to_dict())))


def loss_plot(verdicts: list[Verdict]) -> str:
    rows = pd.DataFrame([{"engine": v.engine, "μ": v.mu_lower, "flagged": v.flagged} for v in verdicts])
    points = alt.Chart(rows).mark_point(filled=True, size=90).encode(
        x=alt.X("μ:Q", title="privacy loss shown with 99% confidence (μ of Gaussian DP)"), y=alt.Y("engine:N", sort=None, title=None),
        color=alt.Color("flagged:N"),
    )  # fmt: skip
    claim = alt.Chart(pd.DataFrame({"x": [verdicts[0].mu_claimed]})).mark_rule(strokeDash=[4, 3]).encode(x="x:Q")
    return svg((points + claim).properties(width=520, title="Dashed: what is claimed, √(2ρ)"))


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Audit the privacy engine and write an HTML report.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--accuracy-seeds", type=int, default=20)
    options = parser.parse_args()
    began, city = time.monotonic(), load_city()
    plan = price(city)
    with Progress() as progress:
        task = progress.add_task(
            "audit", total=len(plan.tables) + len(ENGINES) + options.seeds + options.accuracy_seeds
        )
        noise = []
        for priced in plan.tables:
            p = p_value(np.array(draw([0] * DRAWS, priced.variance)), priced.variance)
            noise.append(
                {
                    "table": priced.table.name,
                    "σ²": f"{float(priced.variance):.2f}",
                    "p": f"{p:.3g}",
                    "holds": p > SMALLEST_P,
                }
            )
            progress.advance(task)
        verdicts = []
        for engine in ENGINES:
            verdicts.append(audit(city, engine, options.trials, 7))
            progress.advance(task)
        alarms = false_alarms(city, options.seeds, 5_000, lambda: progress.advance(task))
        exactness = accuracy(city, options.accuracy_seeds, lambda: progress.advance(task))
    same = replay(city)
    found = {
        "each planted fault is flagged, the release code is not": all(
            v.flagged == (v.engine != "correct") for v in verdicts
        ),
        f"no false alarm over {options.seeds} seeds": alarms == 0,
        "a neighbouring input gives the same names and shapes": same,
        "noise is the exact discrete Gaussian": all(bool(n["holds"]) for n in noise),
        "errors and intervals are as promised at every published level": all(a.holds for a in exactness),
    }
    seconds = time.monotonic() - began
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Privacy audit</title><style>body{font:15px/1.5 sans-serif;"
        "max-width:60rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .6rem;"
        "text-align:left}</style>",
        f"<h1>Privacy audit: {html.escape(city.name.en)}</h1><p>ε {plan.epsilon_year:.3f} a year at δ {city.budget.delta:g}; "
        f"{options.trials:,} trials an engine; {seconds:.0f} seconds.</p>",
        "<h2>Found</h2>", table([{"statement": k, "holds": "yes" if v else "NO"} for k, v in found.items()]),
        "<h2>A canary patient at every cap</h2>", loss_plot(verdicts),
        table([{"engine": v.engine, "trials": v.trials, "μ shown": f"{v.mu_lower:.3f}", "μ claimed": f"{v.mu_claimed:.3f}",
                "same keys": v.same_keys, "certificate": v.certificate, "flagged": v.flagged} for v in verdicts]),
        "<h2>Noise</h2>", table(noise),
        "<h2>Errors and intervals</h2>", accuracy_plot(exactness),
        table([{"level": a.level, "realised / expected error": f"{a.error_ratio:.3f} ± {a.error_ratio_se:.3f}",
                "interval covers": f"{a.coverage:.1%} ± {a.coverage_se:.1%}", "holds": a.holds} for a in exactness]),
    ]  # fmt: skip
    options.folder.mkdir(parents=True, exist_ok=True)
    report = options.folder / "privacy_audit.html"
    report.write_text("\n".join(parts), encoding="utf-8")
    for statement, holds in found.items():
        sys.stdout.write(f"{'ok  ' if holds else 'FAIL'} {statement}\n")
    sys.stdout.write(f"report: {report}\n")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
