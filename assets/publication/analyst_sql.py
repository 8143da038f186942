"""Views and macros of the analyst database, as SQL that clients from 1.2 to 2.0 understand.

Here: the questions that analysts ask, answered over published rows. Not here: tables (`database`). A difference
is called *inside the noise* where its 95% interval holds zero; intervals are of the privacy noise alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from assets.publication.catalogue import COLUMNS, MEASURES, dataset

VERDICT: Final = "CASE WHEN abs(difference) <= half THEN 'inside the noise' ELSE 'larger than the noise' END AS verdict"
INTERVAL: Final = f"difference, difference - half AS ci95_lower, difference + half AS ci95_upper, {VERDICT}"
_HALF: Final = "({0}.ci95_upper - {0}.ci95_lower) / 2"
_UNIT_COLUMNS: Final = (
    "value", "value_display", "ci95_lower", "ci95_upper", "value_all_patients", "all_patients_ci95_lower",
    "all_patients_ci95_upper", "quality", "rolled_up_to", "status",
)  # fmt: skip
"""Columns that the wide form repeats for each measure: those in which two measures of one cell may differ."""


@dataclass(frozen=True)
class View:
    name: str
    body: str
    columns: tuple[str, ...]
    comment: str


@dataclass(frozen=True)
class Macro:
    kind: str
    name: str
    body: str
    comment: str


def _wide(key: str) -> View:
    """One row for each unit of time and cell, with the columns of each measure side by side."""
    kept = [c.name for c in COLUMNS if c.name not in ("measure", "unit", *_UNIT_COLUMNS)]
    picked = {
        m if column == "value" else f"{m}_{column}": f"max({column}) FILTER (WHERE measure = '{m}')"
        for m in dataset(key).measures
        for column in _UNIT_COLUMNS
    }
    chosen = ", ".join(f"{expression} AS {name}" for name, expression in picked.items())
    return View(
        f"{key}_wide",
        f"SELECT {', '.join(kept)}, {chosen} FROM {key} GROUP BY {', '.join(kept)}",
        (*kept, *picked),
        f"{dataset(key).title.en}, wide form: one row for each unit of time and cell, one group of columns for each "
        "measure",
    )


def views(datasets: Sequence[str]) -> list[View]:
    """The long form over all `datasets`, and a wide form of each."""
    if not datasets:
        return []
    names = tuple(c.name for c in COLUMNS)
    body = " UNION ALL ".join(f"SELECT {', '.join(names)} FROM {key}" for key in datasets)
    together = View(
        "indicators_long", body, names, "all datasets in long form: one row for each unit of time, cell and measure"
    )
    return [together, *(_wide(key) for key in datasets)]


def column_comment(column: str) -> str:
    """Comment of a view's column: that of the dataset's column, with its measure in the wide form."""
    known = {c.name: c.comment.en for c in COLUMNS}
    if column in known:
        return known[column]
    measure = max((m for m in MEASURES if column.startswith(m)), key=len)
    part = column.removeprefix(measure).removeprefix("_") or "value"
    return f"{MEASURES[measure].meaning.en}: {known[part]}"


def quoted(text: str) -> str:
    """Text as an SQL literal, for statements that take no parameter."""
    return "'" + text.replace("'", "''") + "'"


def statements(datasets: Sequence[str]) -> Iterator[str]:
    """Statements that add the views over `datasets` and the macros, with a comment on each."""
    for view in views(datasets):
        yield f"CREATE VIEW {view.name} AS {view.body}"
        yield f"COMMENT ON VIEW {view.name} IS {quoted(view.comment)}"
        for column in view.columns:
            yield f'COMMENT ON COLUMN {view.name}."{column}" IS {quoted(column_comment(column))}'
    for macro in MACROS:
        yield f"CREATE MACRO {macro.name}{macro.body}"
        yield f"COMMENT ON {macro.kind} {macro.name} IS {quoted(macro.comment)}"


MACROS: Final[tuple[Macro, ...]] = (
    Macro(
        "MACRO",
        "rate_per_100000",
        "(cases, residents) AS cases * 100000.0 / nullif(residents, 0)",
        "cases per 100,000 residents in the unit of time of the cases",
    ),
    Macro(
        "MACRO",
        "compare_values",
        """(a_value, a_lower, a_upper, b_value, b_lower, b_upper) AS
        CASE WHEN abs(a_value - b_value) <= (a_upper - a_lower) / 2 + (b_upper - b_lower) / 2
             THEN 'inside the noise' ELSE 'larger than the noise' END""",
        "whether two values with their intervals differ by more than the noise, for any two rows of any dataset. "
        "Their errors are taken as fully opposed, the worst case: compare_areas and compare_periods are sharper.",
    ),
    Macro(
        "MACRO TABLE",
        "moving_average_with_interval",
        """(which_care, which_area, days) AS TABLE
        SELECT period_start AS day, average, average - half AS ci95_lower, average + half AS ci95_upper
        FROM (SELECT period_start, avg(value) OVER w AS average, count(*) OVER w AS found,
                     sqrt(sum(((ci95_upper - ci95_lower) / 2) ** 2) OVER w) / days AS half,
                     period_start - min(period_start) OVER w AS reach
              FROM cases_by_area
              WHERE time_level = 'day' AND measure = 'count' AND care = which_care
                AND area_key IS NOT DISTINCT FROM which_area
              WINDOW w AS (ORDER BY period_start ROWS BETWEEN days - 1 PRECEDING AND CURRENT ROW))
        WHERE found = days AND reach = days - 1""",
        "average of the last `days` days of an area (NULL: all areas) with its 95% interval. Days are taken as "
        "independent; weekly measurements only make their errors cancel, so the interval is rather too wide. "
        "Example: FROM moving_average_with_interval('inpatient', NULL, 7)",
    ),
    Macro(
        "MACRO TABLE",
        "compare_areas",
        f"""(which_care, which_level, which_measure, area_a, area_b) AS TABLE
        SELECT period_start, period_end, a_value, b_value, {INTERVAL}
        FROM (SELECT a.period_start, a.period_end, a.value AS a_value, b.value AS b_value,
                     a.value - b.value AS difference,
                     sqrt(({_HALF.format("a")}) ** 2 + ({_HALF.format("b")}) ** 2
                          + 2 * {_HALF.format("a")} * {_HALF.format("b")}
                            / (SELECT greatest(count(DISTINCT area_key) - 1, 1) FROM geography)) AS half
              FROM cases_by_area a JOIN cases_by_area b USING (period_start, care, time_level, measure)
              WHERE care = which_care AND time_level = which_level AND measure = which_measure
                AND a.area_key = area_a AND b.area_key = area_b)
        ORDER BY period_start""",
        "difference of two areas with its 95% interval, and whether it lies inside the noise. Errors of areas are "
        "negatively correlated because they add up to the total; the interval takes the largest such correlation. "
        "The interval is of the privacy noise alone. "
        "Example: FROM compare_areas('inpatient', 'week', 'rate_per_100000', '64283', '64285')",
    ),
    Macro(
        "MACRO TABLE",
        "compare_periods",
        f"""(which_care, which_level, which_measure, which_area, start_a, start_b) AS TABLE
        SELECT a_start, b_start, a_value, b_value, {INTERVAL}
        FROM (SELECT a.period_start AS a_start, b.period_start AS b_start, a.value AS a_value, b.value AS b_value,
                     a.value - b.value AS difference,
                     sqrt(({_HALF.format("a")}) ** 2 + ({_HALF.format("b")}) ** 2
                          + 2 * {_HALF.format("a")} * {_HALF.format("b")} / 3) AS half
              FROM cases_by_area a JOIN cases_by_area b USING (care, time_level, measure)
              WHERE care = which_care AND time_level = which_level AND measure = which_measure
                AND a.area_key IS NOT DISTINCT FROM which_area AND b.area_key IS NOT DISTINCT FROM which_area
                AND a.period_start = CAST(start_a AS DATE) AND b.period_start = CAST(start_b AS DATE))""",
        "difference of two units of time of an area (NULL: all areas), a minus b, with its 95% interval, and whether "
        "it lies inside the noise. Errors of days and weeks are negatively correlated because they add up to their "
        "28 days; the interval takes the largest such correlation, that of four weeks. "
        "Example: FROM compare_periods('inpatient', 'week', 'count', NULL, '2025-02-03', '2025-01-27')",
    ),
    Macro(
        "MACRO TABLE",
        "year_on_year",
        f"""(which_care, which_level, which_measure, which_area) AS TABLE
        SELECT period_start, period_end, value, value_before, {INTERVAL},
               CASE WHEN value_before > 0 THEN difference / value_before END AS relative
        FROM (SELECT a.period_start, a.period_end, a.value AS value, b.value AS value_before,
                     a.value - b.value AS difference,
                     sqrt(({_HALF.format("a")}) ** 2 + ({_HALF.format("b")}) ** 2) AS half
              FROM cases_by_area a JOIN cases_by_area b
                ON b.period_start = a.period_start - 364 AND a.care = b.care AND a.time_level = b.time_level
                AND a.measure = b.measure AND a.area_key IS NOT DISTINCT FROM b.area_key
              WHERE a.care = which_care AND a.time_level = which_level AND a.measure = which_measure
                AND a.area_key IS NOT DISTINCT FROM which_area)
        ORDER BY period_start""",
        "each unit of time against the same one 364 days before (52 weeks: the same weekday), with its 95% interval, "
        "and whether the difference lies inside the noise. The two lie in different budget windows, so their errors "
        "are independent. Example: FROM year_on_year('inpatient', 'week', 'count', NULL)",
    ),
)
