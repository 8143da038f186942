"""The indicator catalogue: one definition from which data, schemas, documents and the database are made.

Here: datasets, measures and columns, in German and English. Not here: how a number is computed
(`indicators`), how files are written (`bundle`, `database`).
"""

from __future__ import annotations

from typing import Final, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from assets.contract.city import Text
from assets.contract.codes import AGE_GROUP_KEYS, CARE, CHAPTER_KEYS, SEXES
from assets.contract.model import Model
from assets.contract.terms import AT_CAP, TimeLevel

Measure = Literal[
    "count", "rate_per_100000", "age_standardised_rate", "share", "mortality", "mean_days", "median_days", "p90_days",
    "patients", "corrected_count",
]  # fmt: skip
Care = Literal["inpatient", "emergency_visit"]
PublishedTime = TimeLevel | Literal["late", "month"]

TOTAL: Final = "total"
"""`dimensions` of an estimate that is not broken down."""


class MeasureDefinition(Model):
    """A measure: its unit, how many decimals are shown, what it means."""

    name: Text
    unit: str
    unit_de: str
    decimals: int
    meaning: Text

    @property
    def unit_name(self) -> Text:
        return Text(de=self.unit_de, en=self.unit)


class Level(Model):
    """A published level of the estimates that a dataset takes."""

    time: PublishedTime
    dimensions: str = TOTAL


class Dataset(Model):
    """A published dataset."""

    key: str
    title: Text
    description: Text
    levels: tuple[Level, ...]
    care: tuple[Care, ...] = ("inpatient", "emergency_visit")
    measures: tuple[Measure, ...] = ("count",)
    keywords: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """Units of its measures."""
        return "; ".join(f"{m}: {MEASURES[m].unit}" for m in self.measures)


MEASURES: Final[dict[str, MeasureDefinition]] = {
    "count": MeasureDefinition(
        name=Text(de="Fälle", en="cases"),
        unit="cases",
        unit_de="Fälle",
        decimals=0,
        meaning=Text(de="Zahl der Fälle in der Zeiteinheit", en="number of cases in the unit of time"),
    ),
    "rate_per_100000": MeasureDefinition(
        name=Text(de="Fälle je 100.000 Einwohner", en="cases per 100,000 residents"),
        unit="cases per 100,000 residents in the unit of time",
        unit_de="Fälle je 100.000 Einwohner in der Zeiteinheit",
        decimals=1,
        meaning=Text(
            de="Fälle je 100.000 Einwohner in der jeweiligen Zeiteinheit, nicht auf ein Jahr hochgerechnet",
            en="cases per 100,000 residents in the respective unit of time, not annualised",
        ),
    ),
    "age_standardised_rate": MeasureDefinition(
        name=Text(de="altersstandardisierte Rate", en="age-standardised rate"),
        unit="cases per 100,000 residents of the European Standard Population 2013",
        unit_de="Fälle je 100.000 Einwohner der Europäischen Standardbevölkerung 2013",
        decimals=1,
        meaning=Text(
            de="Fälle je 100.000 Einwohner, wenn jedes Gebiet die Altersverteilung der Europäischen Standardbevölkerung "
            "2013 hätte: so werden Gebiete mit jüngeren und älteren Einwohnern vergleichbar",
            en="cases per 100,000 residents if every area had the ages of the European Standard Population 2013: makes "
            "areas with younger and older residents comparable",
        ),
    ),
    "share": MeasureDefinition(
        name=Text(de="Anteil der Notfälle", en="share of emergencies"),
        unit="proportion",
        unit_de="Anteil",
        decimals=3,
        meaning=Text(
            de="Anteil der als Notfall aufgenommenen Fälle an allen stationären Fällen",
            en="inpatient cases admitted as an emergency divided by all inpatient cases",
        ),
    ),
    "mortality": MeasureDefinition(
        name=Text(de="Krankenhaussterblichkeit", en="in-hospital mortality"),
        unit="proportion",
        unit_de="Anteil",
        decimals=4,
        meaning=Text(
            de="im Krankenhaus Gestorbene (Entlassungsgrund 07) geteilt durch alle stationären Fälle des Zeitraums; nicht "
            "nach Alter oder Schwere bereinigt, also kein Vergleich der Qualität von Kliniken",
            en="inpatient cases that ended by death in hospital (Entlassungsgrund 07) divided by all inpatient cases of the "
            "period; not adjusted for age or severity, so no comparison of the quality of clinics",
        ),
    ),
    "patients": MeasureDefinition(
        name=Text(de="Patienten an ihrer Obergrenze", en="patients at their cap"),
        unit="patients",
        unit_de="Patientinnen und Patienten",
        decimals=0,
        meaning=Text(
            de="Patientinnen und Patienten, von denen im Quartal mindestens ein Fall nicht gezählt wurde, weil von jeder "
            "Person nur begrenzt viele Fälle zählen; zugeordnet der Versorgungsart ihres ersten solchen Falls",
            en="patients with at least one case of the quarter that was not counted, because only a limited number of cases per "
            "person count; under the kind of care of their first such case",
        ),
    ),
    "corrected_count": MeasureDefinition(
        name=Text(de="Fälle mit Korrektur der Obergrenzen", en="cases corrected for the caps"),
        unit="cases",
        unit_de="Fälle",
        decimals=0,
        meaning=Text(
            de="gezählte Fälle des Quartals (91 Tage) und je einer für jede Person an ihrer Obergrenze: eine Schätzung nach "
            "unten, denn von manchen Personen fehlen mehrere Fälle; das Intervall enthält das Rauschen beider Zahlen",
            en="counted cases of the quarter (91 days) and one more for each patient at the cap: a lower estimate, as "
            "several cases of some patients are missing; the interval includes the noise of both numbers",
        ),
    ),
    "mean_days": MeasureDefinition(
        name=Text(de="mittlere Verweildauer", en="mean length of stay"),
        unit="days",
        unit_de="Tage",
        decimals=1,
        meaning=Text(
            de="Mittlere Verweildauer aus den Mitten der Klassen; 28 und mehr Tage zählen als 38 Tage (Annahme)",
            en="mean length of stay from the midpoints of the bins; 28 days or more count as 38 days (assumption)",
        ),
    ),
    "median_days": MeasureDefinition(
        name=Text(de="mediane Verweildauer", en="median length of stay"),
        unit="days",
        unit_de="Tage",
        decimals=1,
        meaning=Text(
            de="Median der Verweildauer, in der Klasse linear interpoliert",
            en="median length of stay, interpolated linearly inside its bin",
        ),
    ),
    "p90_days": MeasureDefinition(
        name=Text(de="90. Perzentil der Verweildauer", en="90th percentile of the length of stay"),
        unit="days",
        unit_de="Tage",
        decimals=1,
        meaning=Text(
            de="Verweildauer, die neun von zehn Fällen nicht überschreiten, in der Klasse linear interpoliert; "
            "oberhalb von 27 Tagen eine Annahme",
            en="length of stay that nine of ten cases do not exceed, interpolated linearly inside its bin; above 27 days "
            "an assumption",
        ),
    ),
}


CODES: Final[dict[str, dict[str, Text]]] = {
    "care": {
        "inpatient": Text(de="stationärer Fall", en="inpatient case"),
        "emergency_visit": Text(de="Notfallbesuch ohne stationäre Aufnahme", en="emergency visit without admission"),
    },
    "time_level": {
        "day": Text(de="Tag", en="day"),
        "late": Text(
            de="Nachzügler einer ISO-Woche: Fälle, die erst nach der Messung ihres Tages eintrafen",
            en="late cases of an ISO week: those that arrived after their day was measured",
        ),
        "week": Text(de="ISO-Woche, Montag bis Sonntag", en="ISO week, Monday to Sunday"),
        "month": Text(de="Kalendermonat", en="calendar month"),
        "period": Text(de="28 Tage ab einem festen Montag", en="28 days from a fixed Monday"),
        "quarter": Text(
            de="91 Tage (13 Wochen), ein Viertel des Budgetfensters",
            en="91 days (13 weeks), a quarter of the budget window",
        ),
        "window": Text(de="364 Tage (13 × 28), das Budgetfenster", en="364 days (13 × 28), the budget window"),
    },
    "sex": {
        "m": Text(de="männlich", en="male"),
        "w": Text(de="weiblich", en="female"),
        "other": Text(de="divers, ohne Angabe oder unbekannt", en="diverse, not stated or unknown"),
    },
    "quality": {
        "A": Text(de="sehr genau: halbe Intervallbreite bis 10 % des Werts", en="very accurate: within 10%"),
        "B": Text(de="genau: bis 25 %", en="accurate: within 25%"),
        "C": Text(de="grob: bis 50 %", en="rough: within 50%"),
        "D": Text(de="im Rauschen: mehr als 50 %", en="inside the noise: more than 50%"),
    },
    "status": {
        "provisional": Text(de="vorläufig, wird noch genauer", en="provisional, will become more accurate"),
        "final": Text(de="endgültig", en="final"),
        "paused": Text(de="pausiert: das Budget ist aufgebraucht", en="paused: the budget is used up"),
        "corrected": Text(
            de="berichtigt: enthält eine Woche, deren Daten falsch waren und die neu gemessen wurde",
            en="corrected: holds a week whose data were wrong and that was measured again",
        ),
    },
}
"""Codes of the columns whose meaning is not a public list of its own."""


def _levels(times: tuple[PublishedTime, ...], dimensions: str = TOTAL) -> tuple[Level, ...]:
    return tuple(Level(time=t, dimensions=dimensions) for t in times)


DATASETS: Final[tuple[Dataset, ...]] = (
    Dataset(
        key="cases_by_area",
        title=Text(de="Fälle nach Wohngebiet", en="Cases by area of residence"),
        description=Text(
            de="Stationäre Fälle und Notfallbesuche nach Aufnahmetag und Wohngebiet, mit Raten je 100.000 Einwohner "
            "der Woche, des Monats, der vier Wochen oder der 364 Tage, wo Einwohnerzahlen vorliegen, und mit "
            "altersstandardisierten Raten der 364 Tage.",
            en="Inpatient cases and emergency visits by day of admission and area of residence, with rates per 100,000 "
            "residents in the week, the month, the four weeks or the 364 days where population figures exist, and with "
            "age-standardised rates of the 364 days.",
        ),
        levels=_levels(("day", "late", "week", "month", "period", "window"))
        + _levels(("day", "late", "week", "month", "period", "window"), "area"),
        measures=("count", "rate_per_100000", "age_standardised_rate"),
        keywords=("hospital", "area", "Krankenhaus", "Wohngebiet"),
    ),
    Dataset(
        key="cases_by_chapter",
        title=Text(de="Fälle nach ICD-10-Kapitel", en="Cases by ICD-10 chapter"),
        description=Text(
            de="Stationäre Fälle und Notfallbesuche nach dem ICD-10-GM-Kapitel der Hauptdiagnose.",
            en="Inpatient cases and emergency visits by ICD-10-GM chapter of the principal diagnosis.",
        ),
        levels=(*_levels(("week", "period", "window"), "chapter"), *_levels(("window",), "area+chapter")),
        keywords=("hospital", "diagnosis", "ICD-10-GM", "Diagnose"),
    ),
    Dataset(
        key="cases_by_age_sex",
        title=Text(de="Fälle nach Alter und Geschlecht", en="Cases by age and sex"),
        description=Text(
            de="Stationäre Fälle und Notfallbesuche nach Altersgruppe und Geschlecht, je Gebiet für 364 Tage mit Raten.",
            en="Inpatient cases and emergency visits by age group and sex; by area for 364 days, with rates.",
        ),
        levels=(*_levels(("period", "window"), "age_group+sex"), *_levels(("window",), "area+age_group+sex")),
        measures=("count", "rate_per_100000"),
        keywords=("hospital", "age", "sex", "Alter", "Geschlecht"),
    ),
    Dataset(
        key="emergency_share",
        title=Text(de="Anteil der Notfallaufnahmen", en="Share of emergency admissions"),
        description=Text(
            de="Anteil der stationären Fälle, die als Notfall aufgenommen wurden.",
            en="Share of inpatient cases that were admitted as an emergency.",
        ),
        levels=_levels(("week", "period", "window"), "admission"),
        care=("inpatient",),
        measures=("share",),
        keywords=("hospital", "emergency", "Notfall"),
    ),
    Dataset(
        key="length_of_stay",
        title=Text(de="Verweildauer", en="Length of stay"),
        description=Text(
            de="Mittel, Median und 90. Perzentil der Verweildauer stationärer Fälle in Tagen, aus zwölf Klassen berechnet.",
            en="Mean, median and 90th percentile of the length of stay of inpatient cases in days, from twelve bins.",
        ),
        levels=_levels(("period", "window"), "los"),
        care=("inpatient",),
        measures=("mean_days", "median_days", "p90_days"),
        keywords=("hospital", "length of stay", "Verweildauer"),
    ),
    Dataset(
        key="hospital_mortality",
        title=Text(de="Krankenhaussterblichkeit", en="In-hospital mortality"),
        description=Text(
            de="Anteil der stationären Fälle, die mit dem Tod im Krankenhaus endeten, in 364 Tagen. Tod nach der "
            "Entlassung zählt nicht; ein Fall, der vier Wochen nach dem Ende des Zeitraums noch andauert, gilt als überlebt.",
            en="Share of inpatient cases that ended by death in hospital, over 364 days. Death after discharge does not "
            "count; a case that still goes on four weeks after the end counts as survived.",
        ),
        levels=_levels(("window",), "outcome"),
        care=("inpatient",),
        measures=("mortality",),
        keywords=("hospital", "mortality", "Sterblichkeit"),
    ),
    Dataset(
        key="patients_at_cap",
        title=Text(de="Patienten an ihrer Obergrenze", en="Patients at their cap"),
        description=Text(
            de="Zum Schutz jeder Person zählt nur eine begrenzte Zahl ihrer Fälle. Dieser Datensatz zeigt, wie viele Personen "
            "in einem Quartal (91 Tage) mehr Fälle hatten, und schätzt mit je einem weiteren Fall nach unten ab, wie viele es waren.",
            en="To protect every person, only a limited number of their cases count. This dataset shows how many persons had "
            "more cases in a quarter (91 days), and adds one case for each of them, as a lower estimate of all cases.",
        ),
        levels=_levels(("quarter",), AT_CAP),
        measures=("patients", "corrected_count"),
        keywords=("hospital", "contribution bounding", "undercount", "Untererfassung"),
    ),
)


def dataset(key: str) -> Dataset:
    """The dataset of that key; `KeyError` otherwise."""
    return {d.key: d for d in DATASETS}[key]


class Column(BaseModel):
    """A column of every published dataset."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: str
    kind: pa.DataType
    comment: Text
    values: tuple[str, ...] = ()


def _column(name: str, kind: pa.DataType, de: str, en: str, values: tuple[str, ...] = ()) -> Column:
    return Column(name=name, kind=kind, comment=Text(de=de, en=en), values=values)


_TEXT, _DAY, _NUMBER, _AGE = pa.string(), pa.date32(), pa.float64(), pa.int16()

COLUMNS: Final[tuple[Column, ...]] = (
    _column("indicator", _TEXT, "Schlüssel des Datensatzes", "key of the dataset", tuple(d.key for d in DATASETS)),
    _column("care", _TEXT, "Art der Versorgung", "kind of care", CARE),
    _column(
        "time_level",
        _TEXT,
        "Zeiteinheit: Tag, Nachzügler einer ISO-Woche, ISO-Woche, Kalendermonat, 28 Tage, 91 Tage, 364 Tage",
        "unit of time: day, late cases of an ISO week, ISO week, calendar month, 28 days, 91 days, 364 days",
        ("day", "late", "week", "month", "period", "quarter", "window"),
    ),
    _column("period_start", _DAY, "erster Tag der Zeiteinheit", "first day of the unit of time"),
    _column("period_end", _DAY, "letzter Tag, einschließlich", "last day of the unit of time, inclusive"),
    _column("iso_week", _TEXT, "ISO-Woche, nur bei Wochen", "ISO week such as 2025-W01, only for weeks"),
    _column("region_key", _TEXT, "Regionalschlüssel (ARS) der Stadt", "German region key (ARS) of the city"),
    _column("area_key", _TEXT, "Gebiet; leer: alle Gebiete", "area; empty: all areas together"),
    _column("area_name_de", _TEXT, "Name des Gebiets, deutsch", "name of the area in German"),
    _column("area_name_en", _TEXT, "Name des Gebiets, englisch", "name of the area in English"),
    _column("icd_chapter", _TEXT, "ICD-10-GM-Kapitel; leer: alle", "ICD-10-GM chapter; empty: all", CHAPTER_KEYS),
    _column("icd_chapter_name_de", _TEXT, "Name des Kapitels, deutsch", "name of the chapter in German"),
    _column("icd_chapter_name_en", _TEXT, "Name des Kapitels, englisch", "name of the chapter in English"),
    _column("age_group", _TEXT, "Altersgruppe; leer: alle", "age group; empty: all", AGE_GROUP_KEYS),
    _column("age_lower", _AGE, "unteres Alter der Gruppe", "lowest age of the group in years"),
    _column("age_upper", _AGE, "oberes Alter; leer: offen", "highest age of the group; empty: open"),
    _column("sex", _TEXT, "Geschlecht; leer: alle", "m, w, other (or unknown); empty: all", SEXES),
    _column("measure", _TEXT, "Kennzahl", "measure", tuple(MEASURES)),
    _column(
        "value",
        _NUMBER,
        "Schätzwert mit Rauschen; Anzahlen sind unverzerrt und können negativ sein: für Summen und Mittelwerte",
        "estimate with privacy noise, counts are unbiased and may be negative: use it for sums and means",
    ),
    _column("value_display", _NUMBER, "gerundet, nicht negativ: zum Zeigen", "rounded, never negative: for display"),
    _column("unit", _TEXT, "Einheit des Werts", "unit of the value"),
    _column("ci95_lower", _NUMBER, "95-%-Intervall des Rauschens, unten", "lower end of the 95% interval of the noise"),
    _column("ci95_upper", _NUMBER, "95-%-Intervall des Rauschens, oben", "upper end of the 95% interval of the noise"),
    _column(
        "quality",
        _TEXT,
        "halbe Intervallbreite zum Wert: A bis 10 %, B bis 25 %, C bis 50 %, sonst D",
        "half the width of the interval relative to the value: A to 10%, B to 25%, C to 50%, else D",
        ("A", "B", "C", "D"),
    ),
    _column(
        "rolled_up_to",
        _TEXT,
        "bei Klasse D: nächstgröbere Zeiteinheit, in der derselbe Wert nicht im Rauschen liegt; sonst leer",
        "for class D: the next coarser unit of time in which the same value is not inside the noise; else empty",
        ("week", "period", "window"),
    ),
    _column(
        "value_all_patients",
        _NUMBER,
        "Schätzung für alle Patientinnen und Patienten der beteiligten Kliniken: Wert geteilt durch Abdeckung. Nimmt an, dass "
        "die Einwilligung nichts mit dem Indikator zu tun hat. Nur bei Zahlen und Raten",
        "estimate for all patients of the participating clinics: value divided by coverage. Assumes that consent is "
        "unrelated to the indicator. Only for counts and rates",
    ),
    _column(
        "all_patients_ci95_lower",
        _NUMBER,
        "95-%-Intervall davon (nur Rauschen), unten",
        "lower end of its 95% interval (noise alone)",
    ),
    _column(
        "all_patients_ci95_upper",
        _NUMBER,
        "95-%-Intervall davon (nur Rauschen), oben",
        "upper end of its 95% interval (noise alone)",
    ),
    _column(
        "status",
        _TEXT,
        "vorläufig, solange das Budgetfenster offen ist; endgültig; pausiert; berichtigt",
        "provisional while the budget window is open, then final; paused when the budget is used up; corrected",
        ("provisional", "final", "paused", "corrected"),
    ),
    _column(
        "coverage",
        _NUMBER,
        "Abdeckung: gezählte Fälle dieser Versorgungsart geteilt durch die Fälle aller Patienten nach den öffentlichen "
        "Jahreszahlen der Kliniken, im Budgetfenster bis zum Datenstand",
        "coverage: counted cases of this kind of care divided by the cases of all patients by the clinics' public yearly "
        "figures, in the budget window up to the day of the data",
    ),
    _column(
        "coverage_ci95_lower",
        _NUMBER,
        "95-%-Intervall der Abdeckung (nur Rauschen), unten",
        "lower end of the 95% interval of the coverage (noise alone)",
    ),
    _column(
        "coverage_ci95_upper",
        _NUMBER,
        "95-%-Intervall der Abdeckung (nur Rauschen), oben",
        "upper end of the 95% interval of the coverage (noise alone)",
    ),
    _column(
        "clinics_changed",
        _TEXT,
        "Kliniken, die innerhalb der Zeiteinheit hinzukamen (from), ausschieden (until) oder pausierten (paused), mit den "
        "Tagen; sonst leer",
        "clinics that joined (from), left (until) or paused inside the unit of time, with the days; else empty",
    ),
    _column("data_as_of", _DAY, "Datenstand", "day up to which data went into the release"),
    _column("release_version", _TEXT, "Fassung der Veröffentlichung", "version of the release"),
)

KEY: Final = ("time_level", "period_start", "care", "area_key", "icd_chapter", "age_lower", "sex", "measure")
"""Columns that tell the rows of a dataset apart, in the order of the files."""

_MAY_BE_EMPTY: Final = frozenset(
    {"iso_week", "area_key", "icd_chapter", "icd_chapter_name_de", "icd_chapter_name_en", "age_group"}
    | {
        "age_lower",
        "age_upper",
        "sex",
        "rolled_up_to",
        "clinics_changed",
        "coverage",
        "coverage_ci95_lower",
        "coverage_ci95_upper",
    }
    | {"value_all_patients", "all_patients_ci95_lower", "all_patients_ci95_upper"}
)
REQUIRED: Final = frozenset(c.name for c in COLUMNS) - _MAY_BE_EMPTY
"""Columns that are never empty in a release."""

SCHEMA: Final = pa.schema([pa.field(c.name, c.kind, metadata={"comment": c.comment.en}) for c in COLUMNS])
