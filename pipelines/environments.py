"""Environments, resolved in one place from variables: nothing else in the project reads them for Dagster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from assets.contract.city import CITY_VARIABLE, DEFAULT_CITY
from assets.lake.keys import default_key_folder
from assets.lake.lake import default_data_root

UNATTENDED_VARIABLE: Final = "DIGITALSTADT_UNATTENDED"


@dataclass(frozen=True)
class Environment:
    """`unattended`: whether schedules and sensors start by themselves, or wait until somebody switches them on."""

    name: Literal["production", "test"]
    city_file: Path
    data_root: Path
    key_folder: Path | None
    unattended: bool = False


def current() -> Environment:
    """The environment of this process."""
    return Environment(
        name="production",
        city_file=Path(os.environ.get(CITY_VARIABLE) or DEFAULT_CITY).absolute(),
        data_root=default_data_root().absolute(),
        key_folder=None,
        unattended=os.environ.get(UNATTENDED_VARIABLE) == "1",
    )


def key_folder(environment: Environment, city_key: str) -> Path:
    return environment.key_folder or default_key_folder(city_key)
