"""The rules as a Great Expectations suite, run natively on a pandas frame.

Here: building the suite from the rules and running it without telemetry, progress bars or values in its
results. Not here: the rules (`rules`), what happens to a failing row (`validate`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from assets.quality.rules import Rule

if TYPE_CHECKING:
    import pandas as pd

RESULT_FORMAT: Final[dict[str, Any]] = {"result_format": "BASIC", "partial_unexpected_count": 0}
"""Counts only: GX must neither return nor log a value."""

_SOURCE: Final = "quality"
_ONE_AT_A_TIME: Final = Lock()


class SuiteFailed(Exception):
    """GX could not evaluate a rule. The message names table, rules and error class, never a value."""


def run_gx(table_name: str, frame: pd.DataFrame, rules: Sequence[Rule]) -> dict[str, int]:
    """Unexpected count of each rule of `table_name` on `frame`, a prepared view of that table."""
    declared = {rule.id: rule for rule in rules if rule.table == table_name}
    if not declared:
        return {}
    try:
        counts = _run(table_name, frame, list(declared.values()))
    except Exception as error:
        raise SuiteFailed(f"{table_name}: the suite did not run ({error.__class__.__name__})") from None
    if missing := sorted(set(declared) - set(counts)):
        raise SuiteFailed(f"{table_name}: no result for {', '.join(missing)}")
    return counts


@cache
def _context() -> Any:
    """One ephemeral context for the process: making one takes time and a temporary folder each."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    # Whatever GX has to say about an error may quote a value.
    logger = logging.getLogger("great_expectations")
    logger.propagate, logger.handlers = False, [logging.NullHandler()]
    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return context


def _run(table_name: str, frame: pd.DataFrame, rules: Sequence[Rule]) -> dict[str, int]:
    """Counts of the rules that GX evaluated without error."""
    with _ONE_AT_A_TIME:
        context = _context()
        from great_expectations import ExpectationSuite
        from great_expectations.expectations.registry import get_expectation_impl

        suite = ExpectationSuite(name=table_name)
        for rule in rules:
            suite.add_expectation(get_expectation_impl(rule.expectation)(**rule.kwargs, meta={"rule": rule.id}))
        try:
            asset = context.data_sources.add_pandas(_SOURCE).add_dataframe_asset(table_name)
            batch = asset.add_batch_definition_whole_dataframe("rows").get_batch({"dataframe": frame})
            results = batch.validate(suite, result_format=RESULT_FORMAT).results
        finally:
            # With its source the context forgets the rows.
            context.data_sources.delete(_SOURCE)
    return {
        r.expectation_config.meta["rule"]: int(r.result["unexpected_count"])
        for r in results
        if not r.exception_info.get("raised_exception") and "unexpected_count" in r.result
    }
