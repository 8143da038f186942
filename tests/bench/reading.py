"""Reading, consenting, validating and pseudonymising a FHIR export: what one more resource costs, and peak memory.

The slope between a small and a large export, so that starting up does not count. Everything in it is synthetic.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from measure import BENCH, Result, Side, note, side_by_side, table

SMALL, LARGE, LARGEST = 100_000, 2_000_000, 2_900_000
"""The largest is 2 GB of lines: for the memory only."""
OID: Final = "2.16.840.1.113883.3.1937.777.24.5.3"
DAY: Final = date(2025, 12, 29)
PERSON: Final = 8
"""Resources of a person: Patient, Consent, two contacts, three diagnoses, a procedure."""
BLOCK: Final = 5_000
PROMISED: Final = 300_000, 1500
"""Resources a second on two cores, and megabytes."""

_META: Final = (
    '"meta":{"versionId":"1","lastUpdated":"2025-12-28T03:00:00.000+01:00","source":"#a1b2c3d4e5f60718","profile":["https://www.'
    'medizininformatik-initiative.de/fhir/core/modul-x/StructureDefinition/Profile"],"security":[{"system":"http://terminology.'
    'hl7.org/CodeSystem/v3-ActReason","code":"HTEST"}]}'
)
_CODES: Final = ("I21.0", "J18.9", "C50.4", "E11.90", "K35.8", "S72.00", "F32.1", "N39.0", "M16.1", "A09.0")


def _patient(n: int) -> str:
    return (
        f'{{"resourceType":"Patient","id":"p{n:08d}",{_META},"identifier":[{{"use":"usual","type":{{"coding":[{{"system":"http://'
        f'terminology.hl7.org/CodeSystem/v2-0203","code":"MR"}}]}},"system":"https://example.org/fhir/sid/patienten","value":"{n:08d}"'
        f'}}],"name":[{{"use":"official","family":"Musterperson","given":["Synthetisch"]}}],"gender":"{("male", "female")[n % 2]}",'
        f'"birthDate":"{1930 + n % 90}-{1 + n % 12:02d}-{1 + n % 28:02d}","address":[{{"type":"both","line":["Musterweg {n % 90}"],'
        f'"city":"Musterstadt","postalCode":"{64283 + 2 * (n % 8)}","country":"DE"}}]}}\n'
    )


def _consent(n: int) -> str:
    if n % 5 >= 3:  # two fifths never signed anything
        return ""
    nested = ",".join(
        f'{{"type":"permit","period":{{"start":"2024-01-01","end":"2053-12-31"}},"code":[{{"coding":[{{"system":"urn:oid:{OID}"'
        f',"code":"{OID}.{code}"}}]}}]}}'
        for code in (6, 7, 8)
    )
    return (
        f'{{"resourceType":"Consent","id":"c{n:08d}",{_META},"status":"active","patient":{{"reference":"Patient/p{n:08d}"}},"dateTime":'
        f'"2024-01-01T10:00:00+01:00","policy":[{{"uri":"urn:oid:2.16.840.1.113883.3.1937.777.24.2.1791"}}],"provision":{{"type":'
        f'"deny","provision":[{nested}]}}}}\n'
    )


def _contacts(n: int) -> str:
    day = date(2025, 1, 6) + timedelta(n % 350)
    common = (
        f'"status":"finished","class":{{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"IMP"}},"subject":{{'
        f'"reference":"Patient/p{n:08d}"}},"period":{{"start":"{day}T08:15:00+01:00","end":"{day + timedelta(n % 6)}T11:00:00+01:00"}}'
    )
    return (
        f'{{"resourceType":"Encounter","id":"e{n:08d}",{_META},{common},"type":[{{"coding":[{{"system":"http://fhir.de/CodeSystem/'
        'Kontaktebene","code":"einrichtungskontakt"}]}],"hospitalization":{"admitSource":{"coding":[{"system":"http://fhir.de/'
        f'CodeSystem/dgkev/Aufnahmeanlass","code":"{"EN"[n % 2]}"}}]}}}},"diagnosis":[{{"condition":{{"reference":"Condition/d{n:08d}-0"'
        '},"use":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/diagnosis-role","code":"CC"}]},"rank":1}]}\n'
        f'{{"resourceType":"Encounter","id":"e{n:08d}-1",{_META},{common},"type":[{{"coding":[{{"system":"http://fhir.de/CodeSystem/'
        'Kontaktebene","code":"abteilungskontakt"}]}],"serviceType":{"coding":[{"system":"http://fhir.de/CodeSystem/dkgev/'
        f'Fachabteilungsschluessel","code":"0100"}}]}},"partOf":{{"reference":"Encounter/e{n:08d}"}}}}\n'
    )


def _conditions(n: int) -> str:
    return "".join(
        f'{{"resourceType":"Condition","id":"d{n:08d}-{k}",{_META},"clinicalStatus":{{"coding":[{{"system":"http://terminology.hl7.org/'
        'CodeSystem/condition-clinical","code":"active"}]},"code":{"coding":[{"system":"http://fhir.de/CodeSystem/bfarm/icd-10-gm",'
        f'"version":"2025","code":"{_CODES[(n + k) % 10]}"}}]}},"subject":{{"reference":"Patient/p{n:08d}"}},"encounter":{{"reference":'
        f'"Encounter/e{n:08d}-1"}},"recordedDate":"2025-06-01"}}\n'
        for k in range(3)
    )


def _procedure(n: int) -> str:
    return (
        f'{{"resourceType":"Procedure","id":"o{n:08d}",{_META},"status":"completed","code":{{"coding":[{{"system":"http://fhir.de/'
        f'CodeSystem/bfarm/ops","version":"2025","code":"5-470.0"}}]}},"subject":{{"reference":"Patient/p{n:08d}"}},"encounter":{{'
        f'"reference":"Encounter/e{n:08d}-1"}},"performedDateTime":"2025-06-01"}}\n'
    )


WRITERS: Final = {
    "Patient": _patient,
    "Consent": _consent,
    "Encounter": _contacts,
    "Condition": _conditions,
    "Procedure": _procedure,
}


def export(resources: int) -> Path:
    """A folder with one NDJSON file for each type, made once."""
    folder = BENCH / "input" / f"reading-{resources}"
    if folder.exists():
        return folder
    note(f"making an export of {resources:,} resources")
    building = folder.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)

    def blocks(write: object, people: int) -> Iterator[str]:
        for first in range(0, people, BLOCK):
            yield "".join(map(write, range(first, min(first + BLOCK, people))))  # type: ignore[call-overload]

    for kind, write in WRITERS.items():
        with (building / f"{kind}.000.ndjson").open("w") as file:
            file.writelines(blocks(write, resources // PERSON))
    building.rename(folder)
    return folder


def work(source: Path) -> None:
    """The stages on one landed export, without Dagster, every table written and encrypted as in a run."""
    from assets.consent import stage as consent
    from assets.contract.city import load_city
    from assets.identity import stage as identity
    from assets.intake import stage as intake
    from assets.lake.keys import create_keys
    from assets.lake.lake import Lake
    from assets.quality import stage as quality

    city = load_city()
    city = city.model_copy(update={"clinics": tuple(c for c in city.clinics if c.format == "fhir")})
    with tempfile.TemporaryDirectory(dir=BENCH) as folder:
        create_keys(Path(folder) / "keys")
        lake = Lake.open(Path(folder) / "data", Path(folder) / "keys")
        landing = lake.landing / city.clinics[0].key / DAY.isoformat() / "0123456789abcdef"
        landing.mkdir(parents=True)
        for path in source.iterdir():
            (landing / path.name).hardlink_to(path)
        spent, begin = {}, time.perf_counter()
        for name, stage in (("read", intake.read), ("consent", consent.run), ("quality", quality.run), ("identity", identity.run)):  # fmt: skip
            at, cpu = time.perf_counter(), time.process_time()
            said = stage(lake, city, [DAY])
            spent[name] = (round(time.perf_counter() - at, 2), round(time.process_time() - cpu, 2))
        print(json.dumps({"seconds": time.perf_counter() - begin, "stages": spent, "cases": said["cases"]}))


def _slope(small: Result, large: Result, what: str) -> float:
    """Resources a second between the two exports, from medians."""
    return (LARGE - SMALL) / (large.of(what) - small.of(what))


def main() -> int:
    quick = "--quick" in sys.argv
    sizes = (20_000, 60_000) if quick else (SMALL, LARGE, LARGEST)
    sides, floors = [], []
    extract = str(Path(__file__).resolve().parent / "sides" / "extract.py")
    for size in sizes:
        source = export(size)
        megabytes = sum(p.stat().st_size for p in source.iterdir()) / 1e6
        command = [sys.executable, str(Path(__file__).resolve()), "--work", str(source)]
        sides.append(Side(f"{size:,} resources, {megabytes:,.0f} MB", command, rounds=1 if size == LARGEST else None))
        if size != LARGEST:
            floors.append(Side(f"bare extraction of {size:,}", [sys.executable, extract, str(source)]))
    results = side_by_side([*sides, *floors], 1 if quick else 3)
    print("### What one more FHIR resource costs\n\nRead, decide consent, validate, pseudonymise, encrypt; the stages of the daily "
          f"run on one landed export.\n\n{table(results, sides[0].name)}\n")  # fmt: skip
    if quick or not all(r.samples for r in results):
        return 0 if all(r.samples for r in results) else 1
    wall, cpu, peak = _slope(*results[:2], "seconds"), _slope(*results[:2], "cpu"), results[2].of("peak_mb")
    floor, floor_cpu = _slope(*results[3:], "seconds"), _slope(*results[3:], "cpu")
    stages = results[1].samples[0].said["stages"]
    print(
        f"Between the first two, {wall:,.0f} resources a second of wall time, {cpu:,.0f} a second of processor time. Promised: "
        f"{PROMISED[0]:,} a second on two cores, and less than {PROMISED[1]:,} MB at 2 GB ({peak:,.0f} measured). Seconds of wall "
        f"and processor by stage: {', '.join(f'{k} {w}/{c}' for k, (w, c) in stages.items())}. Bare extraction, the floor of the "
        f"section above, does {floor:,.0f} and {floor_cpu:,.0f} a second between the same two: one more resource costs us "
        f"{floor / wall:.1f} times its wall and {floor_cpu / cpu:.1f} times its processor time.\n"
    )
    print(f"<!-- metric reading_resources_per_second {wall:.0f} -->\n<!-- metric reading_peak_mb {peak:.0f} -->")
    print(f"<!-- metric reading_over_floor {floor / wall:.2f} -->")
    return 0


if __name__ == "__main__":
    if "--work" in sys.argv:
        work(Path(sys.argv[sys.argv.index("--work") + 1]))
    else:
        sys.exit(main())
