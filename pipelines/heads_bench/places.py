"""Blocks of a raster that are tested together, and the ring around them that trains nothing."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nec.evaluate import spatial_blocks, spatial_folds

Mask = NDArray[np.bool_]


def blocks_of(shape: tuple[int, int], edge: int) -> NDArray[np.intp]:
    """Return the number of each pixel's block, (y, x); odd ends join the last block."""
    last = [max(s // edge, 1) * edge - 1 for s in shape]
    y, x = (np.minimum(i, end) for i, end in zip(np.indices(shape), last, strict=True))
    return spatial_blocks(y.ravel(), x.ravel(), size=edge).reshape(shape)


def block_folds(
    blocks: NDArray[np.intp], *, folds: int, buffer: float, seed: int
) -> list[tuple[Mask, Mask]]:
    """Deal blocks into folds; pixels nearer than `buffer` to a tested one train nothing.

    Returns
    -------
    list of (train, test), each (y, x) bool
    """
    fold = spatial_folds(blocks.ravel(), folds=folds, seed=seed).reshape(blocks.shape)
    out = []
    for f in range(int(fold.max()) + 1):
        test = fold == f
        out.append((distance_transform_edt(~test) > buffer, test))
    return out
