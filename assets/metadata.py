"""Value-free metadata for the Dagster UI: descriptions, column schemas, lineage, tables of counts and shares.

Imports dagster for its metadata types; holds nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dagster as dg
import pyarrow as pa

from assets.contract import schemas


def described(what: str, reads: str, writes: str, fails: str, more: str) -> str:
    """The Markdown description of an asset, the same five parts for each."""
    rows = [("Reads", reads), ("Writes", writes), ("When it fails", fails), ("Read on", more)]
    return f"{what}\n\n" + "\n".join(f"- **{name}:** {text}" for name, text in rows)


class Lineage(NamedTuple):
    """Where an asset's columns come from: `unchanged` from `upstream`, `made_of` names the columns behind others."""

    upstream: str
    unchanged: Sequence[str]
    made_of: Mapping[str, Sequence[str]]

    def sources(self) -> dict[str, list[str]]:
        return {name: [name] for name in self.unchanged} | {name: list(of) for name, of in self.made_of.items()}

    def metadata(self) -> dict[str, Any]:
        """Dagster's column lineage, for whatever reads its catalogue."""
        deps = {
            name: [dg.TableColumnDep(asset_key=dg.AssetKey(self.upstream), column_name=column) for column in of]
            for name, of in self.sources().items()
        }
        return {"dagster/column_lineage": dg.TableColumnLineage(deps)}


def column_schema(schema: pa.Schema, lineage: Lineage | None = None) -> dict[str, Any]:
    """Dagster's column schema of an Arrow schema, comments included.

    Each column says where it comes from: the open-source interface shows no graph of column lineage.
    """
    words, sources = schemas.comments(schema), lineage.sources() if lineage else {}

    def described_column(field: pa.Field) -> dg.TableColumn:
        origin = ", ".join(f"{lineage.upstream}.{column}" for column in sources.get(field.name, ())) if lineage else ""
        text = f"{words[field.name]} ← {origin}" if origin else words[field.name]
        return dg.TableColumn(field.name, str(field.type), description=text)

    return {"dagster/column_schema": dg.TableSchema(columns=[described_column(f) for f in schema])}


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


def rules_text(counts: Mapping[str, int], of: int) -> str:
    """How many of `of` rows, and by which rules: what a check says without a click."""
    total = sum(counts.values())
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rules = f": {', '.join(f'{name} {n:,}' for name, n in rows)}" if rows else ""
    return f"{total:,} of {of:,} ({total / max(of, 1):.2%}){rules}"


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A picture of published numbers, inside the page: the UI loads nothing from elsewhere."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")
