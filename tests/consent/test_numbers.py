"""Rows are told by all of their keys together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from assets.consent.numbers import _joined, among


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


def test_numbers_of_many_columns_stay_apart_and_in_order_however_large():
    rng = np.random.default_rng(1)
    parts = [np.append(rng.integers(0, 3, 50), 10**7) for _ in range(5)]  # (10⁷)⁵ fits no integer of 64 bits
    joined = _joined(*parts)
    assert joined.min() >= 0
    order = sorted(range(51), key=lambda n: tuple(p[n] for p in parts))
    assert joined[order].tolist() == sorted(joined.tolist())
    assert len(set(joined.tolist())) == len({tuple(p[n] for p in parts) for n in range(51)})
