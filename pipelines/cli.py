"""The command line `digitalstadt`. Exit code 0, 1 (found a problem) or 2 (wrong use)."""

from __future__ import annotations

import errno
import json
import shlex
import sys
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperGroup

from assets.contract.city import City, CityFileError, load_city
from assets.lake.keys import KeyFileError
from assets.lake.lake import Lake
from assets.lake.lease import DataRootBusy
from assets.lake.zone import ZoneError, open_zone
from pipelines import (
    check_cli,
    clinic_cli,
    consent_cli,
    ledger_cli,
    operation_cli,
    patient_cli,
    plan_cli,
    publish_cli,
    safekeeping_cli,
    web_cli,
)
from pipelines.environments import current, key_folder
from pipelines.terminal import console, fail, out


class Commands(TyperGroup):
    """All commands. What one did not foresee is told as a stage tells it: never a traceback, which may hold a value."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            left = isinstance(error, typer.Abort) or hasattr(error, "exit_code")  # what Typer raises to leave
            if left or getattr(error, "errno", None) == errno.EPIPE:
                raise
            from assets.guard import told

            about = told(error)
            said = f"{about.happened}\nWhat to do: {about.remedy} ({about.runbook})\nPlace: {about.place}"
            fail(said)


HELP = """From consented clinic exports to differentially private health indicators.

DIGITALSTADT_CITY names the city file (default: the shipped Darmstadt), DIGITALSTADT_DATA the data root (default: data),
DIGITALSTADT_KEYS the key folder (default: ~/.config/digitalstadt-health/ and the key of the city), DAGSTER_HOME the
folder of Dagster's state.

Exit code 0: done; 1: a problem was found, and is named; 2: wrong use. What to do then: docs/runbook.md.
"""
app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, cls=Commands, pretty_exceptions_show_locals=False
)
app.add_typer(ledger_cli.ledger_app, name="ledger")
app.command("check-export")(check_cli.check_export)
app.command("decisions")(consent_cli.decisions)
app.command("plan")(plan_cli.plan)
app.add_typer(patient_cli.patient_app, name="patient")
app.add_typer(clinic_cli.clinic_app, name="clinic")
publish_cli.register(app)
safekeeping_cli.register(app)
web_cli.register(app)
operation_cli.register(app)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_DAY: Any = {"formats": ["%Y-%m-%d"], "metavar": "YYYY-MM-DD"}


def print_rows(title: str, rows: list[dict[str, object]], as_json: bool) -> None:
    """A table for people, or the same rows as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(rows, default=str, indent=1, ensure_ascii=False) + "\n")
        return
    table = Table(title=title, title_justify="left")
    for name, value in (rows[0] if rows else {"nothing": ""}).items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    out.print(table)


def open_site() -> tuple[City, Lake]:
    """City and lake of this environment; leaves with a message where the city file or a key is wrong."""
    try:
        city = load_city(current().city_file)
        lake = Lake.open(current().data_root, key_folder(current(), city.key))
        open_zone(lake)
        return city, lake
    except (CityFileError, KeyFileError, ZoneError) as error:
        fail(str(error))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Writes inbox/ and truth/ into it.")] = Path("data"),
    patients: Annotated[int, typer.Option(min=1_000, max=5_000_000, help="Residents of the city.")] = 160_000,
    days: Annotated[int, typer.Option(min=7, max=4_000, help="Delivery days from the city's start.")] = 395,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same city.")] = 1,
    dirt: Annotated[float, typer.Option(min=0, max=1, help="Share of cases with a fault.")] = 0.01,
    as_json: Json = False,
) -> None:
    """Write the exports of a synthetic city, and apart from them the truth about it. Nobody in it exists."""
    from pipelines.demo.generate import generate_once

    try:
        city = load_city()
    except CityFileError as error:
        fail(str(error))
    with Progress(
        TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn(), console=out, transient=True
    ) as bar:
        task = bar.add_task("synthetic city", total=1.0)

        def show(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        try:
            summary = generate_once(folder, city, patients, days, seed, dirt, show)
        except FileExistsError as error:
            fail(str(error))
    last = city.start + timedelta(days - 1)
    if as_json:
        sys.stdout.write(json.dumps(summary | {"first_day": city.start, "last_day": last}, default=str) + "\n")
        return
    out.print(
        f"synthetic city: {summary['cases']:,} cases, {summary['exports']:,} exports of {len(city.clinics)} clinics,"
        f" {city.start} to {last}, in {folder / 'inbox'}", highlight=False, soft_wrap=True
    )  # fmt: skip


def _days(
    city: City, day: datetime | None, first: datetime | None, last: datetime | None, demo: bool
) -> tuple[date, date]:
    today = datetime.now(ZoneInfo(city.time_zone)).date()
    if (first is None) != (last is None) or (day is not None) + (first is not None) + demo > 1:
        raise typer.BadParameter("name --day, or --from with --to, or --demo")
    if demo:
        summary = current().data_root / "truth" / "summary.json"
        if not summary.exists():
            fail("no demo city in the data root: run `digitalstadt demo` first")
        begin, end = city.start, city.start + timedelta(json.loads(summary.read_text())["days"] - 1)
    else:
        begin = (first or day or datetime.combine(today - timedelta(1), datetime.min.time())).date()
        end = last.date() if last else begin
    if not city.first_arrival <= begin <= end < today:
        raise typer.BadParameter(f"days must lie between {city.first_arrival} and yesterday, in order")
    return begin, end


@app.command()
def run(
    day: Annotated[datetime | None, typer.Option("--day", help="One day. Default: yesterday.", **_DAY)] = None,
    first: Annotated[datetime | None, typer.Option("--from", help="First day of a range.", **_DAY)] = None,
    last: Annotated[datetime | None, typer.Option("--to", help="Last day, inclusive.", **_DAY)] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The days of the demo city; compare with its truth.")] = False,
    as_json: Json = False,
) -> None:
    """Run one arrival day, or a range of them as one run, from the inboxes to open data. Safe to repeat and to stop."""
    from pipelines import runner
    from pipelines.summary import accuracy, summarise

    city, lake = open_site()
    begin, end = _days(city, day, first, last, demo)
    try:
        outcome = runner.execute(current(), begin, end, console(stderr=True))
    except DataRootBusy as error:
        fail(str(error))
    print_rows(f"{city.name.en}, {begin} to {end}", summarise(outcome, lake, city), as_json)
    if outcome.failures:
        reasons = "\n".join(f"{step}: {why}" for step, why in outcome.failures.items())
        fail(f"{reasons}\nnothing was spent or published twice: fix it and run the same days again")
    if demo and not as_json:
        print_rows("Expected and actual error of what was published (truth of the demo)", accuracy(lake, city), False)
    if not as_json:
        out.print(
            f"\nOpen data: {lake.open_data}\n"
            f"Query it:  duckdb -readonly {shlex.quote(str(lake.open_data / 'city_health.duckdb'))} \"FROM cases_by_area LIMIT 10\"\n"
            "Look:      make ui, then http://127.0.0.1:3000; digitalstadt plan; digitalstadt ledger show",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


if __name__ == "__main__":
    app()
