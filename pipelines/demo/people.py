"""Synthetic residents: age, sex, area, postal code, insured number and how often they need care.

Here: people. Not here: their cases (`cases`), their consents (`consents`). Nobody is modelled on anybody;
only the totals by area, age and sex follow the city file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from assets.contract.city import Area, City
from assets.contract.codes import AGE_GROUPS, AREA_ELSEWHERE

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[Any]
Days = npt.NDArray[np.datetime64]

UMLAND: Final = "umland"
UMLAND_SHARE: Final = 0.16
ELSEWHERE_SHARE: Final = 0.04
"""People from outside, in relation to the residents; they use the city's clinics like residents."""
HEAVY_SHARE: Final = 0.05
HEAVY_FACTOR: Final = 5.0
OTHER_SEX_SHARE: Final = 0.003
INSURED_SHARE: Final = 0.9
OLDEST: Final = 104

# Relative need of inpatient and of emergency care by age group.
INPATIENT_NEED: Final = (1.1, 0.4, 0.6, 0.75, 1.0, 1.7, 2.5, 3.0)
EMERGENCY_NEED: Final = (1.6, 1.2, 1.2, 1.0, 0.8, 0.9, 1.3, 1.8)

UMLAND_PLACES: Final = ("Mühltal", "Groß-Umstadt", "Roßdorf", "Griesheim", "Pfungstadt", "Seeheim-Jugenheim", "Münster")
ELSEWHERE: Final = (
    ("60311", "Frankfurt am Main"), ("68161", "Mannheim"), ("50667", "Köln"), ("80331", "München"),
    ("01067", "Dresden"), ("04109", "Leipzig"), ("06108", "Halle"), ("08056", "Zwickau"), ("40213", "Düsseldorf"),
    ("", "Wien"),
)  # fmt: skip
"""Real postal codes of other cities, several with a leading zero, and one person without any."""


@dataclass(frozen=True)
class People:
    """One entry for each person, aligned arrays."""

    born: Days
    sex: Texts
    area: Texts
    postal_code: Texts
    place: Texts
    insured_id: Texts
    """Valid Krankenversichertennummer, empty for those without."""
    heavy: Bools
    inpatient_need: Floats
    emergency_need: Floats

    def __len__(self) -> int:
        return len(self.born)


def insured_ids(numbers: Ints) -> Texts:
    """A valid, distinct insured number for each non-negative number below 26 × 10^8."""
    letter, rest = numbers // 10**8, numbers % 10**8
    place = letter + 1
    digits = np.stack([place // 10, place % 10, *((rest // 10**k) % 10 for k in range(7, -1, -1))])
    weighted = digits * np.array([1, 2] * 5)[:, None]
    check = (weighted // 10 + weighted % 10).sum(axis=0) % 10
    text = np.char.add(np.char.zfill(rest.astype(str), 8), check.astype(str))
    return np.char.add(np.array([chr(65 + k) for k in range(26)])[letter], text)


def broken_insured_ids(valid: Texts) -> Texts:
    """The same numbers with another, hence wrong, check digit."""
    stem = valid.astype("U9")
    last = np.char.replace(valid, "", "").astype("U10").view("U1").reshape(-1, 10)[:, 9].astype(int)
    return np.char.add(stem, ((last + 1) % 10).astype(str))


def _weights(area: Area) -> Floats:
    """Residents by age group and (women, men); one everywhere where the city file has no figures."""
    if area.population is None:
        return np.ones((len(AGE_GROUPS), 2))
    return np.array(list(area.population.values()), float)


def _draw_group(rng: np.random.Generator, areas: list[Area], n: int) -> tuple[Ints, Ints, Ints]:
    """Index of area, index of age group and sex (0 women, 1 men) of `n` people."""
    table = np.stack([_weights(a) for a in areas])
    flat = rng.choice(table.size, size=n, p=table.ravel() / table.sum())
    return flat // (table.shape[1] * 2), flat // 2 % table.shape[1], flat % 2


def make_people(rng: np.random.Generator, city: City, residents: int) -> People:
    """`residents` people of the city's areas, then people from its surroundings and from elsewhere."""
    inner = [a for a in city.areas if a.postal_codes and a.key not in (UMLAND, AREA_ELSEWHERE)]
    outer = [a for a in city.areas if a.postal_codes and a.key == UMLAND]
    counts = (residents, round(residents * UMLAND_SHARE) if outer else 0, round(residents * ELSEWHERE_SHARE))
    columns: dict[str, list[Any]] = {k: [] for k in ("area", "age", "sex", "code", "place")}
    for areas, n, kind in ((inner, counts[0], "inner"), (outer, counts[1], "outer"), (inner, counts[2], "far")):
        if not n or not areas:
            continue
        which, age, sex = _draw_group(rng, areas, n)
        if kind == "far":
            pick = rng.integers(0, len(ELSEWHERE), n)
            code = np.array([c for c, _ in ELSEWHERE])[pick]
            place = np.array([p for _, p in ELSEWHERE])[pick]
            area = np.full(n, AREA_ELSEWHERE, dtype="U41")
        else:
            width = max(len(a.postal_codes) for a in areas)
            codes = np.array([[a.postal_codes[k % len(a.postal_codes)] for k in range(width)] for a in areas])
            sizes = np.array([len(a.postal_codes) for a in areas])
            column = (rng.random(n) * sizes[which]).astype(int)
            code = codes[which, column]
            area = np.array([a.key for a in areas], dtype="U41")[which]
            if kind == "outer":
                place = np.array(UMLAND_PLACES)[(which * width + column) % len(UMLAND_PLACES)]
            else:
                place = np.full(n, city.key.capitalize())
        for name, values in zip(columns, (area, age, sex, code, place), strict=True):
            columns[name].append(values)
    area, age, sex, code, place = (np.concatenate(columns[k]) for k in columns)
    n = len(age)

    lower = np.array([low for _, low, _ in AGE_GROUPS])[age]
    upper = np.array([OLDEST if high is None else high for _, _, high in AGE_GROUPS])[age]
    # The oldest group thins out with age; within the others ages are even.
    spread = np.where(age == len(AGE_GROUPS) - 1, rng.random(n) ** 2.5, rng.random(n))
    days_old = ((lower + spread * (upper + 1 - lower)) * 365.2425).astype(int)
    born = np.datetime64(city.start) - np.maximum(days_old, 1)

    sexes = np.where(rng.random(n) < OTHER_SEX_SHARE, "other", np.array(["w", "m"])[sex])
    heavy = rng.random(n) < HEAVY_SHARE
    factor = np.where(heavy, HEAVY_FACTOR, 1.0)
    numbers = rng.permutation(n).astype(np.int64) * 7_919 + 100_000_007
    insured = np.where(rng.random(n) < INSURED_SHARE, insured_ids(numbers % (26 * 10**8)), "")
    return People(
        born=born, sex=sexes, area=area, postal_code=code, place=place, insured_id=insured, heavy=heavy,
        inpatient_need=np.array(INPATIENT_NEED)[age] * factor,
        emergency_need=np.array(EMERGENCY_NEED)[age] * factor,
    )  # fmt: skip
