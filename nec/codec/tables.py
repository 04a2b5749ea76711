"""Integer frequency tables of 16 bits: fitted from counts, packed for `zarr.json`."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.errors import ChunkError

PRECISION = 16
TOTAL = 1 << PRECISION


def quantise_frequencies(weights: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round rows of weights to integer frequencies of at least 1 that sum to 2**16.

    Parameters
    ----------
    weights : ndarray of shape (table, symbol), float64
        Non-negative weights; a row of zeros becomes uniform.

    Returns
    -------
    ndarray of shape (table, symbol), uint16
    """
    weights = np.where(weights.sum(1, keepdims=True) > 0, weights, 1.0)
    symbols = weights.shape[1]
    share = weights / weights.sum(1, keepdims=True) * (TOTAL - symbols)
    frequency = np.floor(share).astype(np.int64) + 1
    # The remainder of the rounding goes to the largest fractions, first symbol first.
    missing = TOTAL - frequency.sum(1)
    order = np.argsort(-(share - np.floor(share)), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(symbols)[None], axis=1)
    whole: NDArray[np.uint16] = (frequency + (rank < missing[:, None])).astype(np.uint16)
    return whole


def cumulate(frequency: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Return cumulative frequencies (table, symbol + 1) from 0 to 2**16.

    Raises
    ------
    ChunkError
        If a frequency is zero or a row does not sum to 2**16.
    """
    cumulative = np.zeros((frequency.shape[0], frequency.shape[1] + 1), np.uint32)
    np.cumsum(frequency, axis=1, dtype=np.uint32, out=cumulative[:, 1:])
    wrong = np.flatnonzero((cumulative[:, -1] != TOTAL) | (frequency == 0).any(axis=1))
    if len(wrong):
        raise ChunkError(
            f"frequency table {wrong[0]} sums to {cumulative[wrong[0], -1]}, not {TOTAL}, "
            "or has a zero",
            "the codec's configuration is damaged: fetch zarr.json again",
        )
    return cumulative


def pack(array: NDArray[np.generic]) -> str:
    """Pack an array of integers into base64 of its little-endian bytes."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")


def unpack(text: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Undo `pack`.

    Raises
    ------
    ChunkError
        If the text is no base64 or holds another number of values.
    """
    try:
        raw = base64.b64decode(text, validate=True)
        values = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape)
    except (ValueError, TypeError) as error:
        raise ChunkError(
            f"an array of the codec's configuration does not hold {shape} values of {dtype}",
            "fetch zarr.json again",
        ) from error
    return values.astype(dtype)
