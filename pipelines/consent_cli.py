"""`digitalstadt decisions`: the decision table that an auditor reads. Printing only; counts, never a case."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from assets.contract.city import load_city
from assets.lake.keys import KeyFileError
from assets.lake.lake import Lake
from pipelines.environments import current, key_folder
from pipelines.terminal import fail, out


def decisions(
    day: Annotated[
        str | None, typer.Option("--day", metavar="YYYY-MM-DD", help="Last arrival day of a run. Default: the newest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """How many cases of a run were permitted or not, by clinic and reason, in German and English."""  # fmt: skip
    environment = current()
    try:
        lake = Lake.open(environment.data_root, key_folder(environment, load_city().key))
    except KeyFileError as error:
        fail(str(error))
    known = sorted(p.stem for p in (lake.confidential / "records" / "consent").glob("*.json"))
    chosen = day or (known[-1] if known else "")
    if chosen not in known:
        raise typer.BadParameter("no run ended on that day" if day else "nothing was decided yet", param_hint="--day")
    record: dict[str, Any] = lake.read_record(f"consent/{chosen}") or {}
    if as_json:
        sys.stdout.write(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        return
    title = f"{record['first']} to {record['last']}, judged as of {record['evaluation_day']}"
    table = Table("clinic", "cases", "reason", "Deutsch", "English", title=title)
    for row in record["rows"]:
        table.add_row(row["clinic"], str(row["cases"]), row["reason"], row["text_de"], row["text_en"])
    out.print(table)
