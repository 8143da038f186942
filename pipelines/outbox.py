"""Alerts that wait for their channel, and what was reported when. One small value-free file, so that no alert is lost
with Dagster's state. Not here: what an alert says (`alerts`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from assets.lake.files import atomic_write, make_directory
from pipelines.alerts import KINDS, Alert, NotDelivered

RECORD: Final = Path("confidential") / "records" / "alerts.json"
AGAIN_AFTER: Final = {"now": timedelta(hours=6), "today": timedelta(days=1), "this month": timedelta(days=14)}
"""How long after an unchanged state is reported again, by urgency."""
KEPT: Final = 200


class Outbox:
    """The file of one data root: `waiting`, `told` (state → time), `since` (runs already looked at)."""

    def __init__(self, root: Path) -> None:
        self.path = root / RECORD
        self.record: dict[str, Any] = {"waiting": [], "told": {}, "since": None}
        if self.path.exists():
            self.record |= json.loads(self.path.read_bytes())

    def waiting(self) -> list[dict[str, Any]]:
        """Alerts that some channel refused at least once and has not taken since."""
        return [entry for entry in self.record["waiting"] if entry["why"]]

    def save(self) -> None:
        make_directory(self.path.parent)
        atomic_write(self.path, json.dumps(self.record, indent=1).encode())

    def add(self, alerts: Iterable[Alert], names: Iterable[str]) -> None:
        """Queue each alert for each channel; the oldest go where there are too many."""
        for alert in alerts:
            self.record["waiting"] += [{"channel": name, "why": "", "alert": asdict(alert)} for name in names]
        self.record["waiting"] = self.record["waiting"][-KEPT:]

    def untold(self, states: Iterable[Alert], now: datetime) -> list[Alert]:
        """Those of the present `states` that were not told lately; forgets states that are over."""
        told: dict[str, str] = self.record["told"]
        present = {alert.subject: alert for alert in states}
        fresh = {
            subject: alert
            for subject, alert in present.items()
            if subject not in told
            or now - datetime.fromisoformat(told[subject]) >= AGAIN_AFTER[KINDS[alert.kind].urgency]
        }
        self.record["told"] = {k: now.isoformat() if k in fresh else told[k] for k in present}
        return list(fresh.values())

    def deliver(self, send: Callable[[str, Alert], None]) -> tuple[int, list[str]]:
        """Try everything that waits; number delivered, and why the others were not."""
        left, delivered = [], 0
        for entry in self.record["waiting"]:
            try:
                send(entry["channel"], Alert(**entry["alert"]))
                delivered += 1
            except NotDelivered as error:
                left.append(entry | {"why": str(error)})
        self.record["waiting"] = left
        return delivered, sorted({entry["why"] for entry in left})
