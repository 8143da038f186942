"""Exports of changes: whole exports every day and changes of them leave the same cases behind."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pytest

from assets.consent.rule import decide
from assets.contract.city import City
from assets.contract.codes import CONSENT_CODE_SYSTEM
from assets.contract.schemas import PROVENANCE
from assets.intake.connector import built_upon, landed, pull
from assets.intake.read import read_exports
from assets.intake.stage import take
from assets.lake.lake import Lake
from assets.lake.progress import finished_days, mark_finished

DAY, TODAY = date(2025, 1, 6), date(2025, 2, 1)
CHANGES = json.dumps({"scope": "incremental", "since": None, "transaction_time": "2025-01-07T00:00:00Z"})
ICD, OPS = "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://fhir.de/CodeSystem/bfarm/ops"
LEVEL, ROLE = "http://fhir.de/CodeSystem/Kontaktebene", "http://terminology.hl7.org/CodeSystem/diagnosis-role"
World = dict[tuple[str, str], dict[str, Any]]
PROVIDED = [f.name for f in PROVENANCE]


def to(kind: str, name: str) -> dict[str, str]:
    return {"reference": f"{kind}/{name}"}


class Clinic:
    """What a clinic's server holds: `days` of it, each with random changes of the one before."""

    def __init__(self, seed: int, patients: int) -> None:
        self.random, self.world, self.made = random.Random(seed), dict[tuple[str, str], dict[str, Any]](), 0
        self.day = DAY
        self.patients = [f"p{n}" for n in range(patients)]
        for name in self.patients:
            self.put("Patient", name)
        for _ in range(patients):
            self.admit()

    def put(self, kind: str, name: str, **over: Any) -> None:
        """Create a resource or give it other content."""
        about = {"resourceType": kind, "id": name, "meta": {"lastUpdated": f"{self.day}T01:00:00Z"}}
        self.world[kind, name] = getattr(self, f"_{kind.lower()}")(name) | about | over

    def names(self, kind: str, level: str = "") -> list[str]:
        return [n for (k, n), r in self.world.items() if k == kind and level in json.dumps(r.get("type", ""))]

    def any(self, kind: str, level: str = "") -> str:
        return self.random.choice(self.names(kind, level) or ["none"])

    def _patient(self, name: str) -> dict[str, Any]:
        return {"gender": self.random.choice(["male", "female"]), "birthDate": f"{self.random.randint(1930, 2020)}-05-05",
                "address": [{"postalCode": self.random.choice(["64283", "64285", "64297"])}]}  # fmt: skip

    def _encounter(self, name: str) -> dict[str, Any]:
        ward, start = name.startswith("w"), date(2025, 1, self.random.randint(1, 5))
        stay = {"start": str(start), **({"end": "2025-01-06"} if self.random.random() < 0.7 else {})}
        level = "abteilungskontakt" if ward else "einrichtungskontakt"
        uses = [{"use": {"coding": [{"system": ROLE, "code": self.random.choice(["CC", "DD", "AD"])}]}, "condition": to("Condition", self.any("Condition"))}
                for _ in range(self.random.randint(0, 2))]  # fmt: skip
        return {"status": self.random.choice(["finished", "in-progress"]), "class": {"code": "IMP"}, "period": stay,
                "type": [{"coding": [{"system": LEVEL, "code": level}]}], "diagnosis": uses,
                "subject": to("Patient", self.random.choice(self.patients)),
                **({"partOf": to("Encounter", self.any("Encounter"))} if ward else {})}  # fmt: skip

    def _condition(self, name: str) -> dict[str, Any]:
        status = (
            {"verificationStatus": {"coding": [{"code": "entered-in-error"}]}} if self.random.random() < 0.2 else {}
        )
        linked = {"encounter": to("Encounter", self.any("Encounter"))} if self.random.random() < 0.7 else {}
        return {"code": {"coding": [{"system": ICD, "code": f"{self.random.choice('CIJK')}{self.random.randint(10, 30)}.0"}]}, **status, **linked}  # fmt: skip

    def _procedure(self, name: str) -> dict[str, Any]:
        return {"status": "completed", "subject": to("Patient", "p0"), "encounter": to("Encounter", self.any("Encounter")),
                "code": {"coding": [{"system": OPS, "code": f"5-{self.random.randint(100, 900)}"}]}, "performedDateTime": "2025-01-05"}  # fmt: skip

    def admit(self) -> None:
        """A case with wards, diagnoses and procedures."""
        self.made += 1
        self.put("Encounter", f"e{self.made}")
        for kind, stem, most in (("Condition", "c", 3), ("Encounter", "w", 2), ("Procedure", "o", 1)):
            for n in range(self.random.randint(0, most)):
                self.put(kind, f"{stem}{self.made}-{n}")

    def changed(self, share: float, deleting: bool = True) -> World:
        """A day later: some of everything changed, some was deleted, some is new. What it was before."""
        before = copy.deepcopy(self.world)
        self.day += timedelta(1)
        for kind, name in list(self.world):
            luck = self.random.random()
            if luck < share:
                self.put(kind, name)
            elif deleting and luck < share * 1.3 and kind != "Patient":
                del self.world[kind, name]
        self.admit()
        return before


def files_of(resources: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    files: dict[str, list[dict[str, Any]]] = {}
    for r in resources:
        files.setdefault(f"{r['resourceType']}.ndjson", []).append(r)
    return files


def changes_of(before: World, after: World) -> dict[str, Any]:
    """What a bulk server lists with `_since`."""
    gone = [{"request": {"method": "DELETE", "url": f"{kind}/{name}"}} for kind, name in before if (kind, name) not in after]  # fmt: skip
    changed = [r for key, r in after.items() if before.get(key) != r]
    return {"export.json": CHANGES, **files_of(changed), "deleted.ndjson": [{"resourceType": "Bundle", "entry": gone}]}


def stored(lake: Lake, city: City, runs: list[list[date]]) -> dict[str, Any]:
    """Newest version of each case, with its person, diagnoses and procedures, as `runs` over groups of days leave it."""
    versions, removed = dict[date, dict[str, Any]](), dict[date, set[str]]()
    for days in runs:
        exports = landed(lake, city, days)
        tables, rejected = read_exports(exports, city, built_upon(lake, city, exports))
        assert rejected == {}
        versions |= {day: {} for day in days}
        removed |= {day: set() for day in days}
        for row in tables["deletions"].to_pylist():
            removed[row["arrival_day"]].add(row["id"])

        def beside(name: str, tables: dict[str, pa.Table] = tables) -> dict[Any, list[str]]:
            found: dict[Any, list[str]] = {}
            for row in tables[name].to_pylist():
                key = row["arrival_day"], row["patient_id" if name == "persons" else "case_id"]
                found.setdefault(key, []).append(repr({k: v for k, v in row.items() if k not in PROVIDED}))
            return {key: sorted(rows) for key, rows in found.items()}

        persons, diagnoses, procedures = map(beside, ("persons", "diagnoses", "procedures"))
        for case in tables["cases"].to_pylist():
            day, name = case["arrival_day"], case["case_id"]
            versions[day][name] = {k: v for k, v in case.items() if k not in PROVIDED} | {
                "person": persons.get((day, case["patient_id"])),
                "diagnoses": diagnoses.get((day, name)), "procedures": procedures.get((day, name)),
            }  # fmt: skip
    newest: dict[str, Any] = {}
    for day in sorted(versions):
        newest |= versions[day]
        for name in removed[day]:
            newest.pop(name, None)
    return newest


@pytest.fixture
def nights(lake: Lake, city: City, deliver: Callable) -> Callable[..., tuple[list[date], City, City]]:
    """Deliver the same nights as a clinic that sends all of it and as one that sends changes; days and both cities."""

    def make(
        seed: int, patients: int, nights: int, late: int | None = None, again: int | None = None
    ) -> tuple[list[date], City, City]:
        whole, changing = (
            city.model_copy(update={"clinics": (city.clinic("klinik-nord").model_copy(update={"key": key}),)})
            for key in ("whole", "changing")
        )
        clinic, days = Clinic(seed, patients), [DAY + timedelta(n) for n in range(nights)]
        for n, day in enumerate(days):
            before = clinic.changed(0.15, deleting=again is None) if n else {}
            everything = files_of(list(clinic.world.values()))
            deliver("whole", day, everything)
            changes = changes_of(before, clinic.world) if n else everything
            deliver("changing", day, changes, complete=n != late)
            if n == again:
                deliver("changing", days[-1] + timedelta(1), changes)
        for one in (whole, changing):
            pull(lake, one, days, TODAY)
        return days, whole, changing

    return make


@pytest.mark.parametrize("seed", range(4))
def test_changes_leave_the_cases_that_whole_exports_leave(nights: Callable, lake: Lake, seed: int):
    days, whole, changing = nights(seed, patients=12, nights=4)
    last = stored(lake, whole, [days[-1:]])
    assert last and stored(lake, changing, [[d] for d in days]) == last
    assert stored(lake, changing, [days]) == last, "a range of days is read at once"


@pytest.mark.parametrize("seed", range(2))
def test_changes_that_come_late_leave_what_they_leave_in_time(
    nights: Callable, lake: Lake, deliver: Callable, seed: int
):
    days, whole, changing = nights(seed, patients=12, nights=4, late=1)
    in_time = [d for d in days if d != days[1]]
    mark_finished(lake.root, in_time)
    deliver("changing", days[1], {})
    take(lake, changing.model_copy(update={"clinics": whole.clinics + changing.clinics}), [days[1]], TODAY)
    again = sorted(set(in_time) - finished_days(lake.root))
    assert again == days[2:], "what was put together without them"
    assert stored(lake, changing, [[d] for d in (*in_time, days[1], *again)]) == stored(lake, whole, [days[-1:]])


@pytest.mark.parametrize("in_time", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_of_a_resource_the_newest_version_counts_in_whatever_order_its_changes_come(
    nights: Callable, lake: Lake, seed: int, in_time: bool
):
    """Of the second night, under a newer day: once more, or for the first time."""
    days, whole, changing = nights(seed, patients=12, nights=4, again=1, late=None if in_time else 1)
    later = days[-1] + timedelta(1)
    pull(lake, changing, [later], TODAY)
    last = stored(lake, whole, [days[-1:]])
    assert stored(lake, changing, [[d] for d in (*days, later)]) == last
    assert stored(lake, changing, [[*days, later]]) == last, "a range of days is read at once"


def resource(kind: str, name: str, **over: Any) -> dict[str, Any]:
    return {"resourceType": kind, "id": name} | over


PATIENT = resource("Patient", "p", gender="female", birthDate="1980")
CASE = resource("Encounter", "e", status="finished", subject=to("Patient", "p"), period={"start": "2025-01-05"}, **{"class": {"code": "IMP"}})  # fmt: skip
DIAGNOSIS = resource("Condition", "d", code={"coding": [{"system": ICD, "code": "J18.0"}]}, encounter=to("Encounter", "e"))  # fmt: skip
NEXT = DAY + timedelta(1)


@pytest.fixture
def after(lake: Lake, city: City, deliver: Callable) -> Callable[..., dict[str, pa.Table]]:
    """What is read of the second day, on which some of `whole` changed."""

    def run(whole: list[dict[str, Any]], changed: list[dict[str, Any]], erased: bool = False) -> dict[str, pa.Table]:
        deliver("klinik-nord", DAY, files_of(whole))
        deliver("klinik-nord", NEXT, {"export.json": CHANGES, **files_of(changed)})
        pull(lake, city, [DAY, NEXT], TODAY)
        if erased:
            next((lake.landing / "klinik-nord" / str(DAY)).glob("*/Condition.ndjson")).unlink()
        exports = landed(lake, city, [NEXT])
        tables, rejected = read_exports(exports, city, built_upon(lake, city, exports))
        assert rejected == {}
        return tables

    return run


@pytest.mark.parametrize("erased", [False, True])
def test_a_case_is_not_put_together_from_half_of_what_it_was_made_of(after: Callable, erased: bool):
    other = DIAGNOSIS | {"id": "other"}
    tables = after([PATIENT, CASE, DIAGNOSIS], [PATIENT | {"gender": "male"}, other], erased)
    assert tables["cases"].num_rows == (0 if erased else 1)
    assert tables["findings"].column("rule").to_pylist() == (["base_erased", "rows_of_no_case"] if erased else [])
    assert tables["diagnoses"].num_rows == (0 if erased else 2)


def test_a_case_takes_over_what_changed_two_contacts_below_it(after: Callable):
    ward = CASE | {"id": "w", "partOf": to("Encounter", "e")}
    place = CASE | {"id": "v", "partOf": to("Encounter", "w")}
    tables = after([PATIENT, CASE, ward, place], [DIAGNOSIS | {"encounter": to("Encounter", "v")}])
    assert tables["cases"].column("case_id").to_pylist() == ["e"]
    assert tables["diagnoses"].column("case_id").to_pylist() == ["e"]


def test_what_became_part_of_another_case_is_no_case_again(after: Callable):
    other = CASE | {"id": "o"}
    tables = after([PATIENT, CASE, other, DIAGNOSIS], [other | {"partOf": to("Encounter", "e")}])
    assert tables["cases"].column("case_id").to_pylist() == ["e"]


def consent(version: int, *codes: int, deny: int = 0, **over: Any) -> dict[str, Any]:
    stated = [("permit", code) for code in codes] + [("deny", deny)] * bool(deny)
    nested = [{"type": kind, "period": {"start": "2024-01-01"}, "code": [{"coding": [{"code": f"{CONSENT_CODE_SYSTEM}.{code}"}]}]}
              for kind, code in stated]  # fmt: skip
    about = {
        "status": "active",
        "patient": to("Patient", "p"),
        "dateTime": "2024-01-01",
        "meta": {"versionId": str(version)},
    }
    return resource("Consent", "k", **about, provision={"type": "deny", "provision": nested}) | over


@pytest.mark.parametrize(
    ("second", "late", "permitted"),
    [
        (consent(3, 6), consent(2, 6, 7, 8), False),
        (consent(3, 6, 7, 8, patient=to("Patient", "q")), consent(2, 6, 7, 8), False),
        (consent(3, 6), consent(2, 6, 7, 8, deny=45), False),
        (consent(3, 6, 7, 8), consent(2, 6), True),
        (consent(3, 6, 7, 8), consent(2, 6, 7, deny=45), True),  # the MII's form names what was not agreed to
        (consent(3, 6, 7, 8, patient=to("Patient", "q")), consent(2, 6, 7, 8, deny=45), False),
        (consent(3, 6, 7, 8, status="inactive"), consent(2, 6, 7, 8, deny=45), False),
        # To take back is never too late.
        (consent(3, 6, 7, 8), consent(2, 6, 7, 8, status="inactive"), False),
        (consent(3, 6, 7, 8), consent(2, deny=8), False),
        (consent(3, 6), consent(4, 6, 7, 8), True),
    ],
)
def test_what_an_older_version_of_a_consent_permits_counts_no_more_when_it_comes_late(
    lake: Lake, city: City, deliver: Callable, second: dict, late: dict, permitted: bool
):
    days, tables = [DAY + timedelta(n) for n in range(3)], []
    for day, came in zip(days, ([PATIENT, CASE, consent(1, 6, 7, 8)], [second], [late]), strict=True):
        deliver("klinik-nord", day, files_of(came) | ({"export.json": CHANGES} if day > DAY else {}))
        pull(lake, city, [day], TODAY)
        exports = landed(lake, city, [day])
        tables.append(read_exports(exports, city, built_upon(lake, city, exports))[0])
    register = pa.concat_tables([t["consent_provisions"] for t in tables])
    decisions = decide(tables[0]["cases"], register, city.consent, days[-1])
    assert decisions.column("permitted").to_pylist() == [permitted]
    outdated = late["meta"]["versionId"] == "2"
    assert tables[2]["findings"].column("rule").to_pylist() == ["version_outdated"] * outdated
    assert (f"{CONSENT_CODE_SYSTEM}.45" in register.column("code").to_pylist()) == (
        "45" in json.dumps(late["provision"])
    )
