"""What every portal needs of the releases: which there are, and which media type a file has.

Here: reading `open_data`. Not here: a portal's own interface (`ckan`, `bucket`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assets.publication.bundle import FILES, versions
from assets.publication.catalogue import DATASETS, Dataset

MEDIA_TYPES: Final = {
    ".parquet": "application/vnd.apache.parquet",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".jsonld": "application/ld+json",
    ".ttl": "text/turtle; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".yaml": "application/yaml",
    ".cff": "application/yaml",
    ".sha256": "text/plain; charset=utf-8",
    ".duckdb": "application/vnd.duckdb",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".wasm": "application/wasm",
    ".txt": "text/plain; charset=utf-8",
}
"""File suffix → media type that a server should send."""


@dataclass(frozen=True)
class Release:
    """A dataset's version in its folder."""

    about: Dataset
    version: str
    folder: Path


def releases(open_data: Path) -> list[Release]:
    """The newest complete release of every dataset below `open_data`."""
    found = []
    for about in DATASETS:
        newest = versions(open_data / about.key)[-1:]
        if newest and all((open_data / about.key / newest[0] / name).is_file() for name in FILES):
            found.append(Release(about, newest[0], open_data / about.key / newest[0]))
    return found
