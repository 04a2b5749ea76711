"""The decoder's walk over the coefficients of a segment."""

import numpy as np
from numpy.typing import NDArray

from nec.codec.contexts import (
    CLASSES,
    FLAG_CONTEXTS,
    LARGEST,
    TILE,
    Parameters,
    Scan,
    Segment,
)
from nec.codec.kernels import inlined, kernel
from nec.codec.magnitudes import read_magnitude
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
from nec.codec.rans import read_symbol


@inlined
def outside(scan: Scan, t: int, height: int, width: int) -> bool:
    """Return whether a box has none of a tile's frequencies."""
    lowest = 1 << (scan.octave[t] - 1)
    if lowest < TILE:
        return height <= lowest and width <= lowest
    return scan.corner[t, 0] >= height or scan.corner[t, 1] >= width


@inlined
def flag_context(expected: int, octave: int, scan: Scan) -> int:
    """Return the context of a tile's flag."""
    kind, _ = classify(expected, scan.classes)
    return (octave - 1) * CLASSES + kind


@kernel
def decode_segment(  # noqa: PLR0912, PLR0915 - one loop nest: cut up, no clearer and slower
    segment: Segment,
    stream: np.uint64,
    words: NDArray[np.uint32],
    cumulative: NDArray[np.uint32],
    scan: Scan,
    blocks: Blocks,
    parameters: Parameters,
    state: State,
    extent: NDArray[np.uint8],
) -> bool:
    """Read the coefficients of a segment; False where its stream is damaged.

    `extent` (sample, row, column, plane, 2) grows to the number of rows and columns of
    frequencies that hold anything.
    """
    samples, rows, columns = blocks.coded.shape
    bits, edge = scan.bits, 1 << scan.bits
    read = 0
    symbols = state.symbols
    flat, energy = symbols.reshape(-1), state.energy.reshape(-1)
    for g in range(segment.first_octave, segment.last_octave):
        w = parameters.weights[g]
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
                    for b in range(segment.first_plane, segment.last_plane):
                        at = (s, y, x, b)
                        here = symbols[s, y, x, b]
                        reach = extent[s, y, x, b]
                        if g == 0:
                            predicted = dc_prediction(
                                symbols, blocks, at, near, parameters.mean[b], parameters.weight[b]
                            )
                            ring = 0 if near[0] or near[1] else state.level.shape[1] - 1
                            level = refined(state.level[b, ring], refinement)
                            kind, shift = classify(
                                expected_residual(state.residual, at, near, level, w),
                                scan.classes,
                            )
                            residual, stream, read = read_magnitude(
                                stream, words, read, cumulative, FLAG_CONTEXTS + kind, shift
                            )
                            if abs(residual) > 2 * LARGEST or abs(predicted + residual) > LARGEST:
                                return False
                            here[0] = predicted + residual
                            state.residual[s, y, x, b] = residual
                            state.energy[s, y, x, b, 0] = min(abs(residual), FULL)
                            if refinement == 0:
                                learn_dc(state, parameters, b, ring, abs(residual))
                            if here[0] != 0:
                                reach[0] = reach[1] = 1
                            continue
                        around = places_around(symbols.shape, at, near)
                        beside = places_around(state.energy.shape, at, near)
                        outer, inner = outer_weights(w, near, b), (w[2], w[3], w[4])
                        deepest, widest = np.int64(reach[0]), np.int64(reach[1])
                        for t in range(scan.octave_start[g], scan.octave_start[g + 1]):
                            if outside(scan, t, height, width):
                                continue
                            flag, stream, read = read_symbol(
                                stream,
                                words,
                                read,
                                cumulative,
                                flag_context(
                                    expected_energy(
                                        energy,
                                        beside,
                                        b,
                                        near,
                                        t,
                                        scan.below,
                                        refined(state.flag_level[b, g], refinement),
                                        parameters.flag_weights[g],
                                    ),
                                    g,
                                    scan,
                                ),
                            )
                            if flag == 0:
                                if refinement == 0:
                                    learn_flag(state, parameters, b, g, 0)
                                continue
                            total = np.int64(0)
                            shape = tile_rows(scan, t, g, height, width)
                            top, bottom, turn, far, close, end = shape
                            for u in range(top, bottom):
                                first = far if u < turn else close
                                line = around[0] + (u << bits)
                                back = corner = np.int64(0)
                                if first > 0:
                                    back = magnitude_at(flat, line + first - 1)
                                    if u > 0:
                                        corner = magnitude_at(flat, line - edge + first - 1)
                                for v in range(first, end):
                                    low = magnitude_at(flat, line - edge + v) if u > 0 else 0
                                    ring = np.uint64(ring_of(u, v, scan, height, width))
                                    level = state.level[b, ring]
                                    if refinement > 0:
                                        level = refined(level, refinement)
                                    seen = (low, back, corner)
                                    kind, shift = classify(
                                        expected_magnitude(
                                            flat, around, u, v, bits, outer, inner, seen, level
                                        ),
                                        scan.classes,
                                    )
                                    q, stream, read = read_magnitude(
                                        stream,
                                        words,
                                        read,
                                        cumulative,
                                        FLAG_CONTEXTS + CLASSES + kind,
                                        shift,
                                    )
                                    back, corner = abs(q), low
                                    if q == 0:
                                        continue
                                    if back > LARGEST:
                                        return False
                                    flat[np.uint64(line + v)] = q
                                    total += back
                                    if refinement == 0:
                                        state.total[b, ring] += back
                                    deepest, widest = max(deepest, u + 1), max(widest, v + 1)
                            energy[beside[0] + t] = min(total, FULL)
                            if refinement == 0:
                                learn_flag(state, parameters, b, g, min(total, FULL))
                                learn_tile(state, parameters, scan, t, b, shape, height, width)
                        reach[0], reach[1] = deepest, widest
    return bool(read == len(words) and stream == np.uint64(0))


@kernel
def decode_segments(
    segments: NDArray[np.int64],
    streams: NDArray[np.uint64],
    words: NDArray[np.uint32],
    edges: NDArray[np.int64],
    cumulative: NDArray[np.uint32],
    scan: Scan,
    blocks: Blocks,
    parameters: Parameters,
    state: State,
    extent: NDArray[np.uint8],
) -> int:
    """Read segments one after the other; return which is damaged, or -1.

    One kernel for all: threads contend for the interpreter's lock each time one comes back.
    `segments` holds rows of `Segment`; words of the stream number i are from edges[i] to
    edges[i + 1].
    """
    for i in range(len(segments)):
        segment = Segment(segments[i, 0], segments[i, 1], segments[i, 2], segments[i, 3])
        own = words[edges[i] : edges[i + 1]]
        if not decode_segment(
            segment, streams[i], own, cumulative, scan, blocks, parameters, state, extent
        ):
            return i
    return -1
