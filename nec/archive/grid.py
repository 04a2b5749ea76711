"""The grid of tokens that the pixels of a scene fall into, and the tasks that fill it."""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nec.errors import StoreError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

# Pixel phases are counted from here: common ones (0, 1/2, 1/3, 3/4) lie well clear of the cut,
# so rounding errors never throw two scenes of one lattice to different sides of it.
_PHASE_CUT = 0.08


@dataclass(frozen=True, order=True)
class Task:
    """One unit of a producer's work: one shard of `embedding` and its `scene_embedding` chunk.

    Attributes
    ----------
    row, column : int
        Index of the shard; for image collections `row` counts shards of samples, `column` is 0.
    time : int
        Index along `time`; 0 where there is none.
    """

    row: int
    column: int = 0
    time: int = 0

    @property
    def name(self) -> str:
        """The task's name in receipts and messages: ``row.column``, then ``.time`` but for 0."""
        return self.place + (f".{self.time}" if self.time else "")

    @property
    def place(self) -> str:
        """Where the shard lies, whatever its time, as ``row.column``."""
        return f"{self.row}.{self.column}"

    @classmethod
    def from_name(cls, name: str) -> "Task":
        """Read a task from its name; ValueError for anything else."""
        row, column, *time = name.split(".")
        if len(time) > 1:
            raise ValueError(name)
        return cls(int(row), int(column), *map(int, time))


def _short_hash(text: str) -> str:
    return "CRS" + hashlib.sha256(text.encode()).hexdigest()[:8]


def _cf_units(units: str) -> str:
    return {"metre": "m", "meter": "m"}.get(units, units)


@dataclass(frozen=True)
class TokenGrid:
    """The grid of tokens that a scene's pixels fall into, north-up.

    Attributes
    ----------
    crs_wkt : str
        Coordinate reference system as WKT 2.
    pixel : tuple of float
        Size of a scene pixel along x and y, both positive, CRS units.
    origin : tuple of float
        x and y of the grid's upper left corner, CRS units.
    shape : tuple of int
        Rows and columns, tokens; whole cells.
    patch : int
        Edge of a token, pixels.
    chunk, shard, cell : int
        Edges of an inner chunk, of a shard and of a `scene_embedding` cell, tokens.
    scene_offset : tuple of int
        Row and column of the scene's first pixel in this grid, pixels.
    scene_shape : tuple of int
        Rows and columns of the scene, pixels.
    units : str
        CF units of the CRS axes: ``m`` for metres, ``degree`` for geographic coordinates.
    epsg : int or None
        EPSG code of the CRS where it has one.
    """

    crs_wkt: str
    pixel: tuple[float, float]
    origin: tuple[float, float]
    shape: tuple[int, int]
    patch: int
    chunk: int
    shard: int
    cell: int
    scene_offset: tuple[int, int]
    scene_shape: tuple[int, int]
    units: str = "m"
    epsg: int | None = None

    @classmethod
    def around(
        cls,
        geobox: "GeoBox",
        *,
        patch: int,
        chunk: int = 128,
        shard: int = 256,
        cell: int = 16,
        whole: bool = False,
    ) -> "TokenGrid":
        """Lay the grid around a scene, in the scene's own pixel phase; nothing is resampled.

        The lattice of pixels that the scene belongs to is cut into shards from the CRS's origin
        (to the pixel phase), so scenes of one lattice share tokens, cells and shards. The upper
        left corner snaps outwards to a whole shard, the lower right to a whole cell.

        Parameters
        ----------
        geobox : odc.geo.geobox.GeoBox
            The scene's pixels: shape, transform and CRS, north-up.
        patch, chunk, shard, cell : int
            See the attributes.
        whole : bool, default: False
            Snap the lower right corner to a whole shard too, so that scenes whose edges differ
            by less have one grid.

        Raises
        ------
        StoreError
            The geobox is rotated, south-up or has no CRS, or the sizes do not divide each other.
        """
        if min(patch, chunk, shard, cell) < 1 or shard % chunk or shard % cell:
            msg = f"shard {shard} is not a multiple of chunk {chunk} and cell {cell}"
            raise StoreError(msg, "choose sizes that divide each other")
        a, b, c, d, e, f = tuple(geobox.affine)[:6]
        if b or d or a <= 0 or e >= 0:
            msg = f"geobox with transform {(a, b, c, d, e, f)} is not north-up"
            raise StoreError(msg, "turn or warp the scene first")
        if geobox.crs is None:
            raise StoreError("geobox has no CRS", "give the scene one with crs=...")
        rows, columns = (int(size) for size in geobox.shape)
        span = patch * shard
        row = math.floor(f / e + _PHASE_CUT) % span
        column = math.floor(c / a + _PHASE_CUT) % span
        unit = shard if whole else cell
        edge = patch * unit
        return cls(
            crs_wkt=geobox.crs.to_wkt(),
            pixel=(float(a), float(-e)),
            origin=(float(c - column * a), float(f - row * e)),
            shape=(-(-(row + rows) // edge) * unit, -(-(column + columns) // edge) * unit),
            patch=patch,
            chunk=chunk,
            shard=shard,
            cell=cell,
            scene_offset=(row, column),
            scene_shape=(rows, columns),
            units="degree" if geobox.crs.geographic else _cf_units(str(geobox.crs.units[0])),
            epsg=geobox.crs.epsg,
        )

    @property
    def name(self) -> str:
        """Name of the grid, fit for a file: CRS, size of a pixel, upper left corner, shards.

        Two grids have one name where they are the same to a thousandth of a pixel.
        """
        crs = f"EPSG{self.epsg}" if self.epsg is not None else _short_hash(self.crs_wkt)
        edge, corner = self.pixel[0], self.origin
        # Cut off the usual phases, as above: rounding errors never change the name.
        left, top = (
            math.floor(c / e * 1000 + _PHASE_CUT) * e / 1000
            for c, e in zip(corner, self.pixel, strict=True)
        )
        rows, columns = (-(-size // self.shard) for size in self.shape)
        return f"{crs}_{edge:.9g}_{left:.12g}_{top:.12g}_{columns}x{rows}"

    @property
    def geographic(self) -> bool:
        """Whether the axes are longitude and latitude."""
        return self.units == "degree"

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """The token grid's transform in GDAL order: corner x, dx, 0, corner y, 0, -dy."""
        dx, dy = (self.patch * size for size in self.pixel)
        return (self.origin[0], dx, 0.0, self.origin[1], 0.0, -dy)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of the grid, CRS units."""
        left, dx, _, top, _, dy = self.transform
        return (left, top + dy * self.shape[0], left + dx * self.shape[1], top)

    def y(self) -> NDArray[np.float64]:
        """Return y of the token centres, north to south, float64."""
        return self._centres(axis=0, edge=self.patch, count=self.shape[0])

    def x(self) -> NDArray[np.float64]:
        """Return x of the token centres, west to east, float64."""
        return self._centres(axis=1, edge=self.patch, count=self.shape[1])

    def cell_y(self) -> NDArray[np.float64]:
        """Return y of the cell centres, north to south, float64."""
        return self._centres(axis=0, edge=self.patch * self.cell, count=self.shape[0] // self.cell)

    def cell_x(self) -> NDArray[np.float64]:
        """Return x of the cell centres, west to east, float64."""
        return self._centres(axis=1, edge=self.patch * self.cell, count=self.shape[1] // self.cell)

    def _centres(self, *, axis: int, edge: int, count: int) -> NDArray[np.float64]:
        sign, which = (-1.0, 1) if axis == 0 else (1.0, 0)
        step = sign * self.pixel[which] * edge
        return np.asarray(self.origin[which] + (np.arange(count) + 0.5) * step, dtype=np.float64)

    def tasks(self) -> list[Task]:
        """List all tasks, row by row."""
        rows, columns = (-(-size // self.shard) for size in self.shape)
        return [Task(row, column) for row in range(rows) for column in range(columns)]

    def task_rows(self, task: Task) -> slice:
        """Token rows of a task, cut at the grid's end."""
        return slice(task.row * self.shard, min((task.row + 1) * self.shard, self.shape[0]))

    def task_columns(self, task: Task) -> slice:
        """Token columns of a task, cut at the grid's end."""
        return slice(task.column * self.shard, min((task.column + 1) * self.shard, self.shape[1]))

    def pixel_window(self, task: Task, halo: int = 0) -> tuple[slice, slice]:
        """Rows and columns of a task in *scene* pixels, `halo` pixels wider on every side.

        The window may reach outside the scene: then starts are negative or stops lie beyond
        its shape, as `Scene.read` takes them.
        """

        def window(tokens: slice, offset: int) -> slice:
            start, stop = (edge * self.patch - offset for edge in (tokens.start, tokens.stop))
            return slice(start - halo, stop + halo)

        row, column = self.scene_offset
        return window(self.task_rows(task), row), window(self.task_columns(task), column)
