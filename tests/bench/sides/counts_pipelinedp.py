"""PipelineDP on its local backend: at most 4 cells of a person and one event in each, area × week, Gaussian noise."""

import json
import sys
import time

import pipeline_dp
import pyarrow.parquet as pq


def main() -> None:
    begin = time.perf_counter()
    table = pq.read_table(sys.argv[1], columns=["person", "week", "area"])
    rows = list(zip(*(table.column(c).to_pylist() for c in ("person", "week", "area")), strict=True))
    budget = pipeline_dp.NaiveBudgetAccountant(total_epsilon=1.0, total_delta=1e-6)
    engine = pipeline_dp.DPEngine(budget, pipeline_dp.LocalBackend())
    parameters = pipeline_dp.AggregateParams(
        metrics=[pipeline_dp.Metrics.COUNT], noise_kind=pipeline_dp.NoiseKind.GAUSSIAN, max_partitions_contributed=4,
        max_contributions_per_partition=1,
    )  # fmt: skip
    extractors = pipeline_dp.DataExtractors(
        privacy_id_extractor=lambda r: r[0], partition_extractor=lambda r: (r[1], r[2]), value_extractor=lambda r: 1
    )
    cells = [(week, area) for week in range(52) for area in sys.argv[2].split(",")]
    result = engine.aggregate(rows, parameters, extractors, public_partitions=cells)
    budget.compute_budgets()
    print(json.dumps({"cells": len(list(result)), "seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
