"""Intake over a range of arrival days: pull, read, and stage canonical tables inside the confidential zone.

Staged tables hold original identifiers: they are encrypted, belong to one run, and are removed by the identity stage.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City, CityFileError
from assets.contract.schemas import CANONICAL, only
from assets.intake import kernel
from assets.intake.connector import Delivery, Export, building_upon, built_upon, landed, pull
from assets.intake.fhir_files import MIXED, TYPES, is_document, kind_of
from assets.intake.landing import expire, require_raw_files
from assets.intake.lines import number_of_lines
from assets.lake import audit, backup
from assets.lake.distribute import LOCAL, Engine, in_order
from assets.lake.engine import connect, load
from assets.lake.files import remove_leftovers
from assets.lake.lake import Lake
from assets.lake.progress import NotStaged, reopen

CONSENT_DELIVERIES: Final = pa.schema(
    [("clinic", pa.string()), ("arrival_day", pa.date32()), ("export_id", pa.string())]
)
"""The whole exports in which a clinic delivered consents, possibly none."""


ENOUGH_LINES: Final = 20
"""Fewer unreadable lines of a file say nothing about the export."""


REFUSED: Final = "refused_exports"
"""Record: arrival day → clinic → why its newest export of that day could not be used."""
_KEPT_DAYS: Final = 400


def require_clinics(lake: Lake, city: City) -> None:
    """Raise `CityFileError` where the city file lacks a clinic of which data are stored.

    Under another key its patients would be other persons with a second budget, and without an entry nothing it delivers
    would be read, withdrawals included. So an entry stays for good, with `delivers_until` once the clinic leaves.
    """
    raw = {p.parent.name for p in lake.landing.glob("[a-z0-9]*/[0-9]*-[0-9]*-[0-9]*")}  # a disk has lost+found, too
    delivered = (
        lake.read("consent_deliveries", only(CONSENT_DELIVERIES, "clinic")).column("clinic").unique().to_pylist()
    )
    if gone := sorted({*raw, *delivered} - {c.key for c in city.clinics}):
        raise CityFileError(
            f"the city file lists no clinic {', '.join(gone)} (any more), and the data root holds data of it: put the "
            "entry back under that key, with `delivers_until` where the clinic left. Its patients can still withdraw then"
        )


def take(lake: Lake, city: City, days: Sequence[date], today: date) -> list[Delivery]:
    """Erase half-written files and raw files whose retention is over, then pull what arrived for `days`."""
    require_clinics(lake, city)
    remove_leftovers([lake.confidential, lake.landing, lake.open_data])
    shutil.rmtree(lake.root / backup.UNPACKED, ignore_errors=True)
    expired = expire(lake, city.retention_days, today, days)
    found = pull(lake, city, days, today)
    taken = [d for d in found if d.outcome == "taken" and d.arrival_day]
    # Exports of changes that were read already lacked what came late, so they are read again: with it, or the next night.
    clinics = sorted({d.clinic for d in taken})
    upon = [day for clinic in clinics for day in building_upon(lake.landing, city, clinic, days[-1])]
    reopen(lake.root, [*(d.arrival_day for d in taken if d.arrival_day), *upon])
    came = (d for d in sorted(found, key=lambda d: d.folder) if d.outcome != "waiting" and d.arrival_day in days)
    newest = {(str(d.arrival_day), d.clinic): d for d in came}
    _note_refused(lake, days, {key: d.reason for key, d in newest.items() if d.outcome == "rejected"})
    outcomes = Counter(f"{d.clinic}: {d.outcome}" for d in found)
    audit.record(lake, "pull", first=days[0], last=days[-1], exports=outcomes, raw_files_expired=expired)
    return found


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
    accepted = {(str(e.arrival_day), e.clinic.key) for e in usable}
    newest = {(str(e.arrival_day), e.clinic.key): e.export_id for e in exports}
    reasons = {key: rejected[export] for key, export in newest.items() if export in rejected}
    _note_refused(lake, days, refused_exports(lake) | reasons)
    lake.write_days("consent_deliveries", days, _consent_deliveries(usable, tables), "arrival_day")
    missing = {c.key: sum((str(d), c.key) not in accepted and c.delivers_on(d) for d in days) for c in city.clinics}
    return {
        "exports": len(exports),
        "rejected": dict(Counter(rejected.values())),
        "rejected_of": Counter((e.clinic.key, rejected[e.export_id]) for e in exports if e.export_id in rejected),
        "rows": {name: table.num_rows for name, table in tables.items()},
        "cases_by_clinic": {
            v["values"]: v["counts"] for v in pc.value_counts(tables["cases"].column("clinic")).to_pylist()
        },
        "findings": {v["values"]: v["counts"] for v in pc.value_counts(tables["findings"].column("rule")).to_pylist()},
        "days_without_export": missing,
        "unread": unread_shares(tables, exports),
    }


def refused_exports(lake: Lake) -> dict[tuple[str, str], str]:
    """(arrival day, clinic) whose newest export could not be used → the reason of the folder, or the rule."""
    record = lake.read_record(REFUSED) or {}
    return {(day, clinic): why for day, clinics in record.items() for clinic, why in clinics.items()}


def _note_refused(lake: Lake, days: Sequence[date], refused: dict[tuple[str, str], str]) -> None:
    """Replace what is known of `days` by what `refused` holds of them."""
    asked = {str(d) for d in days}
    others = {key: why for key, why in refused_exports(lake).items() if key[0] not in asked}
    record: dict[str, dict[str, str]] = {}
    for (day, clinic), why in sorted((others | refused).items()):
        record.setdefault(day, {})[clinic] = why
    lake.write_record(REFUSED, dict(list(record.items())[-_KEPT_DAYS:]))


def unread_shares(tables: dict[str, pa.Table], exports: Iterable[Export]) -> dict[str, float]:
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
            SELECT g.clinic, export_id, source_file, g.n, coalesce(k.n, 0) FROM gone g
            LEFT JOIN kept k USING (clinic, export_id, source_file) ORDER BY ALL"""
        ).fetchall()
    folders, shares = {e.export_id: e.folder for e in exports}, dict[str, float]()
    beside = findings.filter(pc.equal(findings.column("rule"), "type_not_used")).select(["export_id", "source_file"])
    with_others = {(row["export_id"], row["source_file"]) for row in beside.to_pylist()}
    for clinic, export, file, gone, kept in rows:
        path = folders[export] / file
        # Lines that are left out on purpose, such as department contacts, are in no table. Among laboratory values any
        # loss would look small.
        whole = kind_of(path) in (*TYPES, MIXED) and not is_document(path) and (export, file) not in with_others
        every = number_of_lines(path) if whole else gone + kept
        shares[clinic] = max(round(gone / every, 4), shares.get(clinic, 0.0))
    return shares


def _consent_deliveries(exports: Sequence[Export], tables: dict[str, pa.Table]) -> pa.Table:
    # A Bundle's content tells; a deleted consent names no patient, and is not a delivery of the others.
    provisions, findings = tables["consent_provisions"].select(["patient_id", "export_id"]), tables["findings"]
    of_somebody = (
        provisions.filter(pc.is_valid(provisions.column("patient_id"))).column("export_id").unique().to_pylist()
    )
    # If the server could not export everything, a consent may be missing for that reason alone.
    partial = (
        findings.filter(pc.equal(findings.column("rule"), "server_reported_error")).column("export_id").to_pylist()
    )
    rows = [{"clinic": e.clinic.key, "arrival_day": e.arrival_day, "export_id": e.export_id} for e in exports
            if not e.changes_only and e.export_id not in partial
            and (e.export_id in of_somebody or any("consent" in f.name.lower() for f in e.files()))]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=CONSENT_DELIVERIES)


def staged(lake: Lake, step: str, days: Sequence[date], names: Iterable[str] = tuple(CANONICAL)) -> dict[str, Any]:
    """The tables `names` that `step` staged for this run. Raises `NotStaged` naming what must run first."""
    if days[-1] not in lake.days(f"staging/{step}/cases"):
        raise NotStaged(f"nothing staged by {step!r} for {days[-1]}: materialise it in the same run")
    return {name: lake.read(f"staging/{step}/{name}", CANONICAL[name], [days[-1]]) for name in names}
