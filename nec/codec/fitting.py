"""Fit a `Coding` to embeddings: contexts, tables, segments, and steps for a size or a fidelity."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nec.codec.chunk import pack_chunk
from nec.codec.coding import Coding
from nec.codec.contexts import (
    CLASSES,
    FLAG_CONTEXTS,
    FLAG_NEIGHBOURS,
    LEVEL_BITS,
    MAGNITUDES,
    NEIGHBOURS,
    OCTAVES,
    WEIGHT_BITS,
    context_classes,
    pack_levels,
    rings_of,
    unpack_levels,
)
from nec.codec.decisions import Decided, Transformed
from nec.codec.guarantee import cosines, decide_within, decode_decided
from nec.codec.tables import pack, quantise_frequencies
from nec.errors import CompressorError

log = logging.getLogger(__name__)

# Observations that a context's prior is worth.
PRIOR_WEIGHT = 8.0
# What a class lends to the ones beside it.
LENT = 0.25
# A target counts as hit at half a per cent, of the bytes or of the distance to cosine 1.
TOLERANCE = 0.005
# Rounds of deciding coefficients and fitting contexts to them: from scratch, from near by.
ROUNDS, MORE_ROUNDS = 4, 2
# Bytes that a segment costs; segments together take no more than this share of a chunk.
SEGMENT_BYTES, SEGMENT_SHARE = 9, 0.008
# Tokens of a chunk that segments are planned for.
CHUNK_TOKENS = 128 * 128
# Rows of a trace that weights are fitted to, an octave.
TRACED = 200_000


def fit_coding(
    pieces: Sequence[NDArray[np.float32]],
    *,
    relative_steps: NDArray[np.float32],
    block: int,
    lagrangian: float,
    bytes_per_vector: float | None = None,
    cosine: float | None = None,
    min_cosine: float = 0.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Coding, dict[str, float]]:
    """Fit a coding to embeddings, searching the step that hits a size or a fidelity.

    Parameters
    ----------
    pieces : sequence of ndarray of shape (sample, band, y, x), float32
        Chunks; NaN is missing.
    relative_steps : ndarray of shape (band,), float32
        Steps up to a common factor.
    block : int
        Edge of a transform block.
    lagrangian : float
        Squared error, in steps, that a bit is worth.
    bytes_per_vector, cosine : float, optional
        The target: one of the two.
    min_cosine : float
        Smallest cosine that the encoder is to allow; 0 for no guarantee.
    chunk_tokens : int
        Vectors of a chunk that segments are planned for; fewer where the pieces have fewer.

    Returns
    -------
    tuple of Coding and dict
        The coding, and what it does to the pieces: the fields of `nec.compressor.Fidelity`.

    Raises
    ------
    CompressorError
        If no step reaches the target.
    """
    sample = _Sample(pieces, block, lagrangian)
    target = bytes_per_vector if cosine is None else cosine
    assert target is not None
    if cosine is not None and cosine >= 1:
        raise CompressorError(f"a mean cosine of {cosine:g} is out of reach", "ask for less")
    last: Coding | None = None

    def attempt(log_step: float) -> tuple[Coding, float, float]:
        """Return a coding, what it reaches, and the log of that over the target.

        Both are monotonic and nearly straight lines in the log of the step.
        """
        nonlocal last
        steps = (relative_steps * np.float32(2.0**log_step)).astype(np.float32)
        last = sample.fit(steps, last)
        return reach(replace(last, min_cosine=min_cosine))

    def reach(coding: Coding) -> tuple[Coding, float, float]:
        size, fidelity = sample.measure(coding)
        if cosine is None:
            return coding, size, float(np.log(size / target))
        reached = float(fidelity.mean())
        return coding, reached, float(np.log((1 - target) / max(1 - reached, 1e-12)))

    coding, missed = _search(attempt, target, exact=cosine is None)
    coding, _, missed = reach(sample.cut(coding, chunk_tokens))
    # Contexts that follow the steps make what is reached a little rough: the rest without them.
    shift, slope = 0.0, -1.0
    near = coding
    for _ in range(8):
        if abs(missed) <= TOLERANCE:
            break
        shift -= missed / slope
        steps = near.step_values * np.float32(2.0**shift)
        moved, _, now = reach(_with_steps(near, steps))
        if abs(now) < abs(missed):
            coding, missed = moved, now
        else:
            shift, slope = shift + missed / slope, 2 * slope
    size, fidelity = sample.measure(coding)
    return coding, _summary(size, fidelity)


def _search(
    attempt: Callable[[float], tuple[Coding, float, float]], target: float, *, exact: bool
) -> tuple[Coding, float]:
    """Return the coding nearest to the target, and the log of how far it is off.

    Steps are widened until they enclose the target, then false position, Illinois variant: an
    end that stays put counts half.
    """
    finest, coarsest = -10.0, 5.0
    fine, stride = -2.0, 2.0
    coding, reached, above = attempt(fine)
    best = (above, coding)
    coarse, below = fine, above
    while above < 0 and fine > finest:
        coarse, below = fine, above
        fine, stride = max(fine - stride, finest), stride * 1.5
        coding, reached, above = attempt(fine)
        best = min(best, (above, coding), key=lambda b: abs(b[0]))
    if above < 0:
        if exact:
            return coding, 0.0  # the finest steps stay below the budget
        raise CompressorError(
            f"no step reaches {target:g} (the finest gives {reached:g})", "ask for less"
        )
    while below > 0 and coarse < coarsest:
        fine, above = coarse, below
        coarse, stride = min(coarse + stride, coarsest), stride * 1.5
        coding, reached, below = attempt(coarse)
        best = min(best, (below, coding), key=lambda b: abs(b[0]))
    if below > 0 and not exact:
        log.info("the coarsest steps reach %g, more than %g", reached, target)
        return coding, 0.0
    if below > 0:
        raise CompressorError(
            f"no step is coarse enough for {target:g} (the coarsest gives {reached:g})",
            "ask for more, or fit on more data: a chunk has some fixed bytes",
        )
    for _ in range(24):
        if abs(best[0]) <= TOLERANCE or coarse - fine < 1e-4:
            break
        middle = fine + (coarse - fine) * above / (above - below)
        coding, _, excess = attempt(middle)
        best = min(best, (excess, coding), key=lambda b: abs(b[0]))
        if excess > 0:
            fine, above, below = middle, excess, below / 2
        else:
            coarse, below, above = middle, excess, above / 2
    return best[1], best[0]


def measure(pieces: Sequence[NDArray[np.float32]], coding: Coding) -> dict[str, float]:
    """Return size and cosines of embeddings under a coding: fields of `Fidelity`."""
    return _summary(*_Sample(pieces, coding.block, coding.lagrangian).measure(coding))


def _summary(size: float, fidelity: NDArray[np.float64]) -> dict[str, float]:
    return {
        "bytes_per_vector": size,
        "cosine_mean": float(fidelity.mean()),
        "cosine_p01": float(np.quantile(fidelity, 0.01)),
        "cosine_min": float(fidelity.min()),
    }


class _Sample:
    """Embeddings, transformed, that a coding is fitted to."""

    def __init__(
        self, pieces: Sequence[NDArray[np.float32]], block: int, lagrangian: float
    ) -> None:
        self.chunks = [Transformed(p, block) for p in pieces]
        self.block = block
        self.lagrangian = lagrangian
        self.vectors = sum(int(c.valid.sum()) for c in self.chunks)

    def measure(self, coding: Coding) -> tuple[float, NDArray[np.float64]]:
        """Return bytes a vector, and the cosine of every valid vector."""
        size, found = 0, []
        for chunk in self.chunks:
            if coding.min_cosine > 0:
                decided = decide_within(chunk, coding)
            else:
                decided = chunk.decide(coding)
            size += len(pack_chunk(decided, coding))
            decoded = decode_decided(decided, coding)
            valid = chunk.valid
            found.append(
                cosines(np.moveaxis(chunk.values, 1, -1)[valid], np.moveaxis(decoded, 1, -1)[valid])
            )
        return size / self.vectors, np.concatenate(found)

    def fit(self, steps: NDArray[np.float32], near: Coding | None) -> Coding:
        """Fit contexts and tables at given steps, starting from a coding of other steps.

        What the encoder decides hangs on the tables, and they on what it decides: a few rounds.
        """
        coding = self._first(steps) if near is None else _with_steps(near, steps)
        for _ in range(ROUNDS if near is None else MORE_ROUNDS):
            decided = [c.decide(coding, trace=True) for c in self.chunks]
            coding = replace(self._refit(coding, decided), lagrangian=self.lagrangian)
        return coding

    def _first(self, steps: NDArray[np.float32]) -> Coding:
        """Return a coding to start from: it rounds to the nearest, and expects nothing."""
        bands, octaves = len(steps), self.block.bit_length()
        mean = np.zeros(bands)
        count = 0
        for c in self.chunks:
            dc = c.coefficients[..., 0][c.partition.occupied]
            mean += dc.sum(0)
            count += len(dc)
        # Out of range goes verbatim anyway.
        mean = np.clip(np.rint(mean / max(count, 1) / steps), -(1 << 20), 1 << 20)
        return Coding(
            block=self.block,
            steps=pack(steps),
            offsets=(0, 0, 0),
            band_groups=(bands,),
            octave_groups=(octaves,),
            weights=pack(np.full((octaves, NEIGHBOURS), 8, np.uint8)),
            flag_weights=pack(np.full((octaves, FLAG_NEIGHBOURS), 8, np.uint8)),
            level=pack(np.full((bands, rings_of(self.block) + 1), 80, np.uint8)),
            flag_level=pack(np.full((bands, octaves), 80, np.uint8)),
            mean=pack(mean.astype(np.int32)),
            weight=pack(np.full(bands, 12, np.uint8)),
            flags=pack(np.full(FLAG_CONTEXTS, 1 << 15, np.uint16)),
            table_of=pack(np.zeros(2 * CLASSES, np.uint8)),
            tables=pack(np.full(MAGNITUDES, (1 << 16) // MAGNITUDES, np.uint16)),
        )

    def _refit(self, coding: Coding, decided: Sequence[Decided]) -> Coding:
        if not any(d.blocks.coded.any() for d in decided):
            raise CompressorError(
                "the sample holds no block to code", "give finer steps or more data"
            )
        mean, weight = _fit_prediction(decided, coding.bands)
        level, flag_level = _fit_levels(decided)
        octaves = coding.octaves
        weights = np.zeros((octaves, NEIGHBOURS), np.uint8)
        flag_weights = np.zeros((octaves, FLAG_NEIGHBOURS), np.uint8)
        counts = np.zeros((2, CLASSES, MAGNITUDES))
        flag_counts = np.zeros((OCTAVES - 1, CLASSES, 2))
        for g in range(octaves):
            seen, found = _traced(decided, g, flags=False)
            weights[g] = _fit_weights(seen, found)
            kind, shift = _classify(seen, weights[g])
            np.add.at(counts[min(g, 1)], (kind, np.minimum(found >> shift, MAGNITUDES - 1)), 1)
            if g > 0:
                seen, found = _traced(decided, g, flags=True)
                flag_weights[g] = _fit_weights(seen, found)
                kind, _ = _classify(seen, flag_weights[g])
                np.add.at(flag_counts[g - 1], (kind, np.minimum(found, 1)), 1)
        table_of, tables = fit_tables(counts)
        return replace(
            coding,
            offsets=_fit_offsets(self.chunks, decided, coding.step_values),
            weights=pack(weights),
            flag_weights=pack(flag_weights),
            level=pack(level),
            flag_level=pack(flag_level),
            mean=pack(mean),
            weight=pack(weight),
            flags=pack(fit_flags(flag_counts)),
            table_of=pack(table_of),
            tables=pack(tables),
        )

    def cut(self, coding: Coding, chunk_tokens: int) -> Coding:
        """Cut chunks into as many segments as their overhead allows: by octaves and bands."""
        bands, octaves = coding.bands, coding.octaves
        fine = replace(
            coding,
            octave_groups=tuple(range(1, octaves + 1)),
            band_groups=tuple(sorted({b for b in (8, 16, 32, 64, 128) if b < bands} | {bands})),
        )
        sizes = np.zeros((len(fine.octave_groups), len(fine.band_groups)))
        for chunk in self.chunks:
            for i, (table, value) in enumerate(chunk.decide(fine).events):
                real = table >= 0
                bits = fine.cost[table[real], value[real]].sum() - table[~real].sum()
                sizes.flat[i] += bits / 8
        tokens = min(chunk_tokens, self.vectors / len(self.chunks))
        sizes *= tokens / max(self.vectors, 1)
        octave_groups, band_groups = list(fine.octave_groups), list(fine.band_groups)
        # The smallest row or column of segments joins the one before or after it.
        while sizes.size > 1 and SEGMENT_BYTES * sizes.size > SEGMENT_SHARE * sizes.sum():
            rows, columns = sizes.sum(1), sizes.sum(0)
            by_row = rows.min() / len(columns) if len(rows) > 1 else np.inf
            by_column = columns.min() / len(rows) if len(columns) > 1 else np.inf
            axis, groups, totals = (
                (0, octave_groups, rows) if by_row <= by_column else (1, band_groups, columns)
            )
            at = int(totals.argmin())
            at = at - 1 if at == len(totals) - 1 else at
            sizes = np.add.reduceat(sizes, [i for i in range(len(totals)) if i != at + 1], axis)
            del groups[at]
        return replace(coding, octave_groups=tuple(octave_groups), band_groups=tuple(band_groups))


def _with_steps(coding: Coding, steps: NDArray[np.float32]) -> Coding:
    """Return a coding for other steps: what it expects scales with them."""
    ratio = float(np.median(coding.step_values / steps))
    level = unpack_levels(np.arange(248, dtype=np.uint8)) / (1 << LEVEL_BITS)

    def scaled(levels: NDArray[np.int64]) -> str:
        return pack(pack_levels(np.minimum(levels / (1 << LEVEL_BITS) * ratio, level[-1])))

    mean = np.clip(np.rint(coding.parameters.mean * ratio), -(1 << 20), 1 << 20)
    return replace(
        coding,
        steps=pack(steps),
        level=scaled(coding.parameters.level),
        flag_level=scaled(coding.parameters.flag_level),
        mean=pack(mean.astype(np.int32)),
    )


def _fit_prediction(
    decided: Sequence[Decided], bands: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return the mean DC of each band, and what of its neighbours' departure it takes over."""
    total, count = np.zeros(bands), 0
    for d in decided:
        dc = d.symbols[..., 0] * (d.blocks.gain[..., None] / 256)
        total += dc[d.blocks.coded].sum(0)
        count += int(d.blocks.coded.sum())
    mean = np.rint(total / count).astype(np.int32)
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


def _fit_levels(decided: Sequence[Decided]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
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


def _traced(
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


def _fit_weights(seen: NDArray[np.float32], found: NDArray[np.int64]) -> NDArray[np.uint8]:
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


def _classify(
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


def _fit_offsets(
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
