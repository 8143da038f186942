"""`digitalstadt ledger`: what was spent, and whether the ledger is as it was written. Corrections on request."""

from __future__ import annotations

import json
import sys
from datetime import date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from assets.contract.city import City, CityFileError, load_city
from assets.lake.keys import KeyFileError
from assets.lake.lake import Lake
from assets.lake.lease import DataRootBusy
from assets.privacy.accounting import UNITS, at_most
from assets.privacy.certificate import LossAboveBudget
from assets.privacy.correction import CorrectionRefused, correct
from assets.privacy.evidence import LedgerBehind, gaps
from assets.privacy.ledger import BudgetExceeded, CapChanged, Ledger, Window, open_ledger
from assets.privacy.plan import PlanRefused
from pipelines.environments import current, key_folder
from pipelines.terminal import fail, out

ledger_app = typer.Typer(no_args_is_help=True, help="What was spent of the privacy budget.")
_REFUSED = (BudgetExceeded, CapChanged, CorrectionRefused, DataRootBusy, LedgerBehind, LossAboveBudget, PlanRefused)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _open() -> tuple[City, Lake, Ledger]:
    try:
        city = load_city(current().city_file)
        lake = Lake.open(current().data_root, key_folder(current(), city.key))
        return city, lake, open_ledger(lake, city)
    except (CityFileError, KeyFileError, RuntimeError) as error:
        fail(str(error))


def window_report(scope: str, window: Window, delta: float) -> dict[str, Any]:
    """Everything about one window, with costs as fractions: spent by table, corrections, reserve, ε of one and five years."""

    def part(units: int) -> dict[str, Any]:
        """Its exact cost (`rho`, or `pure_epsilon` of geometric noise) and what it comes to."""
        exact = "rho" if window.mechanism.column == "rho" else "pure_epsilon"
        return {
            exact: str(Fraction(units, UNITS)),
            "epsilon": at_most(window.epsilon(delta, units), 6),
            "of_budget": round(units / window.cap_units, 6),
        }

    return {
        "window": scope,
        "delta": delta,
        "status": "paused" if window.paused else "open",
        "mechanism": window.mechanism.title,
        "spent": part(window.spent_units),
        "epsilon_five_years_like_this": at_most(window.epsilon(delta, 5 * window.spent_units), 6),
        "cap": part(window.cap_units),
        "epsilon_five_years_at_cap": at_most(window.epsilon(delta, 5 * window.cap_units), 6),
        "tables": {name: part(units) for name, units in sorted(window.tables.items())},
        "corrections": {"spent": part(window.corrections_units), "set_aside": part(window.set_aside_units)},
    }


@ledger_app.command()
def show(as_json: Json = False) -> None:
    """Cost and ε of each budget window: by table, for corrections, altogether, and what is left."""
    city, _, ledger = _open()
    reports = [
        window_report(scope, window, city.at(date.fromisoformat(scope)).budget.delta)
        for scope, window in ledger.windows().items()
    ]
    if as_json:
        sys.stdout.write(json.dumps({"windows": reports}, indent=1) + "\n")
        return
    for r in reports:
        title = (
            f"window from {r['window']}, {r['mechanism']}, {r['status']}: ε {at_most(r['spent']['epsilon']):.4f} of {at_most(r['cap']['epsilon']):.4f} in one"
            f" year; {at_most(r['epsilon_five_years_like_this']):.4f} of {at_most(r['epsilon_five_years_at_cap']):.4f} in five (δ {r['delta']:g})"
        )
        table = Table(title=title, title_justify="left")
        exact = "ρ" if "rho" in r["cap"] else "pure ε"
        for name in ("what", exact, "ε alone", "of the budget"):
            table.add_column(name, justify="left" if name == "what" else "right", overflow="fold")
        corrections = r["corrections"]
        for what, amount in (
            *r["tables"].items(), ("corrections", corrections["spent"]), ("spent", r["spent"]),
            ("set aside for corrections", corrections["set_aside"]), ("budget", r["cap"]),
        ):  # fmt: skip
            table.add_row(
                what, next(iter(amount.values())), f"{at_most(amount['epsilon']):.4f}", f"{amount['of_budget']:.2%}"
            )
        out.print(table)
    if not reports:
        out.print("nothing was spent yet")


@ledger_app.command(name="correct")
def correct_week(
    day: Annotated[
        datetime, typer.Argument(formats=["%Y-%m-%d"], help="Any day (YYYY-MM-DD) of the week that was wrong.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Spend it without asking.")] = False,
) -> None:
    """Measure a week again whose data were wrong, paid from the reserve for corrections. Published with the next run."""
    city, lake, _ = _open()
    if day.date() < city.start:
        raise typer.BadParameter(f"the city begins on {city.start}", param_hint="DAY")
    monday = city.unit_start("week", day.date())
    if not yes:
        typer.confirm(
            f"Measure the week of {monday} again, with the data as they are now? It costs one of "
            f"{city.at(monday).plan.corrections_per_window} parts of the reserve and cannot be undone",
            abort=True,
        )
    try:
        done = correct(lake, city, day.date())
    except _REFUSED as error:
        fail(str(error))
    cost = f"{done['currency']} {Fraction(done['cost_units'], UNITS)}"
    out.print(
        f"correction {done['version'] - 1} of the week of {done['week']}: {done['measurements']} measurements for {cost}",
        highlight=False,
    )


@ledger_app.command()
def verify(
    as_json: Json = False,
    published: Annotated[
        Path | None,
        typer.Option("--published", help="A copy of ledger.json from a portal or mirror.", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Check the hash chain, every cap, that each value was paid for, and that nothing seen or published is missing."""
    city, lake, ledger = _open()
    try:
        problems = ledger.verify() or list(gaps(lake, city, ledger, published))
    except LedgerBehind as error:
        problems = [str(error)]
    if as_json:
        sys.stdout.write(json.dumps({"verifies": not problems, "problems": problems}) + "\n")
    if problems:
        fail("\n".join(problems))
    if not as_json:
        out.print("the ledger verifies")
