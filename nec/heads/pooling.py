"""What the tokens of an image say of it as a whole."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
    mean = _mean(tokens)
    roughness = np.sqrt(squares / np.maximum(pairs, 1))
    roughness = np.where(np.isnan(mean), np.nan, roughness)
    return np.concatenate([mean, roughness], axis=1).astype(np.float32)


def mean_and_variogram(tokens: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Describe images by the mean of their tokens and by how bands vary together, near by.

    For bands i and j, the mean over neighbouring tokens of the product of their differences,
    twice the cross-semivariogram at a lag of one token [1]_, under a root that keeps the sign.
    Where i = j it is the roughness of :func:`mean_and_roughness`; the others tell which bands
    have their edges in one place.

    Parameters
    ----------
    tokens : ndarray of shape (n, d, y, x)
        A token is missing where any of its bands is NaN; it, and differences with it, are left
        out.

    Returns
    -------
    ndarray of shape (n, d + d (d + 1) / 2), float32
        Means, then the upper triangle by rows; NaN for an image of which everything is missing.
        0 where no two neighbours are there.

    References
    ----------
    .. [1] Wackernagel, Multivariate Geostatistics, Springer 2003, chapter 20.
    """
    count, bands = tokens.shape[:2]
    missing = np.isnan(tokens).any(axis=1, keepdims=True)
    tokens = np.where(missing, np.nan, tokens).astype(np.float32, copy=False)
    products, pairs = np.zeros((count, bands, bands), np.float32), np.zeros(count, np.int64)
    for axis in (2, 3):
        difference = np.diff(tokens, axis=axis).reshape(count, bands, -1)
        there = ~np.isnan(difference[:, 0])
        difference = np.where(there[:, None], difference, np.float32(0))
        products += difference @ difference.transpose(0, 2, 1)
        pairs += there.sum(1)
    mean = _mean(tokens)
    products /= np.maximum(pairs, 1)[:, None, None]
    rows, columns = np.triu_indices(bands)
    together = products[:, rows, columns]
    together = np.copysign(np.sqrt(np.abs(together)), together)
    together[np.isnan(mean[:, 0])] = np.nan
    return np.concatenate([mean, together], axis=1).astype(np.float32)


def _mean(tokens: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
        return np.asarray(np.nanmean(tokens, axis=(2, 3), dtype=np.float32))


@dataclass(frozen=True)
class Pooling:
    """A description of images by more than the mean of their tokens.

    Attributes
    ----------
    told : str
        What it is, for messages.
    pool : callable
        Takes tokens (n, d, y, x), gives (n, size(d)).
    size : callable
        Numbers an image, of so many bands.
    """

    told: str
    pool: Callable[[NDArray[np.floating[Any]]], NDArray[np.float32]]
    size: Callable[[int], int]


POOLINGS = {
    "mean_roughness": Pooling("mean and roughness", mean_and_roughness, lambda d: 2 * d),
    "mean_variogram": Pooling(
        "mean and cross-variogram", mean_and_variogram, lambda d: d + d * (d + 1) // 2
    ),
}
