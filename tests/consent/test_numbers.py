"""Rows are told by all of their keys together."""

from __future__ import annotations

import pyarrow as pa

from assets.consent.numbers import among


def rows(*values: tuple[str | None, int | None]) -> pa.Table:
    return pa.table({"clinic": pa.array([c for c, _ in values], pa.string()), "case": pa.array([n for _, n in values])})


def test_a_row_is_among_others_only_with_all_of_its_keys():
    known = rows(("a", 1), ("a", 2), ("b", 3), ("a", 1))
    asked = rows(("b", 3), ("b", 1), ("a", 3), ("a", 1), ("c", 1), ("a", 9), ("c", 9))
    assert among(asked, known).to_pylist() == [True, False, False, True, False, False, False]


def test_what_has_no_key_is_among_nothing():
    assert among(rows((None, 1), ("a", None), ("a", 1)), rows((None, 1), ("a", None))).to_pylist() == [False] * 3
    assert among(rows((None, 1), ("a", 1)), rows(("a", 1), (None, 1))).to_pylist() == [False, True]
    assert among(rows(("a", 1)), rows()).to_pylist() == [False]
    assert among(rows(), rows(("a", 1))).to_pylist() == []
