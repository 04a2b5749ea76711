"""What a benchmark has found so far: a run that was stopped goes on where it was."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]


def digest_of(code: Iterable[Path]) -> str:
    """Return the SHA-256 of files, and of the modules of folders."""
    digest = hashlib.sha256()
    for given in code:
        for path in sorted(given.glob("*.py")) if given.is_dir() else [given]:
            digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass
class Ledger:
    """Results by step, each in a file of its own, with a bar that shows how far the run is.

    Parameters
    ----------
    folder : Path
        Where results are kept.
    about : mapping
        What all of them hang on: weights, settings. JSON.
    code : iterable of Path
        Files, or folders of modules, that they hang on too.
    """

    folder: Path
    about: Mapping[str, Any]
    code: InitVar[Iterable[Path]] = ()
    _bar: Progress | None = field(default=None, init=False)
    _task: Any = field(default=None, init=False)

    def __post_init__(self, code: Iterable[Path]) -> None:
        self.about = {**self.about, "code": digest_of(code)}
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def counting(self, title: str, steps: int) -> Iterator[None]:
        """Show how many of so many steps are done."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn()) as bar:
            self._bar, self._task = bar, bar.add_task(title, total=steps)
            yield
        self._bar = self._task = None

    def take(self, step: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a step: those that are kept, or newly made and then kept.

        Parameters
        ----------
        step : mapping
            Names the step, JSON.
        make : callable
            Gives named arrays.
        """
        text = " ".join(map(str, step.values()))
        told = json.dumps([dict(self.about), dict(step)], sort_keys=True)
        path = self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.npz"
        if path.exists():
            with np.load(path) as stored:
                found = dict(stored)
        else:
            start = time.perf_counter()
            found = make()
            part = path.with_suffix(".part.npz")
            np.savez_compressed(part, **found)
            part.rename(path)
            log.info("%s: %.0f s", text, time.perf_counter() - start)
        if self._bar is not None:
            self._bar.advance(self._task)
        return found
