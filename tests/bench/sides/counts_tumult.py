"""Tumult Analytics on Spark in local mode: at most 4 cells of a person, one event in each, area × week, Gaussian noise."""

import json
import os
import sys
import time

from pyspark.sql import SparkSession
from tmlt.analytics import (
    AddRowsWithID,
    ApproxDPBudget,
    KeySet,
    MaxGroupsPerID,
    MaxRowsPerGroupPerID,
    QueryBuilder,
    Session,
)  # fmt: skip


def main() -> None:
    begin = time.perf_counter()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false").getOrCreate()
    # Tumult bounds groups of one column, so a cell is one.
    events = spark.read.parquet(f"file://{sys.argv[1]}").selectExpr("person", "concat(week, '/', area) AS cell")
    session = Session.from_dataframe(
        privacy_budget=ApproxDPBudget(1.0, 1e-6),
        source_id="events",
        dataframe=events,
        protected_change=AddRowsWithID("person"),
    )
    keys = KeySet.from_dict({"cell": [f"{w}/{a}" for w in range(52) for a in sys.argv[2].split(",")]})
    query = (
        QueryBuilder("events")
        .enforce(MaxGroupsPerID("cell", 4))
        .enforce(MaxRowsPerGroupPerID("cell", 1))
        .groupby(keys)
        .count()
    )
    cells = session.evaluate(query, ApproxDPBudget(1.0, 1e-6)).count()
    print(json.dumps({"seconds": time.perf_counter() - begin, "cells": cells}))


if __name__ == "__main__":
    main()
