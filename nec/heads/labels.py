"""Label rasters: which label each token gets, whatever the resolution of the labels."""

import logging
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import HeadError
from nec.sampling import Lattice, crs_of

logger = logging.getLogger(__name__)

SAME_SIZE = 1.001  # label pixels up to this many tokens wide count as no coarser than tokens
# Bytes of computed label blocks that wait for the windows beside: chunks of labels may be larger
# than those of embeddings, and are not to be read once for each.
KEPT = 1 << 27
PHASE = 0.01  # of a token that coordinates of one lattice may be off


class LabelBlocks:
    """Windows of lazy labels, whose chunks are computed once for all windows that need them.

    Parameters
    ----------
    labels : dask.array.Array
        (rows, columns).
    """

    def __init__(self, labels: Any) -> None:
        self._labels = labels
        self._ends = [np.cumsum(sizes) for sizes in labels.chunks]
        self._kept: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[Any]:
        """Compute a window; slices with start and stop."""
        spans = [
            range(
                int(np.searchsorted(ends, part.start, "right")),
                int(np.searchsorted(ends, part.stop, "left")) + 1,
            )
            for ends, part in zip(self._ends, window, strict=True)
        ]
        rows, columns = window
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), self._labels.dtype)
        if not out.size:
            return out
        for i in spans[0]:
            for j in spans[1]:
                block = self._block(i, j)
                top, left = self._ends[0][i] - block.shape[0], self._ends[1][j] - block.shape[1]
                y = slice(max(rows.start, top), min(rows.stop, top + block.shape[0]))
                x = slice(max(columns.start, left), min(columns.stop, left + block.shape[1]))
                part = block[_moved(y, top), _moved(x, left)]
                out[_moved(y, rows.start), _moved(x, columns.start)] = part
        return out

    def _block(self, row: int, column: int) -> NDArray[Any]:
        found = self._kept.pop((row, column), None)
        if found is None:
            found = np.asarray(self._labels.blocks[row, column])
        self._kept[row, column] = found
        while len(self._kept) > 1 and sum(b.nbytes for b in self._kept.values()) > KEPT:
            self._kept.popitem(last=False)
        return found


def _moved(window: slice, start: int) -> slice:
    return slice(window.start - start, window.stop - start)


@dataclass(frozen=True)
class LabelRaster:
    """Labels laid over the tokens of one embedding.

    Parameters
    ----------
    values : xarray.DataArray or numpy.ndarray
        (rows, columns) of the labels, possibly lazy.
    rows, columns : numpy.ndarray
        Where `coarse` is False: the token row (column) of each label row (column), -1 outside.
        Where `coarse` is True: the label row (column) of each token row (column), -1 outside.
    coarse : bool
        Label pixels are larger than tokens.
    ignored : tuple
        Values that are no label; NaN never is one.
    """

    values: xr.DataArray | NDArray[Any]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    coarse: bool
    ignored: tuple[Any, ...]

    @classmethod
    def over(
        cls, embedding: xr.DataArray, labels: xr.DataArray | NDArray[Any], *, ignore_index: Any
    ) -> "LabelRaster":
        """Lay labels over the tokens of an embedding.

        Labels with a CRS are matched by coordinate, in any phase and resolution; those in another
        CRS are brought over first, by the nearest neighbour, which is logged. Others are matched
        by shape, which must be that of the tokens or an integer multiple.

        Parameters
        ----------
        embedding : xarray.DataArray
            (band, y, x).
        labels : xarray.DataArray or numpy.ndarray
            (y, x); other dimensions of length one are dropped.
        ignore_index : int, str or None
            The value that means "no label"; a DataArray's own nodata value is one too.

        Raises
        ------
        HeadError
            Shapes or coordinates do not match, or labels cannot be brought over.
        """
        ignored = () if ignore_index is None else (ignore_index,)
        if isinstance(labels, xr.DataArray):
            labels = _plane(labels)
            if crs_of(labels) is not None and crs_of(embedding) is not None:
                return cls._by_coordinate(embedding, labels, ignored)
            _check_no_contradiction(embedding, labels)
            ignored = _with_nodata(labels, ignored)
        else:
            labels = np.asarray(labels)
        return cls._by_shape(embedding, labels, ignored)

    @classmethod
    def _by_coordinate(
        cls, embedding: xr.DataArray, labels: xr.DataArray, ignored: tuple[Any, ...]
    ) -> "LabelRaster":
        tokens, pixels = Lattice.of(embedding), Lattice.of(labels)
        if not _same_crs(tokens.crs, pixels.crs):
            labels = _reprojected(labels, tokens, ignored)
            pixels = Lattice.of(labels)
        sizes = [abs(p / t) for p, t in zip(pixels.step, tokens.step, strict=True)]
        coarse = max(sizes) > SAME_SIZE
        inner, outer = (embedding, pixels) if coarse else (labels, tokens)
        rows = outer.rows(np.asarray(inner["y"].values, dtype=np.float64))
        columns = outer.columns(np.asarray(inner["x"].values, dtype=np.float64))
        if (rows < 0).all() or (columns < 0).all():
            raise HeadError(
                "the labels and the embedding do not overlap", "check their coordinates and CRS"
            )
        return cls(labels, rows, columns, coarse, _with_nodata(labels, ignored))

    @classmethod
    def _by_shape(
        cls,
        embedding: xr.DataArray,
        labels: xr.DataArray | NDArray[Any],
        ignored: tuple[Any, ...],
    ) -> "LabelRaster":
        tokens = (embedding.sizes["y"], embedding.sizes["x"])
        if len(labels.shape) != 2 or 0 in labels.shape:
            raise HeadError(f"the labels have shape {labels.shape}", f"pass (y, x), as {tokens}")
        patch = labels.shape[0] // tokens[0]
        if patch < 1 or labels.shape != (tokens[0] * patch, tokens[1] * patch):
            raise HeadError(
                f"labels of shape {labels.shape} do not fit {tokens} tokens, nor a multiple",
                "give them coordinates and a CRS (labels.rio.write_crs), to match by coordinate",
            )
        rows, columns = (np.arange(size, dtype=np.int64) // patch for size in labels.shape)
        return cls(labels, rows, columns, False, ignored)

    def window(self, rows: slice, columns: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Labels of a window of tokens: the majority where several pixels fall into one.

        Ties go to the smallest label.

        Parameters
        ----------
        rows, columns : slice
            Token rows and columns, with start and stop.

        Returns
        -------
        tuple of numpy.ndarray
            (y, x) labels and (y, x) bool, False where a token has none.
        """
        if self.coarse:
            return self._looked_up(rows, columns)
        values, row, column = self._pixels(rows, columns)
        valid, shape = self._valid(values), _shape(rows, columns)
        if values.shape == shape and _is_range(row) and _is_range(column):
            return values, valid
        classes, codes = np.unique(values[valid], return_inverse=True)
        if not classes.size:
            return np.zeros(shape, values.dtype), np.zeros(shape, bool)
        token = (row[:, None] * shape[1] + column[None, :])[valid]
        votes = np.bincount(
            token * classes.size + codes, minlength=shape[0] * shape[1] * classes.size
        ).reshape(*shape, classes.size)
        return classes[votes.argmax(axis=-1)], np.asarray(votes.any(axis=-1))

    def means(self, rows: slice, columns: slice) -> NDArray[np.float64]:
        """Numbers of a window of tokens: the mean where several pixels fall into one.

        Parameters
        ----------
        rows, columns : slice
            Token rows and columns, with start and stop.

        Returns
        -------
        numpy.ndarray
            (y, x) float64, NaN where a token has none.
        """
        if self.coarse:
            values, valid = self._looked_up(rows, columns)
            return np.where(valid, values, np.nan).astype(np.float64)
        values, row, column = self._pixels(rows, columns)
        values = values.astype(np.float64, copy=False)
        valid, shape = self._valid(values), _shape(rows, columns)
        token = (row[:, None] * shape[1] + column[None, :])[valid]
        size = shape[0] * shape[1]
        count = np.bincount(token, minlength=size)
        total = np.bincount(token, weights=values[valid], minlength=size)
        return np.where(count, total / np.maximum(count, 1), np.nan).reshape(shape)

    def _pixels(
        self, rows: slice, columns: slice
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
        """Return the label pixels of a window of tokens, and each one's row and column in it."""
        inside_y, inside_x = _span(self.rows, rows), _span(self.columns, columns)
        return (
            self._read(inside_y, inside_x),
            self.rows[inside_y] - rows.start,
            self.columns[inside_x] - columns.start,
        )

    @cached_property
    def _blocks(self) -> LabelBlocks | None:
        lazy = isinstance(self.values, xr.DataArray) and self.values.chunks is not None
        return LabelBlocks(self.values.data) if lazy else None

    def _read(self, rows: slice, columns: slice) -> NDArray[Any]:
        if self._blocks is not None:
            return self._blocks[rows, columns]
        if rows.stop <= rows.start or columns.stop <= columns.start:
            # rioxarray reads no empty window of a file
            return np.empty(_shape(rows, columns), self.values.dtype)
        return np.asarray(self.values[rows, columns])

    def _looked_up(self, rows: slice, columns: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        row, column = self.rows[rows], self.columns[columns]
        shape = (row.size, column.size)
        if (row < 0).all() or (column < 0).all():
            return np.zeros(shape, self.values.dtype), np.zeros(shape, bool)
        top, left = row[row >= 0].min(), column[column >= 0].min()
        part = self._read(slice(top, row.max() + 1), slice(left, column.max() + 1))
        values = part[np.ix_(np.maximum(row - top, 0), np.maximum(column - left, 0))]
        return values, self._valid(values) & (row >= 0)[:, None] & (column >= 0)[None, :]

    def valid(self) -> NDArray[np.bool_]:
        """Which of all label pixels hold a label; reads them."""
        return self._valid(np.asarray(self.values))

    def _valid(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        return is_label(values, self.ignored)


def is_label(values: NDArray[Any], ignored: tuple[Any, ...]) -> NDArray[np.bool_]:
    """Which values are labels: neither ignored nor NaN (None counts as NaN)."""
    valid: NDArray[np.bool_] = np.ones(values.shape, bool)
    if values.dtype.kind in "fO":
        valid &= values == values  # noqa: PLR0124  (NaN differs from itself)
    if values.dtype.kind == "O":
        valid &= np.asarray(values != None, dtype=bool)  # noqa: E711  (element by element)
    for value in ignored:
        # A number never equals a string: comparing them would only warn.
        if isinstance(value, str) == (values.dtype.kind in "UOT"):
            valid &= np.asarray(values != value, dtype=bool)
    return valid


def _with_nodata(labels: xr.DataArray, ignored: tuple[Any, ...]) -> tuple[Any, ...]:
    nodata = labels.rio.nodata
    return ignored if nodata is None else (*ignored, nodata)


def _plane(labels: xr.DataArray) -> xr.DataArray:
    extra = [dim for dim in labels.dims if dim not in ("y", "x") and labels.sizes[dim] == 1]
    labels = labels.squeeze(extra, drop=True) if extra else labels
    if set(labels.dims) != {"y", "x"}:
        raise HeadError(f"the labels have dimensions {labels.dims}", "pass dimensions y and x")
    return labels.transpose("y", "x")


def _reprojected(labels: xr.DataArray, tokens: Lattice, ignored: tuple[Any, ...]) -> xr.DataArray:
    """Bring the part of labels that lies under tokens to their CRS, by the nearest neighbour."""
    import rioxarray  # noqa: F401 - registers .rio
    from rasterio.enums import Resampling
    from rasterio.warp import transform_bounds
    from rioxarray.exceptions import NoDataInBounds, RioXarrayError

    theirs, ours = crs_of(labels), tokens.crs
    if labels.dtype.kind not in "iuf":
        raise HeadError(
            f"the labels are in {_short(theirs)}, the embedding in {_short(ours)}, and labels of "
            f"dtype {labels.dtype} cannot be brought over",
            "give numbers, or labels in the CRS of the embedding",
        )
    ends = [
        sorted((corner, corner + step * count))
        for corner, step, count in zip(tokens.corner, tokens.step, tokens.shape, strict=True)
    ]
    (bottom, top), (left, right) = ends
    try:
        box = transform_bounds(ours, theirs, left, bottom, right, top)
        if not np.isfinite(box).all():  # so far away that their CRS does not reach here
            raise NoDataInBounds(f"no place in {_short(theirs)}")
        near = labels.rio.clip_box(*box)
    except RioXarrayError as error:  # nothing inside, or a single row
        raise HeadError(
            f"labels in {_short(theirs)} and an embedding in {_short(ours)} do not overlap",
            "check their coordinates and CRS",
        ) from error
    nodata = labels.rio.nodata
    if nodata is None and labels.dtype.kind == "f":
        nodata = np.nan
    if nodata is None:
        info = np.iinfo(labels.dtype)
        fits = [v for v in ignored if not isinstance(v, str) and info.min <= v <= info.max]
        # Unlabelled pixels come in at the edges of what is turned: a value that no label has.
        if not fits and labels.dtype.itemsize < 4:
            near, info = near.astype(np.int32), np.iinfo(np.int32)
        nodata = fits[0] if fits else int(info.max)
    found = near.rio.reproject(ours, resampling=Resampling.nearest, nodata=nodata)
    logger.warning(
        "the labels are in %s: reprojected to %s by the nearest neighbour",
        _short(theirs),
        _short(ours),
    )
    brought: xr.DataArray = found.rio.write_nodata(nodata)
    return brought


def _check_no_contradiction(embedding: xr.DataArray, labels: xr.DataArray) -> None:
    for dim in ("y", "x"):
        if dim not in embedding.coords or dim not in labels.coords:
            continue
        theirs, ours = embedding[dim].values, labels[dim].values
        patch, left = divmod(ours.size, theirs.size)
        if left or not patch:
            continue  # refused by shape
        # Of label pixels within a token, the middle.
        ours = ours.reshape(-1, patch).mean(axis=1)
        step = abs(theirs[-1] - theirs[0]) / max(theirs.size - 1, 1)
        if not np.allclose(theirs, ours, rtol=0, atol=PHASE * (step or 1)):
            raise HeadError(
                f"the labels' coordinate {dim!r} is not that of the embedding, and without a CRS "
                "on both they are matched by shape",
                "write the CRS (rio.write_crs) to match by coordinate, or drop the coordinates",
            )


def _shape(rows: slice, columns: slice) -> tuple[int, int]:
    return rows.stop - rows.start, columns.stop - columns.start


def _span(index: NDArray[np.int64], window: slice) -> slice:
    inside = np.flatnonzero((index >= window.start) & (index < window.stop))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def _is_range(index: NDArray[np.int64]) -> bool:
    return bool((index == np.arange(index.size)).all())


def _same_crs(one: Any, other: Any) -> bool:
    if one == other:
        return True
    code = one.to_epsg()
    return code is not None and code == other.to_epsg()


def _short(crs: Any) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs)[:60]
