"""Privacy over a range of arrival days: bound, freeze, measure, make consistent.

Bounding, counting and noise are one step, so that no exact count is ever written to disk: what is stored is
the rows that count (encrypted) and the noisy values (in the ledger).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.contract.codes import CARE_UNCOUNTED
from assets.contract.schemas import BOUNDING_DECISIONS, ESTIMATES, EVENTS, PSEUDONYMISED_CASES, only
from assets.contract.terms import WEEK_DAYS, WINDOW_DAYS, MeasuredTable
from assets.identity.persons import known_links, linked
from assets.identity.record import recorded_days, verify_cases
from assets.identity.tombstones import MARK
from assets.lake import audit
from assets.lake.distribute import LOCAL, Engine, in_order
from assets.lake.engine import connect, give_back, load
from assets.lake.keys import derive
from assets.lake.lake import Lake
from assets.privacy import kernel
from assets.privacy.at_cap import first_left_out
from assets.privacy.bounding import decide
from assets.privacy.certificate import certificate
from assets.privacy.estimates import estimates
from assets.privacy.evidence import remember, require_newest
from assets.privacy.ledger import Ledger, open_ledger
from assets.privacy.ledger_store import LedgerBroken
from assets.privacy.measure import Due, Unit, due, known_by, measure, open_window, require_agreed, unit_days
from assets.privacy.plan import terms_of

TIES = ", ".join(f"c.{name}" for name in PSEUDONYMISED_CASES.names if name != "arrival_day")
"""Total order of versions of a case that arrived on one day, so that no result depends on the order of files."""
SEEN: Final = only(PSEUDONYMISED_CASES, "clinic", "arrival_day", "case_key", "admitted_on", "care", "los", "died")
"""What is looked at of the whole table of cases, which grows with the years."""


def _days_from(first: date, n: int) -> list[date]:
    return [first + timedelta(k) for k in range(n)]


def _known(city: City, days: Sequence[date]) -> pa.Table:
    """event_day, known_on, week_known_on: when a day, and when its week, is known."""
    known = [city.known_on(d) for d in days], [city.week_known_on(d) for d in days]
    names = ("event_day", "known_on", "week_known_on")
    return pa.table({n: pa.array(v, pa.date32()) for n, v in zip(names, (days, *known), strict=True)})


def _of(rows: pa.Table, keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of `rows` are of the cases `keys`: a query that numbers or joins versions is given those, not history."""
    return pc.is_in(rows.column("case_key"), value_set=keys.unique())


def versions_of(lake: Lake, seen: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    """All versions (`PSEUDONYMISED_CASES`) of the cases `keys`; `seen`: the whole table, as `SEEN`."""
    return lake.read("cases", PSEUDONYMISED_CASES, where=_of(seen, keys).to_numpy())


def decisions_of(lake: Lake, column: str, values: Any) -> pa.Table:
    """`BOUNDING_DECISIONS` whose `column` is one of `values`; of all others, which grow with the years, nothing else is read."""
    looked_at = lake.read("bounding", only(BOUNDING_DECISIONS, column)).column(column)
    return lake.read("bounding", BOUNDING_DECISIONS, where=pc.is_in(looked_at, value_set=values).to_numpy())


def decided_so_far(lake: Lake, cases: pa.ChunkedArray, since: date) -> pa.Table:
    """`BOUNDING_DECISIONS` that matter to `cases` admitted from `since` on: their own, and those kept in the window before."""
    of_all = lake.read("bounding", only(BOUNDING_DECISIONS, "case_key", "event_day", "kept"))
    near = pc.and_(of_all.column("kept"), pc.greater(of_all.column("event_day"), since - timedelta(WINDOW_DAYS)))
    where = pc.or_(near, _of(of_all, cases)).to_numpy()
    del of_all
    return lake.read("bounding", BOUNDING_DECISIONS, where=where)


def keep_decisions(lake: Lake, fresh: pa.Table) -> None:
    """Add `fresh` (`BOUNDING_DECISIONS`) to those of their days."""
    days = sorted(fresh.column("decided_on").unique().to_pylist())
    lake.write_days("bounding", days, pa.concat_tables([lake.read("bounding", BOUNDING_DECISIONS, days), fresh]), "decided_on")  # fmt: skip


def bound(lake: Lake, city: City, seen: pa.Table, through: date, engine: Engine = LOCAL) -> None:
    """Decide every case (`seen`: `SEEN` of all) that arrived while its week was open and has no decision yet.

    A case is decided under the day its first version that counts arrived, however days are grouped into runs: what was
    only planned before is none. Where its day was frozen before that export was taken in, it is decided under the day after
    `City.known_on` its day, so that it is late. What was stored before a patient delivered an insured number, decided or
    not, counts for the person that the number then links to.
    """
    frozen, closed = lake.days("events"), set(lake.days("late_events"))
    open_days = [d for d in _days_from(city.start, (through - city.start).days + 1) if d not in closed]
    if not open_days:
        return
    # A case of which no version lies on an open day has its first version on none.
    asked = seen.filter(pc.is_in(seen.column("admitted_on"), pa.array(open_days, pa.date32()))).column("case_key")
    decided = decided_so_far(lake, asked, open_days[0])
    with connect() as con:
        con.register("cases", versions_of(lake, seen, asked))
        con.register("decided", decided)
        con.register("days", _known(city, open_days))
        con.register("frozen", pa.table({"event_day": pa.array(frozen, pa.date32())}))
        new = con.execute(
            f"""WITH first AS (
              SELECT *, admitted_on AS event_day FROM cases c WHERE arrival_day <= $through AND care <> 'other'
              QUALIFY row_number() OVER (PARTITION BY case_key ORDER BY arrival_day, {TIES}) = 1),
            placed AS (
              SELECT f.*, week_known_on, CASE WHEN event_day IN (FROM frozen) THEN greatest(arrival_day, known_on + 1)
                ELSE arrival_day END AS decided_on
              FROM first f JOIN days USING (event_day))
            SELECT decided_on, person_key, case_key, clinic, event_day
            FROM placed ANTI JOIN decided USING (case_key)
            WHERE decided_on <= week_known_on""",
            {"through": through},
        ).to_arrow_table()
    links = known_links(lake)
    new, before = in_order(linked(new, links)), linked(decided.filter(decided.column("kept")), links)
    keep_decisions(lake, kernel.decide(engine, new, before, city.caps, city.budget.epoch, city.former_caps))


def came_late(lake: Lake, city: City, seen: pa.Table, days: Sequence[date]) -> dict[str, Any]:
    """Cases by clinic whose first version that counts arrived on one of `days` after their day was known.

    `late`: counted in their week and longer; `too_late`: their week was closed as well, so nothing counts them.
    """
    now = seen.filter(pc.is_in(seen.column("arrival_day"), pa.array(days, pa.date32()))).column("case_key")
    versions = seen.filter(_of(seen, now)).select(["case_key", "arrival_day", "clinic", "admitted_on", "care"])
    decided = decisions_of(lake, "case_key", now.unique()).select(["case_key", "decided_on"])
    every_day = _known(city, _days_from(city.start, (days[-1] - city.start).days + 1))
    run_of = pa.table({"arrived": pa.array(days, pa.date32())})
    with connect() as con:
        load(con, cases=versions, decisions=decided, days=every_day, run=run_of)
        rows = con.execute(
            """WITH first AS (
              SELECT case_key, min(arrival_day) AS arrived, arg_min({'clinic': clinic, 'event_day': admitted_on}, arrival_day)
                AS v FROM cases WHERE care <> 'other' GROUP BY case_key)
            SELECT v.clinic, count(*) FILTER (d.decided_on > k.known_on) AS late,
              count(*) FILTER (d.case_key IS NULL) AS too_late
            FROM first f SEMI JOIN run USING (arrived) JOIN days k ON k.event_day = f.v.event_day
            LEFT JOIN decisions d USING (case_key) GROUP BY v.clinic ORDER BY v.clinic"""
        ).fetchall()
    return {name: {row[0]: row[n] for row in rows if row[n]} for n, name in ((1, "late"), (2, "too_late"))}


def arrival_days(city: City, day: date) -> set[date]:
    """Arrival days whose exports an event day is measured from: its own, or the city's first, and the freeze lag."""
    return {city.known_on(day) - timedelta(n) for n in range(city.freeze_lag_days + 1)}


def arrival_days_of_week(city: City, day: date) -> set[date]:
    """Arrival days for whose late cases the week of `day` waits after its last day was known."""
    return {city.week_known_on(day) - timedelta(n) for n in range(city.late_days + 1)}


def _open_days(lake: Lake, city: City, through: date) -> list[date]:
    """Event days whose lag is over on `through` and that are not frozen, ascending."""
    span = _days_from(city.start, (through - city.start).days + 1)
    return sorted({day for day in span if city.known_on(day) <= through} - set(lake.days("events")))


def closing_days(lake: Lake, city: City, through: date) -> list[date]:
    """Event days that are to be frozen on `through`: their lag is over, and every arrival day behind them ran.

    So a day that was left out holds back what waits for it, and costs nothing until it ran; what decides is which days
    ran, never whether somebody came.
    """
    ran = set(recorded_days(lake))
    return [day for day in _open_days(lake, city, through) if arrival_days(city, day) <= ran]


def closing_weeks(lake: Lake, city: City, through: date) -> list[date]:
    """Days of the weeks that take no more late cases from `through` on: all frozen, and not closed before."""
    frozen, done, ran = set(lake.days("events")), set(lake.days("late_events")), set(recorded_days(lake))
    days = (day for day in frozen - done if city.week_known_on(day) <= through)
    waited = (day for day in days if arrival_days_of_week(city, day) <= ran)
    return sorted(d for d in waited if frozen.issuperset(_days_from(city.unit_start("week", d), WEEK_DAYS)))


def missing_days(lake: Lake, city: City, through: date) -> list[date]:
    """Arrival days that never ran and hold back an event day, or the late cases of its week, whose lag is over on `through`."""
    behind = [arrival_days(city, day) for day in _open_days(lake, city, through)]
    closed = set(lake.days("late_events"))
    waiting = (day for day in lake.days("events") if day not in closed and city.week_known_on(day) <= through)
    behind += [arrival_days_of_week(city, day) for day in waiting]
    return sorted(set().union(*behind) - set(recorded_days(lake)))


def as_decided(cases: pa.Table, decisions: pa.Table, links: pa.Table) -> pa.Table:
    """All versions of the cases in `decisions`; those under another person than the one they were decided for do not count.

    They would count beside all that the other person's caps let through. `links` (`LINKS`): two patients who are one
    person have one pseudonym.
    """
    versions = cases.filter(_of(cases, decisions.column("case_key")))
    place = pc.index_in(versions.column("case_key"), value_set=decisions.column("case_key").combine_chunks())
    decided_for = decisions.column("person_key").take(place)
    # Only of pseudonyms that differ is asked whether they are one person: they are few, and versions need no copy.
    differ = pa.array(np.flatnonzero(pc.not_equal(versions.column("person_key"), decided_for).to_numpy()))
    one, other = (
        linked(pa.table({"n": differ, "person_key": who.take(differ)}), links)
        for who in (versions.column("person_key"), decided_for)
    )
    moved = np.zeros(versions.num_rows, dtype=bool)
    moved[one.filter(pc.not_equal(one.column("person_key"), other.column("person_key"))).column("n").to_numpy()] = True
    care = pc.if_else(pa.array(moved), CARE_UNCOUNTED, versions.column("care"))
    return versions.set_column(versions.column_names.index("care"), "care", care)


def beyond_caps(lake: Lake, city: City) -> pa.Array:
    """Cases that were kept for several patients who are one person, as a number said later, and that the caps do not let
    this person have together.

    What was measured before holds them; nothing measured from now on counts them. Their decisions stay, for they were
    counted. The person's cases are bounded again as they were decided, so that none takes the place of an earlier one.
    """
    links = known_links(lake)
    of_each = links.group_by("person_key").aggregate([("patient_key", "count_distinct")])
    several = of_each.filter(pc.greater(of_each.column("patient_key_count_distinct"), 1)).column("person_key")
    decided = lake.read("bounding", only(BOUNDING_DECISIONS, "person_key", "case_key"))
    # Of a patient who was erased no link is left, and their counters are the person's.
    marked = (pc.starts_with(decided.column(n), MARK) for n in ("case_key", "person_key"))
    erased = linked(decided.filter(pc.and_not(*marked)), links).column("person_key")
    persons = pa.chunked_array([*several.chunks, *erased.chunks], pa.string()).unique()
    if not len(persons):
        return pa.array([], pa.string())
    patients = links.filter(pc.is_in(links.column("person_key"), value_set=persons)).column("patient_key")
    theirs = decisions_of(lake, "person_key", pa.concat_arrays([persons, *patients.chunks]))
    kept = linked(theirs.filter(theirs.column("kept")).drop_columns(["kept"]), links)
    again = decide(kept, BOUNDING_DECISIONS.empty_table(), city.caps, city.budget.epoch, city.former_caps)
    return again.filter(pc.invert(again.column("kept"))).column("case_key").combine_chunks()


def freeze(lake: Lake, city: City, seen: pa.Table, closing: Sequence[date], late: bool) -> None:
    """Write the events of each day of `closing`, or its late ones: kept cases as known then. Never rewritten.

    An event is late where it was decided after `City.known_on` its day, and is in none of the days yet: whoever shortens
    the freeze lag must not count a case twice. A case whose last version by then says that it does not count (cancelled)
    or is another person's is no event.
    """
    only_key = pa.schema([EVENTS.field("case_key")])
    before = lake.read("events", only_key, closing) if late else only_key.empty_table()
    own = ("event_day", "person_key", "case_key", "clinic")
    decided = decisions_of(lake, "event_day", pa.array(closing, pa.date32()))
    with connect() as con:
        versions = versions_of(lake, seen, decided.column("case_key"))
        con.register("cases", as_decided(versions, decided, known_links(lake)))
        con.register("decisions", decided)
        con.register("closing", _known(city, closing))
        con.register("before", before)
        events = (
            con.execute(
                f"""WITH known AS (
              SELECT {", ".join("d." + n if n in own else "c." + n for n in EVENTS.names)}
              FROM decisions d JOIN closing k USING (event_day) ANTI JOIN before b ON b.case_key = d.case_key
              JOIN cases c ON c.case_key = d.case_key
                AND c.arrival_day <= CASE WHEN $late THEN k.week_known_on ELSE k.known_on END
              WHERE d.kept AND (d.decided_on > k.known_on) = $late
              QUALIFY row_number() OVER (PARTITION BY d.case_key ORDER BY c.arrival_day DESC, {TIES}) = 1)
            FROM known WHERE care <> 'other' ORDER BY event_day, case_key""",
                {"late": late},
            )
            .to_arrow_table()
            .cast(EVENTS)
        )
    lake.write_days("late_events" if late else "events", closing, events, "event_day", keep_empty=True)


def counted_events(lake: Lake, days: Iterable[date] | None = None) -> pa.Table:
    """`EVENTS` of all frozen days, or of `days`, with `late`, sorted by day and case."""
    days = None if days is None else list(days)
    parts = [
        (rows := lake.read(table, EVENTS, days)).append_column("late", pa.array([late] * rows.num_rows, pa.bool_()))
        for table, late in (("events", False), ("late_events", True))
    ]
    return pa.concat_tables(parts).sort_by([("event_day", "ascending"), ("case_key", "ascending")])


def of_persons(events: pa.Table, links: pa.Table, surplus: pa.Array) -> pa.Table:
    """`events` under the persons that `links` names by now, without the cases `surplus` (`beyond_caps`)."""
    return linked(events.filter(pc.invert(pc.is_in(events.column("case_key"), value_set=surplus))), links)


def with_outcome(events: pa.Table, seen: pa.Table, day: date) -> pa.Table:
    """`events` with `los` and `outcome` as known at the end of arrival day `day` (null: still in hospital)."""
    with connect() as con:
        con.register("events", events)
        con.register("cases", seen.filter(_of(seen, events.column("case_key"))))
        return con.execute(
            """SELECT e.*, c.los, c.outcome FROM events e LEFT JOIN (
              SELECT case_key, los, CASE WHEN died THEN 'died' ELSE 'other' END AS outcome FROM cases WHERE arrival_day <= $day AND los IS NOT NULL
              QUALIFY row_number() OVER (PARTITION BY case_key ORDER BY arrival_day DESC, los, died) = 1) c USING (case_key)
            ORDER BY event_day, case_key""",
            {"day": day},
        ).to_arrow_table()


def run(lake: Lake, city: City, days: Sequence[date], engine: Engine = LOCAL) -> dict[str, Any]:
    """Measure what is due after `days`; returns budget, counts of measurements and of cases that came late."""
    ledger, through = open_ledger(lake, city), days[-1]
    require_newest(lake, city, ledger)
    # Before anything is bounded: what other caps let through would pass the bounds of its window for good.
    days_so_far = {*_days_from(city.start, (through - city.start).days + 1), *lake.days("events")}
    terms = terms_of(city, map(city.window_start, days_so_far))
    require_agreed(city, terms, ledger)
    for start, agreed in terms.items():
        open_window(ledger, start, agreed)
    give_back()
    verify_cases(lake)
    seen = lake.read("cases", SEEN)
    bound(lake, city, seen, through, engine)
    freeze(lake, city, seen, closing_days(lake, city, through), late=False)
    freeze(lake, city, seen, closing_weeks(lake, city, through), late=True)
    links, surplus = known_links(lake), beyond_caps(lake, city)
    left_out = first_left_out(decisions_of(lake, "kept", pa.array([False])), seen, links, city)

    @lru_cache(maxsize=1)  # one window in memory, however many there are
    def events_of(start: date) -> pa.Table:
        return of_persons(counted_events(lake, _days_from(start, WINDOW_DAYS)), links, surplus)

    for start in sorted({city.window_start(d) for d in lake.days("events")}):
        certificate(events_of(start), *terms[start], between(left_out, start, start + timedelta(WINDOW_DAYS - 1)))

    def load(table: MeasuredTable, unit: Unit) -> pa.Table:
        days = unit_days(table, unit)
        found = between(left_out if table.at_cap else events_of(city.window_start(unit.start)), days[0], days[-1])
        if table.time == "day":
            found = found.filter(pc.equal(found.column("late"), unit.late))
        return with_outcome(found, seen, known_by(city, table, unit)) if table.needs_outcome else found

    def window_of(what: Due) -> date:
        return city.window_start(what[1].start)

    wanted = due(city, lake.days("events"), lake.days("late_events"), through, ledger.committed().keys())
    key = derive(lake.keys.pseudonym, "ledger", "snapshot")
    measured = sum(
        measure(*terms[start], ledger, list(mine), load, key, partial(kernel.count, engine))
        for start, mine in groupby(sorted(wanted, key=window_of), key=window_of)
    )
    head = remember(lake, ledger)
    audit.record(lake, "measurement", through=through, measurements=measured, entries=head.entries, head=head.hash)
    problems = ledger.verify()
    if problems:
        raise LedgerBroken("the ledger does not verify: " + "; ".join(problems))
    return {
        "measurements": measured,
        "missing_days": missing_days(lake, city, through),
        **came_late(lake, city, seen, days),
        "windows": _budgets(city, ledger),
    }


def _budgets(city: City, ledger: Ledger) -> dict[str, dict[str, Any]]:
    """What was spent of each window's budget, by its first day."""
    return {
        scope: {
            "mechanism": window.mechanism.title,
            "spent": f"{window.mechanism.currency} {float(window.spent):.5f}",
            "epsilon": window.epsilon(city.at(date.fromisoformat(scope)).budget.delta),
            "share_of_budget": window.spent_units / window.cap_units,
            "paused": window.paused,
        }
        for scope, window in ledger.windows().items()
    }


def between(events: pa.Table, first: date, last: date) -> pa.Table:
    """Events of the days `first` to `last`; the table is sorted by day."""
    days = events.column("event_day").to_numpy().astype("datetime64[D]")
    begin, end = days.searchsorted(np.datetime64(first), "left"), days.searchsorted(np.datetime64(last), "right")
    return events.slice(int(begin), int(end - begin))


def publishable(lake: Lake, city: City) -> pa.Table:
    """Consistent estimates of everything committed: privacy's only output."""
    ledger = open_ledger(lake, city)
    require_newest(lake, city, ledger)
    paused = [scope for scope, window in ledger.windows().items() if window.paused]
    require_agreed(city, terms_of(city, map(date.fromisoformat, ledger.windows())), ledger)
    return estimates(city, ledger.committed(), paused).cast(ESTIMATES)
