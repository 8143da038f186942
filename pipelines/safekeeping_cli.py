"""`digitalstadt backup`, `restore`, `audit` and `keys`: what keeps an installation safe. Printing only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from assets.contract.city import City, load_city
from assets.lake import audit
from assets.lake.backup import BackupError
from assets.lake.keys import KeyFileError, create_keys, missing_keys
from assets.lake.lake import Lake
from assets.lake.zone import open_zone
from assets.privacy import recovery
from pipelines.environments import current, key_folder
from pipelines.terminal import console, fail

audit_app = typer.Typer(no_args_is_help=True, help="The audit log: who did what, in counts and hashes.")
keys_app = typer.Typer(
    help="Create the key files in the key folder, where they are missing; or rotate them.",
    invoke_without_command=True,
)
out = console(soft_wrap=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _open() -> tuple[City, Lake]:
    city = load_city(current().city_file)
    return city, Lake.open(current().data_root, key_folder(current(), city.key))


@keys_app.callback()
def keys(context: typer.Context) -> None:
    """What `digitalstadt keys` does without a command; its help stands above."""
    if context.invoked_subcommand:
        return
    folder = key_folder(current(), load_city().key)
    if (missing := missing_keys(folder)) and (current().data_root / "confidential").exists():
        raise KeyFileError(
            f"{folder} lacks {', '.join(missing)}, but {current().data_root} holds data, which new keys would not open: "
            "put them back from their backup, or set DIGITALSTADT_KEYS to the folder that has them"
        )
    out.print(f"{'created' if create_keys(folder) else 'found'} keys in {folder}: back them up, apart from the data")


@keys_app.command()
def rotate() -> None:
    """Replace period key and encryption key: every pseudonym changes, old copies can no longer be linked to new ones."""
    from assets.privacy.rotation import RotationError, rotate_keys

    city = load_city(current().city_file)
    try:
        done = rotate_keys(current().data_root, city, key_folder(current(), city.key))
    except RotationError as error:
        fail(str(error))
    out.print(
        f"{done['files']} files have new pseudonyms and a new encryption key. Back the key folder up now, apart from the "
        "data, destroy every copy of the former keys, and make a new backup of the data: older ones stay closed.",
        highlight=False,
    )


def backup(
    file: Annotated[Path, typer.Argument(help="File to write. Keep it apart from the keys.")],
    as_json: Json = False,
) -> None:
    """Write ledger, counters, consent register and tables into one encrypted file. Keys are never in it."""
    city, lake = _open()
    try:
        said = recovery.make(lake, city, file)
    except BackupError as error:
        fail(str(error))
    if as_json:
        sys.stdout.write(json.dumps({k: v for k, v in said.items() if k != "files"}) + "\n")
        return
    marks = ", ".join(f"{name} {mark}" for name, mark in said["keys"].items())
    out.print(f"{file}: {len(said['files'])} files, ledger of {said['entries']} entries; opens with keys {marks}", highlight=False)  # fmt: skip


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `backup` wrote.", exists=True, dir_okay=False)],
    ledger_lost: Annotated[
        bool, typer.Option("--ledger-lost", help="Put an older ledger in place, to be read only.")
    ] = False,
) -> None:
    """Put a backup in the place of the confidential zone, which is kept beside it. Refused where budget could be spent twice."""
    city, lake = _open()
    try:
        done = recovery.restore(lake, city, file, ledger_lost)
    except BackupError as error:
        fail(str(error))
    out.print(f"restored the backup made at {done['made']}: ledger of {done['ledger_entries']} entries", highlight=False)  # fmt: skip
    if done["former"]:
        out.print(f"what lay there before is kept in {done['former']}: erase it when all is well", highlight=False)
    out.print(
        "run every arrival day since that time again: who withdrew since is in the backup until a run erases them anew"
    )
    for problem in done["behind"]:
        out.print(f"nothing can be measured: {problem}", style="red", highlight=False)


@audit_app.command("show")
def show(
    event: Annotated[str | None, typer.Option("--event", help="Only events of this name, such as erasure.")] = None,
    last: Annotated[int, typer.Option("--last", min=1, help="Only the newest ones.")] = 50,
    as_json: Json = False,
) -> None:
    """Pulls, decisions, measurements, publications, erasures, uses of keys: counts and hashes only."""
    _, lake = _open()
    rows = [e for e in audit.entries(lake) if event in (None, e.get("event"))][-last:]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    table = Table("entry", "at", "event")
    table.add_column("about", overflow="fold")
    for row in rows:
        about = ", ".join(f"{k} {json.dumps(v)}" for k, v in row.get("about", {}).items())
        table.add_row(str(row.get("seq", "?")), row.get("at", "?"), row.get("event", "?"), about)
    out.print(table)


@audit_app.command("verify")
def verify() -> None:
    """Check that no entry was changed, left out or cut off."""
    _, lake = _open()
    open_zone(lake)
    if problems := audit.verify(lake):
        fail("\n".join(problems))
    out.print("the audit log verifies")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(backup)
    app.command()(restore)
    app.add_typer(audit_app, name="audit")
    app.add_typer(keys_app, name="keys")
