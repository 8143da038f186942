"""Contribution counters of erased patients, under keyed hashes.

They keep leaving and joining again from spending a second budget: what was counted stays counted until its window ends,
though nothing tells any more whose it was. Whoever is delivered again gets them back under their pseudonym; to every
other module a hash is somebody who is not here. A copy of them and of sealed links lies in `landing/_erased/`, because
an earlier backup has neither. Not here: consents (`consent.tombstones`), what a sealed link is (`persons`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.tombstones import beside_raw
from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS, PSEUDONYMISED_CASES, only
from assets.contract.terms import WINDOW_DAYS
from assets.identity.persons import SEALED_LINKS, SEALED_TABLE, linked
from assets.lake.keys import Keyring, derive, keyed_hashes
from assets.lake.lake import DamagedTable, Lake

MARK: Final = "tombstone:"
_NAMED: Final = only(PSEUDONYMISED_CASES, "case_key", "patient_key", "person_key")
RETURNED: Final = "counters_returned"
"""The record that no stored case has a retired counter: it is gone while an erasure has retired some, and not yet the cases."""


def _hashes(values: pa.Array | pa.ChunkedArray, keys: Keyring, kind: str) -> pa.Array:
    """Marked hashes of stored pseudonyms, under the cover of the period as these are; null stays null."""
    key = derive(keys.pseudonym, "tombstone", "counter", kind)
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pc.binary_join_element_wise(pa.scalar(MARK), keys.cover(keyed_hashes(keys.uncover(whole), key)), "")


def needed_from(lake: Lake, city: City) -> date:
    """First event day whose counters may still matter: to a case within 364 days of it that is not in all tables yet.

    Whatever holds a day up is in this: lags, history that comes with the first delivery, arrival days that never ran. A day
    is in all tables once its week is closed, and another week that closed after the largest extra lag.
    """
    closed = set(lake.days("late_events"))
    plans = (city.plan, *(terms.plan for terms in city.former))
    lag = timedelta(max(table.extra_lag_days for plan in plans for table in plan.tables))
    day, newest = city.start, max(closed, default=city.start)
    while day in closed and city.week_known_on(day) + lag < city.week_known_on(newest):
        day += timedelta(1)
    return day - timedelta(WINDOW_DAYS - 1)


def retire(
    bounding: pa.Table,
    patients: pa.Array,
    case_keys: pa.Array,
    moved: pa.Array,
    links: pa.Table,
    living: Callable[[pa.Array], pa.Array],
    since: date,
    keys: Keyring,
) -> pa.Table:
    """`BOUNDING_DECISIONS` with hashes in place of the pseudonyms of erased cases and of persons without a case left.

    `patients` are erased, and `case_keys` are the erased cases. `moved`: cases of erased patients that are somebody else's by now;
    they keep their pseudonym, because they were decided for the former patient, count for nobody, and nothing else would
    tell. What leaves is stored under the person that `links` (`LINKS`) names by now, who may live on elsewhere or come
    again: a link does not find a hash. `living`: those of the given persons who still have a case, under whatever pseudonym.
    Tombstones of days before `since` (`needed_from`) are dropped.
    """
    cases, persons = bounding.column("case_key"), bounding.column("person_key")
    before = pc.starts_with(cases, MARK)
    now = pc.and_(pc.invert(before), pc.is_in(cases, case_keys))
    erased = pc.or_(pc.or_(before, now), pc.starts_with(persons, MARK))
    leaving = pc.or_(pc.or_(erased, pc.is_in(cases, moved)), pc.is_in(persons, patients))
    if not pc.any(leaving).as_py():
        return bounding
    persons = pc.if_else(leaving, linked(bounding, links).column("person_key"), persons)
    bounding = bounding.set_column(bounding.column_names.index("person_key"), "person_key", persons)
    named = pc.and_(leaving, pc.invert(pc.starts_with(persons, MARK)))
    asked = persons.filter(named).unique()
    lost = pc.and_(named, pc.invert(pc.is_in(persons, value_set=living(asked) if len(asked) else asked)))
    table = _replaced(_replaced(bounding, "case_key", now, keys), "person_key", lost, keys)
    over = pc.less(table.column("event_day"), pa.scalar(since))
    return table.filter(pc.invert(pc.and_(pc.or_(erased, lost), over))).cast(BOUNDING_DECISIONS)


def _replaced(table: pa.Table, column: str, where: pa.Array, keys: Keyring) -> pa.Table:
    """`table` with the hashes of `column` in the rows `where`; nothing else is hashed."""
    values = table.column(column)
    hashes = _hashes(pc.if_else(where, values, pa.scalar(None, pa.string())), keys, column)
    return table.set_column(table.column_names.index(column), column, pc.if_else(where, hashes, values))


def restore_counters(lake: Lake, cases: pa.Table, links: pa.Table) -> None:
    """Give retired counters back to the persons and cases that came again with `cases` (`PSEUDONYMISED_CASES`) or `links` (`LINKS`).

    A person is found by the patient too, because somebody without an insured number may come again with one, and by the
    link alone, because the case that brings it may be deleted already. Pseudonyms are hashed only if any counter is
    retired. The first call, and the one after an erasure that died, cover all stored cases: earlier versions of this
    software left counters retired whose persons had come again, and whoever was half erased may be permitted again.
    """
    named = cases if lake.read_record(RETURNED) else lake.read("cases", _NAMED)
    back: dict[str, tuple[pa.Array, pa.Array]] = {}
    for held, _ in lake.months("bounding") if named.num_rows or links.num_rows else ():
        bounding = lake.read("bounding", BOUNDING_DECISIONS, held)
        if not any(pc.any(pc.starts_with(bounding.column(n), MARK)).as_py() for n in ("person_key", "case_key")):
            continue
        back = back or {
            "person_key": _marked(
                [named.column("person_key"), named.column("patient_key"), links.column("person_key")],
                "person_key",
                lake.keys,
            ),
            "case_key": _marked([named.column("case_key")], "case_key", lake.keys),
        }
        restored = bounding
        for column, (marks, pseudonyms) in back.items():
            values = restored.column(column)
            known = pc.coalesce(pseudonyms.take(pc.index_in(values, marks)), values)
            restored = restored.set_column(restored.column_names.index(column), column, known)
        if not restored.equals(bounding):
            lake.write_days("bounding", held, restored.cast(BOUNDING_DECISIONS), "decided_on")
    if named is not cases:
        lake.write_record(RETURNED, {"all": True})


def _marked(columns: Sequence[pa.ChunkedArray], kind: str, keys: Keyring) -> tuple[pa.Array, pa.Array]:
    """Distinct pseudonyms in `columns`, and before them their hashes as `retire` stores them."""
    found = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).unique()
    return _hashes(found, keys, kind), found


def only_retired(bounding: pa.Table) -> pa.Table:
    """The rows of `bounding` that hold a hash."""
    return bounding.filter(pc.or_(*(pc.starts_with(bounding.column(n), MARK) for n in ("case_key", "person_key"))))


def copy_counters(lake: Lake, retired: pa.Table) -> None:
    """Make the copy in landing hold exactly `retired`, all retired counters of `lake`, and its sealed links."""
    copy = beside_raw(lake)
    for name, column, rows in (
        ("bounding", "decided_on", retired),
        (SEALED_TABLE, "arrival_day", lake.read(SEALED_TABLE, SEALED_LINKS)),
    ):
        try:
            known = copy.read(name, rows.schema)
        except DamagedTable:  # or under former keys
            shutil.rmtree(copy.confidential / name)
            known = rows.schema.empty_table()
        # Compared with the copy itself: the run before may have died before it came here.
        if not known.equals(rows.sort_by(column)):
            days = {*known.column(column).to_pylist(), *rows.column(column).to_pylist()}
            copy.write_days(name, days, rows.sort_by(column), column)


def bring_back_counters(lake: Lake, restored: Lake) -> None:
    """Add the copy in the landing of `lake` to `restored`. Raises `DamagedTable`.

    Counters that `restored` still holds under pseudonyms are left out: the next run retires them.
    """
    copy, counted = beside_raw(lake), restored.read("bounding", BOUNDING_DECISIONS)
    names = counted.column("case_key")
    living = _hashes(names.filter(pc.invert(pc.starts_with(names, MARK))), restored.keys, "case_key")
    known = pa.chunked_array([*names.chunks, living], pa.string())
    retired = copy.read("bounding", BOUNDING_DECISIONS)
    retired = retired.filter(pc.invert(pc.is_in(retired.column("case_key"), value_set=known)))
    days = retired.column("decided_on").unique().to_pylist()
    restored.write_days("bounding", days, pa.concat_tables([counted, retired]), "decided_on")
    sealed = pa.concat_tables([one.read(SEALED_TABLE, SEALED_LINKS) for one in (restored, copy)])
    sealed = sealed.group_by(SEALED_LINKS.names).aggregate([]).cast(SEALED_LINKS)
    restored.write_days(SEALED_TABLE, sealed.column("arrival_day").unique().to_pylist(), sealed, "arrival_day")


def person_rows(bounding: pa.Table, person_keys: pa.Array, keys: Keyring) -> list[dict[str, Any]]:
    """Rows of `bounding` of one person, by all pseudonyms it was counted under, erased ones included, with `erased`."""
    names = pa.concat_arrays([person_keys, _hashes(person_keys, keys, "person_key")])
    rows = bounding.filter(pc.is_in(bounding.column("person_key"), names)).to_pylist()
    return [row | {"erased": any(row[n].startswith(MARK) for n in ("case_key", "person_key"))} for row in rows]
