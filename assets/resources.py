"""What assets are given: the city and the lake, resolved when a run starts, never at import."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from assets.contract.city import City, load_city
from assets.lake.keys import default_key_folder
from assets.lake.lake import Lake


class Site(dg.ConfigurableResource):
    """One installation: city file, data root and key folder."""

    city_file: str
    data_root: str
    key_folder: str = ""

    def city(self) -> City:
        return load_city(Path(self.city_file))

    def lake(self) -> Lake:
        """The lake with its keys. Raises `KeyFileError` where a key is missing or unsafe."""
        folder = Path(self.key_folder) if self.key_folder else default_key_folder(self.city().key)
        return Lake.open(Path(self.data_root), folder)
