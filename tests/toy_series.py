"""A small series for tests: four days of one grid, other values every day."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from nec.archive import Contributor, StoreWriter, Task, TimeStep, TokenGrid
from nec.archive.series import load_step

BANDS = 4
BOX = GeoBox((100, 150), Affine(10, 0, 400_000, 0, -10, 5_000_000), "EPSG:32632")
GRID = TokenGrid.around(BOX, patch=4, chunk=16, shard=32, cell=16, whole=True)
DAYS = [np.datetime64("2020-01-30", "D") + 7 * n for n in range(4)]

Open = Callable[[Path, list[np.datetime64]], tuple[StoreWriter, dict[np.datetime64, int]]]


def values(day: np.datetime64, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Make the tokens and cells of a task: other ones every day; the last shard is missing."""
    seed = [int(day.astype(np.int64)), task.row, task.column]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] / 16
    tokens = np.stack([4 + y, x * rng.normal(), np.sin(3 * y) + rng.normal(), y * x])
    tokens = tokens.astype(np.float32)
    tokens[:, :3, 5:9] = np.nan
    if task.row == task.column == 1:
        tokens[:] = np.nan
    valid = ~np.isnan(tokens.reshape(BANDS, 2, 16, 2, 16))
    count = valid.sum((2, 4))
    total = np.nansum(tokens.reshape(BANDS, 2, 16, 2, 16), axis=(2, 4))
    return tokens, np.where(count, total / np.maximum(count, 1), np.nan).astype(np.float32)


def fill(open_series: Open, path: Path, days: list[np.datetime64]) -> StoreWriter:
    """Do what a run over these days does: append, say what each holds, fill, finish."""
    writer, index = open_series(path, days)
    shards = tuple(task.place for task in GRID.tasks())
    for day in days:
        scene = Contributor(f"scene of {day}", "0" * 64, shards, {"acquired": str(day)})
        step = TimeStep(index[day], str(day), (scene,))
        while not writer.hold(step, load_step(path, step.index)):
            pass  # another producer was there first
        bound = writer.at(step)
        for task in bound.pending():
            bound.write(task, *values(day, task), figures={"pixels": 100})
    writer.refresh()
    writer.finish({"nec": {"seam": 0.9}})
    return writer
