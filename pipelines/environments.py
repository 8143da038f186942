"""Environments, resolved in one place from variables: nothing else in the project reads them for Dagster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from assets.contract.city import CITY_VARIABLE, DEFAULT_CITY
from assets.lake.keys import default_key_folder
from assets.lake.lake import default_data_root


@dataclass(frozen=True)
class Environment:
    """`unattended`: whether schedule and sensor are registered; a test or a laptop leaves them out."""

    name: Literal["production", "test"]
    city_file: Path
    data_root: Path
    key_folder: Path | None
    unattended: bool = True


def current() -> Environment:
    """The environment of this process."""
    return Environment(
        name="production",
        city_file=Path(os.environ.get(CITY_VARIABLE) or DEFAULT_CITY).absolute(),
        data_root=default_data_root().absolute(),
        key_folder=None,
    )


def key_folder(environment: Environment, city_key: str) -> Path:
    return environment.key_folder or default_key_folder(city_key)
