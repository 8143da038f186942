"""Residents of the demo city, drawn from the public population of the city file. Nobody in it exists."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from assets.contract.city import City
from assets.contract.codes import AGE_GROUPS, AREA_ELSEWHERE, insured_id_is_valid

SURROUNDINGS: Final = 0.35
"""Patients from areas that are no postal-code area of the city itself, per resident of the city."""
ELSEWHERE: Final = 0.05
HEAVY_SHARE, HEAVY_FACTOR = 0.05, 6.0
INSURED_SHARE: Final = 0.88
"""Share of the statutorily insured in Germany (about 88%): only they carry a Krankenversichertennummer."""
OLDEST: Final = 99
# Relative hospitalisation by age group (shape of DRG statistics by age; rounded, an assumption of the demo).
HOSPITALISATION: Final = (1.1, 0.35, 0.55, 0.65, 0.95, 1.7, 2.5, 3.0)
FAR_POSTAL_CODES: Final = ("01067", "04109", "10115", "20095", "50667", "60311", "68159", "69117", "80331", "99084")

_LETTERS: Final = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))


def insured_ids(numbers: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """Krankenversichertennummern of eight-digit `numbers` and `letters` (0–25), check digit as in `contract.codes`."""
    digits = np.empty((len(numbers), 10), dtype=np.int64)
    digits[:, 0], digits[:, 1] = (letters + 1) // 10, (letters + 1) % 10
    for place in range(8):
        digits[:, 2 + place] = numbers // 10 ** (7 - place) % 10
    weighted = digits * np.array([1, 2] * 5)
    check = (weighted // 10 + weighted % 10).sum(axis=1) % 10
    ids = pd.Series(_LETTERS[letters]) + pd.Series(numbers).astype(str).str.zfill(8) + pd.Series(check).astype(str)
    result = ids.to_numpy(dtype=object)
    assert insured_id_is_valid(result[0])
    return result


def people(city: City, residents: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row a person: person, area, postal_code, sex (m w d), birth, insured_id (or null), weight, taste.

    `residents` live in areas of a single postal code, further patients in the surroundings and elsewhere.
    `weight`: relative frequency of hospital cases; `taste` in [0, 1) decides the usual clinic.
    """
    groups: list[tuple[str, str, int, int, int, float]] = []
    for area in city.areas:
        for place, (key, low, high) in enumerate(AGE_GROUPS if area.population else ()):
            for sex, count in zip(("w", "m"), (area.population or {})[key], strict=True):
                groups.append((area.key, sex, low, high or OLDEST, place, float(count)))
    table = pd.DataFrame(groups, columns=["area", "sex", "low", "high", "group", "count"])
    single = {a.key for a in city.areas if len(a.postal_codes) == 1}
    inside = table["area"].isin(single).to_numpy()
    share = table["count"].to_numpy() * np.where(inside, 1.0, 0.0)
    around = table["count"].to_numpy() * np.where(inside, 0.0, 1.0)
    if not share.any():
        share, around = around, share
    picks = [rng.choice(len(table), residents, p=share / share.sum())]
    if around.any():
        picks.append(rng.choice(len(table), int(residents * SURROUNDINGS), p=around / around.sum()))
    picks.append(rng.choice(len(table), int(residents * ELSEWHERE), p=share / share.sum()))
    pick = np.concatenate(picks)
    frame = table.iloc[pick].reset_index(drop=True)
    n = len(frame)
    far = np.arange(n) >= n - len(picks[-1])
    frame["area"] = np.where(far, AREA_ELSEWHERE, frame["area"])
    codes = {a.key: a.postal_codes for a in city.areas} | {AREA_ELSEWHERE: FAR_POSTAL_CODES}
    frame["postal_code"] = ""
    for key, rows in frame.groupby("area").indices.items():
        frame.loc[rows, "postal_code"] = np.array(codes[str(key)], dtype=object)[
            rng.integers(0, len(codes[str(key)]), len(rows))
        ]
    age = rng.integers(frame["low"].to_numpy(), frame["high"].to_numpy() + 1)
    born = np.datetime64(city.start, "D") - (age * 365.2425 + rng.uniform(1, 364, n)).astype(np.int64)
    frame["birth"] = born
    frame["sex"] = np.where(rng.random(n) < 0.003, "d", frame["sex"])
    # Multiplication modulo a prime is a bijection: every person gets a number of their own.
    numbers = (np.arange(n, dtype=np.int64) * 48_271 + 12_345) % 99_999_989
    frame["insured_id"] = np.where(rng.random(n) < INSURED_SHARE, insured_ids(numbers, rng.integers(0, 26, n)), None)
    heavy = np.where(rng.random(n) < HEAVY_SHARE, HEAVY_FACTOR, 1.0)
    frame["weight"] = np.array(HOSPITALISATION)[frame["group"].to_numpy()] * heavy
    frame["taste"] = rng.random(n)
    frame["person"] = np.arange(n)
    return frame[["person", "area", "postal_code", "sex", "birth", "insured_id", "weight", "taste"]]


def age_on(birth: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Completed years of age, as §187 BGB counts them."""
    b, d = pd.DatetimeIndex(birth), pd.DatetimeIndex(day)
    before = (d.month < b.month) | ((d.month == b.month) & (d.day < b.day))
    return np.asarray(d.year - b.year - before.astype(int))
