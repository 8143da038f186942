"""How a stage fails: the class and a value-free reason, never the values that an exception may carry.

Lives beside the assets because it raises Dagster's `Failure`; it is the only such helper.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import dagster as dg

SAFE_TO_QUOTE: Final = (
    "CityFileError", "KeyFileError", "BudgetExceeded", "PlanRefused", "QualityDisagreement", "CertificateMismatch",
    "RawFilesErased",
)  # fmt: skip
"""Exceptions of ours whose message is written to be value-free."""


@contextmanager
def value_free(stage: str) -> Iterator[None]:
    """Turn any exception into a `Failure` that names class and place but no value."""
    try:
        yield
    except dg.Failure:
        raise
    except Exception as error:
        name = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        place = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-4:])
        reason = str(error) if name in SAFE_TO_QUOTE else "message withheld: it might hold a value"
        raise dg.Failure(f"{stage}: {name} at {place} ({reason})", allow_retries=False) from None
