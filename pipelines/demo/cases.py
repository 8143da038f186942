"""Hospital cases and emergency visits of the demo city, and when each clinic delivers which version of them."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from assets.contract.city import City
from assets.contract.codes import AGE_GROUPS
from pipelines.demo.diagnoses import CHAPTERS, draw_chapters, draw_codes
from pipelines.demo.people import age_on

INPATIENT_PER_RESIDENT: Final = 70_000 / 160_000
EMERGENCY_PER_RESIDENT: Final = 30_000 / 160_000
YEAR: Final = 364
# Monday to Sunday: planned admissions thin out towards the weekend, emergency visits do not.
WEEKDAY: Final = {
    "inpatient": (1.18, 1.14, 1.09, 1.06, 0.97, 0.75, 0.81),
    "emergency_visit": (1.02, 0.95, 0.94, 0.95, 0.98, 1.07, 1.09),
}
SEASON: Final = 0.07
DEATH: Final = (0.002, 0.0005, 0.001, 0.003, 0.012, 0.025, 0.05, 0.09)
EMERGENCY_ADMISSION: Final = (0.55, 0.5, 0.5, 0.4, 0.4, 0.42, 0.52, 0.65)
# Days from admission to the first delivery that names the case, with their shares; the last is late (5 to 9).
DELAYS: Final = ((1, 0.90), (2, 0.08), (3, 0.015), (5, 0.005))
MISSING_INSURED_ID: Final = 0.04
"""Share of a clinic's insured patients whose number it does not deliver."""


def _days(city: City, care: str, per_year: float, days: int, rng: np.random.Generator) -> np.ndarray:
    """Admission days: Poisson with a weekly and a yearly wave."""
    day = np.datetime64(city.start, "D") + np.arange(days - 1)
    weekday = (day.astype(np.int64) + 3) % 7
    of_year = (day - day.astype("datetime64[Y]").astype("datetime64[D]")).astype(int)
    rate = (
        per_year / YEAR * np.array(WEEKDAY[care])[weekday] * (1 + SEASON * np.cos(2 * np.pi * (of_year - 25) / 365.25))
    )
    return np.repeat(day, rng.poisson(rate))


def _without_impossible(cases: pd.DataFrame) -> pd.DataFrame:
    """Drop what overlaps an earlier stay of the person or follows the person's death. Sorted by person and day."""
    cases = cases.sort_values(["person", "admitted", "care"], kind="stable", ignore_index=True)
    far = 10**6
    until = cases["discharged"].to_numpy().astype("datetime64[D]").astype(np.int64)
    person = cases["person"].to_numpy()
    reach = np.maximum.accumulate(person * far + until)
    before = np.concatenate([[-1], reach[:-1]])
    overlaps = before >= person * far + cases["admitted"].to_numpy().astype("datetime64[D]").astype(np.int64)
    cases = cases[~overlaps].reset_index(drop=True)
    deaths = cases.groupby("person", sort=False)["died"].cumsum() - cases["died"]
    return cases[deaths == 0].reset_index(drop=True)


def draw_cases(city: City, people: pd.DataFrame, residents: int, days: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row a case: person, clinic, format, care, admitted, discharged (days), admission, died, chapter, code, hour."""
    chance = np.cumsum(people["weight"].to_numpy())
    parts = []
    for care, per_resident in (("inpatient", INPATIENT_PER_RESIDENT), ("emergency_visit", EMERGENCY_PER_RESIDENT)):
        # 6% more than wanted: so many are dropped as impossible.
        admitted = _days(city, care, residents * per_resident * 1.06, days, rng)
        person = np.searchsorted(chance, rng.random(len(admitted)) * chance[-1])
        parts.append(pd.DataFrame({"person": person, "admitted": admitted, "care": care}))
    cases = pd.concat(parts, ignore_index=True).join(people.drop(columns="person"), on="person")
    n = len(cases)
    inpatient = (cases["care"] == "inpatient").to_numpy()
    age = age_on(cases["birth"].to_numpy(), cases["admitted"].to_numpy()).clip(0)
    group = np.searchsorted([low for _, low, _ in AGE_GROUPS], age, side="right") - 1
    chapter = draw_chapters(group, (cases["sex"] == "w").to_numpy(), rng)
    stay = np.floor(rng.lognormal(1.0 + 0.13 * group, 0.75, n)).clip(0, 120).astype(int)
    stay = np.where(chapter == CHAPTERS.index("XV"), stay.clip(1, 6), stay)
    cases["discharged"] = cases["admitted"] + pd.to_timedelta(np.where(inpatient, stay, rng.random(n) < 0.05), "D")
    emergency = rng.random(n) < np.array(EMERGENCY_ADMISSION)[group]
    cases["admission"] = np.where(~inpatient | emergency, "emergency", "other")
    cases["died"] = inpatient & (rng.random(n) < np.array(DEATH)[group])
    cases["chapter"] = np.array(CHAPTERS, dtype=object)[chapter]
    cases["code"] = draw_codes(chapter, rng)
    cases["clinic"] = _clinics(city, inpatient, cases["taste"].to_numpy(), rng)
    cases["format"] = cases["clinic"].map({c.key: c.format for c in city.clinics})
    # 3% are booked at local midnight, which in UTC is the day before.
    cases["hour"] = np.where(rng.random(n) < 0.03, 0, rng.integers(3, 24, n))
    cases["minute"] = np.where(cases["hour"] == 0, 0, rng.integers(0, 60, n))
    return _without_impossible(cases)


def _clinics(city: City, inpatient: np.ndarray, taste: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clinic of each case: the usual one of the person, or in 15% of cases another."""
    usual = np.where(rng.random(len(taste)) < 0.15, rng.random(len(taste)), taste)
    hospitals = [c.key for c in city.clinics if c.format != "practice"] or [c.key for c in city.clinics]
    urgent = [c.key for c in city.clinics if c.format != "p21"] or hospitals
    # The first hospital is the larger one (45 of 70 thousand), emergency visits are shared evenly.
    sizes = np.array([1.8] + [1.0] * (len(hospitals) - 1))
    edges = np.cumsum(sizes / sizes.sum())[:-1]
    at_hospital = np.array(hospitals, dtype=object)[np.searchsorted(edges, usual)]
    at_urgent = np.array(urgent, dtype=object)[(usual * len(urgent)).astype(int)]
    return np.where(inpatient, at_hospital, at_urgent)


def schedule(cases: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Adds case_id, patient_id, first_arrival, last_arrival and the insured number as the clinic delivers it.

    A case that is not over when it is first named comes again on the day after the discharge; a practice
    delivers a visit once.
    """
    n = len(cases)
    delay = rng.choice([d for d, _ in DELAYS], n, p=[p for _, p in DELAYS])
    delay = delay + np.where(delay == 5, rng.integers(0, 5, n), 0)
    first = cases["admitted"] + pd.to_timedelta(delay, "D")
    over = cases["discharged"] + pd.Timedelta(days=1)
    practice = cases["format"] == "practice"
    cases["first_arrival"] = first.where(~practice, np.maximum(first, over))
    cases["last_arrival"] = np.maximum(cases["first_arrival"], over)
    clinic = pd.Categorical(cases["clinic"]).codes.astype(np.int64)
    # Bijections modulo a prime again: ids tell nothing, and repeat between clinics.
    cases["patient_id"] = "P" + pd.Series((cases["person"] * 7_919 + clinic * 31) % 1_000_003).astype(str).str.zfill(7)
    cases["case_id"] = "F" + pd.Series((np.arange(n, dtype=np.int64) * 104_729 + 11) % 99_999_989).astype(
        str
    ).str.zfill(8)
    pair = cases["person"].to_numpy() * 64 + clinic
    unique, place = np.unique(pair, return_inverse=True)
    hidden = rng.random(len(unique)) < MISSING_INSURED_ID
    cases["insured_id"] = cases["insured_id"].where(~hidden[place], None)
    cases["visits_here"] = np.bincount(place)[place]
    return cases
