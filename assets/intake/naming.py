"""Which lines of raw files name a patient, a case or a consent, and what is left of them without it.

A line names a patient by a FHIR resource's id or its references, or in a CSV row by the columns of patient and case; one
that cannot be read, by any field that holds the id. A Bundle loses the entries that name the patient and keeps the
others. A file that cannot be taken apart goes as a whole. Not here: rewriting files (`landing`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from assets.intake.archives import allowed_bytes
from assets.intake.bundles import MOST_NESTED, NotTakenApart, put_together, take_apart, without_others
from assets.intake.connector import Export, may_be_read
from assets.intake.delimited import BLANKS, header_of
from assets.intake.fhir_files import MAX_BUNDLE_BYTES, is_document
from assets.intake.findings import RejectedExport
from assets.intake.lines import MAX_LINE_BYTES, read_text
from assets.intake.needles import Sieve, line_bounds
from assets.intake.text import detect_encoding
from assets.lake.engine import connect, load

BATCH_BYTES: Final = 32 * 2**20
PATIENT_COLUMNS: Final = ("patient_id", "patientennummer")
CASE_COLUMNS: Final = ("case_id", "kh-internes-kennzeichen")


# A reference names a patient as `Patient/<id>`, as an address that ends so, as `urn:uuid:<id>` or bare; a Consent may name
# its patient by a number of the clinic only, and is then known by its own id. A Bundle names what it holds or deletes by
# address as well. What names no patient at all, which FHIR forbids, is its case's; a child's contact that lies within its
# mother's names the child.
_RESOURCES: Final = " || ".join(
    f"json_extract(line, '${level * '.entry[*].resource'}')" for level in range(1, MOST_NESTED + 2)
)
_NDJSON: Final = rf"""
WITH read AS (
  SELECT n, line, json_valid(line) AS valid,
    CASE WHEN json_valid(line) THEN json_extract_string(line, '$.resourceType') IS NOT DISTINCT FROM 'Bundle' ELSE false END
      AS bundle,
    [replace(r, '\/', '/') FOR r IN regexp_extract_all(line, '"reference"\s*:\s*"((?:[^"\\]|\\.)*)"', 1)] AS refs,
    [replace(r, '\/', '/') FOR r IN regexp_extract_all(line, '"(?:url|fullUrl)"\s*:\s*"((?:[^"\\]|\\.)*)"', 1)] AS urls
  FROM lines SEMI JOIN (FROM files WHERE kind = 'ndjson') USING (file)),
resources AS (
  SELECT n, unnest(CASE WHEN bundle THEN {_RESOURCES} WHEN valid THEN [CAST(line AS JSON)] END) AS r FROM read),
named AS (
  SELECT n, 'patient' AS kind, unnest(CASE WHEN valid THEN list_concat(
      [CASE WHEN json_extract_string(line, '$.resourceType') = 'Patient' THEN json_extract_string(line, '$.id') END],
      [regexp_extract(r, '(?:^|Patient/|urn:uuid:)([^/:]+)(?:/_history/[^/]*)?$', 1)
       FOR r IN list_concat(refs, [json_extract_string(line, '$.subject.reference'), json_extract_string(line, '$.patient.reference')])])
    ELSE [regexp_extract(replace(t, '\/', '/'), '([^/:]*)$', 1)
      FOR t IN regexp_extract_all(line, '"((?:[^"\\]|\\.)*)', 1)] END) AS id
  FROM read
  UNION ALL
  SELECT n, CASE json_extract_string(r, '$.resourceType') WHEN 'Patient' THEN 'patient' WHEN 'Encounter' THEN 'case' WHEN 'Consent' THEN 'consent' END,
    json_extract_string(r, '$.id')
  FROM resources
  UNION ALL
  SELECT n, 'case', regexp_extract(replace(unnest([json_extract_string(r, '$.encounter.reference'), json_extract_string(r, '$.partOf.reference')]),
    '\/', '/'), '(?:^|Encounter/|urn:uuid:)([^/:]+)(?:/_history/[^/]*)?$', 1)
  FROM resources WHERE json_extract(r, '$.subject') IS NULL AND json_extract(r, '$.patient') IS NULL
  UNION ALL
  SELECT n, CASE WHEN u LIKE '%Patient/%' THEN 'patient' WHEN u LIKE '%Encounter/%' THEN 'case' ELSE 'consent' END,
    regexp_extract(u, '(?:Patient|Encounter|Consent)/([^/:]+)(?:/_history/[^/]*)?$', 1)
  FROM (SELECT n, unnest(urls) AS u FROM read WHERE bundle))
SELECT n, kind, id FROM named"""

_CSV: Final = f"""
WITH read AS (
  SELECT n, width, patient, chart, [trim(f, '"' || '{BLANKS}') FOR f IN string_split(line, ';')] AS fields
  FROM lines JOIN (FROM files WHERE kind = 'csv') USING (file)),
named AS (
  SELECT n, unnest(CASE WHEN len(fields) = width AND (patient > 0 OR chart > 0)
    THEN [{{'kind': 'patient', 'id': CASE WHEN patient > 0 THEN fields[greatest(patient, 1)] END}},
          {{'kind': 'case', 'id': CASE WHEN chart > 0 THEN fields[greatest(chart, 1)] END}}]
    ELSE list_concat([{{'kind': 'patient', 'id': f}} FOR f IN fields], [{{'kind': 'case', 'id': f}} FOR f IN fields]) END)
    AS field
  FROM read)
SELECT n, field.kind AS kind, field.id AS id FROM named"""


@dataclass(frozen=True)
class _Form:
    """How lines of a file are told apart; places count from 1, 0 where there is no such column."""

    kind: str
    encoding: str = "utf-8"
    width: int = 0
    patient: int = 0
    case: int = 0


def _form_of(path: Path) -> _Form:
    if not is_table(path):
        return _Form("ndjson")
    if path.name.lower().endswith(".gz"):
        return _Form("csv")
    encoding = detect_encoding(path, nul_below=True) or "latin-1"
    try:
        header = [n.lower() for n in header_of(path, encoding, ";")]
    except RejectedExport:
        return _Form("csv", encoding)
    patient, case = (
        next((header.index(n) + 1 for n in names if n in header), 0) for names in (PATIENT_COLUMNS, CASE_COLUMNS)
    )
    return _Form("csv", encoding, len(header), patient, case)


def is_table(path: Path) -> bool:
    """Whether a line of a file may end with a carriage return alone, as the reader of tables takes it."""
    return path.name.lower().removesuffix(".gz").endswith(".csv")


def batches(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Whole lines, some megabytes at a time; whether the last one is endless, of which only the beginning is there.

    A document is one line. `EOFError` where a file unpacks to more than any reader takes.
    """
    if is_document(path):
        text = read_text(path, MAX_BUNDLE_BYTES)
        if text is None:
            raise EOFError
        yield text.encode(), False
        return
    packed, left = path.name.lower().endswith(".gz"), allowed_bytes(path)
    # Room for a batch costs more than the small file that is read into it.
    most = BATCH_BYTES if packed else min(BATCH_BYTES, path.stat().st_size + 1)
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        while content := file.read(most):
            left -= len(content)
            if packed and left < 0:
                raise EOFError
            rest = file.readline(MAX_LINE_BYTES)
            endless = len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n")
            while endless and (more := file.readline(BATCH_BYTES)) and not more.endswith(b"\n"):
                pass
            yield content + rest + (b"\n" if endless else b""), endless


@dataclass(frozen=True)
class _Line:
    path: Path
    number: int
    """From 0."""
    content: bytes


def _named(
    con: duckdb.DuckDBPyConnection, text: Sequence[str], file: Sequence[int], about: Sequence[_Form], query: str
) -> pa.Table:
    """What `query` asks of `named` (n, kind, id): whom and what each of `text` names, by its place; `file`: the place of each
    one's form in `about`."""
    files = {"file": range(len(about)), "kind": [f.kind for f in about], "width": [f.width for f in about],
             "patient": [f.patient for f in about], "chart": [f.case for f in about]}  # fmt: skip
    load(
        con,
        lines=pa.table({"n": np.arange(len(text)), "file": pa.array(file), "line": pa.array(text, pa.string())}),
        files=pa.table({k: pa.array(v) for k, v in files.items()}),
    )
    found = [con.execute(f"WITH named AS ({of}) {query}").to_arrow_table() for of in (_NDJSON, _CSV)]
    con.execute("DROP TABLE lines; DROP TABLE files")
    return pa.concat_tables(found)


def _naming(
    con: duckdb.DuckDBPyConnection, text: Sequence[str], file: Sequence[int], about: Sequence[_Form]
) -> list[int]:
    """Places of those of `text` that name one of `ids`, ascending."""
    found = _named(con, text, file, about, "SELECT DISTINCT n FROM named SEMI JOIN ids USING (kind, id)")
    places: list[int] = np.sort(found.column("n").to_numpy()).tolist()
    return places


def _pieces(text: str) -> list[str]:
    """What of a line that names a patient may stay or go by itself: each entry of a Bundle, and last what is left without
    them; a patient's record that has links, and an empty rest. None where it goes as a whole."""
    if '"Bundle"' in text:
        try:
            rest, entries = take_apart(text)
        except NotTakenApart:
            return []
        return [*entries, json.dumps(rest)]
    return [text, ""] if '"Patient"' in text and '"link"' in text else []


def _left(con: duckdb.DuckDBPyConnection, lines: Sequence[str]) -> list[bytes]:
    """What is left of `lines` that each name one of `ids`: a Bundle without the entries that do, and of a patient's record that
    another one replaces, or that replaces it, all but which; nothing where that cannot be told from the rest.

    All lines are asked about at once: a question of its own for each would cost more than reading the file.
    """

    def naming(texts: Sequence[str]) -> set[int]:
        return set(_naming(con, texts, [0] * len(texts), [_Form("ndjson")])) if texts else set()

    pieces = [_pieces(text) for text in lines]
    every = [piece for of_line in pieces for piece in of_line]
    named = naming(every)
    alone = {n: left for n in sorted(named) if (left := without_others(every[n]))}
    still = naming([*alone.values()])
    kept = {n: left for place, (n, left) in enumerate(alone.items()) if place not in still}
    found, first = list[bytes](), 0
    for text, of_line in zip(lines, pieces, strict=True):
        places = range(first, first + len(of_line))
        gone = {n - first for n in places if n in named}
        instead = {n - first: kept[n] for n in places if n in kept}
        first += len(of_line)
        if not gone or len(of_line) - 1 in gone:
            found.append(b"")
            continue
        left = put_together(text, gone, instead) if '"Bundle"' in text else "".join(instead.values())
        found.append(left.encode() + b"\n" if left else b"")
    return found


def _hits(con: duckdb.DuckDBPyConnection, batch: Sequence[_Line]) -> list[tuple[Path, int, bytes]]:
    """Lines of `batch` that name one of `ids`: file, number from 0, what is left of the line."""
    paths = {line.path: place for place, line in enumerate({line.path: line for line in batch}.values())}
    about = [_form_of(path) for path in paths]
    file = [paths[line.path] for line in batch]
    text = [
        line.content.rstrip(b"\r\n").replace(b"\0", b"").decode(about[f].encoding, "replace")
        for f, line in zip(file, batch, strict=True)
    ]
    named = _naming(con, text, file, about)
    left = _left(con, [text[n] for n in named])
    return [(batch[n].path, batch[n].number, rest) for n, rest in zip(named, left, strict=True)]


def search(
    con: duckdb.DuckDBPyConnection, paths: Iterable[Path], ids: Sequence[str]
) -> tuple[dict[Path, dict[int, bytes]], list[Path]]:
    """Of each file, the lines to erase and what is left of them; and files that go as a whole.

    Lines that could name one of `ids` are looked at together, from many files at once. One that is longer than any
    that is read goes unseen: to take it apart would need all memory, and nothing was ever read from it.
    """
    hits: dict[Path, dict[int, bytes]] = defaultdict(dict)
    broken, batch, size = list[Path](), list[_Line](), 0
    sieve = Sieve(ids)

    def flush() -> None:
        nonlocal size
        for path, line, left in _hits(con, batch) if batch else ():
            hits[path][line] = left
        batch.clear()
        size = 0

    for path in paths:
        first = 0
        try:
            for content, endless in batches(path):
                # Blank lines by the million would each become an object, where the sieve holds nothing back.
                looked_at = [] if content.isspace() else sieve.lines(content, is_table(path))
                if looked_at and is_document(path):
                    take_apart(content.decode())
                    looked_at = [(0, content)]
                # To count the lines of what is small and holds nothing costs more than to search it.
                counted = endless or len(content) >= BATCH_BYTES
                count = len(line_bounds(content, is_table(path))) - 1 if counted else 0
                named = [(n, line) for n, line in looked_at if not (endless and n == count - 1)]
                hits[path] |= {first + count - 1: b""} if endless else {}
                batch += [_Line(path, first + number, line) for number, line in named]
                first += count
                size += sum(len(line) for _, line in named)
                if size >= BATCH_BYTES:
                    flush()
        except (OSError, EOFError, zlib.error, RejectedExport, NotTakenApart):
            broken += [path] if not is_document(path) or may_hold(path, set(ids)) else []
    flush()
    broken += [path for path, lines in hits.items() if is_document(path) and b"" in lines.values()]
    return {path: lines for path, lines in hits.items() if lines and path not in broken}, broken


def named_patients(export: Export) -> pa.Table:
    """(clinic, patient_id) of whom the raw lines of an export name, as their erasure would find them.

    Other strings too, where a line cannot be read. What cannot be unpacked names nobody.
    """
    found = [pa.table({"id": pa.array([], pa.string())})]
    for path in (p for p in export.files() if may_be_read(p.name)):
        with contextlib.suppress(OSError, EOFError, zlib.error, RejectedExport), connect() as con:
            form = _form_of(path)
            for content, _ in batches(path):
                text = content.replace(b"\0", b"").replace(b"\r", b"\n").decode(form.encoding, "replace").split("\n")
                query = "SELECT DISTINCT id FROM named WHERE kind = 'patient' AND id <> ''"
                found.append(_named(con, text, [0] * len(text), [form], query))
    ids = pa.concat_tables(found).column("id").unique()
    return pa.table({"clinic": pa.repeat(export.clinic.key, len(ids)), "patient_id": ids})


def may_hold(path: Path, ids: set[str]) -> bool:
    """Whether a file of unknown form could hold one of `ids`: true for everything that is not plain text."""
    if detect_encoding(path, ("utf-8-sig",)) is None:
        return True
    text = path.read_text("utf-8-sig")
    odd = (i for i in ids if not re.fullmatch(r"[\w.-]+", i))
    words = set(re.findall(r"[\w.-]+", text))
    return not ids.isdisjoint(words | {w.strip(".-") for w in words}) or any(i in text for i in odd)
