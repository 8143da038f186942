"""Partitions: arrival days only. The clinic is a column and a folder, never a second dimension."""

from __future__ import annotations

from datetime import date

import dagster as dg

from assets.contract.city import City


def arrival_days(city: City) -> dg.DailyPartitionsDefinition:
    """One partition a day from the city's first arrival, in its time zone."""
    return dg.DailyPartitionsDefinition(start_date=city.first_arrival.isoformat(), timezone=city.time_zone)


def days_of(context: dg.AssetExecutionContext) -> list[date]:
    """The arrival days of this run, ascending."""
    return sorted(date.fromisoformat(key) for key in context.partition_keys)


BACKFILL = dg.BackfillPolicy.single_run()
"""A range of days is one run: a year in about a minute instead of an hour of start-ups."""
