"""The public page: `index.html` with its scripts, static and offline, over the numbers of the newest releases.

Here: which published rows the page shows, and how its files are written. Not here: what it looks like (`web/`).
The data is a script, not fetched, so that the page works from the file system too. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from assets.contract.city import City, Text
from assets.contract.codes import AGE_GROUP_KEYS, CARE, CHAPTER_KEYS, CHAPTER_UNKNOWN, ICD_CHAPTERS, SEXES
from assets.contract.terms import LEVEL_DAYS
from assets.lake.files import atomic_write, make_directory
from assets.publication.bundle import FILE_MODE, FOLDER_MODE, Published
from assets.publication.catalogue import CODES, MEASURES, dataset
from assets.publication.guarantee import Guarantee
from assets.publication.sql_box import EXAMPLES, MANIFEST, NO_BOX
from assets.publication.sql_tables import TABLES, tables_json

if TYPE_CHECKING:
    import jinja2

WEB: Final = Path(__file__).parent / "web"
TITLE: Final = Text(de="Gesundheit in Zahlen", en="Health in numbers")
LEVELS: Final = ("day", "week", "month", "period", "quarter", "window")
SHOWN_DAYS: Final = {
    "day": 400,
    "week": 5 * 364,
    "month": 10 * 366,
    "period": 10 * 364,
    "quarter": 10 * 364,
    "window": 100 * 364,
}
"""How far back the page shows each unit of time, in days; the files hold everything."""
COMPARED_BY: Final = {"cases_by_area": "rate_per_100000"}
"""Measure by which groups are compared, where it is not the one chosen: areas differ in size."""


def _groups(key: str, city: City) -> list[tuple[tuple[str, ...], Text]]:
    """Groups by which a dataset is compared on the page: key of a group and its name."""
    if key == "cases_by_area":
        return [((a.key,), a.name) for a in city.areas]
    if key == "cases_by_chapter":
        names = {k: Text(de=f"{k} {de}", en=f"{k} {en}") for k, _, _, de, en in ICD_CHAPTERS}
        names[CHAPTER_UNKNOWN] = Text(de="unbekannt", en="unknown")
        return [((k,), names[k]) for k in CHAPTER_KEYS]
    if key == "cases_by_age_sex":
        shown = {
            (age, sex): Text(de=f"{age} {_SEX[sex].de}", en=f"{age} {_SEX[sex].en}")
            for age in AGE_GROUP_KEYS
            for sex in SEXES
        }
        return list(shown.items())
    return []


_GROUPED_BY: Final = {
    "cases_by_area": ["area_key"],
    "cases_by_chapter": ["icd_chapter"],
    "cases_by_age_sex": ["age_group", "sex"],
}
_SEX: Final = {**CODES["sex"], "other": Text(de="divers/unbek.", en="other/unkn.")}
"""Short enough for the axis of a chart on a phone."""
_ALL_PATIENTS: Final = ("value_all_patients", "all_patients_ci95_lower", "all_patients_ci95_upper")
_BROKEN_DOWN: Final = ("area_key", "icd_chapter", "age_group", "sex")


def _rows(frame: pd.DataFrame, key: str, city: City) -> list[list[float]]:
    """Rows of a dataset as `page.js` reads them: indices into lists, day number, value and interval, quality, status.

    The newest of each series have three numbers more, where they are published: the estimate for all patients.
    """
    by = _GROUPED_BY.get(key, [])
    mine = frame[frame[[c for c in _BROKEN_DOWN if c not in by]].isna().all(axis=1) & frame["time_level"].isin(LEVELS)]
    if mine.empty:  # a plan may measure nothing but what is broken down further than the page shows
        return []
    last = mine.groupby("time_level")["period_start"].transform("max")
    age = (last - mine["period_start"]).dt.days
    mine = mine[age < mine["time_level"].map(SHOWN_DAYS)]
    index = {group: n for n, (group, _) in enumerate(_groups(key, city), start=1)}
    group = [index.get(tuple(values), 0) for values in mine[by].itertuples(index=False)] if by else 0
    start = (mine["period_start"] - pd.Timestamp(0)).dt.days
    digits = mine["measure"].map({k: m.decimals + 1 for k, m in MEASURES.items()})
    table = pd.DataFrame(
        {
            "care": mine["care"].map({c: n for n, c in enumerate(CARE)}),
            "level": mine["time_level"].map({t: n for n, t in enumerate(LEVELS)}),
            "start": start,
            "group": group,
            "measure": mine["measure"].map({m: n for n, m in enumerate(MEASURES)}),
        }
    )
    for name in ("value", "ci95_lower", "ci95_upper"):
        table[name] = (mine[name] * 10**digits).round() / 10**digits
    table["quality"] = mine["quality"].map({q: n for n, q in enumerate("ABCD")})
    table["status"] = mine["status"].map({key: n for n, key in enumerate(CODES["status"])})
    newest = table["start"] == table.groupby(["care", "level", "group", "measure"])["start"].transform("max")
    for name in _ALL_PATIENTS:
        table[name] = ((mine[name] * 10 ** (digits - 1)).round() / 10 ** (digits - 1)).where(newest)
    # A whole number is written without its `.0`: a third of the file.
    return [[int(x) if x == int(x) else x for x in row if not math.isnan(x)] for row in table.itertuples(index=False)]


def page_data(frames: dict[str, pd.DataFrame], city: City) -> dict[str, Any]:
    """What `data.js` holds: published rows and the names of everything, in German and English."""

    def pair(text: Text) -> list[str]:
        return [text.de, text.en]

    return {
        "days": LEVEL_DAYS,
        "time_levels": LEVELS,
        "care": [pair(CODES["care"][c]) for c in CARE],
        "levels": [pair(CODES["time_level"][t]) for t in LEVELS],
        "statuses": [pair(text) for text in CODES["status"].values()],
        "measures": [
            {"key": k, "name": pair(m.name), "unit": pair(m.unit_name), "decimals": m.decimals}
            for k, m in MEASURES.items()
        ],
        "datasets": {
            key: {
                "groups": [{"name": pair(name)} for _, name in _groups(key, city)],
                "compared": list(MEASURES).index(COMPARED_BY[key]) if key in COMPARED_BY else -1,
                "rows": _rows(frame, key, city),
            }
            for key, frame in frames.items()
        },
    }


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("index.html.j2")


def _html(published: Sequence[Published], city: City, promise: Guarantee) -> str:
    shown = []
    for release in published:
        about = dataset(release.dataset)
        shown.append(
            {
                "key": about.key,
                "title": about.title,
                "description": about.description,
                "measures": [
                    Text(de=f"{m.name.de}: {m.meaning.de}.", en=f"{m.name.en}: {m.meaning.en}.")
                    for m in (MEASURES[name] for name in about.measures)
                ],
                "version": release.version,
                "groups": about.key in _GROUPED_BY,
                "counted": "count" in about.measures,
                "level": about.levels[0].time if about.levels[0].time != "day" else "week",
            }
        )
    as_of: date = max(p.data_as_of for p in published)
    return _template().render(
        city=city, title=TITLE, datasets=shown, promise=promise, data_as_of=as_of.isoformat(), examples=EXAMPLES
    )


def _charts(path: Path) -> bytes:
    """The chart library as one script: what lies at `path` where that is whole and of this version."""
    present = path.read_bytes() if path.is_file() else b""
    head, _, script = present.partition(b"\n")
    return present if head == _charts_head(script) else _bundled()


def _charts_head(script: bytes) -> bytes:
    version = metadata.version("vl-convert-python")
    return f"// Vega, Vega-Lite and Vega-Embed of vl-convert {version}; sha256 {hashlib.sha256(script).hexdigest()}".encode()


@cache
def _bundled() -> bytes:
    """The chart library, bundled anew: that takes seconds."""
    import vl_convert

    # The bundle declares global constants: kept to itself.
    script = f"(()=>{{{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}}})();\n".encode()
    return _charts_head(script) + b"\n" + script


def write_page(
    frames: dict[str, pd.DataFrame], published: Sequence[Published], city: City, open_data: Path, promise: Guarantee
) -> None:
    """Write the page over `frames` (the released rows of each dataset): scripts first, then `index.html`.

    Each file is replaced in one step, and only where it changed.
    """
    data = json.dumps(page_data(frames, city), ensure_ascii=False, separators=(",", ":"))
    folder = make_directory(open_data / "page", FOLDER_MODE)
    files = {
        folder / "charts.js": _charts(folder / "charts.js"),
        folder / "page.js": (WEB / "page.js").read_bytes(),
        folder / "sql.js": (WEB / "sql.js").read_bytes(),
        folder / "style.css": (WEB / "style.css").read_bytes(),
        folder / "data.js": f"window.DIGITALSTADT={data};\n".encode(),
        folder / TABLES: tables_json(frames, published, city, open_data, promise),
        open_data / "index.html": _html(published, city, promise).encode(),
    }
    if not (folder / MANIFEST).is_file():  # an installed box stays (`sql_box`)
        files = {folder / MANIFEST: NO_BOX, **files}
    for path, content in files.items():
        if not path.is_file() or path.read_bytes() != content:
            atomic_write(path, content, mode=FILE_MODE)
