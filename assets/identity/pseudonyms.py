"""Keyed pseudonyms: HMAC-SHA-256 under a subkey of its purpose (RFC 2104, RFC 5869). No table shapes here."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from assets.contract.codes import insured_id_is_valid
from assets.lake.keys import Keyring, derive, keyed_hash, keyed_hashes

PERIOD: Final = "1"
"""Version of the labels. What changes with a rotation of keys is the cover (`Keyring.cover`), not the hash under it."""


def pseudonyms(values: pa.ChunkedArray, keys: Keyring, purpose: str, scope: str, kind: str) -> pa.Array:
    """Pseudonym of each value; null stays null. Computed once for each distinct value.

    The subkey is derived from (purpose, scope, kind, period): the same id in two clinics, or as a case and as
    a patient, gives pseudonyms that cannot be linked.
    """
    return keys.cover(keyed_hashes(values, derive(keys.pseudonym, purpose, scope, kind, PERIOD)))


def linked_persons(insured_ids: pa.ChunkedArray, keys: Keyring) -> pa.Array:
    """Pseudonym of the person from the insured number where it is valid (check digit), else null."""
    encoded = insured_ids.combine_chunks().dictionary_encode()
    key = derive(keys.pseudonym, "person", "all-clinics", "insured-number", PERIOD)
    names = [keyed_hash(key, v) if insured_id_is_valid(v) else None for v in encoded.dictionary.to_pylist()]
    people = pa.array(names, pa.string()).take(encoded.indices) if names else pa.nulls(len(encoded), pa.string())
    return keys.cover(people)
