"""`digitalstadt status`, `health`, `alert test` and `prune`: for the terminal and for monitoring. Printing only."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines.alerts import KINDS, Alert, NotDelivered, channels, send
from pipelines.environments import current, key_folder
from pipelines.terminal import out

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
alert_app = typer.Typer(no_args_is_help=True, help="The channels of alerts.")


def _site() -> tuple[Any, Any]:
    from assets.contract.city import load_city
    from assets.lake.lake import Lake

    environment = current()
    city = load_city(environment.city_file)
    return city, Lake.open(environment.data_root, key_folder(environment, city.key))


def _needs(found: list[Alert]) -> list[dict[str, Any]]:
    return [asdict(a) | {"urgency": KINDS[a.kind].urgency, "what_to_do": KINDS[a.kind].to_do} for a in found]


def _print_needs(found: list[Alert]) -> None:
    order = ("now", "today", "this month")
    for alert in sorted(found, key=lambda alert: order.index(KINDS[alert.kind].urgency)):
        kind = KINDS[alert.kind]
        out.print(f"{kind.urgency}: {kind.title}: {alert.what}", highlight=False, soft_wrap=True)
        out.print(f"    {kind.to_do} (docs/runbook.md#{alert.kind})", highlight=False, soft_wrap=True)


def status(as_json: Json = False) -> None:
    """Last export of each clinic, quality trend, budget left, releases, and what needs a person (exit code 1)."""
    from pipelines.operation import problems, state

    city, lake = _site()
    about, found = state(current(), city, lake), problems(current())
    urgent = [a for a in found if KINDS[a.kind].urgency != "this month"]
    if as_json:
        sys.stdout.write(json.dumps(about | {"needs_a_person": _needs(found)}, default=str, indent=1) + "\n")
        raise typer.Exit(1 if urgent else 0)

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    table = Table(
        "clinic",
        "last export",
        "in quarantine, 7 days",
        "28 days before",
        "by day",
        title="Clinics",
        title_justify="left",
    )
    for row in about["clinics"]:
        table.add_row(row["clinic"], str(row["last_export"] or "none"), share(row["quarantined_last_7_days"]),
                      share(row["quarantined_28_days_before"]), row["by_day"])  # fmt: skip
    out.print(table)
    done = ", ".join(f"{first} to {last}" for first, last in about["days_done"]) or "none"
    out.print(f"Arrival days done: {done}", highlight=False)
    if about["demo_ends"]:
        out.print(
            f"Demonstration: synthetic exports up to {about['demo_ends']}; no later day is asked for", highlight=False
        )
    for window in about["windows"]:
        paused = ", paused" if window["paused"] else ""
        out.print(f"Budget of the year from {window['window']}: {window['left']:.1%} left{paused}", highlight=False)
    for release in about["releases"]:
        out.print(f"Released: {release['dataset']} {release['version']}", highlight=False)
    out.print("\nNeeds a person:" if found else "\nNothing needs a person.", highlight=False)
    _print_needs(found)
    raise typer.Exit(1 if urgent else 0)


def health(
    daemons: Annotated[
        bool, typer.Option(help="Also ask Dagster (DAGSTER_HOME) whether its daemons are alive.")
    ] = False,
    as_json: Json = False,
) -> None:
    """For monitoring: exit code 0 where the service can do its work now, else 1. Says why in one line each."""
    from pipelines.operation import problems

    if daemons and not os.environ.get("DAGSTER_HOME"):
        raise typer.BadParameter("needs DAGSTER_HOME", param_hint="--daemons")
    instance = nullcontext()
    if daemons:
        import dagster as dg

        instance = dg.DagsterInstance.get()  # type: ignore[assignment]
    with instance as asked:
        found = [a for a in problems(current(), asked) if KINDS[a.kind].urgency == "now" or a.kind == "day_overdue"]
    if as_json:
        sys.stdout.write(json.dumps({"healthy": not found, "problems": _needs(found)}) + "\n")
    else:
        _print_needs(found)
        if not found:
            out.print("healthy")
    raise typer.Exit(1 if found else 0)


@alert_app.callback()
def _alert() -> None:
    """The channels of alerts."""


@alert_app.command("test")
def alert_test() -> None:
    """Send a test over every channel of the city file. Exit code 1 where one did not take it, or there is none."""
    city, _ = _site()
    failed = not channels(city)
    if failed:
        out.print("the city file names no channel: add operation.email or operation.webhook")
    for name in channels(city):
        try:
            send(name, Alert("alert_test", "sent by hand to see whether alerts arrive"), city)
            out.print(f"{name}: taken")
        except NotDelivered as error:
            out.print(str(error), style="red", highlight=False)
            failed = True
    raise typer.Exit(1 if failed else 0)


def prune(
    days: Annotated[int, typer.Option(min=28, help="Runs that ended within so many days stay.")] = 400,
    as_json: Json = False,
) -> None:
    """Remove old runs from Dagster's history (DAGSTER_HOME). The state of each day, of data and of the ledger stays."""
    import dagster as dg

    from pipelines.maintenance import prune_history

    if not os.environ.get("DAGSTER_HOME"):
        raise typer.BadParameter("needs DAGSTER_HOME", param_hint="prune")
    with dg.DagsterInstance.get() as instance:
        number = prune_history(instance, days)
    sys.stdout.write(json.dumps({"removed_runs": number}) + "\n" if as_json else f"removed {number} runs\n")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (status, health, prune):
        app.command()(command)
    app.add_typer(alert_app, name="alert")
