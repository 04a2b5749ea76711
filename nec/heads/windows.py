"""Windows of an embedding with a margin: what a head sees that looks at neighbouring tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.heads.rules import Rows

# Edge of a window, tokens: reading a margin around it costs little then, and it fits in memory.
EDGE = 512
# Edge of the windows that networks learn from, tokens; even in a pyramid.
WINDOW = 32

Blocks = NDArray[np.floating[Any]]


def windows_of(embedding: xr.DataArray) -> Iterator[tuple[slice, slice]]:
    """Cut a (band, y, x) embedding into windows of whole chunks, about `EDGE` tokens wide."""
    for rows in _cuts(embedding, "y"):
        for columns in _cuts(embedding, "x"):
            yield rows, columns


def read_window(embedding: xr.DataArray, rows: slice, columns: slice, margin: int) -> Blocks:
    """Read a window and a margin around it: NaN where that reaches beyond the scene.

    Parameters
    ----------
    embedding : xarray.DataArray
        (band, y, x), possibly lazy.
    rows, columns : slice
        With start and stop.
    margin : int
        Tokens.

    Returns
    -------
    numpy.ndarray
        (band, rows + 2 margin, columns + 2 margin).
    """
    inner, pad = [], [(0, 0)]
    for window, size in zip((rows, columns), embedding.shape[1:], strict=True):
        start, stop = max(window.start - margin, 0), min(window.stop + margin, size)
        inner.append(slice(start, stop))
        pad.append((start - (window.start - margin), window.stop + margin - stop))
    block = np.asarray(embedding.data[:, inner[0], inner[1]])
    return np.pad(block, pad, constant_values=np.nan) if any(map(any, pad)) else block


def neighbour_rows(block: Blocks, chosen: NDArray[np.bool_], kernel: int) -> Rows:
    """Vectors of tokens beside those of their neighbours.

    Parameters
    ----------
    block : numpy.ndarray
        (band, y + kernel - 1, x + kernel - 1).
    chosen : numpy.ndarray
        (y, x) bool: the tokens to take.
    kernel : int
        Edge of the neighbourhood, odd.

    Returns
    -------
    numpy.ndarray
        (n, kernel * kernel * band), row by row of the neighbourhood. A missing neighbour counts
        as the token itself; a missing token has NaN.
    """
    y, x = np.nonzero(chosen)
    parts = [block[:, y + dy, x + dx] for dy in range(kernel) for dx in range(kernel)]
    centre = parts[len(parts) // 2]
    filled = [np.where(np.isnan(part).any(0), centre, part) for part in parts]
    rows: Rows = np.concatenate(filled).T
    return rows


def project(block: Blocks, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply every token by every weight vector of a kernel.

    Parameters
    ----------
    block : numpy.ndarray
        (band, y, x).
    weights : numpy.ndarray
        (kernel, kernel, band) float64.

    Returns
    -------
    numpy.ndarray
        (kernel * kernel, y, x) float64, NaN where the token is missing. In double precision, so
        that a map does not depend on how it is chunked.
    """
    flat = weights.reshape(-1, weights.shape[-1])
    return np.tensordot(flat, block.astype(np.float64, copy=False), axes=(1, 0))


def shifted_sum(planes: Blocks) -> NDArray[np.float64]:
    """Add each token's neighbours' products up: a correlation with the kernel of `project`.

    Parameters
    ----------
    planes : numpy.ndarray
        (kernel * kernel, y + kernel - 1, x + kernel - 1).

    Returns
    -------
    numpy.ndarray
        (y, x) float64, NaN where the token is missing; a missing neighbour counts as the token
        itself.
    """
    kernel = round(len(planes) ** 0.5)
    height, width = (s - kernel + 1 for s in planes.shape[1:])
    middle = kernel // 2
    total = np.zeros((height, width))
    for at, plane in enumerate(planes):
        dy, dx = divmod(at, kernel)
        near = plane[dy : dy + height, dx : dx + width]
        own = plane[middle : middle + height, middle : middle + width]
        total += np.where(np.isnan(near), own, near)
    return total


def apply_windows(
    embedding: xr.DataArray,
    function: Callable[[Blocks], NDArray[Any]],
    *,
    margin: int,
    before: Callable[[Blocks], Blocks] | None = None,
    scale: int = 1,
    tile: int = 1,
    leading: tuple[int, ...] = (),
    dtype: Any = np.float32,
) -> Any:
    """Apply a function of windows with margins to a whole embedding.

    Parameters
    ----------
    embedding : xarray.DataArray
        (band, y, x); the result is lazy where it is.
    function : callable
        (band, y + 2 margin, x + 2 margin) -> (*leading, y * scale, x * scale).
    margin : int
        Tokens; NaN beyond the scene.
    before : callable, optional
        (band, y, x) -> (other, y, x), token by token, before margins are put on: what waits for
        its neighbours in memory is then smaller.
    scale : int
        Pixels a token along each side of the result.
    tile : int
        Tokens: every window begins at a multiple of it. A divisor of `EDGE`.
    leading : tuple of int
        Sizes of dimensions before y and x in the result.
    dtype : dtype
        Of the result.

    Returns
    -------
    numpy.ndarray or dask.array.Array
        (*leading, y * scale, x * scale).
    """
    if embedding.chunks is None:
        height, width = embedding.shape[1:]
        out = np.empty((*leading, height * scale, width * scale), dtype)
        for rows, columns in windows_of(embedding):
            y, x = (slice(w.start * scale, w.stop * scale) for w in (rows, columns))
            block = read_window(embedding, rows, columns, margin)
            out[..., y, x] = function(block if before is None else before(block))
        return out
    import dask.array as da

    aligned = {a: _aligned(embedding.chunks[a], tile, margin) for a in (1, 2)} if tile > 1 else {}
    data = embedding.data.rechunk({0: -1, **aligned})
    if before is not None:
        count = len(before(np.zeros((embedding.shape[0], 1, 1))))
        chunks = ((count,), *data.chunks[1:])
        data = data.map_blocks(before, dtype=np.float64, chunks=chunks, meta=_empty(3, np.float64))
    if margin > min(data.shape[1:]):
        # dask makes no overlap of an array that is smaller than it
        around = ((0, 0), (margin, margin), (margin, margin))
        data = da.pad(data, around, constant_values=np.nan).rechunk(-1)
    elif margin:
        depth = {0: 0, 1: margin, 2: margin}
        # of chunks smaller than the margin dask makes larger ones
        data = da.overlap.overlap(data, depth, boundary={0: "none", 1: np.nan, 2: np.nan})
    inner = [tuple((c - 2 * margin) * scale for c in chunks) for chunks in data.chunks[1:]]
    if leading:
        chunks = (*((size,) for size in leading), *inner)
        return data.map_blocks(function, dtype=dtype, chunks=chunks, meta=_empty(3, dtype))
    return data.map_blocks(
        function, dtype=dtype, chunks=tuple(inner), drop_axis=0, meta=_empty(2, dtype)
    )


def _aligned(chunks: tuple[int, ...], tile: int, least: int) -> tuple[int, ...]:
    """Move the borders of chunks up to multiples of a tile; none becomes smaller than `least`."""
    stops, size = [0], sum(chunks)
    for stop in np.cumsum(chunks).tolist():
        border = min(-(-stop // tile) * tile, size)
        if border > stops[-1] and (border == size or size - border >= least):
            stops.append(border)
    return tuple(np.diff(stops).tolist())


def _empty(dimensions: int, dtype: Any) -> NDArray[Any]:
    return np.empty((0,) * dimensions, dtype)


def _cuts(array: xr.DataArray, dim: str) -> list[slice]:
    size = array.sizes[dim]
    chunks = array.chunksizes.get(dim) or (EDGE,) * -(-size // EDGE)
    cuts, start, stop = [], 0, 0
    for chunk in chunks:
        if stop > start and stop + chunk - start > EDGE:
            cuts.append(slice(start, stop))
            start = stop
        stop = min(stop + chunk, size)
    cuts.append(slice(start, stop))
    return cuts
