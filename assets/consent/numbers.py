"""Patients, documents and deliveries of a register as integers: joining those costs a fraction of joining ids.

Every patient of the register is a `person`; a patient that it does not know has no number. Deliveries are numbered in
order of arrival, so the newest version of a document has the highest number. Not here: the rule (`rule`).
"""

from __future__ import annotations

from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.lake.engine import load

_SAID: Final = (
    "clinic", "arrival_day", "status", "declared_at", "policy_uri", "code", "decision", "valid_from", "valid_to",
    "period_readable", "vanished",
)  # fmt: skip
Numbers = np.ndarray[Any, np.dtype[np.int64]]


def _coded(column: pa.ChunkedArray) -> tuple[Numbers, pa.Array]:
    """Rank of each value among the sorted distinct values, from 1 (0: null), and those values."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    place = np.empty(len(order) + 1, dtype=np.int64)
    place[order] = np.arange(1, len(order) + 1)
    place[-1] = 0
    return place[encoded.indices.fill_null(-1).to_numpy()], encoded.dictionary.take(pa.array(order))


def _joined(*parts: Numbers) -> Numbers:
    """One number for each combination, in the order of the first part, then the second, and so on."""
    whole, highest = np.zeros(len(parts[0]), dtype=np.int64), 0
    for part in parts:
        size = int(part.max(initial=0)) + 1
        if (highest + 1) * size >> 62:  # would overflow: renumber the combinations that occur
            whole = np.unique(whole, return_inverse=True)[1]
            highest = int(whole.max(initial=0))
        whole, highest = whole * size + part, highest * size + size - 1
    return whole


def among(rows: pa.Table, known: pa.Table) -> pa.Array:
    """Mask of `rows` that match a row of `known` in all of its columns; null matches nothing."""
    known = known.drop_null()
    theirs, own = (np.zeros(table.num_rows, dtype=np.int64) for table in (known, rows))
    for name in known.column_names:
        values = known.column(name).unique()
        place, found = (pc.index_in(t.column(name), value_set=values) for t in (known, rows))
        theirs = theirs * (len(values) + 1) + place.to_numpy()
        own = own * (len(values) + 1) + pc.fill_null(found, len(values)).to_numpy()
    return pa.array(np.isin(own, theirs))


def load_numbered(con: duckdb.DuckDBPyConnection, register: pa.Table, cases: pa.Table, majority: pa.Table) -> None:
    """Tables `people` (person, clinic, patient_id), `register`, `cases` (`n`: place in `cases`) and `majority`."""
    clinic, clinics = _coded(register.column("clinic"))
    patient, patients = _coded(register.column("patient_id"))
    known = _joined(clinic, patient)
    numbers, first = np.unique(known, return_index=True)
    numbers, first = numbers[patient[first] > 0], first[patient[first] > 0]
    people = register.select(["clinic", "patient_id"]).take(pa.array(first)).append_column("person", pa.array(numbers))

    def person_of(rows: pa.Table) -> pa.Array:
        """Numbers of the patients of `rows`; null where the register has no such patient."""
        at, who = (
            pc.fill_null(pc.index_in(rows.column(name), value_set=values), -1).to_numpy() + 1
            for name, values in (("clinic", clinics), ("patient_id", patients))
        )
        number = at.astype(np.int64) * (int(patient.max(initial=0)) + 1) + who
        return pa.array(number, mask=(at == 0) | (who == 0))

    day, export, file, document = (
        _coded(register.column(c))[0] for c in ("arrival_day", "export_id", "source_file", "consent_id")
    )
    # A document without an id is identified by its line.
    line = _joined(export, file, register.column("source_line").fill_null(0).to_numpy())
    document = np.where(document > 0, document, int(document.max(initial=0)) + 1 + line)
    load(
        con,
        people=people,
        register=register.select(_SAID)
        .append_column("person", pa.array(known, mask=patient == 0))
        .append_column("document", pa.array(_joined(clinic, document)))
        .append_column("delivery", pa.array(_joined(day, export, file))),
        cases=cases.select(["admitted_on", "discharged_on"])
        .append_column("person", person_of(cases))
        .append_column("n", pa.array(np.arange(cases.num_rows))),
        majority=majority.select(["of_age_from", "of_age_by"]).append_column("person", person_of(majority)),
    )
