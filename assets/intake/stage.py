"""Intake of a range of arrival days: pull, read, hand canonical tables on inside the confidential zone.

Staged tables hold original identifiers: they are encrypted, belong to one run, and the identity stage
erases them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.contract.schemas import CANONICAL
from assets.intake import connector, kernel
from assets.intake.connector import Delivery, Export, built_upon, landed, pull
from assets.intake.connectors.transfer import COMPLETE_MARKER
from assets.intake.landing import expire, require_raw_files
from assets.lake import audit
from assets.lake.distribute import LOCAL, Engine, in_order
from assets.lake.engine import connect, load
from assets.lake.files import remove_leftovers
from assets.lake.lake import Lake
from assets.lake.progress import reopen

CONSENT_DELIVERIES: Final = pa.schema([("clinic", pa.string()), ("arrival_day", pa.date32())])
"""The days on which a clinic delivered consents, be they none, and not changes only: told from its files."""


ENOUGH_LINES: Final = 20
"""Fewer unreadable lines of a file say nothing of the export."""


class NotStaged(FileNotFoundError):
    """A stage was run without the one before it."""


def take(lake: Lake, city: City, days: Sequence[date], today: date) -> list[Delivery]:
    """Erase half-written files and raw files whose retention is over, then pull what arrived for `days`."""
    remove_leftovers([lake.confidential, lake.landing, lake.open_data])
    expired = expire(lake, city.retention_days, today, days)
    found = pull(lake, city, days, today)
    reopen(lake.root, [d.arrival_day for d in found if d.outcome == "taken" and d.arrival_day])
    outcomes = Counter(f"{d.clinic}: {d.outcome}" for d in found)
    audit.record(lake, "pull", first=days[0], last=days[-1], exports=outcomes, raw_files_expired=expired)
    return found


def refusal(folder: Path, today: date) -> str | None:
    """Why `folder` could not be taken from an inbox today, or None. Value-free, says what to do."""
    files = sorted(p for p in folder.iterdir() if p.name != COMPLETE_MARKER)
    return connector._refusal(folder, files, today, today)


def read(lake: Lake, city: City, days: Sequence[date], engine: Engine = LOCAL) -> dict[str, Any]:
    """Read every landed export of `days` and stage the canonical tables; returns value-free counts.

    Raises `RawFilesErased` where a raw file that this needs is gone.
    """
    exports = landed(lake, city, days)
    require_raw_files(exports)
    tables, rejected = kernel.read(engine, exports, city, built_upon(lake, city, exports))
    for name, table in tables.items():
        lake.write(f"staging/canonical/{name}", days[-1], table)
    lake.write_days("findings", days, in_order(tables["findings"]), "arrival_day")
    usable = [e for e in exports if e.export_id not in rejected]
    lake.write_days("consent_deliveries", days, _consent_deliveries(usable), "arrival_day")
    accepted = {(e.clinic.key, e.arrival_day) for e in usable}
    missing = {c.key: sum((c.key, d) not in accepted and c.delivers_on(d) for d in days) for c in city.clinics}
    return {
        "exports": len(exports),
        "rejected": dict(Counter(rejected.values())),
        "rows": {name: table.num_rows for name, table in tables.items()},
        "cases_by_clinic": {
            v["values"]: v["counts"] for v in pc.value_counts(tables["cases"].column("clinic")).to_pylist()
        },
        "findings": {v["values"]: v["counts"] for v in pc.value_counts(tables["findings"].column("rule")).to_pylist()},
        "days_without_export": missing,
        "unread": unread_shares(tables),
    }


def unread_shares(tables: dict[str, pa.Table]) -> dict[str, float]:
    """Largest share of a file's lines that nothing could be read from, by clinic; of files that lost `ENOUGH_LINES`."""
    findings = tables["findings"]
    lost = findings.filter(pc.equal(findings.column("severity"), "quarantined"))
    if lost.num_rows < ENOUGH_LINES:
        return {}
    with connect() as con:
        line = ["clinic", "export_id", "source_file", "source_line"]
        read = [tables[n].select(line) for n in CANONICAL if n not in ("findings", "deletions")]
        load(con, lost=lost.select(line), read=pa.concat_tables(read))
        rows = con.execute(
            f"""WITH gone AS (
              SELECT clinic, export_id, source_file, count(DISTINCT source_line) AS n FROM lost GROUP BY ALL HAVING n >= {ENOUGH_LINES}),
            kept AS (SELECT clinic, export_id, source_file, count(DISTINCT source_line) AS n
              FROM read SEMI JOIN gone USING (clinic, export_id, source_file) GROUP BY ALL)
            SELECT g.clinic, max(g.n / (g.n + coalesce(k.n, 0))) FROM gone g
            LEFT JOIN kept k USING (clinic, export_id, source_file) GROUP BY g.clinic ORDER BY g.clinic"""
        ).fetchall()
    return {clinic: round(share, 4) for clinic, share in rows}


def _consent_deliveries(exports: Sequence[Export]) -> pa.Table:
    found = {(e.clinic.key, e.arrival_day) for e in exports
             if any("consent" in f.name.lower() for f in e.files()) and not e.changes_only}  # fmt: skip
    rows = [{"clinic": clinic, "arrival_day": day} for clinic, day in sorted(found)]
    return pa.Table.from_pylist(rows, schema=CONSENT_DELIVERIES)


def staged(lake: Lake, step: str, days: Sequence[date], names: Iterable[str] = tuple(CANONICAL)) -> dict[str, Any]:
    """The tables `names` that `step` staged for this run. Raises `NotStaged` naming what must run first."""
    if days[-1] not in lake.days(f"staging/{step}/cases"):
        raise NotStaged(f"nothing staged by {step!r} for {days[-1]}: materialise it in the same run")
    return {name: lake.read(f"staging/{step}/{name}", CANONICAL[name], [days[-1]]) for name in names}
