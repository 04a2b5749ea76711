"""Pixel statistics of small images: what a head can do without any encoder."""

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
DIRECTIONS = 8


def pixel_statistics(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Describe images by about a hundred numbers.

    Parameters
    ----------
    images : ndarray of shape (n, band, y, x), float32
        Display values between 0 and 1.

    Returns
    -------
    ndarray of shape (n, d), float32
        Of each band: mean, deviation, quantiles; gradient magnitude (mean, deviation,
        quantiles), at full resolution and after 2 x 2 and 4 x 4 means; deviation inside blocks
        of 8 pixels. Between bands: correlations and normalised differences. Of the brightness:
        a histogram of gradient directions.
    """
    parts = [*_moments(images), _quantiles(images)]
    for factor in (1, 2, 4):
        size = _gradient(_shrunk(images, factor))
        parts += _moments(size)
        if factor == 1:
            parts.append(_quantiles(size))
    n, bands, height, width = images.shape
    blocks = images.reshape(n, bands, height // 8, 8, width // 8, 8).std((3, 5))
    parts += _moments(blocks)
    flat = images.reshape(n, bands, -1)
    flat = flat - flat.mean(2, keepdims=True)
    for a in range(bands):
        for b in range(a):
            scale = np.sqrt((flat[:, a] ** 2).sum(1) * (flat[:, b] ** 2).sum(1))
            parts.append(((flat[:, a] * flat[:, b]).sum(1) / np.maximum(scale, 1e-6))[:, None])
            ratio = (images[:, a] - images[:, b]) / (images[:, a] + images[:, b] + 1e-3)
            parts += [ratio.mean((1, 2))[:, None], ratio.std((1, 2))[:, None]]
    parts.append(_directions(images.mean(1)))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _moments(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [images.mean((2, 3)), images.std((2, 3))]


def _quantiles(images: NDArray[np.float32]) -> NDArray[np.float32]:
    found = np.quantile(images, QUANTILES, axis=(2, 3))
    return np.moveaxis(found, 0, -1).reshape(len(images), -1)


def _shrunk(images: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    n, bands, height, width = images.shape
    cut = images.reshape(n, bands, height // factor, factor, width // factor, factor)
    return cut.mean((3, 5))


def _gradient(images: NDArray[np.float32]) -> NDArray[np.float32]:
    dy, dx = np.gradient(images, axis=(2, 3))
    return np.hypot(dy, dx)


def _directions(brightness: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of gradient magnitude in each of 8 directions, sorted: no direction is special."""
    dy, dx = np.gradient(brightness, axis=(1, 2))
    size = np.hypot(dy, dx)
    which = ((np.arctan2(dy, dx) % np.pi) / np.pi * DIRECTIONS).astype(int) % DIRECTIONS
    shares = np.stack([(size * (which == d)).sum((1, 2)) for d in range(DIRECTIONS)], axis=1)
    return np.sort(shares / np.maximum(shares.sum(1, keepdims=True), 1e-6), axis=1)
