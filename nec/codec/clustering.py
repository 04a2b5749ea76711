"""Fit a coding with a codebook to lone vectors: clusters, and a coding of what they leave."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.codec.codebook import LARGEST_UNIT, MOST_CODES, MOST_COUNTED
from nec.codec.codes import SEEN
from nec.codec.coding import Coding
from nec.codec.container import CODEBOOK_VERSION
from nec.codec.fitting import COARSEST, check_guarantee, fit_coding, measure
from nec.codec.tables import PRECISION, pack
from nec.errors import ChunkError, CompressorError

log = logging.getLogger(__name__)

# What the choice of a number of codes is made from.
SIZES = (4, 8, 16, 32, 64, 128, 256)
# Parts of the sample: vectors of one are coded by clusters of the others.
FOLDS = 5
# Vectors a code that clusters are fitted to, at least and at most.
FEWEST, MOST = 2, 256
SEED, STARTS = 0, 8
# Sights of each code that the counts of a configuration are worth, on average.
WORTH = 4


def fit_clusters(
    pieces: Sequence[NDArray[np.float32]],
    codes: int,
    *,
    relative_steps: NDArray[np.float32],
    bytes_per_vector: float | None = None,
    cosine: float | None = None,
    min_cosine: float = 0.0,
    **options: Any,
) -> tuple[Coding, dict[str, float]]:
    """Fit a codebook and a coding of the differences from it.

    The differences that the coding is fitted to are from clusters of other parts of the sample:
    from its own, a vector departs less than one that is met later.

    Parameters
    ----------
    pieces, relative_steps, bytes_per_vector, cosine, min_cosine, options
        Those of `nec.codec.fitting.fit_coding`; the block is 1. Without a target, codes are all
        that is coded. The target is that without the guarantee of `min_cosine`.
    codes : int
        Number of clusters, 2 to 256.

    Returns
    -------
    tuple of Coding and dict
        The coding, and what it does to parts of the sample that clusters were not fitted to;
        with `min_cosine`, to the sample.

    Raises
    ------
    CompressorError
        If the sample has too few vectors, no step reaches the target, or scikit-learn is missing.
    """
    check_guarantee(min_cosine, options.get("kept"))
    # Missing ones among vectors that stand alone cost next to nothing: none are fitted to.
    pieces = [p[~np.isnan(p).any((1, 2, 3))] if p.shape[2:] == (1, 1) else p for p in pieces]
    valid = [~np.isnan(p).any(axis=1) for p in pieces]
    vectors = np.concatenate([np.moveaxis(p, 1, -1)[v] for p, v in zip(pieces, valid, strict=True)])
    if not 2 <= codes <= MOST_CODES or len(vectors) < FEWEST * codes:
        raise CompressorError(
            f"a codebook of {codes} codes cannot be fitted to {len(vectors):,} vectors",
            f"give 2 to {MOST_CODES} codes, and {FEWEST} vectors or more for each",
        )
    scaled = (vectors / relative_steps).astype(np.float32)
    near, bits = _by_others(scaled, codes)
    bases, at = [], 0
    for piece, v in zip(pieces, valid, strict=True):
        base = np.zeros_like(piece)
        np.moveaxis(base, 1, -1)[v] = near[at : at + int(v.sum())] * relative_steps
        bases.append(base)
        at += int(v.sum())
    coding, measured = fit_coding(
        [p - b for p, b in zip(pieces, bases, strict=True)],
        relative_steps=relative_steps,
        bytes_per_vector=bytes_per_vector,
        cosine=cosine,
        bases=bases,
        more_bytes=bits / 8,
        **options,
    )
    coding = _with_codebook(coding, *_clusters(scaled, codes), relative_steps)
    if bytes_per_vector is None and cosine is None:
        # A bit is worth a share of the error that is left, not of steps that code nothing.
        left = float(((scaled - near) ** 2).sum(1).mean())
        coding = replace(coding, lagrangian=coding.lagrangian * left / 4.0**COARSEST)
    try:
        coding.to_dict()
    except ChunkError as error:  # too large for a store's metadata
        raise CompressorError(error.what, error.remedy) from error
    if min_cosine > 0:
        coding = replace(coding, min_cosine=min_cosine)
        measured = measure(pieces, coding, options.get("kept"))
    return coding, measured


def choose_clusters(
    pieces: Sequence[NDArray[np.float32]],
    *,
    cosine: float | None = None,
    min_cosine: float = 0.0,
    **options: Any,
) -> tuple[Coding, dict[str, float]]:
    """Fit with every size of a codebook that the sample is large enough for, and without.

    The best is kept: of the highest mean cosine at a size, of the fewest bytes at a fidelity.
    What is compared has no guarantee of `min_cosine`, so that all of it is measured on parts of
    the sample that clusters were not fitted to; the best is fitted again with it.
    Arguments, of which one is a target, results and errors are those of `fit_clusters`.
    """
    _estimator()  # without it, nothing would be chosen from
    check_guarantee(min_cosine, options.get("kept"))
    kept = coding, measured = fit_coding(pieces, cosine=cosine, **options)
    best_codes = 0
    vectors = sum(int((~np.isnan(p).any(axis=1)).sum()) for p in pieces)
    target = options.get("bytes_per_vector")
    for codes in (c for c in SIZES if FEWEST * c <= vectors):
        try:
            coding, measured = fit_clusters(pieces, codes, cosine=cosine, **options)
        except CompressorError as error:
            log.info("%d codes: %s", codes, error.what)  # they alone take more than the target
            continue
        log.info("%d codes: %s", codes, measured)
        best = kept[1]
        if cosine is None:
            assert target is not None
            over = best["bytes_per_vector"] > 1.02 * target
            within = measured["bytes_per_vector"] <= 1.02 * target
            better = within and (over or measured["cosine_mean"] > best["cosine_mean"])
        else:
            better = measured["bytes_per_vector"] < best["bytes_per_vector"]
        if better:
            kept, best_codes = (coding, measured), codes
    if min_cosine > 0:
        options |= {"cosine": cosine, "min_cosine": min_cosine}
        if best_codes:
            return fit_clusters(pieces, best_codes, **options)
        return fit_coding(pieces, **options)
    return kept


def _by_others(scaled: NDArray[np.float32], codes: int) -> tuple[NDArray[np.float32], float]:
    """Return the nearest centre to each vector, of clusters of others, and the bits of its code."""
    fold = np.random.default_rng(SEED).permutation(len(scaled)) % FOLDS
    near, bits = np.empty_like(scaled), 0.0
    for part in range(FOLDS):
        own = fold == part
        centres, share = _clusters(scaled[~own], codes)
        code = _nearest(scaled[own], centres)
        near[own] = centres[code]
        bits -= float(np.log2(share[code]).sum())
    return near, bits / len(scaled)


def _estimator() -> Any:
    """Return scikit-learn's class of k-means, which only fitting needs."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise CompressorError(
            "a codebook is fitted by scikit-learn, which is not installed",
            'pip install "nec[heads]", or fit without a codebook',
        ) from error
    return KMeans


def _clusters(
    scaled: NDArray[np.float32], codes: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return centres of clusters (code, band), and the share of each, none of them zero."""
    rng = np.random.default_rng(SEED)
    most = MOST * codes
    sample = scaled if len(scaled) <= most else scaled[rng.choice(len(scaled), most, replace=False)]
    # Copies of one vector make no clusters of their own.
    distinct = len(np.unique(sample, axis=0))
    if distinct < codes:
        raise CompressorError(
            f"the sample holds {distinct:,} distinct vectors, and {codes} codes were asked for",
            "ask for fewer",
        )
    found = _estimator()(codes, n_init=STARTS, random_state=SEED).fit(sample.astype(np.float64))
    centres = found.cluster_centers_.astype(np.float32)
    count = np.bincount(_nearest(scaled, centres), minlength=codes) + 0.5
    return centres, count / count.sum()


def _nearest(scaled: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.intp]:
    from sklearn.metrics import pairwise_distances_argmin

    nearest: NDArray[np.intp] = pairwise_distances_argmin(scaled, centres)
    return nearest


def _with_codebook(
    coding: Coding,
    centres: NDArray[np.float32],
    share: NDArray[np.float64],
    relative_steps: NDArray[np.float32],
) -> Coding:
    """Return a coding with a codebook, in steps, as numbers of a byte in units of each band."""
    steps = coding.step_values.astype(np.float64)
    wanted = centres * relative_steps / steps * (1 << PRECISION)
    units = np.clip(np.ceil(np.abs(wanted).max(0) / 127), 1, LARGEST_UNIT)
    numbers = np.clip(np.rint(wanted / units), -127, 127)
    total = min(WORTH * SEEN * len(share), MOST_COUNTED) - len(share)
    counts = np.maximum(np.floor(share * total), 1)
    return replace(
        coding,
        version=CODEBOOK_VERSION,
        codebook=pack(numbers.astype(np.int8)),
        units=pack(units.astype(np.uint32)),
        counts=pack(counts.astype(np.uint16)),
    )
