"""The encoder's walk over a segment: it decides each coefficient and lists what codes it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nec.codec.contexts import (
    CLASSES,
    FLAG_CONTEXTS,
    Parameters,
    Scan,
    Segment,
)
from nec.codec.kernels import inlined, kernel
from nec.codec.magnitudes import magnitude_bits, put_magnitude
from nec.codec.model import (
    FULL,
    Blocks,
    State,
    classify,
    dc_prediction,
    expected_energy,
    expected_magnitude,
    expected_residual,
    learn_dc,
    learn_flag,
    learn_tile,
    magnitude_at,
    neighbours,
    outer_weights,
    places_around,
    refined,
    ring_of,
    tile_rows,
)
from nec.codec.traversal import flag_context, outside


class Events(NamedTuple):
    """Events in coding order: a table (or minus a number of uniform bits) and a value."""

    table: NDArray[np.int32]
    value: NDArray[np.int32]


class Trace(NamedTuple):
    """What the contexts saw, for fitting; nothing is recorded where the arrays are empty.

    Attributes
    ----------
    seen : ndarray of shape (n, NEIGHBOURS), float32
        Around each coefficient, 1024ths; the level last.
    found : ndarray of shape (n, 2), int32
        Its octave and magnitude.
    flag_seen : ndarray of shape (m, FLAG_NEIGHBOURS), float32
        Around each tile.
    flag_found : ndarray of shape (m, 2), int32
        Its octave and energy.
    size : ndarray of shape (2,), int64
        How many of each were recorded.
    one_hot : ndarray of shape (NEIGHBOURS,), int64
        Scratch: weights that pick one of what surrounds a coefficient. Zeros.
    """

    seen: NDArray[np.float32]
    found: NDArray[np.int32]
    flag_seen: NDArray[np.float32]
    flag_found: NDArray[np.int32]
    size: NDArray[np.int64]
    one_hot: NDArray[np.int64]


@inlined
def record_flag(
    trace: Trace,
    state: State,
    places: tuple[int, int, int, int, int],
    b: int,
    near: tuple[bool, bool],
    t: int,
    octave: int,
    scan: Scan,
    level: int,
) -> None:
    """Record what a tile's flag saw, and the tile's energy."""
    k, one_hot = trace.size[1], trace.one_hot
    energy = state.energy.reshape(-1)
    for i in range(trace.flag_seen.shape[1]):
        one_hot[i] = 64
        trace.flag_seen[k, i] = expected_energy(
            energy, places, b, near, t, scan.below, level, one_hot
        )
        one_hot[i] = 0
    trace.flag_found[k, 0] = octave
    trace.flag_found[k, 1] = energy[places[0] + t]
    trace.size[1] = k + 1


@inlined
def record_magnitude(
    trace: Trace,
    symbols: NDArray[np.int32],
    places: tuple[int, int, int, int, int],
    b: int,
    near: tuple[bool, bool],
    u: int,
    v: int,
    octave: int,
    bits: int,
    seen: tuple[int, int, int],
    level: int,
    magnitude: int,
) -> None:
    """Record what an oscillating coefficient saw, and its magnitude."""
    k, one_hot = trace.size[0], trace.one_hot
    for i in range(trace.seen.shape[1]):
        one_hot[i] = 64
        inner = (one_hot[2], one_hot[3], one_hot[4])
        trace.seen[k, i] = expected_magnitude(
            symbols, places, u, v, bits, outer_weights(one_hot, near, b), inner, seen, level
        )
        one_hot[i] = 0
    trace.found[k, 0] = octave
    trace.found[k, 1] = magnitude
    trace.size[0] = k + 1


@inlined
def encode_dc(
    coefficient: float,
    rate: float,
    cost: NDArray[np.float32],
    scan: Scan,
    blocks: Blocks,
    parameters: Parameters,
    state: State,
    at: tuple[int, int, int, int],
    near: tuple[bool, bool],
    events: Events,
    count: int,
    trace: Trace,
) -> int:
    """Decide and code a DC, given in steps; return the new number of events."""
    s, y, x, b = at
    lone = not (near[0] or near[1])
    predicted = dc_prediction(
        state.symbols, blocks, at, near, parameters.mean[b], parameters.weight[b]
    )
    ring = state.level.shape[1] - 1 if lone else 0
    refinement = blocks.refinement[s, y, x]
    level = refined(state.level[b, ring], refinement)
    w = parameters.weights[0]
    expected = expected_residual(state.residual, at, near, level, w)
    kind, shift = classify(expected, scan.classes)
    context = FLAG_CONTEXTS + kind
    symbol = np.int64(state.symbols[s, y, x, b, 0])
    residual = symbol - predicted
    if residual != 0 and rate > 0:
        nearer = residual - (1 if residual > 0 else -1)
        stay = (coefficient - symbol) ** 2 + rate * magnitude_bits(
            cost, context, abs(residual), shift
        )
        move = (coefficient - predicted - nearer) ** 2 + rate * magnitude_bits(
            cost, context, abs(nearer), shift
        )
        if move < stay:
            residual = nearer
    state.symbols[s, y, x, b, 0] = predicted + residual
    state.residual[s, y, x, b] = residual
    state.energy[s, y, x, b, 0] = min(abs(residual), FULL)
    if len(trace.seen) > 0:
        k, one_hot = trace.size[0], trace.one_hot
        for i in range(trace.seen.shape[1]):
            one_hot[i] = 64
            trace.seen[k, i] = expected_residual(state.residual, at, near, level, one_hot)
            one_hot[i] = 0
        trace.found[k, 0] = 0
        trace.found[k, 1] = abs(residual)
        trace.size[0] = k + 1
    if refinement == 0:
        learn_dc(state, parameters, b, ring, abs(residual))
    return put_magnitude(events.table, events.value, count, context, residual, shift)


@inlined
def decided(
    c: float,
    magnitude: int,
    rate: float,
    offsets: NDArray[np.int64],
    cost: NDArray[np.float32],
    context: int,
    shift: int,
) -> tuple[int, float]:
    """Return a magnitude or the next smaller one, whichever is better, and what it costs.

    `c` is the coefficient's own magnitude, steps; `rate` the squared error that a bit is worth.
    """
    best = (c - magnitude + offsets[min(magnitude, 3)] / 16) ** 2 + rate * magnitude_bits(
        cost, context, magnitude, shift
    )
    if magnitude > 0:
        smaller = magnitude - 1
        lower = (c - smaller + offsets[min(smaller, 3)] / 16) ** 2 + rate * magnitude_bits(
            cost, context, smaller, shift
        )
        if lower < best:
            magnitude, best = smaller, lower
        if smaller > 0:
            none = c**2 + rate * magnitude_bits(cost, context, 0, shift)
            if none < best:
                return 0, none
    return magnitude, best


@kernel
def encode_segment(  # noqa: PLR0912, PLR0915 - one loop nest, as the decoder's
    segment: Segment,
    coefficients: NDArray[np.float32],
    steps: NDArray[np.float32],
    lagrangians: NDArray[np.float64],
    offsets: NDArray[np.int64],
    cost: NDArray[np.float32],
    scan: Scan,
    blocks: Blocks,
    parameters: Parameters,
    state: State,
    events: Events,
    trace: Trace,
) -> int:
    """Decide the coefficients of a segment and list the events that code them.

    `state.symbols` comes in rounded to the nearest, and `state.energy` with the sums of the tiles
    of that; both go out as decided. `lagrangians` are the squared errors, in steps, that a bit is
    worth in each octave; 0 keeps the nearest. The number of events is returned.
    """
    samples, rows, columns = blocks.coded.shape
    bits, edge = scan.bits, 1 << scan.bits
    symbols, energy = state.symbols.reshape(-1), state.energy.reshape(-1)
    waves = coefficients.reshape(-1)
    tables, values = events.table, events.value
    tracing = len(trace.seen) > 0
    count = 0
    for g in range(segment.first_octave, segment.last_octave):
        w = parameters.weights[g]
        lagrangian = lagrangians[g]
        for s in range(samples):
            for y in range(rows):
                for x in range(columns):
                    if not blocks.coded[s, y, x]:
                        continue
                    near = neighbours(blocks, s, y, x)
                    height, width = blocks.height[s, y, x], blocks.width[s, y, x]
                    if g > 0 and max(height, width) <= 1 << (g - 1):
                        continue
                    refinement = blocks.refinement[s, y, x]
                    finer = 2.0 ** (refinement / 2)
                    for b in range(segment.first_plane, segment.last_plane):
                        at = (s, y, x, b)
                        scale = finer / np.float64(steps[b])
                        if g == 0:
                            count = encode_dc(
                                coefficients[s, y, x, b, 0] * scale,
                                lagrangian,
                                cost,
                                scan,
                                blocks,
                                parameters,
                                state,
                                at,
                                near,
                                events,
                                count,
                                trace,
                            )
                            continue
                        around = places_around(state.symbols.shape, at, near)
                        beside = places_around(state.energy.shape, at, near)
                        outer, inner = outer_weights(w, near, b), (w[2], w[3], w[4])
                        for t in range(scan.octave_start[g], scan.octave_start[g + 1]):
                            if outside(scan, t, height, width):
                                continue
                            flag_level = refined(state.flag_level[b, g], refinement)
                            flag = flag_context(
                                expected_energy(
                                    energy,
                                    beside,
                                    b,
                                    near,
                                    t,
                                    scan.below,
                                    flag_level,
                                    parameters.flag_weights[g],
                                ),
                                g,
                                scan,
                            )
                            # What is kept is worth its bits and errors; all zero costs these.
                            kept, dropped = lagrangian * cost[flag, 1], lagrangian * cost[flag, 0]
                            total = np.int64(0)
                            first_event, first_trace = count, trace.size[0]
                            filled = energy[beside[0] + t] > 0
                            shape = tile_rows(scan, t, g, height, width)
                            top, bottom, turn, far, close, end = shape
                            if filled:
                                tables[count] = flag
                                values[count] = 1
                                count += 1
                                for u in range(top, bottom):
                                    first = far if u < turn else close
                                    line = around[0] + (u << bits)
                                    back = corner = np.int64(0)
                                    if first > 0:
                                        back = magnitude_at(symbols, line + first - 1)
                                        if u > 0:
                                            corner = magnitude_at(symbols, line - edge + first - 1)
                                    for v in range(first, end):
                                        low = magnitude_at(symbols, line - edge + v) if u > 0 else 0
                                        ring = np.uint64(ring_of(u, v, scan, height, width))
                                        level = refined(state.level[b, ring], refinement)
                                        seen = (low, back, corner)
                                        kind, shift = classify(
                                            expected_magnitude(
                                                symbols,
                                                around,
                                                u,
                                                v,
                                                bits,
                                                outer,
                                                inner,
                                                seen,
                                                level,
                                            ),
                                            scan.classes,
                                        )
                                        context = FLAG_CONTEXTS + CLASSES + kind
                                        q = np.int64(symbols[line + v])
                                        m = abs(q)
                                        if lagrangian > 0:
                                            c = abs(np.float64(waves[line + v]) * scale)
                                            m, best = decided(
                                                c, m, lagrangian, offsets, cost, context, shift
                                            )
                                            kept += best
                                            dropped += c * c
                                        total += m
                                        q = -m if q < 0 else m
                                        symbols[line + v] = q
                                        count = put_magnitude(
                                            tables, values, count, context, q, shift
                                        )
                                        if tracing:
                                            record_magnitude(
                                                trace,
                                                symbols,
                                                around,
                                                b,
                                                near,
                                                u,
                                                v,
                                                g,
                                                bits,
                                                seen,
                                                level,
                                                m,
                                            )
                                        back, corner = m, low
                                if lagrangian > 0 and dropped <= kept:
                                    total = np.int64(0)
                            if total == 0:
                                count = first_event
                                trace.size[0] = first_trace
                                tables[count] = flag
                                values[count] = 0
                                count += 1
                                if filled:
                                    for u in range(top, bottom):
                                        line = around[0] + (u << bits)
                                        for v in range(far if u < turn else close, end):
                                            symbols[line + v] = 0
                            energy[beside[0] + t] = min(total, FULL)
                            if tracing:
                                record_flag(trace, state, beside, b, near, t, g, scan, flag_level)
                            if refinement == 0:
                                learn_flag(state, parameters, b, g, min(total, FULL))
                                if total > 0:
                                    for u in range(top, bottom):
                                        line = around[0] + (u << bits)
                                        for v in range(far if u < turn else close, end):
                                            m = magnitude_at(symbols, line + v)
                                            if m > 0:
                                                ring = ring_of(u, v, scan, height, width)
                                                state.total[b, ring] += m
                                    learn_tile(state, parameters, scan, t, b, shape, height, width)
    return count
