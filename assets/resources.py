"""What assets are given: the city and the lake, resolved when a run starts, never at import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from assets.contract.city import City, load_city
from assets.lake.keys import default_key_folder
from assets.lake.lake import Lake
from assets.lake.lease import lease
from assets.lake.zone import open_zone


class Site(dg.ConfigurableResource):
    """One installation: city file, data root and key folder."""

    city_file: str
    data_root: str
    key_folder: str = ""
    wait_seconds: int = 600
    """How long a run waits for another one that works on the same data root, before it fails."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Site]:
        """The site for a whole run, which holds the data root alone."""
        with lease(Path(self.data_root), f"run {context.run_id}", self.wait_seconds):
            yield self

    def city(self) -> City:
        return load_city(Path(self.city_file))

    def lake(self) -> Lake:
        """The lake with its keys. Raises `KeyFileError` or `ZoneError` where a key is missing, unsafe or another one."""
        folder = Path(self.key_folder) if self.key_folder else default_key_folder(self.city().key)
        lake = Lake.open(Path(self.data_root), folder)
        open_zone(lake)
        return lake
