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
    pack_levels,
    rings_of,
    unpack_levels,
)
from nec.codec.decisions import Decided, Transformed
from nec.codec.estimation import (
    classify_rows,
    fit_flags,
    fit_levels,
    fit_offsets,
    fit_prediction,
    fit_tables,
    fit_weights,
    traced,
)
from nec.codec.guarantee import cosines, decide_within, decode_decided
from nec.codec.tables import pack
from nec.errors import CompressorError

log = logging.getLogger(__name__)

# A target counts as hit at half a per cent, of the bytes or of the distance to cosine 1.
TOLERANCE = 0.005
# Steps that are searched, powers of 2 times the relative ones.
FINEST, COARSEST = -10.0, 5.0
# Rounds of deciding coefficients and fitting contexts to them: from scratch, from near by.
ROUNDS, MORE_ROUNDS = 4, 2
# Bytes that a segment costs; segments together take no more than this share of a chunk.
SEGMENT_BYTES, SEGMENT_SHARE = 9, 0.008
# Tokens of a chunk that segments are planned for.
CHUNK_TOKENS = 128 * 128


def fit_coding(
    pieces: Sequence[NDArray[np.float32]],
    *,
    relative_steps: NDArray[np.float32],
    block: int,
    lagrangian: float,
    bytes_per_vector: float | None = None,
    cosine: float | None = None,
    min_cosine: float = 0.0,
    falloff: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
    kept: Sequence[NDArray[np.float32]] | None = None,
    bases: Sequence[NDArray[np.float32]] | None = None,
    more_bytes: float = 0.0,
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
        The target: one of the two; the coarsest steps without.
    min_cosine : float
        Smallest cosine that the encoder is to allow; 0 for no guarantee.
    falloff : float
        How many times less a squared error counts at each finer octave.
    chunk_tokens : int
        Vectors of a chunk that segments are planned for; fewer where the pieces have fewer.
    kept : sequence of ndarray of shape (valid vector,), float32, optional
        What part of the length of a piece's feature vectors its bands hold; all by default.
    bases : sequence of ndarray of shape (sample, band, y, x), float32, optional
        What was taken away from the pieces, and counts in cosines.
    more_bytes : float
        Bytes a vector that are spent beside.

    Returns
    -------
    tuple of Coding and dict
        The coding, and what it does to the pieces: the fields of `nec.compressor.Fidelity`.

    Raises
    ------
    CompressorError
        If no step reaches the target.
    """
    check_guarantee(min_cosine, kept)
    sample = _Sample(pieces, block, lagrangian, falloff, kept, bases, more_bytes)
    target = bytes_per_vector if cosine is None else cosine
    if target is None:
        coarse = sample.fit((relative_steps * np.float32(2.0**COARSEST)).astype(np.float32), None)
        coding = replace(sample.cut(coarse, chunk_tokens), min_cosine=min_cosine)
        return coding, _summary(*sample.measure(coding))
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


def check_guarantee(min_cosine: float, kept: Sequence[NDArray[np.float32]] | None) -> None:
    """Check that a smallest cosine can be kept: by all of the features alone.

    Raises
    ------
    CompressorError
        If bands hold a part of them.
    """
    if kept is not None and min_cosine > 0:
        raise CompressorError(
            f"a smallest cosine of {min_cosine:g} cannot be kept by a part of the features",
            "keep as many bands as there are features",
        )


def _search(
    attempt: Callable[[float], tuple[Coding, float, float]], target: float, *, exact: bool
) -> tuple[Coding, float]:
    """Return the coding nearest to the target, and the log of how far it is off.

    Steps are widened until they enclose the target, then false position, Illinois variant: an
    end that stays put counts half.
    """
    fine, stride = -2.0, 2.0
    coding, reached, above = attempt(fine)
    best = (above, coding)
    coarse, below = fine, above
    while above < 0 and fine > FINEST:
        coarse, below = fine, above
        fine, stride = max(fine - stride, FINEST), stride * 1.5
        coding, reached, above = attempt(fine)
        best = min(best, (above, coding), key=lambda b: abs(b[0]))
    if above < 0:
        if exact:
            return coding, 0.0  # the finest steps stay below the budget
        raise CompressorError(
            f"no step reaches {target:g} (the finest gives {reached:g})", "ask for less"
        )
    while below > 0 and coarse < COARSEST:
        fine, above = coarse, below
        coarse, stride = min(coarse + stride, COARSEST), stride * 1.5
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


def measure(
    pieces: Sequence[NDArray[np.float32]],
    coding: Coding,
    kept: Sequence[NDArray[np.float32]] | None = None,
) -> dict[str, float]:
    """Return size and cosines of embeddings under a coding: fields of `Fidelity`.

    `kept` is that of `fit_coding`.
    """
    sample = _Sample(pieces, coding.block, coding.lagrangian, coding.falloff, kept)
    return _summary(*sample.measure(coding))


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
        self,
        pieces: Sequence[NDArray[np.float32]],
        block: int,
        lagrangian: float,
        falloff: float,
        kept: Sequence[NDArray[np.float32]] | None = None,
        bases: Sequence[NDArray[np.float32]] | None = None,
        more_bytes: float = 0.0,
    ) -> None:
        self.kept = 1.0 if kept is None else np.concatenate(kept)
        self.chunks = [Transformed(p, block) for p in pieces]
        self.bases = bases or [np.zeros(1, np.float32)] * len(pieces)
        self.more_bytes = more_bytes
        self.block = block
        self.lagrangian, self.falloff = lagrangian, falloff
        self.vectors = sum(int(c.valid.sum()) for c in self.chunks)

    def measure(self, coding: Coding) -> tuple[float, NDArray[np.float64]]:
        """Return bytes a vector, and the cosine of every valid vector."""
        size, found = 0, []
        for chunk, base in zip(self.chunks, self.bases, strict=True):
            decided = decide_within(chunk, coding)
            size += len(pack_chunk(decided, coding))
            decoded = decode_decided(decided, coding)
            valid = chunk.valid
            pair = (np.moveaxis(v + base, 1, -1)[valid] for v in (chunk.values, decoded))
            found.append(cosines(*pair))
        return size / self.vectors + self.more_bytes, np.concatenate(found) * self.kept

    def fit(self, steps: NDArray[np.float32], near: Coding | None) -> Coding:
        """Fit contexts and tables at given steps, starting from a coding of other steps.

        What the encoder decides hangs on the tables, and they on what it decides: a few rounds.
        """
        coding = self._first(steps) if near is None else _with_steps(near, steps)
        for _ in range(ROUNDS if near is None else MORE_ROUNDS):
            decided = [c.decide(coding, trace=True) for c in self.chunks]
            coding = replace(
                self._refit(coding, decided), lagrangian=self.lagrangian, falloff=self.falloff
            )
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
        mean, weight = fit_prediction(decided, coding.bands)
        level, flag_level = fit_levels(decided)
        octaves = coding.octaves
        weights = np.zeros((octaves, NEIGHBOURS), np.uint8)
        flag_weights = np.zeros((octaves, FLAG_NEIGHBOURS), np.uint8)
        counts = np.zeros((2, CLASSES, MAGNITUDES))
        flag_counts = np.zeros((OCTAVES - 1, CLASSES, 2))
        for g in range(octaves):
            seen, found = traced(decided, g, flags=False)
            weights[g] = fit_weights(seen, found)
            kind, shift = classify_rows(seen, weights[g])
            np.add.at(counts[min(g, 1)], (kind, np.minimum(found >> shift, MAGNITUDES - 1)), 1)
            if g > 0:
                seen, found = traced(decided, g, flags=True)
                flag_weights[g] = fit_weights(seen, found)
                kind, _ = classify_rows(seen, flag_weights[g])
                np.add.at(flag_counts[g - 1], (kind, np.minimum(found, 1)), 1)
        table_of, tables = fit_tables(counts)
        return replace(
            coding,
            offsets=fit_offsets(self.chunks, decided, coding.step_values),
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
