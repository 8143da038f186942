"""Principal diagnoses of the demo city: chapters by age and sex, and a few ICD-10-GM and OPS codes for each.

The weights are assumptions that follow the shape of the German DRG statistics by age; none is a measured figure.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from assets.contract.codes import AGE_GROUP_KEYS

# Chapter → relative weight in each age group (0-4, 5-14, 15-24, 25-44, 45-64, 65-74, 75-84, 85+).
WEIGHTS: Final[dict[str, tuple[float, ...]]] = {
    "I": (9, 6, 4, 3, 3, 3, 3, 3), "II": (1, 3, 3, 6, 16, 17, 12, 6), "III": (1, 1, 1, 1, 1, 1, 1, 1),
    "IV": (1, 3, 2, 2, 3, 3, 3, 4), "V": (1, 5, 14, 13, 8, 3, 2, 2), "VI": (4, 6, 5, 5, 5, 4, 4, 3),
    "VII": (1, 1, 1, 1, 2, 3, 3, 1), "VIII": (1, 2, 1, 1, 1, 1, 1, 1), "IX": (1, 1, 2, 5, 17, 22, 26, 26),
    "X": (18, 12, 5, 4, 5, 6, 7, 9), "XI": (3, 8, 9, 9, 10, 9, 9, 8), "XII": (1, 2, 3, 2, 2, 1, 1, 1),
    "XIII": (1, 3, 5, 7, 11, 9, 7, 4), "XIV": (2, 3, 5, 6, 6, 6, 6, 6), "XV": (0, 0, 16, 24, 0, 0, 0, 0),
    "XVI": (22, 0, 0, 0, 0, 0, 0, 0), "XVII": (5, 2, 1, 1, 1, 1, 1, 1), "XVIII": (6, 7, 6, 5, 4, 4, 5, 6),
    "XIX": (8, 18, 14, 8, 8, 8, 12, 18), "XXI": (8, 1, 1, 1, 1, 1, 1, 1), "XXII": (1, 1, 1, 1, 1, 1, 1, 1),
}  # fmt: skip
CODES: Final[dict[str, tuple[str, ...]]] = {
    "I": ("A09.0", "A41.9", "B34.9", "A46"), "II": ("C34.1", "C50.9", "C18.7", "D12.6", "C61"),
    "III": ("D50.0", "D64.9", "D69.6"), "IV": ("E11.90", "E86", "E87.1", "E10.90"),
    "V": ("F10.0", "F32.2", "F20.0", "F43.2"), "VI": ("G40.9", "G45.92", "G35.1", "G47.31"),
    "VII": ("H25.1", "H26.9", "H40.1"), "VIII": ("H81.1", "H91.2", "H66.9"),
    "IX": ("I10.00", "I21.4", "I48.0", "I50.14", "I63.9", "I20.0"), "X": ("J18.9", "J44.19", "J20.9", "J35.1"),
    "XI": ("K35.8", "K40.90", "K80.20", "K57.32", "K29.1"), "XII": ("L03.11", "L02.4", "L40.0"),
    "XIII": ("M16.1", "M17.1", "M51.2", "M54.5"), "XIV": ("N39.0", "N20.1", "N17.91", "N40"),
    "XV": ("O80", "O82", "O70.0", "O60.1"), "XVI": ("P07.3", "P59.9", "P22.0"), "XVII": ("Q21.1", "Q66.0", "Q53.1"),
    "XVIII": ("R07.4", "R55", "R10.4", "R50.9"), "XIX": ("S06.0", "S72.01", "S52.50", "S82.6", "T78.4"),
    "XXI": ("Z03.8", "Z45.00", "Z51.88"), "XXII": ("U07.1",),
}  # fmt: skip
SECONDARY: Final = ("I10.00", "E11.90", "N18.3", "E78.5", "J44.19", "I48.9", "Z92.1", "E66.00")
PROCEDURES: Final = ("8-930", "5-820.00", "1-632.0", "3-200", "9-984.7", "5-511.11", "5-470.11", "8-800.c0")
CHAPTERS: Final = tuple(WEIGHTS)


def draw_chapters(age_group: np.ndarray, female: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Index into `CHAPTERS` for each case, given the place of its age group and whether the person is female."""
    weights = np.array([WEIGHTS[c] for c in CHAPTERS], dtype=float)
    drawn = np.zeros(len(age_group), dtype=np.int64)
    for group in range(len(AGE_GROUP_KEYS)):
        for sex in (False, True):
            rows = np.flatnonzero((age_group == group) & (female == sex))
            w = weights[:, group].copy()
            if not sex:
                w[CHAPTERS.index("XV")] = 0
            drawn[rows] = rng.choice(len(CHAPTERS), len(rows), p=w / w.sum())
    return drawn


def draw_codes(chapter: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An ICD-10-GM code of each case's chapter."""
    code = np.empty(len(chapter), dtype=object)
    for place, key in enumerate(CHAPTERS):
        rows = np.flatnonzero(chapter == place)
        code[rows] = np.array(CODES[key], dtype=object)[rng.integers(0, len(CODES[key]), len(rows))]
    return code
