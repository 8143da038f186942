"""Mutation testing of the rules on which a person's rights rest: consent and whom it is asked of, and the contribution bounds.

Run by `make audit`, not by `make test`: `python tests/mutation/mutate.py [consent|bounding]`. Mutates the
text of a module, so SQL inside strings is mutated like Python; each mutant has to fail the hand-written cases
or to disagree with the naive second rule. A survivor fails the audit unless it stands in `EQUIVALENT` with the
reason why it cannot let anybody in.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
import time
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# (pattern, replacement): applied at each place alone. `\b` keeps words whole.
_SHARED: Final = [
    (r">=", ">"), (r"(?<![<>-])>(?!=)", ">="), (r"<=", "<"), (r"(?<![<>])<(?![>=])", "<="),
    (r"\+ 1\b", "+ 0"), (r"\+ 1\b", "+ 2"),
]  # fmt: skip
SQL: Final = [
    *_SHARED,
    (r"\bAND\b", "OR"), (r"\bOR\b", "AND"), (r"\bNOT ", ""), (r"(?<=[\w)]) = (?=[\w'$(])", " <> "), (r" <> ", " = "),
    (r"\bmax\(", "min("), (r"\bmin\(", "max("), (r"\bIS NULL\b", "IS NOT NULL"), (r"\bIS NOT NULL\b", "IS NULL"),
    (r"\bIS DISTINCT FROM\b", "IS NOT DISTINCT FROM"), (r"\btrue\b", "false"), (r"\bfalse\b", "true"), (r"\bDESC\b", "ASC"),
    (r"(?<!LEFT )\bJOIN\b", "LEFT JOIN"), (r"\bLEFT JOIN\b", "JOIN"), (r"\bbool_and\b", "bool_or"), (r"\bbool_or\b", "bool_and"),
    (r"\bgreatest\b", "least"), (r"0001-01-01", "9999-12-31"), (r"9999-12-31", "2025-05-31"), (r"9999-01-01", "0001-01-01"),
    (r"'inactive', ", ""), (r"'rejected', ", ""), (r", 'entered-in-error'", ""), (r"'active'", "'draft'"), (r"'permit'", "'deny'"),
    (r"'none'", "'permit'"), (r"CONSENT_TAKEN_BACK\)", "CONSENT_TAKEN_BACK[1:])"), (r"CONSENT_TAKEN_BACK\)", "CONSENT_TAKEN_BACK[:-1])"),
    (r"IN \(c\.code, c\.module, '\*'\)", "= c.code"), (r" c\.module,", ""), (r"'\*'", "'x'"),
    (r"\bon_day\b", "over_case"), (r"codes=over_case", "codes=on_day"), (r"required_over_case", "required_on_evaluation_day"),
    (r"required_on_evaluation_day", "required_over_case"), (r", CONSENT_RETROSPECTIVE\]", "]"), (r"\bs\.ok\b", "true"),
    (r"\bWHERE ok\b", "WHERE true"), (r"if rule\.\w+:", "if True:"),
]  # fmt: skip
BOUNDS: Final = [
    *_SHARED,
    (r"WINDOW_DAYS", "(WINDOW_DAYS - 1)"), (r"WEEK_DAYS", "(WEEK_DAYS + 1)"), (r"PERIOD_DAYS", "(PERIOD_DAYS + 1)"), (r" \| ", " & "),
    (r" & ", " | "), (r"~\(", "("), (r"\|= ", "&= "), (r"\bc\.week\b", "c.week + 1"), (r"\bc\.period\b", "c.period + 1"),
    (r"\bc\.window\b", "c.window + 1"), (r"\(ends, day\)", "(ends, day, 'right')"), (r"\(ends, day\)", "(ends, 0 * day)"), (r"earlier\[\"kept\"\] & ", ""), (r"\+= 1", "+= 0"), (r", keeping\] = ", ", keeping] = 0 * "),
    (r"== turn", "== 0"), (r"\+ before_day", ""), (r"- origin", "- origin + np.timedelta64(1, 'D')"), (r", \"event_day\"", ""),
    (r"\"decided_on\", ", ""), (r"== \(when", "!= (when"), (r"n_before\.copy\(\)", "0 * n_before"), (r" == column", " != column"),
]  # fmt: skip

# What a survivor may be: the line it is on (a part of it), the replacement, and why it lets nobody in.
EQUIVALENT: Final[list[tuple[str, str, str]]] = [
    ("windows = int(", "+ 2", "more empty slots"),
    ("windows = int(", "(WINDOW_DAYS - 1)", "more empty slots"),
    ("near = (np.abs(", "<=", "a closer look at more, which finds room"),
    ("close = np.flatnonzero(", " | ", "a closer look at more, which finds room or changes nothing"),
    ("key = (person * (arrival", "+ 2", "a wider base sorts the same"),
    ("near = (who >= 0)", ">=", "keeps a decision that no interval reaches: it counts for nothing"),
    ("near = (who >= 0)", "<=", "keeps a decision that no interval reaches: it counts for nothing"),
    ("c.admitted_on < p.valid_from", "<=", "adds a permit that is there already"),
    ("code <> '*'", "'x'", "no needed code is called *, so such a permit covers nothing"),
    ("SELECT * FROM patients WHERE ok", "WHERE true", "only spares work: the others are refused before"),
    (
        "FROM stated s JOIN needed_codes",
        "LEFT JOIN",
        "a denial of no needed code stays without code and matches nothing",
    ),
    ("JOIN permits p ON p.person = n.person", "LEFT JOIN", "adds rows without a time, which max() skips"),
    ("JOIN denies d ON d.person = n.person", "LEFT JOIN", "adds rows without a time, which max() skips"),
    ("FROM permits p JOIN cases c", "LEFT JOIN", "a permit without a case has no admission, so nothing is inserted"),
    ("CROSS JOIN codes c JOIN permits p", "LEFT JOIN", "a point without a day meets no statement"),
    ("CROSS JOIN codes c JOIN denies d", "LEFT JOIN", "a point without a day meets no statement"),
    ("FROM points p JOIN (", "LEFT JOIN", "every point has its statement"),
    ("FROM register r JOIN documents d", "LEFT JOIN", "every row is of a document"),
    ("coalesce(d.newest = d.newest_active, false)", "true", "a document that was never active has no active row"),
    ("FROM patients JOIN people USING (person)", "LEFT JOIN", "every person has its ids"),
    ("WHERE arrival_day > $since", ">=", "judges more than it must"),
    ("if days[0] <= since or", "<", "the same day again has a test that needs a lake"),
]


def load_file(path: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def mutants(source: str, mutations: list[tuple[str, str]]) -> Iterator[tuple[int, str, str, str]]:
    """(line, its text, replacement, mutated source) of every mutant; docstrings, comments and imports stay."""
    spared = [m.span() for m in re.finditer(r'^\s*""".*?"""$|#[^\n]*|^(?:from|import) [^\n]*|"""[A-Z`(][^"]*"""|-> [^\n:]*:', source, re.S | re.M)]  # fmt: skip
    spared = [s for s in spared if "SELECT" not in source[slice(*s)] and "INSERT" not in source[slice(*s)]]
    for pattern, replacement in mutations:
        for match in re.finditer(pattern, source):
            if any(a <= match.start() < b for a, b in spared):
                continue
            line = source.count("\n", 0, match.start()) + 1
            text = source.split("\n")[line - 1].strip()
            yield line, text, replacement, source[: match.start()] + replacement + source[match.end() :]


def run(path: Path, mutations: list[tuple[str, str]], survives: Callable[[types.ModuleType], bool]) -> int:
    """Try every mutant of the module at `path`; the number of survivors that nobody explained."""
    source = path.read_text()
    original = load_file(path, "mutant")
    assert survives(original), f"{path}: the checks fail without any mutation"
    total, unexplained, explained, raised, begun = 0, 0, 0, 0, time.monotonic()
    for line, text, replacement, mutated in mutants(source, mutations):
        total += 1
        module = types.ModuleType("mutant")
        sys.modules["mutant"] = module
        try:
            exec(compile(mutated, f"{path.name} (mutant)", "exec"), module.__dict__)
            alive = survives(module)
        except Exception:
            alive = False
            raised += 1
        if alive:
            reason = next((why for part, new, why in EQUIVALENT if part in text and new == replacement), None)
            unexplained += reason is None
            explained += reason is not None
            print(f"{'survived' if reason is None else 'equivalent'}: {path.name}:{line}: {replacement!r} in: {text}"
                  + (f" ({reason})" if reason else ""))  # fmt: skip
    print(f"{path.name}: {total} mutants, {total - unexplained - explained} killed "
          f"({raised} of them could not even run), {explained} equivalent, "
          f"{unexplained} survived, {time.monotonic() - begun:.0f} s")  # fmt: skip
    return unexplained


def expanded(test: Callable[..., None]) -> list[tuple[Callable[..., None], dict[str, Any]]]:
    """The calls that pytest would make of a test with at most one parameter; none where it needs a fixture."""
    mark = next((m for m in getattr(test, "pytestmark", []) if m.name == "parametrize"), None)
    values: list[dict[str, Any]] = [{mark.args[0]: v} for v in mark.args[1]] if mark else [{}]
    return [(test, v) for v in values if len(v) == test.__code__.co_argcount]


def consent() -> int:
    """The consent rule against its hand-written cases and the naive rule on three populations."""
    cases = load_file(ROOT / "tests/consent/test_rule.py", "mutation_cases")
    naive = load_file(ROOT / "tests/consent/test_independent.py", "mutation_naive")
    calls = [call for n, f in vars(cases).items() if n.startswith("test_") for call in expanded(f)]
    populations = [
        (*naive.population(900, seed), full, naive.coming_of_age(900, seed) if minors else None)
        for seed, full, minors in ((1, naive.FULL, False), (2, None, True), (3, naive.FULL, True))
    ]
    expected = [naive.expected_of(t, r, full is not None, m) for t, r, full, m in populations]

    def survives(module: types.ModuleType) -> bool:
        for name in ("decide", "standing", "keep_permitted"):
            setattr(cases, name, getattr(module, name))
        naive.decide = module.decide
        for check, values in calls:
            check(**values)
        return all(naive.permitted(*p) == e for p, e in zip(populations, expected, strict=True))

    def careful(module: types.ModuleType) -> bool:
        try:
            return survives(module)
        except AssertionError:
            return False

    return run(ROOT / "assets/consent/rule.py", SQL, careful)


def changes() -> int:
    """Whom a run judges anew, and with what of the register, against judging everybody."""
    property_ = load_file(ROOT / "tests/consent/test_independent.py", "mutation_changes")

    def survives(module: types.ModuleType) -> bool:
        property_.changed, property_.among_documents_of = module.changed, module.among_documents_of
        try:
            for seed, later in itertools.product(range(3), (1, 7, 60)):
                property_.test_who_is_not_named_as_changed_is_answered_as_before(seed, later)
        except AssertionError:
            return False
        return True

    return run(ROOT / "assets/consent/changes.py", SQL, survives)


def bounding() -> int:
    """The contribution bounds against their naive count, decided at once and in two runs."""
    tests = load_file(ROOT / "tests/privacy/test_privacy.py", "mutation_bounds")
    from assets.contract.terms import Caps

    rng = np.random.default_rng(5)
    samples: list[tuple[Any, Any, Any]] = []
    for n in range(60):
        span = int(rng.choice([30, 200, 400, 800]))
        rows = [(str(rng.choice(list("abc"))), int(rng.integers(0, span)), int(rng.integers(0, 4))) for _ in range(60)]
        caps = [Caps(), Caps(window=1, period=1), Caps(window=6, period=3), Caps(window=3, period=3)][n % 4]
        samples.append((rows, caps, ()))
    edges = [[("a", d, 0) for d in days] for days in ((0, 7, 28, 56, 84, 363), (0, 28, 56, 84, 364), (0, 6, 7, 13, 14), (363, 0, 28, 56, 84))]  # fmt: skip
    samples += [(rows, Caps(), ()) for rows in edges]
    # Events that arrive after later ones: intervals that start at them must be looked at as well.
    for n in range(60):
        late = int(rng.choice([60, 400, 500]))
        rows = [("a", int(rng.integers(0, 500)), int(rng.integers(0, late))) for _ in range(40)]
        samples.append((rows, [Caps(), Caps(window=2), Caps(window=3, period=3)][n % 3], ()))
    for gap in (362, 363, 364, 365):
        days = [(0, 500), (28, 0), (56, 0), (84, 0), (gap, 0)]
        samples += [([("a", d, delay) for d, delay in days], Caps(), ())]
        samples += [([("a", 0, 600), ("a", gap, 0), *(("a", d, 500) for d in (100, 200, 300))], Caps(), ())]
    # Windows with caps of their own, on both sides of the day of the change.
    end = [
        (tests.EPOCH + timedelta(363), Caps(window=3, period=3)),
        (tests.EPOCH + timedelta(727), Caps(window=1, period=1)),
    ]
    for n in range(30):
        rows = [
            (str(rng.choice(list("abc"))), int(rng.integers(300, 800)), int(rng.integers(0, 60))) for _ in range(60)
        ]
        samples.append((rows, Caps(window=6, period=2), end[: 1 + n % 2]))
    samples += [
        ([("a", d, 0) for d in (first, first + 7, first + 14)], Caps(window=1, period=1), end[:1])
        for first in (349, 350, 364)
    ]
    expected = [tests.naive(*sample) for sample in samples]

    def survives(module: types.ModuleType) -> bool:
        for (rows, caps, former), wanted in zip(samples, expected, strict=True):
            events = tests.events(rows)
            if tests.kept_of(module.decide(events, tests.NONE, caps, tests.EPOCH, former)) != wanted:
                return False
            # Also in two runs, split after several of the days: what is known before must count as if it came now.
            arrived = sorted(events.column("decided_on").unique().to_pylist())
            for when in {arrived[0], arrived[len(rows) // 2 % len(arrived)], arrived[max(len(arrived) - 2, 0)]}:
                early = [d <= when for d in events.column("decided_on").to_pylist()]
                first = module.decide(events.filter(early), tests.NONE, caps, tests.EPOCH, former)
                second = module.decide(events.filter([not e for e in early]), first, caps, tests.EPOCH, former)
                if tests.kept_of(first) | tests.kept_of(second) != wanted:
                    return False
        return True

    return run(ROOT / "assets/privacy/bounding.py", BOUNDS, survives)


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["consent", "bounding"]
    left = sum({"consent": lambda: consent() + changes(), "bounding": bounding}[name]() for name in chosen)
    sys.exit(1 if left else 0)
