"""A published file that is not what was published is named, whatever happened to it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from assets.publication.checksums import FILE, altered, checksums


@pytest.fixture
def open_data(tmp_path: Path) -> Path:
    for name in ("cases", "share"):
        folder = tmp_path / name / "2025-01-01"
        folder.mkdir(parents=True)
        files = {"data.csv": b"a,b\n", "README.md": b"synthetic\n"}
        for file, content in (files | {FILE: checksums(files)}).items():
            (folder / file).write_bytes(content)
        (tmp_path / name / "latest").symlink_to("2025-01-01")
    return tmp_path


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (lambda folder: (folder / "data.csv").write_bytes(b"a,c\n"), "data.csv is not"),
        (lambda folder: (folder / "README.md").unlink(), "README.md is not"),
        (lambda folder: (folder / FILE).unlink(), f"{FILE} cannot"),
        (shutil.rmtree, f"{FILE} cannot"),
        (lambda folder: (folder / FILE).write_bytes(b"\xff"), f"{FILE} cannot"),
    ],
)
def test_what_differs_from_its_checksum_is_named(open_data: Path, damage: Callable[[Path], object], file: str):
    assert list(altered(open_data)) == []
    damage(open_data / "share" / "2025-01-01")
    (found,) = altered(open_data)
    assert found.startswith(f"share 2025-01-01: {file}")
