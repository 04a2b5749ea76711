"""Estimate a coding's contexts from what was decided: levels, weights, tables, offsets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nec.codec.contexts import (
    CLASSES,
    LARGEST,
    LEVEL_BITS,
    MAGNITUDES,
    WEIGHT_BITS,
    context_classes,
    pack_levels,
)
from nec.codec.decisions import Decided, Transformed
from nec.codec.tables import quantise_frequencies

# Observations that a context's prior is worth.
PRIOR_WEIGHT = 8.0
# What a class lends to the ones beside it.
LENT = 0.25
# Rows of a trace that weights are fitted to, an octave.
TRACED = 200_000


def fit_prediction(
    decided: Sequence[Decided], bands: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return the mean DC of each band, and what of its neighbours' departure it takes over."""
    total, count = np.zeros(bands), 0
    for d in decided:
        dc = d.symbols[..., 0] * (d.blocks.gain[..., None] / 256)
        total += dc[d.blocks.coded].sum(0)
        count += int(d.blocks.coded.sum())
    # Out of range goes verbatim anyway.
    mean = np.clip(np.rint(total / count), -LARGEST, LARGEST).astype(np.int32)
    power, product = np.zeros(bands), np.zeros(bands)
    for d in decided:
        coded = d.blocks.coded
        dc = np.where(
            coded[..., None], d.symbols[..., 0] * (d.blocks.gain[..., None] / 256) - mean, 0.0
        )
        around, near = np.zeros_like(dc), np.zeros(coded.shape)
        around[:, :, 1:] += dc[:, :, :-1]
        near[:, :, 1:] += coded[:, :, :-1]
        around[:, 1:] += dc[:, :-1]
        near[:, 1:] += coded[:, :-1]
        has = coded & (near > 0)
        others = around[has] / near[has][:, None]
        power += (others**2).sum(0)
        product += (others * dc[has]).sum(0)
    slope = product / np.where(power > 0, power, 1)
    return mean, np.clip(np.rint(16 * slope), 0, 16).astype(np.uint8)


def fit_levels(decided: Sequence[Decided]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return codes of what is expected of each ring and octave: means of what was seen."""
    states = [d.state for d in decided]
    codes = []
    for totals, counts in (
        ([s.total for s in states], [s.count for s in states]),
        ([s.flag_total for s in states], [s.flag_count for s in states]),
    ):
        total, count = np.sum(totals, axis=0), np.sum(counts, axis=0)
        # Bands that were hardly seen lean on the others.
        common = total.sum(0) / np.maximum(count.sum(0), 1)
        codes.append(pack_levels((total + 2 * common) / (count + 2)))
    return codes[0], codes[1]


def traced(
    decided: Sequence[Decided], octave: int, *, flags: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what was seen around the coefficients or tiles of an octave, and what they held."""
    seen, found = [], []
    for d in decided:
        size = int(d.trace.size[int(flags)])
        rows = (d.trace.flag_found if flags else d.trace.found)[:size]
        own = rows[:, 0] == octave
        seen.append((d.trace.flag_seen if flags else d.trace.seen)[:size][own])
        found.append(rows[own, 1])
    return np.concatenate(seen), np.concatenate(found).astype(np.int64)


def fit_weights(seen: NDArray[np.float32], found: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the non-negative weights, 64ths, that predict magnitudes best.

    Least squares, each row weighted by the inverse of what it is predicted: a magnitude spreads
    as much as its mean.
    """
    one = 1 << LEVEL_BITS
    stride = max(1, len(seen) // TRACED)
    x, y = seen[::stride].astype(np.float64) / one, found[::stride].astype(np.float64)
    weights = np.full(x.shape[1], 1 / x.shape[1])
    if len(x) < 4 * x.shape[1] or not y.any():
        weights[:] = 0
        weights[-1] = 1
    else:
        for _ in range(6):
            expected = np.maximum(x @ weights, 0.02)
            scaled = x / expected[:, None]
            gram = scaled.T @ scaled
            gram[np.diag_indices_from(gram)] += 1e-6 * np.trace(gram) + 1e-9
            weights = _non_negative(gram, scaled.T @ (y / expected))
    whole: NDArray[np.uint8] = np.clip(np.rint(weights * (1 << WEIGHT_BITS)), 0, 255).astype(
        np.uint8
    )
    return whole


def _non_negative(gram: NDArray[np.float64], product: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimise ``w @ gram @ w / 2 - product @ w`` over w >= 0, by coordinates."""
    weights = np.zeros(len(product))
    for _ in range(300):
        for i in range(len(product)):
            rest = product[i] - gram[i] @ weights + gram[i, i] * weights[i]
            weights[i] = max(0.0, rest / gram[i, i])
    return weights


def classify_rows(
    seen: NDArray[np.float32], weights: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the context class of every row, and its number of uniform bits."""
    expected = (seen.astype(np.int64) @ weights.astype(np.int64)) >> WEIGHT_BITS
    bits = np.frexp(np.maximum(expected, 1).astype(np.float64))[1]
    shift = np.maximum(bits - (LEVEL_BITS + 3), 0).astype(np.int64)
    return context_classes()[expected >> shift].astype(np.int64), shift


def _smoothed(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Let classes (the last axis but one) lend to the ones beside them."""
    smooth = counts.copy()
    smooth[..., 1:, :] += LENT * counts[..., :-1, :]
    smooth[..., :-1, :] += LENT * counts[..., 1:, :]
    return smooth


def fit_flags(counts: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Turn counts (octave, class, 2) into the frequencies of "nothing here"."""
    # A tile expected to hold e holds something with a chance of about e / (1 + e).
    expected = 2.0 ** ((np.arange(CLASSES) - 0.5) / 4 - 7)
    guess = np.stack([1 / (1 + expected), expected / (1 + expected)], axis=-1)
    common = _smoothed(counts.sum(0)) + guess
    common /= common.sum(-1, keepdims=True)
    weights = _smoothed(counts) + PRIOR_WEIGHT * common
    return quantise_frequencies(weights.reshape(-1, 2))[:, 0]


def fit_tables(
    counts: NDArray[np.float64],
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Turn counts (kind, class, magnitude) into rows by context, and tables.

    Classes that were never seen share the table of the nearest that was.
    """
    table_of = np.zeros(counts.shape[:2], np.uint8)
    rows: list[NDArray[np.float64]] = []
    for kind in range(len(counts)):
        smooth = _smoothed(counts[kind])
        seen = np.flatnonzero(smooth.sum(1) > 0)
        for c in range(CLASSES):
            if c not in seen and len(seen):
                continue
            # A geometric tail keeps magnitudes that the sample lacks affordable.
            mean = 2.0 ** ((c - 0.5) / 4 - 7)
            geometric = (mean / (1 + mean)) ** np.arange(MAGNITUDES) + 1e-5
            table_of[kind, c] = len(rows)
            rows.append(smooth[c] + PRIOR_WEIGHT * geometric / geometric.sum())
        for c in range(CLASSES):
            if len(seen) and c not in seen:
                table_of[kind, c] = table_of[kind, seen[np.abs(seen - c).argmin()]]
    return table_of.ravel(), quantise_frequencies(np.stack(rows))


def fit_offsets(
    chunks: Sequence[Transformed], decided: Sequence[Decided], steps: NDArray[np.float32]
) -> tuple[int, int, int]:
    """Return what oscillating coefficients of magnitude 1, 2 and above lie below it."""
    total, count = np.zeros(4), np.zeros(4)
    for c, d in zip(chunks, decided, strict=True):
        at = np.nonzero(d.symbols)
        oscillating = at[-1] > 0
        at = tuple(a[oscillating] for a in at)
        magnitude = np.abs(d.symbols[at])
        excess = magnitude - np.abs(c.coefficients[at]) / steps[at[3]]
        kind = np.minimum(magnitude, 3)
        total += np.bincount(kind, weights=excess, minlength=4)
        count += np.bincount(kind, minlength=4)
    offsets = np.clip(np.rint(16 * total / np.maximum(count, 1)), -8, 8).astype(int)
    return (int(offsets[1]), int(offsets[2]), int(offsets[3]))
