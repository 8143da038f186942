"""Run arrival days from the command line: the same job as the schedule's, with a progress bar and a summary.

Not here: what the stages do (`assets`), the wording of commands (`cli`).
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import dagster as dg
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from assets.contract.city import load_city
from assets.lake.lease import lease
from pipelines.dead_runs import end_dead_runs
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment
from pipelines.nightly import DAYS_TAG, REASON_TAG, shown_days

STAGES = (
    "landed_exports", "canonical_records", "consented_records", "validated_records", "pseudonymised_cases",
    "noisy_measurements", "open_data",
)  # fmt: skip

NOT_REACHED = "Dependencies for step"
"""How Dagster begins to say that a step was not reached: the step that failed says why, once is enough."""


@dataclass
class Outcome:
    """What a run did: metadata by asset (`MetadataValue.value`), failed steps and why, checks that did not pass."""

    run_id: str
    success: bool
    metadata: dict[str, dict[str, Any]]
    failures: dict[str, str] = field(default_factory=dict)
    checks: list[tuple[str, str, str]] = field(default_factory=list)


class _Steps(logging.Handler):
    """Turns Dagster's events into progress; everything below a warning stays silent."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress
        self.task = progress.add_task("starting", total=len(STAGES))

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "dagster_event", None) or getattr(record, "dagster_meta", {}).get("dagster_event")
        kind = getattr(event, "event_type_value", None)
        if kind == "STEP_START":
            self.progress.update(self.task, description=event.step_key)
        elif kind == "STEP_SUCCESS":
            self.progress.advance(self.task)
        elif record.levelno >= logging.WARNING and kind is None and NOT_REACHED not in record.getMessage():
            # A message is no markup: a bracket in it could make it fail, and the run with it.
            text = record.getMessage().splitlines()[-1]
            self.progress.console.print(text, style="yellow", markup=False, highlight=False)


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    """The instance of `DAGSTER_HOME`, so that the run shows in the UI; without it, an ephemeral one."""
    if os.environ.get("DAGSTER_HOME"):
        with dg.DagsterInstance.get() as instance:
            yield instance
    else:
        with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
            yield instance


def execute(environment: Environment, first: date, last: date, console: Console) -> Outcome:
    """Run the days `first` to `last` as one run, in this process."""
    with Progress(SpinnerColumn(), TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn(),
                  console=console, transient=True) as progress:  # fmt: skip
        steps = _Steps(progress)

        @dg.logger(description="Progress of the command line.")
        def progress_logger(_context: dg.InitLoggerContext) -> logging.Logger:
            logger = logging.Logger("digitalstadt.progress", logging.DEBUG)  # steps are told at this level
            logger.addHandler(steps)
            return logger

        job = build_definitions(environment, loggers={"progress": progress_logger}).resolve_job_def(JOB)
        tags = {
            "dagster/asset_partition_range_start": first.isoformat(),
            "dagster/asset_partition_range_end": last.isoformat(),
            REASON_TAG: "by hand",
            DAYS_TAG: shown_days(first, last),
        }
        city = load_city(environment.city_file)
        purpose = f"digitalstadt run {first} to {last}"
        # The lease first: two that create Dagster's databases at once disturb each other.
        with lease(environment.data_root, purpose, 0, city.ledger), _instance() as instance:
            end_dead_runs(instance, environment, city)
            result = job.execute_in_process(
                instance=instance, tags=tags, run_config={"loggers": {"progress": {}}}, raise_on_error=False
            )
    metadata: dict[str, dict[str, Any]] = {}
    checks, failures = [], {}
    for event in result.all_events:
        if event.is_step_materialization and event.asset_key:
            # One event a day with the same metadata; the last one has what is shown of the whole run.
            metadata[event.asset_key.to_user_string()] = {
                k: v.value for k, v in event.step_materialization_data.materialization.metadata.items()
            }
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            check = event.event_specific_data
            if isinstance(check, dg.AssetCheckEvaluation) and not check.passed:
                checks.append((check.asset_key.to_user_string(), check.check_name, check.severity.value))
        elif event.is_step_failure and event.step_key:
            error = event.step_failure_data.error
            failures[event.step_key] = " ".join(error.message.split("Failure: ")[-1].split()) if error else "failed"
    failures = {step: why for step, why in failures.items() if NOT_REACHED not in why}
    return Outcome(result.run_id, result.success, metadata, failures, checks)


def counts(markdown: Any) -> dict[str, int]:
    """The counts of a Markdown table made by `assets.metadata.counts_table`."""
    rows = re.findall(r"^\| (.+?) \| ([\d,]+) \|$", str(markdown or ""), flags=re.MULTILINE)
    return {name: int(n.replace(",", "")) for name, n in rows if name != "none"}
