"""`digitalstadt plan`: the priced release plan, and shares that would meet its limits better. Printing only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from assets.contract.city import City, CityFileError, load_city
from assets.privacy.accounting import at_most
from assets.privacy.mechanism import MECHANISMS
from assets.privacy.plan import ExpectedError, PlanRefused, mechanism_for, price, price_with, terms_of
from assets.privacy.plan_report import plan_html
from pipelines.terminal import fail, out

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
    """Every published level with its expected error, and the one it would have with the other mechanism."""
    priced = price(city)
    (other,) = (price_with(city, m) for m in MECHANISMS.values() if m is not priced.mechanism)
    terms_of(city, (former.until for former in city.former))  # earlier windows are published on too
    rows: list[Row] = [
        {"level": _level(e), "care": e.care, "mean count": f"{e.mean_count:,.1f}", "expected error": f"{e.mae:.1f}",
         "relative": f"{e.relative:.1%}", f"error with {other.mechanism.title} noise": f"{o.mae:.1f}"}
        for e, o in zip(priced.errors, other.errors, strict=True)
    ]  # fmt: skip
    chosen = "chosen by the errors" if city.budget.mechanism == "automatic" else "by the city file"
    return (
        f"{priced.mechanism.title} noise, {chosen}: ε {at_most(priced.epsilon_year, 3):.3f} a year with corrections, {at_most(priced.epsilon_five_years, 2):.2f} in five "
        f"(δ {priced.delta:.1g}); {other.mechanism.title}: ε {at_most(other.epsilon_year, 3):.3f} and {at_most(other.epsilon_five_years, 2):.2f}",
        rows,
    )


def _proposed(city: City) -> tuple[list[Row], list[Row]]:
    """Present and proposed shares, and the errors of every limited level beside their limits, at the same budget."""
    from assets.privacy.optimise import problem, propose, with_shares

    budget = city.budget.model_copy(update={"mechanism": mechanism_for(city).key})  # with any shares, limits or none
    city = city.model_copy(update={"budget": budget})
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
                out.print(_table("shares of the budget", tables), _table("expected relative error, inpatient", errors))
            return
        title, rows = _expected(city)
        if page:
            page.write_text(plan_html(city, price(city)), encoding="utf-8")
    except (CityFileError, PlanRefused) as error:
        fail(str(error))
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    else:
        out.print(_table(title, rows))
