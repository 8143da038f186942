"""Previews of published series for the Dagster UI.

Here: a small table and a small PNG of numbers that are already published, rendered without a network. Not here: anything that is
not in a release.
"""

from __future__ import annotations

import io
import struct
import zlib

import pandas as pd


def _repacked(png: bytes) -> bytes:
    """The same picture with its data compressed as far as it goes: the renderer compresses for speed."""
    out, packed, place = [png[:8]], b"", 8
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        chunk, place = png[place : place + 12 + size], place + 12 + size
        if chunk[4:8] == b"IDAT":
            packed += chunk[8:-4]
        elif chunk[4:8] == b"IEND":
            body = b"IDAT" + zlib.compress(zlib.decompress(packed), 9)
            out += [struct.pack(">I", len(body) - 4), body, struct.pack(">I", zlib.crc32(body)), chunk]
        else:
            out.append(chunk)
    return b"".join(out)


def trend_png(frame: pd.DataFrame, title: str) -> bytes:
    """PNG of one published series (columns of a dataset, one row for each unit of time) with its 95% band."""
    import altair as alt

    rows = frame[["period_start", "value", "ci95_lower", "ci95_upper"]].sort_values("period_start")
    unit = str(frame["unit"].iloc[0]) if len(frame) else ""
    base = alt.Chart(rows.assign(period_start=rows["period_start"].astype("datetime64[ms]"))).encode(
        x=alt.X("period_start:T", title=None)
    )
    band = base.mark_area(opacity=0.25, color="#1f5fa8").encode(
        y=alt.Y("ci95_lower:Q", title=unit, scale=alt.Scale(zero=False)), y2="ci95_upper:Q"
    )
    line = base.mark_line(color="#1f5fa8", strokeWidth=1.5).encode(y="value:Q")
    subtitle = "Band: 95% interval of the privacy noise. Consenting patients only."
    chart = (band + line).properties(width=520, height=190, title=alt.TitleParams(title, subtitle=subtitle))
    buffer = io.BytesIO()
    chart.save(buffer, format="png", engine="vl-convert")
    return _repacked(buffer.getvalue())


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
