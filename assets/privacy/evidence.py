"""Whether the ledger is the newest one: it must still contain everything that was measured or published.

An older ledger, restored by mistake or on purpose, would let the same budget be spent twice. Three things reveal it: the
witness beside the keys, `open_data/ledger.json`, which publication writes before every release, and the
newest day of any published version. If one of them knows more than the ledger, nothing is measured or published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

from assets.contract.city import City
from assets.contract.terms import LEVEL_DAYS
from assets.lake import witness
from assets.lake.files import atomic_write
from assets.lake.lake import Lake
from assets.lake.witness import Head
from assets.lake.zone import open_zone
from assets.privacy.ledger import Ledger
from assets.privacy.ledger_store import GENESIS, LedgerBroken

FILE: Final = "ledger.json"
LOG: Final = "ledger"
_REMEDY: Final = (
    "the ledger is an older one or another one, so budget could be spent twice: nothing was measured or published. "
    "Restore the newest backup of this data root (docs/security.md, an older ledger)"
)


class LedgerBehind(RuntimeError):
    """Something was measured or published that the ledger does not hold; names no value."""


def head_of(ledger: Ledger) -> Head:
    """How far the ledger has come."""
    with ledger.store.read() as execute:
        rows = execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1")
    return Head(*rows[0]) if rows else Head(0, GENESIS)


def _hash_at(ledger: Ledger, number: int) -> str | None:
    with ledger.store.read() as execute:
        rows = execute("SELECT hash FROM entries WHERE seq = ?", (number,))
    return str(rows[0][0]) if rows else None


def _gap(where: str, known: Head, ledger: Ledger) -> str | None:
    """How the ledger contradicts `known`, a head seen at `where`; None where it continues from it."""
    entries = head_of(ledger).entries
    if entries < known.entries:
        return f"{where} knows {known.entries} entries of the ledger, which holds {entries}"
    if known.entries and _hash_at(ledger, known.entries) != known.hash:
        return f"{where} knows another entry {known.entries} than the ledger holds"
    return None


def _published(path: Path) -> Head | None:
    try:
        about = json.loads(path.read_bytes())
        return Head(int(about["entries"]), str(about["head"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise LedgerBehind(f"{path} cannot be read; put back the published copy of it") from None


def _newest_version(open_data: Path) -> date | None:
    """The newest day that any published version holds data of: versions are named by it."""
    days = [
        date.fromisoformat(folder.name[:10])
        for folder in open_data.glob("*/[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*")
        if folder.is_dir()
    ]
    return max(days, default=None)


def _measured_until(ledger: Ledger) -> date | None:
    ends = [
        date.fromisoformat(about["unit_start"]) + timedelta(LEVEL_DAYS[about["time"]] - 1)
        for about in ledger.reserved().values()
    ]
    return max(ends, default=None)


def gaps(lake: Lake, city: City, ledger: Ledger, published: Path | None = None) -> Iterator[str]:
    """Everything that was seen and is missing in `ledger`; `published`: a copy of `ledger.json` from elsewhere."""
    zone = open_zone(lake)
    seen = witness.seen(lake.keys.witness, zone.id, LOG)
    copies = [lake.open_data / FILE, *([published] if published else [])]
    known = [(str(lake.keys.witness), seen), *((str(path), _published(path)) for path in copies)]
    for where, head in known:
        if head and (problem := _gap(where, head, ledger)):
            yield problem
    newest, until = _newest_version(lake.open_data), _measured_until(ledger)
    if newest and (until is None or newest > until):
        yield f"a version of {newest} is published, but the ledger measured {f'until {until}' if until else 'nothing'}"
    others = [z for z in witness.zones(lake.keys.witness) if z != zone.id]
    if others and seen is None and not city.synthetic:
        yield (
            f"these keys served another data root ({', '.join(others)}), and {lake.root} is a new one: only a "
            f"restored backup may follow it, or a decision to begin anew (remove it from {lake.keys.witness})"
        )


def require_newest(lake: Lake, city: City, ledger: Ledger) -> None:
    """Raise `LedgerBehind` where anything that was measured or published is missing in `ledger`.

    Raises `LedgerBroken` where it does not even verify: nothing may be paid from sums that somebody changed.
    """
    if problems := ledger.verify():
        raise LedgerBroken(f"the ledger does not verify, nothing was measured or published: {'; '.join(problems)}")
    if found := list(gaps(lake, city, ledger)):
        raise LedgerBehind(f"{'; '.join(found)}: {_REMEDY}")


def remember(lake: Lake, ledger: Ledger) -> Head:
    """Let the witness remember how far the ledger has come."""
    head = head_of(ledger)
    witness.advance(lake.keys.witness, open_zone(lake).id, LOG, head)
    return head


def write_evidence(lake: Lake, ledger: Ledger) -> None:
    """Write `open_data/ledger.json`, to be there before what is released from this state of the ledger."""
    head = remember(lake, ledger)
    about: dict[str, Any] = {
        "about": "State of the privacy ledger behind this folder: number of entries and hash of the last. "
        "A ledger without this entry is not the one that these numbers were measured with.",
        "entries": head.entries, "head": head.hash, "measurements": len(ledger.committed()),
    }  # fmt: skip
    atomic_write(lake.open_data / FILE, (json.dumps(about, indent=1) + "\n").encode(), mode=0o644)
