"""Value-free metadata for the Dagster UI: descriptions, column schemas, lineage, tables of counts and shares.

Imports dagster for its metadata types; holds nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from assets.contract import schemas


def described(what: str, reads: str, writes: str, fails: str, more: str) -> str:
    """The Markdown description of an asset, the same five parts for each."""
    rows = [("Reads", reads), ("Writes", writes), ("When it fails", fails), ("Read on", more)]
    return f"{what}\n\n" + "\n".join(f"- **{name}:** {text}" for name, text in rows)


def column_schema(schema: pa.Schema) -> dict[str, Any]:
    """Dagster's column schema of an Arrow schema, comments included."""
    words = schemas.comments(schema)
    columns = [dg.TableColumn(f.name, str(f.type), description=words[f.name]) for f in schema]
    return {"dagster/column_schema": dg.TableSchema(columns=columns)}


def canonical_schema(name: str) -> dict[str, Any]:
    return column_schema(schemas.CANONICAL[name])


def lineage(upstream: str, columns: Sequence[str], made_of: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Column lineage: `columns` are those of `upstream` unchanged, `made_of` names the columns that others come from."""
    sources = {name: [name] for name in columns} | {name: list(of) for name, of in made_of.items()}
    deps = {
        name: [dg.TableColumnDep(asset_key=dg.AssetKey(upstream), column_name=column) for column in of]
        for name, of in sources.items()
    }
    return {"dagster/column_lineage": dg.TableColumnLineage(deps)}


def counts_table(label: str, counts: Mapping[str, int]) -> dg.MarkdownMetadataValue:
    """A Markdown table of counts, largest first."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    body = "\n".join(f"| {name} | {n:,} |" for name, n in rows) or "| none | 0 |"
    return dg.MetadataValue.md(f"| {label} | count |\n|---|---:|\n{body}")


def shares_table(label: str, counts: Mapping[str, int], of: int) -> dg.MarkdownMetadataValue:
    """A Markdown table of counts with their share of `of` that were looked at, largest first."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    body = "\n".join(f"| {name} | {n:,} | {n / of:.2%} |" for name, n in rows) or "| none | 0 | 0.00% |"
    return dg.MetadataValue.md(f"| {label} | count | share of {of:,} |\n|---|---:|---:|\n{body}")


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A picture of published numbers, inside the page: the UI loads nothing from elsewhere."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")
