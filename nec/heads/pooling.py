"""What the tokens of an image say of it as a whole."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mean_and_roughness(tokens: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Describe images by the mean of their tokens and by how much neighbours differ.

    Roughness of a band is the root mean square of its differences between tokens beside and
    below each other, the root of twice the semivariogram at a lag of one token [1]_. It tells
    texture, which a mean loses, and unlike the deviation it does not take two even halves for
    one rough whole.

    Parameters
    ----------
    tokens : ndarray of shape (n, d, y, x)
        Missing tokens are NaN; they, and differences with them, are left out.

    Returns
    -------
    ndarray of shape (n, 2 d), float32
        Means, then roughness; NaN for an image of which everything is missing. Roughness is 0
        where no two neighbours are there.

    References
    ----------
    .. [1] Matheron, Principles of geostatistics, Economic Geology 58, 1963.
    """
    squares, pairs = 0.0, 0
    for axis in (2, 3):
        difference = np.square(np.diff(tokens, axis=axis), dtype=np.float32)
        there = ~np.isnan(difference)
        squares = squares + np.where(there, difference, 0).sum((2, 3))
        pairs = pairs + there.sum((2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
        mean = np.nanmean(tokens, axis=(2, 3), dtype=np.float32)
    roughness = np.sqrt(squares / np.maximum(pairs, 1))
    roughness = np.where(np.isnan(mean), np.nan, roughness)
    return np.concatenate([mean, roughness], axis=1).astype(np.float32)
