"""FHIR files to one flat table for each resource type: lines, Bundles, versions, deletions.

A line that is no usable resource becomes a row of `bad_lines`, never an exception. One class and its SQL, as all of it works
on the same tables of one connection. Not here: what is read of a type (`fhir_structures`), what it means for a case (`fhir`).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import date
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from assets.intake.bundles import MOST_NESTED
from assets.intake.connector import Export
from assets.intake.fhir_files import (
    BUNDLE,
    DELETED,
    MAX_BUNDLE_BYTES,
    MIXED,
    OTHER_TYPES,
    OUTCOME,
    TYPES,
    is_document,
    kind_of,
)
from assets.intake.fhir_structures import BUNDLE_STRUCTURE, ENTRY, OUTCOME_STRUCTURE, STRUCTURES, type_of
from assets.intake.findings import Findings, raise_all
from assets.intake.lines import MAX_LINE_BYTES, Lines, count_lines, read_text

MOST_FILES: Final = 256
"""DuckDB's reader keeps buffers for each file that it is given, however small: a hundred thousand took all memory."""


def allowed_id(column: str) -> str:
    """SQL: whether `column` may be an id. FHIR allows 64 characters and no underscore; real systems exceed it a little."""
    return f"(strlen({column}) BETWEEN 1 AND 256 AND regexp_full_match({column}, '[A-Za-z0-9._-]+'))"


# Versions in exports of changes of which a newer one came earlier, since the last whole export.
_OUTDATED: Final = """CREATE TEMP TABLE "{kind}_outdated" AS SELECT DISTINCT r.rowid AS place, r.file, r.source_line
FROM "{kind}_rows" r JOIN sources s ON s.file = r.file AND s.whole_since < s.arrival_day JOIN "{kind}_rows" o ON o.id = r.id
JOIN sources b ON b.file = o.file AND b.arrival_day >= s.whole_since AND b.arrival_day < s.arrival_day
WHERE o.updated_at > r.updated_at OR o.updated_at IS NOT DISTINCT FROM r.updated_at AND o.version > r.version {few}"""
PROVENANCE: Final = "clinic, arrival_day, export_id, source_file, source_line"
TOLD_ONLY: Final = (
    "rows_of_no_case",
    "reference_not_followed",
    "diagnosis_not_icd_10_gm",
    "version_outdated",
    "type_not_used",
)
"""Rules of lines that may be right: what is in them may count with another delivery."""

# A resource is known by its own id in whatever form it comes; the `urn:uuid:` under which a Bundle lists it is its id
# only where it has none. So what refers to that address inside the Bundle is made to name the id.
_ENTRIES: Final = f"""
INSERT INTO entries
WITH listed AS (
  SELECT parts.rowid AS place, file, bundle, source_line, e.resource AS resource, e.resource ->> '$.resourceType' AS kind,
    nullif(e.resource ->> '$.id', '') AS own, CASE WHEN starts_with(e.fullUrl, 'urn:uuid:') THEN e.fullUrl[10:] END AS uuid
  FROM parts JOIN sources USING (file)
  WHERE holds = '{MIXED}' AND e.resource IS NOT NULL AND e.request.method IS DISTINCT FROM 'DELETE'),
renamed AS (
  SELECT file, bundle, uuid, any_value(kind || '/' || own) AS name FROM listed WHERE uuid <> own GROUP BY ALL HAVING count(*) = 1),
pieces AS (
  SELECT place, file, bundle, unnest(string_split(resource, '"urn:uuid:')) AS piece,
    generate_subscripts(string_split(resource, '"urn:uuid:'), 1) AS nth
  FROM listed WHERE contains(resource, '"urn:uuid:')),
resolved AS (
  SELECT place, string_agg(CASE WHEN nth = 1 THEN piece WHEN name IS NULL THEN '"urn:uuid:' || piece
    ELSE '"' || name || substr(piece, strpos(piece, '"')) END, '' ORDER BY nth) AS resource
  FROM pieces p LEFT JOIN renamed r ON r.file = p.file AND r.bundle = p.bundle AND uuid = split_part(piece, '"', 1) GROUP BY place)
SELECT file, source_line, kind, coalesce(own, uuid), coalesce(r.resource, l.resource) FROM listed l LEFT JOIN resolved r USING (place)
ORDER BY l.place
"""
# What of a Bundle is read: what its entries delete, and resources of the types that count; laboratory values do not.
_IS_READ: Final = f"""(e.resource IS NULL OR e.request.method IS NOT DISTINCT FROM 'DELETE'
    OR (e.resource ->> '$.resourceType') IN {(*TYPES, BUNDLE)})"""
# What an entry `e` deletes, one version or all of it alike; empty where it is something else, as a search for what to delete.
_GONE: Final = r"""regexp_extract(CASE WHEN e.request.method = 'DELETE' AND NOT contains(e.request.url, '?') THEN e.request.url END,
    '([A-Za-z]+)/([^/]+?)(/_history/[^/]*)?/?$', ['kind', 'id', 'version'])"""


# Lines of files of any type. One of a type that FHIR knows and we do not use is no fault, but where the file is named after a
# type and holds nothing else.
_LINES: Final = f"""
CREATE TEMP TABLE mixed AS
SELECT DISTINCT file, type FROM listed JOIN sources USING (file) WHERE holds = '{MIXED}' AND type IN {(*TYPES, OUTCOME, BUNDLE)};
INSERT INTO bad_lines
WITH told AS (
  SELECT file, source_line, CASE WHEN type IS NULL THEN 'json_unreadable'
    WHEN holds = '{MIXED}' AND type IN {(*sorted(OTHER_TYPES),)} AND (NOT named OR file IN (SELECT file FROM mixed)) THEN 'type_not_used'
    ELSE 'wrong_resource_type' END AS rule
  FROM listed JOIN sources USING (file)
  WHERE type IS NULL OR (type <> '{BUNDLE}' AND (holds <> '{MIXED}' OR type NOT IN {(*TYPES, OUTCOME)})))
FROM told WHERE rule <> 'type_not_used'
UNION ALL SELECT file, min(source_line), rule FROM told WHERE rule = 'type_not_used' GROUP BY file, rule;
INSERT INTO parts SELECT file, source_line, source_line, unnest(entry) FROM listed WHERE type = '{BUNDLE}';
DROP TABLE listed"""


class MixedFiles(Exception):
    """`files` are named after a type and hold lines of others: read anew as such, each line goes to the reader of its own."""

    def __init__(self, files: set[Path]) -> None:
        super().__init__("files named after a type hold others")
        self.files = files


def _whole_since(exports: list[Export]) -> dict[str, date]:
    """The day of the whole export that each of `exports` (by id) builds upon; of a whole one its own."""
    whole = [e.arrival_day for e in exports if not e.changes_only]
    return {
        e.export_id: max((d for d in whole if d <= e.arrival_day), default=date.min)
        if e.changes_only
        else e.arrival_day
        for e in exports
    }


def _of_type(kind: str) -> str:
    """SQL: whether `line` is a resource `kind`; one that does not say so, not even in escapes, is not parsed."""
    said = f"""contains(line, '"{kind}"') OR contains(line, '\\u00')"""
    return f"""CASE WHEN {said} THEN TRY(from_json(line, '{{"resourceType":"VARCHAR"}}')).resourceType = '{kind}' END"""


def _columns(kind: str, fields: str) -> str:
    """SQL: what is kept of a parsed resource `r`; `problem` says why it cannot be used."""
    return f"""r.id AS id, CASE WHEN r.resourceType IS NULL THEN 'json_unreadable'
        WHEN r.resourceType <> '{kind}' THEN 'wrong_resource_type' WHEN coalesce(r.id, '') = '' THEN 'id_missing'
        WHEN NOT {allowed_id("r.id")} THEN 'id_not_allowed' END AS problem,
      try_cast(r.meta.lastUpdated AS TIMESTAMPTZ) AS updated_at, try_cast(r.meta.versionId AS BIGINT) AS version, {fields}"""


class Loader:
    """The files of `exports`, all of one clinic, in `con`: `sources`, `bad_lines`, `deleted`, on demand one for each type."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        exports: list[Export],
        consent_only: bool,
        earlier: list[Export],
        mixed: Collection[Path] = (),
    ) -> None:
        """`mixed`: files that are named after a type and are known to hold others."""
        kinds = {"Consent", DELETED, MIXED} if consent_only else {*TYPES, DELETED, OUTCOME, MIXED}
        linked = {*TYPES, DELETED, MIXED}
        self._con = con
        self._files = [(e, p, k) for e in exports for p in e.files() if (k := kind_of(p)) and k in kinds]
        self._own = len(self._files)
        self._files += [(e, p, k) for e in earlier for p in e.files() if (k := kind_of(p)) and k in linked]
        self._files = [(e, p, MIXED if p in mixed else k) for e, p, k in self._files]
        since = _whole_since([*exports, *earlier])
        self._upon = any(since[e.export_id] < e.arrival_day for e in exports)
        sources = pa.table(
            {
                "file": pa.array(range(len(self._files)), pa.int32()),
                "clinic": pa.array([e.clinic.key for e, _, _ in self._files], pa.string()),
                "arrival_day": pa.array([e.arrival_day for e, _, _ in self._files], pa.date32()),
                "whole_since": pa.array([since[e.export_id] for e, _, _ in self._files], pa.date32()),
                "export_id": pa.array([e.export_id for e, _, _ in self._files], pa.string()),
                "source_file": pa.array([p.name for _, p, _ in self._files], pa.string()),
                "holds": pa.array([k for _, _, k in self._files], pa.string()),
                "named": pa.array([p in mixed for _, p, _ in self._files], pa.bool_()),
            }
        )
        con.register("sources_arrow", sources)
        con.execute(
            f"""CREATE TEMP TABLE sources AS SELECT * FROM sources_arrow;
            CREATE TEMP TABLE parts (file INTEGER, bundle BIGINT, source_line BIGINT, e {type_of(json.loads(ENTRY))});
            CREATE TEMP TABLE bad_lines (file INTEGER, source_line BIGINT, rule VARCHAR);
            CREATE TEMP TABLE entries (file INTEGER, source_line BIGINT, kind VARCHAR, id VARCHAR, resource VARCHAR);
            CREATE TEMP TABLE deleted (file INTEGER, kind VARCHAR, id VARCHAR)"""
        )
        self._mixed: dict[str, list[int]] = {}
        self._load_bundles()

    def _numbers(self, kind: str) -> list[int]:
        return [n for n, (_, _, k) in enumerate(self._files) if k == kind]

    def _require_one_type(self, strangers: str) -> None:
        """Raise `MixedFiles` where the query `strangers` finds a file that is named after a type and holds others."""
        if found := self._con.execute(f"SELECT DISTINCT file FROM ({strangers})").fetchall():
            raise MixedFiles({self._files[file][1] for (file,) in found})

    def _from_files(self, kind: str, fields: str) -> list[int]:
        """Insert the resources of those files that DuckDB's own reader can take; the numbers of the other files.

        It parses a third cheaper than `from_json` over lines and gives the same values; a line that is no JSON object
        is a row of nulls in both. But it names no line and skips blank ones. So its rows, whose order it keeps, are
        counted: they are the lines where there are as many. A file with an unreadable line is left to `Lines` too,
        which says whether it is text at all.
        """
        numbers = self._numbers(kind)
        largest = sorted(numbers, key=lambda n: self._files[n][1].stat().st_size, reverse=True)[:MOST_FILES]
        lines = {n: count for n in sorted(largest) if (count := count_lines(self._files[n][1])) is not None}
        if not lines:
            return numbers
        types = ", ".join(f"'{name}': '{type_of(of)}'" for name, of in json.loads(STRUCTURES[kind]).items())
        try:
            self._con.execute(
                f"""INSERT INTO "{kind}_rows" SELECT ($files)[CAST(file_index AS INTEGER) + 1], NULL, {_columns(kind, fields)}
                FROM read_json($paths, format = 'newline_delimited', compression = 'uncompressed', ignore_errors = true,
                  maximum_object_size = {MAX_LINE_BYTES}, columns = {{{types}}}) r""",
                {"files": [*lines], "paths": [str(self._files[n][1].resolve()) for n in lines]},
            )
        except duckdb.InvalidInputException:
            return numbers  # read line by line it is known which file, and why
        self._con.register("counted", pa.table({"file": pa.array(lines, pa.int32()), "lines": [*lines.values()]}))
        whole = self._con.execute(
            f"""CREATE OR REPLACE TEMP TABLE whole AS SELECT file, min(r.rowid) - 1 AS before
            FROM "{kind}_rows" r JOIN counted USING (file) WHERE source_line IS NULL GROUP BY file, lines
            HAVING count(*) = lines AND bool_and(problem IS DISTINCT FROM 'json_unreadable');
            UPDATE "{kind}_rows" r SET source_line = r.rowid - before FROM whole w WHERE w.file = r.file;
            DELETE FROM "{kind}_rows" WHERE source_line IS NULL;
            SELECT file FROM whole"""
        ).fetchall()
        done = {file for (file,) in whole}
        return [n for n in numbers if n not in done and lines.get(n) != 0]

    def _from_lines(self, numbers: list[int], query: str, parameters: dict[str, str]) -> None:
        """Run `query` over the lines (`batches_of_kind`) of the files `numbers`; over-long ones become bad lines."""
        lines = Lines([self._files[n][1] for n in numbers])
        self._con.register("batches_of_kind", lines.reader())
        self._con.register(
            "numbers", pa.table({"n": pa.array(range(len(numbers)), pa.int32()), "f": pa.array(numbers, pa.int32())})
        )
        self._con.execute(query, parameters)
        raise_all(lines.problems)
        for number, line in lines.too_long:
            self._con.execute("INSERT INTO bad_lines VALUES (?, ?, 'line_too_long')", [numbers[number], line])
        self._con.unregister("batches_of_kind")

    def load(self, kind: str, fields: str, rank: str = "", takes_back: str = "false") -> None:
        """Create `<kind>`: provenance, `id` and `fields` of every resource of that type that counts today.

        `fields`: SQL over the parsed resource `r`, which itself is never stored: what is nested costs more to keep
        than to read. Of versions of one resource that arrived on one day the newest by `meta` counts, else the first by
        `rank` (SQL over `fields`), else the last line. In an export of changes a version that is older by `meta` than one
        that came before is left out, but where it `takes_back` (SQL over `fields`); all of these are in `<kind>_outdated` (place, file,
        source_line). A resource that was deleted on its day of arrival or later is left out and stands in `<kind>_deleted`.
        """
        structure, columns = {"structure": STRUCTURES[kind]}, _columns(kind, fields)
        self._con.execute(
            f"""CREATE TEMP TABLE "{kind}_rows" AS SELECT file, source_line, {columns} FROM (
              SELECT file, source_line, unnest(struct_update(TRY(from_json(resource, $structure)), id := id)) FROM entries
              WHERE kind = '{kind}') r""",
            structure,
        )

        def take(numbers: list[int], which: str) -> None:
            self._from_lines(
                numbers,
                f"""INSERT INTO "{kind}_rows" SELECT f, source_line, {columns} FROM (
                  SELECT f, source_line, unnest(TRY(from_json(line, $structure)))
                  FROM batches_of_kind b JOIN numbers ON n = b.file WHERE {which}) r""",
                structure,
            )

        if numbers := self._from_files(kind, fields):
            take(numbers, "true")
        self._require_one_type(f"""SELECT file FROM "{kind}_rows" WHERE problem = 'wrong_resource_type'""")
        if numbers := self._mixed.get(kind, []):
            take(numbers, _of_type(kind))
        self._con.execute(
            f"""INSERT INTO bad_lines SELECT file, source_line, problem FROM "{kind}_rows" WHERE problem IS NOT NULL;
            DELETE FROM "{kind}_rows" WHERE problem IS NOT NULL;
            {_OUTDATED.format(kind=kind, few="" if self._upon else "LIMIT 0")};
            DELETE FROM "{kind}_rows" WHERE rowid IN (SELECT place FROM "{kind}_outdated") AND NOT ({takes_back});
            CREATE TEMP TABLE "{kind}_deleted" AS SELECT r.rowid AS place, r.* FROM "{kind}_rows" r JOIN sources s USING (file) JOIN (
              SELECT clinic, id, max(arrival_day) AS until FROM deleted JOIN sources USING (file)
              WHERE kind = '{kind}' GROUP BY ALL) d ON d.clinic = s.clinic AND d.id = r.id AND s.arrival_day <= d.until;
            DELETE FROM "{kind}_rows" WHERE rowid IN (SELECT place FROM "{kind}_deleted");
            CREATE TEMP VIEW "{kind}" AS SELECT s.clinic, s.arrival_day, s.export_id, s.source_file,
              r.rowid AS place, r.* EXCLUDE (problem, updated_at, version) FROM "{kind}_rows" r JOIN sources s USING (file)"""
        )
        self._keep_newest(kind, rank)
        self.note(
            "version_outdated", f'SELECT file, min(source_line) AS source_line FROM "{kind}_outdated" GROUP BY file'
        )

    def span(self, kind: str) -> None:
        """Create `<kind>_spans` (id, arrival_day, since, until): of resources that arrived on several days, for which days a
        version counts; `since` of the first and `until` of the last are null."""
        self._con.execute(
            f"""CREATE TEMP TABLE "{kind}_spans" AS
            SELECT id, arrival_day, CASE WHEN lag(id) OVER w IS NOT NULL THEN arrival_day END AS since, lead(arrival_day) OVER w AS until
            FROM (SELECT DISTINCT id, arrival_day FROM "{kind}"
              SEMI JOIN (SELECT id FROM "{kind}" GROUP BY id HAVING min(arrival_day) < max(arrival_day)) USING (id))
            WINDOW w AS (PARTITION BY id ORDER BY arrival_day)"""
        )

    def _keep_newest(self, kind: str, rank: str) -> None:
        key = "clinic, arrival_day, id"
        repeated = f'SELECT count(*) > count(DISTINCT %s) FROM "{kind}"'
        # One string is counted much faster than a key of several columns, and mostly settles it.
        for of in ("id", f"({key})"):
            several = self._con.execute(repeated % of).fetchone()
            if not several or not several[0]:
                return
        self._con.execute(
            f"""DELETE FROM "{kind}_rows" WHERE rowid IN (
              SELECT r.rowid FROM "{kind}_rows" r JOIN sources USING (file)
              QUALIFY row_number() OVER (PARTITION BY {key}
                ORDER BY arrival_day DESC, updated_at DESC NULLS LAST, version DESC NULLS LAST, {rank and f"{rank}, "}export_id DESC, source_file DESC,
                  source_line DESC, r.rowid DESC) > 1)"""
        )

    def drop(self, kind: str) -> None:
        self._con.execute(
            f'DROP VIEW "{kind}"; DROP TABLE "{kind}_rows"; DROP TABLE "{kind}_deleted"; DROP TABLE "{kind}_outdated"'
        )

    def _load_bundles(self) -> None:
        """Take Bundles apart: a file that is one, lines that are, and the deletions of a bulk export, which come the same way."""
        for number, (_, path, kind) in enumerate(self._files):
            if kind == MIXED and is_document(path):
                self._take_apart(number, path)
        by_line = [n for n, (_, path, k) in enumerate(self._files) if k in (MIXED, DELETED) and not is_document(path)]
        if by_line:
            self._take_lines_apart(by_line)
        self._sort_out()
        for _ in range(MOST_NESTED):
            if not self._take_nested_apart():
                break
            self._sort_out()
        self.note("wrong_resource_type", f"SELECT file, source_line FROM entries WHERE kind = '{BUNDLE}'")
        self._con.execute("DROP TABLE parts")

    def _sort_out(self) -> None:
        """Put what `parts` holds into `entries` and `deleted`."""
        self._con.execute(_ENTRIES)
        self._delete(
            f"""SELECT file, source_line, {_GONE} AS g FROM parts JOIN sources USING (file)
            WHERE holds = '{DELETED}' OR e.request.method = 'DELETE'"""
        )

    def _take_nested_apart(self) -> bool:
        """Let `parts` hold the entries of the Bundles among `entries`, which leave it; whether there were any.

        A consent service lists all of its consents so, each in a Bundle with what belongs to it.
        """
        self._con.execute(
            f"""CREATE OR REPLACE TEMP TABLE parts AS SELECT file, -1 - place AS bundle, source_line, e FROM (
              SELECT file, source_line, rowid AS place, unnest(from_json(resource, $structure).entry) AS e
              FROM entries WHERE kind = '{BUNDLE}') WHERE {_IS_READ}""",
            {"structure": BUNDLE_STRUCTURE},
        )
        found = self._con.execute(f"DELETE FROM entries WHERE kind = '{BUNDLE}'").fetchone()
        return bool(found and found[0])

    def _take_apart(self, number: int, path: Path) -> None:
        """Put the entries of a file that is a Bundle into `parts`, numbered as lines are."""
        text = read_text(path, MAX_BUNDLE_BYTES)
        rule = "bundle_too_large" if text is None else None
        found = self._con.execute(
            "SELECT TRY(from_json($text, $structure)).resourceType", {"text": text, "structure": BUNDLE_STRUCTURE}
        ).fetchone()
        if text is not None and (found is None or found[0] != BUNDLE):
            rule = "json_unreadable" if found is None or found[0] is None else "wrong_resource_type"
        if rule:
            self._con.execute("INSERT INTO bad_lines VALUES (?, 1, ?)", [number, rule])
            return
        self._con.execute(
            f"""INSERT INTO parts SELECT $file, 0, place, e FROM (
              SELECT e, row_number() OVER () AS place FROM (SELECT unnest(from_json($text, $structure).entry) AS e))
            WHERE {_IS_READ}""",
            {"file": number, "text": text, "structure": BUNDLE_STRUCTURE},
        )

    def _take_lines_apart(self, numbers: list[int]) -> None:
        """Put the entries of Bundles that stand one on a line into `parts`, and note of which types the other lines are.

        These are read from the file again, type by type: together their texts would not fit into memory.
        """
        self._from_lines(
            numbers,
            """CREATE TEMP TABLE listed AS SELECT f AS file, source_line, b.resourceType AS type,
              list_filter(b.entry, lambda e: """
            + _IS_READ
            + """) AS entry
            FROM (SELECT f, source_line, TRY(from_json(line, $structure)) AS b FROM batches_of_kind JOIN numbers ON n = file)""",
            {"structure": BUNDLE_STRUCTURE},
        )
        self._con.execute(_LINES)
        for file, kind in self._con.execute("FROM mixed ORDER BY ALL").fetchall():
            self._mixed.setdefault(kind, []).append(file)

    def _delete(self, gone: str) -> None:
        """Note what `gone` (file, source_line, `g` as `_GONE` has it) tells of, and where it cannot be told what that is."""
        self._con.execute(f"INSERT INTO deleted SELECT file, g.kind, g.id FROM ({gone}) WHERE g.kind <> ''")
        self.note("deletion_unreadable", f"SELECT file, source_line FROM ({gone}) WHERE coalesce(g.kind, '') = ''")

    def note(self, rule: str, query: str) -> None:
        """Have the lines (file, source_line) of `query` reported by `rule`: of what is in them something does not count."""
        self._con.execute(f"INSERT INTO bad_lines SELECT file, source_line, '{rule}' FROM ({query})")

    def report(self, findings: Findings) -> None:
        """Say what could not be read, and what the sending server itself could not export."""
        of_type = [n for n in self._mixed.get(OUTCOME, ()) if n < self._own]
        if numbers := [*self._numbers(OUTCOME), *of_type]:
            self._from_lines(
                numbers,
                """CREATE TEMP TABLE outcomes AS SELECT f AS file, source_line, TRY(from_json(line, $structure)) AS o
                FROM batches_of_kind b JOIN numbers ON n = b.file""",
                {"structure": OUTCOME_STRUCTURE},
            )
            of_others = f"FROM outcomes JOIN sources USING (file) WHERE o.resourceType <> '{OUTCOME}' AND holds"
            self._require_one_type(f"{of_others} = '{OUTCOME}'")
            rows = self._con.execute(
                f"""SELECT file, source_line, CASE WHEN list_has_any(list_transform(o.issue, lambda i: i.severity),
                  ['fatal', 'error']) THEN 'server_reported_error' ELSE 'server_reported_problem' END
                FROM outcomes JOIN sources USING (file) WHERE holds = '{OUTCOME}' OR o.resourceType = '{OUTCOME}' ORDER BY ALL"""
            ).fetchall()
            for file, line, rule in rows:
                findings.add(self._files[file][0], rule, "info", self._files[file][1].name, line)
        for file, line, rule in self._con.execute(
            "SELECT DISTINCT * FROM bad_lines WHERE file < $own ORDER BY ALL", {"own": self._own}
        ).fetchall():
            severity = "info" if rule in TOLD_ONLY else "quarantined"
            findings.add(self._files[file][0], rule, severity, self._files[file][1].name, line)
