"""Dagster's interface as a desk: what its pages say of columns, checks and runs."""

from __future__ import annotations

import io
import logging
from datetime import date

import dagster as dg
import pytest
from rich.console import Console
from rich.progress import Progress

from assets.consent.asset import LINEAGE as CONSENT
from assets.contract.schemas import CANONICAL, CASES, CONSENT_DECISIONS, EVENTS, PSEUDONYMISED_CASES
from assets.identity.asset import LINEAGE as IDENTITY
from assets.metadata import Lineage, rules_text
from assets.privacy.asset import LINEAGE as PRIVACY
from assets.publication.asset import LINEAGE as PUBLICATION
from assets.quality.asset import LINEAGE as QUALITY
from pipelines.definitions import defs
from pipelines.nightly import one_run
from pipelines.runner import _Steps

SCHEMAS = {
    "canonical_records": CASES, "consented_records": CONSENT_DECISIONS, "validated_records": CASES,
    "pseudonymised_cases": PSEUDONYMISED_CASES, "noisy_measurements": EVENTS,
}  # fmt: skip
LINEAGES = {
    "consented_records": CONSENT, "validated_records": QUALITY, "pseudonymised_cases": IDENTITY,
    "noisy_measurements": PRIVACY, "open_data": PUBLICATION,
}  # fmt: skip


@pytest.mark.parametrize("asset", LINEAGES)
def test_the_columns_of_an_asset_say_where_they_come_from(asset: str):
    lineage: Lineage = LINEAGES[asset]
    node = defs.resolve_asset_graph().get(dg.AssetKey(asset))
    assert {key.to_user_string() for key in node.parent_keys} == {lineage.upstream}
    shown = {c.name: c.description or "" for c in node.metadata["dagster/column_schema"].columns}
    assert lineage.sources() and set(lineage.sources()) <= set(shown)
    for column, sources in lineage.sources().items():
        for source in sources:
            table, _, name = source.rpartition(".")
            assert name in (CANONICAL[table] if table else SCHEMAS[lineage.upstream]).names, source
            assert f"{lineage.upstream}.{source}" in shown[column].split("← ")[1].split(", ")
    stored = lineage.metadata()["dagster/column_lineage"].deps_by_column
    assert {name: {d.column_name for d in deps} for name, deps in stored.items()} == {
        name: set(sources) for name, sources in lineage.sources().items()
    }


def test_groups_stand_in_the_order_of_the_flow_and_fit_into_the_graph():
    graph = defs.resolve_asset_graph()
    flow = [graph.get(key).group_name for key in graph.toposorted_asset_keys]
    assert flow == sorted(flow) and len(set(flow)) == 6
    assert max(map(len, flow)) <= 15, "the graph cuts longer names"


def test_a_check_names_rules_count_and_share_without_a_click():
    assert rules_text({"dates.future": 1, "cases.sex": 3}, 1000) == "4 of 1,000 (0.40%): cases.sex 3, dates.future 1"
    assert rules_text({}, 0) == "0 of 0 (0.00%)"


def test_a_run_shows_its_days_and_who_asked_for_it():
    tags = one_run((date(2025, 3, 1), date(2025, 3, 2)), "nightly", "x").tags
    single = one_run((date(2025, 3, 1), date(2025, 3, 1)), "late", "x").tags
    assert single["days"] == "2025-03-01"
    shown = {name: value for name, value in tags.items() if not name.startswith("dagster/")}
    assert shown == {"days": "2025-03-01/2025-03-02", "reason": "nightly"}
    assert max(len(f"{name}: {value}") for name, value in shown.items()) <= 30, "the runs list cuts longer ones"


def test_the_command_line_does_not_repeat_for_each_stage_that_one_failed_before_it():
    said = io.StringIO()
    with Progress(console=Console(file=said, width=120)) as progress:
        logger = logging.Logger("test")
        logger.addHandler(_Steps(progress))
        logger.error("Dependencies for step open_data were not executed: ['noisy_measurements']. Not executing.")
        logger.warning("klinik-nord 2025-03-01: rejected: no_known_file")
    assert "no_known_file" in said.getvalue() and "Dependencies" not in said.getvalue()
