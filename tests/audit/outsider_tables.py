"""How the clinics of an imagined city write down what they hold as tables: §21 CSV, practice CSV, `consent.csv`.

Here: spelling, with the variants and the damage that formats.md names. Not here: FHIR (`outsider_files`), what happens
(`outsider_world`).
"""

from __future__ import annotations

import random
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from outsider_world import Case, Clinic, Patient, State

BIRTHS: Final = {"unborn": "2031-01-01", "old": "1880-01-01", "no_birth": ""}
CAUSES: Final = {True: "N", False: "E"}


def style_of(clinic: Clinic, name: str) -> random.Random:
    """What is written of one case or document stays the same from day to day unless it changes."""
    return random.Random(f"{clinic.key}/{name}")


def _german(style: random.Random, day: date | None) -> str:
    return "" if day is None else style.choice([f"{day:%Y-%m-%d}", f"{day:%d.%m.%Y}"])


def _consent_csv(state: State, folder: Path, whole: bool) -> None:
    rows = []
    for document in (d for d in state.documents.values() if whole or d.id in state.touched["documents"]):
        style = style_of(state.clinic, document.id)
        signed = document.declared.isoformat(timespec="minutes")
        alone = style.random() < 0.5  # a withdrawal in a row of its own, which names neither signature nor codes
        withdrawn = _german(style, document.withdrawn)
        who = [document.by_case, ""] if document.by_case else ["", document.patient]
        for first, last in dict.fromkeys((f, t) for _, _, f, t in document.provisions):
            codes = " ".join(c for _, c, f, t in document.provisions if (f, t) == (first, last))
            period = [_german(style, first), _german(style, last)]
            rows.append([*who, signed, codes, *period, "" if alone else withdrawn])
        if alone and withdrawn:
            rows.append([*who, "", "", "", "", withdrawn])
    if rows or whole:
        lines = [
            "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on",
            *(";".join(r) for r in rows),
        ]
        (folder / "consent.csv").write_text("\n".join(lines) + "\n")


def _age(patient: Patient, day: date) -> int:
    return day.year - patient.birth.year - ((day.month, day.day) < (patient.birth.month, patient.birth.day))


FALL: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;Versicherten-ID;Geburtsjahr;Geburtsmonat;Geschlecht;PLZ;Wohnort;"
    "Aufnahmedatum;Aufnahmeanlass;Aufnahmegrund;Fallzusammenführung;Entlassungsdatum;Entlassungsgrund;Alter-in-Jahren-am-Aufnahmetag;Patientennummer"
)
ICD: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;Diagnoseart;ICD-Version;ICD-Kode;Lokalisation;"
    "Diagnosensicherheit;Sekundär-Kode;Lokalisation;Diagnosensicherheit"
)

FAB: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;FAB;FAB-Aufnahmedatum;FAB-Entlassungsdatum;Kennung-Intensivbett",
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;Standortnummer-Behandlungsort;Fachabteilung;"
    "FAB-Aufnahmedatum;FAB-Entlassungsdatum;Kennung-Intensivbett",
)


def _fall(case: Case, patient: Patient, day: date, style: random.Random) -> str:
    segment, cause, reason = "DRG", CAUSES[case.emergency], "0107" if case.emergency else "0101"
    if case.care == "outpatient":  # three ways to say that it is no stay of a patient
        segment, cause, reason = style.choice([("PIA", cause, reason), ("DRG", "B", reason), ("DRG", cause, "0301")])
    reason = reason[1:] if style.random() < 0.2 else "9901" if case.flaw == "damaged" else reason
    cause = "Q" if case.flaw == "no_patient" else cause
    admitted = day + timedelta(3) if case.flaw == "future" else case.admitted
    left = case.admitted - timedelta(2) if case.flaw == "before" else None if case.flaw == "future" else case.discharged
    postal = "ABCDE" if patient.flaw == "postal" else patient.postal_code
    postal = postal[1:] if postal[0] == "0" and style.random() < 0.6 else postal
    birth = BIRTHS.get(patient.flaw or "", str(patient.birth))[:4]
    cells = [
        "260600000", "00", segment, case.id, patient.insured or "", birth, "", "q" if patient.flaw == "sex" else patient.sex, postal, "Ort",
        "" if case.flaw == "undated" else f"{admitted:%Y%m%d}{style.choice(['0000', '0815', '2400'])}", cause, reason, "N",
        f"{left:%Y%m%d}{style.choice(['0900', '2359'])}" if left else "", ("079" if case.died else "011") if left else "",
        str(_age(patient, case.admitted)) if birth else "", "" if case.unnamed else case.patient,
    ]  # fmt: skip
    return ";".join(cells)


def p21(state: State, day: date, folder: Path, rng: random.Random, first: bool) -> None:
    falls, codes = [FALL], [ICD]
    wards = [rng.choice(FAB)]  # that of before 2020, or of today
    for case in (c for c in state.cases.values() if c.id in state.touched["cases"] | state.touched["diagnoses"]):
        style = style_of(state.clinic, case.id)
        falls.append(_fall(case, state.patients[case.patient], day, style))
        icd = "X" if case.flaw == "icd" else case.icd.replace(".", "") if style.random() < 0.4 else case.icd
        wards.append(f"260600000;00;DRG;{case.id};{'772548000;' * (wards[0] == FAB[1])}HA0100;202501010800;;N")
        codes.append(f"260600000;00;DRG;{case.id};HD;2025;{icd};;{case.certainty or ''};;;")
        codes.append(f"260600000;00;DRG;{case.id};ND;2025;Q20.0;;;;;")
    encoding = rng.choice(["utf-8", "utf-8-sig", "iso-8859-15"])
    if rng.random() < 0.5:  # columns of other years, and what a set holds beside
        falls = [f"{line};{'12,5' if n else 'Verweildauer-intensiv'}" for n, line in enumerate(falls)]
    for name, lines in (("FALL.csv", falls), ("icd.CSV", codes), ("fab.csv", wards)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding)
    _consent_csv(state, folder, whole=False)


def practice(state: State, day: date, folder: Path, rng: random.Random, first: bool) -> None:
    rows = [
        "case_id;patient_id;insured_id;birth_date;sex;postal_code;visited_on;left_on;visit_type;principal_diagnosis;further_diagnoses"
    ]
    for case in (c for c in state.cases.values() if c.id in state.touched["cases"] | state.touched["diagnoses"]):
        style, patient = style_of(state.clinic, case.id), state.patients[case.patient]
        visited = None if case.flaw == "undated" else day + timedelta(3) if case.flaw == "future" else case.admitted
        left = case.admitted - timedelta(2) if case.flaw == "before" else style.choice([None, visited])
        kind = style.choice(["emergency", "Notfall"] if case.care == "emergency" else ["planned", "geplant"])
        icd = (
            "X"
            if case.flaw == "icd"
            else case.icd + style.choice([" ", ""]) * bool(case.certainty) + (case.certainty or "")
        )
        birth = BIRTHS.get(
            patient.flaw or "", str(patient.birth.year) if patient.year_only else _german(style, patient.birth)
        )
        sex = "q" if patient.flaw == "sex" else patient.sex
        postal = "ABCDE" if patient.flaw == "postal" else patient.postal_code
        rows.append(";".join([case.id, case.patient, patient.insured or "", birth, sex, postal, _german(style, visited), _german(style, left),
                              "maybe" if case.flaw == "damaged" else kind, icd, "E11.9 I10"]))  # fmt: skip
    (folder / "practice.csv").write_text("\n".join(rows) + "\n", encoding=rng.choice(["utf-8", "utf-8-sig"]))
    _consent_csv(state, folder, whole=True)
