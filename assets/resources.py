"""What assets are given: the city and the lake, resolved when a run starts, never at import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import dagster as dg
from pydantic import Field

from assets.contract.city import City, load_city
from assets.lake.database_lock import require
from assets.lake.distribute import Engine, choose
from assets.lake.keys import default_key_folder
from assets.lake.lake import Lake
from assets.lake.lease import lease
from assets.lake.zone import open_zone

CITY_TAG: Final = "city"
"""Dagster's tag of every run that works on a city's data root, whoever started it."""


class Site(dg.ConfigurableResource):
    """One installation: city file, data root and key folder."""

    city_file: str = Field(description="The city's YAML file ($DIGITALSTADT_CITY).")
    data_root: str = Field(
        description="Folder of inbox, landing, confidential zone and open data ($DIGITALSTADT_DATA)."
    )
    key_folder: str = Field("", description="Folder of the two key files; empty: $DIGITALSTADT_KEYS or the default.")
    wait_seconds: int = Field(600, description="How long a run waits for another one on the same data root.")

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Site]:
        """The site for a whole run, which is marked as the city's and holds the data root alone."""
        city = self.city()
        if context.run_id and context.instance and context.instance.has_run(context.run_id):
            context.instance.add_run_tags(context.run_id, {CITY_TAG: city.key})
        with lease(Path(self.data_root), f"run {context.run_id}", self.wait_seconds, city.ledger):
            yield self

    def city(self) -> City:
        return load_city(Path(self.city_file))

    def engine(self) -> Engine:
        """Where row-heavy steps are computed. Raises `EngineMissing` where that cannot start."""
        return choose(self.city().engine, Path(self.data_root) / "confidential" / "spill")

    def lake(self) -> Lake:
        """The lake with its keys. Raises `KeyFileError` or `ZoneError` where a key is missing, unsafe or another one,
        and `LeaseLost` where this run held the ledger's database and does so no more.
        """
        if database := self.city().ledger:
            require(database)
        folder = Path(self.key_folder) if self.key_folder else default_key_folder(self.city().key)
        lake = Lake.open(Path(self.data_root), folder)
        open_zone(lake)
        return lake
