"""The city file: one YAML that says everything a city decides, validated when it is loaded.

Here: the models, their own consistency, and errors that name the line. Not here: what the release
plan costs (`privacy.plan`), how exports reach us (`contract.connectors`).
"""

from __future__ import annotations

import math
import os
import re
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from assets.contract.codes import (
    ADMISSION_TYPES,
    AGE_GROUP_KEYS,
    AREA_ELSEWHERE,
    CARE,
    CHAPTER_KEYS,
    CONSENT_COLLECT,
    CONSENT_STORE,
    CONSENT_USE,
    LOS_BIN_KEYS,
    OUTCOMES,
    SEXES,
)
from assets.contract.connectors import Connector, FolderConnector
from assets.contract.model import Key, Model
from assets.contract.operation import Operation
from assets.contract.terms import LEVEL_DAYS, WEEK_DAYS, WINDOW_DAYS, Budget, Caps, FormerTerms, ReleasePlan

CITY_VARIABLE: Final = "DIGITALSTADT_CITY"
DEFAULT_CITY: Final = Path(__file__).parent / "cities" / "darmstadt.yaml"


class CityFileError(ValueError):
    """The city file cannot be used; the message names file, line and what to change."""


class Text(Model):
    """A text in German and English."""

    de: str
    en: str


class Region(Model):
    ags: Annotated[str, Field(pattern=r"^[0-9]{8}$")]
    ars: Annotated[str, Field(pattern=r"^[0-9]{12}$")]


class Area(Model):
    """A published area. `population[age group] = [women, men]`, absent where no figure is at hand."""

    key: Key
    name: Text
    postal_codes: tuple[Annotated[str, Field(pattern=r"^[0-9]{5}$")], ...] = ()
    population: dict[str, tuple[int, int]] | None = None

    @field_validator("population")
    @classmethod
    def _every_age_group(cls, value: dict[str, tuple[int, int]] | None) -> dict[str, tuple[int, int]] | None:
        if value is None:
            return None
        if set(value) != set(AGE_GROUP_KEYS):
            raise ValueError(f"population needs exactly the age groups {', '.join(AGE_GROUP_KEYS)}")
        return {group: value[group] for group in AGE_GROUP_KEYS}

    def residents(self, age_group: str | None = None, sex: str | None = None) -> int | None:
        """Residents of the area, or of one age group and sex of it; None where no figure is at hand."""
        if self.population is None or sex == "other":
            return None
        groups = [self.population[age_group]] if age_group else list(self.population.values())
        women, men = sum(w for w, _ in groups), sum(m for _, m in groups)
        return women + men if sex is None else (women if sex == "w" else men)


class PopulationSource(Model):
    source: str
    as_of: date
    estimate: bool
    note: Text


class QualityReport(Model):
    """Cases of all patients of a clinic in a year, as its public quality report (§136b SGB V) or itself states them."""

    year: Annotated[int, Field(ge=2000, le=2200)]
    source: str
    cases: dict[str, Annotated[int, Field(ge=0)]]

    @field_validator("cases")
    @classmethod
    def _every_care(cls, value: dict[str, int]) -> dict[str, int]:
        if set(value) != set(CARE):
            raise ValueError(f"cases needs exactly {', '.join(CARE)}; 0 where the clinic has none")
        return value


class Pause(Model):
    """Announced days, both inclusive, of which a clinic delivers no cases: a move, a new hospital system."""

    first: date
    last: date


class Clinic(Model):
    key: Key
    name: str
    quality_report: QualityReport | None = None
    format: Literal["fhir", "p21", "practice"]
    connector: Connector = FolderConnector()
    consent_source: Literal["fhir", "csv"] = "fhir"
    consent_delivery: Literal["incremental", "full"] = "incremental"
    """`full`: every delivery of consents holds all of them, so that one which is missing counts as withdrawn.

    The default of the connector `fhir_bulk`, whose whole exports do: few servers report a deleted consent otherwise.
    """
    linkable: bool = True
    """Whether it delivers insured numbers, so that its patients are linked to other clinics."""
    delivers_from: date | None = None
    """First day of which it delivers cases, where it joined later than the city began; None: from the beginning."""
    delivers_until: date | None = None
    """Last day of which it delivers cases, where it left."""
    pauses: tuple[Pause, ...] = ()
    """In order of time, inside the days that it delivers."""

    def delivers_on(self, day: date) -> bool:
        member = (self.delivers_from or day) <= day <= (self.delivers_until or day)
        return member and not any(p.first <= day <= p.last for p in self.pauses)

    @model_validator(mode="before")
    @classmethod
    def _whole_exports_hold_all_consents(cls, value: Any) -> Any:
        connector = value.get("connector") if isinstance(value, dict) else None
        kind = connector.get("kind") if isinstance(connector, dict) else getattr(connector, "kind", None)
        return {"consent_delivery": "full"} | value if kind == "fhir_bulk" else value

    @model_validator(mode="after")
    def _channel_fits(self) -> Clinic:
        if self.connector.kind == "fhir_bulk" and self.format != "fhir":
            raise ValueError("the connector fhir_bulk delivers the format fhir only")
        if self.delivers_from and self.delivers_until and self.delivers_until < self.delivers_from:
            raise ValueError("delivers_until lies before delivers_from")
        days = [self.delivers_from, *(d for p in self.pauses for d in (p.first, p.last)), self.delivers_until]
        known = [d for d in days if d]
        if known != sorted(known):
            raise ValueError(
                "pauses: each needs first up to last, in order, without overlap, between delivers_from and delivers_until"
            )
        return self


class ConsentRule(Model):
    required_on_evaluation_day: tuple[str, ...] = (CONSENT_STORE, CONSENT_USE)
    required_over_case: tuple[str, ...] = (CONSENT_COLLECT,)
    reach_back_to_case_of_signature: bool = False
    """Whether a consent signed during a case covers that case from its first day."""
    retrospective_module: bool = False
    """Whether the module on earlier data (code .45), where permitted, covers cases before the consent."""
    guardian_consent_ends_at: Annotated[int, Field(ge=12, le=21)] | None = None
    """Age from which on only what the person signed counts (18 in Germany); None: the delivered periods alone decide."""
    decided_by: str
    decided_on: date | None
    note: str


class CkanTarget(Model):
    """A CKAN portal to push to. Its token comes from the environment, never from here."""

    url: Annotated[str, Field(pattern=r"^https?://[^/].*[^/]$")]
    organisation: str
    name_prefix: Key | None = None
    """First part of the datasets' names there; the city's key by default."""
    licence_id: str = "notspecified"
    """Id of the licence in the portal's own list."""
    upload_limit_bytes: Annotated[int, Field(gt=0)] = 10_000_000


class S3Target(Model):
    """A bucket that serves the folder `open_data`. Credentials come from the environment, never from here."""

    bucket: str
    prefix: Annotated[str, Field(pattern=r"^([^/].*/)?$")] = ""
    endpoint: str | None = None
    region: str | None = None


class Publication(Model):
    publisher: str
    contact_name: str
    contact_email: str
    licence: str
    licence_title: str
    base_url: str
    contributor_id: str | None = None
    """IRI of the state portal that passes the catalogue on (DCAT-AP.de contributorID)."""
    ckan: CkanTarget | None = None
    s3: S3Target | None = None


class City(Model):
    """A city as its file declares it."""

    version: Literal[1]
    key: Key
    name: Text
    synthetic: bool = False
    """True for a demo: every published file says that its numbers are made up."""
    region: Region
    time_zone: str
    start: date
    """First event day that is measured."""
    opened_on: date | None = None
    """First arrival day, where clinics deliver their history with it; `start` by default."""
    freeze_lag_days: Annotated[int, Field(ge=0, le=60)]
    late_days: Annotated[int, Field(ge=0, le=60)] = 0
    """How many days longer than its last day a week waits for late cases. Weeks and longer are measured then."""
    retention_days: Annotated[int, Field(ge=1, le=3660)] | None = None
    """Raw files are erased this many days after their arrival, once the day is frozen; None keeps them."""
    areas: tuple[Area, ...]
    population: PopulationSource
    clinics: tuple[Clinic, ...]
    consent: ConsentRule
    budget: Budget
    caps: Caps = Caps()
    ledger: Annotated[str, Field(pattern=r"^postgresql://[^:@/]*(@[^:@]*)?(:[0-9]+)?(/.*)?$")] | None = None
    """Database of the ledger where several machines release; None: a file in the confidential zone. Its password
    never stands here: libpq takes it from PGPASSFILE or PGPASSWORD."""
    engine: Annotated[str, Field(pattern=r"^(duckdb|spark|local(\[[0-9*]+\])?|yarn|(spark|k8s)://[^@\s]+)$")] = "duckdb"
    """Where row-heavy steps are computed: `duckdb`, `spark` on this machine, or the URL of a Spark master."""
    plan: ReleasePlan
    former: tuple[FormerTerms, ...] = ()
    """Terms that earlier windows were measured on, in order of time; `budget`, `caps` and `plan` are those of all later ones."""
    publication: Publication
    operation: Operation = Operation()

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"unknown time zone {value!r}") from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> City:
        for what, keys in (("clinic", [c.key for c in self.clinics]), ("area", [a.key for a in self.areas])):
            if len(set(keys)) != len(keys):
                raise ValueError(f"two entries have the same {what} key")
        codes = [code for area in self.areas for code in area.postal_codes]
        if len(set(codes)) != len(codes):
            raise ValueError("a postal code belongs to two areas")
        kept = self.retention_days or math.inf
        for c in self.clinics:
            if c.connector.kind == "fhir_bulk" and c.connector.whole_every_days > kept:
                what = f"{c.key}: whole_every_days must not be longer than retention_days ({kept})"
                raise ValueError(f"{what}; an export of changes takes what stayed the same from raw files")
        if AREA_ELSEWHERE not in {a.key for a in self.areas}:
            raise ValueError(f"an area with the key {AREA_ELSEWHERE!r} is needed for all other postal codes")
        if self.start < self.budget.epoch:
            raise ValueError("start lies before the epoch of the budget")
        if self.opened_on and self.opened_on < self.start:
            raise ValueError("opened_on lies before start: what arrives first cannot be older than what is measured")
        return self

    @model_validator(mode="after")
    def _terms_change_between_windows(self) -> City:
        ends = [terms.until for terms in self.former]
        if ends != sorted(set(ends)):
            raise ValueError("former: `until` must grow from one entry to the next")
        for terms in self.former:
            last = self.window_start(terms.until) + timedelta(WINDOW_DAYS - 1)
            if terms.budget.epoch != self.budget.epoch:
                raise ValueError("former: windows are counted from one epoch, which must be the same in every budget")
            if terms.until != last:
                raise ValueError(
                    f"former: terms hold for whole windows, and {terms.until} is no last day of one; {last} is"
                )
        return self

    def at(self, day: date) -> City:
        """The city on the terms of the window that holds `day`: with their `budget`, `caps` and `plan`."""
        for terms in self.former:
            if day <= terms.until:
                return self.model_copy(update={"budget": terms.budget, "caps": terms.caps, "plan": terms.plan})
        return self

    @property
    def former_caps(self) -> tuple[tuple[date, Caps], ...]:
        """Last day, and caps, of the windows on former terms, in order of time."""
        return tuple((terms.until, terms.caps) for terms in self.former)

    @property
    def first_arrival(self) -> date:
        return self.opened_on or self.start

    def known_on(self, day: date) -> date:
        """The arrival day whose state of knowledge is measured for event day `day`, and after which it is frozen.

        History, of days before the first arrival, is known as soon as the first exports are.
        """
        return max(day, self.first_arrival) + timedelta(self.freeze_lag_days)

    def week_known_on(self, day: date) -> date:
        """The arrival day after which the week of `day` takes no more late cases."""
        return self.known_on(self.unit_start("week", day) + timedelta(WEEK_DAYS - 1)) + timedelta(self.late_days)

    def clinic(self, key: str) -> Clinic:
        """The clinic of that key; `KeyError` naming the known ones otherwise."""
        for clinic in self.clinics:
            if clinic.key == key:
                return clinic
        raise KeyError(f"unknown clinic {key!r}; the city file lists: {', '.join(c.key for c in self.clinics)}")

    def categories(self, dimension: str) -> tuple[str, ...]:
        """The public list of a dimension, in published order: never the values that occur."""
        lists: dict[str, tuple[str, ...]] = {
            "care": CARE,
            "area": tuple(a.key for a in self.areas),
            "age_group": AGE_GROUP_KEYS,
            "sex": SEXES,
            "chapter": CHAPTER_KEYS,
            "admission": ADMISSION_TYPES,
            "los": LOS_BIN_KEYS,
            "outcome": OUTCOMES,
        }
        return lists[dimension]

    def window_start(self, day: date) -> date:
        """First day of the budget window that holds `day`."""
        return self.budget.epoch + timedelta(days=(day - self.budget.epoch).days // WINDOW_DAYS * WINDOW_DAYS)

    def unit_start(self, level: str, day: date) -> date:
        """First day of the unit of time (`day`, `week`, `period`, `window`) that holds `day`."""
        size = LEVEL_DAYS[level]
        return self.budget.epoch + timedelta(days=(day - self.budget.epoch).days // size * size)


def _line_of(node: yaml.Node | None, path: tuple[int | str, ...]) -> int:
    """Line (from 1) of the deepest part of `path` that exists in the YAML tree."""
    line = 1
    for step in (None, *path):
        if step is not None:
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == str(step)), None)
                if pair is None:  # missing, or the kind of a connector, which is no level of the file
                    continue
                line, node = pair[0].start_mark.line + 1, pair[1]
                continue
            if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                break
        if node is not None:
            line = node.start_mark.line + 1
    return line


def load_city(path: Path | None = None) -> City:
    """Load and validate a city file: `path`, else `$DIGITALSTADT_CITY`, else the shipped Darmstadt.

    Raises `CityFileError` with one line for each problem: `file:line: where: what is wrong`.
    """
    file = path or Path(os.environ.get(CITY_VARIABLE) or DEFAULT_CITY)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CityFileError(f"{file}: cannot be read ({error.__class__.__name__}); set {CITY_VARIABLE}") from None
    return _parsed(file, text)


@lru_cache(maxsize=4)
def _parsed(file: Path, text: str) -> City:
    """The city of `text`, once for the same text: every stage of a run asks for it, and it is frozen."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise CityFileError(f"{file}:{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    try:
        return City.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{file}:{_line_of(tree, e['loc'])}: {'.'.join(map(str, e['loc'])) or 'city'}: "
            + re.sub(r"^Value error, ", "", e["msg"])
            for e in error.errors()
        ]
        raise CityFileError("\n".join(problems)) from None
