"""Weekly emergency visits by area and the largest change on the week before. Arguments: parquet or csv, folder."""

import json
import sys
import time

begin = time.perf_counter()
folder = sys.argv[2]
if sys.argv[1] == "parquet":
    import duckdb

    begin = time.perf_counter()
    (answer,) = duckdb.sql(
        f"""WITH weekly AS (
          SELECT area, date_trunc('week', unit_start) AS week, sum(value) AS n FROM '{folder}/cases.parquet'
          WHERE care = 'emergency_visit' AND time_level = 'day' GROUP BY ALL)
        SELECT max(abs(n - before)) FROM (SELECT n, lag(n) OVER (PARTITION BY area ORDER BY week) AS before FROM weekly)"""
    ).fetchone()
else:
    import pandas as pd

    begin = time.perf_counter()
    frame = pd.read_csv(f"{folder}/cases.csv", parse_dates=["unit_start"])
    frame = frame[(frame["care"] == "emergency_visit") & (frame["time_level"] == "day")]
    week = frame["unit_start"] - pd.to_timedelta(frame["unit_start"].dt.dayofweek, "D")
    weekly = frame.groupby(["area", week])["value"].sum()
    answer = weekly.groupby(level=0).diff().abs().max()
print(json.dumps({"seconds": time.perf_counter() - begin, "answer": round(float(answer), 3)}))
