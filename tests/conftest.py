"""Shared fixtures: a small city, a lake with keys, and writers of tiny exports. Everything is synthetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from assets.contract.city import City, load_city
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import measure as measuring

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def city() -> City:
    return load_city()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    create_keys(tmp_path / "keys")
    return Lake(tmp_path / "data", Keyring.load(tmp_path / "keys"))


@pytest.fixture
def shared() -> Path:
    if not SHARED.exists():
        pytest.skip("real input not at hand: ../shared/data is missing")
    return SHARED


@pytest.fixture
def deliver(lake: Lake) -> Callable[..., Path]:
    """Write an export: `deliver(clinic, day, {"Patient.ndjson": [resources] or bytes or text})`."""

    def write(clinic: str, day: date, files: dict[str, Any], complete: bool = True, suffix: str = "") -> Path:
        folder = lake.inbox / clinic / f"{day.isoformat()}{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if isinstance(content, list):
                content = "".join(json.dumps(r) + "\n" for r in content)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if complete:
            (folder / "_COMPLETE").touch()
        return folder

    return write


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed values are the exact counts: for comparing two runs, never for a release."""

    def exact(values: list[int], variance: Fraction) -> list[int]:
        return list(values)

    monkeypatch.setattr(measuring, "draw", exact)
