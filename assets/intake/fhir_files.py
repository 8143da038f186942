"""What a file of a FHIR export holds, by its name and its first lines.

A name is believed where it is that of a type; whether the lines agree is known once they are read (`fhir_load`, as is what
is in them).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from assets.contract.codes import FHIR_RESOURCES
from assets.intake.connectors.transfer import SCOPE_FILE
from assets.intake.findings import RejectedExport
from assets.intake.lines import first_lines

TYPES: Final = ("Patient", "Encounter", "Condition", "Procedure", "Consent")
"""The resource types that count; others may lie beside them."""
DELETED: Final = "deleted"
OUTCOME: Final = "OperationOutcome"
BUNDLE: Final = "Bundle"
MIXED: Final = "mixed"
"""Resources of any type: a Bundle in a file of its own, or lines, each of which is a resource or a Bundle."""
MAX_BUNDLE_BYTES: Final = 64 * 2**20
"""A Bundle is one document and must be held in memory; more than that belongs into NDJSON."""
OTHER_TYPES: Final = FHIR_RESOURCES - {*TYPES, OUTCOME, BUNDLE}
"""Of these nothing is read; what is none of them is a mistake."""
_NDJSON: Final = (".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz")
_UNREAD: Final = frozenset(name.lower() for name in OTHER_TYPES)
_ANY: Final = (b'"resourceType"',)
_READ: Final = tuple(f'"{name}"'.encode() for name in (*TYPES, BUNDLE))


def kind_of(path: Path) -> str | None:
    """What a file holds by its name: `Encounter.000.ndjson.gz` → Encounter, `any.json` → mixed, else None.

    Servers and people number their files before the type or behind it (`1.Patient.ndjson`, `Patient_2.ndjson`). What is
    named after no type may hold any, if one of its first lines is a resource. What is named after a type of which nothing
    is read is not searched to its end for another: laboratory values are mostly the larger part of an export.
    """
    name = path.name.lower()
    if name.endswith((".json", ".json.gz")):
        return None if name == SCOPE_FILE else MIXED
    stem = re.split(r"[._-]", re.sub(r"^[0-9]+[._-]", "", name))[0]
    if not name.endswith(_NDJSON):
        return None
    if known := next((k for k in (*TYPES, DELETED, OUTCOME) if stem == k.lower()), None):
        return known
    mixed = any(t in (*TYPES, BUNDLE) for t in _types(path, _READ)) if stem in _UNREAD else any(_types(path))
    return MIXED if mixed else None


def _types(path: Path, signs: tuple[bytes, ...] = _ANY) -> Iterator[str]:
    """The type of each of the first lines that is a resource; empty for one that is none, or has none of `signs`."""
    with suppress(OSError, RejectedExport):
        for line in filter(bytes.strip, first_lines(path)):
            found = ""
            if any(sign in line for sign in signs):
                with suppress(ValueError, RecursionError, AttributeError):
                    found = str(json.loads(line).get("resourceType", ""))
            yield found


def is_document(path: Path) -> bool:
    """Whether a file is one JSON document, as a Bundle in a file of its own is; NDJSON is often called `.json`, too.

    A document may be written over many lines, of which hardly one is a resource by itself.
    """
    if not path.name.lower().removesuffix(".gz").endswith(".json"):
        return False
    types = list(_types(path))
    found = [t for t in types if t]
    return types == [BUNDLE] or not found or (found[0] != BUNDLE and 2 * len(found) < len(types))
