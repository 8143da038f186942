"""OpenDP with polars: at most 4 events of a person, area × week, discrete Gaussian noise."""

import json
import sys
import time

import opendp.prelude as dp
import polars as pl

dp.enable_features("contrib")


def main() -> None:
    begin = time.perf_counter()
    cell = pl.concat_str("week", "area", separator="/").alias("cell")
    events = pl.scan_parquet(sys.argv[1]).select("person", cell)
    keys = pl.LazyFrame({"cell": [f"{week}/{area}" for week in range(52) for area in sys.argv[2].split(",")]})
    context = dp.Context.compositor(
        data=events,
        privacy_unit=dp.unit_of(contributions=1, identifier=pl.col("person")),
        privacy_loss=dp.loss_of(epsilon=1.0, delta=1e-6),
        split_evenly_over=1,
        margins=[dp.polars.Margin(by=["cell"], max_groups=520)],
    )
    query = (
        context.query()
        .truncate_per_group(4)  # rows of a person; its truncation of groups fails with this release of polars
        .group_by("cell")
        .agg(dp.len())
        .with_keys(keys)
    )
    result = query.release().collect()
    print(json.dumps({"seconds": time.perf_counter() - begin, "cells": result.height}))


if __name__ == "__main__":
    main()
