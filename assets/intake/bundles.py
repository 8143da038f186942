"""A Bundle taken apart by its entries, so that one patient's can leave it and the others' stay.

Not here: which entries name a patient (`naming`), what a Bundle means to a reader (`fhir_load`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_URN: Final = "urn:uuid:"
_INSIDE: Final = re.compile(f'"{_URN}([^"]+)"')


class NotTakenApart(ValueError):
    """The text is no Bundle with a list of entries. Value-free."""


def take_apart(text: str) -> tuple[dict[str, Any], list[str]]:
    """The Bundle in `text` without its entries, and each entry as the text of a Bundle of its own.

    In these, what refers to an address inside the Bundle (`urn:uuid:`) names the resource that stands there by type
    and id, and a resource without id has that address as its id, as the reader has it. Raises `NotTakenApart`.
    """
    try:
        bundle = json.loads(text)
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
        whole = [
            {**e, "resource": {"id": a} | e["resource"]} if a else e for e, a in zip(entries, addresses, strict=True)
        ]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise NotTakenApart from None
    return bundle, [
        _INSIDE.sub(lambda m: f'"{names.get(m[1], m[0][1:-1])}"', json.dumps({"resourceType": "Bundle", "entry": [e]}))
        for e in whole
    ]


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
    `instead`."""
    bundle = json.loads(text)
    left = {place: json.loads(other)["entry"] for place, other in instead.items()}
    parts = [left.get(place, [] if place in gone else [entry]) for place, entry in enumerate(bundle["entry"])]
    return json.dumps(bundle | {"entry": [entry for part in parts for entry in part]})
