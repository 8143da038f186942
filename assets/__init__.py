"""What exists and how it is computed: one package per stage, imported in the direction data flows.

`contract → lake → intake → consent → quality → identity → privacy → publication → pipelines`

A stage may import those to its left, never those to its right; `tests/test_architecture.py` checks it.
Only `asset.py`, `checks.py`, `partitions.py` and `resources.py` know Dagster; every other module holds
plain functions over tables.
"""

import atexit
import gc
import os
from typing import Final

_NEW_OBJECTS: Final = 50_000
"""How many come between two searches for garbage. Dagster and Great Expectations are half a million objects that all
stay, and at Python's 700 they were searched again and again: a twentieth of a daily run. Rows lie in Arrow and DuckDB,
which give memory back without a search."""
gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
# At its end a process gives back all memory at once; that Python first searches all of it takes 1.5 s after a daily run.
atexit.register(gc.freeze)

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
"""Read when Arrow is imported, so before any other module here. Arrow's own allocator keeps what a stage has freed, a
seventh of a day's peak; setting the pool from Python later reaches neither Parquet nor the compute functions."""
