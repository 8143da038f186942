"""`digitalstadt plan`: the priced release plan, and shares that would meet its limits better. Printing only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from assets.contract.city import City, CityFileError, load_city
from assets.privacy.plan import ExpectedError, PlanRefused, price
from assets.privacy.plan_report import plan_html

out = Console(width=None if sys.stdout.isatty() else 120)  # a log is no terminal of 80 columns
Row = dict[str, object]


def _level(error: ExpectedError) -> str:
    return f"{error.time} × {' × '.join(error.dimensions) or 'city'}"


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("level", "care", "table") else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


def _expected(city: City) -> tuple[str, list[Row]]:
    priced = price(city)
    rows: list[Row] = [
        {"level": _level(e), "care": e.care, "mean count": f"{e.mean_count:,.1f}", "expected error": f"{e.mae:.1f}",
         "relative": f"{e.relative:.1%}"} for e in priced.errors
    ]  # fmt: skip
    return (
        f"ε {priced.epsilon_year:.3f} a year, {priced.epsilon_five_years:.2f} in five; with geometric noise of the same errors "
        f"{priced.geometric_epsilon_year:.3f} and {5 * priced.geometric_epsilon_year:.2f} (docs/privacy.md)",
        rows,
    )


def _proposed(city: City) -> tuple[list[Row], list[Row]]:
    """Present and proposed shares, and the errors of every limited level beside their limits, at the same budget."""
    from assets.privacy.optimise import problem, propose, with_shares

    free, shares = problem(city).free, propose(city)
    tables: list[Row] = [
        {"table": t.name, "present share": f"{t.share:.4f}", "proposed share": f"{shares[t.name]:.4f}",
         "note": "" if needed else "no limit needs it: kept"} for t, needed in zip(city.plan.tables, free, strict=True)
    ]  # fmt: skip
    unlimited = city.model_copy(update={"plan": city.plan.model_copy(update={"acceptance": ()})})
    present, proposed = (
        {(e.time, e.dimensions): e for e in price(c).errors if e.care == "inpatient"}
        for c in (unlimited, with_shares(unlimited, shares))
    )
    errors: list[Row] = [
        {"level": _level(present[key]), "limit": f"{limit.max_relative_error:.1%}", "present": f"{present[key].relative:.2%}",
         "proposed": f"{proposed[key].relative:.2%}", "present error": f"{present[key].mae:.1f}",
         "proposed error": f"{proposed[key].mae:.1f}"}
        for limit in city.plan.acceptance for key in [(limit.time, limit.dimensions)]
    ]  # fmt: skip
    return tables, errors


def plan(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    page: Annotated[Path | None, typer.Option("--html", help="Also write it as a page with a plot.")] = None,
    propose: Annotated[
        bool, typer.Option("--propose", help="Shares with the smallest largest error by its limit, beside the present.")
    ] = False,
) -> None:
    """What the release plan costs, and how accurate each published level will be, before anything is spent."""
    try:
        city = load_city()
        if propose:
            tables, errors = _proposed(city)
            if as_json:
                sys.stdout.write(json.dumps({"shares": tables, "errors": errors}, indent=1, ensure_ascii=False) + "\n")
            else:
                out.print(_table("shares of ρ", tables), _table("expected relative error, inpatient", errors))
            return
        title, rows = _expected(city)
        if page:
            page.write_text(plan_html(city, price(city)), encoding="utf-8")
    except (CityFileError, PlanRefused) as error:
        Console(stderr=True).print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from None
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    else:
        out.print(_table(title, rows))
