"""`digitalstadt clinic add`: a new entry in the city file, comments kept. Writes text, then loads it to be sure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Final

import typer
import yaml
from rich.console import Console

from assets.contract.city import CityFileError, load_city
from assets.lake.files import atomic_write
from pipelines.environments import current
from pipelines.terminal import console, fail

clinic_app = typer.Typer(no_args_is_help=True, help="Clinics and practices of the city file.")

_BRINGS: Final = {
    "fhir": "Patient, Encounter, Condition, Procedure and Consent as NDJSON, one resource a line, UTF-8",
    "p21": "FALL.csv, FAB.csv, ICD.csv, OPS.csv of §21 KHEntgG",
    "practice": "practice.csv, the template of docs/onboarding.md",
}


def with_clinic(text: str, entry: str) -> str:
    """The text of a city file with `entry` (one flow mapping) as last item of its `clinics`.

    Raises `ValueError` where the list is not written as one item a line.
    """
    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = tree.value if isinstance(tree, yaml.MappingNode) else []
    clinics = next((value for key, value in pairs if key.value == "clinics"), None)
    if not isinstance(clinics, yaml.SequenceNode) or clinics.flow_style or not clinics.value:
        raise ValueError("the list `clinics` has to be written with one item a line, beginning with a dash")
    lines = text.splitlines(keepends=True)
    first, last = clinics.value[0], clinics.value[-1]
    # A block ends at the start of what follows: step back over blank lines and comments.
    end = last.end_mark.line + (1 if last.end_mark.column else 0)
    while end > 0 and re.match(r"\s*(#.*)?$", lines[end - 1]):
        end -= 1
    indent = lines[first.start_mark.line].index("-")
    newline = "" if lines[end - 1].endswith("\n") else "\n"
    return "".join([*lines[:end], newline, f"{' ' * indent}- {entry}\n", *lines[end:]])


def _entry(key: str, name: str, kind: str, consent: str, delivery: str, linkable: bool) -> str:
    parts = [
        f"key: {key}",
        f"name: {json.dumps(name, ensure_ascii=False)}",
        f"format: {kind}",
        f"consent_source: {consent}",
    ]
    parts += [f"consent_delivery: {delivery}"] if delivery != "incremental" else []
    parts += [] if linkable else ["linkable: false"]
    return "{" + ", ".join(parts) + "}"


@clinic_app.callback()
def _clinic() -> None:
    """Clinics and practices of the city file."""


@clinic_app.command("add")
def add(
    key: Annotated[str, typer.Argument(help="Short name for folders: small letters, digits, dashes.")],
    name: Annotated[str, typer.Option("--name", help="Full name.")],
    kind: Annotated[str, typer.Option("--format", help="fhir, p21 or practice.")],
    consent: Annotated[str | None, typer.Option("--consent", help="fhir or csv: how consents come along.")] = None,
    delivery: Annotated[
        str, typer.Option("--consent-delivery", help="incremental, or full: one that is missing counts as withdrawn.")
    ] = "incremental",
    linkable: Annotated[
        bool, typer.Option("--linkable/--not-linkable", help="Whether insured numbers are delivered.")
    ] = True,
) -> None:
    """Write the entry of a new clinic into the city file and print the next steps."""  # fmt: skip
    environment = current()
    path = environment.city_file
    entry = _entry(key, name, kind, consent or ("fhir" if kind == "fhir" else "csv"), delivery, linkable)
    candidate = path.with_name(f".{path.name}.candidate.yaml")
    try:
        old = load_city(path)
        text = with_clinic(path.read_text(encoding="utf-8"), entry)
        candidate.write_text(text, encoding="utf-8")
        new = load_city(candidate)
        if new.clinics[:-1] != old.clinics or new.model_copy(update={"clinics": old.clinics}) != old:
            raise ValueError("the entry would change something else; write it by hand")
    except (CityFileError, ValueError) as error:
        fail(str(error).replace(str(candidate), str(path)))
    finally:
        candidate.unlink(missing_ok=True)
    atomic_write(path, text.encode(), mode=path.stat().st_mode & 0o777)
    _next_steps(console(soft_wrap=True), environment.data_root, key, kind, new.clinics[-1].consent_source)


def _next_steps(out: Console, data_root: Path, key: str, kind: str, consent: str) -> None:
    side = "Consent.ndjson" if consent == "fhir" else "consent.csv"
    for line in (
        f"{key} is in the city file. Next:",
        f"1. The clinic exports {_BRINGS[kind]}, and its consents as {side}.",
        f"2. It checks the export on its side: digitalstadt check-export {key} FOLDER",
        f"3. It puts the files into {data_root / 'inbox' / key}/<YYYY-MM-DD>/ and, last, an empty file _COMPLETE.",
        "4. digitalstadt run --day <YYYY-MM-DD>, or wait for the nightly run.",
        "docs/onboarding.md says all of this at length.",
    ):
        out.print(line, highlight=False)
