"""What changed from one version of a dataset to the next: a Markdown change log carried along with the releases.

Here: comparison of two published frames. Not here: anything that is not published.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from assets.publication.catalogue import KEY, Dataset

KEPT_ENTRIES = 400
"""Versions listed in a change log; older ones are listed in the change logs of older versions."""
_HEADING = re.compile(r"(?m)^(?=## )")


def _span(frame: pd.DataFrame) -> str:
    return f"{frame['period_start'].min():%Y-%m-%d} to {frame['period_end'].max():%Y-%m-%d}"


def describe(old: pd.DataFrame | None, new: pd.DataFrame) -> list[str]:
    """Sentences on added, removed and revised rows; `old` is None for a first version."""
    if old is None:
        return ["First version."] + ([f"{len(new):,} rows, {_span(new)}."] if len(new) else [])
    columns = [*KEY, "period_end", "value", "ci95_lower", "ci95_upper", "status"]
    both = old[columns].merge(new[columns], on=list(KEY), how="outer", suffixes=("_old", ""), indicator=True)
    added, removed = both[both["_merge"] == "right_only"], both[both["_merge"] == "left_only"]
    kept = both[both["_merge"] == "both"]
    changed = kept[~np.isclose(kept["value"], kept["value_old"], rtol=1e-12, atol=1e-12)]
    newly = (changed["status"] == "corrected") & (changed["status_old"] != "corrected")
    corrected, revised = changed[newly], changed[~newly]
    final = kept[(kept["status"] == "final") & (kept["status_old"] != "final")]
    lines = []
    if len(added):
        lines.append(f"{len(added):,} new rows, {_span(added)}.")
    if len(removed):
        lines.append(f"{len(removed):,} rows are no longer there: their level is no longer published.")
    if len(corrected):
        lines.append(
            f"{len(corrected):,} values corrected ({_span(corrected)}): a week was measured again over corrected data."
        )
    if len(revised):
        half = (revised["ci95_upper_old"] - revised["ci95_lower_old"]) / 2
        outside = int(((revised["value"] - revised["value_old"]).abs() > half).sum())
        lines.append(
            f"{len(revised):,} provisional values revised ({_span(revised)}), as further noisy measurements make them "
            f"more accurate; {outside:,} of them by more than their former 95% interval."
        )
    if len(final):
        lines.append(f"{len(final):,} values became final.")
    return lines or ["Documentation or metadata only; every value is the same."]


def changelog(dataset: Dataset, version: str, before: str, old: pd.DataFrame | None, new: pd.DataFrame) -> bytes:
    """`CHANGELOG.md` of a version: its own entry above those of the version `before` (its text, or empty)."""
    entry = "\n".join([f"## {version}", *(f"- {line}" for line in describe(old, new)), "", ""])
    earlier = [part for part in _HEADING.split(before) if part.startswith("## ")][: KEPT_ENTRIES - 1]
    return "".join([f"# Changes: {dataset.title.en}\n\n", entry, *earlier]).encode()
