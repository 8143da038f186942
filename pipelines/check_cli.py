"""`digitalstadt check-export`: what a clinic runs on its side before it sends anything. Printing only."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.table import Table

from assets.consent.reasons import REASONS
from assets.contract.city import CityFileError, load_city
from pipelines.terminal import console

if TYPE_CHECKING:
    from assets.quality.check import Check

FORMATS = ("fhir", "p21", "practice")
FILES_SHOWN = 10


def check_export(
    clinic: Annotated[str, typer.Argument(help="Key of the clinic in the city file; `-` with --format.")],
    path: Annotated[Path, typer.Argument(help="Folder with the files of one export, packed or not.")],
    kind: Annotated[
        str | None, typer.Option("--format", help="fhir, p21 or practice, without an entry in the city file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check an export before sending it: findings by file, line and column, and what to do. Shows no value of a person.

    Works without keys and network. Exit code 0: all of it can be used; 1: something is lost; 2: wrong use.
    """  # fmt: skip
    from assets.quality.check import check_export as check
    from assets.quality.check import clinic_of_format

    out, err = console(), console(stderr=True)
    if kind is not None and kind not in FORMATS:
        raise typer.BadParameter(f"one of {', '.join(FORMATS)}", param_hint="--format")
    if not path.is_dir():
        raise typer.BadParameter(
            "is not a folder; give the folder that holds the files of one export", param_hint="PATH"
        )
    try:
        city = load_city()
        who = clinic_of_format(kind) if kind else city.clinic(clinic)
    except CityFileError as error:
        err.print(str(error))
        raise typer.Exit(2) from None
    except KeyError as error:
        raise typer.BadParameter(f"{error.args[0]}; or name a --format", param_hint="CLINIC") from None
    today = datetime.now(ZoneInfo(city.time_zone)).date()
    for sign in (signal.SIGTERM, signal.SIGHUP):  # so that what was unpacked is removed, whoever stops it
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    try:
        with err.status("reading, deciding, validating") if err.is_terminal else nullcontext():
            result = check(path, who, city, today)
    except ValueError as error:
        if as_json:
            sys.stdout.write(json.dumps({"passed": False, "refused": str(error)}) + "\n")
        else:
            out.print(f"This folder would not be taken in: {error}.")
        raise typer.Exit(1) from None
    except Exception as error:
        # The message of an error that nobody foresaw might hold a value.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        err.print(f"the check itself failed: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}; "
                  "please report this line")  # fmt: skip
        raise typer.Exit(1) from None
    if as_json:
        about = {"passed": result.passed, "evaluation_day": today.isoformat(), "cases": result.cases,
                 "consenting": result.consenting, "deletions": result.deletions, "permitted": result.permitted, "usable": result.usable, "reasons": result.reasons,
                 "ignored_files": result.ignored, "findings": result.findings}  # fmt: skip
        sys.stdout.write(json.dumps(about, ensure_ascii=False, indent=1) + "\n")
        raise typer.Exit(0 if result.passed else 1)
    _print(out, result)
    raise typer.Exit(0 if result.passed else 1)


def _print(out: Console, result: Check) -> None:
    """The summary that a person reads."""
    out.print(
        f"{result.cases} cases read. {result.permitted} have a valid consent today. {result.usable} can be used.",
        highlight=False,
    )  # fmt: skip
    for code, number in result.reasons.items():
        out.print(f"  {number:>8}  {REASONS[code][1]} / {REASONS[code][0]}", highlight=False)
    for name in result.ignored[:FILES_SHOWN]:
        out.print(f"  nothing is read from {name}", highlight=False)
    if len(result.ignored) > FILES_SHOWN:
        out.print(f"  nor from {len(result.ignored) - FILES_SHOWN} further files", highlight=False)
    if result.findings:
        table = Table("effect", "file", "lines", "column", "how often", "what is wrong", "what to do", show_lines=True)
        for f in result.findings:
            lines = ", ".join(map(str, f["lines"])) + (" …" if f["count"] > len(f["lines"]) > 0 else "")
            cells = (f["severity"], f["file"] or "", lines, f["column"] or "", str(f["count"]), f"{f['text']} ({f['rule']})", f["remedy"])  # fmt: skip
            table.add_row(*cells)
        out.print(table)
    out.print(_verdict(result), highlight=False)


def _verdict(result: Check) -> str:
    """The last line: what becomes of the export if it is sent as it is."""
    from assets.quality.check import SERIOUS

    lost = sum(f["count"] for f in result.findings if f["severity"] in SERIOUS)
    beside = f"{result.consenting} patients' consents and {result.deletions} deletions"
    if any(f["severity"] == "rejected" for f in result.findings):
        return "The export would be rejected as a whole: correct what is named above."
    if not result.cases and not result.consenting + result.deletions:
        return (
            "There is no case in it, and no consent. Right for a day without patients; else look why nothing was read."
        )
    if lost:
        return f"{lost} findings cost rows: correct them, or send it as it is."
    if not result.cases:
        return f"There is no case in it. Everything else can be used: {beside}."
    return (
        "No fault was found: send it." if result.usable else "Nothing can be used: no case has a valid consent today."
    )
