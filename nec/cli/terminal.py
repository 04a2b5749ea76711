"""What all commands share: the application, the terminal, progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from nec.errors import StoreError

if TYPE_CHECKING:
    from nec.production import Progress as RunProgress

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Neural embedding compression for Earth observation.\n\n"
    "Encode scenes to small stores of embeddings that plain xarray opens; train heads on them.",
)
console = Console(highlight=False, soft_wrap=True)
Store = Annotated[
    str,
    typer.Argument(
        help="Store of embeddings: a folder, an http(s) or s3 URL, or icechunk:REPOSITORY#tag=NAME."
    ),
]
StorageOption = Annotated[
    list[str] | None,
    typer.Option("--option", help="Of the storage, KEY=VALUE: endpoint_url=https://s3.example.org"),
]

Checkpoint = Annotated[
    Path | None, typer.Option(help="File of weights of a --model terratorch:BACKBONE.")
]


def with_checkpoint(model: str, checkpoint: Path | None) -> str:
    """Return a model's name with the file of its weights."""
    return model if checkpoint is None else f"{model}@{checkpoint}"


def storage_options(options: list[str] | None) -> dict[str, str]:
    """Return the pairs of ``--option KEY=VALUE``."""
    pairs = [option.partition("=") for option in options or []]
    if wrong := [key + sign for key, sign, value in pairs if not (key and sign and value)]:
        raise StoreError(f"--option {wrong[0]} has no value", "write KEY=VALUE")
    return {key: value for key, _, value in pairs}


def check_folder(path: Path) -> None:
    """Refuse a file whose folder is not there, before the work that it is to hold.

    Raises
    ------
    StoreError
        There is no such folder.
    """
    if not path.parent.is_dir():
        raise StoreError(f"{path.parent} is no folder, for {path.name}", f"mkdir {path.parent}")


@contextmanager
def progress_bar(title: str) -> "Iterator[Callable[[RunProgress], None]]":
    """Yield a callable that shows how far a run is: shards, rates, time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("shards"),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(escape(title), total=None, rates="")
        announced = False

        def show(now: "RunProgress") -> None:
            nonlocal announced
            if now.dashboard and not announced:
                announced = True
                bar.console.print(f"{now.engine}; dashboard: {now.dashboard}")
            bar.update(task, completed=now.tasks_done, total=now.tasks, rates=rates_text(now))

        yield show


def rates_text(now: "RunProgress") -> str:
    """Say scenes, rates, bytes and the time left in a few words."""
    words = []
    if now.scenes > 1:
        failed = f" ({now.scenes_failed} failed)" if now.scenes_failed else ""
        words.append(f"scenes {now.scenes_done}/{now.scenes}{failed}")
    words.append(f"{now.pixels_per_second / 1e6:.3g} Mpx/s")
    words.append(f"{now.bytes_in / 1e6:,.1f} MB in")
    words.append(f"{now.bytes_out / 1e3:,.1f} kB out")
    if (left := now.eta) is not None and now.tasks_done < now.tasks:
        words.append(f"{timedelta(seconds=round(left))} left")
    return ", ".join(words)
