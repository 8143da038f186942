"""The documents for analysts and portals do what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from assets.contract.city import City, Publication
from assets.contract.codes import AGE_GROUP_KEYS
from assets.publication.bundle import Published, stamped
from assets.publication.database import build_database
from assets.publication.guarantee import Guarantee
from assets.publication.indicators import build
from assets.publication.portal import MEDIA_TYPES

Frames = dict[str, pd.DataFrame]
DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "analysts.md").read_text()
QUESTIONS = re.findall(r"```sql\n(.*?)```\nColumns: (.*?)\n", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(frames: Frames, city: City, plan: Guarantee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("analyst")
    done = [Published(k, "2025-12-28", len(f), True) for k, f in frames.items()]
    build_database(stamped(frames, done), city, root / "city_health.duckdb", plan)
    rki = ["Saison\tKalenderwoche\tBundesland\tBundesland_ID\tAltersgruppe\tARE_Konsultationsinzidenz"]
    for week in range(1, 53):
        for state, number in (("Bundesweit", "00"), ("Hessen", "06")):
            rki += [f"2024/25\t2025-W{week:02d}\t{state}\t{number}\t{age}\t{900 + week}" for age in ("00+", "0-4")]
    (root / "ARE-Konsultationsinzidenz.tsv").write_text("\n".join(rki) + "\n")
    return root


def test_there_are_ten_questions_and_every_sql_is_tested() -> None:
    assert len(re.findall(r"^### \d+\. ", TEXT, flags=re.MULTILINE)) == 10
    assert len(QUESTIONS) == TEXT.count("```sql") == 12


@pytest.mark.parametrize(("sql", "columns"), QUESTIONS)
def test_the_sql_answers_with_the_columns_it_names(
    folder: Path, sql: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with duckdb.connect("city_health.duckdb", read_only=True) as con:
        answer = con.execute(sql)
        assert [c[0] for c in answer.description or ()] == columns.split(", ")
        rows = answer.fetchall()
    assert rows
    for column in range(len(rows[0])):  # no column is empty throughout
        assert any(row[column] is not None for row in rows), columns.split(", ")[column]


def test_the_question_of_the_readme_has_the_answer_that_it_shows(folder: Path) -> None:
    ((sql, shown),) = re.findall(
        r"```sql\n(.*?)```\n```\n(.*?)```", (DOCS.parent / "README.md").read_text(), flags=re.DOTALL
    )
    with duckdb.connect(str(folder / "city_health.duckdb"), read_only=True) as con:
        answer = con.execute(sql)
        head, *rows = (line.split() for line in shown.splitlines())
        assert [c[0] for c in answer.description or ()] == head
        assert [len(row) for row in answer.fetchall()] == [len(row) for row in rows]


def _ask(folder: Path, number: int) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder / "city_health.duckdb"), read_only=True) as con:
        return con.execute(QUESTIONS[number][0]).fetchall()


def test_answers_agree_with_the_published_numbers(folder: Path, frames: Frames) -> None:
    cases = frames["cases_by_area"].query("care == 'inpatient' and measure == 'count' and area_key.isna()")
    weeks = cases.query("time_level == 'week'").sort_values("period_start")
    assert [row[1] for row in _ask(folder, 1)] == list(weeks["value_display"].iloc[:-5:-1])
    ((_, _, now, before, *_),) = _ask(folder, 3)
    assert (now, before) == (weeks["value"].iloc[-1], weeks["value"].iloc[-2])
    assert sum(row[4] for row in _ask(folder, 7)) == pytest.approx(100, abs=0.1 * 23)
    standardised = _ask(folder, 4)
    assert len(standardised) == 9 and [r[1] for r in standardised] == sorted((r[1] for r in standardised), reverse=True)
    assert len(_ask(folder, 8)) == 8 * 2 and len(_ask(folder, 6)) == 11


def test_a_rate_takes_the_residents_of_one_window_once(
    make_estimates: Callable[..., pa.Table], city: City, plan: Guarantee, tmp_path: Path
) -> None:
    """In the second year there are two windows, and a join with the residents finds each of them."""
    frame = build(make_estimates(728), city)["cases_by_age_sex"]
    done = [Published("cases_by_age_sex", "2026-12-27", len(frame), True)]
    needed = build(make_estimates(7), city)["cases_by_area"]  # of which macros are made
    done += [Published("cases_by_area", "2026-12-27", len(needed), True)]
    frames = {"cases_by_age_sex": frame, "cases_by_area": needed}
    build_database(stamped(frames, done), city, tmp_path / "city_health.duckdb", plan)
    found = {(age, sex): residents for age, sex, _, residents, _ in _ask(tmp_path, 8)}
    assert found == {
        (age, sex): sum(a.residents(age, sex) or 0 for a in city.areas if a.population)
        for age in AGE_GROUP_KEYS
        for sex in ("m", "w")
    }


def test_the_pandas_example_runs(folder: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cases_by_area" / "latest").mkdir(parents=True, exist_ok=True)
    frames["cases_by_area"].to_parquet(folder / "cases_by_area" / "latest" / "data.parquet")
    monkeypatch.chdir(folder)
    for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(compile(code, "analysts.md", "exec"), {})


def test_the_media_types_are_those_that_the_bucket_sends() -> None:
    table = (DOCS / "portals.md").read_text()
    for suffix, kind in MEDIA_TYPES.items():
        assert re.search(rf"\|.*`{re.escape(suffix)}`.*\| `{re.escape(kind)}` \|", table), suffix


def test_the_portal_examples_are_valid(city: City) -> None:
    import yaml

    for block in re.findall(r"```yaml\n(.*?)```", (DOCS / "portals.md").read_text(), flags=re.DOTALL):
        named = yaml.safe_load(block)["publication"]
        Publication.model_validate(city.publication.model_dump() | named)
