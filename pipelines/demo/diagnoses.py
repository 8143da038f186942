"""Which diagnoses and procedures synthetic cases carry: plausible codes with weights by age.

Here: code lists of the demo, all real ICD-10-GM and OPS codes. Not here: chapters (`contract.codes`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pipelines.demo.people import Ints, Texts

AGE_EDGES: Final = (1, 15, 45, 65, 75)
"""Bands of age: below 1, 1-14, 15-44, 45-64, 65-74, 75 and older."""

# Chapter: (weights for the six bands, codes).
INPATIENT: Final[dict[str, tuple[tuple[float, ...], tuple[str, ...]]]] = {
    "I": ((6, 7, 3, 3, 3, 4), ("A09.9", "A41.9", "A46", "B34.9", "A49.9")),
    "II": ((0.3, 2, 4, 14, 16, 9), ("C34.1", "C50.4", "C18.7", "C61", "D12.5", "C20")),
    "III": ((1, 1.5, 0.7, 0.7, 1, 1.5), ("D50.9", "D64.9", "D68.9")),
    "IV": ((1, 2, 2.5, 3, 3.5, 4), ("E11.91", "E86", "E66.02", "E87.1")),
    "V": ((0.3, 3, 9, 6, 2.5, 2), ("F10.0", "F32.2", "F20.0", "F33.1", "F05.1")),
    "VI": ((1, 3, 4, 4, 4, 4), ("G47.31", "G40.9", "G35.10", "G45.92", "G20.10")),
    "VII": ((0.3, 1, 1, 2, 3, 2.5), ("H25.1", "H33.0", "H40.1")),
    "VIII": ((0.5, 2, 0.8, 0.8, 0.7, 0.5), ("H81.0", "H91.2", "H66.9")),
    "IX": ((0.5, 0.5, 3, 15, 20, 24), ("I50.14", "I21.4", "I48.0", "I63.9", "I20.0", "I10.00", "I70.22")),
    "X": ((12, 10, 5, 5, 7, 9), ("J18.9", "J44.19", "J20.9", "J35.1", "J96.00")),
    "XI": ((3, 8, 11, 11, 10, 9), ("K35.8", "K80.20", "K40.90", "K57.30", "K29.7", "K56.7")),
    "XII": ((1, 2, 2.5, 1.8, 1.3, 1.5), ("L03.11", "L02.4", "L05.0")),
    "XIII": ((0.3, 2, 6, 11, 9, 6), ("M16.1", "M17.1", "M54.4", "M51.1", "M48.06")),
    "XIV": ((2, 3, 6, 6, 6, 6), ("N39.0", "N20.0", "N40", "N17.93", "N83.2")),
    "XV": ((0, 0, 18, 0, 0, 0), ("O80", "O82", "O42.0", "O70.0", "O68.0")),
    "XVI": ((55, 0, 0, 0, 0, 0), ("P07.12", "P59.9", "P22.8", "P92.2")),
    "XVII": ((5, 3, 0.6, 0.3, 0.1, 0.1), ("Q21.1", "Q53.1", "Q65.8")),
    "XVIII": ((4, 6, 5, 5, 5, 6), ("R07.4", "R55", "R10.4", "R06.0", "R42")),
    "XIX": ((3, 13, 10, 9, 8, 12), ("S72.01", "S06.0", "S52.50", "S82.6", "T81.0")),
    "XXI": ((12, 2, 2, 1, 1, 1), ("Z38.0", "Z03.8", "Z51.1")),
    "XXII": ((0.5, 0.5, 0.5, 0.5, 0.6, 0.9), ("U07.1", "U69.00")),
}
EMERGENCY: Final[dict[str, tuple[tuple[float, ...], tuple[str, ...]]]] = {
    "I": ((12, 9, 4, 3, 3, 3), ("A09.9", "B34.9", "A08.4")),
    "V": ((0, 1, 6, 4, 2, 2), ("F10.0", "F41.0", "F43.0")),
    "VI": ((1, 2, 5, 4, 3, 2), ("G43.9", "G44.2")),
    "VII": ((3, 4, 4, 4, 3, 2), ("H10.9", "H11.3")),
    "VIII": ((5, 7, 3, 3, 3, 2), ("H66.9", "H81.1")),
    "IX": ((0, 0, 2, 8, 12, 14), ("I10.01", "I48.9", "I80.2")),
    "X": ((25, 15, 8, 6, 7, 8), ("J06.9", "J20.9", "J45.9")),
    "XI": ((6, 5, 7, 7, 6, 6), ("K29.7", "K52.9", "K59.09")),
    "XII": ((4, 4, 4, 4, 3, 3), ("L50.9", "L03.9")),
    "XIII": ((0, 2, 10, 13, 10, 8), ("M54.5", "M79.66", "M25.56")),
    "XIV": ((3, 4, 8, 7, 8, 9), ("N39.0", "N23", "N30.0")),
    "XV": ((0, 0, 3, 0, 0, 0), ("O20.0", "O21.0")),
    "XVIII": ((12, 12, 16, 17, 18, 18), ("R10.4", "R07.4", "R51", "R42", "R50.9")),
    "XIX": ((20, 36, 25, 22, 22, 26), ("S01.0", "S61.0", "S93.40", "S52.50", "T14.0", "S00.85")),
}
SECONDARY: Final = ("I10.00", "E11.90", "E78.0", "I25.11", "N18.3", "J44.99", "F17.2", "E03.9", "Z92.1", "M81.90")
PROCEDURES: Final = ("5-820.00", "5-511.11", "1-632.0", "8-930", "3-200", "9-260", "5-470.11", "8-550.1", "1-440.a")


def principal_codes(rng: np.random.Generator, age: Ints, sex: Texts, emergency_visit: bool) -> Texts:
    """One principal diagnosis for each case; childbirth only for those not recorded as male."""
    lists = EMERGENCY if emergency_visit else INPATIENT
    weights = np.array([list(w) for w, _ in lists.values()], float).T
    band = np.digitize(age, AGE_EDGES)
    birth = list(lists).index("XV")
    tables = np.stack([weights, weights.copy()])
    tables[1, :, birth] = 0.0
    tables = (tables / tables.sum(axis=2, keepdims=True)).cumsum(axis=2)
    male = (sex == "m").astype(int)
    picked = (rng.random(len(age))[:, None] > tables[male, band]).sum(axis=1)
    chapter = np.minimum(picked, len(lists) - 1)
    sizes = np.array([len(c) for _, c in lists.values()])
    width = int(sizes.max())
    codes = np.array([[c[k % len(c)] for k in range(width)] for _, c in lists.values()])
    return codes[chapter, (rng.random(len(age)) ** 1.5 * sizes[chapter]).astype(int)]
