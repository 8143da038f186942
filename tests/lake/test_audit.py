"""The audit log: appended to only, chained, and nothing of it can go missing unseen."""

import json
from pathlib import Path

import pytest

from assets.lake import audit, witness
from assets.lake.lake import Lake
from assets.lake.witness import Head


@pytest.fixture
def log(lake: Lake) -> Path:
    for n in range(5):
        audit.record(lake, "pull", exports=n)
    return lake.confidential / audit.FILE


def test_entries_follow_each_other_and_verify(lake: Lake, log: Path):
    found = audit.entries(lake)
    assert [(e["seq"], e["event"], e["about"]) for e in found] == [(n + 1, "pull", {"exports": n}) for n in range(5)]
    assert audit.verify(lake) == []
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_that_a_crash_cut_short_goes_and_the_chain_goes_on(lake: Lake, log: Path, cut: int):
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"about": {"exports": 5}, "at": "2026-01-01T00:00:00'[:cut])
    assert audit.verify(lake) == []
    audit.record(lake, "pull", exports=9)
    assert [e["about"]["exports"] for e in audit.entries(lake)] == [0, 1, 2, 3, 4, 9]
    assert audit.verify(lake) == []


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines(keepends=True)


def _change(lines: list[str]) -> list[str]:
    return [lines[0], lines[1].replace('"exports": 1', '"exports": 7'), *lines[2:]]


def _rechain(lines: list[str]) -> list[str]:
    """A forger who changes an entry and makes every later hash fit again."""
    previous, made = audit.GENESIS, []
    for line in _change(lines):
        entry = json.loads(line) | {"previous": previous}
        previous = entry["hash"] = audit._digest(entry)
        made.append(json.dumps(entry, sort_keys=True) + "\n")
    return made


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (_change, "entry 2 does not follow"),
        (lambda lines: [*lines[:2], *lines[3:]], "entry 3 does not follow"),
        (lambda lines: lines[:-2], "its end is missing"),
        (_rechain, "is not the one that was seen"),
        (lambda lines: [], "its end is missing"),
        (lambda lines: ["no json\n", *lines[1:]], "entry 1 does not follow"),
    ],
)
def test_every_forgery_is_found(lake: Lake, log: Path, forge, said: str):
    log.write_text("".join(forge(_lines(log))))
    assert said in "\n".join(audit.verify(lake))


@pytest.mark.parametrize(
    "forge",
    [
        lambda lines: lines[:-1],
        lambda lines: [],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines[:-1], "no json\n"],
        lambda lines: [*lines, "{}\n", '{"seq": "x", "hash": 5}\n'],
        _rechain,
    ],
)
def test_a_log_that_goes_on_after_a_forgery_does_not_hide_it(lake: Lake, log: Path, forge):
    log.write_text("".join(forge(_lines(log))))
    for n in range(8):
        audit.record(lake, "pull", exports=100 + n)
    assert len(audit.entries(lake)) >= 8
    assert audit.verify(lake)


def test_the_witness_goes_on_where_a_crash_left_it_behind(lake: Lake, log: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as crashed:
        crashed.setattr(audit.witness, "advance", lambda *_: None)
        audit.record(lake, "pull", exports=5)
        audit.record(lake, "pull", exports=6)
    audit.record(lake, "pull", exports=7)
    log.write_text("".join(_lines(log)[:-1]))
    assert "its end is missing" in "\n".join(audit.verify(lake))


def test_the_witness_only_moves_forward(tmp_path: Path):
    path = tmp_path / "witness.json"
    for entries, digest in ((5, "e"), (3, "c"), (5, "other")):
        witness.advance(path, "zone", "log", Head(entries, digest))
        assert witness.seen(path, "zone", "log") == Head(5, "e")
    witness.advance(path, "zone", "log", Head(6, "f"))
    assert witness.seen(path, "zone", "log") == Head(6, "f") and witness.seen(path, "another", "log") is None
