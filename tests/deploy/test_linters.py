"""The files of `deploy/` before the tools of their own field: hadolint, the Compose schema.

A tool is taken from the PATH or from `.venv-linters` (`make .venv-linters/bin/.installed`); where it is missing the
test is skipped and says so. The systemd units are checked in `test_processes`, the proxy in `test_proxy`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def tool(name: str) -> str:
    places = str(ROOT / ".venv-linters" / "bin")
    found = shutil.which(name) or shutil.which(name, path=places) or shutil.which(name, path="/usr/sbin")
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def said(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_containerfile(tmp_path: Path):
    hadolint = tool("hadolint")
    assert said(hadolint, DEPLOY / "Containerfile") == (0, "")
    (tmp_path / "Containerfile").write_text("FROM python\nRUN cd /tmp\n")
    assert said(hadolint, tmp_path / "Containerfile")[0] == 1, "it sees what is wrong"


def test_the_compose_file_fits_the_compose_specification(tmp_path: Path):
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    code, text = said(*check, DEPLOY / "compose.yaml")
    assert code == 0, text
    broken = (DEPLOY / "compose.yaml").read_text().replace("read_only: true", "read_only: [yes]")
    (tmp_path / "compose.yaml").write_text(broken)
    assert said(*check, tmp_path / "compose.yaml")[0] == 1, "it sees what is wrong"
