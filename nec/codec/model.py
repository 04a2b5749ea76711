"""The entropy model: which table each quantised coefficient is coded with.

Coefficients of a block are coded in octave groups: the DC, then the rest of the first 2 x 2,
4 x 4, 8 x 8 and 16 x 16 frequencies. A flag says whether a group holds anything; 98 % of them
do not. Inside a group, magnitudes are coded with a table picked by the scale class of the
coefficient (fitted for each band and frequency ring) and by what is already known around it:
the same coefficient of the left and the upper block, lower frequencies, the band before. The
DC is predicted from the left and the upper block.

The encoder walks the same way and decides each coefficient by rate and distortion: one step
towards zero, or a whole group left out, where that saves more bits than it costs.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.contexts import (
    ESCAPE,
    FLAG_CONTEXTS,
    LARGEST,
    LONE_DC,
    NEIGHBOURHOODS,
    UNIT_SCALE,
)
from nec.codec.rans import LOWER, read_bits, read_symbol


@njit(cache=True, nogil=True, inline="always")
def scale_shift(scale: int) -> int:
    """Return how many low bits of a magnitude of this class are coded as uniform bits."""
    return max(0, (scale - UNIT_SCALE - 4) // 2)


@njit(cache=True, nogil=True, inline="always")
def magnitude_context(around: int, scale: int, lone: bool) -> int:
    """Return the context of a magnitude from a sum of magnitudes around it and its class."""
    around >>= max(0, (scale - UNIT_SCALE) // 2)
    if lone:
        near = 6 + (0 if around == 0 else (1 if around <= 3 else 2))
    elif around <= 2:
        near = around
    elif around <= 5:
        near = 3
    else:
        near = 4 if around <= 10 else 5
    return FLAG_CONTEXTS + scale * NEIGHBOURHOODS + near


@njit(cache=True, nogil=True, inline="always")
def dc_prediction(
    symbols: NDArray[np.int32],
    at: tuple[int, int, int, int],
    left: bool,
    upper: bool,
    mean: int,
    weight: int,
) -> int:
    """Return the DC that a block is predicted to have, from its neighbours' or the mean."""
    s, y, x, b = at
    if not (left or upper):
        return mean
    total = np.int64(0)
    if left:
        total += symbols[s, y, x - 1, b, 0] - mean
    if upper:
        total += symbols[s, y - 1, x, b, 0] - mean
    if not (left and upper):
        total *= 2
    return mean + ((total * weight + 16) >> 5)


@njit(cache=True, nogil=True, inline="always")
def flag_context(
    energy: NDArray[np.uint8],
    at: tuple[int, int, int, int],
    group: int,
    left: bool,
    upper: bool,
    activity: int,
) -> int:
    """Return the context of the flag of a group."""
    s, y, x, b = at
    flags = 0
    if left and energy[s, y, x - 1, b, group] > 0:
        flags += 1
    if upper and energy[s, y - 1, x, b, group] > 0:
        flags += 1
    if not (left or upper):
        flags = 3
    coarse = min(2, (np.int64(energy[s, y, x, b, group - 1]) + 1) // 2)
    before = 1 if b > 0 and energy[s, y, x, b - 1, group] > 0 else 0
    return ((activity * 4 + flags) * 3 + coarse) * 2 + before


@njit(cache=True, nogil=True, inline="always")
def around_dc(
    energy: NDArray[np.uint8], at: tuple[int, int, int, int], left: bool, upper: bool
) -> int:
    """Return the sum of magnitudes of DC residuals around a block."""
    s, y, x, b = at
    around = np.int64(0)
    if left:
        around += energy[s, y, x - 1, b, 0]
    if upper:
        around += energy[s, y - 1, x, b, 0]
    if left != upper:
        around *= 2
    if b > 0:
        around += energy[s, y, x, b - 1, 0]
    return around


@njit(cache=True, nogil=True, inline="always")
def around_coefficient(
    symbols: NDArray[np.int32],
    at: tuple[int, int, int, int],
    p: int,
    block: int,
    left: bool,
    upper: bool,
) -> int:
    """Return the sum of magnitudes around an oscillating coefficient."""
    s, y, x, b = at
    around = np.int64(0)
    if left:
        around += abs(symbols[s, y, x - 1, b, p])
    if upper:
        around += abs(symbols[s, y - 1, x, b, p])
    if left != upper:
        around *= 2
    # Lower frequencies of the block, but for the DC.
    if p > block:
        around += abs(symbols[s, y, x, b, p - block])
    if p % block > 0 and p > 1:
        around += abs(symbols[s, y, x, b, p - 1])
    if b > 0:
        around += abs(symbols[s, y, x, b - 1, p])
    return around


@njit(cache=True, nogil=True, inline="always")
def magnitude_bits(cost: NDArray[np.float32], context: int, magnitude: int, shift: int) -> float:
    """Return what coding a magnitude takes, bits."""
    high = magnitude >> shift
    bits: float = cost[context, min(high, ESCAPE)] + shift + (1.0 if magnitude > 0 else 0.0)
    if high >= ESCAPE:
        bits += 5 + np.floor(np.log2(high - ESCAPE + 1))
    return bits


@njit(cache=True, nogil=True)
def put_magnitude(
    table: NDArray[np.int32],
    value: NDArray[np.int32],
    events: int,
    context: int,
    q: int,
    shift: int,
) -> int:
    """Append the events of a signed value; return their new number."""
    magnitude = abs(q)
    high = magnitude >> shift
    table[events] = context
    value[events] = min(high, ESCAPE)
    events += 1
    if high >= ESCAPE:
        # Exponential Golomb: the length, then the bits below the leading one.
        rest = high - ESCAPE + 1
        length = 0
        while rest >> (length + 1) > 0:
            length += 1
        rest -= 1 << length
        table[events] = -5
        value[events] = length
        events += 1
        if length > 0:
            table[events] = -min(length, 16)
            value[events] = rest & 0xFFFF
            events += 1
        if length > 16:
            table[events] = -(length - 16)
            value[events] = rest >> 16
            events += 1
    if shift > 0:
        table[events] = -shift
        value[events] = magnitude & ((1 << shift) - 1)
        events += 1
    if magnitude > 0:
        table[events] = -1
        value[events] = 1 if q < 0 else 0
        events += 1
    return events


@njit(cache=True, nogil=True, inline="always")
def read_magnitude(
    state: np.uint64,
    words: NDArray[np.uint32],
    at: int,
    cumulative: NDArray[np.uint32],
    context: int,
    shift: int,
) -> tuple[int, np.uint64, int]:
    """Read a signed value: (value, state, at); an impossible one is larger than `LARGEST`."""
    high, state, at = read_symbol(state, words, at, cumulative, context)
    if high == ESCAPE:
        length, state, at = read_bits(state, words, at, 5)
        length = min(length, 24)
        low, state, at = read_bits(state, words, at, min(length, 16))
        if length > 16:
            more, state, at = read_bits(state, words, at, length - 16)
            low |= more << 16
        high += low + (1 << length) - 1
    magnitude = high
    if shift > 0:
        low, state, at = read_bits(state, words, at, shift)
        magnitude = (high << shift) | low
    if magnitude > 0:
        sign, state, at = read_bits(state, words, at, 1)
        if sign:
            magnitude = -magnitude
    return magnitude, state, at


@njit(cache=True, nogil=True)
def encode_traversal(  # noqa: PLR0912, PLR0915 - one loop nest: cut up, no clearer and slower
    coefficients: NDArray[np.float32],
    steps: NDArray[np.float32],
    lagrangian: float,
    offsets: NDArray[np.int64],
    cost: NDArray[np.float32],
    symbols: NDArray[np.int32],
    coded: NDArray[np.bool_],
    order: NDArray[np.int32],
    edges: NDArray[np.int32],
    ring: NDArray[np.int32],
    scale: NDArray[np.uint8],
    activity: NDArray[np.uint8],
    mean: NDArray[np.int32],
    weight: NDArray[np.uint8],
    table: NDArray[np.int32],
    value: NDArray[np.int32],
) -> int:
    """Decide the coefficients of every coded block and list the events that code them.

    `symbols` comes in rounded to the nearest and goes out as decided; `table` and `value` are
    filled; the number of events is returned. `lagrangian` is the squared error, in steps, that
    a bit is worth; 0 keeps the nearest.
    """
    samples, rows, columns, bands, size = symbols.shape
    block = int(np.sqrt(size) + 0.5)
    groups = len(edges) - 1
    # Saturated sum of magnitudes of each group: flags and coarse contexts.
    energy = np.zeros((samples, rows, columns, bands, groups), np.uint8)
    events = 0
    for g in range(groups):
        for s in range(samples):
            for y in range(rows):
                for x in range(columns):
                    if not coded[s, y, x]:
                        continue
                    left = x > 0 and coded[s, y, x - 1]
                    upper = y > 0 and coded[s, y - 1, x]
                    lone = not (left or upper)
                    for b in range(bands):
                        at = (s, y, x, b)
                        here = symbols[s, y, x, b]
                        if g == 0:
                            predicted = dc_prediction(
                                symbols, at, left, upper, np.int64(mean[b]), np.int64(weight[b])
                            )
                            step = np.int64(scale[b, LONE_DC if lone else 0])
                            shift = scale_shift(step)
                            context = magnitude_context(
                                around_dc(energy, at, left, upper), step, lone
                            )
                            c = np.float64(coefficients[s, y, x, b, 0]) / steps[b]
                            residual = np.int64(here[0]) - predicted
                            if residual != 0 and lagrangian > 0:
                                nearer = residual - (1 if residual > 0 else -1)
                                stay = (c - here[0]) ** 2 + lagrangian * magnitude_bits(
                                    cost, context, abs(residual), shift
                                )
                                move = (c - predicted - nearer) ** 2 + lagrangian * magnitude_bits(
                                    cost, context, abs(nearer), shift
                                )
                                if move < stay:
                                    residual = nearer
                            here[0] = predicted + residual
                            events = put_magnitude(table, value, events, context, residual, shift)
                            energy[s, y, x, b, 0] = min(abs(residual), 255)
                            continue
                        flag = flag_context(
                            energy, at, g, left, upper, np.int64(activity[b, g - 1])
                        )
                        first = events
                        total = np.int64(0)
                        for i in range(edges[g], edges[g + 1]):
                            if here[order[i]] != 0:
                                total = 1
                                break
                        if total > 0:
                            total = 0
                            table[events] = flag
                            value[events] = 1
                            events += 1
                            kept = lagrangian * cost[flag, 1]
                            dropped = lagrangian * cost[flag, 0]
                            for i in range(edges[g], edges[g + 1]):
                                p = order[i]
                                step = np.int64(scale[b, ring[p]])
                                shift = scale_shift(step)
                                context = magnitude_context(
                                    around_coefficient(symbols, at, p, block, left, upper),
                                    step,
                                    lone,
                                )
                                c = abs(np.float64(coefficients[s, y, x, b, p]) / steps[b])
                                m = abs(np.int64(here[p]))
                                rebuilt = m - offsets[min(m, 3)] / 16
                                best = (c - rebuilt) ** 2 + lagrangian * magnitude_bits(
                                    cost, context, m, shift
                                )
                                if m > 0 and lagrangian > 0:
                                    rebuilt = m - 1 - offsets[min(m - 1, 3)] / 16
                                    lower = (c - rebuilt) ** 2 + lagrangian * magnitude_bits(
                                        cost, context, m - 1, shift
                                    )
                                    if lower < best:
                                        m -= 1
                                        best = lower
                                kept += best
                                dropped += c * c
                                total += m
                                here[p] = -m if here[p] < 0 else m
                                events = put_magnitude(
                                    table, value, events, context, np.int64(here[p]), shift
                                )
                            if lagrangian > 0 and dropped <= kept:
                                total = 0
                        if total == 0:
                            events = first
                            table[events] = flag
                            value[events] = 0
                            events += 1
                            for i in range(edges[g], edges[g + 1]):
                                here[order[i]] = 0
                        energy[s, y, x, b, g] = min(total, 255)
    return events


@njit(cache=True, nogil=True)
def decode_traversal(  # noqa: PLR0912 - as above
    words: NDArray[np.uint32],
    coded: NDArray[np.bool_],
    order: NDArray[np.int32],
    edges: NDArray[np.int32],
    ring: NDArray[np.int32],
    scale: NDArray[np.uint8],
    activity: NDArray[np.uint8],
    mean: NDArray[np.int32],
    weight: NDArray[np.uint8],
    cumulative: NDArray[np.uint32],
    symbols: NDArray[np.int32],
    extent: NDArray[np.uint8],
) -> bool:
    """Read the coefficients of every coded block; False where the words are damaged.

    `symbols` and `extent` come in as zeros; `extent` goes out as the number of rows and columns
    of frequencies, of each block and band, that may hold anything.
    """
    samples, rows, columns, bands, size = symbols.shape
    block = int(np.sqrt(size) + 0.5)
    groups = len(edges) - 1
    energy = np.zeros((samples, rows, columns, bands, groups), np.uint8)
    if len(words) < 2:
        return False
    state = (np.uint64(words[0]) << np.uint64(32)) | np.uint64(words[1])
    read = 2
    for g in range(groups):
        for s in range(samples):
            for y in range(rows):
                for x in range(columns):
                    if not coded[s, y, x]:
                        continue
                    left = x > 0 and coded[s, y, x - 1]
                    upper = y > 0 and coded[s, y - 1, x]
                    lone = not (left or upper)
                    for b in range(bands):
                        if read > len(words):
                            return False
                        at = (s, y, x, b)
                        here = symbols[s, y, x, b]
                        if g == 0:
                            predicted = dc_prediction(
                                symbols, at, left, upper, np.int64(mean[b]), np.int64(weight[b])
                            )
                            step = np.int64(scale[b, LONE_DC if lone else 0])
                            context = magnitude_context(
                                around_dc(energy, at, left, upper), step, lone
                            )
                            residual, state, read = read_magnitude(
                                state, words, read, cumulative, context, scale_shift(step)
                            )
                            if abs(predicted + residual) > LARGEST:
                                return False
                            here[0] = predicted + residual
                            energy[s, y, x, b, 0] = min(abs(residual), 255)
                            if here[0] != 0:
                                extent[s, y, x, b] = 1
                            continue
                        flag, state, read = read_symbol(
                            state,
                            words,
                            read,
                            cumulative,
                            flag_context(energy, at, g, left, upper, np.int64(activity[b, g - 1])),
                        )
                        if flag == 0:
                            continue
                        extent[s, y, x, b] = 1 << g
                        total = np.int64(0)
                        for i in range(edges[g], edges[g + 1]):
                            p = order[i]
                            step = np.int64(scale[b, ring[p]])
                            context = magnitude_context(
                                around_coefficient(symbols, at, p, block, left, upper), step, lone
                            )
                            q, state, read = read_magnitude(
                                state, words, read, cumulative, context, scale_shift(step)
                            )
                            if abs(q) > LARGEST:
                                return False
                            here[p] = q
                            total += abs(q)
                        energy[s, y, x, b, g] = min(total, 255)
    return bool(read == len(words) and state == np.uint64(LOWER))


def most_events(symbols: NDArray[np.int32], groups: int) -> int:
    """Return an upper bound of the events that coding these coefficients takes."""
    vectors: int = symbols.size // symbols.shape[-1]
    # A magnitude, its low bits; a sign and an escape's three where it is not zero; DC residuals.
    return int(vectors * (groups + 7) + 2 * symbols.size + 4 * np.count_nonzero(symbols))
