"""The analyst database: one DuckDB file over the published indicators, explained by comments on everything.

Here: tables and comments of `city_health.duckdb` and how the file is put in place. Not here: views and macros
(`analyst_sql`), or any number that is not published as a bundle too. The file is built beside its place and replaced in one step: who holds the old one keeps reading it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from assets.contract.city import City
from assets.contract.codes import AGE_GROUPS
from assets.lake.engine import connect
from assets.lake.files import fsync_directory, make_directory
from assets.publication.analyst_sql import quoted, statements
from assets.publication.bundle import to_arrow
from assets.publication.catalogue import COLUMNS, Dataset, dataset
from assets.publication.guarantee import Guarantee

STORAGE_VERSION: Final = "v1.2.0"
"""So that older and newer clients open it."""

_COMMENTS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "catalogue": (
        "one row for each dataset: what it holds",
        {
            "dataset": "name of the table of the dataset",
            "title_de": "title in German",
            "title_en": "title in English",
            "description_de": "description in German",
            "description_en": "description in English",
            "unit": "measures and their units",
            "levels": "units of time × dimensions that are published",
            "care": "kinds of care that are counted",
        },
    ),
    "release": (
        "one row for each dataset: which release the table holds",
        {
            "dataset": "name of the table of the dataset",
            "release_version": "version of the release",
            "data_as_of": "day up to which data went into the release",
            "published_rows": "rows of the table (public, they do not depend on persons)",
            "publisher": "who publishes",
            "contact": "contact for questions",
            "licence": "address of the licence",
            "licence_title": "name of the licence",
            "synthetic": "true where the numbers are made up for a demonstration",
        },
    ),
    "privacy": (
        "the guarantee that protects every patient, and what it costs in accuracy",
        {"item": "what is stated", "statement": "its value, as text or JSON"},
    ),
    "geography": (
        "areas with their residents by age group and sex, and the source of these figures",
        {
            "region_key": "German region key (ARS) of the city",
            "area_key": "area, as in the datasets",
            "area_name_de": "name in German",
            "area_name_en": "name in English",
            "age_group": "age group",
            "age_lower": "lowest age of the group in years",
            "age_upper": "highest age of the group; empty: open",
            "sex": "w or m",
            "residents": "residents; empty where no figure is at hand",
            "source": "where the figures come from",
            "as_of": "day that the figures describe",
            "estimate": "true where the figures are estimated",
        },
    ),
}


def _catalogue(listed: list[Dataset]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "dataset": d.key,
                "title_de": d.title.de,
                "title_en": d.title.en,
                "description_de": d.description.de,
                "description_en": d.description.en,
                "unit": d.unit,
                "levels": "; ".join(f"{x.time} × {x.dimensions}" for x in d.levels),
                "care": ", ".join(d.care),
            }
            for d in listed
        ],
        schema=pa.schema([(name, pa.string()) for name in _COMMENTS["catalogue"][1]]),
    )


def _release(tables: dict[str, pa.Table], city: City) -> pa.Table:
    def one(table: pa.Table, column: str) -> Any:
        return table.column(column)[0].as_py() if table.num_rows else None

    kinds = {"data_as_of": pa.date32(), "published_rows": pa.int64(), "synthetic": pa.bool_()}
    about = city.publication
    return pa.Table.from_pylist(
        [
            {
                "dataset": key,
                "release_version": one(table, "release_version"),
                "data_as_of": one(table, "data_as_of"),
                "published_rows": table.num_rows,
                "publisher": about.publisher,
                "contact": f"{about.contact_name} <{about.contact_email}>",
                "licence": about.licence,
                "licence_title": about.licence_title,
                "synthetic": city.synthetic,
            }
            for key, table in tables.items()
        ],
        schema=pa.schema([(n, kinds.get(n, pa.string())) for n in _COMMENTS["release"][1]]),
    )


def _geography(city: City) -> pa.Table:
    kinds = {
        "age_lower": pa.int16(),
        "age_upper": pa.int16(),
        "residents": pa.int64(),
        "as_of": pa.date32(),
        "estimate": pa.bool_(),
    }
    return pa.Table.from_pylist(
        [
            {
                "region_key": city.region.ars,
                "area_key": area.key,
                "area_name_de": area.name.de,
                "area_name_en": area.name.en,
                "age_group": age,
                "age_lower": low,
                "age_upper": up,
                "sex": sex,
                "residents": area.residents(age, sex),
                "source": city.population.source,
                "as_of": city.population.as_of,
                "estimate": city.population.estimate,
            }
            for area in city.areas
            for age, low, up in AGE_GROUPS
            for sex in ("w", "m")
        ],
        schema=pa.schema([(n, kinds.get(n, pa.string())) for n in _COMMENTS["geography"][1]]),
    )


def _privacy(promise: Guarantee) -> pa.Table:
    stated = promise.statements()
    text = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in stated.values()]
    return pa.table({"item": pa.array(list(stated), pa.string()), "statement": pa.array(text, pa.string())})


@dataclass(frozen=True)
class Explained:
    """A table with its comment and those of its columns."""

    table: pa.Table
    comment: str
    columns: dict[str, str]

    def comments(self, name: str) -> Iterator[str]:
        """Statements that put the comments on the table. COMMENT takes no parameter: text is quoted."""
        yield f'COMMENT ON TABLE "{name}" IS {quoted(self.comment)}'
        for column, text in self.columns.items():
            yield f'COMMENT ON COLUMN "{name}"."{column}" IS {quoted(text)}'


def datasets(frames: dict[str, pd.DataFrame], city: City) -> dict[str, Explained]:
    """Tables of the datasets: the rows of each `data.parquet`."""
    note = " Synthetic demonstration data." if city.synthetic else ""
    columns = {c.name: c.comment.en for c in COLUMNS}
    return {
        key: Explained(to_arrow(frame), f"{dataset(key).title.en}: {dataset(key).description.en}{note}", columns)
        for key, frame in frames.items()
    }


def about(data: dict[str, Explained], city: City, promise: Guarantee) -> dict[str, Explained]:
    """Tables that say what the datasets are: catalogue, release, privacy, geography."""
    tables = {
        "catalogue": _catalogue([dataset(key) for key in data]),
        "release": _release({key: found.table for key, found in data.items()}, city),
        "privacy": _privacy(promise),
        "geography": _geography(city),
    }
    return {name: Explained(table, *_COMMENTS[name]) for name, table in tables.items()}


def build_database(frames: dict[str, pd.DataFrame], city: City, path: Path, promise: Guarantee) -> None:
    """Write the analyst database from the released frames (`bundle.stamped`), replacing the old file in one step."""
    data = datasets(frames, city)
    make_directory(path.parent, 0o755)
    for leftover in path.parent.glob(f"{_beside(path)}*"):  # of a build that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_beside(path), dir=path.parent) as folder:
        beside = Path(folder) / path.name
        with connect([Path(folder)]) as con:
            con.execute(f"ATTACH {quoted(str(beside))} AS released (STORAGE_VERSION '{STORAGE_VERSION}')")
            con.execute("USE released")
            con.execute("BEGIN")  # one commit, not one for each of hundreds of comments
            for name, found in (data | about(data, city, promise)).items():
                con.register("incoming", found.table)
                con.execute(f'CREATE TABLE "{name}" AS SELECT * FROM incoming')
                con.unregister("incoming")
                for comment in found.comments(name):
                    con.execute(comment)
            for statement in statements(list(data)):
                con.execute(statement)
            con.execute("COMMIT")
            con.execute("CHECKPOINT")
            con.execute("USE memory")
            con.execute("DETACH released")
        install(beside, path)


def _beside(path: Path) -> str:
    return f".{path.name}."


def install(built: Path, path: Path) -> None:
    """Put the finished file in place in one step: who holds the old one keeps it, the next open sees the new."""
    built.chmod(0o644)
    handle = os.open(built, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(built, path)
    fsync_directory(path.parent)
