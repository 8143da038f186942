"""A Bundle taken apart by its entries, so that one patient's can leave it and the others' stay.

Not here: which entries name a patient (`naming`), what a Bundle means to a reader (`fhir_load`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Final

MOST_NESTED: Final = 2
"""Levels of Bundles within a Bundle that are read; a consent service lists its consents in such."""
_URN: Final = "urn:uuid:"
_INSIDE: Final = re.compile(f'"{_URN}([^"]+)"')


class NotTakenApart(ValueError):
    """The text is no Bundle with a list of entries. Value-free."""


def _nested(entry: dict[str, Any], levels: int) -> dict[str, Any] | None:
    """The Bundle that `entry` holds, unless `levels` says that it lies too deep to be read."""
    inner = entry.get("resource", {}) if levels else {}
    return inner if inner.get("resourceType") == "Bundle" and "entry" in inner else None


def take_apart(text: str) -> tuple[dict[str, Any], list[str]]:
    """The Bundle in `text` without its entries, and each entry as the text of a Bundle of its own.

    In these, what refers to an address inside the Bundle (`urn:uuid:`) names the resource that stands there by type
    and id, and a resource without id has that address as its id, as the reader has it. An entry that is a Bundle is
    taken apart like the whole. Raises `NotTakenApart`.
    """
    pieces = list[str]()
    try:
        rest = _taken_apart(json.loads(text), pieces, MOST_NESTED)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise NotTakenApart from None
    return rest, pieces


def _taken_apart(bundle: dict[str, Any], pieces: list[str], levels: int) -> dict[str, Any]:
    """`bundle` without its entries but those that are Bundles, themselves without; the others are added to `pieces`."""
    entries = bundle.pop("entry", [])
    addresses = [
        e["fullUrl"].removeprefix(_URN) if e.get("fullUrl", "").startswith(_URN) and "resource" in e else ""
        for e in entries
    ]
    names = {
        a: f"{e['resource']['resourceType']}/{e['resource']['id']}"
        for e, a in zip(entries, addresses, strict=True)
        if a and e["resource"].get("id")
    }
    inner = []
    for entry, address in zip(entries, addresses, strict=True):
        whole = {**entry, "resource": {"id": address} | entry["resource"]} if address else entry
        alone = json.dumps({"resourceType": "Bundle", "entry": [whole]})
        piece = _INSIDE.sub(lambda m: f'"{names.get(m[1], m[0][1:-1])}"', alone)
        if _nested(entry, levels):
            resolved = json.loads(piece)["entry"][0]
            inner.append({**resolved, "resource": _taken_apart(resolved["resource"], pieces, levels - 1)})
        else:
            pieces.append(piece)
    return bundle | {"entry": inner} if inner else bundle


def without_others(text: str) -> str:
    """The patient's record in `text`, a line or a Bundle of one entry, without which records its links name; that it was
    replaced is still said. Nothing where `text` is something else."""
    try:
        whole = json.loads(text)
        record = whole["entry"][0]["resource"] if whole["resourceType"] == "Bundle" else whole
        if record["resourceType"] != "Patient":
            return ""
        record["link"] = [{k: v for k, v in link.items() if k != "other"} for link in record["link"]]
        record.pop("text", None)  # a narrative tells the same in prose
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        return ""
    return json.dumps(whole)


def put_together(text: str, gone: set[int], instead: Mapping[int, str]) -> str:
    """`text`, which `take_apart` takes, without the entries of the places `gone`, but those that have a Bundle of one entry
    `instead`; a Bundle within it that loses all entries goes with them."""
    left = {place: json.loads(other)["entry"] for place, other in instead.items()}
    return json.dumps(_put_together(json.loads(text), gone, left, count(), MOST_NESTED))


def _put_together(
    bundle: dict[str, Any], gone: set[int], left: Mapping[int, list[Any]], places: Iterator[int], levels: int
) -> dict[str, Any]:
    kept = list[Any]()
    for entry in bundle["entry"]:
        if inner := _nested(entry, levels):
            within = _put_together(inner, gone, left, places, levels - 1)
            kept += [{**entry, "resource": within}] if within["entry"] or not inner["entry"] else []
        else:
            place, address = next(places), {k: v for k, v in entry.items() if k == "fullUrl"}
            # Others refer to it by the address at which it stood, whatever that was taken for.
            instead = [other | address for other in left.get(place, ())]
            kept += instead or ([] if place in gone else [entry])
    return bundle | {"entry": kept}
