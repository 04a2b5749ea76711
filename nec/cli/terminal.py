"""What all commands share: the application, the terminal, progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Neural embedding compression for Earth observation.\n\n"
    "Encode scenes to small stores of embeddings that plain xarray opens; train heads on them.",
)
console = Console(highlight=False, soft_wrap=True)
Store = Annotated[str, typer.Argument(help="Store of embeddings: a folder or an http(s) URL.")]


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """Yield a callable (done, total) that moves a bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
