"""Who a person is: one answer, whoever asks and in whatever order links were written."""

from datetime import date, timedelta

import pyarrow as pa
import pytest

from assets.contract.schemas import BOUNDING_DECISIONS, PSEUDONYMISED_CASES
from assets.identity.persons import LINKS, SEALED_LINKS, linked, links_with, pseudonyms_of_person, seal
from assets.identity.tombstones import MARK, restore_counters, retire
from assets.lake.lake import Lake

DAY = date(2025, 3, 1)
P, Q, X, Y = ("1" * 32, "2" * 32, "a" * 32, "b" * 32)


def _links(*rows: tuple[int, str, str]) -> pa.Table:
    return pa.table(
        [[DAY + timedelta(n) for n, _, _ in rows], [p for _, p, _ in rows], [x for _, _, x in rows]], schema=LINKS
    )


def _rows(*patients: str) -> pa.Table:
    return pa.table({"person_key": list(patients), "asked_on": [DAY + timedelta(5)] * len(patients)})


@pytest.mark.parametrize("rows", [((3, P, Y), (1, P, X)), ((1, P, X), (3, P, Y)), ((1, P, Y), (1, P, X))])
def test_of_several_links_the_first_counts_whatever_their_order(rows: tuple[tuple[int, str, str], ...]):
    assert linked(_rows(P, Q), _links(*rows)).column("person_key").to_pylist() == [X, Q]


@pytest.mark.parametrize(("arrived", "person"), [(4, X), (5, X), (6, P)])
def test_a_link_counts_from_the_day_on_which_it_arrived(arrived: int, person: str):
    known = _links((arrived, P, X), (arrived + 9, P, Y))
    assert linked(_rows(P), known, as_of="asked_on").column("person_key").to_pylist() == [person]


def test_a_person_has_the_pseudonyms_of_every_patient_who_is_linked_to_it(lake: Lake):
    lake.write_days("links", [DAY], _links((0, P, X), (0, Q, X)), "arrival_day")
    assert set(pseudonyms_of_person(lake, pa.array([P])).to_pylist()) == {P, Q, X}
    assert set(pseudonyms_of_person(lake, pa.array([Y])).to_pylist()) == {Y}


def test_a_sealed_link_opens_for_its_patient_only_and_names_nobody(lake: Lake):
    seal(lake, _links((2, P, Y), (2, Q, X)))
    assert links_with(lake, lambda: pa.array([Q])).to_pylist() == _links((2, Q, X)).to_pylist()
    stored = str(lake.read("link_tombstones", SEALED_LINKS).to_pylist())
    assert not [name for name in (P, Q, X, Y) if name in stored]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_who_left_twice_and_changed_their_number_between_stays_who_they_were_counted_as(
    lake: Lake, order: tuple[int, int]
):
    sealed = (_links((0, P, X)), _links((40, P, Y)))
    for n in order:
        seal(lake, sealed[n])
    assert links_with(lake, lambda: pa.chunked_array([[P]])).to_pylist() == sealed[0].to_pylist()


def test_a_link_gives_a_person_their_counters_back_though_the_case_that_brought_it_is_deleted(lake: Lake):
    row = {
        "decided_on": DAY,
        "person_key": P,
        "case_key": "c" * 32,
        "clinic": "klinik-nord",
        "event_day": DAY,
        "kept": True,
    }
    counted, nobody = pa.Table.from_pylist([row], schema=BOUNDING_DECISIONS), pa.array([], pa.string())
    known = _links((0, P, X))
    retired = retire(counted, pa.array([P]), pa.array(["c" * 32]), nobody, known, lambda _: nobody, DAY, lake.keys)
    assert retired.column("person_key")[0].as_py().startswith(MARK)
    lake.write_days("bounding", [DAY], retired, "decided_on")
    restore_counters(lake, PSEUDONYMISED_CASES.empty_table(), _links((1, Q, X)))
    assert lake.read("bounding", BOUNDING_DECISIONS).column("person_key").to_pylist() == [X], (
        "the other patient's person"
    )
