"""Value-free metadata for the Dagster UI: column schemas and tables of counts.

Imports dagster for its metadata types; holds nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from assets.contract import schemas


def column_schema(schema: pa.Schema) -> dict[str, Any]:
    """Dagster's column schema of an Arrow schema, comments included."""
    words = schemas.comments(schema)
    columns = [dg.TableColumn(f.name, str(f.type), description=words[f.name]) for f in schema]
    return {"dagster/column_schema": dg.TableSchema(columns=columns)}


def canonical_schema(name: str) -> dict[str, Any]:
    return column_schema(schemas.CANONICAL[name])


def counts_table(label: str, counts: Mapping[str, int]) -> dg.MarkdownMetadataValue:
    """A Markdown table of counts, largest first."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    body = "\n".join(f"| {name} | {n:,} |" for name, n in rows) or "| none | 0 |"
    return dg.MetadataValue.md(f"| {label} | count |\n|---|---:|\n{body}")


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A picture of published numbers, inside the page: the UI loads nothing from elsewhere."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")
