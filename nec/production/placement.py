"""Where the scenes of series go: which grid each is of, and which day."""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from nec.archive import Task, TokenGrid
from nec.compressor import Compressor
from nec.encoders.tiling import Tiling
from nec.errors import SceneError
from nec.model import Model
from nec.production.features import CELL
from nec.production.job import SCENE_OPTIONS, check_tiling, usable_bands
from nec.production.scenes import SceneEntry
from nec.production.task import Retries, passing, reason_of
from nec.scene import Scene, open_scene
from nec.scene.sensors import date_in_name

#: Left, bottom, right, top, in units of the scenes' CRS.
Area: TypeAlias = tuple[float, float, float, float]
# Headers that are read at once, to find out what is where.
_READERS = 4


@dataclass(frozen=True)
class PlacedScene:
    """A scene whose header has been read: when it is of, and where it lies in its grid.

    Attributes
    ----------
    entry : SceneEntry
    day : numpy.datetime64
        UTC.
    bands : tuple of str
        Those that the model takes.
    offset, shape : tuple of int
        Row and column of its first pixel in the grid; rows and columns.
    """

    entry: SceneEntry
    day: np.datetime64
    bands: tuple[str, ...]
    offset: tuple[int, int]
    shape: tuple[int, int]

    def shards(self, grid: TokenGrid, margin: int) -> tuple[str, ...]:
        """Name the shards that its pixels have a part in, those in the margin too."""
        span = grid.patch * grid.shard
        rows, columns = (
            range(max((start - margin) // span, 0), min(-(-(start + size + margin) // span), n))
            for start, size, n in zip(
                self.offset,
                self.shape,
                (-(-side // grid.shard) for side in grid.shape),
                strict=True,
            )
        )
        return tuple(Task(row, column).place for row in rows for column in columns)


@dataclass(frozen=True)
class SeriesSettings:
    """What is the same for all series of a run."""

    folder: Path
    model: Model
    compressor: Compressor
    rate: str | float
    tiling: Tiling
    retries: Retries
    options: Mapping[str, Any]
    sealing: bool
    reuse: Path | None
    area: Area | None

    @classmethod
    def of(
        cls,
        folder: Path,
        model: Model,
        retries: Retries,
        options: Mapping[str, Any],
        *,
        sealing: bool,
        reuse: Path | None,
        area: Area | None,
    ) -> "SeriesSettings":
        """Sort out the options of `encode_archive`; SceneError for one that does not go here."""
        given = {name: value for name, value in options.items() if value is not None}
        rate, tiling = given.pop("rate", "medium"), given.pop("tiling", model.tiling)
        compressor = model.compressor(rate).guarded(given.pop("min_cosine", None))
        if others := [name for name in given if name not in SCENE_OPTIONS]:
            raise SceneError(f"a series takes no {others[0]}=", "leave it out")
        check_tiling(model, tiling)
        if area is not None and not (area[0] < area[2] and area[1] < area[3]):
            msg = f"area {area} is not left, bottom, right, top"
            raise SceneError(msg, "give the corners in units of the scenes' CRS")
        return cls(folder, model, compressor, rate, tiling, retries, given, sealing, reuse, area)

    def grid(self, scene: Scene) -> tuple[TokenGrid, tuple[int, int]]:
        """Return the grid that a scene goes to, and row and column of its first pixel there.

        It is made of the whole shards, of the lattice of the scene's pixels, that the scene
        touches, or the area where one is given.

        Raises
        ------
        SceneError
            The scene lies outside of the area.
        """
        patch, affine = self.model.encoder.patch_size, scene.geobox.affine
        box, (row, column) = scene.geobox, (0, 0)
        if self.area is not None:
            left, bottom, right, top = self.area
            # A thousandth of a pixel beyond an edge is rounding.
            first = [
                math.floor((a - c) / e + 1e-3)
                for a, c, e in ((top, affine.f, affine.e), (left, affine.c, affine.a))
            ]
            last = [
                math.ceil((a - c) / e - 1e-3)
                for a, c, e in ((bottom, affine.f, affine.e), (right, affine.c, affine.a))
            ]
            if any(
                b <= 0 or a >= n for a, b, n in zip(first, last, scene.geobox.shape, strict=True)
            ):
                raise SceneError(
                    f"{scene.name} lies outside of the area {self.area}",
                    "correct the area, or leave the scene out",
                )
            row, column = first
            shape = (last[0] - row, last[1] - column)
            box = GeoBox(shape, affine * Affine.translation(column, row), scene.geobox.crs)
        grid = TokenGrid.around(box, patch=patch, cell=CELL, whole=True)
        offset = (grid.scene_offset[0] - row, grid.scene_offset[1] - column)
        return grid, offset

    def open(self, entry: SceneEntry, bands: Sequence[str] | None = None) -> Scene:
        """Open a scene with the bands that the model takes, or with these."""
        options = {**self.options, **entry.options}
        scene = open_scene(entry.source, **options)
        if scene.time is None and (day := date_in_name(entry.name)) is not None:
            scene = open_scene(entry.source, **{**options, "time": day})
        return scene.select(bands or usable_bands(scene.name, scene.bands, self.model))


def place_scenes(
    scenes: Sequence[SceneEntry], settings: SeriesSettings
) -> tuple[dict[str, tuple[TokenGrid, list[PlacedScene]]], dict[str, str]]:
    """Read the headers of all scenes: which grid each is of, and which day.

    Returns
    -------
    dict of str to tuple of TokenGrid and list of PlacedScene
        By name of the grid, in order of names.
    dict of str to str
        Why, by name of the scenes whose header cannot be read, or tells no day.
    """
    grids: dict[str, tuple[TokenGrid, list[PlacedScene]]] = {}
    failures: dict[str, str] = {}

    def place(entry: SceneEntry) -> tuple[TokenGrid, PlacedScene]:
        scene = settings.open(entry)
        if scene.time is None:
            raise SceneError(
                f"{entry.name} tells no time of acquisition: neither file name nor tags hold one",
                "give it in a table's column `time`, or with --time (time=)",
            )
        grid, offset = settings.grid(scene)
        day = scene.time.astype("datetime64[D]")
        height, width = scene.geobox.shape
        return grid, PlacedScene(entry, day, scene.bands, offset, (height, width))

    left, attempt = list(scenes), 0
    with ThreadPoolExecutor(_READERS, thread_name_prefix="nec-place") as pool:
        while left:
            attempt += 1
            again = []
            for entry, future in [(entry, pool.submit(place, entry)) for entry in left]:
                try:
                    grid, placed = future.result()
                except Exception as error:  # whatever a bad scene brings about
                    if attempt <= settings.retries.count and passing(error):
                        again.append(entry)
                    else:
                        failures[entry.name] = reason_of(error)
                    continue
                grids.setdefault(grid.name, (grid, []))[1].append(placed)
            left = again
            if left:
                time.sleep(settings.retries.seconds(attempt))
    return {name: grids[name] for name in sorted(grids)}, failures
