"""The public page in a real browser: from the file system and from a static server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from assets.contract.city import City, Pause
from assets.privacy.plan import price
from assets.publication.bundle import publish
from assets.publication.catalogue import DATASETS
from assets.publication.guarantee import Guarantee, guarantee
from assets.publication.indicators import build
from assets.publication.page import LEVELS, page_data, write_page

Frames = dict[str, pd.DataFrame]
CHARTS = len(DATASETS) + 2
"""A course of each dataset but mortality, of which a year has one value, and three rankings."""


@pytest.fixture(scope="module")
def open_data(frames: Frames, city: City, plan: Guarantee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write_page(frames, publish(frames, city, root, date(2025, 12, 28), plan), city, root, plan)
    return root


@pytest.fixture(scope="module")
def served(open_data: Path, serve: Callable[[Path], str]) -> str:
    return serve(open_data)


class Visit:
    """A page that remembers every request, console message and error."""

    def __init__(self, browser: Any, url: str, width: int = 1200, language: str = "de-DE") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, locale=language)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(url)
        self.drawn()

    def drawn(self) -> None:
        # By locator: a polled script would need the eval that the page's security policy forbids.
        self.page.locator(".chart svg[aria-hidden]").nth(CHARTS - 1).wait_for(state="attached")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.context.close()


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("from_files", [True, False])
def test_charts_render_and_nothing_is_loaded_from_elsewhere(
    browser: Any, open_data: Path, served: str, width: int, from_files: bool
) -> None:
    url = (open_data / "index.html").as_uri() if from_files else served
    with Visit(browser, url, width) as visit:
        origin = url.removesuffix("index.html")
        assert visit.complaints == []
        assert all(r.startswith((origin, "data:")) for r in visit.requests), visit.requests
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = visit.page.evaluate(
            "[...document.querySelectorAll('.chart svg')].map(s => [s.clientWidth, s.clientHeight])"
        )
        assert all(w > width / 2 and h > 150 for w, h in boxes)
        marks = visit.page.evaluate("document.querySelectorAll('.time .mark-area path, .time .mark-line path').length")
        assert marks >= len(DATASETS)


def test_the_language_switch_changes_every_text(browser: Any, served: str) -> None:
    with Visit(browser, served) as visit:
        page = visit.page
        assert page.locator("html").get_attribute("lang") == "de"
        german = page.inner_text("body")
        assert "Wie die Menschen geschützt sind" in german and "How people are protected" not in german
        page.get_by_role("button", name="English").click()
        english = page.inner_text("body")
        assert page.locator("html").get_attribute("lang") == "en" and page.title().startswith("Health in numbers")
        assert "How people are protected" in english and "geschützt" not in english
        assert "inside the noise" in english and "im Rauschen" not in english
        assert "week 52/2025" in english and "KW 52" not in english
        page.reload()
        assert page.locator("html").get_attribute("lang") == "en"
        assert visit.complaints == []


def test_the_first_language_is_the_reader_s(browser: Any, served: str) -> None:
    with Visit(browser, served, language="en-GB") as visit:
        assert visit.page.locator("html").get_attribute("lang") == "en"
    with Visit(browser, served + "?lang=de", language="en-GB") as visit:
        assert visit.page.locator("html").get_attribute("lang") == "de"


def test_the_page_says_when_a_difference_is_inside_the_noise(browser: Any, served: str, frames: Frames) -> None:
    series = frames["cases_by_area"].query(
        "care == 'inpatient' and measure == 'count' and time_level == 'week' and area_key.isna()"
    )
    before, now = series.iloc[-2], series.iloc[-1]
    a, b = ((r["ci95_upper"] - r["ci95_lower"]) / 2 for r in (now, before))
    inside = abs(now["value"] - before["value"]) <= (a * a + b * b + 2 * a * b / 3) ** 0.5
    with Visit(browser, served) as visit:
        text = visit.page.locator("#cases_by_area .latest").inner_text()
        assert ("im Rauschen" in text) == inside and ("größer als das Rauschen" in text) != inside
        assert f"{now['value_display']:,.0f}".replace(",", ".") in text


def test_the_newest_value_says_how_final_it_is_and_what_it_means_for_all_patients(
    browser: Any, served: str, frames: Frames
) -> None:
    newest = frames["cases_by_area"].query(
        "care == 'inpatient' and measure == 'count' and time_level == 'week' and area_key.isna()"
    ).iloc[-1]  # fmt: skip
    shown = f"{newest['value_all_patients']:,.0f} ({newest['all_patients_ci95_lower']:,.0f} to"
    with Visit(browser, served + "?lang=en") as visit:
        text = visit.page.locator("#cases_by_area .latest").inner_text()
        assert newest["status"] == "provisional" and "provisional, will become more accurate" in text
        assert (
            f"Estimated for all patients of the participating clinics, including those who did not consent: {shown}"
            in text
        )
        assert "Estimated for all patients" not in visit.page.locator("#emergency_share .latest").inner_text()
        caption = visit.page.locator("#cases_by_area .over-time").inner_text()
        assert "axis does not start at zero" in caption
        summary = visit.page.locator("#cases_by_area details.table summary").first
        summary.click()
        assert "provisional" in visit.page.locator("#cases_by_area .time-table tbody tr").first.inner_text()


def test_a_single_value_is_told_and_not_drawn_as_a_course(browser: Any, served: str) -> None:
    with Visit(browser, served) as visit:
        figures = visit.page.locator("#cases_by_area figure")
        visit.page.locator("#cases_by_area select[data-field=measure]").select_option(
            label="altersstandardisierte Rate"
        )
        assert not figures.nth(0).is_visible() and figures.nth(1).is_visible()
        assert "Standardbevölkerung" in visit.page.locator("#cases_by_area .latest").inner_text()
        visit.page.locator("#cases_by_area select[data-field=measure]").select_option(label="Fälle")
        assert figures.nth(0).is_visible() and visit.complaints == []


def test_a_clinic_without_linkable_patients_is_told_on_the_page(small: Frames, city: City, tmp_path: Path) -> None:
    from assets.publication.guarantee import guarantee

    clinics = (city.clinics[0].model_copy(update={"linkable": False}), *city.clinics[1:])
    weaker = city.model_copy(update={"clinics": clinics})
    promise = guarantee(weaker)
    write_page(small, publish(small, weaker, tmp_path, date(2025, 2, 23), promise), weaker, tmp_path, promise)
    html = (tmp_path / "index.html").read_text()
    assert "one patient per clinic" in html and "je Klinik" in html
    for name in ("README.md", "release-card.yaml"):
        text = " ".join((tmp_path / "cases_by_area" / "latest" / name).read_text().split())
        assert "one patient per clinic" in text, name


def test_no_document_promises_more_than_the_plan_holds(small: Frames, city: City, tmp_path: Path) -> None:
    """ε is rounded up: 1.2342 as 1.23 would be a bound that does not hold."""
    for epsilon in (0.7, 1.9, 3.0, 4.3):
        budget = city.budget.model_copy(update={"epsilon": epsilon})
        other = city.model_copy(update={"budget": budget, "plan": city.plan.model_copy(update={"acceptance": ()})})
        priced = price(other)
        promise = guarantee(other, priced)
        write_page(small, publish(small, other, tmp_path, date(2025, 2, 23), promise), other, tmp_path, promise)
        page = (tmp_path / "index.html").read_text()
        shown = [float(n) for n in re.findall(r'ε = <span lang="de">[0-9,]+</span><span lang="en">([0-9.]+)<', page)]
        real = (priced.epsilon_year, priced.epsilon_five_years)
        for stated, digits in ((shown, 2), ((promise.epsilon_one_year, promise.epsilon_five_years), 4)):
            assert len(stated) == 2
            assert all(0 <= s - r <= 10.0**-digits for s, r in zip(stated, real, strict=True)), (stated, real)


def test_a_clinic_that_joined_or_left_is_named_on_page_card_and_readme(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee
) -> None:
    first = city.clinics[0].model_copy(update={"delivers_from": date(2025, 1, 8), "delivers_until": date(2025, 2, 1)})
    other = city.model_copy(update={"clinics": (first, *city.clinics[1:])})
    write_page(small, publish(small, other, tmp_path, date(2025, 2, 23), plan), other, tmp_path, plan)
    html = (tmp_path / "index.html").read_text()
    assert "liefert ab 2025-01-08 bis 2025-02-01." in html and "delivers from 2025-01-08 until 2025-02-01." in html
    for name in ("README.md", "release-card.yaml"):
        text = " ".join((tmp_path / "cases_by_area" / "latest" / name).read_text().split())
        assert "delivers from 2025-01-08" in text and "delivers until 2025-02-01" in text, name


def test_a_clinic_that_pauses_is_named_on_page_card_and_readme(
    small: Frames, city: City, tmp_path: Path, plan: Guarantee
) -> None:
    pause = Pause(first=date(2025, 1, 8), last=date(2025, 1, 20))
    first = city.clinics[0].model_copy(update={"pauses": (pause,)})
    other = city.model_copy(update={"clinics": (first, *city.clinics[1:])})
    write_page(small, publish(small, other, tmp_path, date(2025, 2, 23), plan), other, tmp_path, plan)
    html = (tmp_path / "index.html").read_text()
    assert "pausiert vom 2025-01-08 bis 2025-01-20." in html and "pauses from 2025-01-08 to 2025-01-20." in html
    for name in ("README.md", "release-card.yaml"):
        text = " ".join((tmp_path / "cases_by_area" / "latest" / name).read_text().split())
        assert "paused 2025-01-08 to 2025-01-20" in text, name


def test_a_reader_with_a_keyboard_gets_everywhere(browser: Any, served: str) -> None:
    with Visit(browser, served) as visit:
        page = visit.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        select = page.locator("#cases_by_area select[data-field=level]")
        select.focus()
        page.keyboard.press("ArrowDown")
        page.locator("#cases_by_area .latest", has_text="November 2025").wait_for()
        assert page.evaluate("document.activeElement.dataset.field") == "level"  # the focus is not lost by redrawing
        summary = page.locator("#cases_by_area details.table summary").first
        summary.focus()
        page.keyboard.press("Enter")
        assert page.locator("#cases_by_area .time-table table").is_visible()
        assert page.locator("#cases_by_area .time-table tbody tr").count() == 11
        assert visit.complaints == []


def test_downloads_are_there(browser: Any, served: str, open_data: Path) -> None:
    with Visit(browser, served) as visit:
        links = visit.page.evaluate("[...document.querySelectorAll('.downloads a')].map(a => a.getAttribute('href'))")
        assert len(links) == 7 * len(DATASETS)
        for link in links:
            assert (open_data / link).is_file(), link
        with visit.page.expect_download() as download:
            visit.page.locator("#cases_by_area .downloads a").first.click()
        data = Path(download.value.path()).read_bytes()
        assert data == (open_data / "cases_by_area" / "latest" / "data.parquet").read_bytes()


def test_print_shows_charts_and_no_controls(browser: Any, served: str) -> None:
    with Visit(browser, served) as visit:
        visit.page.emulate_media(media="print")
        assert not visit.page.locator(".controls").first.is_visible()
        assert not visit.page.locator(".languages").is_visible()
        assert visit.page.locator(".chart svg").first.is_visible()
        assert not visit.page.locator("#sql").is_visible()
        assert visit.page.locator(".address").first.is_visible()
        paper = visit.page.locator(
            ".inside, .outside"
        ).first  # a printer leaves backgrounds out: white text would vanish
        assert paper.evaluate("e => getComputedStyle(e).color") == "rgb(26, 35, 48)"


@pytest.mark.parametrize(("language", "width"), [("de", 360), ("en", 1200)])
def test_axe_finds_no_violation(browser: Any, served: str, language: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with Visit(browser, f"{served}?lang={language}", width) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        result = axe.Axe().run(visit.page, options={"runOnly": {"type": "tag", "values": tags}})
        assert result.violations_count == 0, result.generate_report()


def test_the_page_is_small_and_holds_published_numbers_only(open_data: Path, frames: Frames, city: City) -> None:
    files = [open_data / "index.html", *(p for p in (open_data / "page").iterdir() if p.name != "data.js")]
    assert sum(p.stat().st_size for p in files) < 1_500_000
    text = (open_data / "page" / "data.js").read_text()
    assert json.loads(text.removeprefix("window.DIGITALSTADT=").removesuffix(";\n")) == json.loads(
        json.dumps(page_data(frames, city))
    )
    published = {round(v, 1) for f in frames.values() for v in f["value"]}
    rows = page_data(frames, city)["datasets"]["cases_by_area"]["rows"]
    assert {round(row[5], 1) for row in rows if row[4] == 0} <= published
    html = (open_data / "index.html").read_text()
    assert "http://" not in html.replace(city.publication.licence, "") and "Künstliche Demonstrationsdaten" in html


def test_the_page_shows_the_last_four_hundred_days_and_all_longer_units(make_estimates: Any, city: City) -> None:
    frames = build(make_estimates(448), city)
    area = page_data({"cases_by_area": frames["cases_by_area"]}, city)["datasets"]["cases_by_area"]["rows"]
    found = {level: {row[2] for row in area if LEVELS[int(row[1])] == level} for level in ("day", "week", "window")}
    assert {level: len(starts) for level, starts in found.items()} == {"day": 400, "week": 64, "window": 1}
    assert max(found["day"]) - min(found["day"]) == 399


def test_an_unchanged_page_is_not_touched(open_data: Path, frames: Frames, city: City, plan: Guarantee) -> None:
    files = [open_data / "index.html", *(open_data / "page").iterdir()]
    before = [p.stat().st_mtime_ns for p in files]
    write_page(frames, publish(frames, city, open_data, date(2025, 12, 28), plan), city, open_data, plan)
    assert [p.stat().st_mtime_ns for p in files] == before


def test_the_chart_library_is_bundled_once_and_again_where_it_is_not_whole(tmp_path: Path) -> None:
    from assets.publication import page

    path = tmp_path / "charts.js"
    fresh = page._charts(path)
    path.write_bytes(fresh)
    assert page._charts(path) == fresh
    kept = fresh.replace(b"sha256 ", b"sha256 0")
    for damaged in (fresh[:-1], fresh + b";", kept, b""):
        path.write_bytes(damaged)
        assert page._charts(path) == fresh
