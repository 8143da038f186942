"""`digitalstadt publish`: bring what is released to the portals that the city file names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assets.contract.city import CityFileError, load_city
from pipelines.environments import current
from pipelines.terminal import fail, out


def publish(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    target: Annotated[str, typer.Option(help="ckan, s3 or all that the city file names.")] = "all",
) -> None:
    """Bring the newest releases to the bucket and the CKAN portal of the city file. Safe to repeat and to stop."""
    from assets.publication import bucket, ckan
    from assets.publication.portal import releases

    if target not in ("all", "ckan", "s3"):
        raise typer.BadParameter("--target is ckan, s3 or all")
    try:
        city = load_city()
        root: Path = current().data_root
        found = releases(root / "open_data")
        named = {"s3": city.publication.s3, "ckan": city.publication.ckan}
        wanted = [name for name, config in named.items() if (config if target == "all" else target == name)]
        actions: list[str] = []
        if "s3" in wanted:
            actions += [f"s3: write {key}" for key in bucket.push(city, root / "open_data", dry_run)]
        if "ckan" in wanted:
            journal = root / "publication" / "ckan-journal.jsonl"
            journal.parent.mkdir(parents=True, exist_ok=True)
            portal = ckan.Portal(city, journal, dry=dry_run)
            for release in found:
                actions += [f"ckan: {action}" for action in portal.push(release)]
    except (CityFileError, ckan.PortalError, bucket.BucketError) as error:
        fail(str(error))
    for action in actions:
        out.print(action, highlight=False)
    if not wanted:
        out.print(f"no portal in the city file: {len(found)} releases lie in {root / 'open_data'}", highlight=False)
    elif not actions:
        out.print("nothing to change")
    elif dry_run:
        out.print("dry run: nothing was written")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(publish)
