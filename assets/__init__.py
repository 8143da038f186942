"""What exists and how it is computed: one package per stage, imported in the direction data flows.

`contract → lake → intake → consent → quality → identity → privacy → publication → pipelines`

A stage may import those to its left, never those to its right; `tests/test_architecture.py` checks it.
Only `asset.py`, `checks.py`, `partitions.py` and `resources.py` know Dagster; every other module holds
plain functions over tables.
"""
