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
from nec.heads.reprojection import HALF, Centres, box_of, reprojected, same_crs, short_name
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
        Empty with `centres`.
    coarse : bool
        Tokens look their label pixel up by their centres: those are larger.
    ignored : tuple
        Values that are no label; NaN never is one.
    pixel_size : tuple of float
        Token rows and columns that a label pixel spans; 1 where it is looked up by none.
    lattice : Lattice or None
        Of the labels, where tokens look them up.
    centres : Centres or None
        Where labels that tokens look up are in another CRS.
    """

    values: xr.DataArray | NDArray[Any]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    coarse: bool
    ignored: tuple[Any, ...]
    pixel_size: tuple[float, float] = (1.0, 1.0)
    lattice: Lattice | None = None
    centres: Centres | None = None

    @classmethod
    def over(
        cls, embedding: xr.DataArray, labels: xr.DataArray | NDArray[Any], *, ignore_index: Any
    ) -> "LabelRaster":
        """Lay labels over the tokens of an embedding.

        Labels with a CRS are matched by coordinate, in any phase and resolution. In another CRS
        those of half a token and more are looked up at the centres of tokens, finer ones are
        brought over first, by the nearest neighbour; which is logged. Others are matched by
        shape, which must be that of the tokens or an integer multiple.

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
        if not same_crs(tokens.crs, pixels.crs):
            centres = Centres.of(embedding, pixels.crs)
            size = centres.pixel_size(pixels, tokens.step)
            if max(size) > HALF:  # not where it is NaN, too far away
                box_of(tokens, pixels)
                logger.warning(
                    "the labels are in %s: looked up at the centres of tokens in %s",
                    short_name(pixels.crs),
                    short_name(tokens.crs),
                )
                none = np.empty(0, np.int64)
                kept = _with_nodata(labels, ignored)
                return cls(labels, none, none, True, kept, size, pixels, centres)
            labels = reprojected(labels, tokens, pixels, ignored)
            pixels = Lattice.of(labels)
        height, width = (abs(p / t) for p, t in zip(pixels.step, tokens.step, strict=True))
        coarse = max(height, width) > SAME_SIZE
        inner, outer = (embedding, pixels) if coarse else (labels, tokens)
        rows = outer.rows(np.asarray(inner["y"].values, dtype=np.float64))
        columns = outer.columns(np.asarray(inner["x"].values, dtype=np.float64))
        if (rows < 0).all() or (columns < 0).all():
            raise HeadError(
                "the labels and the embedding do not overlap", "check their coordinates and CRS"
            )
        kept = _with_nodata(labels, ignored)
        if not coarse:
            return cls(labels, rows, columns, False, kept)
        return cls(labels, rows, columns, True, kept, (height, width), pixels)

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
        # Of each token and class the votes, the most first, the smallest class before others.
        pairs, votes = np.unique(token * classes.size + codes, return_counts=True)
        token, code = np.divmod(pairs, classes.size)
        order = np.lexsort((code, -votes, token))
        there, first = np.unique(token[order], return_index=True)
        found, known = np.zeros(shape, classes.dtype), np.zeros(shape, bool)
        found.reshape(-1)[there] = classes[code[order][first]]
        known.reshape(-1)[there] = True
        return found, known

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

    def pixel_of(self, rows: slice, columns: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the label row and column that each token (y, x) of a window looks up, or -1."""
        if self.centres is not None and self.lattice is not None:
            return self.centres.index(self.lattice, rows, columns)
        row, column = np.broadcast_arrays(self.rows[rows][:, None], self.columns[columns])
        return row, column

    def _looked_up(self, rows: slice, columns: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        row, column = self.pixel_of(rows, columns)
        inside = (row >= 0) & (column >= 0)
        if not inside.any():
            return np.zeros(row.shape, self.values.dtype), inside
        top, left = int(row[inside].min()), int(column[inside].min())
        stop = int(row[inside].max()) + 1, int(column[inside].max()) + 1
        part = self._read(slice(top, stop[0]), slice(left, stop[1]))
        values = part[np.where(inside, row - top, 0), np.where(inside, column - left, 0)]
        return values, self._valid(values) & inside

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


def has_tags(labels: Any) -> bool:
    """Say whether a raster's tags bring its numbers to another unit; see `numbers_of`."""
    attrs = labels.attrs if isinstance(labels, xr.DataArray) else {}
    tags = (attrs.get("scale_factor"), 1), (attrs.get("add_offset"), 0)
    return any(tag is not None and tag != nothing for tag, nothing in tags)


def numbers_of(
    labels: xr.DataArray, ignore: float | None = None, *, errors: bool = False
) -> xr.DataArray:
    """Bring numbers to float64 in their unit, by the tags of their raster; NaN for what is none.

    Errors have no offset.
    """
    import rioxarray  # noqa: F401 - registers .rio

    values = labels.astype("float64")
    for nothing in (labels.rio.nodata, ignore):
        if nothing is not None:
            # In their own precision: float32 has no 0.1.
            own = nothing if labels.dtype.kind != "f" else labels.dtype.type(nothing)
            values = values.where(labels != own)
    scale, offset = (labels.attrs.get(tag) for tag in ("scale_factor", "add_offset"))
    values = values * (1.0 if scale is None else scale)
    if offset is not None and not errors:
        values = values + offset
    return values.drop_attrs(deep=False).rio.write_nodata(np.nan)  # type: ignore[no-any-return]


def _with_nodata(labels: xr.DataArray, ignored: tuple[Any, ...]) -> tuple[Any, ...]:
    nodata = labels.rio.nodata
    return ignored if nodata is None else (*ignored, nodata)


def _plane(labels: xr.DataArray) -> xr.DataArray:
    extra = [dim for dim in labels.dims if dim not in ("y", "x") and labels.sizes[dim] == 1]
    labels = labels.squeeze(extra, drop=True) if extra else labels
    if set(labels.dims) != {"y", "x"}:
        raise HeadError(f"the labels have dimensions {labels.dims}", "pass dimensions y and x")
    return labels.transpose("y", "x")


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
