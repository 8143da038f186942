"""`digitalstadt web`: put the SQL box beside the public page."""

from __future__ import annotations

import typer

from pipelines.environments import current
from pipelines.terminal import fail, out


def web() -> None:
    """Add the SQL box (DuckDB and a Parquet reader for browsers, pinned and checked, from npm) to the public page. Safe to repeat."""
    from assets.publication import sql_box

    open_data = current().data_root / "open_data"
    if not (open_data / "index.html").is_file():
        fail(f"no page in {open_data}: run `digitalstadt run` first")
    if sql_box.installed(open_data):
        out.print(f"the SQL box is already in {open_data / 'page' / sql_box.FOLDER}", highlight=False)
        return
    try:
        files = sql_box.box_files(*map(sql_box.fetch, sql_box.PACKAGES))
    except sql_box.SqlBoxError as error:
        fail(str(error))
    sql_box.install(open_data, files)
    size = sum(len(data) for data in files.values()) / 1e6
    out.print(
        f"SQL box: {size:.0f} MB in {open_data / 'page' / sql_box.FOLDER}; it needs a web server, such as\n"
        f"python3 -m http.server --bind 127.0.0.1 --directory {open_data}", highlight=False, soft_wrap=True
    )  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(web)
