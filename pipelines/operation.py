"""The state of an installation, and what of it needs a person; the same for status, health and alerts.

Read only, but for a data root that is new or of an older version: it is opened as by whoever opens it first.

Not here: printing (`operation_cli`), sending (`alerts`), runs that failed (`watch`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorType, TickStatus  # their only names

from assets.contract.city import City, CityFileError, load_city
from assets.contract.terms import WINDOW_DAYS
from assets.guard import kind_of, told
from assets.intake.stage import refused_exports, require_clinics
from assets.lake import audit, witness
from assets.lake.keys import KeyFileError
from assets.lake.lake import DamagedTable, Lake
from assets.lake.progress import finished_days, stretches
from assets.lake.witness import WitnessError
from assets.lake.zone import ZoneError, open_zone
from assets.privacy.evidence import gaps
from assets.privacy.ledger import Window, open_ledger
from assets.publication.checksums import altered
from assets.quality import history
from pipelines.alerts import LOOK, Alert
from pipelines.environments import Environment, key_folder
from pipelines.nightly import wanted
from pipelines.outbox import Outbox

ONE_DAY: Final = timedelta(days=1)
LOST: Final = "the ledger's database does not answer"
NO_ROOM: Final = "the ledger cannot be read: its disk has no room for what SQLite keeps beside it"
_TOLD: Final = {
    "LedgerBroken": "ledger_broken", "LedgerBehind": "ledger_broken", "DatabaseLost": "site_unusable", "DiskFull": "disk_low",
}  # fmt: skip
"""Kinds of failure in which the ledger cannot be asked → alert."""
_WORDS: Final = {"DatabaseLost": LOST, "DiskFull": NO_ROOM}
"""What is said of those whose own message is withheld."""
LOOK_SECONDS: Final = 900
"""The sensor `alerts` looks every two minutes; so long without a look, something between daemon and code is down."""
FORGOTTEN_DAYS: Final = 90
"""So long a refused export is named where the city file keeps raw files for ever: who has not delivered again will not."""


def local_now(city: City) -> datetime:
    return datetime.now(ZoneInfo(city.time_zone))


def last_deliveries(lake: Lake, city: City) -> dict[str, date | None]:
    """Newest arrival day of which landing holds an export, by clinic."""
    found: dict[str, date | None] = {}
    for clinic in city.clinics:
        days = sorted(p.name for p in (lake.landing / clinic.key).glob("[0-9]*") if any(p.glob("[0-9a-f]*")))
        found[clinic.key] = date.fromisoformat(days[-1]) if days else None
    return found


def demo_end(root: Path, city: City) -> date | None:
    """Last day of the exports of a demo city; None for any real one, whatever lies in its data root."""
    summary = root / "truth" / "summary.json"
    if not city.synthetic or not summary.is_file():
        return None
    return city.start + ONE_DAY * (int(json.loads(summary.read_text())["days"]) - 1)


def overdue(done: set[date], city: City, now: datetime, demo: date | None = None) -> Iterator[Alert]:
    """Arrival days that should be done by `now`: all before yesterday, and yesterday from the city's hour on.

    Of a demo city (`demo_end`) no day is asked for after its exports end.
    """
    last = now.date() - ONE_DAY * (1 if now.hour >= city.operation.overdue_hour else 2)
    last = min(last, demo or last)
    missing = [
        f"{first} to {end}" if end > first else str(first) for first, end in wanted(done, [], city.first_arrival, last)
    ]
    if missing:
        more = f" and {len(missing) - 3} more stretches" if len(missing) > 3 else ""
        yield Alert("day_overdue", f"not done: {', '.join(missing[:3])}{more}")


def silent(lake: Lake, city: City, done: set[date]) -> Iterator[Alert]:
    """Clinics without an export on any of the newest done days."""
    if not done:
        return
    for clinic, last in last_deliveries(lake, city).items():
        began = max(city.first_arrival, city.clinic(clinic).delivers_from or city.first_arrival)
        if not city.clinic(clinic).delivers_on(max(done)):
            continue
        heard = max([last or began - ONE_DAY, *(p.last for p in city.clinic(clinic).pauses if p.last <= max(done))])
        if (max(done) - heard).days >= city.operation.silent_days:
            yield Alert("clinic_silent", f"{clinic}: last export of {last or 'no day so far'}")


def refused(lake: Lake, city: City, now: datetime) -> Iterator[Alert]:
    """Clinics and days whose newest export could not be used; until their raw files are forgotten."""
    oldest = str(now.date() - ONE_DAY * (city.retention_days or FORGOTTEN_DAYS))
    found: dict[str, list[str]] = {}
    for (day, clinic), why in sorted(refused_exports(lake).items()):
        if day >= oldest:
            found.setdefault(clinic, []).append(f"{day} {why}")
    for clinic, days in found.items():
        more = f"; and {len(days) - 3} more days" if len(days) > 3 else ""
        yield Alert("delivery_refused", f"{clinic}: {'; '.join(days[-3:])}{more}")


def quarantined(lake: Lake, city: City) -> Iterator[Alert]:
    """Clinics whose mean share of cases in quarantine over their last seven days is above the limit."""
    shares = lake.read_record(history.RECORD) or {}
    for clinic in city.clinics:
        recent, _ = history.recent_and_before(shares, clinic.key)
        if recent is not None and recent > city.operation.max_quarantined_share:
            yield Alert("quarantine_is_small", f"{clinic.key}: {recent:.1%} of its cases of the last seven days")


def money(lake: Lake, city: City) -> Iterator[Alert]:
    """Ledger that does not verify, is older than what was published, or does not answer; windows that are paused."""
    try:
        ledger = open_ledger(lake, city)
        problems = ledger.verify() or list(gaps(lake, city, ledger))
        windows = {} if problems else ledger.windows()
    except Exception as error:
        kind = kind_of(error)
        if kind not in _TOLD:
            raise
        yield Alert(_TOLD[kind], _WORDS.get(kind) or str(error))
        return
    if problems:
        yield Alert("ledger_broken", problems[0])
    for scope, window in windows.items():
        if window.paused:
            yield Alert("budget_paused", f"window from {scope}: {window.spent_units / window.cap_units:.1%} spent")


def audited(lake: Lake) -> Iterator[Alert]:
    """An audit log that was changed, or whose end is missing."""
    for problem in audit.verify(lake)[:1]:
        yield Alert("audit_broken", problem)


def released(lake: Lake) -> Iterator[Alert]:
    """Files of a dataset's newest version that are not what was published."""
    for found in islice(altered(lake.open_data), 1):
        yield Alert("release_altered", found)


def duties(city: City, now: datetime) -> Iterator[Alert]:
    next_window = city.window_start(max(now.date(), city.budget.epoch)) + ONE_DAY * WINDOW_DAYS
    if (next_window - now.date()).days <= city.operation.notice_days:
        yield Alert("new_window", f"the next window begins on {next_window}")


def disk(root: Path, city: City) -> Iterator[Alert]:
    existing = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if free < city.operation.min_free_gigabytes:
        yield Alert(
            "disk_low",
            f"{free:.1f} GiB free where the data root lies, {city.operation.min_free_gigabytes:g} are wanted",
        )
    if root.exists() and not os.access(root, os.W_OK):
        yield Alert("site_unusable", "the data root cannot be written")


def daemons(instance: dg.DagsterInstance) -> Iterator[Alert]:
    """Dagster's daemons without a fresh heartbeat, and the sensor `alerts` where it should look and does not.

    A daemon beats on where the code server is down: no night begins then, and no alert is sent.
    """
    ill = sorted(
        name for name, status in instance.get_daemon_statuses().items() if status.required and not status.healthy
    )
    if ill:
        yield Alert("daemon_down", f"no heartbeat: {', '.join(name.lower() for name in ill)}")
    for sensor in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        if sensor.name != LOOK or not sensor.is_running:
            continue
        origin, selector = sensor.instigator_origin_id, sensor.selector_id
        ended_well = instance.get_ticks(origin, selector, limit=1, statuses=[TickStatus.SKIPPED, TickStatus.SUCCESS])
        if ended_well and time.time() - ended_well[0].timestamp > LOOK_SECONDS:
            since = datetime.fromtimestamp(ended_well[0].timestamp, UTC)
            yield Alert("daemon_down", f"the sensor {LOOK} has not looked since {since:%Y-%m-%d %H:%M} UTC")


def problems(
    environment: Environment, instance: dg.DagsterInstance | None = None, now: datetime | None = None
) -> list[Alert]:
    """Everything about the state that needs a person. Never raises for what it is there to find.

    `instance`: Dagster's, where its daemons are to be looked at too.
    """
    try:
        city = load_city(environment.city_file)
        lake = Lake.open(environment.data_root, key_folder(environment, city.key))
        if lake.root.exists():  # keys of another data root, or a witness that cannot be read, are to be told too
            witness.seen(lake.keys.witness, open_zone(lake).id, audit.LOG)
            require_clinics(lake, city)
        return [*_found(lake, city, now or local_now(city)), *(daemons(instance) if instance else ())]
    except (CityFileError, KeyFileError, ZoneError, WitnessError, DamagedTable) as error:
        return [Alert("site_unusable", str(error).splitlines()[0])]
    except Exception as error:  # else the watch would end here, and a run that failed would be told to nobody
        about = told(error)
        return [Alert("site_unusable", f"{about.happened}. {about.remedy} Place: {about.place}")]


def _found(lake: Lake, city: City, now: datetime) -> list[Alert]:
    done = finished_days(lake.root)
    found = [
        *disk(lake.root, city),
        *overdue(done, city, now, demo_end(lake.root, city)),
        *silent(lake, city, done),
        *refused(lake, city, now),
        *quarantined(lake, city),
    ]
    if lake.root.exists():
        found += [*money(lake, city), *audited(lake), *released(lake)]
        waiting = Outbox(lake.root).waiting()
        if waiting:
            found.append(Alert("alert_undelivered", f"{len(waiting)} waiting: {waiting[0]['why']}"))
    return [*found, *duties(city, now)]


def _windows(lake: Lake, city: City) -> dict[str, Window]:
    """The ledger's windows; none where it cannot be asked or does not verify, which `money` tells."""
    try:
        ledger = open_ledger(lake, city)
        return {} if ledger.verify() else ledger.windows()
    except Exception as error:
        if kind_of(error) in _TOLD:
            return {}
        raise


def state(environment: Environment, city: City, lake: Lake) -> dict[str, Any]:
    """What `digitalstadt status` shows: clinics, days, budget, releases."""
    done, shares = finished_days(lake.root), lake.read_record(history.RECORD) or {}
    clinics = []
    for clinic, last in last_deliveries(lake, city).items():
        recent, before = history.recent_and_before(shares, clinic)
        clinics.append({"clinic": clinic, "last_export": last, "quarantined_last_7_days": recent,
                        "quarantined_28_days_before": before, "by_day": history.sparkline(shares, clinic)})  # fmt: skip
    windows = _windows(lake, city) if lake.root.exists() else {}
    return {
        "city": city.key,
        "days_done": [[first, last] for first, last in stretches(done)],
        "demo_ends": demo_end(lake.root, city),
        "clinics": clinics,
        "windows": [
            {
                "window": scope,
                "spent": w.spent_units / w.cap_units,
                "left": 1 - w.spent_units / w.cap_units,
                "paused": w.paused,
            }
            for scope, w in windows.items()
        ],
        "releases": [
            {"dataset": link.parent.name, "version": os.readlink(link)}
            for link in sorted(lake.open_data.glob("*/latest"))
            if link.is_symlink()
        ],
    }
