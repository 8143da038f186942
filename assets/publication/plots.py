"""Previews of published series for the Dagster UI.

Here: a small table and a small picture of numbers that are already published, rendered without a network. Not here: anything that
is not in a release.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree

import pandas as pd

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 600, 260, 60, 48, 28
_BLUE: Final = "#1f5fa8"
_NOTE: Final = "Band: 95% interval of the privacy noise. Consenting patients only."


def trend_svg(frame: pd.DataFrame, title: str) -> bytes:
    """SVG of one published series (columns of a dataset, one row for each unit of time) with its 95% band.

    Drawn here: the engine behind a chart library takes as long to start as every other picture and page of a release.
    """
    rows = frame.sort_values("period_start")
    days = (rows["period_start"] - rows["period_start"].min()).dt.days
    low, high = rows["ci95_lower"].min(), rows["ci95_upper"].max()
    x = _LEFT + days / max(days.max(), 1) * (_WIDTH - _LEFT - 12)

    def points(name: str) -> list[str]:
        y = _HEIGHT - _BOTTOM - (rows[name] - low) / ((high - low) or 1) * (_HEIGHT - _TOP - _BOTTOM)
        return [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]

    size = {"width": str(_WIDTH), "height": str(_HEIGHT), "font-family": "sans-serif", "font-size": "11"}
    svg = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size})
    ElementTree.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": "#fff"})
    band = " ".join([*points("ci95_lower"), *reversed(points("ci95_upper"))])
    ElementTree.SubElement(svg, "polygon", {"points": band, "fill": _BLUE, "fill-opacity": "0.25"})
    line = {"fill": "none", "stroke": _BLUE, "stroke-width": "1.5"}
    ElementTree.SubElement(svg, "polyline", {"points": " ".join(points("value")), **line})
    first, last = (f"{rows['period_start'].iloc[place]:%Y-%m-%d}" for place in (0, -1))
    for text, left, top, anchor in (
        (title, _LEFT, 18, "start"), (_NOTE, _LEFT, 34, "start"),
        (f"{high:,.0f}", _LEFT - 6, _TOP + 4, "end"), (f"{low:,.0f}", _LEFT - 6, _HEIGHT - _BOTTOM, "end"),
        (str(rows["unit"].iloc[0]), _LEFT - 6, _TOP + 20, "end"),
        (first, _LEFT, _HEIGHT - 10, "start"), (last, _WIDTH - 12, _HEIGHT - 10, "end"),
    ):  # fmt: skip
        about = {"x": str(left), "y": str(top), "text-anchor": anchor}
        ElementTree.SubElement(svg, "text", about).text = text
    return ElementTree.tostring(svg)


PREVIEW_ROWS = 8
PREVIEW_UNITS = 120


def latest_series(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The city's inpatient cases by day, the last `PREVIEW_UNITS` published ones; empty where there are none."""
    frame = frames.get("cases_by_area")
    if frame is None:
        return pd.DataFrame()
    mine = frame["area_key"].isna() & (frame["care"] == "inpatient") & (frame["measure"] == "count")
    return frame[mine & (frame["time_level"] == "day")].sort_values("period_start").tail(PREVIEW_UNITS)


def preview_table(series: pd.DataFrame) -> str:
    """Markdown table of the last rows of a published series."""
    lines = ["| period | value | 95% interval | quality | status |", "|---|---:|---:|---|---|"]
    lines += [
        f"| {r.period_start:%Y-%m-%d} | {r.value_display:,.0f} | {r.ci95_lower:,.1f} to {r.ci95_upper:,.1f} "
        f"| {r.quality} | {r.status} |"
        for r in series.tail(PREVIEW_ROWS).iloc[::-1].itertuples()
    ]
    return "\n".join(lines)
