"""The outsider's answer in small: four days of a few people at clinics of every format. The whole of it: `make audit`."""

from __future__ import annotations

from pathlib import Path

from outsider import Trial


def test_cases_quarantine_erasure_and_counts_are_as_a_naive_answer_says(tmp_path: Path):
    trial = Trial(4, people=14, days=4, root=tmp_path)
    assert trial.run() == []
    asked = ("stored case", "quarantine", "line", "erased", "cap", "frozen case", "cell", "loss")
    assert all(trial.compared[what] for what in asked), trial.compared
