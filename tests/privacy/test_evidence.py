"""An older ledger is found out by the witness, by what is published, and by versions; nothing is measured then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from assets.contract.city import City
from assets.lake.files import make_directory
from assets.lake.lake import Lake
from assets.lake.zone import open_zone
from assets.privacy import evidence
from assets.privacy.evidence import LedgerBehind, gaps, head_of, remember, require_newest, write_evidence
from assets.privacy.ledger import Ledger, Reservation
from assets.privacy.ledger_store import LedgerBroken
from assets.privacy.mechanism import Noise

PARAMETERS = '{"table": "day", "time": "day", "unit_start": "%s"}'


def measure(lake: Lake, *days: str) -> Ledger:
    ledger = Ledger(lake.ledger_path)
    ledger.open_scope("2024-12-30", 1000)
    ledger.reserve([Reservation(f"day:{d}:1", "2024-12-30", 10, "s", PARAMETERS % d) for d in days])
    return ledger


@pytest.fixture
def old_copy(lake: Lake, tmp_path: Path) -> Callable[[], None]:
    """A ledger of one measurement; calling the fixture puts it in the place of the newer one."""
    open_zone(lake)
    measure(lake, "2025-01-01")
    shutil.copytree(lake.confidential, tmp_path / "copy")

    def put_back() -> None:
        shutil.rmtree(lake.confidential)
        shutil.copytree(tmp_path / "copy", lake.confidential)

    return put_back


def test_the_newest_ledger_passes_and_may_go_on(lake: Lake, city: City):
    make_directory(lake.open_data, 0o755)
    for day in ("2025-01-01", "2025-01-02", "2025-01-03"):
        ledger = measure(lake, day)
        require_newest(lake, city, ledger)
        write_evidence(lake, ledger)
    about = json.loads((lake.open_data / "ledger.json").read_text())
    assert (about["entries"], about["head"]) == (4, head_of(ledger).hash)


def test_the_witness_alone_finds_an_older_ledger(lake: Lake, city: City, old_copy: Callable[[], None]):
    remember(lake, measure(lake, "2025-01-02"))
    old_copy()
    with pytest.raises(LedgerBehind, match=r"knows 3 entries .* holds 2.*nothing was measured or published"):
        require_newest(lake, city, Ledger(lake.ledger_path))


def test_what_is_published_alone_finds_it(lake: Lake, city: City, old_copy: Callable[[], None]):
    make_directory(lake.open_data, 0o755)
    write_evidence(lake, measure(lake, "2025-01-02"))
    old_copy()
    assert lake.keys.witness
    lake.keys.witness.unlink()
    with pytest.raises(LedgerBehind, match=r"ledger\.json knows 3 entries"):
        require_newest(lake, city, Ledger(lake.ledger_path))


def test_a_published_version_alone_finds_it(lake: Lake, city: City, old_copy: Callable[[], None]):
    old_copy()
    (lake.open_data / "cases_by_area" / "2025-01-02.3").mkdir(parents=True)
    with pytest.raises(LedgerBehind, match="a version of 2025-01-02 is published, but the ledger measured until 2025-01-01"):  # fmt: skip
        require_newest(lake, city, Ledger(lake.ledger_path))


def test_a_ledger_that_went_another_way_is_found(lake: Lake, city: City, old_copy: Callable[[], None]):
    remember(lake, measure(lake, "2025-01-02"))
    old_copy()
    twin = measure(lake, "2025-01-05", "2025-01-06")  # longer than what was seen, but not its continuation
    with pytest.raises(LedgerBehind, match="knows another entry 3"):
        require_newest(lake, city, twin)


def test_a_copy_from_the_portal_finds_a_whole_machine_that_was_turned_back(lake: Lake, city: City, tmp_path: Path):
    portal = tmp_path / "portal.json"
    portal.write_text('{"entries": 9, "head": "%s"}' % ("a" * 64))
    ledger = measure(lake, "2025-01-01")
    assert list(gaps(lake, city, ledger)) == []
    assert "portal.json knows 9 entries" in "\n".join(gaps(lake, city, ledger, portal))


def test_a_new_data_root_under_known_keys_is_refused_for_a_real_city(lake: Lake, city: City):
    remember(lake, measure(lake, "2025-01-01"))
    fresh = Lake(lake.root.with_name("fresh"), lake.keys)
    assert list(gaps(fresh, city, Ledger(fresh.ledger_path))) == [], "a demo may begin anew"
    real = city.model_copy(update={"synthetic": False})
    assert "served another data root" in "\n".join(gaps(fresh, real, Ledger(fresh.ledger_path)))


def test_the_stage_measures_and_publishes_nothing_then(
    lake: Lake, city: City, old_copy: Callable[[], None], monkeypatch: pytest.MonkeyPatch
):
    from assets.privacy import measure as measuring
    from assets.privacy import stage

    def drawn(values: list[int], noise: Noise) -> list[int]:
        raise AssertionError("nothing may be drawn")

    monkeypatch.setattr(measuring, "draw", drawn)
    remember(lake, measure(lake, "2025-01-02"))
    old_copy()
    with pytest.raises(LedgerBehind):
        stage.run(lake, city, [date(2025, 1, 10)])
    with pytest.raises(LedgerBehind):
        stage.publishable(lake, city)
    assert evidence.head_of(Ledger(lake.ledger_path)).entries == 2


def test_a_ledger_that_somebody_changed_is_found_before_anything_is_measured_on_it(lake: Lake, city: City):
    from assets.privacy import stage

    ledger = measure(lake, "2025-01-01", "2025-01-02")
    before = remember(lake, ledger)
    with ledger.store.write() as execute:  # so cheap that the window would have room for more than its cap
        execute("DROP TRIGGER no_UPDATE")
        execute("UPDATE entries SET rho_units = 1 WHERE seq = 2")
    with pytest.raises(LedgerBroken, match="nothing was measured or published: entry 2 does not"):
        stage.run(lake, city, [date(2025, 1, 10)])
    with pytest.raises(LedgerBroken, match="nothing was measured or published"):
        stage.publishable(lake, city)
    assert evidence.head_of(Ledger(lake.ledger_path)) == before
