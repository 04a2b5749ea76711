"""Labelled neighbourhoods of scenes and rows, in parts: what a regression is fitted on."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import HeadError
from nec.heads.labels import PHASE, LabelRaster
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
            None if raster is None else LabelRaster.over(embedding, raster, ignore_index=None)
            for raster in (labels, errors)
        ]
        if over[0] is None:
            raise HeadError("there are no labels", "pass y (y, x), NaN where nothing is known")
        return cls(embedding, over[0], over[1])

    def block(self, window: slice, edge: int, *, axis: int, offset: int = 0) -> NDArray[np.int64]:
        """Return the block of each token row (axis 0) or column of a window.

        Where label pixels are larger than tokens, blocks consist of whole ones: what one
        measurement says of its tokens stays together.

        Parameters
        ----------
        window : slice
            With start and stop.
        edge : int
            Of a block, tokens.
        offset : int
            Of the scene on the lattice that blocks are counted on, tokens.
        """
        if not self.labels.coarse:
            return (np.arange(window.start, window.stop, dtype=np.int64) + offset) // edge
        pixels = (self.labels.rows, self.labels.columns)[axis]
        whole = max(1, round(edge / self.tokens_of_label[axis]))
        return pixels[window] // whole

    @cached_property
    def tokens_of_label(self) -> tuple[float, float]:
        """Token rows and columns that a label pixel spans, on average; 1 where it is no larger."""
        if not self.labels.coarse:
            return 1.0, 1.0
        spans = []
        for index in (self.labels.rows, self.labels.columns):
            inside = index[index >= 0]
            spans.append(inside.size / max(1, np.unique(inside).size))
        return spans[0], spans[1]

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
        Token rows and columns from the origin of that lattice.
    dates : int
        How many of the scenes show the same tokens.
    """

    number: int
    offset: tuple[int, int]
    dates: int = 1

    @staticmethod
    def of(scenes: Sequence["LabelledScene"]) -> list["Ground"]:
        """Find which scenes lie on one lattice; without a CRS each has one of its own."""
        lattices = [
            Lattice.of(s.embedding) if crs_of(s.embedding) is not None else None for s in scenes
        ]
        found: list[Ground] = []
        for i, scene in enumerate(scenes):
            placed = Ground(i, (0, 0))
            for first in dict.fromkeys(ground.number for ground in found):
                offset = _offset(lattices[i], lattices[first])
                if offset is None or not _alike(scene.labels, scenes[first].labels, offset):
                    continue
                placed = Ground(first, offset)
                break
            found.append(placed)
        shown = [
            (g.number, g.offset, s.embedding.shape) for g, s in zip(found, scenes, strict=True)
        ]
        return [replace(g, dates=shown.count(key)) for g, key in zip(found, shown, strict=True)]


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


def _alike(one: LabelRaster, other: LabelRaster, offset: tuple[int, int]) -> bool:
    """Say whether blocks of two scenes' labels can be counted together."""
    if not one.coarse and not other.coarse:
        return True
    return one.coarse == other.coarse and all(
        _continues(mine, theirs, by)
        for mine, theirs, by in zip(
            (one.rows, one.columns), (other.rows, other.columns), offset, strict=True
        )
    )


def _continues(one: NDArray[np.int64], other: NDArray[np.int64], offset: int) -> bool:
    """Say whether tokens that two scenes share lie under the same label pixels."""
    first, last = max(0, -offset), min(len(one), len(other) - offset)
    if first >= last:
        return False
    return np.array_equal(one[first:last], other[first + offset : last + offset])


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
        Label pixels that they lie under, about, once for all dates; `count` of one date where
        those are no larger than tokens.
    """

    def __init__(
        self, scenes: Sequence[LabelledScene], *, kernel: int, folds: int, block: int, seed: int
    ) -> None:
        self.scenes, self.kernel = list(scenes), kernel
        self._ground = Ground.of(self.scenes)
        self._cache: list[Part] | None = []
        asked = block
        least = max((edge for scene in self.scenes for edge in scene.tokens_of_label), default=1.0)
        while True:
            blocks: set[tuple[int, int, int]] = set()
            self.count, self.measurements = 0, 0.0
            for scene, ground in zip(self.scenes, self._ground, strict=True):
                # Of several dates a measurement counts once.
                share = ground.dates * float(np.prod(scene.tokens_of_label))
                for rows, columns, values in scene.windows():
                    there = ~np.isnan(values)
                    self.count += int(there.sum())
                    self.measurements += float(there.sum()) / share
                    y = scene.block(rows, block, axis=0, offset=ground.offset[0])[:, None]
                    x = scene.block(columns, block, axis=1, offset=ground.offset[1])[None, :]
                    blocks |= {
                        (ground.number, int(b), int(a))
                        for b, a in set(
                            zip(
                                np.broadcast_to(y, there.shape)[there].tolist(),
                                np.broadcast_to(x, there.shape)[there].tolist(),
                                strict=True,
                            )
                        )
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
        by = scene.block(rows, self.block, axis=0, offset=ground.offset[0])
        bx = scene.block(columns, self.block, axis=1, offset=ground.offset[1])
        width = values.shape[1] * self.kernel**2 * len(block) * block.itemsize
        step = max(1, PART // width)
        for top in range(0, len(values), step):
            part = slice(top, top + step)
            there = ~np.isnan(values[part])
            if not there.any():
                continue
            near = block[:, top : top + there.shape[0] + 2 * margin]
            y, x = np.nonzero(there)
            places = zip(by[part][y].tolist(), bx[x].tolist(), strict=True)
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
