"""The ledger: what was spent and drawn, once and for all. Append-only and hash-chained.

Steps of a measurement: reserve (one write transaction) → draw → commit values. Reserved counts as spent. Rules of the
database (`ledger_store`), not only this code, forbid changing or deleting an entry and passing a cap. Committed
values are differentially private, so a ledger holds no one's data.

| entry | says |
|---|---|
| open | a window begins: its cap, the caps on what a person contributes, the shares of its tables, and its mechanism where that is not the discrete Gaussian |
| set_aside | this much of that cap is for corrections and nothing else |
| reserve, correct | a measurement, or the correction of one, will be drawn over this snapshot for that much |
| supersede | a reserved measurement, not yet committed, is asked for again and will be drawn over this snapshot; costs nothing |
| commit | its values |
| pause | the budget of a window is used up: nothing more is measured in it |

Amounts are 10⁻¹⁵ of the currency of the window's mechanism: ρ, or ε of geometric noise. The column is called `rho_units`,
from the time when ρ was the only one.

**Why a reserved measurement may be drawn over other data, at no cost.** After a crash between reserve and commit a
withdrawal can have changed the data. Let x be the data when it was reserved, x' when the run resumes, and p the
published values. Drawn values exist in the memory of one process until its commit is durable, and publication reads
committed values only; so, of all draws for a name, exactly the committed one reaches anybody. Its draw used fresh
randomness, independent of any earlier draw, and what made the earlier process die (a kill, a power cut, a full disk)
does not depend on the values it had drawn: none was written, and the sampler has no value that it rejects. Hence p has
the distribution of M(x'), whatever was drawn before. For two neighbouring histories that differ in one person, x'
differs in that person's events only, bounded as ever, so p is indistinguishable to the very cost that was reserved.
Had values left the process before the
commit, two draws about a person would be out for the price of one: that is why a commit names the snapshot it was
drawn from, why the database takes only the last one, and why a committed name is never drawn again.

Every such resumption is written down, whether or not the data changed: how many entries there are is published
(`evidence`), and must not tell that somebody withdrew in between.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal

from assets.contract.city import City
from assets.contract.terms import WINDOW_DAYS
from assets.lake.lake import Lake
from assets.privacy.accounting import UNITS
from assets.privacy.ledger_store import GENESIS, Execute, LedgerBroken, PostgresStore, Refused, SqliteStore, Store
from assets.privacy.mechanism import DiscreteGaussian, Noise, mechanism_of

_COLUMNS: Final = "kind, measurement, scope, rho_units, snapshot, parameters, measured"
_CHARGED: Final = "kind IN ('reserve', 'correct')"


class BudgetExceeded(RuntimeError):
    """What is set aside for corrections does not suffice; nothing was reserved."""


class CapChanged(ValueError):
    """A window was opened with another cap or mechanism, or begins inside another one: neither changes once it is open."""


class SnapshotMismatch(RuntimeError):
    """A committed measurement was asked for over other data, or a reserved one with other parameters."""


class Overtaken(RuntimeError):
    """Another process committed this measurement, or reserved it again over newer data: its values stand."""


@dataclass(frozen=True)
class Reservation:
    measurement: str
    scope: str
    cost_units: int
    snapshot: str
    parameters: str
    kind: Literal["reserve", "correct"] = "reserve"


@dataclass(frozen=True)
class Committed:
    """Values of a committed measurement, flat, in order of its parameters' shape."""

    scope: str
    cost_units: int
    parameters: dict[str, Any]
    values: list[int]


@dataclass
class Window:
    """What a window has and what was spent of it, in units of 10⁻¹⁵ of its currency."""

    cap_units: int = -1
    set_aside_units: int = 0
    corrections_units: int = 0
    paused: bool = False
    mechanism: type[Noise] = DiscreteGaussian
    tables: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Spent by table, corrections apart."""

    def book(self, kind: str, measurement: str, cost_units: int, parameters: str = "{}") -> None:
        """Take in an entry."""
        if kind == "open":
            self.cap_units = cost_units
            self.mechanism = mechanism_of(_terms(parameters))
        elif kind == "set_aside":
            self.set_aside_units = cost_units
        elif kind == "reserve":
            self.tables[measurement.split(":", maxsplit=1)[0]] += cost_units
        elif kind == "correct":
            self.corrections_units += cost_units
        elif kind == "pause":
            self.paused = True

    @property
    def planned_units(self) -> int:
        return sum(self.tables.values())

    @property
    def spent_units(self) -> int:
        return self.planned_units + self.corrections_units

    @property
    def spent(self) -> Fraction:
        """In the currency of its mechanism."""
        return Fraction(self.spent_units, UNITS)

    def epsilon(self, delta: float, units: int | None = None) -> float:
        """ε of what was spent, or of so many `units` of its currency."""
        return self.mechanism.epsilon((self.spent_units if units is None else units) / UNITS, delta)


def _digest(previous: str, content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([previous, *content], ensure_ascii=True).encode()).hexdigest()


def _terms(text: str) -> Any:
    """What an entry says in JSON. Raises `LedgerBroken` where it was damaged."""
    try:
        return json.loads(text)
    except ValueError:
        raise LedgerBroken("an entry of the ledger holds terms or values that cannot be read") from None


def open_ledger(lake: Lake, city: City) -> Ledger:
    """The city's ledger: the database its file names, else a file in the confidential zone."""
    return Ledger(city.ledger or lake.ledger_path)


class Ledger:
    """One ledger; safe to use from several processes at once, in PostgreSQL (a URL) from several machines."""

    def __init__(self, location: Path | str) -> None:
        self.store: Store = SqliteStore(location) if isinstance(location, Path) else PostgresStore(location)

    def open_scope(
        self, scope: str, cap_units: int, set_aside_units: int = 0, mechanism: type[Noise] = DiscreteGaussian,
        caps: Mapping[str, int] | None = None, shares: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Fix mechanism and cap of a window, its reserve for corrections, the `caps` that its cases are bounded by and the
        `shares` of its plan; returns what of these was noted down when it was opened.

        Raises `CapChanged` where it has another mechanism, cap or caps. Windows that were opened before caps or shares were
        noted down name none.
        """
        about: dict[str, Any] = {} if mechanism is DiscreteGaussian else {"mechanism": mechanism.title}
        about |= {"caps": dict(caps)} if caps else {}
        about |= {"shares": dict(shares)} if shares else {}
        with self.store.write() as execute:
            rows = execute("SELECT rho_units, parameters FROM entries WHERE scope = ? AND kind = 'open'", (scope,))
            if not rows:
                self._require_apart(execute, scope)
                self._append(execute, ("open", f"window:{scope}", scope, cap_units, "", json.dumps(about), None))
                if set_aside_units:
                    name = f"corrections:{scope}"
                    self._append(execute, ("set_aside", name, scope, set_aside_units, "", "{}", None))
                return about
            cap, noted = rows[0][0], _terms(rows[0][1])
            agreed = mechanism_of(noted)
            if agreed is not mechanism:
                raise CapChanged(
                    f"window {scope} was begun with {agreed.title} noise and pays in {agreed.currency}; the plan now takes "
                    f"{mechanism.title} noise, which pays in {mechanism.currency}. Write `mechanism: {agreed.key}` below "
                    "`budget` of that window in the city file (of an earlier window it stands below `former`)"
                )
            if cap != cap_units:
                raise CapChanged(
                    f"window {scope} was opened with a cap of {cap} units, the city file now gives it {cap_units}: a budget "
                    "never changes once begun. Put it back, or write it below `former` with the window's last day"
                )
            if caps and noted.get("caps", about["caps"]) != about["caps"]:
                raise CapChanged(
                    f"cases of window {scope} were bounded by the caps {noted['caps']}, the city file now has {about['caps']}. "
                    "Put them back, or write them below `former` with the window's last day"
                )
            return dict(noted)

    def _require_apart(self, execute: Execute, scope: str) -> None:
        """Raise `CapChanged` where a window from `scope` would share days with another, and so pay for them twice."""
        for (other,) in execute("SELECT scope FROM entries WHERE kind = 'open'"):
            if abs((date.fromisoformat(other) - date.fromisoformat(scope)).days) < WINDOW_DAYS:
                raise CapChanged(
                    f"a window from {scope} would overlap the one from {other}, which is open: put the epoch of the budget "
                    f"back, or begin the new one {WINDOW_DAYS} days after it"
                )

    def _append(self, execute: Execute, content: Sequence[Any]) -> None:
        last = execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1")
        seq, previous = last[0] if last else (0, GENESIS)
        execute(
            f"INSERT INTO entries (seq, {_COLUMNS}, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (seq + 1, *content, previous, _digest(previous, content)),
        )

    def reserve(self, reservations: Sequence[Reservation]) -> list[Reservation]:
        """Reserve in this order, all in one transaction; those that may be drawn now.

        A measurement that is reserved already costs nothing and is superseded (see above). The first
        one that would pass its window's cap pauses the window: it and every new one after it are left out.
        """
        granted = []
        with self.store.write() as execute:
            windows = self._windows(execute)
            for r in reservations:
                known = execute(
                    f"SELECT parameters FROM entries WHERE measurement = ? AND {_CHARGED}", (r.measurement,)
                )
                if known:
                    self._again(execute, r, known[0][0])
                elif not self._affordable(execute, r, windows[r.scope]):
                    continue
                else:
                    content = (r.kind, r.measurement, r.scope, r.cost_units, r.snapshot, r.parameters, None)
                    self._append(execute, content)
                granted.append(r)
        return granted

    def _again(self, execute: Execute, r: Reservation, parameters: str) -> None:
        """A `supersede` of an uncommitted measurement, also over the same data; nothing where it is committed so."""
        committed = execute("SELECT snapshot FROM entries WHERE measurement = ? AND kind = 'commit'", (r.measurement,))
        if parameters != r.parameters or committed not in ([], [(r.snapshot,)]):
            raise SnapshotMismatch(f"{r.measurement} was reserved with other parameters, or committed over other data")
        if committed:
            return
        self._append(execute, ("supersede", r.measurement, r.scope, 0, r.snapshot, r.parameters, None))

    def _affordable(self, execute: Execute, r: Reservation, window: Window) -> bool:
        """Whether the window has room for `r`, which is then counted; pauses it where a planned one finds none."""
        if r.kind == "correct":
            window.book(r.kind, r.measurement, r.cost_units)
            if window.corrections_units > window.set_aside_units:
                raise BudgetExceeded(
                    f"{r.measurement} would cost {r.cost_units} units of {window.mechanism.currency}: with the corrections before it that is more"
                    f" than the {window.set_aside_units} which the window from {r.scope} has set aside for corrections"
                )
            return True
        fits = window.planned_units + r.cost_units <= window.cap_units - window.set_aside_units
        if fits and not window.paused:
            window.book(r.kind, r.measurement, r.cost_units)
            return True
        if not window.paused:
            window.book("pause", "", 0)
            self._append(execute, ("pause", f"paused:{r.scope}", r.scope, 0, "", "{}", None))
        return False

    def commit(self, drawn: Mapping[Reservation, Sequence[int]]) -> None:
        """Commit drawn values, all or none. Raises `Overtaken` where one has values already, or newer data."""
        with self.store.write() as execute:
            for r, values in drawn.items():
                rows = execute(f"SELECT rho_units FROM entries WHERE measurement = ? AND {_CHARGED}", (r.measurement,))
                if not rows:
                    raise KeyError(f"{r.measurement} was never reserved")
                content = ("commit", r.measurement, r.scope, rows[0][0], r.snapshot, r.parameters)
                try:
                    self._append(execute, (*content, json.dumps(list(values))))
                except Refused as error:
                    raise Overtaken(f"{r.measurement}: {error}") from None

    def committed(self) -> dict[str, Committed]:
        with self.store.read() as execute:
            rows = execute(
                "SELECT measurement, scope, rho_units, parameters, measured FROM entries WHERE kind = 'commit' ORDER BY seq"
            )
        return {
            m: Committed(scope, cost, _terms(parameters), _terms(values)) for m, scope, cost, parameters, values in rows
        }

    def reserved(self) -> dict[str, dict[str, Any]]:
        """Measurements that are reserved, committed or not, with their parameters."""
        with self.store.read() as execute:
            rows = execute(f"SELECT measurement, parameters FROM entries WHERE {_CHARGED} ORDER BY seq")
        return {m: _terms(parameters) for m, parameters in rows}

    def _windows(self, execute: Execute) -> dict[str, Window]:
        windows: dict[str, Window] = defaultdict(Window)
        for kind, measurement, scope, cost, parameters in execute(
            "SELECT kind, measurement, scope, rho_units, CASE kind WHEN 'open' THEN parameters ELSE '{}' END"
            " FROM entries WHERE kind NOT IN ('supersede', 'commit') ORDER BY seq"
        ):
            windows[scope].book(kind, measurement, cost, parameters)
        return windows

    def windows(self) -> dict[str, Window]:
        """Every window by its first day, in order."""
        with self.store.read() as execute:
            return dict(sorted(self._windows(execute).items()))

    def verify(self) -> list[str]:
        """Problems found: broken hash chain, changed entry, cap passed, commit of what was not reserved so, altered rule."""
        try:
            altered = [
                f"{name}: this rule of the database is missing, switched off or changed"
                for name in self.store.altered_rules()
            ]
            with self.store.read() as execute:
                rows = execute(f"SELECT seq, {_COLUMNS}, previous, hash FROM entries ORDER BY seq")
            return self._problems(rows) + altered
        except LedgerBroken as error:
            return [str(error)]
        except TypeError:
            return ["an entry holds a number in the place of a text, or the reverse: it was changed"]

    def _problems(self, rows: Sequence[tuple[Any, ...]]) -> list[str]:
        problems, previous, expected = list[str](), GENESIS, 1
        windows: dict[str, Window] = defaultdict(Window)
        asked: dict[str, list[Any]] = {}
        for seq, *content, before, digest in rows:
            if seq != expected:
                problems.append(f"entry {expected} is missing")
            if before != previous or digest != _digest(previous, content):
                problems.append(f"entry {seq} does not follow from the one before it: it was changed")
            previous, expected = digest, seq + 1
            kind, measurement, scope, cost, *terms, _ = content
            if cost < 0:
                problems.append(f"entry {seq} costs less than nothing")
            window = windows[scope]
            try:
                window.book(kind, measurement, cost, terms[1])
                if kind in ("reserve", "correct") and mechanism_of(_terms(terms[1])) is not window.mechanism:
                    problems.append(f"entry {seq} is paid in another currency than window {scope}")
            except (KeyError, ValueError, LedgerBroken):
                problems.append(f"entry {seq} names no mechanism that is known")
            if kind in ("reserve", "correct"):
                asked[measurement] = [scope, cost, *terms]
            elif kind == "supersede":
                if measurement not in asked or asked[measurement][3] != terms[1]:
                    problems.append(f"entry {seq} supersedes what was not reserved so, or is committed")
                asked.setdefault(measurement, [scope, cost, *terms])[2:] = terms
            elif kind == "commit" and asked.pop(measurement, None) != [scope, cost, *terms]:
                problems.append(f"entry {seq} commits what was not reserved so")
            if window.corrections_units > window.set_aside_units:
                problems.append(f"entry {seq} passes what window {scope} has set aside for corrections")
            if window.planned_units + window.set_aside_units > window.cap_units:
                problems.append(f"entry {seq} passes the cap of window {scope}")
        return problems
