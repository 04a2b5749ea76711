"""The rows of a task of images: made once, kept in a folder, probed together."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from encoder_bench.probes import FIFTHS, TRIVIAL, probe
from rich.progress import Progress as Bars

from rate_bench.tasks import MEAN, ROUGH, Coded, Progress, Task

REFERENCE = "tokens, float32"

# Makes a row of a fold; None where it cannot be, or ModuleNotFoundError where a library lacks.
Make = Callable[[int, Progress], Coded | None]


class Rows:
    """The rows of a task: made once, kept in a folder, put together over the folds."""

    def __init__(self, task: Task, folder: Path, bars: Bars) -> None:
        self.task, self.folder, self._bars = task, folder, bars
        self.rows: dict[str, dict[str, list[Coded]]] = {}
        self.missing: list[str] = []
        self._images = bars.add_task("", total=1)
        self._count = bars.add_task(f"{task.name}: rows", total=None)

    def progress(self, text: str) -> Progress:
        """Show what is being done."""
        self._bars.reset(self._images, description=text)
        return lambda done, total: self._bars.update(self._images, completed=done, total=total)

    def add(
        self, method: str, setting: str, make: Make, *, every_fold: bool = True, key: str = ""
    ) -> None:
        """Make a row, or take what an earlier run kept.

        `every_fold`: the folds differ. `key` names what else a kept row hangs on.
        """
        count = len(self.task.folds) if every_fold else 1
        found = []
        for at in range(count):
            path = self.folder / f"{_file(method)}-{_file(setting + key)}-{at}.npz"
            if not path.exists():
                try:
                    coded = make(at, self.progress(f"{method} {setting}"))
                except ModuleNotFoundError:
                    coded = None
                if coded is None:
                    self.missing.append(f"{method} {setting}".strip())
                    return
                coded.save(path)
            found.append(Coded.load(path))
        found *= len(self.task.folds) // count
        self.rows.setdefault(method, {})[setting] = found
        self._bars.advance(self._count)

    def probed(self) -> dict[str, Any]:
        """Probe all rows of each pooling; entries of the table by pooling, method and setting."""
        images, folds = self.task.images, self.task.folds
        n = len(images.labels)
        splits = [(a + i * n, b + i * n) for i, (a, b) in enumerate(folds)]
        labels, units = np.tile(images.labels, len(folds)), np.tile(np.arange(n), len(folds))
        table: dict[str, Any] = {}
        for pooling in (MEAN, ROUGH):
            named = {
                (method, setting): coded
                for method, of in self.rows.items()
                for setting, coded in of.items()
                if pooling in coded[0].vectors
            }
            vectors = {
                " | ".join(key): np.concatenate([c.vectors[pooling] for c in coded])
                for key, coded in named.items()
            }
            self.progress(f"probes, {pooling}")
            found = probe(
                vectors,
                labels,
                splits,
                units,
                reference=f"{REFERENCE} | ",
                heads=("linear",),
                validations=FIFTHS,
            )
            methods: dict[str, list[dict[str, Any]]] = {}
            for (method, setting), coded in named.items():
                entry = found[f"{method} | {setting}"]["linear"]
                methods.setdefault(method, []).append(
                    {"setting": setting}
                    | {
                        "bytes_per_image": round(float(np.mean([c.size for c in coded])), 3),
                        "encode_ms": round(float(np.mean([c.encode_ms for c in coded])), 3),
                        "decode_ms": round(float(np.mean([c.decode_ms for c in coded])), 3),
                        "accuracy": entry["accuracy"],
                        "chosen": entry["chosen"],
                    }
                )
            guess = found[TRIVIAL]["linear"]["accuracy"]
            table[pooling] = {"rows": methods, "trivial": {"name": TRIVIAL, **guess}}
        return table


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", name)
