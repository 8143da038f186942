"""How a command fails at night: by exit code, with what to do, without a traceback that might hold a value."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner, Result

from assets.contract.city import City
from assets.lake.lake import Lake
from assets.lake.progress import finished_days
from pipelines.cli import app
from pipelines.runner import _Steps

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def call(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIGITALSTADT_DATA", str(lake.root))
    monkeypatch.setenv("DIGITALSTADT_KEYS", str(tmp_path / "keys"))
    lake.root.mkdir(exist_ok=True)

    def run(*arguments: object, read: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], input=read)

    return run


def commands(command: Any, name: str = "digitalstadt") -> Iterator[tuple[str, Any]]:
    yield name, command
    for sub in getattr(command, "commands", {}).values():
        yield from commands(sub, f"{name} {sub.name}")


def test_every_command_and_every_word_of_it_says_what_it_is():
    found = dict(commands(typer.main.get_command(app)))
    assert len(found) > 25 and all(c.help for c in found.values()), "each command has a help"
    silent = [f"{name} {p.name}" for name, c in found.items() for p in c.params if not p.help]
    assert silent == []
    unshaped = [f"{name} {p.name}" for name, c in found.items() for p in c.params if "%" in str(p.metavar)]
    assert unshaped == []


def test_the_first_help_names_the_variables_and_the_exit_codes(call):
    said = call("--help").output
    for word in ("DIGITALSTADT_CITY", "DIGITALSTADT_DATA", "DIGITALSTADT_KEYS", "DAGSTER_HOME", "Exit code 0"):
        assert word in said


@pytest.mark.parametrize("redirected", [">&-", ">/dev/null"])
def test_a_closed_output_or_a_locale_without_its_signs_is_no_failure(redirected: str):
    """A service manager may close it; ε and the borders of tables are no part of ASCII or ISO-8859-1."""
    command = f'"{sys.executable}" -m pipelines.cli ledger --help {redirected}'
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, shell=True, cwd=ROOT, env=environment, stderr=subprocess.PIPE, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "alert test",
        "audit verify",
        "patient report --clinic klinik-nord --id q",
        "backup b",
        "restore README.md",
    ],
)
def test_every_command_says_what_to_do_about_a_key_that_others_can_read(call, tmp_path: Path, command: str):
    (tmp_path / "keys" / "encryption.key").chmod(0o644)
    done = call(*command.split())
    assert done.exit_code == 1 and "Traceback" not in done.output
    said = " ".join(done.stderr.split())  # where a line ends depends on the length of the folder's name
    assert "KeyFileError" in said and "chmod 600" in said and "docs/runbook.md#keyfileerror" in said


def test_what_nobody_foresaw_shows_class_and_place_but_no_value(call, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ValueError("CANARY of a person")

    monkeypatch.setattr("pipelines.operation.state", broken)
    done = call("status")
    assert done.exit_code == 1 and "CANARY" not in done.output and "Traceback" not in done.output
    assert "ValueError: its message is withheld" in done.stderr and "test_commands.py:" in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_brackets_in_a_message_are_shown_as_they_are(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIGITALSTADT_CITY", str(tmp_path / "[/city]" / "file.yaml"))
    done = call("plan")
    assert done.exit_code == 1 and "[/city]" in done.stderr.replace("\n", "")
    with io.StringIO() as out, Progress(console=Console(file=out)) as progress:
        _Steps(progress).handle(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "a [/b] c"}))
        assert "a [/b] c" in out.getvalue()


def test_a_backup_that_cannot_be_written_leaves_nothing_and_names_the_file(call, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "folder", Path("/proc/nowhere/b")):
        done = call("backup", target)
        assert done.exit_code == 1 and f"{target}: it cannot be written (" in done.stderr.replace("\n", "")
    assert not list(tmp_path.glob(".*")) and not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    "options",
    [("--day", "2025-01-02", "--from", "2025-01-01", "--to", "2025-01-03"), ("--demo", "--day", "2025-01-02"),
     ("--from", "2025-01-01"), ("--to", "2025-01-03")],
)  # fmt: skip
def test_days_that_contradict_each_other_are_not_run(call, lake: Lake, options: tuple[str, ...]):
    done = call("run", *options)
    assert done.exit_code == 2 and "name --day, or --from with --to, or --demo" in done.output
    assert finished_days(lake.root) == set()


def test_a_message_stays_on_one_line_where_a_log_takes_it(call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DIGITALSTADT_CITY", str(tmp_path / ("long" * 40)))
    for command in (("plan",), ("publish",), ("ledger", "show"), ("ledger", "verify")):
        done = call(*command)
        assert done.exit_code == 1 and "long" * 40 in done.stderr, command


def test_wrong_use_is_no_failure(call, city: City):
    assert call("patient", "report", "--clinic", "nobody", "--id", "q").exit_code == 2
    before = call("ledger", "correct", "2020-06-01", "--yes")
    assert before.exit_code == 2 and str(city.start) in before.output
    assert call("ledger", "correct", "2025-01-09", read="n\n").exit_code == 1


def test_a_published_copy_that_is_missing_or_damaged_does_not_verify(call, tmp_path: Path):
    assert call("ledger", "verify").exit_code == 0
    assert call("ledger", "verify", "--published", tmp_path / "missing.json").exit_code == 2
    (tmp_path / "ledger.json").write_text("{}")
    damaged = call("ledger", "verify", "--published", tmp_path / "ledger.json")
    assert damaged.exit_code == 1 and "cannot be read" in " ".join(damaged.stderr.split())


def test_no_new_keys_are_made_over_data(call, lake: Lake, tmp_path: Path):
    assert call("keys").output.startswith("found keys")
    lake.write_record("zone", {})
    (tmp_path / "keys" / "encryption.key").unlink()
    done = call("keys")
    said = " ".join(done.stderr.split())
    assert done.exit_code == 1 and "lacks encryption.key" in said and "from their backup" in said
    assert not (tmp_path / "keys" / "encryption.key").exists()
    shutil.rmtree(lake.confidential)
    assert call("keys").output.startswith("created keys")


def test_what_cannot_wait_is_named_first(call, lake: Lake):
    (lake.root / "open_data").mkdir()
    (lake.root / "open_data" / "ledger.json").write_text("{")
    said = call("status").stdout
    assert 0 < said.index("\nnow: ") < said.index("\ntoday: ")
