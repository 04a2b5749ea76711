"""Embed an image of any size by overlapping chips that fade into each other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nec.encoders.protocol import Encoder
from nec.errors import ModelError

# A token is missing where more than half of its pixels are.
MOST_MISSING = 0.5


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into chips.

    Chips overlap: each reaches `halo` beyond its core on every side, and features fade from one
    chip to the next over the overlap, so that no border shows.

    Attributes
    ----------
    core : int
        Distance from chip to chip, pixels.
    halo : int
        What a chip reaches beyond its core on every side, pixels.
    batch : int
        Chips in a forward pass.
    """

    core: int = 64
    halo: int = 16
    batch: int = 16

    @property
    def margin(self) -> int:
        """Pixels around an image that `embed_image` needs: the chips beside it reach into it.

        None without a halo.
        """
        return self.core + self.halo if self.halo else 0

    def weights(self, patch: int) -> NDArray[np.float32]:
        """Return the weight of each token along an edge of a chip, float32."""
        count, overlap = (self.core + 2 * self.halo) // patch, 2 * self.halo // patch
        if not overlap:
            return np.ones(count, np.float32)
        rise = (np.arange(count) + 0.5) / overlap
        return np.minimum(1, np.minimum(rise, rise[::-1])).astype(np.float32)


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
    time: np.datetime64 | None = None,
) -> NDArray[np.float32]:
    """Embed an image that comes with its margin.

    A chip sees the same pixels whichever image it is embedded for, so that neighbouring images
    agree where they meet; batches hold the same chips in every run.

    Parameters
    ----------
    encoder : Encoder
    image : ndarray of shape (band, y + 2 margin, x + 2 margin), float32
        Reflectance; NaN is missing. y and x are multiples of the tiling's core.
    bands : tuple of str
        Common names.
    gsd : float
        Metres.
    tiling : Tiling
    time : numpy.datetime64, optional
        Acquisition, for encoders that use it; NaT is none.

    Returns
    -------
    ndarray of shape (dim, y / patch, x / patch), float32
        Features; NaN where more than half of a token's pixels are missing.

    Raises
    ------
    ModelError
        If core and halo are no multiples of the patch, or y and x none of the core.
    """
    import torch

    patch, core, halo, margin = encoder.patch_size, tiling.core, tiling.halo, tiling.margin
    height, width = (s - 2 * margin for s in image.shape[1:])
    if core % patch or halo % patch or height % core or width % core:
        raise ModelError(
            f"chips of {core} pixels with a halo of {halo} do not fit {height} x {width} pixels "
            f"in patches of {patch}",
            "choose a core that divides the image and is, like the halo, a multiple of the patch",
        )
    own = image[:, margin : margin + height, margin : margin + width]
    missing = missing_tokens(own, patch)
    if missing.all():
        return np.full((encoder.dim, *missing.shape), np.nan, np.float32)

    seconds = None
    if time is not None and not np.isnat(time):
        seconds = int(time.astype("datetime64[s]").astype(np.int64))
    edge = core + 2 * halo
    # Corners of chips in the image with its margin; each reaches into the image itself.
    starts = [range(0, size + 2 * (margin - halo), core) for size in (height, width)]
    corners = [
        (y, x)
        for y in starts[0]
        for x in starts[1]
        if not np.isnan(image[:, y + halo : y + halo + core, x + halo : x + halo + core])
        .any(0)
        .all()
    ]
    ramp = tiling.weights(patch)
    weight = ramp[:, None] * ramp
    # In tokens; a ring of a chip around the image, cut off at the end.
    ring = margin // patch
    total = np.zeros((encoder.dim, *(s // patch for s in image.shape[1:])), np.float32)
    share = np.zeros(total.shape[1:], np.float32)
    for first in range(0, len(corners), tiling.batch):
        batch = corners[first : first + tiling.batch]
        chips = np.stack([fill_missing(image[:, y : y + edge, x : x + edge]) for y, x in batch])
        stamps = None if seconds is None else torch.full((len(chips),), seconds)
        tokens = encoder.embed(torch.from_numpy(chips), bands=bands, gsd=gsd, time=stamps)
        features = tokens.cpu().numpy()
        for (y, x), chip in zip(batch, features, strict=True):
            at = (slice(y // patch, (y + edge) // patch), slice(x // patch, (x + edge) // patch))
            total[:, *at] += weight * chip
            share[at] += weight
    rows, columns = (slice(ring, ring + size // patch) for size in (height, width))
    share = share[rows, columns]
    out = total[:, rows, columns] / np.maximum(share, np.float32(1e-9))
    out[:, missing | (share == 0)] = np.nan
    return out.astype(np.float32, copy=False)


def neighbour_cosines(
    features: NDArray[np.float32], tokens_per_chip: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compare neighbouring tokens, by where between two chips they lie.

    A seam shows as a phase whose neighbours agree less than others.

    Parameters
    ----------
    features : ndarray of shape (dim, y, x), float32
    tokens_per_chip : int
        Distance from chip to chip, tokens.

    Returns
    -------
    tuple of ndarray of shape (tokens_per_chip,)
        Sum of cosines, and number of pairs, by phase: phase k is between the tokens k - 1 and k
        of a chip, so 0 is the border. Pairs with a missing token are left out.
    """
    norm = np.linalg.norm(features, axis=0, keepdims=True)
    unit = features / np.where(norm > 0, norm, 1)
    total, pairs = np.zeros(tokens_per_chip), np.zeros(tokens_per_chip, np.int64)
    for axis in (1, 2):
        count = unit.shape[axis]
        a = unit.take(range(count - 1), axis=axis)
        b = unit.take(range(1, count), axis=axis)
        cosine = np.moveaxis((a * b).sum(0), axis - 1, 0).astype(np.float64)
        phase = np.arange(1, count) % tokens_per_chip
        np.add.at(total, phase, np.nansum(cosine, axis=1))
        np.add.at(pairs, phase, (~np.isnan(cosine)).sum(axis=1))
    return total, pairs
