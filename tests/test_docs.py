"""What the documents name exists: commands with their options, make targets, variables, files and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from assets.contract.city import DEFAULT_CITY, City
from pipelines.cli import app

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "deploy/README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
ALL = "\n".join(TEXTS.values())
COMMANDS = sorted(set(re.findall(r"(?<![\w-])digitalstadt (?!=)([a-z-]+[^`|\n]*)", ALL)))
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("assets", "pipelines", "deploy") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".service")
)  # fmt: skip


def _leaf(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `words` call, and what is left for it."""
    command: Any = typer.main.get_command(app)
    while getattr(command, "commands", None) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_is_named_can_be_given(line: str):
    command, words = _leaf(shlex.split(line, comments=True))
    context = command.context_class(command)
    _, left, _ = command.make_parser(context).parse_args(words)  # raises for an option that it does not have
    assert left == [], f"digitalstadt {line}: no such command or argument: {left}"


def test_the_commands_of_the_documents_are_found():
    assert len(COMMANDS) > 40 and 'clinic add klinik-west --name "Klinik West" --format fhir' in COMMANDS
    with pytest.raises(Exception, match="--nothing"):
        test_a_command_that_is_named_can_be_given("run --nothing")
    with pytest.raises(AssertionError, match="no such command"):
        test_a_command_that_is_named_can_be_given("nothing --day")


def test_every_make_target_that_is_named_exists():
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)(?: +#|`|$)", ALL, flags=re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert len(named) >= 8 and named - targets == set()


def test_every_variable_that_is_named_is_read():
    named = set(re.findall(r"DIGITALSTADT_[A-Z_]+", ALL)) - {"DIGITALSTADT_SMTP_PASSWORD"}  # an example's own
    assert len(named) > 8 and {name for name in named if name not in SOURCES} == set()


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def _links() -> Iterator[tuple[str, Path, str]]:
    for name, text in TEXTS.items():
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, anchor = link.partition("#")
            yield f"{name}: {link}", (ROOT / name).parent / path if path else ROOT / name, anchor


def test_links_lead_somewhere():
    links = list(_links())
    assert len(links) > 15
    assert [said for said, path, _ in links if not path.exists()] == []
    assert [said for said, path, anchor in links if anchor and anchor not in _anchors(path.read_text())] == []


def test_files_that_are_named_exist():
    named = set(re.findall(r"`((?:assets|pipelines|tests|deploy|docs)/[\w./-]+)`", ALL))
    assert len(named) > 20 and {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", TEXTS["docs/runbook.md"], flags=re.DOTALL))
def test_the_runbook_s_pieces_of_a_city_file_are_valid(block: str):
    shipped, piece = yaml.safe_load(DEFAULT_CITY.read_text()), yaml.safe_load(block)
    for terms in piece.get("former", ()):
        assert {n: shipped[n] for n in ("budget", "caps")} == {n: terms[n] for n in ("budget", "caps")}
        terms["plan"] = shipped["plan"]  # the page shortens it
    assert set(piece) <= {"operation", "former"} and City.model_validate(shipped | piece)
