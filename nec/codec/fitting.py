"""Fit a `Coding` to embeddings: context parameters, tables, steps for a size or a fidelity."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nec.codec.chunk import Quantised, Transformed, encode_chunk
from nec.codec.coding import Coding
from nec.codec.contexts import (
    ACTIVITIES,
    FLAG_CONTEXTS,
    LONE_DC,
    MAGNITUDES,
    NEIGHBOURHOODS,
    RINGS,
    SCALES,
    UNIT_SCALE,
    Geometry,
    Parameters,
    geometry,
)
from nec.codec.tables import pack, quantise_frequencies
from nec.errors import CompressorError

log = logging.getLogger(__name__)

# Observations that a context's parent is worth: contexts seen less lean on their scale class.
PRIOR_WEIGHT = 24.0
# A target counts as hit at half a per cent, of the bytes or of the distance to cosine 1.
TOLERANCE = 0.005
# Rounds of deciding coefficients and fitting tables to them.
ROUNDS = 3


def fit_coding(
    pieces: Sequence[NDArray[np.float32]],
    *,
    relative_steps: NDArray[np.float32],
    block: int,
    lagrangian: float,
    bytes_per_vector: float | None = None,
    cosine: float | None = None,
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

    Returns
    -------
    tuple of Coding and dict
        The coding, and what it does to the pieces: the fields of `nec.compressor.Fidelity`.

    Raises
    ------
    CompressorError
        If no step reaches the target.
    """
    chunks = [Transformed(p, block) for p in pieces]
    scan = geometry(block)

    vectors = sum(int(c.valid.sum()) for c in chunks)
    target = bytes_per_vector if cosine is None else cosine
    assert target is not None

    def attempt(log_step: float) -> tuple[Coding, float, float]:
        """Return a coding, what it reaches, and the log of that over the target.

        Both are monotonic and nearly straight lines in the log of the step.
        """
        steps = (relative_steps * np.float32(2.0**log_step)).astype(np.float32)
        coding = fit_tables(chunks, steps, lagrangian, scan)
        if cosine is None:
            reached = sum(len(encode_chunk(p, coding)) for p in pieces) / vectors
            return coding, reached, float(np.log(reached / target))
        reached = float(np.mean(_cosines(pieces, chunks, coding)))
        return coding, reached, float(np.log((1 - target) / max(1 - reached, 1e-12)))

    fine, coarse = -8.0, 4.0
    if cosine is not None and cosine >= 1:
        raise CompressorError(f"a mean cosine of {cosine:g} is out of reach", "ask for less")
    coding, reached, above = attempt(fine)
    if above < 0 and cosine is None:
        return coding, measure(pieces, coding)  # the finest steps stay below the budget
    if above < 0:
        raise CompressorError(
            f"no step reaches {target:g} (the finest gives {reached:g})", "ask for less"
        )
    coding, reached, below = attempt(coarse)
    if below > 0 and cosine is not None:
        log.info("the coarsest steps reach %g, more than %g", reached, target)
        return coding, measure(pieces, coding)
    if below > 0:
        raise CompressorError(
            f"no step is coarse enough for {target:g} (the coarsest gives {reached:g})",
            "ask for more, or fit on more data: a chunk has some fixed bytes",
        )
    # False position, Illinois variant: an end that stays put counts half.
    best = (above, coding)
    for _ in range(24):
        middle = fine + (coarse - fine) * above / (above - below)
        coding, _, excess = attempt(middle)
        if abs(excess) < abs(best[0]):
            best = (excess, coding)
        if abs(excess) <= TOLERANCE or coarse - fine < 1e-4:
            break
        if excess > 0:
            fine, above, below = middle, excess, below / 2
        else:
            coarse, below, above = middle, excess, above / 2
    coding = best[1]
    if abs(best[0]) > 4 * TOLERANCE:
        log.warning("the target %g was missed by %.1f %%", target, 100 * abs(best[0]))
    return coding, measure(pieces, coding)


def measure(pieces: Sequence[NDArray[np.float32]], coding: Coding) -> dict[str, float]:
    """Return size and cosines of embeddings under a coding: fields of `Fidelity`."""
    cosines = _cosines(pieces, [Transformed(p, coding.block) for p in pieces], coding)
    return {
        "bytes_per_vector": sum(len(encode_chunk(p, coding)) for p in pieces) / len(cosines),
        "cosine_mean": float(cosines.mean()),
        "cosine_p01": float(np.quantile(cosines, 0.01)),
        "cosine_min": float(cosines.min()),
    }


def fit_tables(
    chunks: Sequence[Transformed], steps: NDArray[np.float32], lagrangian: float, scan: Geometry
) -> Coding:
    """Fit context parameters, offsets and tables at given steps.

    What the encoder decides hangs on the tables, and they on what it decides: a few rounds.
    """
    quantised = [c.quantise(steps) for c in chunks]
    contexts = FLAG_CONTEXTS + SCALES * NEIGHBOURHOODS
    cost = np.zeros((contexts, MAGNITUDES), np.float32)
    coding: Coding | None = None
    for pass_ in range(ROUNDS if lagrangian else 1):
        parameters = fit_parameters(quantised, scan)
        # The first round knows no costs: it rounds to the nearest.
        draft = Coding(
            block=scan.block,
            steps=tuple(float(s) for s in steps),
            offsets=fit_offsets(chunks, quantised, steps),
            lagrangian=lagrangian if pass_ else 0.0,
            scale=pack(parameters.scale),
            activity=pack(parameters.activity),
            mean=pack(parameters.mean),
            weight=pack(parameters.weight),
            flags="",
            table_of="",
            tables="",
        )
        counts = np.zeros((contexts, MAGNITUDES))
        decided = [c.decide(draft, parameters, cost, scan) for c in chunks]
        for _, table, value in decided:
            real = table >= 0
            flat = table[real].astype(np.int64) * MAGNITUDES + value[real]
            counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
        quantised = [d.quantised for d in decided]
        flags, table_of, tables = fit_frequencies(counts)
        coding = replace(
            draft,
            lagrangian=lagrangian,
            flags=pack(flags),
            table_of=pack(table_of),
            tables=pack(tables),
        )
        cost = coding.cost
    assert coding is not None
    return coding


def fit_parameters(quantised: Sequence[Quantised], scan: Geometry) -> Parameters:
    """Fit the DC prediction, the scale classes and the activity classes of every band."""
    bands = quantised[0].symbols.shape[3]
    dc = np.concatenate([q.symbols[..., 0][q.coded] for q in quantised]).astype(np.float64)
    if not len(dc):
        raise CompressorError("the sample holds no block to code", "give finer steps or more data")
    mean = np.rint(dc.mean(0)).astype(np.int32)
    departure, around = _neighbours(quantised, mean)
    weight = np.zeros(bands, np.uint8)
    if len(departure):
        power = (around**2).sum(0)
        slope = (departure * around).sum(0) / np.where(power > 0, power, 1)
        weight = np.clip(np.rint(16 * slope), 0, 16).astype(np.uint8)
    scale = np.zeros((bands, RINGS + 1), np.uint8)
    scale[:, LONE_DC] = _scale_class(np.abs(dc - mean).mean(0))
    residual = departure - np.rint(around * weight / 16) if len(departure) else dc - mean
    scale[:, 0] = _scale_class(np.abs(residual).mean(0))
    total = np.zeros((bands, scan.block**2))
    groups = len(scan.edges) - 1
    active = np.zeros((bands, groups))
    for q in quantised:
        symbols = np.abs(q.symbols[q.coded])
        total += symbols.sum(0)
        for g in range(1, groups):
            members = scan.order[scan.edges[g] : scan.edges[g + 1]]
            active[:, g] += (symbols[:, :, members] > 0).any(-1).sum(0)
    for r in range(1, int(scan.ring.max()) + 1):
        scale[:, r] = _scale_class(total[:, scan.ring == r].mean(1) / len(dc))
    share = (active[:, 1:] + 0.5) / (len(dc) + 1)
    odds = np.log2(share / (1 - share))
    activity = np.clip(np.floor((odds + 9) / 2), 0, ACTIVITIES - 1).astype(np.uint8)
    return Parameters(scale, activity, mean, weight)


def _scale_class(magnitude: NDArray[np.float64]) -> NDArray[np.uint8]:
    step = np.rint(2 * np.log2(np.maximum(magnitude, 1e-9))) + UNIT_SCALE
    scale: NDArray[np.uint8] = np.clip(step, 0, SCALES - 1).astype(np.uint8)
    return scale


def _neighbours(
    quantised: Sequence[Quantised], mean: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return departures from the mean of DCs with neighbours, and their neighbours' average."""
    own, others = [], []
    for q in quantised:
        dc = np.where(q.coded[..., None], q.symbols[..., 0] - mean, 0).astype(np.float64)
        total, count = np.zeros_like(dc), np.zeros(q.coded.shape)
        total[:, :, 1:] += dc[:, :, :-1]
        count[:, :, 1:] += q.coded[:, :, :-1]
        total[:, 1:] += dc[:, :-1]
        count[:, 1:] += q.coded[:, :-1]
        has = q.coded & (count > 0)
        own.append(dc[has])
        others.append(total[has] / count[has][:, None])
    return np.concatenate(own), np.concatenate(others)


def fit_frequencies(
    counts: NDArray[np.float64],
) -> tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.uint16]]:
    """Turn counts (context, symbol) into flag frequencies, table rows and tables.

    Neighbourhoods that were never seen share their scale class's table, scale classes that
    were never seen that of the nearest seen one.
    """
    flag_counts = counts[:FLAG_CONTEXTS, :2]
    overall = flag_counts.sum(0) + 1e-3
    parent = flag_counts.reshape(ACTIVITIES, -1, 2).sum(1) + overall / overall.sum()
    parent = np.repeat(parent / parent.sum(1, keepdims=True), FLAG_CONTEXTS // ACTIVITIES, axis=0)
    flags = quantise_frequencies(flag_counts + PRIOR_WEIGHT * parent)[:, 0]

    by_scale = counts[FLAG_CONTEXTS:].reshape(SCALES, NEIGHBOURHOODS, MAGNITUDES)
    seen = np.flatnonzero(by_scale.sum((1, 2)) > 0)
    if not len(seen):
        seen = np.array([0])
    rows: list[NDArray[np.float64]] = []
    table_of = np.zeros((SCALES, NEIGHBOURHOODS), np.uint8)
    # Rows are numbered in a byte: with many scale classes, the rarest neighbourhoods share.
    least = PRIOR_WEIGHT
    while (by_scale.sum(-1) > least).sum() + len(seen) > 255:
        least *= 2
    for s in seen:
        shape = by_scale[s].sum(0)
        # A geometric tail keeps magnitudes that the sample lacks affordable.
        mean = (shape * np.arange(MAGNITUDES)).sum() / max(shape.sum(), 1)
        geometric = (mean / (1 + mean) + 1e-4) ** np.arange(MAGNITUDES)
        own = shape + 4 * geometric / geometric.sum()
        own /= own.sum()
        common = len(rows)
        rows.append(own)
        for n in range(NEIGHBOURHOODS):
            table_of[s, n] = common
            if by_scale[s, n].sum() > least:
                table_of[s, n] = len(rows)
                rows.append(by_scale[s, n] + PRIOR_WEIGHT * own)
    for unseen in set(range(SCALES)) - set(seen.tolist()):
        table_of[unseen] = table_of[seen[np.abs(seen - unseen).argmin()]]
    return flags, table_of, quantise_frequencies(np.stack(rows))


def fit_offsets(
    chunks: Sequence[Transformed], quantised: Sequence[Quantised], steps: NDArray[np.float32]
) -> tuple[int, int, int, int]:
    """Return what oscillating coefficients of magnitude 1, 2 and above lie below it."""
    total, count = np.zeros(4), np.zeros(4)
    for c, q in zip(chunks, quantised, strict=True):
        magnitude = np.minimum(np.abs(q.symbols), 3)
        magnitude[..., 0] = 0
        at = np.nonzero(magnitude)
        excess = np.abs(q.symbols[at]) - np.abs(c.coefficients[at]) / steps[at[3]]
        total += np.bincount(magnitude[at], weights=excess, minlength=4)
        count += np.bincount(magnitude[at], minlength=4)
    offsets = np.clip(np.rint(16 * total / np.maximum(count, 1)), -8, 8).astype(int)
    return (0, int(offsets[1]), int(offsets[2]), int(offsets[3]))


def _cosines(
    pieces: Sequence[NDArray[np.float32]], chunks: Sequence[Transformed], coding: Coding
) -> NDArray[np.float64]:
    """Return the cosine of every valid vector with its decoded self."""
    steps = np.array(coding.steps, np.float32)
    cosines = []
    for piece, chunk in zip(pieces, chunks, strict=True):
        scan = geometry(coding.block)
        quantised = chunk.decide(coding, coding.parameters, coding.cost, scan).quantised
        decoded = np.empty_like(piece)
        quantised.reconstruct(steps, coding.offsets, decoded)
        a = np.moveaxis(piece, 1, -1)[chunk.valid].astype(np.float64)
        b = np.moveaxis(decoded, 1, -1)[chunk.valid].astype(np.float64)
        b = np.where(np.isnan(b), a, b)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        # Zero vectors: 1 where both are zero, else 0.
        same = (norms == 0) & (a == b).all(1)
        cosines.append(np.where(norms > 0, (a * b).sum(1) / np.where(norms > 0, norms, 1), same))
    return np.concatenate(cosines)
