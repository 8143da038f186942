"""Keyed pseudonyms: HMAC-SHA-256 under a subkey for each purpose (RFC 2104, RFC 5869).

Each clinic has its own subkeys for patients and for cases, so the same id in two clinics, or as a case and as a
patient, gives pseudonyms that cannot be linked. Not here: who is one person (`persons`), what else a row holds
(`pseudonymise`).
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from assets.contract.codes import insured_id_is_valid
from assets.lake.keys import Keyring, derive, keyed_hash, keyed_ids

PERIOD: Final = "1"
"""Version of the labels. What changes with a rotation of keys is the cover (`Keyring.cover`), not the hash under it."""


def patient_keys(patients: pa.Table, keys: Keyring) -> pa.Table:
    """(clinic, id, key) of patients given as (clinic, patient_id)."""
    return keyed_ids(patients, "patient_id", keys, lambda clinic: ("pseudonym", clinic, "patient", PERIOD))


def case_keys(cases: pa.Table, keys: Keyring) -> pa.Table:
    """(clinic, id, key) of cases given as (clinic, case_id)."""
    return keyed_ids(cases, "case_id", keys, lambda clinic: ("pseudonym", clinic, "case", PERIOD))


def linked_persons(insured_ids: pa.ChunkedArray, keys: Keyring) -> pa.Array:
    """Pseudonym of the person from the insured number where it is valid (check digit), else null."""
    encoded = insured_ids.combine_chunks().dictionary_encode()
    key = derive(keys.pseudonym, "person", "all-clinics", "insured-number", PERIOD)
    names = [keyed_hash(key, v) if insured_id_is_valid(v) else None for v in encoded.dictionary.to_pylist()]
    people = pa.array(names, pa.string()).take(encoded.indices) if names else pa.nulls(len(encoded), pa.string())
    return keys.cover(people)
