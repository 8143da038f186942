"""Ours: bound each person by the caps (window 4, period 2, week 1), count area × week, discrete Gaussian noise."""

from __future__ import annotations

import json
import sys
import time
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.contract.city import load_city
from assets.contract.schemas import BOUNDING_DECISIONS
from assets.privacy.accounting import rho_of
from assets.privacy.bounding import decide
from assets.privacy.mechanism import DiscreteGaussian, draw


def main() -> None:
    city = load_city()
    draw([0], DiscreteGaussian(Fraction(1)))  # imports diffprivlib; every side's imports come before its work
    begin = time.perf_counter()
    events = pq.read_table(sys.argv[1], columns=["person", "day", "week", "area"], use_threads=False)
    day = pa.array(np.datetime64(city.budget.epoch, "D") + events.column("day").to_numpy())
    new = pa.table({
        "decided_on": day, "person_key": events.column("person"), "case_key": events.column("person"),
        "clinic": pa.repeat("bench", len(day)), "event_day": day,
    })  # fmt: skip
    kept = decide(new, BOUNDING_DECISIONS.empty_table(), city.caps, city.budget.epoch).column("kept").to_numpy()
    areas = pa.array([a.key for a in city.areas])
    place = pc.index_in(events.column("area"), areas).to_numpy()
    counts = np.bincount((events.column("week").to_numpy() * len(areas) + place)[kept], minlength=52 * len(areas))
    # Days and weeks: at most one event a week, so a person changes `window` cells by one each.
    noisy = draw(counts.tolist(), DiscreteGaussian(Fraction(city.caps.window) / Fraction(2 * rho_of(1.0, 1e-6))))
    print(json.dumps({"seconds": time.perf_counter() - begin, "cells": len(noisy), "kept": int(kept.sum())}))


if __name__ == "__main__":
    main()
