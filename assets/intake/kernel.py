"""How reading is sharded: by clinic.

Why the result is the same: no reader looks at a file of another clinic. Nothing smaller would do: a diagnosis may come
in another export than its case, a contact than the case above it, a consent than the case it names. So one worker reads
all of a clinic's exports of a run; running fewer days at once makes that less. The landing copy is read, whatever
connector filled it, so workers on other machines need that folder at the same path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from assets.contract.city import City
from assets.contract.schemas import CANONICAL
from assets.intake.connector import Export
from assets.intake.read import read_exports
from assets.lake.distribute import Engine, Tables, merged

_EXPORTS: Final = pa.schema(
    [("clinic", pa.string()), ("arrival_day", pa.date32()), ("export_id", pa.string()), ("folder", pa.string()),
     ("earlier", pa.bool_())]
)  # fmt: skip
_REJECTED: Final = pa.schema([("export_id", pa.string()), ("rule", pa.string())])


def _listed(exports: Iterable[Export], earlier: bool) -> list[dict[str, object]]:
    return [
        {"clinic": e.clinic.key, "arrival_day": e.arrival_day, "export_id": e.export_id, "folder": str(e.folder.absolute()),
         "earlier": earlier}
        for e in exports
    ]  # fmt: skip


def read_shard(tables: Tables, city: City) -> Tables:
    """Canonical tables of the exports that `tables` lists, and which were rejected."""
    both: dict[bool, list[Export]] = {False: [], True: []}
    for row in tables["exports"].to_pylist():
        export = Export(city.clinic(row["clinic"]), row["arrival_day"], row["export_id"], Path(row["folder"]))
        both[row["earlier"]].append(export)
    found, rejected = read_exports(both[False], city, both[True])
    rules = [{"export_id": export, "rule": rule} for export, rule in rejected.items()]
    return {**found, "rejected": pa.Table.from_pylist(rules, schema=_REJECTED)}


def read(engine: Engine, exports: list[Export], city: City, earlier: list[Export]) -> tuple[Tables, dict[str, str]]:
    """What `read_exports` returns."""
    rows = [*_listed(exports, False), *_listed(earlier, True)]
    place = {clinic.key: number for number, clinic in enumerate(city.clinics)}

    def keys() -> dict[str, np.ndarray]:
        return {"exports": np.array([place[str(row["clinic"])] for row in rows], dtype=np.uint64)}

    parts = engine.each(read_shard, {"exports": pa.Table.from_pylist(rows, schema=_EXPORTS)}, keys, city=city)
    whole = merged(parts, {})
    rejected = whole.pop("rejected")
    return {n: whole[n] for n in CANONICAL}, dict(
        zip(rejected.column("export_id").to_pylist(), rejected.column("rule").to_pylist(), strict=True)
    )
