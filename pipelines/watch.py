"""The sensor that alerts: on failed runs, checks that did not pass, and states that need a person."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import dagster as dg

from assets.contract.city import City
from assets.guard import REMEDIES, anchor
from assets.resources import CITY_TAG
from pipelines.alerts import LOOK, Alert, channels, send
from pipelines.dead_runs import end_dead_runs
from pipelines.environments import Environment
from pipelines.operation import local_now, problems
from pipelines.outbox import Outbox

CHECKS: Final = {
    "nothing_refused": "delivery_refused",
    "exports_readable": "delivery_refused",
    "quarantine_is_small": "quarantine_is_small",
}
"""Checks that alert as soon as they fail; others are for the desk, or are reported as a state (`operation`)."""
_TOLD_OTHERWISE: Final = ("alert_undelivered", "delivery_refused")
"""States that are no news: what waits is sent anyway, and the check that found a delivery told it once."""
_ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


def _days(run: dg.DagsterRun) -> str:
    first = run.tags.get("dagster/asset_partition_range_start") or run.tags.get("dagster/partition") or "no day"
    last = run.tags.get("dagster/asset_partition_range_end", first)
    return first if first == last else f"{first} to {last}"


def _failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The first step that failed, in the value-free words of `guard`; else that the run's process ended."""
    for record in instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records:
        event = record.event_log_entry.dagster_event
        error = event.step_failure_data.error if event else None
        message = " ".join(error.message.split("Failure: ")[-1].split()) if error else ""
        if "stopped: " in message:
            return message
        if event:
            return f"{event.step_key} stopped: {error.cls_name if error else 'no reason given'}"
    for record in instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records:
        event = record.event_log_entry.dagster_event
        error = getattr(event.event_specific_data if event else None, "error", None)
        while error and error.cause:
            error = error.cause
        if error and error.cls_name in REMEDIES:
            return f"start stopped: {error.cls_name}. What to do: {REMEDIES[error.cls_name]} ({anchor(error.cls_name)})"
    return "its process ended without a word, or it was never started"


def of_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[Alert]:
    """What is to be told about one run that ended."""
    if run.status == dg.DagsterRunStatus.FAILURE:
        yield Alert("run_failed", f"{_days(run)}: {_failure(instance, run)}", run.run_id)
    wanted = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    for record in instance.get_records_for_run(run.run_id, of_type=wanted).records:
        event = record.event_log_entry.dagster_event
        check = event.asset_check_evaluation_data if event else None
        if check and not check.passed and check.check_name in CHECKS:
            yield Alert(CHECKS[check.check_name], f"{_days(run)}: {check.check_name}: {check.description}", run.run_id)


def ended_runs(instance: dg.DagsterInstance, since: datetime, until: datetime, city: City) -> list[dg.RunRecord]:
    """The city's runs that ended after `since` and before `until`, oldest first."""
    wanted = dg.RunsFilter(tags={CITY_TAG: city.key}, statuses=_ENDED, updated_after=since, updated_before=until)
    return sorted(instance.get_run_records(wanted), key=lambda record: record.update_timestamp)


def watch(instance: dg.DagsterInstance, environment: Environment, city: City) -> tuple[int, list[str]]:
    """Look once: collect what is new, deliver what waits; number delivered, and why the others were not."""
    end_dead_runs(instance, environment, city)
    box, now = Outbox(environment.data_root), local_now(city)
    looked = datetime.now(UTC)
    # A time that lies ahead is that of a clock which was set back since: no run would be told until then.
    since = min(datetime.fromisoformat(box.record["since"] or looked.isoformat()), looked)
    runs = ended_runs(instance, since, looked, city)
    box.record["since"] = max([since.isoformat(), *(_utc(r.update_timestamp) for r in runs)])
    fresh = [alert for record in runs for alert in of_run(instance, record.dagster_run)]
    fresh += box.untold((a for a in problems(environment, now=now) if a.kind not in _TOLD_OTHERWISE), now)
    box.add(fresh, channels(city))
    box.save()  # before sending: what was found is not lost where this process ends
    outcome = box.deliver(lambda name, alert: send(name, alert, city))
    box.save()
    return outcome


def _utc(moment: datetime) -> str:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def watch_sensor(environment: Environment, city: City, status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """The sensor; it asks for no run."""

    @dg.sensor(
        name=LOOK,
        minimum_interval_seconds=120,
        default_status=status,
        description="Tells by e-mail and webhook what needs a person (city file: operation). Runbook: docs/runbook.md",
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        delivered, refused = watch(context.instance, environment, city)
        if refused:
            context.log.warning(f"not delivered, tried again at the next look: {'; '.join(refused)}")
        if not channels(city):
            return dg.SkipReason("the city file names no channel: `digitalstadt status` shows what needs a person")
        return dg.SkipReason(f"{delivered} alerts delivered, {len(refused)} channels refused")

    return alerts
