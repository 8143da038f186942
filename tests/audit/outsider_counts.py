"""Which stored cases count, and the exact number in every cell before noise: a slow answer in plain Python.

Written from privacy.md and docs/privacy.md. Here: persons over clinics, caps, freezing, late cases, cells and what a
person costs. Not here: who is stored (`outsider_answer`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

from outsider_answer import Clinic, Version

WINDOW: Final = 364
LENGTHS: Final = {"day": 1, "week": 7, "period": 28}
CAPS: Final = {"week": 1, "period": 2, "window": 4}
Key = tuple[str, str]
"""Clinic and case."""
Person = Any
"""The insured number that links patients, else clinic and patient."""


@dataclass(frozen=True)
class Decision:
    kept: bool
    event_day: date
    decided_on: date
    patient: str


@dataclass(frozen=True)
class Table:
    """A table of the release plan."""

    name: str
    time: str
    dimensions: tuple[str, ...]
    extra_lag: int = 0


@dataclass
class Counts:
    """`run(through, ran)` after the clinics' run; `rank`: of cases of a person that arrive and begin on one day, which goes first."""

    start: date
    lag: int
    late_days: int
    tables: Sequence[Table]
    clinics: Mapping[str, Clinic]
    rank: Callable[[Key], str]
    decisions: dict[Key, Decision] = field(default_factory=dict)
    events: dict[date, dict[Key, tuple[Version, bool]]] = field(default_factory=dict)
    """Frozen day → case → (as it was known then, whether late)."""
    closed: set[date] = field(default_factory=set)
    measured: dict[str, Counter[tuple[str, ...]]] = field(default_factory=dict)

    def _known_on(self, day: date) -> date:
        return day + timedelta(self.lag)

    def _first(self, unit: str, day: date) -> date:
        return self.start + timedelta((day - self.start).days // LENGTHS[unit] * LENGTHS[unit])

    def _week_known_on(self, day: date) -> date:
        return self._known_on(self._first("week", day) + timedelta(6)) + timedelta(self.late_days)

    def person(self, key: Key, patient: str) -> Person:
        return self.clinics[key[0]].links.get(patient, (key[0], patient))

    def _stored(self) -> dict[Key, dict[date, Version]]:
        return {(c.key, case): versions for c in self.clinics.values() for case, versions in c.versions.items()}

    def run(self, through: date, ran: set[date]) -> None:
        for clinic in self.clinics.values():
            for frozen in self.events.values():
                for case in clinic.uncounted:
                    frozen.pop((clinic.key, case), None)
        stored = self._stored()
        self._bound(stored, through)
        self._freeze(stored, through, ran)
        self._measure(stored, through)

    def _bound(self, stored: Mapping[Key, Mapping[date, Version]], through: date) -> None:
        new = []
        for key, versions in stored.items():
            counting = [d for d, v in sorted(versions.items()) if v.care != "other" and d <= through]
            if key in self.decisions or not counting:
                continue
            first = versions[counting[0]]
            day = first.admitted
            on = max(counting[0], self._known_on(day) + timedelta(1)) if day in self.events else counting[0]
            if self.start <= day <= through and day not in self.closed and on <= self._week_known_on(day):
                new.append((on, day, self.rank(key), key, first.patient))
        for on, day, _, key, patient in sorted(new):
            who = self.person(key, patient)
            mine = [d.event_day for k, d in self.decisions.items() if d.kept and self.person(k, d.patient) == who]
            self.decisions[key] = Decision(self._fits(mine, day), day, on, patient)

    def _fits(self, mine: list[date], day: date) -> bool:
        """Whether a person may have a case on `day` beside those on the days `mine`."""
        if any(sum(self._first(u, d) == self._first(u, day) for d in mine) >= CAPS[u] for u in ("week", "period")):
            return False
        starts = [d for d in (*mine, day) if d <= day < d + timedelta(WINDOW)]
        return all(sum(s <= d < s + timedelta(WINDOW) for d in (*mine, day)) <= CAPS["window"] for s in starts)

    def _beyond_caps(self) -> set[Key]:
        """Cases of several patients that turned out to be too many for the one person they are: nothing measured now counts them."""
        having, beyond = defaultdict[Person, list[date]](list), set[Key]()
        for key, decision in sorted(
            self.decisions.items(), key=lambda i: (i[1].decided_on, i[1].event_day, self.rank(i[0]))
        ):
            mine = having[self.person(key, decision.patient)]
            if decision.kept and self._fits(mine, decision.event_day):
                mine.append(decision.event_day)
            elif decision.kept:
                beyond.add(key)
        return beyond

    def _freeze(self, stored: Mapping[Key, Mapping[date, Version]], through: date, ran: set[date]) -> None:
        every = [self.start + timedelta(n) for n in range((through - self.start).days + 1)]
        for day in (d for d in every if d not in self.events and self._known_on(d) <= through):
            if ran.issuperset(day + timedelta(n) for n in range(self.lag + 1)):
                self.events[day] = self._counted(stored, day, self._known_on(day), False)
        for monday in (d for d in every if (d - self.start).days % 7 == 0 and d not in self.closed):
            week = [monday + timedelta(n) for n in range(7)]
            waited = {self._week_known_on(monday) - timedelta(n) for n in range(self.late_days + 1)}
            if self._week_known_on(monday) <= through and all(d in self.events for d in week) and waited <= ran:
                self.closed |= set(week)
                for day in week:
                    self.events[day] |= self._counted(stored, day, self._week_known_on(monday), True)

    def _counted(
        self, stored: Mapping[Key, Mapping[date, Version]], day: date, known: date, late: bool
    ) -> dict[Key, tuple[Version, bool]]:
        found = {}
        for key, decision in self.decisions.items():
            by_then = [d for d in stored.get(key, ()) if d <= known]
            if (
                not decision.kept
                or decision.event_day != day
                or (decision.decided_on > self._known_on(day)) != late
                or not by_then
            ):
                continue
            version = stored[key][max(by_then)]
            if version.care != "other" and self.person(key, version.patient) == self.person(key, decision.patient):
                found[key] = (version, late)
        return found

    def _units(self, table: Table) -> list[tuple[str, list[date], bool | None, date]]:
        """(name, days, late or not or both, when it is known) of every unit of time of a table whose days are all frozen."""
        found = []
        for first in sorted({self._first(table.time, day) for day in self.events}):
            days = [first + timedelta(n) for n in range(LENGTHS[table.time])]
            by_day = table.time == "day"
            found.append(
                (
                    str(first),
                    days,
                    False if by_day else None,
                    self._known_on(first) if by_day else self._week_known_on(days[-1]),
                )
            )
        if table.time == "day":
            for monday in sorted({self._first("week", day) for day in self.events}):
                found.append(
                    (f"{monday}+late", [monday + timedelta(n) for n in range(7)], True, self._week_known_on(monday))
                )
        return [u for u in found if all(d in self.events for d in u[1]) and (u[2] is False or set(u[1]) <= self.closed)]

    def _measure(self, stored: Mapping[Key, Mapping[date, Version]], through: date) -> None:
        beyond = self._beyond_caps()
        for table in self.tables:
            for label, days, late, known in self._units(table):
                name, when = f"{table.name}:{label}:1", known + timedelta(table.extra_lag)
                if name not in self.measured and when <= through:
                    self.measured[name] = Counter(
                        self._cell(table, key, version, stored.get(key, {}), when)
                        for day in days for key, (version, came_late) in self.events[day].items()
                        if late in (None, came_late) and key not in beyond
                    )  # fmt: skip

    def _cell(
        self, table: Table, key: Key, version: Version, versions: Mapping[date, Version], known: date
    ) -> tuple[str, ...]:
        over = [v for d, v in sorted(versions.items()) if d <= known and v.los is not None]
        end = {"los": over[-1].los if over else "28+", "outcome": "died" if over and over[-1].died else "other"}
        return (version.care, *(str(end[d] if d in end else getattr(version, d)) for d in table.dimensions))

    def of_person(self, patient: Key) -> dict[str, int]:
        """Table → Σ (number in a cell)² over what was measured, of the person of a patient: units of squared sensitivity."""
        who, stored, spent = self.person(patient, patient[1]), self._stored(), Counter[str]()
        for table in self.tables:
            for label, days, late, _known in self._units(table):
                if f"{table.name}:{label}:1" in self.measured:
                    cells = Counter(
                        self._cell(table, key, version, stored.get(key, {}), date.max)
                        for day in days for key, (version, came_late) in self.events[day].items()
                        if late in (None, came_late) and self.person(key, self.decisions[key].patient) == who
                    )  # fmt: skip
                    spent[table.name] += sum(n * n for n in cells.values())
        return dict(spent)
