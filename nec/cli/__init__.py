"""The command line: ``nec encode``, ``info``, ``train``, ``predict``, ``seal`` and others."""

import logging
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from nec.cli import catalogs, encoding, heads, stores  # noqa: F401 - they register commands
from nec.cli.terminal import app
from nec.errors import MissingLibraryError, NecError

__all__ = ["app", "main"]


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what is going on.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)],
    )


def main() -> None:
    """Run the command line; errors of `nec` end it with a line and status 1."""
    try:
        app()
    except ModuleNotFoundError as error:
        missing = MissingLibraryError.of(error)
        if missing is None:
            raise
        _end(missing)
    except NecError as error:
        _end(error)


def _end(error: NecError) -> NoReturn:
    text = f"[red]{type(error).__name__}:[/red] {escape(str(error))}"
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)
    sys.exit(1)
