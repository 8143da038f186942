"""The runbook has an entry for whatever tells a person to look there, and its commands exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from assets.guard import REMEDIES, kind_of
from assets.quality.asset import FAMILIES
from pipelines.alerts import KINDS
from pipelines.cli import app
from pipelines.definitions import JOB, defs

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
HEADINGS = set(re.findall(r"^### (\S+)$", TEXT, flags=re.MULTILINE))


def sources(folder: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py"))


def test_every_alert_and_every_kind_of_failure_has_an_entry():
    assert set(KINDS) | set(REMEDIES) <= HEADINGS


@pytest.mark.parametrize(
    "ask",
    [
        lambda: np.zeros(1 << 60, dtype=np.int8),
        lambda: pa.allocate_buffer(1 << 60),
        lambda: duckdb.connect(config={"memory_limit": "10MB", "temp_directory": ""}).execute(
            "CREATE TABLE t AS SELECT repeat('x', 1000) || range FROM range(1000000)"
        ),
    ],
    ids=["NumPy", "Arrow", "DuckDB"],
)
def test_too_little_memory_is_told_as_that_by_whoever_notices(ask: Callable[[], object]):
    with pytest.raises(Exception) as raised:
        ask()
    assert kind_of(raised.value) == "MemoryError"


def test_every_check_has_an_entry():
    checks = {key.name for key in defs.resolve_job_def(JOB).asset_layer.asset_graph.asset_check_keys}
    assert checks - set(FAMILIES) <= HEADINGS and "validated_records" in HEADINGS
    assert all(f"`{family}`" in TEXT for family in FAMILIES)


def test_every_rule_that_refuses_an_export_has_a_row():
    rules = set(re.findall(r'RejectedExport\(\s*f?"([^"{]+)', sources("assets/intake")))
    assert len(rules) >= 10
    assert {rule for rule in rules if f"| `{rule}" not in TEXT} == set()


def test_every_exit_message_has_a_row():
    messages = re.findall(
        r'(?:fail|BadParameter)\(\s*f?"([^"]+)"', (ROOT / "pipelines" / "cli.py").read_text(encoding="utf-8")
    )
    assert messages
    for message in messages:
        tail = re.split(r"\{[^}]*\}|\\n", message)[-1].strip(" ,") or message
        assert tail.split("`")[0].strip(" :") in TEXT, message


def test_messages_of_the_other_commands_have_a_row():
    said = sources("pipelines") + sources("assets")
    for message in (
        "run `digitalstadt run` first", "nothing was decided yet", "no run ended on that day",
        "it is no backup, is damaged, or was made under another encryption key", "it cannot be written (",
        "its message is withheld, it might hold a value", "cannot be read; put back the published copy of it",
        "restored, its budget could be spent twice", "is not measured yet: what clinics deliver up to",
        "the list `clinics` has to be written with one item a line",
        "does not follow from the one before it: the log was changed", "its end is missing", "the log was exchanged",
    ):  # fmt: skip
        assert message in said and message in TEXT, message


def test_links_to_the_runbook_lead_to_headings():
    for name in re.findall(r"docs/runbook\.md#([\w-]+)", sources("assets") + sources("pipelines")):
        assert name in {heading.lower() for heading in HEADINGS}, name


@pytest.mark.parametrize("command", sorted(set(re.findall(r"digitalstadt ([a-z-]+(?: [a-z]+)?)", TEXT))))
def test_every_command_of_the_runbook_exists(command: str):
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0, f"digitalstadt {command}: no such command"


def test_help_says_how_keys_are_made():
    """A missing key file sends a newcomer to `digitalstadt keys`."""
    assert "Create the key files" in CliRunner().invoke(app, ["keys", "--help"]).output
