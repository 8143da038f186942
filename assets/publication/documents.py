"""Documents of a release, made from the catalogue: Data Package descriptor and README.

Here: text and JSON about a release. Not here: writing files (`bundle`), definitions (`catalogue`), the
codebooks (`codebook`), the card (`release_card`), the change log (`changes`), linked data (`dcat`).
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pyarrow as pa

from assets.contract.city import City, Clinic
from assets.publication.catalogue import COLUMNS, KEY, MEASURES, REQUIRED, Dataset
from assets.publication.guarantee import Guarantee

LIMITS = (
    "Only patients who consented to the use of their data are counted; they are not a random sample. `value` is "
    "therefore lower than that of all patients; `coverage` says by how much on the whole. `value_all_patients` is scaled "
    "by it and is right only where consent is unrelated to the indicator.",
    "Every patient contributes a bounded number of cases (contribution bounding): a small undercount remains. Whether it is "
    "measured stands under Privacy.",
    "The intervals describe the privacy noise alone, not consent, coverage, coding or chance.",
    "`value` may be negative and is what sums and means need; `value_display` is for showing.",
    "Residents are counted by the postal code that the clinic holds.",
)
"""What a re-user must know about every dataset."""


def schema_json(dataset: Dataset) -> dict[str, Any]:
    """Table Schema of a dataset (Data Package v2)."""

    def field(column: Any) -> dict[str, Any]:
        kind = column.kind
        name = "date" if pa.types.is_date(kind) else "integer" if pa.types.is_integer(kind) else "number"
        constraints: dict[str, Any] = {"required": True} if column.name in REQUIRED else {}
        if column.values:
            constraints["enum"] = list(column.values)
        return {
            "name": column.name,
            "type": "string" if pa.types.is_string(kind) else name,
            "description": column.comment.en,
            "description_de": column.comment.de,
            **({"constraints": constraints} if constraints else {}),
        }

    # Parts of the key may be empty (all areas, all ages), which a primary key must not be.
    return {"fields": [field(c) for c in COLUMNS], "uniqueKeys": [list(KEY)], "missingValues": [""]}


def datapackage(dataset: Dataset, city: City, version: str, files: dict[str, tuple[int, str]]) -> bytes:
    """`datapackage.json`; `files`: name → (bytes, sha256)."""
    kinds = {
        "data.parquet": ("parquet", "application/vnd.apache.parquet"),
        "data.csv": ("csv", "text/csv"),
    }
    about = city.publication
    descriptor = {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
        "name": dataset.key.replace("_", "-"),
        "title": dataset.title.en,
        "title_de": dataset.title.de,
        "description": dataset.description.en + (" Synthetic demonstration data." if city.synthetic else ""),
        "description_de": dataset.description.de + (" Künstliche Demonstrationsdaten." if city.synthetic else ""),
        "version": version,
        "homepage": f"{about.base_url}/{dataset.key}/{version}/",
        "keywords": list(dataset.keywords),
        "licenses": [{"path": about.licence, "title": about.licence_title}],
        "contributors": [{"title": about.publisher, "email": about.contact_email, "roles": ["publisher"]}],
        "sources": [
            {"title": "Consented case data of the clinics of " + city.name.en},
            {"title": city.population.source},
        ],
        "resources": [
            {
                "name": name.replace(".", "-"),
                "path": name,
                "format": kinds[name][0],
                "mediatype": kinds[name][1],
                **(
                    {"encoding": "utf-8", "dialect": {"delimiter": ",", "lineTerminator": "\n"}}
                    if name == "data.csv"
                    else {}
                ),
                "bytes": size,
                "hash": f"sha256:{digest}",
                "schema": schema_json(dataset),
            }
            for name, (size, digest) in files.items()
        ],
    }
    return (json.dumps(descriptor, ensure_ascii=False, indent=2) + "\n").encode()


def _accuracy(frame: pd.DataFrame) -> list[str]:
    """Median half width of the interval and shares of the quality classes by level: from published values only."""
    if frame.empty:
        return ["No rows yet."]
    split = frame["area_key"].notna().map({True: "by area", False: "all areas"})
    work = frame.assign(level=frame["time_level"] + ", " + split, half=(frame["ci95_upper"] - frame["ci95_lower"]) / 2)
    lines = [
        "| measure | care | level | median half width of the 95% interval | A | B | C | D |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (measure, care, level), group in work.groupby(["measure", "care", "level"]):
        classes = group["quality"].value_counts(normalize=True)
        shares = " | ".join(f"{classes.get(q, 0.0):.0%}" for q in "ABCD")
        lines.append(f"| {measure} | {care} | {level} | {group['half'].median():.3g} | {shares} |")
    return lines


def membership(clinic: Clinic) -> list[str]:
    """Since when and until when a clinic delivers and when it pauses, where that is not the whole time."""
    days = (("delivers from", clinic.delivers_from), ("delivers until", clinic.delivers_until))
    return [f"{word} {day}" for word, day in days if day] + [f"paused {p.first} to {p.last}" for p in clinic.pauses]


def _coverage(frame: pd.DataFrame, city: City) -> list[str]:
    """Public figures of the clinics with their source, and the share of them that is counted."""
    lines = [
        f"- {c.name}, {c.quality_report.year}: "
        + ", ".join(f"{n:,} {care}" for care, n in c.quality_report.cases.items())
        + f" (source: {c.quality_report.source})"
        + "".join(f", {text}" for text in membership(c))
        for c in city.clinics
        if c.quality_report
    ]
    if len(lines) < len(city.clinics):
        return ["Not every clinic has a public figure of its cases, so the coverage is not known."]
    known = frame.dropna(subset=["coverage"]).drop_duplicates(["care", "coverage"])
    shares = [
        f"- {r.care}, window of {r.period_start:%Y-%m-%d}: {r.coverage:.1%} "
        f"(95% interval of the noise {r.coverage_ci95_lower:.1%} to {r.coverage_ci95_upper:.1%})"
        for r in known.sort_values(["care", "period_start"]).itertuples()
    ]
    return [
        "Share of all cases of the participating clinics that is counted here: the joint effect of consent, caps and late "
        "delivery. The cases of all patients are the clinics' own public yearly figures:",
        *lines,
        "",
        *shares,
        "",
        "`value_all_patients` is the value divided by this share: an estimate that assumes consent to be unrelated to the "
        "indicator. The interval is of the noise alone.",
    ]


def readme(
    dataset: Dataset, city: City, version: str, data_as_of: str, frame: pd.DataFrame, promise: Guarantee
) -> bytes:
    """`README.md` of a release."""
    about, population = city.publication, city.population
    synthetic = [
        "> **Synthetic demonstration data.** No real person stands behind any number. / **Künstliche Daten.**",
        "",
    ]
    levels = "; ".join(f"{x.time} × {x.dimensions}" for x in dataset.levels)
    rates = [
        f"Denominator of rates: residents by {population.source} ({'estimate, ' if population.estimate else ''}"
        f"as of {population.as_of}). {population.note.en} Rates are per 100,000 in the unit of time, not annualised; "
        "areas without population figures and totals that hold such areas have no rate."
    ]
    lines = [
        f"# {dataset.title.en} / {dataset.title.de}: {city.name.en}",
        "",
        *(synthetic if city.synthetic else []),
        f"Version {version}, data as of {data_as_of}. Licence: {about.licence_title} <{about.licence}>. "
        f"Publisher: {about.publisher}, {about.contact_name} <{about.contact_email}>.",
        "",
        "## Definition",
        dataset.description.en,
        "",
        dataset.description.de,
        "",
        f"A case is a facility contact, counted on its day of admission ({city.time_zone}).",
        f"Levels: {levels}. Care: {', '.join(dataset.care)}. A period is 28 days, a window 364 days, both counted "
        f"from {city.budget.epoch}.",
        "",
        *(f"- `{m}` ({MEASURES[m].unit}): {MEASURES[m].meaning.en}" for m in dataset.measures),
        "",
        *(rates if "rate_per_100000" in dataset.measures else []),
        "",
        "## Population",
        "Cases of consenting patients of the participating clinics only.",
        "",
        "## Coverage",
        *_coverage(frame, city),
        "",
        "## Privacy",
        "Counts carry discrete noise (differential privacy) for the protection of every patient over a whole window "
        "of 364 days, and are then made consistent by weighted least squares: parts add up to their totals. Every "
        "measurement is drawn once. Nothing is suppressed on a true count.",
        "",
        *(f"- {item}: {text}" for item, text in promise.statements().items() if isinstance(text, str | int | float)),
        "",
        "Noisy tables, mechanism and expected errors are in `release-card.yaml`.",
        "",
        "## Accuracy",
        *_accuracy(frame),
        "",
        "Quality: half the width of the 95% interval relative to the value: A to 10%, B to 25%, C to 50%, else D. "
        "Ratios whose noisy denominator is within three standard deviations of zero are not published.",
        "",
        "## Limits",
        *(f"- {limit}" for limit in LIMITS),
        "",
        "## Revision",
        "A version never changes. `provisional` values are revised while their window of 364 days is open, as further "
        "noisy measurements make them more accurate; `final` values stay, unless the data of a week turn out to be wrong and it is measured "
        "again (`corrected`). A new version appears when a value changes; "
        "`latest` points to the newest. "
        "`CHANGELOG.md` says what changed since earlier versions.",
        "",
        "## Files",
        "`data.parquet` (use this) and its twin `data.csv`, `datapackage.json` (Data Package v2), `codebook.de.md` and "
        "`codebook.en.md`, `dcat-ap-de.ttl`, `release-card.yaml`, `CITATION.cff`, `CHANGELOG.md`, `checksums.sha256` "
        "(`sha256sum -c checksums.sha256`). In the CSV a text that a spreadsheet would run as a formula has an "
        "apostrophe in front.",
        "",
    ]
    return "\n".join(lines).encode()
