"""What the onboarding guide says works: its examples pass the check, a clinic can be added."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assets.contract.city import DEFAULT_CITY, load_city
from pipelines.cli import app
from pipelines.clinic_cli import with_clinic

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "onboarding.md").read_text()


@pytest.fixture
def city_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "city.yaml"
    shutil.copy(DEFAULT_CITY, path)
    monkeypatch.setenv("DIGITALSTADT_CITY", str(path))
    return path


def test_the_examples_of_the_guide_pass_the_check(tmp_path: Path):
    practice, consent = re.findall(r"```csv\n(.*?)```", GUIDE, re.S)
    (tmp_path / "practice.csv").write_text(practice)
    (tmp_path / "consent.csv").write_text(consent.replace("2025-01-20", ""))
    result = CliRunner().invoke(app, ["check-export", "-", str(tmp_path), "--format", "practice"])
    assert result.exit_code == 0 and "2 can be used" in result.output, result.output


def test_adding_a_clinic_keeps_comments_and_everything_else(city_file: Path):
    before = city_file.read_text()
    result = CliRunner().invoke(
        app, ["clinic", "add", "klinik-west", "--name", 'Klinik "West": Darmstadt', "--format", "p21", "--consent-delivery", "full"]
    )  # fmt: skip
    assert result.exit_code == 0 and "check-export klinik-west" in result.output, result.output
    added = load_city(city_file).clinic("klinik-west")
    assert (added.format, added.consent_source, added.consent_delivery) == ("p21", "csv", "full")
    assert added.name == 'Klinik "West": Darmstadt'
    after = city_file.read_text().splitlines()
    assert [line for line in after if "klinik-west" not in line] == before.splitlines()
    assert list(city_file.parent.glob(".*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["klinik-nord", "--name", "x", "--format", "fhir"], "same clinic key"),
        (["Klinik/West", "--name", "x", "--format", "fhir"], "pattern"),
        (["west", "--name", "x", "--format", "xml"], "format"),
    ],
)
def test_a_wrong_entry_changes_nothing_and_says_why(city_file: Path, arguments: list[str], message: str):
    before = city_file.read_bytes()
    result = CliRunner().invoke(app, ["clinic", "add", *arguments])
    assert result.exit_code == 1 and message in result.output, result.output
    assert city_file.read_bytes() == before


def test_block_entries_comments_and_a_last_line_without_end_are_handled():
    block = "a: 1\nclinics:\n- key: x\n  name: y  # why\n\n# about areas\nareas: []\n"
    assert (
        with_clinic(block, "{key: z}")
        == "a: 1\nclinics:\n- key: x\n  name: y  # why\n- {key: z}\n\n# about areas\nareas: []\n"
    )
    assert with_clinic("clinics:\n  - {key: x}", "{key: z}") == "clinics:\n  - {key: x}\n  - {key: z}\n"
    with pytest.raises(ValueError, match="one item a line"):
        with_clinic("clinics: [{key: x}]\n", "{key: z}")
