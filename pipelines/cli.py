"""The command line `digitalstadt`. Exit code 0, 1 (found a problem) or 2 (wrong use)."""

from __future__ import annotations

import json
import sys
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.table import Table

from assets.contract.city import CityFileError, load_city
from assets.lake.keys import KeyFileError, Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy.accounting import UNITS_PER_RHO
from assets.privacy.ledger import Ledger
from assets.privacy.plan import PlanRefused, price
from assets.privacy.plan_report import plan_html
from pipelines.environments import current, key_folder

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
ledger_app = typer.Typer(no_args_is_help=True, help="What was spent.")
app.add_typer(ledger_app, name="ledger")
out = Console()
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _fail(message: str) -> None:
    Console(stderr=True).print(f"[red]{message}[/red]", highlight=False)
    raise typer.Exit(1)


def _print(title: str, rows: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(rows, default=str, indent=1) + "\n")
        return
    table = Table(title=title)
    for name in rows[0] if rows else ["nothing"]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(str(v) for v in row.values()))
    out.print(table)


@app.command()
def keys() -> None:
    """Create the two key files outside the repository, where they are missing."""
    folder = key_folder(current(), load_city().key)
    out.print(f"{'created' if create_keys(folder) else 'found'} keys in {folder}: back them up, apart from the data")


@app.command()
def plan(
    as_json: Json = False,
    page: Annotated[Path | None, typer.Option("--html", help="Also write it as a page with a plot.")] = None,
) -> None:
    """What the release plan costs, and how accurate each published level will be, before anything is spent."""
    try:
        city = load_city()
        priced = price(city)
    except (CityFileError, PlanRefused) as error:
        return _fail(str(error))
    if page:
        page.write_text(plan_html(city, priced), encoding="utf-8")
    rows: list[dict[str, object]] = [
        {
            "level": f"{e.time} × {' × '.join(e.dimensions) or 'city'}",
            "care": e.care,
            "mean count": f"{e.mean_count:,.1f}",
            "expected error": f"{e.mae:.1f}",
            "relative": f"{e.relative:.1%}",
        }
        for e in priced.errors
    ]
    _print(f"ε {priced.epsilon_year:.3f} a year, {priced.epsilon_five_years:.2f} in five", rows, as_json)


@app.command()
def run(
    day: Annotated[datetime | None, typer.Option("--day", formats=["%Y-%m-%d"], help="Default: yesterday.")] = None,
    first: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"])] = None,
    last: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"])] = None,
) -> None:
    """Run one arrival day, or a range of them as one run."""
    import dagster as dg

    from pipelines.definitions import JOB, build_definitions

    try:
        city = load_city()
        Keyring.load(key_folder(current(), city.key))
    except (CityFileError, KeyFileError) as error:
        return _fail(str(error))
    today = datetime.now(ZoneInfo(city.time_zone)).date()
    begin: date = (first or day or datetime.combine(today - timedelta(1), datetime.min.time())).date()
    end: date = last.date() if last else begin
    if not city.start <= begin <= end < today:
        raise typer.BadParameter(f"days must lie between {city.start} and yesterday, in order")
    job = build_definitions(current()).resolve_job_def(JOB)
    tags = {"dagster/asset_partition_range_start": str(begin), "dagster/asset_partition_range_end": str(end)}
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
    rows: list[dict[str, object]] = []
    for event in result.get_asset_materialization_events():
        if event.partition in (None, str(end)):
            meta = event.materialization.metadata
            shown = {
                k: v.value
                for k, v in meta.items()
                if isinstance(v.value, int | float | str) and "\n" not in str(v.value)
            }
            rows.append(
                {"asset": event.asset_key.to_user_string(), "result": json.dumps(shown, ensure_ascii=False)}
            ) if event.asset_key else None
    _print(f"{begin} to {end}", rows, False)
    if not result.success:
        failed = [e.step_key for e in result.all_events if e.is_step_failure]
        _fail(
            f"failed: {', '.join(map(str, failed))}; nothing was spent or published twice, run it again after mending"
        )


def _ledger() -> Ledger:
    city = load_city()
    return Ledger(Lake(current().data_root, Keyring.load(key_folder(current(), city.key))).ledger_path)


@ledger_app.command()
def show(as_json: Json = False) -> None:
    """Budget spent in each window."""
    rows: list[dict[str, object]] = [
        {"window": s, "rho": spent / UNITS_PER_RHO, "of budget": f"{spent / cap:.1%}"}
        for s, (spent, cap) in _ledger().scopes().items()
    ]
    _print("budget", rows, as_json)


@ledger_app.command()
def verify() -> None:
    """Check hash chain and caps."""
    problems = _ledger().verify()
    if problems:
        _fail("\n".join(problems))
    out.print("the ledger verifies")
