"""The certificate: which rules the valid tables passed, bound to the tables' content.

Here: hashes over content, independent of the order of rows, and their verification. The hashes are keyed, because
certificates are stored in the clear and shown to engineers: a day of a practice may hold a single person, whose row
could be guessed and tried against a plain hash. Not here: where the certificate is stored (`stage`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.lake.distribute import in_order
from assets.lake.keys import Keyring, derive
from assets.quality.rules import PREPARED, Rule, rules
from assets.quality.validate import RuleResult

VERSION: Final = 2
BATCH_ROWS: Final = 65_536
HASHED_ROWS: Final = 1_000_000
"""Rows that are copied at once for their hash."""
SORTED_ROWS: Final = 1_000_000
"""Rows that are sorted at once; a day is never cut."""


class CertificateMismatch(Exception):
    """Certificate and data do not belong together. Names tables only."""


class _Digest:
    """A file that only hashes what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(memoryview(data))

    def flush(self) -> None:
        pass


def _zero(kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_string(kind):
        return pa.scalar("", kind)
    return pa.scalar(0, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)


def _plain(table: pa.Table) -> pa.Table:
    """Each column as two, whether it is null and its value: what lies in memory under a null is undefined."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        columns[f"{name}.null"] = pc.is_null(column)
        columns[name] = pc.fill_null(column, _zero(column.type))
    return pa.table(columns)


def _stream_sha256(plain: pa.Table) -> str:
    # Copied, not sliced: the last byte of a slice's bitmap would hold bits of the rows after it.
    rows, sink = plain.take(pa.array(np.arange(plain.num_rows))).combine_chunks(), _Digest()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), rows.schema) as writer:
        writer.write_table(rows, max_chunksize=BATCH_ROWS)
    return sink.hash.hexdigest()


def table_sha256(table: pa.Table) -> str:
    """SHA-256 of the sorted rows as an Arrow IPC stream; of more than `HASHED_ROWS`, of the hashes of such parts."""
    rows = in_order(table)
    parts = [_stream_sha256(_plain(rows.slice(n, HASHED_ROWS))) for n in range(0, max(len(rows), 1), HASHED_ROWS)]
    return parts[0] if len(parts) == 1 else _json_sha256(parts)


def sha256_by_day(table: pa.Table, column: str, days: Iterable[date]) -> dict[date, tuple[int, str]]:
    """For each of `days`: number of rows whose `column` is that day, and `table_sha256` of them (never in parts).

    Days are sorted `SORTED_ROWS` at a time, so that years of them need no second copy.
    """
    values = table.column(column).to_numpy().astype("datetime64[D]")
    if (values[1:] < values[:-1]).any():
        order = np.argsort(values, kind="stable")
        table, values = table.take(pa.array(order)), values[order]
    wanted = np.array(sorted(set(days)), "datetime64[D]")
    starts, ends = values.searchsorted(wanted, "left"), values.searchsorted(wanted, "right")
    found, begin = dict[date, tuple[int, str]](), 0
    while begin < len(wanted):
        offset = int(starts[begin])
        end = max(begin + 1, int(ends.searchsorted(offset + SORTED_ROWS, "right")))
        plain = _plain(in_order(table.slice(offset, int(ends[end - 1]) - offset), [column]))
        for n in range(begin, end):
            first, last = int(starts[n]) - offset, int(ends[n]) - offset
            found[wanted[n].item()] = last - first, _stream_sha256(plain.slice(first, last - first))
        begin = end
    return found


def _json_sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def rules_sha256(declared: Sequence[Rule]) -> str:
    """Version of the rules: changes with any rule, predicate or prepared view."""
    return _json_sha256({"rules": [{**asdict(r), "predicate": r.predicate} for r in declared], "prepared": PREPARED})


def _seal(cert: dict[str, Any]) -> str:
    return _json_sha256({k: v for k, v in cert.items() if k != "sha256"})


def _hash_of(table: pa.Table, keys: Keyring) -> str:
    return hmac.digest(derive(keys.pseudonym, "certificate"), table_sha256(table).encode(), hashlib.sha256).hex()


def certificate(
    valid: dict[str, pa.Table], rule_results: Sequence[RuleResult], city: City, keys: Keyring, days: Sequence[date] = ()
) -> dict[str, Any]:
    """JSON-able; `days`: the arrival days it speaks for; `sha256` is over everything else in it."""
    cert: dict[str, Any] = {
        "version": VERSION,
        "city": city.key,
        "days": [day.isoformat() for day in days],
        "tables": {n: {"rows": t.num_rows, "sha256": _hash_of(t, keys)} for n, t in sorted(valid.items())},
        "rules_sha256": rules_sha256(rules(city)),
        "rules": {
            r.rule: {"table": r.table, "severity": r.severity, "checked": r.checked, "failed": r.failed}
            for r in rule_results
        },
    }
    return {**cert, "sha256": _seal(cert)}


def verify_seal(cert: dict[str, Any]) -> None:
    """Raises `CertificateMismatch` unless the certificate is whole."""
    if cert.get("version") != VERSION or cert.get("sha256") != _seal(cert):
        raise CertificateMismatch("the certificate was altered or is of another version")


def verify_certificate(cert: dict[str, Any], tables: dict[str, pa.Table], keys: Keyring) -> None:
    """Raises `CertificateMismatch` unless `tables` are those that were certified and the certificate is whole."""
    verify_seal(cert)
    if missing := sorted(set(cert["tables"]) ^ (set(tables) & set(cert["tables"]))):
        raise CertificateMismatch(f"certified but not given: {', '.join(missing)}")
    altered = [name for name, about in cert["tables"].items() if _hash_of(tables[name], keys) != about["sha256"]]
    if altered:
        raise CertificateMismatch(f"not the data that was certified: {', '.join(altered)}")
