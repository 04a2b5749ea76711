"""How few bytes a Gaussian field of the same spectrum could take: reverse water-filling.

The embedding is modelled as independent bands after the rotation, each a stationary isotropic
Gaussian field: the DCT coefficients of a band are Gaussians whose variance depends on the
radius of their frequency alone. For those, no code takes fewer bits than the rate-distortion
function [1]_. The means (one coefficient a band) are left out, to the bound's favour. Real
embeddings are not stationary, so a code may go below it.

References
----------
.. [1] Cover and Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.3.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.optimize import brentq

from nec.rotation import klt

RINGS = 14
# Cycles a token up to which the lowest frequencies share a variance: fewer are no statistics.
LOWEST = 0.05


class Spectrum(NamedTuple):
    """Variances by band and ring of frequency.

    Attributes
    ----------
    variance : ndarray of shape (band, ring)
    count : ndarray of shape (ring,)
        Coefficients of each ring.
    vectors : int
        Vectors of the field.
    """

    variance: NDArray[np.float64]
    count: NDArray[np.int64]
    vectors: int


def spectrum(features: NDArray[np.float32], basis: NDArray[np.float32]) -> Spectrum:
    """Return the spectrum of features (y, x, feature), all valid, in a basis."""
    bands = np.moveaxis(features @ basis, -1, 0).astype(np.float64)
    rows, columns = bands.shape[1:]
    power = dctn(bands, axes=(1, 2), norm="ortho") ** 2
    u, v = np.arange(rows)[:, None] / rows, np.arange(columns)[None] / columns
    radius = np.hypot(u, v)
    edges = np.geomspace(2 * LOWEST, np.sqrt(2), RINGS)
    ring = np.searchsorted(edges, radius)
    ring[0, 0] = RINGS  # the means
    count = np.bincount(ring.ravel(), minlength=RINGS + 1)
    total = np.stack([np.bincount(ring.ravel(), p.ravel(), RINGS + 1) for p in power])
    variance = total / np.maximum(count, 1)
    return Spectrum(variance[:, :RINGS], count[:RINGS], rows * columns)


def own_basis(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the plain rotation of features (y, x, feature)."""
    return klt([np.asarray(features, np.float32)[None]], 0.0)


def bound(own: Spectrum, error: float) -> float:
    """Return the bytes a vector below which no code of the field has a squared error a vector."""
    if error >= _error(own, own.variance):
        return 0.0
    level = _level(lambda water: _error(own, np.minimum(water, own.variance)), error, own)
    with np.errstate(divide="ignore"):
        bits = np.maximum(np.log2(own.variance / level), 0) / 2
    return float((bits * own.count).sum() / own.vectors / 8)


def bound_of_foreign(fitted: Spectrum, actual: Spectrum, error: float) -> float:
    """Return the bytes a vector of the ideal code of one field, used on another.

    The code is that which reverse water-filling makes of `fitted`; `actual` gives what it is
    used on. With a = 1 - level / fitted variance, its test channel reproduces a x + noise of
    variance a level, coded for a reproduction of variance a * fitted.
    """
    ratio = actual.variance / np.maximum(fitted.variance, 1e-30)

    def gain(water: float) -> NDArray[np.float64]:
        return np.maximum(1 - water / np.maximum(fitted.variance, 1e-30), 0)

    def reached(water: float) -> float:
        a = gain(water)
        return _error(actual, (1 - a) ** 2 * actual.variance + a * water)

    if error >= _error(actual, actual.variance):
        return 0.0
    water = _level(reached, error, fitted)
    a = gain(water)
    with np.errstate(divide="ignore"):
        bits = np.where(
            a > 0,
            np.log2(np.maximum(fitted.variance / water, 1)) / 2 + a * (ratio - 1) / (2 * np.log(2)),
            0,
        )
    return float((bits * actual.count).sum() / actual.vectors / 8)


def _error(field: Spectrum, errors: NDArray[np.float64]) -> float:
    return float((errors * field.count).sum() / field.vectors)


def _level(reached: Callable[[float], float], error: float, field: Spectrum) -> float:
    """Return the water level of an error."""
    high = float(field.variance.max())
    return float(
        np.exp(
            brentq(
                lambda log_level: reached(float(np.exp(log_level))) - error,
                np.log(high) - 40,
                np.log(high),
            )
        )
    )
