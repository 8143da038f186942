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
from pipelines.alerts import KINDS, Alert, NotDelivered, Unanswered

RECORD: Final = Path("confidential") / "records" / "alerts.json"
AGAIN_AFTER: Final = {"now": timedelta(hours=6), "today": timedelta(days=1), "this month": timedelta(days=14)}
"""How long after an unchanged state is reported again, by urgency."""
KEPT: Final = 200
_unsaved: Final[dict[Path, dict[str, Any]]] = {}
"""What no disk would take, for as long as the process lives: a full disk is to be told too, and once."""


def _read(path: Path) -> dict[str, Any]:
    """What the file holds. Nothing where it is damaged: what waited is lost, but every state is told anew."""
    try:
        record = json.loads(path.read_bytes())
        return record if isinstance(record["waiting"], list) and isinstance(record["told"], dict) else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


class Outbox:
    """The file of one data root: `waiting`, `told` (state → time), `since` (runs already looked at)."""

    def __init__(self, root: Path) -> None:
        self.path = root / RECORD
        self.record: dict[str, Any] = {"waiting": [], "told": {}, "since": None}
        self.record |= _unsaved.get(self.path) or _read(self.path)

    def waiting(self) -> list[dict[str, Any]]:
        """Alerts that some channel refused at least once and has not taken since."""
        return [entry for entry in self.record["waiting"] if entry["why"]]

    def save(self) -> None:
        """Write the file; where that is not possible, this process remembers it and goes on to send."""
        try:
            make_directory(self.path.parent)
            atomic_write(self.path, json.dumps(self.record, indent=1).encode())
            _unsaved.pop(self.path, None)
        except OSError:
            _unsaved[self.path] = self.record

    def add(self, alerts: Iterable[Alert], names: Iterable[str]) -> None:
        """Queue each alert for each channel; the oldest go where there are too many."""
        for alert in alerts:
            self.record["waiting"] += [{"channel": name, "why": "", "alert": asdict(alert)} for name in names]
        self.record["waiting"] = self.record["waiting"][-KEPT:]

    def untold(self, states: Iterable[Alert], now: datetime) -> list[Alert]:
        """Those of the present `states` that were not told lately; forgets states that are over."""
        told: dict[str, str] = self.record["told"]
        present = {alert.subject: alert for alert in states}

        def lately(alert: Alert) -> bool:
            # A time that lies ahead is that of a clock which was set back since.
            since = now - datetime.fromisoformat(told[alert.subject])
            return timedelta(0) <= since < AGAIN_AFTER[KINDS[alert.kind].urgency]

        fresh = {subject: a for subject, a in present.items() if subject not in told or not lately(a)}
        self.record["told"] = {k: now.isoformat() if k in fresh else told[k] for k in present}
        return list(fresh.values())

    def deliver(self, send: Callable[[str, Alert], None]) -> tuple[int, list[str]]:
        """Try everything that waits; number delivered, and why the others were not.

        A channel that does not answer is asked once: Dagster gives up a look that takes longer than a minute, and begins
        the next one, which would send again what was taken meanwhile.
        """
        left, delivered, gone = [], 0, dict[str, str]()
        for entry in self.record["waiting"]:
            if why := gone.get(entry["channel"]):
                left.append(entry | {"why": why})
                continue
            try:
                send(entry["channel"], Alert(**entry["alert"]))
                delivered += 1
            except NotDelivered as error:
                left.append(entry | {"why": str(error)})
                if isinstance(error, Unanswered):
                    gone[entry["channel"]] = str(error)
        self.record["waiting"] = left
        return delivered, sorted({entry["why"] for entry in left})
