"""The codec's block transform, differentiable."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from nec.codec.contexts import RING_EDGES
from nec.codec.transform import cosine_matrix
from nec.errors import CompressorError


@cache
def _matrix(size: int) -> Tensor:
    # What is kept serves training too, whoever asked for it first.
    with torch.inference_mode(False):
        return torch.from_numpy(cosine_matrix(size)).float()


def cosine(values: Tensor, *, inverse: bool = False) -> Tensor:
    """Transform grids (..., y, x) as one box of the codec, orthonormal; or back."""
    height, width = (_matrix(s).to(values.device, values.dtype) for s in values.shape[-2:])
    if inverse:
        return height.T @ values @ width
    return height @ values @ width.T


def frequency_rings(height: int, width: int, block: int) -> Tensor:
    """Return the codec's frequency ring of each coefficient of a box, shape (y, x), int64.

    Raises
    ------
    CompressorError
        If the box is larger than a block.
    """
    if max(height, width) > block:
        raise CompressorError(
            f"a grid of {height} x {width} tokens is more than one block of {block}",
            "train on grids of a block or less",
        )
    u = np.arange(height)[:, None] * block // height
    v = np.arange(width) * block // width
    return torch.from_numpy(np.searchsorted(np.array(RING_EDGES), u + v).astype(np.int64))


def octaves(height: int, width: int) -> Tensor:
    """Return the codec's octave of each coefficient of a box, 0 for DC, shape (y, x), int64."""
    highest = np.maximum(np.arange(height)[:, None], np.arange(width))
    return torch.from_numpy(np.frexp(highest)[1].astype(np.int64))
