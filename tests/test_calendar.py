"""Releases over a year of 53 weeks and over the days on which clocks change: every case on its local calendar day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import duckdb
import pytest

from assets.contract.city import DEFAULT_CITY
from assets.lake.lake import Lake
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment

BERLIN = ZoneInfo("Europe/Berlin")
OID = "2.16.840.1.113883.3.1937.777.24.5.3"


def export(who: str, start: str) -> dict[str, Any]:
    """One patient with consent and one case."""
    period = {"start": "2020-01-01", "end": "2054-01-01"}
    codes = [{"coding": [{"system": f"urn:oid:{OID}", "code": f"{OID}.{n}"}]} for n in (6, 7, 8)]
    return {
        "Patient.ndjson": [{"resourceType": "Patient", "id": who, "gender": "female", "birthDate": "1980-05-05",
                            "address": [{"postalCode": "64283"}]}],
        "Encounter.ndjson": [{"resourceType": "Encounter", "id": f"e-{who}", "status": "finished", "class": {"code": "IMP"},
                              "subject": {"reference": f"Patient/{who}"}, "period": {"start": start}}],
        "Consent.ndjson": [{"resourceType": "Consent", "id": f"c-{who}", "status": "active", "dateTime": "2020-01-01",
                            "patient": {"reference": f"Patient/{who}"},
                            "provision": {"type": "deny", "provision": [{"type": "permit", "period": period, "code": [c]} for c in codes]}}],
    }  # fmt: skip


@pytest.fixture
def released(
    lake: Lake, tmp_path: Path, deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[date, list[str]], Any]:
    """`released(epoch, moments)`: the published database of a city that opened on `epoch`, 26 days on, without noise."""
    monkeypatch.setattr("assets.privacy.measure.draw", lambda counts, _variance: list(counts))

    def run(epoch: date, moments: list[str]) -> Any:
        by_day: dict[date, dict[str, list[Any]]] = {}
        for n, moment in enumerate(moments):
            day = datetime.fromisoformat(moment) if "T" in moment else datetime.fromisoformat(f"{moment}T12:00Z")
            files = by_day.setdefault(day.astimezone(BERLIN).date() + timedelta(1), {})
            for name, rows in export(f"p{n}", moment).items():
                files.setdefault(name, []).extend(rows)
        for arrival, files in by_day.items():
            deliver("klinik-nord", arrival, files)
        text = DEFAULT_CITY.read_text("utf-8").replace("2024-12-30", epoch.isoformat())
        (tmp_path / "city.yaml").write_text(text, "utf-8")
        environment = Environment("test", tmp_path / "city.yaml", lake.root, tmp_path / "keys", unattended=False)
        tags = {
            "dagster/asset_partition_range_start": str(epoch),
            "dagster/asset_partition_range_end": str(epoch + timedelta(25)),
        }
        with dg.DagsterInstance.ephemeral() as instance:
            job = build_definitions(environment).resolve_job_def(JOB)
            assert job.execute_in_process(instance=instance, tags=tags).success
        return duckdb.connect(str(lake.open_data / "city_health.duckdb"), read_only=True)

    return run


COUNTS = """SELECT {what}, round(value)::int FROM cases_by_area WHERE measure = 'count' AND care = 'inpatient'
  AND area_key IS NULL AND time_level = '{level}' {more} ORDER BY period_start"""


def test_a_year_of_53_weeks_has_its_53rd(released: Callable[..., Any]):
    con = released(
        date(2020, 12, 21), ["2020-12-24", "2020-12-28", "2020-12-31", "2021-01-03", "2021-01-04", "2021-01-10"]
    )
    weeks = con.execute(COUNTS.format(what="iso_week, period_start, period_end", level="week", more="")).fetchall()
    assert weeks == [
        ("2020-W52", date(2020, 12, 21), date(2020, 12, 27), 1),
        ("2020-W53", date(2020, 12, 28), date(2021, 1, 3), 3),
        ("2021-W01", date(2021, 1, 4), date(2021, 1, 10), 2),
    ]  # fmt: skip
    days = con.execute(COUNTS.format(what="period_start", level="day", more="AND value > 0.5")).fetchall()
    assert [str(day) for day, n in days for _ in range(n)] == [
        "2020-12-24", "2020-12-28", "2020-12-31", "2021-01-03", "2021-01-04", "2021-01-10",
    ]  # fmt: skip
    assert con.execute(COUNTS.format(what="period_start", level="late", more="AND abs(value) > 0.5")).fetchall() == []


@pytest.mark.parametrize(
    ("epoch", "moments"),
    [
        # the day of 23 hours: 00:00 to 23:59, the hour after the gap, and the minutes beside it
        ("2025-03-24", {"29": ["2025-03-29T22:59:00Z"], "31": ["2025-03-30T22:00:00Z", "2025-03-31T00:00:00+02:00"],
                        "30": ["2025-03-29T23:00:00Z", "2025-03-30T01:30:00+01:00", "2025-03-30T01:00:00Z", "2025-03-30T21:59:00Z"]}),
        # the day of 25 hours: the hour that comes twice, and the minutes beside the day
        ("2025-10-20", {"25": ["2025-10-25T21:59:00Z"], "27": ["2025-10-26T23:00:00Z"],
                        "26": ["2025-10-25T22:00:00Z", "2025-10-26T00:30:00Z", "2025-10-26T01:30:00Z", "2025-10-26T22:59:00Z"]}),
    ],
)  # fmt: skip
def test_on_days_on_which_clocks_change_a_case_counts_on_its_local_day(
    released: Callable[..., Any], epoch: str, moments: dict[str, list[str]]
):
    con = released(date.fromisoformat(epoch), [m for each in moments.values() for m in each])
    days = con.execute(COUNTS.format(what="period_start, period_end", level="day", more="AND value > 0.5")).fetchall()
    assert {f"{start:%d}": n for start, end, n in days if start == end} == {d: len(m) for d, m in moments.items()}
    all_days = con.execute(COUNTS.format(what="period_start", level="day", more="")).fetchall()
    assert [d for d, _ in all_days][:14] == [date.fromisoformat(epoch) + timedelta(n) for n in range(14)]
    weeks = con.execute(COUNTS.format(what="iso_week", level="week", more="")).fetchall()
    iso = date.fromisoformat(epoch).isocalendar()
    inside = sum(len(m) for d, m in moments.items() if int(d) - int(epoch[-2:]) < 7)
    assert weeks[0] == (f"{iso.year}-W{iso.week:02}", inside)
