"""What the manifest of a FHIR bulk export says: which files, of what, how many resources.

Not here: how it is asked for, and the files themselves (`fhir_bulk`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin

from assets.intake.connectors.transfer import MAX_FILES, FetchProblem, State

SECTIONS: Final = ("output", "error", "deleted")
_TYPE: Final = re.compile(r"^[A-Za-z]{1,64}$")


@dataclass(frozen=True)
class Item:
    """One file of the manifest and the name it lands under."""

    name: str
    url: str
    count: int | None


def _value(parameter: State) -> Any:
    return next((v for k, v in parameter.items() if k.startswith("value")), None)


def plain(manifest: State) -> State:
    """`manifest` as Bulk Data has it, where a server (Pathling) writes it as a `Parameters` resource."""
    parameters = manifest.get("parameter")
    if manifest.get("resourceType") != "Parameters" or not isinstance(parameters, list):
        return manifest
    said, files = dict[str, Any](), dict[str, list[State]]()
    for parameter in (p for p in parameters if isinstance(p, dict)):
        name, parts = str(parameter.get("name")), parameter.get("part")
        if isinstance(parts, list):
            files.setdefault(name, []).append({str(p.get("name")): _value(p) for p in parts if isinstance(p, dict)})
        else:
            said[name] = _value(parameter)
    return said | files


def entries(manifest: State, section: str) -> list[State]:
    listed = manifest.get(section) or []
    if not isinstance(listed, list) or not all(isinstance(e, dict) for e in listed):
        raise FetchProblem("the FHIR server's manifest holds an entry without type or url")
    return listed


def items_of(manifest: State, types: Collection[str], status_url: str) -> list[Item]:
    """The files to fetch, in manifest order, under names of ours. Types that we did not ask for are left."""
    numbers: dict[str, int] = {}
    items = []
    for section in SECTIONS:
        for entry in entries(manifest, section):
            kind, url, count = entry.get("type"), entry.get("url"), entry.get("count")
            if not isinstance(url, str) or not isinstance(kind, str) or not _TYPE.match(kind):
                raise FetchProblem("the FHIR server's manifest holds an entry without type or url")
            url = urljoin(status_url, url)
            if section == "output" and kind not in types:
                continue
            stem = {"output": kind, "error": "OperationOutcome", "deleted": "deleted"}[section]
            number = numbers[stem] = numbers.get(stem, -1) + 1
            items.append(Item(f"{stem}.{number:03d}.ndjson", url, count if isinstance(count, int) else None))
    if len(items) > MAX_FILES:
        raise FetchProblem(f"the export is larger than {MAX_FILES} files; let the server write larger ones")
    return items
