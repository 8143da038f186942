"""The priced release plan as one HTML page with a plot: for those who decide on it, before anything is spent.

Here: how it looks. Not here: any number (`plan`). Self-contained: no script, no network.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

import pandas as pd

from assets.contract.city import City
from assets.privacy.accounting import at_most
from assets.privacy.plan import ExpectedError, PricedPlan

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
)


def _level(error: ExpectedError) -> str:
    return f"{error.time} × {' × '.join(error.dimensions) or 'city'}"


def _plot(plan: PricedPlan) -> str:
    """SVG: expected relative error of each published level, on a logarithmic scale."""
    import altair as alt
    import vl_convert

    rows = pd.DataFrame([{"level": _level(e), "care": e.care, "error": e.relative} for e in plan.errors])
    error = alt.X("error:Q", title="expected relative error", scale=alt.Scale(type="log"), axis=alt.Axis(format="%"))
    chart = (
        alt.Chart(rows)
        .mark_point(filled=True)
        .encode(x=error, y=alt.Y("level:N", sort=None, title=None), color="care:N")
    )
    return str(vl_convert.vegalite_to_svg(json.dumps(chart.properties(width=420).to_dict())))


def plan_html(city: City, plan: PricedPlan) -> str:
    """The page: budget, cost of each table, expected error of each published level."""

    def table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
        head = "".join(f"<th>{html.escape(n)}</th>" for n in names)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table>"

    costs = [
        (p.table.name, f"{p.table.time} × {' × '.join(p.table.dimensions) or 'city'}", f"{p.table.share:.1%}",
         f"{p.noise.variance ** 0.5:.2f}") for p in plan.tables
    ]  # fmt: skip
    errors = [(_level(e), e.care, f"{e.mean_count:,.1f}", f"{e.mae:.1f}", f"{e.relative:.1%}") for e in plan.errors]
    return "\n".join([
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Release plan</title><style>{_STYLE}</style>",
        f"<h1>Release plan: {html.escape(city.name.en)}</h1>",
        f"<p>Noise: {plan.mechanism.title}. ε {at_most(plan.epsilon_year, 3):.3f} a year and {at_most(plan.epsilon_five_years, 2):.2f} in five with every "
        f"correction, at δ {plan.delta:.2g}. "
        f"Of the budget of ε {city.budget.epsilon:g} the tables take {plan.spent_units / plan.budget_units:.1%}, corrections at most "
        f"{plan.set_aside_units / plan.budget_units:.1%}; the rest is not spent.</p>",
        "<h2>What is measured</h2>", table(("table", "level", f"share of {plan.mechanism.currency}", "σ of its noise"), costs),
        "<h2>How accurate it will be</h2>", _plot(plan),
        table(("level", "care", "mean count", "expected error", "relative"), errors),
    ])  # fmt: skip
