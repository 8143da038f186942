"""What a file of a FHIR export holds, by its name and its first lines.

Not here: what is in it (`fhir_load`).
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from assets.intake.connectors.transfer import SCOPE_FILE
from assets.intake.findings import RejectedExport
from assets.intake.lines import first_lines

TYPES: Final = ("Patient", "Encounter", "Condition", "Procedure", "Consent")
"""The resource types that count; others may lie beside them."""
DELETED: Final = "deleted"
OUTCOME: Final = "OperationOutcome"
BUNDLE: Final = "Bundle"
MAX_BUNDLE_BYTES: Final = 64 * 2**20
"""A Bundle is one document and must be held in memory; more than that belongs into NDJSON."""
_NDJSON: Final = (".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz")


def kind_of(path: Path) -> str | None:
    """What a file holds by its name: `Encounter.000.ndjson.gz` → Encounter, `any.json` → Bundle, else None.

    Servers and people number their files before the type or behind it (`1.Patient.ndjson`, `Patient_2.ndjson`). What
    has a Bundle on each line, mostly one of a patient, has no type to be named after and is known by its first lines.
    """
    name = path.name.lower()
    if name.endswith((".json", ".json.gz")):
        return None if name == SCOPE_FILE else BUNDLE
    stem = re.split(r"[._-]", re.sub(r"^[0-9]+[._-]", "", name))[0]
    if not name.endswith(_NDJSON):
        return None
    known = next((k for k in (*TYPES, DELETED, OUTCOME) if stem == k.lower()), None)
    return known or (BUNDLE if _begins_with_bundle(path) else None)


def _begins_with_bundle(path: Path) -> bool:
    """Whether the first line that can be read is a Bundle: one that is damaged must not take the others along."""
    with suppress(OSError, RejectedExport):
        for line in first_lines(path):
            with suppress(ValueError, RecursionError):
                first = json.loads(line)
                return isinstance(first, dict) and first.get("resourceType") == BUNDLE
    return False


def is_document(path: Path) -> bool:
    """Whether a file is one JSON document, as a Bundle in a file of its own is; NDJSON of Bundles is often called `.json`, too."""
    if not path.name.lower().removesuffix(".gz").endswith(".json"):
        return False
    with suppress(OSError, RejectedExport):
        written = (line for line in first_lines(path) if line.strip())
        return len(list(islice(written, 2))) < 2 or not _begins_with_bundle(path)
    return True
