"""The worst case: no decoded vector departs further from its original than was promised."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.chunk import NO_PATCHES
from nec.codec.coding import Coding
from nec.codec.contexts import MOST_REFINED
from nec.codec.decisions import Decided, Transformed
from nec.codec.patches import LARGEST_PATCH
from nec.codec.reconstruction import reconstruct

# Up to this share of a block's vectors are patched rather than the block refined.
PATCHED_SHARE = 0.02
# A rotation back to features in float32 costs this much of a cosine.
_MARGIN = 2e-6


def cosines(original: NDArray[np.float32], decoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of every vector with its decoded self.

    Parameters
    ----------
    original, decoded : ndarray of shape (..., band), float32

    Returns
    -------
    ndarray of shape (...), float64
        Two zero vectors agree (1), a zero vector and another do not (0); NaN where a component
        is missing.
    """
    a, b = original.astype(np.float64), decoded.astype(np.float64)
    norm_a = np.linalg.norm(a, axis=-1, keepdims=True)
    norm_b = np.linalg.norm(b, axis=-1, keepdims=True)
    product = (a / np.where(norm_a > 0, norm_a, 1) * (b / np.where(norm_b > 0, norm_b, 1))).sum(-1)
    both_zero = ((norm_a == 0) & (norm_b == 0))[..., 0]
    cosine: NDArray[np.float64] = np.where(both_zero, 1.0, product)
    return cosine


@njit(cache=True, nogil=True)
def _find_extent(symbols: NDArray[np.int32], edge: int, extent: NDArray[np.uint8]) -> None:
    samples, rows, columns, bands, size = symbols.shape
    for s in range(samples):
        for y in range(rows):
            for x in range(columns):
                for b in range(bands):
                    for p in range(size):
                        if symbols[s, y, x, b, p] != 0:
                            reach = extent[s, y, x, b]
                            reach[0] = max(reach[0], p // edge + 1)
                            reach[1] = max(reach[1], p % edge + 1)


def decode_decided(decided: Decided, coding: Coding) -> NDArray[np.float32]:
    """Return what a reader will see of a chunk (sample, band, y, x)."""
    out = np.empty_like(decided.values)
    extent = np.zeros((*decided.symbols.shape[:4], 2), np.uint8)
    _find_extent(decided.symbols, decided.partition.edge, extent)
    patches = NO_PATCHES
    if decided.patches:
        patch_of = np.full(decided.valid.shape, -1, np.int32)
        patch_of.ravel()[list(decided.patches)] = np.arange(len(decided.patches))
        patches = (patch_of, np.stack(list(decided.patches.values())).astype(np.int32))
    reconstruct(
        decided.symbols,
        extent,
        decided.blocks,
        decided.partition,
        decided.valid,
        coding,
        patches,
        None if decided.coded is None else decided.coded.codes,
        out,
    )
    for s, r, c in np.argwhere(decided.verbatim):
        y0, y1, x0, x1 = decided.partition.box[s, r, c]
        window = (s, slice(None), slice(y0, y1), slice(x0, x1))
        out[window] = np.where(decided.valid[s, y0:y1, x0:x1], decided.values[window], np.nan)
    return out


def decide_within(transformed: Transformed, coding: Coding) -> Decided:
    """Decide a chunk so that the cosine of every vector is at least `coding.min_cosine`, if any.

    Where few vectors of a block are worse, they are patched. Blocks with more are coded finer, as
    much as their excess suggests, and as they are where the finest steps do not do. Every round
    refines, so it ends.
    """
    if coding.min_cosine == 0:
        return transformed.decide(coding)
    refinement = np.zeros(transformed.partition.box.shape[:3], np.int64)
    verbatim = np.zeros(refinement.shape, np.bool_)
    least = coding.min_cosine + _MARGIN
    values = np.moveaxis(transformed.values, 1, -1)
    while True:
        decided = transformed.decide(coding, refinement=refinement, verbatim=verbatim)
        verbatim = decided.verbatim.copy()
        decoded = decode_decided(decided, coding)
        cosine = cosines(values, np.moveaxis(decoded, 1, -1))
        cosine = np.where(np.isnan(cosine), -1, cosine)  # what overflows is no direction
        error = np.where(transformed.valid, 1 - cosine, 0)
        patches: dict[int, NDArray[np.int64]] = {}
        finer = np.zeros_like(refinement)
        for at in map(tuple, np.argwhere(transformed.partition.occupied & ~verbatim)):
            finer[at] = _repair(at, error, least, decided, decoded, coding, patches)
        if not finer.any():
            patched = decided._replace(patches=patches)
            # A patch was tried in float64: what counts is what a reader gets.
            if not patches or _holds(patched, coding, least):
                return patched
            finer[_owners(patches, transformed)] = 1
        refinement = refinement + finer
        verbatim |= refinement > MOST_REFINED
        refinement[verbatim] = 0


def _holds(decided: Decided, coding: Coding, least: float) -> bool:
    decoded = np.moveaxis(decode_decided(decided, coding), 1, -1)
    cosine = cosines(np.moveaxis(decided.values, 1, -1), decoded)
    return bool((cosine[decided.valid] >= least).all())


def _owners(patches: dict[int, NDArray[np.int64]], transformed: Transformed) -> NDArray[np.bool_]:
    """Return which blocks hold a patched token."""
    marked = np.zeros(transformed.valid.shape, np.bool_)
    marked.ravel()[list(patches)] = True
    owners = np.zeros(transformed.partition.box.shape[:3], np.bool_)
    for at in map(tuple, np.argwhere(transformed.partition.occupied)):
        y0, y1, x0, x1 = transformed.partition.box[at]
        owners[at] = marked[at[0], y0:y1, x0:x1].any()
    return owners


def _repair(
    at: tuple[int, ...],
    error: NDArray[np.float64],
    least: float,
    decided: Decided,
    decoded: NDArray[np.float32],
    coding: Coding,
    patches: dict[int, NDArray[np.int64]],
) -> int:
    """Patch a block's bad vectors, or return how many refinements it needs."""
    s = at[0]
    y0, y1, x0, x1 = decided.partition.box[at]
    inside = error[s, y0:y1, x0:x1]
    allowed = 1 - least
    bad = np.argwhere(inside > allowed)
    if not len(bad):
        return 0
    if len(bad) > PATCHED_SHARE * inside.size + 1:
        # The error goes with the squared step, which a refinement halves; the rest is patched.
        worst = np.quantile(inside, 1 - PATCHED_SHARE / 2)
        return max(1, int(np.ceil(np.log2(worst / allowed) * 0.75)))
    unit = coding.step_values.astype(np.float64) / 2 / 2.0 ** (decided.blocks.refinement[at] / 2)
    own = {}
    for y, x in bad + np.array([y0, x0]):
        here = (s, slice(None), y, x)
        patch = _patch_of(decided.values[here], decoded[here], unit, least)
        if patch is None:
            return 1
        own[int(np.ravel_multi_index((s, y, x), decided.valid.shape))] = patch
    patches.update(own)
    return 0


def _patch_of(
    original: NDArray[np.float32],
    decoded: NDArray[np.float32],
    unit: NDArray[np.float64],
    least: float,
) -> NDArray[np.int64] | None:
    """Return the fewest half steps, the most useful first, that bring a vector within bounds."""
    wanted = original.astype(np.float64)
    error = wanted - decoded
    steps = np.rint(np.clip(error / unit, -LARGEST_PATCH, LARGEST_PATCH))
    gain = error**2 - (error - steps * unit) ** 2
    patch, rebuilt = np.zeros(len(unit), np.int64), decoded.astype(np.float64)
    for b in np.argsort(-gain, kind="stable"):
        if steps[b] == 0:
            break
        patch[b] = int(steps[b])
        rebuilt[b] += steps[b] * unit[b]
        if cosines(original, rebuilt.astype(np.float32)) >= least + _MARGIN / 2:
            return patch
    return None
