"""Blocks of a raster that are tested together, and the ring around them that trains nothing."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Mask = NDArray[np.bool_]


def blocks_of(shape: tuple[int, int], edge: int) -> NDArray[np.intp]:
    """Return the number of each pixel's block, (y, x); odd ends join the last block."""
    along = [np.minimum(np.arange(s) // edge, max(s // edge - 1, 0)) for s in shape]
    return along[0][:, None] * (along[1].max() + 1) + along[1]


def block_folds(
    blocks: NDArray[np.intp], *, folds: int, buffer: float, seed: int
) -> list[tuple[Mask, Mask]]:
    """Deal blocks into folds; pixels nearer than `buffer` to a tested one train nothing.

    Returns
    -------
    list of (train, test), each (y, x) bool
    """
    count = int(blocks.max()) + 1
    fold = np.random.default_rng(seed).permutation(count) % folds
    out = []
    for f in range(min(folds, count)):
        test = fold[blocks] == f
        out.append((distance_transform_edt(~test) > buffer, test))
    return out
