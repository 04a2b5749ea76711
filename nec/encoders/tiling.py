"""Embed an image of any size chip by chip, with a halo, so that no seam shows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nec.encoders.protocol import Encoder

# A token is missing where more than half of its pixels are.
MOST_MISSING = 0.5


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into chips.

    Attributes
    ----------
    core : int
        Edge of the part of a chip whose tokens are kept, pixels.
    halo : int
        Context around it on every side, pixels; its tokens are dropped.
    batch : int
        Chips in a forward pass.
    """

    core: int = 64
    halo: int = 16
    batch: int = 16


def missing_tokens(images: NDArray[np.float32], patch: int) -> NDArray[np.bool_]:
    """Return which tokens count as missing: those with more than half of their pixels missing.

    Parameters
    ----------
    images : ndarray of shape (..., band, y, x), float32
        A pixel is missing where any band is NaN.
    patch : int
        Edge of a token, pixels.

    Returns
    -------
    ndarray of shape (..., y / patch, x / patch), bool
    """
    missing = np.isnan(images).any(axis=-3)
    *lead, h, w = missing.shape
    share = missing.reshape(*lead, h // patch, patch, w // patch, patch).mean((-3, -1))
    return np.asarray(share > MOST_MISSING)


def fill_missing(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the image (band, y, x) with missing pixels set to their nearest valid one."""
    from scipy.ndimage import distance_transform_edt

    missing = np.isnan(image).any(0)
    if not missing.any():
        return image
    nearest = distance_transform_edt(missing, return_distances=False, return_indices=True)
    filled: NDArray[np.float32] = image[:, nearest[0], nearest[1]]
    return filled


def embed_image(
    encoder: Encoder,
    image: NDArray[np.float32],
    *,
    bands: tuple[str, ...],
    gsd: float,
    tiling: Tiling,
) -> NDArray[np.float32]:
    """Embed an image that comes with its halo.

    Chips lie where they lie whatever the image holds, and batches hold the same chips in every
    run, so that a task gives the same features whenever it is done.

    Parameters
    ----------
    encoder : Encoder
    image : ndarray of shape (band, y + 2 halo, x + 2 halo), float32
        Reflectance; NaN is missing. y and x are multiples of the patch size.
    bands : tuple of str
        Common names.
    gsd : float
        Metres.
    tiling : Tiling

    Returns
    -------
    ndarray of shape (dim, y / patch, x / patch), float32
        Features; NaN where more than half of a token's pixels are missing.
    """
    import torch

    patch, core, halo = encoder.patch_size, tiling.core, tiling.halo
    height, width = (s - 2 * halo for s in image.shape[1:])
    out = np.full((encoder.dim, height // patch, width // patch), np.nan, np.float32)
    inside = slice(halo, -halo or None)
    missing = missing_tokens(image[:, inside, inside], patch)
    if missing.all():
        return out
    filled = fill_missing(image)
    corners = [
        (y, x)
        for y in range(0, height, core)
        for x in range(0, width, core)
        if not missing[y // patch : (y + core) // patch, x // patch : (x + core) // patch].all()
    ]
    # Chips at the far edges may be smaller: each size makes batches of its own.
    sizes = {(min(core, height - y), min(core, width - x)) for y, x in corners}
    for h, w in sorted(sizes):
        alike = [
            c for c in corners if (min(core, height - c[0]), min(core, width - c[1])) == (h, w)
        ]
        for first in range(0, len(alike), tiling.batch):
            batch = alike[first : first + tiling.batch]
            chips = np.stack(
                [filled[:, y : y + h + 2 * halo, x : x + w + 2 * halo] for y, x in batch]
            )
            features = encoder.embed(torch.from_numpy(chips), bands=bands, gsd=gsd)
            edge = slice(halo // patch, -(halo // patch) or None)
            kept = features[:, :, edge, edge].cpu().numpy()
            for (y, x), tokens in zip(batch, kept, strict=True):
                out[:, y // patch : (y + h) // patch, x // patch : (x + w) // patch] = tokens
    out[:, missing] = np.nan
    return out


def neighbour_cosines(
    features: NDArray[np.float32], tokens_per_chip: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compare neighbouring tokens across chip borders with those inside chips.

    Parameters
    ----------
    features : ndarray of shape (dim, y, x), float32
    tokens_per_chip : int
        Edge of a chip's core, tokens.

    Returns
    -------
    tuple of ndarray
        Cosines of neighbours on two sides of a border, and of neighbours inside a chip; pairs
        with a missing token are left out.
    """
    norm = np.linalg.norm(features, axis=0, keepdims=True)
    unit = features / np.where(norm > 0, norm, 1)
    across, inside = [], []
    for axis in (1, 2):
        count = unit.shape[axis]
        a = unit.take(range(count - 1), axis=axis)
        b = unit.take(range(1, count), axis=axis)
        cosine = np.moveaxis((a * b).sum(0), axis - 1, 0)
        border = np.arange(1, count) % tokens_per_chip == 0
        across.append(cosine[border].ravel())
        inside.append(cosine[~border].ravel())
    pair = [np.concatenate(c).astype(np.float64) for c in (across, inside)]
    return pair[0][~np.isnan(pair[0])], pair[1][~np.isnan(pair[1])]
