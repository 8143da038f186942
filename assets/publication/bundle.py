"""Immutable release bundles: `<dataset>/<version>/` with data, twins and documents, and the `latest` link.

Here: deterministic bytes, versions, atomic writes below `open_data`. Not here: what a number means
(`catalogue`), how it is computed (`indicators`), what documents say (`documents` and its neighbours), portals.
A reader sees a whole release or none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from assets.contract.city import City
from assets.lake.files import atomic_write, fsync_directory, make_directory
from assets.publication import checksums
from assets.publication.catalogue import SCHEMA, Dataset, dataset
from assets.publication.changes import changelog
from assets.publication.codebook import codebook
from assets.publication.dcat import release_turtle
from assets.publication.documents import datapackage, readme, schema_json
from assets.publication.guarantee import Guarantee
from assets.publication.release_card import citation, release_card

FILE_MODE: Final = 0o644
FOLDER_MODE: Final = 0o755
BUILDING: Final = ".building-"
FILES: Final = (
    "data.parquet",
    "data.csv",
    "datapackage.json",
    "codebook.de.md",
    "codebook.en.md",
    "README.md",
    "dcat-ap-de.ttl",
    "release-card.yaml",
    "CITATION.cff",
    "CHANGELOG.md",
    checksums.FILE,
)
"""Everything a release holds."""
_VERSION: Final = re.compile(r"^(\d{4}-\d{2}-\d{2})(?:\.(\d+))?$")
_FORMULA: Final = r"^([=+\-@\t\r])"
"""A spreadsheet takes text that begins so for a formula."""


@dataclass(frozen=True)
class Published:
    """What became of a dataset: its newest version, and whether this call wrote it."""

    dataset: str
    version: str
    rows: int
    changed: bool

    @property
    def data_as_of(self) -> date:
        return date.fromisoformat(self.version[:10])


def versions(folder: Path) -> list[str]:
    """Versions of a dataset's folder, oldest first."""
    names = [p.name for p in folder.iterdir() if p.is_dir() and not p.is_symlink()] if folder.is_dir() else []
    found = [(m.group(1), int(m.group(2) or 0), m.group(0)) for m in map(_VERSION.match, names) if m]
    return [name for _, _, name in sorted(found)]


def stamp(frame: pd.DataFrame, version: str) -> pd.DataFrame:
    """The frame with `data_as_of` and `release_version` of a release."""
    return frame.assign(data_as_of=pd.Timestamp(version[:10]), release_version=version)


def stamped(frames: dict[str, pd.DataFrame], published: Sequence[Published]) -> dict[str, pd.DataFrame]:
    """Every frame as it was released, for whatever is made from the releases (database, plots)."""
    return {p.dataset: stamp(frames[p.dataset], p.version) for p in published}


def to_arrow(frame: pd.DataFrame) -> pa.Table:
    """The published schema; refuses a frame that does not fit it."""
    return pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False).replace_schema_metadata(None)


def parquet_bytes(table: pa.Table, about: Dataset, city: City, version: str) -> bytes:
    """Deterministic Parquet; title, licence, version and schema in the file-level key-values."""
    metadata = {
        "title": about.title.en,
        "title_de": about.title.de,
        "description": about.description.en,
        "licence": city.publication.licence,
        "publisher": city.publication.publisher,
        "version": version,
        "synthetic": str(city.synthetic).lower(),
        "schema": json.dumps(schema_json(about), ensure_ascii=False),
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd", compression_level=9)
    return buffer.getvalue()


def csv_bytes(table: pa.Table) -> bytes:
    """UTF-8 twin; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    columns = [
        pc.replace_substring_regex(table.column(f.name), _FORMULA, r"'\1")
        if pa.types.is_string(f.type)
        else table.column(f.name)
        for f in table.schema
    ]
    buffer = io.BytesIO()
    pv.write_csv(pa.table(columns, names=table.column_names), buffer)
    return buffer.getvalue()


def _next_version(existing: list[str], data_as_of: date) -> str:
    """`<day>` or `<day>.N`; never older than the newest, which already held all measurements up to its own day."""
    day = max([data_as_of.isoformat(), *(v[:10] for v in existing[-1:])])
    taken = [int(v[11:] or 0) for v in existing if v[:10] == day]
    return f"{day}.{max(taken) + 1}" if taken else day


def _same(folder: Path, version: str, frame: pd.DataFrame, about: Dataset, city: City) -> bool:
    """Whether this content, under the stamp of `version`, is that release: values, schema, title and licence.

    Compared as tables, so that a newer Parquet writer alone makes no new version.
    """
    stored = folder / version / "data.parquet"
    if not stored.is_file():
        return False
    fresh = parquet_bytes(to_arrow(stamp(frame, version)), about, city, version)
    return bool(pq.read_table(io.BytesIO(fresh)).equals(pq.read_table(stored), check_metadata=True))


def _nothing(_step: str) -> None:
    """Called at every step; a test kills the process here."""


def release_files(
    folder: Path, version: str, frame: pd.DataFrame, about: Dataset, city: City, promise: Guarantee
) -> dict[str, bytes]:
    """Every file of a release; `folder` holds the earlier versions, for the change log."""
    released = stamp(frame, version)
    table = to_arrow(released)
    files = {"data.parquet": parquet_bytes(table, about, city, version), "data.csv": csv_bytes(table)}
    digests = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    existing = versions(folder)
    earlier, first = existing[-1:], [*existing, version][0]
    previous = pq.read_table(folder / earlier[0] / "data.parquet").to_pandas(date_as_object=False) if earlier else None
    log = folder / earlier[0] / "CHANGELOG.md" if earlier else None
    files |= {
        "datapackage.json": datapackage(about, city, version, digests),
        "codebook.de.md": codebook(about, city, "de"),
        "codebook.en.md": codebook(about, city, "en"),
        "README.md": readme(about, city, version, version[:10], released, promise),
        "dcat-ap-de.ttl": release_turtle(about, city, version, first, released, digests),
        "release-card.yaml": release_card(about, city, version, promise),
        "CITATION.cff": citation(about, city, version),
        "CHANGELOG.md": changelog(
            about,
            version,
            log.read_text() if log and log.is_file() else "",
            previous,
            table.to_pandas(date_as_object=False),
        ),
    }
    return {**files, checksums.FILE: checksums.checksums(files)}


def _write(folder: Path, version: str, files: dict[str, bytes], step: Callable[[str], None]) -> None:
    """Build the release beside its place and move it there in one rename."""
    building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=folder))
    try:
        step("building")
        building.chmod(FOLDER_MODE)
        for name, data in files.items():
            atomic_write(building / name, data, mode=FILE_MODE)
            step(name)
        fsync_directory(building)
        step("complete")
        os.rename(building, folder / version)
        step("renamed")
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    fsync_directory(folder)


def point_latest(folder: Path, version: str, step: Callable[[str], None] = _nothing) -> None:
    """Let `latest` point to `version`: a relative link, replaced in one step."""
    link = folder / "latest"
    if link.is_symlink() and os.readlink(link) == version:
        return
    beside = folder / f".latest-{os.getpid()}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(version, target_is_directory=True)
    step("link beside")
    if link.is_dir() and not link.is_symlink():  # whoever copied the data root followed links: it holds a version again
        shutil.rmtree(link)
    os.replace(beside, link)
    step("latest")
    fsync_directory(folder)


def publish(
    frames: dict[str, pd.DataFrame],
    city: City,
    open_data: Path,
    data_as_of: date,
    promise: Guarantee,
    step: Callable[[str], None] = _nothing,
) -> list[Published]:
    """Release every frame whose content differs from its newest version; the others are left as they are.

    Repeating it after a crash completes what was left: leftovers are removed and `latest` is set again. One
    publisher at a time; a second one that writes the same version fails in its rename and changes nothing. `step`
    is called with a name after each step, for tests.
    """
    done = []
    for key, frame in frames.items():
        about = dataset(key)
        folder = make_directory(open_data / key, FOLDER_MODE)
        for leftover in folder.glob(f"{BUILDING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for half in folder.glob(".latest-*"):
            half.unlink(missing_ok=True)
        step("clean")
        existing = versions(folder)
        changed = not (existing and _same(folder, existing[-1], frame, about, city))
        version = _next_version(existing, data_as_of) if changed else existing[-1]
        if changed:
            _write(folder, version, release_files(folder, version, frame, about, city, promise), step)
        point_latest(folder, version, step)
        done.append(Published(key, version, len(frame), changed))
    return done
