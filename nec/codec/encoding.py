"""The encoder's walk over a segment: it decides each coefficient and lists what codes it."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.contexts import (
    CLASSES,
    FLAG_CONTEXTS,
    Parameters,
    Scan,
    Segment,
)
from nec.codec.model import (
    FULL,
    Blocks,
    State,
    classify,
    dc_prediction,
    expected_energy,
    expected_residual,
    learn_dc,
    learn_flag,
    learn_tile,
    magnitude_bits,
    neighbours,
    places_around,
    put_magnitude,
    refined,
    ring_of,
    seen_around,
    weighed,
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
    """

    seen: NDArray[np.float32]
    found: NDArray[np.int32]
    flag_seen: NDArray[np.float32]
    flag_found: NDArray[np.int32]
    size: NDArray[np.int64]


@njit(cache=True, nogil=True)
def _record_flag(
    trace: Trace,
    state: State,
    at: tuple[int, int, int, int],
    near: tuple[bool, bool],
    t: int,
    scan: Scan,
    level: int,
) -> None:
    k = trace.size[1]
    one_hot = np.zeros(trace.flag_seen.shape[1], np.int64)
    for i in range(len(one_hot)):
        one_hot[i] = 64
        trace.flag_seen[k, i] = expected_energy(
            state.energy.reshape(-1),
            places_around(state.energy.shape, at),
            at[3],
            near,
            t,
            scan.below,
            level,
            one_hot,
        )
        one_hot[i] = 0
    trace.flag_found[k, 0] = scan.octave[t]
    trace.flag_found[k, 1] = state.energy[at[0], at[1], at[2], at[3], t]
    trace.size[1] = k + 1


# Inlined: a call would count a reference of every array of every tuple.
@njit(cache=True, nogil=True, inline="always")
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
        k = trace.size[0]
        one_hot = np.zeros(trace.seen.shape[1], np.int64)
        for i in range(len(one_hot)):
            one_hot[i] = 64
            trace.seen[k, i] = expected_residual(state.residual, at, near, level, one_hot)
            one_hot[i] = 0
        trace.found[k, 0] = 0
        trace.found[k, 1] = abs(residual)
        trace.size[0] = k + 1
    if refinement == 0:
        learn_dc(state, parameters, b, ring, abs(residual))
    return put_magnitude(events.table, events.value, count, context, residual, shift)


@njit(cache=True, nogil=True, inline="always")
def encode_tile(  # noqa: PLR0912, PLR0915 - decisions of one tile hang together
    coefficients: NDArray[np.float32],
    scale: float,
    rate: float,
    offsets: NDArray[np.int64],
    cost: NDArray[np.float32],
    scan: Scan,
    blocks: Blocks,
    parameters: Parameters,
    state: State,
    at: tuple[int, int, int, int],
    near: tuple[bool, bool],
    t: int,
    events: Events,
    count: int,
    trace: Trace,
) -> int:
    """Decide and code a tile; `scale` turns coefficients to steps. Return the number of events."""
    s, y, x, b = at
    here = state.symbols[s, y, x, b]
    octave = scan.octave[t]
    height, width = blocks.height[s, y, x], blocks.width[s, y, x]
    refinement = blocks.refinement[s, y, x]
    flag_level = refined(state.flag_level[b, octave], refinement)
    flag = flag_context(
        expected_energy(
            state.energy.reshape(-1),
            places_around(state.energy.shape, at),
            b,
            near,
            t,
            scan.below,
            flag_level,
            parameters.flag_weights[octave],
        ),
        octave,
        scan,
    )
    edge, block = 1 << scan.bits, 1 << scan.block_bits
    whole = height == block and width == block
    begin, end = scan.tile_start[t], scan.tile_start[t + 1]
    first, first_trace = count, trace.size[0]
    any_ = False
    for i in range(begin, end):
        if here[scan.order[i]] != 0:
            any_ = True
            break
    total = np.int64(0)
    if any_:
        events.table[count] = flag
        events.value[count] = 1
        count += 1
        kept, dropped = rate * cost[flag, 1], rate * cost[flag, 0]
        w = parameters.weights[octave]
        symbols = state.symbols.reshape(-1)
        places = places_around(state.symbols.shape, at)
        for i in range(begin, end):
            p = scan.order[i]
            u, v = p >> scan.bits, p & (edge - 1)
            if u >= height or v >= width:
                continue
            ring = scan.ring[u + v] if whole else ring_of(p, scan, height, width)
            level = refined(state.level[b, ring], refinement)
            seen = seen_around(symbols, places, b, near, p, scan.bits, level)
            kind, shift = classify(weighed(seen, level, w), scan.classes)
            context = FLAG_CONTEXTS + CLASSES + kind
            c = abs(np.float64(coefficients[p]) * scale)
            m = abs(np.int64(here[p]))
            rebuilt = m - offsets[min(m, 3)] / 16
            best = (c - rebuilt) ** 2 + rate * magnitude_bits(cost, context, m, shift)
            if m > 0 and rate > 0:
                rebuilt = m - 1 - offsets[min(m - 1, 3)] / 16
                lower = (c - rebuilt) ** 2 + rate * magnitude_bits(cost, context, m - 1, shift)
                if lower < best:
                    m -= 1
                    best = lower
            kept += best
            dropped += c * c
            total += m
            here[p] = -m if here[p] < 0 else m
            count = put_magnitude(
                events.table, events.value, count, context, np.int64(here[p]), shift
            )
            if len(trace.seen) > 0:
                k = trace.size[0]
                for j in range(7):
                    trace.seen[k, j] = seen[j]
                trace.seen[k, 7] = level
                trace.found[k, 0] = octave
                trace.found[k, 1] = m
                trace.size[0] = k + 1
        if rate > 0 and dropped <= kept:
            total = np.int64(0)
    if total == 0:
        count = first
        trace.size[0] = first_trace
        events.table[count] = flag
        events.value[count] = 0
        count += 1
        for i in range(begin, end):
            here[scan.order[i]] = 0
    state.energy[s, y, x, b, t] = min(total, FULL)
    if len(trace.seen) > 0:
        _record_flag(trace, state, at, near, t, scan, flag_level)
    if refinement == 0:
        learn_flag(state, parameters, b, octave, min(total, FULL))
        if total > 0:
            learn_tile(state, parameters, scan, at, t, height, width)
    return count


@njit(cache=True, nogil=True)
def encode_segment(
    segment: Segment,
    coefficients: NDArray[np.float32],
    steps: NDArray[np.float32],
    lagrangian: float,
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

    `state.symbols` comes in rounded to the nearest and goes out as decided. `lagrangian` is the
    squared error, in steps, that a bit is worth; 0 keeps the nearest. The number of events is
    returned.
    """
    samples, rows, columns = blocks.coded.shape
    count = 0
    for g in range(segment.first_octave, segment.last_octave):
        for s in range(samples):
            for y in range(rows):
                for x in range(columns):
                    if not blocks.coded[s, y, x]:
                        continue
                    near = neighbours(blocks, s, y, x)
                    height, width = blocks.height[s, y, x], blocks.width[s, y, x]
                    if g > 0 and max(height, width) <= 1 << (g - 1):
                        continue
                    finer = 2.0 ** (blocks.refinement[s, y, x] / 2)
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
                        for t in range(scan.octave_start[g], scan.octave_start[g + 1]):
                            if outside(scan, t, height, width):
                                continue
                            count = encode_tile(
                                coefficients[s, y, x, b],
                                scale,
                                lagrangian,
                                offsets,
                                cost,
                                scan,
                                blocks,
                                parameters,
                                state,
                                at,
                                near,
                                t,
                                events,
                                count,
                                trace,
                            )
    return count
