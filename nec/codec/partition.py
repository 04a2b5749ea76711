"""How a chunk is cut into blocks, from its validity mask alone.

The rectangle that holds the chunk's valid tokens is cut into blocks of nearly equal size, no
larger than the transform's; of each block, the box that holds its valid tokens is transformed.
So margins and nodata cost no coefficients.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.contexts import dc_gain
from nec.codec.model import Blocks

# Tokens.
_LARGEST_KEPT = 1 << 16


class Partition(NamedTuple):
    """Blocks of a chunk.

    Attributes
    ----------
    rows, columns : ndarray of shape (n + 1,), int64
        Edges of the blocks, tokens; empty where nothing is valid.
    box : ndarray of shape (sample, row, column, 4), int64
        First and last + 1 token of each block's box: y0, y1, x0, x1; zeros where a block holds
        nothing.
    edge : int
        The smallest power of two that no box is larger than.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    box: NDArray[np.int64]
    edge: int

    @property
    def occupied(self) -> NDArray[np.bool_]:
        """Whether a block holds a valid token, shape (sample, row, column)."""
        occupied: NDArray[np.bool_] = self.box[..., 1] > 0
        return occupied


def _edges(at: NDArray[np.int64], block: int) -> NDArray[np.int64]:
    if not len(at):
        return np.zeros(1, np.int64)
    first, size = int(at[0]), int(at[-1]) + 1 - int(at[0])
    count = -(-size // block)
    return first + np.arange(count + 1, dtype=np.int64) * size // count


@njit(cache=True, nogil=True)
def _boxes(
    valid: NDArray[np.bool_],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    box: NDArray[np.int64],
) -> None:
    for s in range(valid.shape[0]):
        for r in range(len(rows) - 1):
            for c in range(len(columns) - 1):
                y0, y1, x0, x1 = rows[r + 1], rows[r], columns[c + 1], columns[c]
                for y in range(rows[r], rows[r + 1]):
                    for x in range(columns[c], columns[c + 1]):
                        if valid[s, y, x]:
                            y0, y1 = min(y0, y), max(y1, y + 1)
                            x0, x1 = min(x0, x), max(x1, x + 1)
                if y1 > y0:
                    box[s, r, c, 0], box[s, r, c, 1] = y0, y1
                    box[s, r, c, 2], box[s, r, c, 3] = x0, x1


def partition_of(valid: NDArray[np.bool_], block: int) -> Partition:
    """Cut a chunk with a validity mask (sample, y, x) into blocks."""
    rows = _edges(np.flatnonzero(valid.any(axis=(0, 2))), block)
    columns = _edges(np.flatnonzero(valid.any(axis=(0, 1))), block)
    box = np.zeros((len(valid), len(rows) - 1, len(columns) - 1, 4), np.int64)
    _boxes(valid, rows, columns, box)
    largest = int((box[..., 1::2] - box[..., ::2]).max(initial=1))
    return Partition(rows, columns, box, 1 << (largest - 1).bit_length())


def blocks_of(
    partition: Partition,
    coded: NDArray[np.bool_],
    refinement: NDArray[np.int64],
    block: int,
) -> Blocks:
    """Return what the entropy model knows of the blocks of a partition."""
    box = partition.box
    height, width = box[..., 1] - box[..., 0], box[..., 3] - box[..., 2]
    gain = np.full(height.shape, 256, np.int64)
    for h, w in {(int(h), int(w)) for h, w in zip(height.flat, width.flat, strict=True) if h and w}:
        gain[(height == h) & (width == w)] = dc_gain(block, h, w)
    return Blocks(coded, height, width, gain, refinement)


def all_valid(
    shape: tuple[int, int, int], block: int
) -> tuple[NDArray[np.bool_], Partition, Blocks]:
    """Return mask, partition and blocks of a chunk (sample, y, x) without missing vectors.

    Those of small chunks are kept, for most chunks are so: nobody writes to them.
    """
    return _kept(shape, block) if math.prod(shape) <= _LARGEST_KEPT else _all_valid(shape, block)


def _all_valid(
    shape: tuple[int, int, int], block: int
) -> tuple[NDArray[np.bool_], Partition, Blocks]:
    valid = np.ones(shape, np.bool_)
    partition = partition_of(valid, block)
    refinement = np.zeros(partition.occupied.shape, np.int64)
    return valid, partition, blocks_of(partition, partition.occupied, refinement, block)


_kept = lru_cache(8)(_all_valid)
