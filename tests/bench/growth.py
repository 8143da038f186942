"""How time and memory grow: each row-heavy stage alone at three sizes, with the engine held to 2 GB. Draws the plot."""

from __future__ import annotations

import sys

from inputs import canonical, events, fhir_export, staged
from measure import ROOT, Side, note, side_by_side

LARGE_CITY_YEARS = 80
CASES_OF_A_CITY_YEAR, RESOURCES_OF_A_CITY_YEAR = 112_000, 1_040_000
ROUNDS = 2
"""The largest size runs once."""
STAGES = {
    "read, consent, validate, pseudonymise (resources)": (fhir_export, "stages.py", (20_000, 100_000, 500_000), RESOURCES_OF_A_CITY_YEAR),
    "validate (cases)": (canonical, "validate_ours.py", (100_000, 1_000_000, 10_000_000), CASES_OF_A_CITY_YEAR),
    "consent, validate, pseudonymise, measure (cases, a run a year)": (staged, "cases_stages.py", (100_000, 1_000_000, 10_000_000), CASES_OF_A_CITY_YEAR),
    "bound, count, noise (events)": (events, "counts_ours.py", (100_000, 1_000_000, 10_000_000), CASES_OF_A_CITY_YEAR),
}  # fmt: skip


def plot(rows: list[dict[str, object]]) -> None:
    """`docs/bench-growth.svg`: seconds and peak memory over city-years, both axes logarithmic."""
    import altair as alt

    def panel(field: str, title: str) -> alt.Chart:
        return (
            alt.Chart(alt.Data(values=rows), width=330, height=260)
            .mark_line(point=True)
            .encode(
                x=alt.X("city_years:Q", scale=alt.Scale(type="log"), title="city-years"),
                y=alt.Y(f"{field}:Q", scale=alt.Scale(type="log"), title=title),
                color=alt.Color("stage:N", title=None, legend=alt.Legend(orient="bottom", columns=1, labelLimit=400)),
            )
        )

    chart = alt.hconcat(panel("seconds", "seconds of work"), panel("peak_mb", "peak memory, MB"))
    chart.save(str(ROOT / "docs" / "bench-growth.svg"))


def main() -> int:
    quick = "--quick" in sys.argv
    here, rows, whole = ROOT / "tests" / "bench" / "sides", list[dict[str, object]](), True
    lines = [
        "| stage | rows | city-years | work alone | µs a row | peak memory | runs |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for stage, (make, script, sizes, year) in STAGES.items():
        for size in sizes[:1] if quick else sizes:
            command = [sys.executable, str(here / script), str(make(size))]
            env = {"PYTHONPATH": str(ROOT), "DIGITALSTADT_MEMORY": "2GB"}
            (result,) = side_by_side(
                [Side(f"{stage} {size}", command, env)], 1 if size == sizes[-1] or quick else ROUNDS
            )
            if not result.samples:
                whole = False
                lines.append(f"| {stage} | {size:,} | {size / year:.1f} | failed | | | 0 |")
                note(result.failed)
                continue
            seconds, peak = result.of("seconds"), result.of("peak_mb")
            rows.append({"stage": stage, "city_years": size / year, "seconds": seconds, "peak_mb": peak})
            lines.append(
                f"| {stage} | {size:,} | {size / year:.1f} | {seconds:.2f} s | {seconds / size * 1e6:.1f} | {peak:,.0f} MB "
                f"| {len(result.samples)} |"
            )
    print(
        "### Growth\n\nA city-year is a year of the demo city: 112,000 cases, 1.04 million resources and lines. Each size is a process "
        "of its own, DuckDB is held to 2 GB and spills encrypted beyond it; the peak is of the whole process, Arrow tables "
        "included. All rows come in one run; but where a hundred city-years of cases are taken from consent to measurements, they come "
        "as ten cities' year in each of ten runs, and a run finds what those before it left.\n\n"
        + "\n".join(lines)
        + "\n\n![Time and memory over city-years](bench-growth.svg)\n"
    )
    largest = [float(str(r["peak_mb"])) for r in rows if float(str(r["city_years"])) > LARGE_CITY_YEARS]
    if not quick:
        plot(rows)
        if len(largest) == len(STAGES) - 1:  # reading stops at half a city-year here: more lies on `reading`
            print(f"<!-- metric growth_peak_mb {max(largest):.0f} -->")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
