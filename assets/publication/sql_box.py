"""The SQL box of the public page: DuckDB compiled for browsers, beside the page, asked over the published Parquet.

Here: which packages it is made of, how they are fetched and checked, how their files are put below `open_data/page`.
Not here: the page itself (`page`, `web/`). The page is whole without the box and offers it where its files lie.

The browser build of DuckDB would load its Parquet reader from the network, and this page asks nobody but its own
server: parquet-wasm decodes the published files to Arrow, which DuckDB takes as tables (`sql_tables` says which).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assets.contract.city import Text
from assets.lake.files import atomic_write, make_directory

MANIFEST: Final = "sql-box.js"
"""Script that tells the page where the box lies; the page without a box has one that says so."""
NO_BOX: Final = b"window.DIGITALSTADT_SQL=null;\n"
FILE_MODE: Final = 0o644


class SqlBoxError(RuntimeError):
    """The box cannot be built; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """An npm package at one version. `integrity`: base64 of the SHA-512 of its archive, as npm states it."""

    name: str
    version: str
    integrity: str
    licence: str


DUCKDB: Final = Package(
    "@duckdb/duckdb-wasm",
    "1.32.0",  # DuckDB 1.4.3; its own version of Arrow is 17
    "IewXTNYEjsZCPE9weUWgtjGxUlMRo7qhX0GF6tq/KjK8bnY+RAl4cyUdYUfcdzbyb4b9ZxPC+FOsCcxgaKFWMg==",
    "MIT",
)
ARROW: Final = Package(
    "apache-arrow",
    "17.0.0",
    "X0p7auzdnGuhYMVKYINdQssS4EcKec9TCXyez/qtJt32DrIMGbzqiaMiQ0X6fQlQpw8Fl0Qygcv4dfRAr5Gu9Q==",
    "Apache-2.0",
)
PARQUET: Final = Package(
    "parquet-wasm",
    "0.8.0",
    "AunZLpYYHPQCzDzeIKOO3e/p3Uqo8+DGyfEVofhlIIn/bk3EuOFJkDXlswSKDDSWOaZRv6bHrob/XynUDKmceg==",
    "MIT OR Apache-2.0",
)
PACKAGES: Final = (DUCKDB, ARROW, PARQUET)
FOLDER: Final = f"duckdb-{DUCKDB.version}-parquet-{PARQUET.version}"
"""A page that has another version of the box gets this one beside it."""
CLIENT: Final = "client.js"
WORKER: Final = "duckdb-browser-eh.worker.js"
ENGINE: Final = "duckdb-eh.wasm"
"""The build with WebAssembly exceptions, which every browser has since 2022."""
READER: Final = "parquet_wasm.js"
DECODER: Final = "parquet_wasm_bg.wasm"

EXAMPLES: Final[tuple[tuple[Text, str], ...]] = (
    (
        Text(de="Die letzten Wochen, mit Intervall", en="The last weeks, with their interval"),
        "SELECT iso_week, value_display AS cases, round(ci95_lower) AS at_least, round(ci95_upper) AS at_most, quality\n"
        "FROM cases_by_area\n"
        "WHERE care = 'inpatient' AND time_level = 'week' AND measure = 'count' AND area_key IS NULL\n"
        "ORDER BY period_start DESC LIMIT 8;",
    ),
    (
        Text(de="Zwei Gebiete: Unterschied oder Rauschen?", en="Two areas: a difference, or noise?"),
        "SELECT period_start, round(difference, 1) AS difference, round(ci95_lower, 1) AS ci95_lower,\n"
        "       round(ci95_upper, 1) AS ci95_upper, verdict\n"
        "FROM compare_areas('inpatient', 'period', 'rate_per_100000', '64283', '64297');",
    ),
    (
        Text(de="Welche Diagnosen führen ins Krankenhaus?", en="Which diagnoses bring people to hospital?"),
        "SELECT icd_chapter, icd_chapter_name_en, value_display AS cases, quality\n"
        "FROM cases_by_chapter\n"
        "WHERE care = 'inpatient' AND time_level = 'period' AND area_key IS NULL\n"
        "  AND period_start = (SELECT max(period_start) FROM cases_by_chapter WHERE time_level = 'period')\n"
        "ORDER BY value DESC;",
    ),
    (
        Text(de="Was gibt es hier?", en="What is here?"),
        "SELECT table_name, comment FROM duckdb_tables()\n"
        "UNION ALL SELECT view_name, comment FROM duckdb_views() WHERE NOT internal;",
    ),
)
"""Questions that the box offers: title and SQL."""


def check(package: Package, archive: bytes) -> None:
    """Raise `SqlBoxError` unless the archive is the pinned one, byte for byte."""
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != package.integrity:
        raise SqlBoxError(
            f"{package.name} {package.version}: the archive is not the one that was pinned (SHA-512 differs); "
            "nothing was installed"
        )


def fetch(package: Package) -> bytes:
    """The package's archive from npm, checked."""
    npm = shutil.which("npm")
    if npm is None:
        raise SqlBoxError("npm is not on the PATH: install Node.js with npm; the page is whole without the SQL box")
    with tempfile.TemporaryDirectory() as folder:
        spec = f"{package.name}@{package.version}"
        command = [npm, "pack", spec, "--silent", "--ignore-scripts", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (constants only)
        found = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            raise SqlBoxError(f"npm pack {spec} failed with code {done.returncode}: is a registry reachable?")
        archive = found[0].read_bytes()
    check(package, archive)
    return archive


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = tar.extractfile(f"package/{name}")
        assert member is not None
        return member.read()


def box_files(duckdb: bytes, arrow: bytes, parquet: bytes) -> dict[str, bytes]:
    """Files of the box from its archives: client and Arrow as one plain script, worker, engine, Parquet decoder."""
    client = (
        b"(()=>{const arrow=(()=>{const module={exports:{}};let exports=module.exports;\n"
        + _member(arrow, "Arrow.es2015.min.js")
        + b"\nreturn module.exports})();\n"
        b"window.duckdb=(()=>{const module={exports:{}};let exports=module.exports;const require=()=>arrow;\n"
        + _member(duckdb, "dist/duckdb-browser.cjs")
        + b"\nreturn module.exports})();})();\n"
    )
    notice = "".join(f"{p.name} {p.version} ({p.licence}), sha512-{p.integrity}\n" for p in PACKAGES)
    notice += "\n" + _member(arrow, "NOTICE.txt").decode()
    return {
        CLIENT: client,
        WORKER: _member(duckdb, f"dist/{WORKER}"),
        ENGINE: _member(duckdb, f"dist/{ENGINE}"),
        READER: _member(parquet, f"esm/{READER}"),
        DECODER: _member(parquet, f"esm/{DECODER}"),
        "NOTICE.txt": notice.encode(),
    }


def manifest(files: dict[str, bytes]) -> bytes:
    """The script that tells the page where the box lies, how large it is and what its client must hash to."""
    about = {
        "folder": f"page/{FOLDER}",
        "client": CLIENT,
        "worker": WORKER,
        "engine": ENGINE,
        "reader": READER,
        "decoder": DECODER,
        "integrity": "sha384-" + base64.b64encode(hashlib.sha384(files[CLIENT]).digest()).decode(),
        "bytes": sum(len(data) for data in files.values()),
    }
    return f"window.DIGITALSTADT_SQL={json.dumps(about)};\n".encode()


def install(open_data: Path, files: dict[str, bytes]) -> None:
    """Put the files beside the page, the manifest last: a reader finds no box or a whole one."""
    folder = make_directory(open_data / "page" / FOLDER, 0o755)
    for name, data in files.items():
        atomic_write(folder / name, data, mode=FILE_MODE)
    atomic_write(open_data / "page" / MANIFEST, manifest(files), mode=FILE_MODE)


def installed(open_data: Path) -> bool:
    """Whether this version of the box lies beside the page."""
    path = open_data / "page" / MANIFEST
    return path.is_file() and f'"page/{FOLDER}"'.encode() in path.read_bytes()
