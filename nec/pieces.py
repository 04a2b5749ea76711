"""Samples of features, as pieces that a rotation and a coding are fitted to."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from nec.errors import CompressorError

# Edge of the pieces that a sample is cut into: an inner chunk of a store.
CHUNK = 128


def pieces_of(
    sample: ArrayLike | xr.DataArray | Sequence[ArrayLike],
) -> list[NDArray[np.float32]]:
    """Return the sample as arrays (sample, y, x, feature) no wider than a chunk.

    Vectors without neighbours (n, feature) are as many samples of one.
    """
    arrays = sample if isinstance(sample, list | tuple) else [sample]
    pieces = []
    for array in arrays:
        if isinstance(array, xr.DataArray):
            known = ("sample", "time", "y", "x", "band", "feature")
            array = array.transpose(*(d for d in known if d in array.dims))  # noqa: PLW2901
        values = np.asarray(array, np.float32)
        if values.ndim not in (2, 3, 4):
            raise CompressorError(
                f"a sample has shape {values.shape}", "pass ([n,] y, x, feature) or (n, feature)"
            )
        if values.ndim == 2:
            values = values[:, None, None]
        values = values if values.ndim == 4 else values[None]
        pieces += [
            values[:, y : y + CHUNK, x : x + CHUNK]
            for y in range(0, values.shape[1], CHUNK)
            for x in range(0, values.shape[2], CHUNK)
        ]
    return pieces


def kept_lengths(
    pieces: list[NDArray[np.float32]], basis: NDArray[np.float32]
) -> list[NDArray[np.float32]] | None:
    """Return which part of each valid vector's length the basis holds; None where it holds all."""
    if basis.shape[1] == len(basis):
        return None
    parts = []
    for piece in pieces:
        values = vectors_of(piece)
        values = values[~np.isnan(values).any(1)]
        length = np.linalg.norm(values, axis=1)
        held = np.linalg.norm(values @ basis, axis=1)
        parts.append(np.where(length > 0, held / np.where(length > 0, length, 1), 1))
    return parts


def vectors_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vectors of a piece, (n, feature)."""
    return values.reshape(-1, values.shape[-1])


def valid_vectors(
    pieces: Sequence[NDArray[np.float32]], features: int | None = None
) -> NDArray[np.float32]:
    """Return the vectors of pieces (sample, y, x, feature) that are not missing: (n, feature).

    Raises
    ------
    CompressorError
        If there is none, or pieces are of different features, or of others than `features`.
    """
    widths = {p.shape[-1] for p in pieces} | (set() if features is None else {features})
    if len(widths) > 1:
        raise CompressorError(
            f"samples, or a sample and a basis, of {' and '.join(map(str, sorted(widths)))} "
            "features",
            "give those of one model",
        )
    parts = [v[~np.isnan(v).any(1)] for v in map(vectors_of, pieces)]
    if not sum(map(len, parts)):
        raise CompressorError("a sample holds no valid vector", "NaN marks missing ones")
    return np.concatenate(parts)


def cells_of(scenes: ArrayLike | Sequence[ArrayLike]) -> list[NDArray[np.float32]]:
    """Return pooled features as arrays (sample, y, x, feature); lone vectors as 1 x 1."""
    arrays = scenes if isinstance(scenes, list | tuple) else [scenes]
    cells = []
    for array in arrays:
        cells += pieces_of(array)
    return cells


def pooled(pieces: list[NDArray[np.float32]], cell: int = 16) -> list[NDArray[np.float32]]:
    """Return means of cells of the pieces over their valid vectors, NaN where there is none."""
    found = []
    for values in pieces:
        n, h, w, d = values.shape
        ch, cw = min(cell, h), min(cell, w)
        cut = values[:, : h - h % ch, : w - w % cw]
        cut = np.where(np.isnan(cut).any(-1, keepdims=True), np.nan, cut)
        cells = cut.reshape(n, h // ch, ch, w // cw, cw, d)
        count = (~np.isnan(cells)).sum((2, 4))
        means = np.nansum(cells, (2, 4)) / np.where(count > 0, count, np.nan)
        found.append(means.astype(np.float32))
    return found
