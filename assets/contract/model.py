"""What all parts of the city file are made of: a model that takes no unknown key and never changes, and a safe key."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Key = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]
"""Keys become folder names, so they are restricted to what is safe in a path."""


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
