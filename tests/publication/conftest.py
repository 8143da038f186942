"""A consistent synthetic table of estimates: days of areas are drawn, everything else is summed from them."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from calendar import monthrange
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from assets.contract.city import City
from assets.contract.codes import ADMISSION_TYPES, AGE_GROUP_KEYS, CARE, CHAPTER_KEYS, LOS_BIN_KEYS, OUTCOMES, SEXES
from assets.contract.schemas import ESTIMATES

DAYS = {"day": 1, "week": 7, "period": 28, "window": 364}
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
LOS_WEIGHTS = np.array([4, 14, 14, 12, 10, 8, 11, 10, 7, 6, 2, 2]) / 100


@pytest.fixture(scope="module")
def umask_of_a_service() -> Iterator[None]:
    """Its units run under 0077: what is public is open to others all the same."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def _months(days: pd.DataFrame, late: pd.DataFrame) -> pd.DataFrame:
    """Whole calendar months of day-level rows, with the late cases of the weeks whose Thursday they hold."""
    keys = ["unit_start", "care", *(n for n in ("area",) if n in days)]
    sums = days.assign(unit_start=days["unit_start"].map(lambda d: d.replace(day=1))).groupby(keys, as_index=False)
    found = sums[["value", "variance"]].sum()
    found = found[sums.size()["size"] == [monthrange(d.year, d.month)[1] for d in found["unit_start"]]]
    of_month = late.assign(unit_start=late["unit_start"].map(lambda d: (d + timedelta(3)).replace(day=1)))
    there = of_month[of_month["unit_start"].isin(set(found["unit_start"]))]
    found = pd.concat([found, there[[*keys, "value", "variance"]]]).groupby(keys, as_index=False).sum()
    return found.assign(time_level="month", dimensions=days["dimensions"].iloc[0])


def _frame(city: City, days: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    dims = {
        "area": tuple(a.key for a in city.areas),
        "chapter": CHAPTER_KEYS,
        "age_group": AGE_GROUP_KEYS,
        "sex": SEXES,
        "admission": ADMISSION_TYPES,
        "los": LOS_BIN_KEYS,
        "outcome": OUTCOMES,
    }

    def level(time: str, names: tuple[str, ...], mean: float, variance: float) -> pd.DataFrame:
        starts = [city.budget.epoch + timedelta(d) for d in range(0, days - DAYS[time] + 1, DAYS[time])]
        index = pd.MultiIndex.from_product(
            [starts, CARE, *(dims[n] for n in names)], names=["unit_start", "care", *names]
        )
        frame = index.to_frame(index=False)
        weight = frame["los"].map(dict(zip(LOS_BIN_KEYS, LOS_WEIGHTS, strict=True))) if names == ("los",) else 1.0
        frame["value"] = rng.normal(mean, 1.0, len(frame)) * weight + rng.normal(0, variance**0.5, len(frame))
        return frame.assign(time_level=time, dimensions="+".join(names) or "total", variance=variance)

    area_day = level("day", ("area",), 20, 9.0)
    parts = [area_day]
    if days >= 7:
        late = level("week", ("area",), 2, 9.0)
        of_city = late.groupby(["unit_start", "care"], as_index=False)[["value", "variance"]].sum()
        parts += [late.assign(time_level="late"), of_city.assign(time_level="late", dimensions="total")]
    for time, size in DAYS.items():
        if days < size:
            continue
        block = area_day["unit_start"].map(
            lambda d, size=size: city.budget.epoch + timedelta((d - city.budget.epoch).days // size * size)
        )
        whole = block.map(lambda d, size=size: d + timedelta(size) <= city.budget.epoch + timedelta(days))
        work = area_day.assign(unit_start=block)[whole]
        if time != "day":  # longer units hold their late cases too
            of_late = late["unit_start"].map(
                lambda d, size=size: city.budget.epoch + timedelta((d - city.budget.epoch).days // size * size)
            )
            there = of_late.map(lambda d, size=size: d + timedelta(size) <= city.budget.epoch + timedelta(days))
            work = pd.concat([work, late.assign(unit_start=of_late)[there]])
        by_area = work.groupby(["unit_start", "care", "area"], as_index=False)[["value", "variance"]].sum()
        total = work.groupby(["unit_start", "care"], as_index=False)[["value", "variance"]].sum()
        if time != "day":
            parts.append(by_area.assign(time_level=time, dimensions="area"))
        parts.append(total.assign(time_level=time, dimensions="total"))
        yearly = 200 * size
        if time != "day":
            parts.append(level(time, ("chapter",), yearly / 23, 30.0 * size / 7))
            parts.append(level(time, ("admission",), yearly / 2, 50.0 * size / 7))
        if size >= 28:
            parts.append(level(time, ("age_group", "sex"), yearly / 24, 150.0 * size / 28))
            parts.append(level(time, ("los",), yearly, 100.0 * size / 28))
    if days >= 364:
        parts.append(level("window", ("area", "chapter"), 300, 900.0))
        outcome = level("window", ("outcome",), 36_000, 4_000.0)
        parts.append(outcome.assign(value=outcome["value"].where(outcome["outcome"] == "other", 900.0)))
        parts.append(level("window", ("area", "age_group", "sex"), 300, 900.0))
    totals = [p for p in parts if (p["time_level"] == "day").all() and set(p["dimensions"]) <= {"total", "area"}]
    for p in totals:
        same = [x for x in parts if (x["time_level"] == "late").all() and set(x["dimensions"]) == set(p["dimensions"])]
        parts.append(_months(p, *same or [p.head(0)]))
    if days >= 364:
        rates = level("window", ("area",), 20_000, 40_000.0).assign(dimensions="area+standard_age")
        parts.append(rates[~rates["area"].isin(["elsewhere"])])
    if days >= 91:
        weeks = next(p for p in parts if (p["time_level"] == "week").all() and set(p["dimensions"]) == {"total"})
        quarter = weeks["unit_start"].map(
            lambda d: city.budget.epoch + timedelta((d - city.budget.epoch).days // 91 * 91)
        )
        sums = weeks.assign(unit_start=quarter).groupby(["unit_start", "care"], as_index=False)
        whole = sums[["value", "variance"]].sum()[sums.size()["size"] == 13]
        parts.append(whole.assign(time_level="quarter", dimensions="total"))
        starts = [city.budget.epoch + timedelta(d) for d in range(0, days - 90, 91)]
        at_cap = pd.MultiIndex.from_product([starts, CARE], names=["unit_start", "care"]).to_frame(index=False)
        at_cap["value"] = rng.normal(200, 33, len(at_cap))
        parts.append(at_cap.assign(time_level="quarter", dimensions="patients_at_cap", variance=1081.0))
    frame = pd.concat(parts, ignore_index=True)
    size = frame["time_level"].map(DAYS | {"quarter": 91, "late": 7})
    size = size.where(frame["time_level"] != "month", [monthrange(s.year, s.month)[1] for s in frame["unit_start"]])
    frame["unit_end"] = [s + timedelta(int(n) - 1) for s, n in zip(frame["unit_start"], size, strict=True)]
    return frame.assign(status="provisional")


@pytest.fixture(scope="session")
def make_estimates(city: City) -> Callable[..., pa.Table]:
    """`make_estimates(days, seed)`: an `ESTIMATES` table of that many days from the epoch."""

    def make(days: int = 364, seed: int = 1) -> pa.Table:
        frame = _frame(city, days, seed).astype(object)
        frame = frame.where(frame.notna(), None)
        return pa.Table.from_pylist(frame.to_dict("records"), schema=ESTIMATES)

    return make


@pytest.fixture(scope="session")
def estimates(make_estimates: Callable[..., pa.Table]) -> pa.Table:
    return make_estimates()


@pytest.fixture(scope="session")
def frames(estimates: pa.Table, city: City) -> dict[str, pd.DataFrame]:
    from assets.publication.indicators import build

    return build(estimates, city)


@pytest.fixture(scope="session")
def small(make_estimates: Callable[..., pa.Table], city: City) -> dict[str, pd.DataFrame]:
    from assets.publication.indicators import build

    return build(make_estimates(56, 2), city)


@pytest.fixture(scope="session")
def plan(city: City) -> Any:
    from assets.publication.guarantee import guarantee

    return guarantee(city)


@pytest.fixture
def as_of() -> date:
    return date(2025, 12, 31)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """As `shared`, for fixtures that live longer than one test."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.exists():
        pytest.skip("real input not at hand: ../shared/data is missing")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], str]]:
    """`serve(folder)`: the address of `index.html` in a folder that a static web server serves."""
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/index.html"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
