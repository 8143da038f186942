"""Codebooks of a dataset in German and English: every column, every code with its meaning, every measure.

Here: one text per language, made from the catalogue. Not here: numbers of a release.
"""

from __future__ import annotations

from typing import Literal

from assets.contract.city import City, Text
from assets.contract.codes import AGE_GROUPS, CHAPTER_UNKNOWN, ICD_CHAPTERS
from assets.publication.catalogue import CODES, COLUMNS, KEY, MEASURES, REQUIRED, Dataset

Language = Literal["de", "en"]

_WORDS = {
    "codebook": Text(de="Codebuch", en="Codebook"),
    "columns": Text(de="Spalten", en="Columns"),
    "column": Text(de="Spalte", en="column"),
    "type": Text(de="Typ", en="type"),
    "empty": Text(de="kann leer sein", en="may be empty"),
    "meaning": Text(de="Bedeutung", en="meaning"),
    "yes": Text(de="ja", en="yes"),
    "no": Text(de="nein", en="no"),
    "codes": Text(de="Codes", en="Codes"),
    "code": Text(de="Code", en="code"),
    "measures": Text(de="Kennzahlen", en="Measures"),
    "areas": Text(de="Gebiete", en="Areas"),
    "key": Text(de="Eine Zeile ist durch diese Spalten bestimmt:", en="These columns together tell the rows apart:"),
    "synthetic": Text(
        de="**Künstliche Demonstrationsdaten.** Hinter keiner Zahl steht eine wirkliche Person.",
        en="**Synthetic demonstration data.** No real person stands behind any number.",
    ),
    "source": Text(de="Einwohner:", en="Residents:"),
}


def _codes(column: str, language: Language, city: City) -> list[tuple[str, str]]:
    """Codes of a column with their meaning, from the public lists."""
    if column == "area_key":
        return [(a.key, getattr(a.name, language)) for a in city.areas]
    if column == "icd_chapter":
        unknown = Text(de="ohne lesbare Hauptdiagnose", en="without a readable principal diagnosis")
        listed = [
            (key, f"{first}–{last} {de if language == 'de' else en}") for key, first, last, de, en in ICD_CHAPTERS
        ]
        return [*listed, (CHAPTER_UNKNOWN, getattr(unknown, language))]
    if column == "age_group":
        years, more = ("Jahre", "Jahre und älter") if language == "de" else ("years", "years and over")
        return [(key, f"{low} {more}" if up is None else f"{low}–{up} {years}") for key, low, up in AGE_GROUPS]
    return [(code, getattr(text, language)) for code, text in CODES.get(column, {}).items()]


def codebook(dataset: Dataset, city: City, language: Language) -> bytes:
    """`codebook.de.md` or `codebook.en.md`."""
    word = {key: getattr(text, language) for key, text in _WORDS.items()}
    lines = [
        f"# {word['codebook']}: {getattr(dataset.title, language)}",
        "",
        *([word["synthetic"], ""] if city.synthetic else []),
        getattr(dataset.description, language),
        "",
        f"## {word['columns']}",
        f"{word['key']} {', '.join(f'`{k}`' for k in KEY)}.",
        "",
        f"| {word['column']} | {word['type']} | {word['empty']} | {word['meaning']} |",
        "|---|---|---|---|",
        *(
            f"| `{c.name}` | {c.kind} | {word['no' if c.name in REQUIRED else 'yes']} | {getattr(c.comment, language)} |"
            for c in COLUMNS
        ),
        "",
        f"## {word['measures']}",
        *(
            f"- `{m}` ({getattr(MEASURES[m].unit_name, language)}): {getattr(MEASURES[m].meaning, language)}"
            for m in dataset.measures
        ),
        "",
        f"## {word['codes']}",
    ]
    for column in COLUMNS:
        codes = _codes(column.name, language, city)
        if codes:
            lines += ["", f"### `{column.name}`", f"| {word['code']} | {word['meaning']} |", "|---|---|"]
            lines += [f"| `{code}` | {meaning} |" for code, meaning in codes]
    lines += ["", f"{word['source']} {city.population.source}. {getattr(city.population.note, language)}", ""]
    return "\n".join(lines).encode()
