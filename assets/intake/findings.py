"""What readers report about an export: value-free rows of `FINDINGS`, or the rejection of the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from assets.contract.schemas import CANONICAL, FINDINGS
from assets.intake.connector import Export


class RejectedExport(Exception):
    """The export cannot be used at all. The message is the rule; `file` and `line` say where.

    `folder` tells which of the exports read together it is, `others` what else was wrong in the same pass: reading a
    year again for each broken export in it would take for ever.
    """

    def __init__(self, rule: str, path: Path | None = None, line: int | None = None) -> None:
        super().__init__(rule)
        self.others: list[RejectedExport] = []
        self.rule = rule
        self.file = path.name if path else None
        self.line = line
        self.folder = path.parent if path else None


def raise_all(problems: list[RejectedExport]) -> None:
    """Raise the first of `problems`, which holds the others; nothing where there is none."""
    if problems:
        problems[0].others = problems[1:]
        raise problems[0]


@dataclass
class Findings:
    """Collects findings in columns; one call adds any number of lines of one rule."""

    rows: list[dict[str, object]] = field(default_factory=list)

    def add(
        self, export: Export, rule: str, severity: str, file: str | None = None, line: int | None = None,
        column: str | None = None, table: str | None = None, family: str = "format",
    ) -> None:  # fmt: skip
        self.rows.append(
            {
                "clinic": export.clinic.key, "arrival_day": export.arrival_day, "export_id": export.export_id,
                "source_file": file, "source_line": line, "rule": rule, "family": family, "severity": severity,
                "column_name": column, "table_name": table,
            }
        )  # fmt: skip

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=FINDINGS)


def empty_canonical() -> dict[str, pa.Table]:
    """Canonical tables without rows."""
    return {name: schema.empty_table() for name, schema in CANONICAL.items()}
