"""A synthetic city year: exports of three fictitious clinics below `inbox/`, and apart from them the truth.

The truth (`truth/`) says of every case what must become of it. Only tests and the evaluation of the demo read
it; nothing of the pipeline does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from assets.contract.city import City
from assets.contract.codes import AGE_GROUPS, AREA_ELSEWHERE, CHAPTER_UNKNOWN
from assets.lake.engine import connect
from pipelines.demo import csv_exports, fhir_export
from pipelines.demo.cases import draw_cases, schedule
from pipelines.demo.consents import draw_consents, permitted
from pipelines.demo.diagnoses import PROCEDURES, SECONDARY
from pipelines.demo.dirt import CHAPTER_LOST, FATES, draw_dirt
from pipelines.demo.people import age_on, people

DEFAULT_PATIENTS: Final = 160_000
DEFAULT_DAYS: Final = 395
"""Delivery days: one budget window of 364 days, and the 31 until its last lengths of stay are measured."""
BROKEN_P21_DAY, BROKEN_PRACTICE_DAY = 100, 200
"""Days (from 0) of a §21 set that comes unreadable and again, and of a practice export that stays unreadable."""
DEPARTMENTS: Final = ("0100", "0300", "1500", "2300", "2400", "2800", "0190")
Progress = Callable[[str, float], None]


def _offsets(city: City, days: pd.Series, hour: np.ndarray) -> np.ndarray:
    """UTC offset (`+01:00`) at that hour of each day; 0 to 2 o'clock before a change of clocks, else after it."""
    zone = ZoneInfo(city.time_zone)
    unique = days.drop_duplicates()
    at: dict[tuple[pd.Timestamp, bool], str] = {}
    for day in unique:
        for early in (False, True):
            text = day.to_pydatetime().replace(hour=0 if early else 12, tzinfo=zone).strftime("%z")
            at[day, early] = f"{text[:3]}:{text[3:]}"
    index = pd.MultiIndex.from_arrays([days, hour < 2])
    return np.asarray(pd.Series(at).reindex(index).to_numpy(), dtype=object)


def _truth(city: City, cases: pd.DataFrame, docs: pd.DataFrame, last_day: pd.Timestamp) -> pd.DataFrame:
    """What must become of every case; its columns are listed in the returned selection."""
    dirt = cases["dirt"]
    truth = cases[["clinic", "case_id", "patient_id", "care", "admission", "sex", "died", "dirt"]].copy()
    truth["true_person"] = cases["person"]
    truth["insured_id"] = cases["insured_id"]
    truth["insured_id_valid"] = cases["insured_id"].notna() & (dirt != "insured_id_invalid")
    for name, column in (("admitted_on", "admitted"), ("discharged_on", "discharged"), ("first_arrival_day", "first_arrival"),
                         ("last_arrival_day", "last_arrival")):  # fmt: skip
        truth[name] = cases[column].dt.date
    truth["los_days"] = (cases["discharged"] - cases["admitted"]).dt.days
    truth["sex"] = truth["sex"].where(truth["sex"] != "d", "other")
    truth["area"] = cases["area"].where(dirt != "postal_code_missing", AREA_ELSEWHERE)
    truth["chapter"] = cases["chapter"].where(~dirt.isin(CHAPTER_LOST), CHAPTER_UNKNOWN)
    # A birth year alone counts as the first of July.
    middle = pd.to_datetime(cases["birth"].dt.year.astype(str) + "-07-01")
    birth = cases["birth"].where(dirt != "birth_year_only", middle)
    age = age_on(birth.to_numpy(), cases["admitted"].to_numpy()).clip(0)
    place = np.searchsorted([low for _, low, _ in AGE_GROUPS], age, side="right") - 1
    truth["age_group"] = np.array([key for key, *_ in AGE_GROUPS], dtype=object)[place]
    truth["fate"] = dirt.map(FATES).fillna("ok")
    truth.loc[cases["lost"], "fate"] = "rejected"
    truth.loc[cases["first_arrival"] > last_day, "fate"] = "not_delivered"
    return truth.join(permitted(cases, docs, last_day))


def _versions(
    city: City, cases: pd.DataFrame, people_of: pd.DataFrame, last_day: pd.Timestamp, seed: int
) -> pd.DataFrame:
    """One row for each delivered version of a case, with every value as it stands in the file, dirt included."""
    rng = np.random.default_rng([seed, 7])
    n = len(cases)
    dirt = cases["dirt"]
    v = cases[["clinic", "case_id", "patient_id", "care", "admission", "died", "dirt"]].copy()
    v["case_number"] = np.arange(n)
    v["clock"] = cases["hour"].map("{:02d}".format) + ":" + cases["minute"].map("{:02d}".format)
    v["admitted"] = cases["admitted"] + pd.to_timedelta(np.where(dirt == "admitted_in_future", 400, 0), "D")
    early = dirt == "discharge_before_admission"
    v["discharged"] = cases["discharged"].where(~early, cases["admitted"] - pd.Timedelta(days=3))
    v["begins"] = (
        v["admitted"].dt.strftime("%Y-%m-%dT")
        + v["clock"]
        + ":00"
        + _offsets(city, v["admitted"], cases["hour"].to_numpy())
    )
    noon = np.full(n, 23)
    v["ends"] = v["discharged"].dt.strftime("%Y-%m-%dT23:45:00") + _offsets(city, v["discharged"], noon)
    v["sex"] = cases["sex"].where(dirt != "sex_unreadable", "z")
    year = cases["birth"].dt.year.where(dirt != "born_in_future", 2091)
    v["birth"] = year.astype(str) + cases["birth"].dt.strftime("-%m-%d")
    age = age_on(cases["birth"].to_numpy(), cases["admitted"].to_numpy()).clip(0)
    v["age"] = np.where(dirt == "born_in_future", -66, age).astype(str)
    v["postal_code"] = cases["postal_code"].where(dirt != "postal_code_malformed", "D-" + cases["postal_code"].str[:3])
    v["postal_code"] = v["postal_code"].where(dirt != "postal_code_missing", None)
    other_digit = ((pd.to_numeric(cases["insured_id"].str[-1]) + 1) % 10).astype("Int64").astype(str)
    v["insured_id"] = cases["insured_id"].where(
        dirt != "insured_id_invalid", cases["insured_id"].str[:-1] + other_digit
    )
    v["code"] = cases["code"].where(dirt != "icd_malformed", "ZZ9.9").where(dirt != "icd_missing", None)
    v["code"] = v["code"].where(dirt != "icd_undotted", v["code"].str.replace(".", "", regex=False))
    v["department"] = np.array(DEPARTMENTS, dtype=object)[rng.integers(0, len(DEPARTMENTS), n)]
    v["procedure"] = np.where(
        rng.random(n) < 0.4, np.array(PROCEDURES, dtype=object)[rng.integers(0, len(PROCEDURES), n)], None
    )
    # Where nobody coded a principal diagnosis, nobody coded any.
    further = np.where(dirt == "icd_missing", 0, rng.integers(0, 4, n))
    start = rng.integers(0, len(SECONDARY), n)
    lists = [[SECONDARY[(s + i) % len(SECONDARY)] for i in range(k)] for s in range(len(SECONDARY)) for k in range(4)]
    v["secondary"] = np.array([*lists, None], dtype=object)[:-1][start * 4 + further]
    twice = cases["first_arrival"] < cases["last_arrival"]
    open_ = v[twice].assign(discharged=pd.NaT, ends=None, died=False, arrival=cases.loc[twice, "first_arrival"])
    done = v.assign(arrival=cases["last_arrival"])
    both = pd.concat([open_, done, done[dirt == "duplicate_row"]], ignore_index=True)
    return both[both["arrival"] <= last_day]


def _break_exports(city: City, out: Path, days: int) -> int:
    """Make two exports unusable: one is delivered again the same day, one never. Returns how many."""
    broken = 0
    for clinic in city.clinics:
        offset = {"p21": BROKEN_P21_DAY, "practice": BROKEN_PRACTICE_DAY}.get(clinic.format)
        if offset is None or offset >= days:
            continue
        folder = out / "inbox" / clinic.key / str(city.start + timedelta(offset))
        if not folder.exists():
            continue
        if clinic.format == "p21":
            again = folder.with_name(folder.name + "-2")
            again.mkdir()
            for file in folder.iterdir():
                (again / file.name).write_bytes(file.read_bytes())
            (folder / "FALL.csv").write_bytes(
                (folder / "FALL.csv").read_bytes().decode("utf-8", "replace").encode("utf-16")
            )
        else:
            text = (folder / "practice.csv").read_text(encoding="utf-8")
            (folder / "practice.csv").write_text(text.replace("visited_on", "besucht_am", 1), encoding="utf-8")
        broken += 1
    return broken


def _asked(city: City, patients: int, days: int, seed: int, dirt: float) -> dict[str, Any]:
    return {"synthetic": True, "city": city.key, "start": str(city.start), "seed": seed, "patients": patients,
            "days": days, "dirt": dirt}  # fmt: skip


def generate(
    out: Path,
    city: City,
    patients: int = DEFAULT_PATIENTS,
    days: int = DEFAULT_DAYS,
    seed: int = 1,
    dirt: float = 0.01,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out/inbox/<clinic>/<day>/` for `days` delivery days from the city's start, and `out/truth/`.

    `patients`: residents of the city's own areas. `dirt`: share of cases with a fault, 0 for none at all.
    Returns counts of what was delivered. The same arguments give the same bytes.
    """
    tell = progress or (lambda _text, _share: None)
    rng = np.random.default_rng(seed)
    last_day = pd.Timestamp(city.start + timedelta(days - 1))
    tell("residents", 0.02)
    everyone = people(city, patients, rng)
    tell("cases", 0.08)
    cases = schedule(draw_cases(city, everyone, patients, days, rng), rng)
    cases["dirt"] = draw_dirt(cases, dirt, rng)
    broken_day = pd.Timestamp(city.start + timedelta(BROKEN_PRACTICE_DAY if dirt else -1))
    cases["lost"] = (cases["format"] == "practice") & (cases["first_arrival"] == broken_day)
    docs = draw_consents(cases, last_day, rng)
    docs["by_case"] = np.arange(len(docs)) % 3 == 0
    practice = docs["format"] == "practice"
    docs.loc[practice & (docs["withdrawal_arrival"] == broken_day), "withdrawal_arrival"] += pd.Timedelta(days=1)
    tell("truth", 0.2)
    truth_docs = docs.assign(scenario=docs["scenario"].mask(practice & (docs["arrival"] == broken_day), "lost"))
    truth = _truth(city, cases, truth_docs, last_day)
    (out / "truth").mkdir(parents=True, exist_ok=True)
    truth.to_parquet(out / "truth" / "cases.parquet", index=False)
    truth_docs[["clinic", "patient_id", "scenario", "signed", "arrival", "withdrawn_on"]].to_parquet(
        out / "truth" / "patients.parquet", index=False
    )
    versions = _versions(city, cases, everyone, last_day, seed)
    lines = 0
    for place, clinic in enumerate(city.clinics):
        tell(f"exports of {clinic.key}", 0.3 + 0.65 * place / len(city.clinics))
        with connect([out]) as con:
            con.register("all_versions", versions[versions["clinic"] == clinic.key])
            con.execute("""CREATE TEMP TABLE versions AS SELECT * REPLACE (CAST(arrival AS DATE) AS arrival,
                CAST(admitted AS DATE) AS admitted, CAST(discharged AS DATE) AS discharged,
                CAST(secondary AS VARCHAR[]) AS secondary) FROM all_versions""")
            con.register("all_documents", docs[(docs["clinic"] == clinic.key) & (docs["scenario"] != "none")])
            con.execute("""CREATE TEMP TABLE documents AS SELECT * REPLACE (CAST(arrival AS DATE) AS arrival,
                CAST(withdrawal_arrival AS DATE) AS withdrawal_arrival) FROM all_documents""")
            inbox = out / "inbox" / clinic.key
            if clinic.format == "fhir":
                lines += fhir_export.write(con, inbox, dirty=dirt > 0)
            else:
                lines += (csv_exports.write_p21 if clinic.format == "p21" else csv_exports.write_practice)(con, inbox)
    broken = _break_exports(city, out, days) if dirt else 0
    folders = [f for clinic in city.clinics for f in (out / "inbox" / clinic.key).glob("[0-9]*")]
    for folder in folders:
        (folder / "_COMPLETE").touch()
    delivered = truth[truth["fate"] != "not_delivered"]
    summary: dict[str, Any] = {
        **_asked(city, patients, days, seed, dirt), "exports": len(folders),
        "broken_exports": broken, "lines": lines, "cases": len(delivered),
        "consented_cases": int(delivered["consented"].sum()),
        "cases_by_fate": delivered["fate"].value_counts().to_dict(),
        "cases_by_dirt": delivered.loc[delivered["dirt"] != "", "dirt"].value_counts().to_dict(),
        "pairs_by_consent": truth_docs["scenario"].value_counts().to_dict(),
    }  # fmt: skip
    (out / "truth" / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    tell("done", 1.0)
    return summary


def generate_once(
    out: Path, city: City, patients: int, days: int, seed: int, dirt: float, progress: Progress | None = None
) -> dict[str, Any]:
    """As `generate`, but whole or not at all, and nothing where the same demo city stands in `out` already.

    Raises `FileExistsError` where `out/inbox` holds anything else: exports are never overwritten.
    """
    inbox, truth, partial = out / "inbox", out / "truth", out / "demo.partial"
    asked = _asked(city, patients, days, seed, dirt)
    if inbox.is_dir() and any(inbox.iterdir()):
        summary = truth / "summary.json"
        found: dict[str, Any] = json.loads(summary.read_text()) if summary.exists() else {}
        if not found:
            raise FileExistsError(f"{inbox} holds exports that are not of a demo; choose another --out")
        if {key: found.get(key) for key in asked} != asked:
            raise FileExistsError(f"{inbox} holds another demo city; remove {out} or choose another --out")
        return found
    for left in (partial, truth):  # of a demo that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    result = generate(partial, city, patients, days, seed, dirt, progress)
    truth.parent.mkdir(parents=True, exist_ok=True)
    (partial / "truth").rename(truth)
    (partial / "inbox").rename(inbox)
    partial.rmdir()
    return result
