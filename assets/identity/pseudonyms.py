"""Keyed pseudonyms: HMAC-SHA-256 under a subkey of its purpose (RFC 2104, RFC 5869). No table shapes here."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import pyarrow as pa

from assets.contract.codes import insured_id_is_valid
from assets.lake.keys import Keyring, derive

PERIOD: Final = "1"
"""Key period: part of every subkey, so that a later period's pseudonyms cannot be linked to this one's."""
PSEUDONYM_BYTES: Final = 16


def _mac(key: bytes, value: str) -> str:
    return hmac.digest(key, value.encode(), hashlib.sha256)[:PSEUDONYM_BYTES].hex()


def pseudonyms(values: pa.ChunkedArray, keys: Keyring, purpose: str, scope: str, kind: str) -> pa.Array:
    """Pseudonym of each value; null stays null. Computed once for each distinct value.

    The subkey is derived from (purpose, scope, kind, period): the same id in two clinics, or as a case and as
    a patient, gives pseudonyms that cannot be linked.
    """
    encoded = values.combine_chunks().dictionary_encode()
    key = derive(keys.pseudonym, purpose, scope, kind, PERIOD)
    names = pa.array([_mac(key, v) for v in encoded.dictionary.to_pylist()], pa.string())
    return names.take(encoded.indices) if len(names) else pa.nulls(len(encoded), pa.string())


def linked_persons(insured_ids: pa.ChunkedArray, keys: Keyring) -> pa.Array:
    """Pseudonym of the person from the insured number where it is valid (check digit), else null."""
    encoded = insured_ids.combine_chunks().dictionary_encode()
    key = derive(keys.pseudonym, "person", "all-clinics", "insured-number", PERIOD)
    names = [_mac(key, v) if insured_id_is_valid(v) else None for v in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(encoded.indices) if names else pa.nulls(len(encoded), pa.string())
