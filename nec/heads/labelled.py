"""Labelled neighbourhoods of scenes and rows, in parts: what a regression is fitted on."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import HeadError
from nec.heads.labels import PHASE, LabelRaster, has_tags, numbers_of
from nec.heads.rules import Rows
from nec.heads.windows import neighbour_rows, read_window, windows_of
from nec.sampling import Lattice, crs_of

logger = logging.getLogger(__name__)

# Bytes of rows that are kept between the passes over a scene; more are read again.
CACHE = 1 << 28
# Bytes of a part, about: where labels are dense, neighbourhoods are many times the window.
PART = 1 << 26


@dataclass(frozen=True, eq=False)
class Part:
    """Some labelled vectors.

    Attributes
    ----------
    rows : numpy.ndarray
        (n, d), of float32 or float64.
    values : numpy.ndarray
        (n,) float64 labels.
    errors : numpy.ndarray
        (n,) float64 standard errors; 0 where unknown.
    folds : numpy.ndarray
        (n,) the fold of each.
    """

    rows: Rows
    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    folds: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class LabelledScene:
    """An embedding with sparse labels and, where they are known, their standard errors."""

    embedding: xr.DataArray
    labels: LabelRaster
    errors: LabelRaster | None

    @classmethod
    def of(cls, embedding: xr.DataArray, labels: Any, errors: Any) -> "LabelledScene":
        """Lay labels and errors over an embedding (band, y, x).

        Raises
        ------
        HeadError
            The dimensions are others, or the labels do not fit; see `LabelRaster.over`.
        """
        if set(embedding.dims) != {"band", "y", "x"}:
            raise HeadError(
                f"the embedding has dimensions {embedding.dims}",
                "pass (band, y, x), or a list of such arrays with a list of label maps",
            )
        embedding = embedding.transpose("band", "y", "x")
        over = [
            None
            if raster is None
            else LabelRaster.over(
                embedding,
                numbers_of(raster, errors=raster is errors) if has_tags(raster) else raster,
                ignore_index=None,
            )
            for raster in (labels, errors)
        ]
        if over[0] is None:
            raise HeadError("there are no labels", "pass y (y, x), NaN where nothing is known")
        return cls(embedding, over[0], over[1])

    def units(self, rows: slice, columns: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column of what each token (y, x) of a window is measured with.

        Where tokens look label pixels up, of those: what one measurement says of its tokens
        stays together. Else of the tokens themselves.
        """
        if self.labels.coarse:
            return self.labels.pixel_of(rows, columns)
        y = np.arange(rows.start, rows.stop, dtype=np.int64)
        x = np.arange(columns.start, columns.stop, dtype=np.int64)
        row, column = np.broadcast_arrays(y[:, None], x)
        return row, column

    @property
    def lattice(self) -> Lattice | None:
        """The lattice that `units` are counted on; None without a CRS."""
        if self.labels.coarse:
            return self.labels.lattice
        return Lattice.of(self.embedding) if crs_of(self.embedding) is not None else None

    def windows(self) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
        """Give the windows that hold labels, with their labels, cut to where those lie."""
        for rows, columns in windows_of(self.embedding):
            values = self.labels.means(rows, columns)
            there = ~np.isnan(values)
            if not there.any():
                continue
            y, x = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
            inner = (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))
            yield (
                slice(rows.start + int(y[0]), rows.start + int(y[-1]) + 1),
                slice(columns.start + int(x[0]), columns.start + int(x[-1]) + 1),
                values[inner],
            )


@dataclass(frozen=True)
class Ground:
    """Where a scene lies among others.

    Attributes
    ----------
    number : int
        Of the lattice: scenes of one have blocks in common.
    offset : tuple of int
        Rows and columns from the origin of that lattice.
    size : tuple of float
        Token rows and columns of its units, see `LabelledScene.units`.
    """

    number: int
    offset: tuple[int, int]
    size: tuple[float, float]

    @staticmethod
    def of(scenes: Sequence["LabelledScene"]) -> list["Ground"]:
        """Find which scenes lie on one lattice; without a CRS each has one of its own."""
        lattices = [scene.lattice for scene in scenes]
        found: list[Ground] = []
        for i, scene in enumerate(scenes):
            placed = Ground(i, (0, 0), scene.labels.pixel_size)
            for first in dict.fromkeys(ground.number for ground in found):
                offset = _offset(lattices[i], lattices[first])
                if offset is None or scene.labels.coarse != scenes[first].labels.coarse:
                    continue
                placed = Ground(first, offset, scenes[first].labels.pixel_size)
                break
            found.append(placed)
        return found

    def blocks(self, units: NDArray[np.int64], edge: int) -> NDArray[np.int64]:
        """Return the block (2, n) of about `edge` tokens that each unit (2, n) lies in."""
        whole = np.array([[max(1, round(edge / size))] for size in self.size])
        found: NDArray[np.int64] = np.floor_divide(units, whole)
        return found


def _offset(one: Lattice | None, other: Lattice | None) -> tuple[int, int] | None:
    """Return by how many tokens a lattice lies behind another; None where it is not that one."""
    if one is None or other is None or one.crs != other.crs:
        return None
    steps, corners = np.array([one.step, other.step]), np.array([one.corner, other.corner])
    if not np.allclose(steps[0], steps[1], rtol=1e-6, atol=0):
        return None
    tokens = (corners[0] - corners[1]) / steps[1]
    whole = np.rint(tokens)
    if (abs(tokens - whole) > PHASE).any():
        return None
    return int(whole[0]), int(whole[1])


class SceneParts:
    """Labelled neighbourhoods of several scenes, dealt into folds by spatial blocks.

    Scenes of one lattice, as several dates of a place are, have their blocks in common: what lies
    together is held out together. That is known of scenes with a CRS.

    Parameters
    ----------
    scenes : sequence of LabelledScene
    kernel : int
        Edge of the neighbourhoods, tokens.
    folds : int
        At most; fewer where there are fewer blocks.
    block : int
        Edge of a block, tokens; halved until there are as many labelled blocks as folds. A label
        pixel is never cut.
    seed : int
        Of the folds.

    Attributes
    ----------
    count : int
        Labelled tokens.
    measurements : float
        Label pixels that they lie under, or tokens where those are no larger, once for all dates.
    """

    def __init__(
        self, scenes: Sequence[LabelledScene], *, kernel: int, folds: int, block: int, seed: int
    ) -> None:
        self.scenes, self.kernel = list(scenes), kernel
        self._ground = Ground.of(self.scenes)
        self._cache: list[Part] | None = []
        self.count = 0
        labelled: dict[int, list[NDArray[np.int64]]] = {}
        for scene, ground in zip(self.scenes, self._ground, strict=True):
            for rows, columns, values in scene.windows():
                there = ~np.isnan(values)
                self.count += int(there.sum())
                units = self._units(ground, scene, rows, columns)[:, there]
                labelled.setdefault(ground.number, []).append(np.unique(units, axis=1))
        # What several dates or scenes tell of one unit is one measurement.
        units_of = {n: np.unique(np.concatenate(u, axis=1), axis=1) for n, u in labelled.items()}
        self.measurements = float(sum(units.shape[1] for units in units_of.values()))
        asked = block
        least = max((edge for ground in self._ground for edge in ground.size), default=1.0)
        by_number = {ground.number: ground for ground in reversed(self._ground)}
        while True:
            blocks = {
                (number, *map(int, found))
                for number, units in units_of.items()
                for found in np.unique(by_number[number].blocks(units, block), axis=1).T
            }
            if len(blocks) >= folds or block <= least:
                break
            block //= 2
        self.block = block
        if block < asked:
            logger.info(
                "labels lie in few blocks of %d tokens: held-out blocks are of %d", asked, block
            )
        self.folds = min(folds, len(blocks))
        if 0 < self.folds < folds:
            logger.warning("labels lie in %d block(s) only: as many folds", self.folds)
        order = np.random.default_rng(seed).permutation(len(blocks))
        self._fold = {
            name: int(order[at] % max(self.folds, 1)) for at, name in enumerate(sorted(blocks))
        }

    @staticmethod
    def _units(
        ground: Ground, scene: LabelledScene, rows: slice, columns: slice
    ) -> NDArray[np.int64]:
        """Return the units (2, y, x) of a window on the lattice of its ground."""
        units = np.stack(scene.units(rows, columns))
        units += np.array(ground.offset)[:, None, None]
        return units

    def __iter__(self) -> Iterator[Part]:
        """Give all parts; rows are kept for the next time where they are few."""
        if self._cache:
            yield from self._cache
            return
        keep = self._cache is not None
        kept: list[Part] = []
        size = 0
        for scene, ground in zip(self.scenes, self._ground, strict=True):
            for rows, columns, values in scene.windows():
                for part in self._parts(ground, scene, rows, columns, values):
                    size += part.rows.nbytes
                    if keep and size <= CACHE:
                        kept.append(part)
                    else:
                        keep, kept = False, []
                    yield part
        self._cache = kept if keep else None

    def _parts(
        self,
        ground: Ground,
        scene: LabelledScene,
        rows: slice,
        columns: slice,
        values: NDArray[np.float64],
    ) -> Iterator[Part]:
        """Give the labelled neighbourhoods of a window, some token rows at a time."""
        margin = self.kernel // 2
        block = read_window(scene.embedding, rows, columns, margin)
        errors = np.zeros(values.shape)
        if scene.errors is not None:
            errors = np.nan_to_num(scene.errors.means(rows, columns))
        units = self._units(ground, scene, rows, columns)
        width = values.shape[1] * self.kernel**2 * len(block) * block.itemsize
        step = max(1, PART // width)
        for top in range(0, len(values), step):
            part = slice(top, top + step)
            there = ~np.isnan(values[part])
            if not there.any():
                continue
            near = block[:, top : top + there.shape[0] + 2 * margin]
            places = ground.blocks(units[:, part][:, there], self.block).T.tolist()
            yield Part(
                neighbour_rows(near, there, self.kernel),
                values[part][there],
                errors[part][there],
                np.array([self._fold[ground.number, b, a] for b, a in places]),
            )


class RowParts:
    """Labelled rows, dealt into folds by group, in memory.

    Parameters
    ----------
    rows, values, errors : numpy.ndarray
        (n, d), (n,) and (n,).
    groups : numpy.ndarray or None
        (n,) rows of one group stay in one fold; each row is one of its own without.
    folds, seed : int
        See `SceneParts`.
    measurements : int, optional
        How many of the rows tell something of their own; all by default.
    """

    def __init__(
        self,
        rows: Rows,
        values: NDArray[np.float64],
        errors: NDArray[np.float64],
        *,
        groups: NDArray[Any] | None,
        folds: int,
        seed: int,
        measurements: int | None = None,
    ) -> None:
        names = (
            np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
        )
        count = int(names.max()) + 1
        self.folds, self.count = min(folds, count), len(rows)
        self.measurements = float(self.count if measurements is None else measurements)
        order = np.random.default_rng(seed).permutation(count) % self.folds
        self._part = Part(rows, values, errors, order[names])

    def __iter__(self) -> Iterator[Part]:
        """Give the one part that there is."""
        yield self._part
