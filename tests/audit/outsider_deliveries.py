"""What the clinics of an imagined city deliver over some weeks, when it arrives, and which days run when.

Here: nights missed, deliveries that come twice, late or again. Not here: what is in them (`outsider_files`).
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import product
from pathlib import Path

from outsider_files import deliver
from outsider_world import CLINICS, World


@dataclass(frozen=True)
class Schedule:
    """Which days run when: `runs` in order, after what has arrived by the day in front."""

    runs: list[tuple[date, list[date]]]

    @staticmethod
    def of(start: date, days: int, rng: random.Random, late: dict[date, set[tuple[date, bool]]]) -> Schedule:
        """Each day at its night; one night missed and caught up, one day run again, and days run again to which something came late."""
        every = [start + timedelta(n) for n in range(days)]
        missed, again = rng.randrange(1, days - 1), rng.randrange(2, days)
        runs = []
        for n, day in enumerate(every):
            if n == missed:
                continue
            before = [every[missed]] if n == missed + 1 else []
            way = rng.choice(["range", "one by one", "afterwards"])
            runs += {"range": [(day, [*before, day])], "one by one": [(day, [d]) for d in (*before, day)],
                     "afterwards": [(day, [d]) for d in (day, *before)]}[way]  # fmt: skip
            runs += [(day, [every[n - 2]])] if n == again else []
            for d, upon in sorted(late.get(day, ())):  # what builds upon changes is read again with them
                runs.append((day, [x for x in every if d <= x <= day] if upon else [d]))
        return Schedule(runs)


class Deliveries:
    """What the clinics of a world deliver over `days` days, in `root`, and when each folder arrives."""

    def __init__(self, seed: int, people: int, days: int, root: Path) -> None:
        self.world = World(seed, people)
        self.arrives: dict[Path, date] = {}
        rng, late = random.Random(seed + 1), defaultdict[date, set[tuple[date, bool]]](set)
        for n, clinic in product(range(days), CLINICS):
            day = self.world.start + timedelta(n)
            state, folder = self.world.states[clinic.key], root / clinic.key / str(day)
            self.world.step(clinic, day)
            if n and rng.random() < 0.1:
                continue  # nothing comes today, and more tomorrow
            deliver(state, day, folder, rng, first=n == 0)
            self.arrives[folder] = day
            chance = rng.random()
            if chance < 0.1:
                self.world.step(clinic, day, 0.4)
                second = folder.with_name(f"{day}-second")
                deliver(state, day, second, rng, first=False)
                self.arrives[second] = day
            elif chance < 0.15 and n + 3 < days:
                later = day + timedelta(rng.randrange(1, 4) if clinic.delivers == "changes" else 1)
                again = folder.with_name(f"{later}-again{n}")
                shutil.copytree(folder, again)
                self.arrives[again] = later
            elif chance < 0.2 and clinic.delivers != "whole" and 0 < n < days - 3:
                self.arrives[folder] = day + timedelta(rng.randrange(1, 4))
                late[self.arrives[folder]].add((day, clinic.delivers == "changes"))
        self.schedule = Schedule.of(self.world.start, days, rng, late)
        self.rotated = rng.randrange(1, len(self.schedule.runs))
        """Before which run the keys are rotated."""
