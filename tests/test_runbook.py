"""The runbook has an entry for whatever tells a person to look there."""

from __future__ import annotations

import ast
import errno
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy
from typer.testing import CliRunner

from assets.guard import REMEDIES, kind_of
from assets.intake.connectors.transfer import UNSAFE_NAME, refusal_of
from assets.quality.asset import FAMILIES
from pipelines.alerts import KINDS
from pipelines.cli import app
from pipelines.definitions import JOB, defs

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
PLAIN = " ".join(TEXT.lower().split())
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


def test_a_full_disk_below_dagsters_own_storage_is_told_as_that():
    """SQLAlchemy wraps what the database said; the limit of a file's size (EFBIG) is a kind of room, too."""
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as db, pytest.raises(sqlalchemy.exc.OperationalError) as raised:
        db.exec_driver_sql("PRAGMA max_page_count = 1")
        db.exec_driver_sql("CREATE TABLE t AS SELECT randomblob(10000)")
    assert kind_of(raised.value) == "DiskFull" == kind_of(OSError(errno.EFBIG, ""))


def test_every_check_has_an_entry():
    checks = {key.name for key in defs.resolve_job_def(JOB).asset_layer.asset_graph.asset_check_keys}
    assert checks - set(FAMILIES) <= HEADINGS and "validated_records" in HEADINGS
    assert all(f"`{family}`" in TEXT for family in FAMILIES)


def test_every_rule_that_refuses_an_export_has_a_row():
    rules = set(re.findall(r'RejectedExport\(\s*f?"([^"{]+)', sources("assets/intake")))
    assert len(rules) >= 10
    assert {rule for rule in rules if f"| `{rule}" not in TEXT} == set()


TOLD_AS = {
    "Later": "FetchProblem", "Transient": "FetchProblem",  # tried again, then told as what could not be fetched
    "PortalBusy": "PortalError",
    "Unanswered": "NotDelivered",
    "RejectedExport": "exports_readable",  # by rule: the table of refused exports
}  # fmt: skip
"""Kinds that nobody sees under their own name."""
NEVER_TOLD = {
    "MixedFiles": "the reader begins anew, knowing of them",
    "NotTakenApart": "a Bundle that cannot lose entries is erased whole",
    "Refused": "the ledger asks for what the store refused, and names the entry",
}


def _modules() -> list[ast.Module]:
    paths = [path for folder in ("assets", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def _kinds() -> set[str]:
    """Every exception that the project defines, by what it is derived from, but those of one module."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for module in _modules() for node in ast.walk(module) if isinstance(node, ast.ClassDef)
    }  # fmt: skip
    found: set[str] = set()
    while more := {n for n, of in bases.items() if n not in found and any(b in found or _raises(b) for b in of)}:
        found |= more
    return {name for name in found if not name.startswith("_")}


def _raises(name: str) -> bool:
    return name.endswith(("Error", "Exception", "Failure")) and name not in {"CityFileError"}


def test_every_kind_of_failure_that_the_project_has_is_told():
    kinds = _kinds()
    assert len(kinds) > 30 and set(TOLD_AS) | set(NEVER_TOLD) <= kinds
    assert {k for k in kinds - set(NEVER_TOLD) if TOLD_AS.get(k, k) not in HEADINGS} == set()


def _said(text: ast.expr) -> set[str]:
    """Of each form of a message the first piece that is always the same: what is wrong, before what to do about it."""
    if isinstance(text, ast.IfExp):
        return _said(text.body) | _said(text.orelse)
    if isinstance(text, ast.BinOp):
        return _said(text.left)
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    constant = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    pieces = [piece.strip(" ,.)'") for part in constant for piece in re.split(r"[`;:(\n]", part)]
    return {next((piece for piece in pieces if len(piece) > 8), "".join(pieces))}


def _messages(*callers: str) -> tuple[set[str], set[str]]:
    """What the calls of `callers` say, and what they hand on: an expression whose text is written elsewhere."""
    calls = [node for module in _modules() for node in ast.walk(module) if isinstance(node, ast.Call)]
    texts = [
        (c.args or [k.value for k in c.keywords])[0]
        for c in calls if ast.unparse(c.func).rpartition(".")[2] in callers and (c.args or c.keywords)
    ]  # fmt: skip
    said = set().union(*map(_said, texts)) - {""}
    return said, {ast.unparse(text) for text in texts if _said(text) == {""}}


def test_every_exit_message_has_a_row():
    messages, handed_on = _messages("fail", "BadParameter")
    assert len(messages) >= 10 and handed_on == {
        "str(error)", "str(error.args[0])", "str(error).replace(str(candidate), str(path))", "said", "'\\n'.join(problems)",
    }, "an exception's own words, or those of `verify`"  # fmt: skip
    assert {message for message in messages if message.lower() not in PLAIN} == set()


def test_every_reason_why_a_command_gave_up_has_an_entry():
    fetching, keeping = (
        ("FetchProblem", "Later", "Transient", "_Room"),
        ("BackupError", "RotationError", "CorrectionRefused"),
    )
    messages, handed_on = _messages(*fetching, *keeping, "PortalError", "PortalBusy", "BucketError", "SqlBoxError")
    assert len(messages) > 70 and handed_on == {"refusal", "type(error).__name__", "self.reason"}
    refusals = {text for node in ast.walk(ast.parse(inspect.getsource(refusal_of))) if isinstance(node, ast.Return) and node.value
                for text in _said(node.value)} - {""} | {UNSAFE_NAME}  # fmt: skip
    assert len(refusals) == 4
    assert {message for message in messages | refusals if message.lower() not in PLAIN} == set()


def test_links_to_the_runbook_lead_to_headings():
    for name in re.findall(r"docs/runbook\.md#([\w-]+)", sources("assets") + sources("pipelines")):
        assert name in {heading.lower() for heading in HEADINGS}, name


def test_help_says_how_keys_are_made():
    """A missing key file sends a newcomer to `digitalstadt keys`."""
    assert "Create the key files" in CliRunner().invoke(app, ["keys", "--help"]).output
