"""Backup and restore of an installation: what the confidential zone holds, and the ledger by its entries.

A restore never lets budget be spent twice: a backup whose ledger is behind what was measured or published is refused, and
so is every run on such a ledger (`evidence`). Not here: the format of the file (`lake.backup`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from assets.consent.changes import RECORD as JUDGED
from assets.consent.tombstones import beside_raw, bring_back
from assets.contract.city import City
from assets.identity.tombstones import bring_back_counters
from assets.lake import audit, backup, witness
from assets.lake.backup import BackupError
from assets.lake.keys import Keyring
from assets.lake.lake import DamagedTable, Lake
from assets.lake.lease import lease
from assets.lake.witness import Head
from assets.lake.zone import open_zone
from assets.privacy.evidence import LOG, gaps, head_of
from assets.privacy.ledger import Ledger, open_ledger
from assets.privacy.ledger_store import GENESIS

_COLUMNS = "seq, kind, measurement, scope, rho_units, snapshot, parameters, measured, previous, hash"


def _entries(ledger: Ledger) -> list[tuple[Any, ...]]:
    with ledger.store.read() as execute:
        return execute(f"SELECT {_COLUMNS} FROM entries ORDER BY seq")


def make(lake: Lake, city: City, target: Path) -> dict[str, Any]:
    """Write a backup of the data root to `target`; returns counts and hashes, no value."""
    with lease(lake.root, "backup", 600, city.ledger):
        ledger = open_ledger(lake, city)
        if problems := ledger.verify() or list(gaps(lake, city, ledger)):
            raise BackupError(f"the ledger does not verify, so it is not backed up: {'; '.join(problems)}")
        audit.record(lake, "backup")
        entries, head = _entries(ledger), head_of(ledger)
        about = {"city": city.key, "entries": head.entries, "head": head.hash}
        return backup.write(lake, target, json.dumps(entries).encode(), about)


def _refuse_older(lake: Lake, zone: str, entries: list[Any], source: Path, lost: bool) -> None:
    """Raise `BackupError` where something was measured that the ledger's `entries` after a restore would not hold."""
    seen = witness.seen(lake.keys.witness, zone, LOG)
    if seen is None or lost:
        return
    hashes = {row[0]: row[-1] for row in entries}
    if hashes.get(seen.entries) != seen.hash:
        raise BackupError(
            f"{source}: its ledger holds {len(entries)} entries, but {seen.entries} were measured since or otherwise: "
            "restored, its budget could be spent twice. Use a newer backup. With --ledger-lost it is put in place to be "
            "read; nothing can be measured or published on it then"
        )


def restore(lake: Lake, city: City, source: Path, ledger_lost: bool = False) -> dict[str, Any]:
    """Put the backup `source` in the place of the confidential zone, which is kept beside it.

    Raises `BackupError` where it is not whole, of another city or keys, or older than what was measured. An entry of
    the audit log says what was restored; entries that the log lost by it are named there.
    """
    with lease(lake.root, "restore", 10, city.ledger):
        if lake.keys.folder and Keyring.load(lake.keys.folder) != lake.keys:
            raise BackupError(
                f"{lake.keys.folder}: the keys were rotated meanwhile; nothing was changed, do this again"
            )
        found = backup.unpack(lake, source)
        try:
            if found.about["city"] != city.key:
                raise BackupError(f"{source}: it is of the city {found.about['city']}, not {city.key}")
            rows = json.loads(found.ledger)
            will_hold = rows
            if city.ledger:
                present = [list(row) for row in _entries(open_ledger(lake, city))]
                _require_continuation(present, rows, source)
                will_hold = max(present, rows, key=len)
            _refuse_older(lake, found.about["zone"], will_hold, source, ledger_lost)
            lost = witness.seen(lake.keys.witness, found.about["zone"], audit.LOG)
            _withdrawn_since(lake, Lake(found.folder, lake.keys))
            former = backup.install(lake, found)
        finally:
            shutil.rmtree(found.folder, ignore_errors=True)
        ledger = open_ledger(lake, city)
        _load(ledger, rows)
        if problems := ledger.verify():
            raise BackupError(f"{source}: the restored ledger does not verify: {'; '.join(problems)}")
        log = audit.entries(lake)
        own = Head(len(log), log[-1]["hash"] if log else GENESIS)
        witness.reanchor(lake.keys.witness, open_zone(lake).id, audit.LOG, own)
        audit.record(lake, "restore", made=found.about["made"], ledger_entries=len(rows),
                     audit_entries_lost=max(0, (lost.entries if lost else 0) - own.entries))  # fmt: skip
        return {"made": found.about["made"], "ledger_entries": len(rows), "former": str(former or ""),
                "behind": list(gaps(lake, city, ledger))}  # fmt: skip


def _withdrawn_since(lake: Lake, restored: Lake) -> None:
    """Let the next run erase from `restored` who withdrew after the backup: the raw lines that said so are gone."""
    try:
        bring_back(lake, restored)
        bring_back_counters(lake, restored)
    except DamagedTable:
        raise BackupError(
            f"{beside_raw(lake).root}: who withdrew since the backup cannot be read there; nothing was changed. Move that "
            "folder away, restore again, and let every clinic deliver all of its consents before the next run"
        ) from None
    restored.erase_record(JUDGED)


def _require_continuation(present: list[Any], rows: list[Any], source: Path) -> None:
    """A ledger in a database of its own was not lost with the data root: it must go on from the backup."""
    if present[: len(rows)] != rows[: len(present)]:
        raise BackupError(f"{source}: the ledger's database holds other entries than the backup; use the right one")


def _load(ledger: Ledger, rows: list[Any]) -> None:
    """Append those `rows` that the ledger lacks; its own rules check each of them."""
    present = head_of(ledger).entries
    marks = ", ".join("?" for _ in _COLUMNS.split(","))
    with ledger.store.write() as execute:
        for row in rows[present:]:
            execute(f"INSERT INTO entries ({_COLUMNS}) VALUES ({marks})", tuple(row))
