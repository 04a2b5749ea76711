"""`nec catalog`: the STAC collection of a folder of stores, built and checked."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from nec.cli.terminal import app, console
from nec.errors import CatalogError

catalog = typer.Typer(
    no_args_is_help=True,
    help="Describe a folder of stores by STAC, and check the description.",
    rich_markup_mode="rich",
)
app.add_typer(catalog, name="catalog")

Folder = Annotated[
    Path, typer.Argument(help="Folder of stores, or one store: then all that lie beside it.")
]


@catalog.command()
def build(
    folder: Folder,
    name: Annotated[
        str | None, typer.Option("--id", help="Id of the collection; the folder's name.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the collection.")] = None,
    description: Annotated[str | None, typer.Option(help="Description of the collection.")] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier of the licence.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="START/END (ISO 8601) of stores that know no time of acquisition."),
    ] = None,
    bbox: Annotated[
        str | None,
        typer.Option(help="W,S,E,N in degrees of stores that know no place; else the world."),
    ] = None,
    source_data: Annotated[
        str | None, typer.Option(help="URL of the imagery; else a list of the sources' names.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder or galileo:FOLDER, if it is no built-in one.")
    ] = None,
) -> None:
    """Write collection.json, an item beside each store, and one for the model.

    Run it again after stores were added, sealed or removed: what it was told holds until it is
    told otherwise. Stores are not touched.

    [bold]Examples:[/bold] nec catalog build stores/

    nec catalog build stores/ --title "Saxony 2019" --licence CC-BY-4.0 --time 2019-05-01/2019-09-30
    """
    from nec.catalog import Description
    from nec.catalog import build as run
    from nec.catalog.building import parse_interval

    told = Description(
        id=name,
        title=title,
        description=description,
        licence=licence,
        time=None if time is None else parse_interval(time),
        bbox=None if bbox is None else _box(bbox),
        source_data=source_data,
    )
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("describing stores", total=None)
        made = run(
            folder,
            description=told,
            model=model,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"[bold]{escape(str(made.path))}[/bold]: {len(made.items)} items")
    for store, reason in made.left_out.items():
        console.print(f"[red]{escape(store)}[/red] left out: {escape(reason)}")
    if made.left_out:
        raise typer.Exit(1)


def _box(text: str) -> list[float]:
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError:
        south, north = 1.0, 0.0
    if not -90 <= south <= north <= 90:
        raise CatalogError(f"--bbox {text} is no box", "pass W,S,E,N in degrees, as -25,34,45,72")
    return [west, south, east, north]


@catalog.command()
def check(folder: Folder) -> None:
    """Check a catalog offline: STAC, its extensions, links, and that items agree with their stores.

    Ends with status 1 where anything is wrong. Whether the stores themselves are as they were
    written, nec verify tells.

    [bold]Example:[/bold] nec catalog check stores/
    """
    from nec.catalog import check as run

    problems = run(folder)
    for problem in problems:
        console.print(f"[red]{escape(problem)}[/red]")
    if problems:
        raise typer.Exit(1)
    console.print(f"[bold]{escape(str(folder))}[/bold]: the catalog is right")
