"""Trend of quality: the share of each clinic's consented cases in quarantine, by arrival day. Shares, no counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.lake.lake import Lake

RECORD: Final = "quality_shares"
KEPT_DAYS: Final = 400
ENOUGH_CASES: Final = 20
"""With fewer cases a share means nothing: a single row would raise an alarm."""
_KEYS: Final = ("clinic", "arrival_day")
_BARS: Final = "▁▂▃▄▅▆▇█"

Shares = dict[str, dict[str, float]]
"""Arrival day → clinic → share."""


def _counted(cases: pa.Table, name: str) -> pa.Table:
    return cases.group_by(["clinic", "arrival_day"]).aggregate([([], "count_all")]).rename_columns([*_KEYS, name])


def _joined(valid: pa.Table, quarantined: pa.Table) -> pa.Table:
    """(clinic, arrival_day, valid, quarantined): numbers of cases, in memory only."""
    both = _counted(valid, "valid").join(_counted(quarantined, "quarantined"), list(_KEYS), join_type="full outer")
    for name in ("valid", "quarantined"):
        both = both.set_column(both.column_names.index(name), name, pc.fill_null(both.column(name), 0))
    return both


def shares(valid: pa.Table, quarantined: pa.Table) -> Shares:
    """Share of cases in quarantine of each clinic and arrival day that has any."""
    found: Shares = {}
    for row in _joined(valid, quarantined).sort_by([("arrival_day", "ascending"), ("clinic", "ascending")]).to_pylist():
        share = row["quarantined"] / (row["valid"] + row["quarantined"])
        found.setdefault(row["arrival_day"].isoformat(), {})[row["clinic"]] = round(share, 4)
    return found


def highest(valid: pa.Table, quarantined: pa.Table) -> tuple[str, float]:
    """The clinic with the largest share in this run, and the share; ("", 0) where none has `ENOUGH_CASES`."""
    totals = _joined(valid, quarantined).group_by("clinic").aggregate([("valid", "sum"), ("quarantined", "sum")])
    found = [
        (row["quarantined_sum"] / (row["valid_sum"] + row["quarantined_sum"]), row["clinic"])
        for row in totals.to_pylist()
        if row["valid_sum"] + row["quarantined_sum"] >= ENOUGH_CASES
    ]
    share, clinic = max(found, default=(0.0, ""))
    return clinic, round(share, 4)


def remember(lake: Lake, days: Sequence[date], found: Shares) -> Shares:
    """Replace what is known of `days`; returns all that is kept."""
    asked = {day.isoformat() for day in days}
    known = {day: value for day, value in (lake.read_record(RECORD) or {}).items() if day not in asked}
    kept = dict(sorted((known | found).items())[-KEPT_DAYS:])
    lake.write_record(RECORD, kept)
    return kept


def recent_and_before(history: Mapping[str, Mapping[str, float]], clinic: str) -> tuple[float | None, float | None]:
    """Mean share of the clinic's last 7 days with cases, and of up to 28 days before; None without any."""
    mine = [value[clinic] for _, value in sorted(history.items()) if clinic in value]
    last, before = mine[-7:], mine[-35:-7]
    return (float(np.mean(last)) if last else None, float(np.mean(before)) if before else None)


def sparkline(history: Mapping[str, Mapping[str, float]], clinic: str, days: int = 28) -> str:
    """The clinic's shares of its last `days` days with cases as a row of bars; the highest bar is the largest."""
    mine = [value[clinic] for _, value in sorted(history.items()) if clinic in value][-days:]
    top = max(mine, default=0.0)
    return "".join(_BARS[round(v / top * (len(_BARS) - 1)) if top else 0] for v in mine)
