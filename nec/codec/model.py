"""The entropy model: which table each quantised coefficient is coded with.

Coefficients of a block are coded by octave and tile: the DC, then the rest of the first 2 x 2,
4 x 4 and 8 x 8 frequencies, then tiles of 8 x 8. A flag says whether a tile holds anything; most
do not. Inside a tile, what a magnitude is expected to be is a weighted sum of what is already
known around it: the same coefficient of the left and the upper block, lower frequencies, the
bands before, and the level of its frequency ring, which follows the chunk. The class of that sum
picks the table. The DC is predicted from the left and the upper block.

The encoder walks the same way and decides each coefficient by rate and distortion: one step
towards zero, or a whole tile left out, where that saves more bits than it costs.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.contexts import (
    ESCAPE,
    LARGEST,
    LEVEL_BITS,
    MOST_BITS,
    MOST_EXPECTED,
    PRIOR,
    ROOT,
    TOP,
    WEIGHT_BITS,
    Parameters,
    Scan,
)
from nec.codec.rans import read_bits, read_symbol

# Sums of magnitudes saturate here, at a byte.
FULL = 255


class Blocks(NamedTuple):
    """The blocks of a chunk, each array of shape (sample, row, column).

    Attributes
    ----------
    coded : ndarray of bool
        Whether the block has coefficients.
    height, width : ndarray of int64
        Size of the box of valid tokens, which is what is transformed.
    gain : ndarray of int64
        `nec.codec.contexts.dc_gain` of the box.
    refinement : ndarray of int64
        Halvings of the squared step.
    """

    coded: NDArray[np.bool_]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    gain: NDArray[np.int64]
    refinement: NDArray[np.int64]


class State(NamedTuple):
    """What encoder and decoder both know so far.

    Attributes
    ----------
    symbols : ndarray of shape (sample, row, column, plane, edge**2), int32
        Coefficients.
    residual : ndarray of shape (sample, row, column, plane), int32
        Of the DC's prediction.
    energy : ndarray of shape (sample, row, column, plane, tile), uint8
        Sum of the magnitudes of each tile, saturated.
    level, total, count : ndarray of shape (plane, ring + 1), int64
        Expected magnitude, and what has been seen of it.
    flag_level, flag_total, flag_count : ndarray of shape (plane, octave), int64
        The same of tiles' energies.
    """

    symbols: NDArray[np.int32]
    residual: NDArray[np.int32]
    energy: NDArray[np.uint8]
    level: NDArray[np.int64]
    total: NDArray[np.int64]
    count: NDArray[np.int64]
    flag_level: NDArray[np.int64]
    flag_total: NDArray[np.int64]
    flag_count: NDArray[np.int64]


def new_state(shape: tuple[int, ...], tiles: int, parameters: Parameters) -> State:
    """Return the state before anything is coded, for symbols of a shape."""
    level, flag_level = parameters.level, parameters.flag_level
    return State(
        np.zeros(shape, np.int32),
        np.zeros(shape[:4], np.int32),
        np.zeros((*shape[:4], tiles), np.uint8),
        level.copy(),
        np.zeros_like(level),
        np.zeros_like(level),
        flag_level.copy(),
        np.zeros_like(flag_level),
        np.zeros_like(flag_level),
    )


@njit(cache=True, nogil=True, inline="always")
def classify(expected: int, classes: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the context class of an expected magnitude, and how many low bits are uniform."""
    shift = 0
    while expected >= TOP:
        expected >>= 1
        shift += 1
    return np.int64(classes[expected]), shift


@njit(cache=True, nogil=True, inline="always")
def refined(level: int, refinement: int) -> int:
    """Return a level, or a mean, in the finer steps of a refined block.

    Bounded, so that what is made of it stays far from the limits of integers and doubles.
    """
    if refinement & 1:
        level = (level * ROOT) >> 8
    level <<= refinement >> 1
    return min(max(level, -MOST_EXPECTED), MOST_EXPECTED)


@njit(cache=True, nogil=True, inline="always")
def neighbours(blocks: Blocks, s: int, y: int, x: int) -> tuple[bool, bool]:
    """Return whether the left and the upper block are there, in the same steps."""
    own = blocks.refinement[s, y, x]
    left = x > 0 and blocks.coded[s, y, x - 1] and blocks.refinement[s, y, x - 1] == own
    upper = y > 0 and blocks.coded[s, y - 1, x] and blocks.refinement[s, y - 1, x] == own
    return left, upper


@njit(cache=True, nogil=True, inline="always")
def dc_prediction(
    symbols: NDArray[np.int32],
    blocks: Blocks,
    at: tuple[int, int, int, int],
    near: tuple[bool, bool],
    mean: int,
    weight: int,
) -> int:
    """Return the DC that a block is predicted to have, from its neighbours' or the mean."""
    s, y, x, b = at
    left, upper = near
    mean = refined(mean, blocks.refinement[s, y, x])
    total = np.int64(0)
    if left:
        total += ((symbols[s, y, x - 1, b, 0] * blocks.gain[s, y, x - 1] + 128) >> 8) - mean
    if upper:
        total += ((symbols[s, y - 1, x, b, 0] * blocks.gain[s, y - 1, x] + 128) >> 8) - mean
    if left != upper:
        total *= 2
    whole = mean + ((total * weight + 16) >> 5)
    gain = blocks.gain[s, y, x]
    predicted = np.int64(whole * 256 + (gain >> 1)) // gain
    return min(max(predicted, -LARGEST), LARGEST)


@njit(cache=True, nogil=True, inline="always")
def expected_residual(
    residual: NDArray[np.int32],
    at: tuple[int, int, int, int],
    near: tuple[bool, bool],
    level: int,
    w: NDArray[np.int64],
) -> int:
    """Return the expected magnitude of the residual of a DC, 1024ths."""
    s, y, x, b = at
    left, upper = near
    one = two = level
    if left:
        one = two = np.int64(abs(residual[s, y, x - 1, b])) << LEVEL_BITS
    if upper:
        two = np.int64(abs(residual[s, y - 1, x, b])) << LEVEL_BITS
        one = one if left else two
    before = earlier = level
    if b > 0:
        before = earlier = np.int64(abs(residual[s, y, x, b - 1])) << LEVEL_BITS
    if b > 1:
        earlier = np.int64(abs(residual[s, y, x, b - 2])) << LEVEL_BITS
    return (one * w[0] + two * w[1] + before * w[5] + earlier * w[6] + level * w[7]) >> WEIGHT_BITS


@njit(cache=True, nogil=True, inline="always")
def places_around(
    shape: tuple[int, int, int, int, int], at: tuple[int, int, int, int]
) -> tuple[int, int, int, int, int]:
    """Return where the last axis begins, in a flat array, for a block and plane and around it.

    The block itself, the left and the upper one, one and two bands before (one where there are
    no two). Kernels that index one axis and not five are twice as fast.
    """
    s, y, x, b = at
    _, rows, columns, planes, size = shape
    here = (((s * rows + y) * columns + x) * planes + b) * size
    before = here - size
    return (
        here,
        here - planes * size,
        here - columns * planes * size,
        before,
        before - size if b > 1 else before,
    )


@njit(cache=True, nogil=True, inline="always")
def expected_energy(
    energy: NDArray[np.uint8],
    places: tuple[int, int, int, int, int],
    b: int,
    near: tuple[bool, bool],
    t: int,
    below: NDArray[np.int32],
    level: int,
    w: NDArray[np.int64],
) -> int:
    """Return the expected sum of magnitudes of a tile, 1024ths; `energy` is flat."""
    left, upper = near
    one = two = level
    if left:
        one = two = np.int64(energy[places[1] + t]) << LEVEL_BITS
    if upper:
        two = np.int64(energy[places[2] + t]) << LEVEL_BITS
        one = one if left else two
    before = earlier = level
    if b > 0:
        before = np.int64(energy[places[3] + t]) << LEVEL_BITS
        earlier = np.int64(energy[places[4] + t]) << LEVEL_BITS
    low = np.int64(energy[places[0] + below[t, 0]]) << LEVEL_BITS
    back = np.int64(energy[places[0] + below[t, 1]]) << LEVEL_BITS
    return (
        one * w[0]
        + two * w[1]
        + low * w[2]
        + back * w[3]
        + before * w[4]
        + earlier * w[5]
        + level * w[6]
    ) >> WEIGHT_BITS


@njit(cache=True, nogil=True, inline="always")
def seen_around(
    symbols: NDArray[np.int32],
    places: tuple[int, int, int, int, int],
    b: int,
    near: tuple[bool, bool],
    p: int,
    bits: int,
    level: int,
) -> tuple[int, int, int, int, int, int, int]:
    """Return the magnitudes around an oscillating coefficient, 1024ths.

    `symbols` is flat. What is not there takes the value of its partner, or the level.
    """
    left, upper = near
    edge = 1 << bits
    one = two = level
    if left:
        one = two = np.int64(abs(symbols[places[1] + p])) << LEVEL_BITS
    if upper:
        two = np.int64(abs(symbols[places[2] + p])) << LEVEL_BITS
        one = one if left else two
    # Lower frequencies of the block, but for the DC.
    low = back = corner = level
    if p > edge:
        low = back = np.int64(abs(symbols[places[0] + p - edge])) << LEVEL_BITS
    if p & (edge - 1) > 0 and p > 1:
        back = np.int64(abs(symbols[places[0] + p - 1])) << LEVEL_BITS
        low = low if p > edge else back
        if p > edge + 1:
            corner = np.int64(abs(symbols[places[0] + p - edge - 1])) << LEVEL_BITS
    before = earlier = level
    if b > 0:
        before = np.int64(abs(symbols[places[3] + p])) << LEVEL_BITS
        earlier = np.int64(abs(symbols[places[4] + p])) << LEVEL_BITS
    return one, two, low, back, corner, before, earlier


@njit(cache=True, nogil=True, inline="always")
def weighed(
    seen: tuple[int, int, int, int, int, int, int], level: int, w: NDArray[np.int64]
) -> int:
    """Return the expected magnitude of an oscillating coefficient, 1024ths."""
    return (
        seen[0] * w[0]
        + seen[1] * w[1]
        + seen[2] * w[2]
        + seen[3] * w[3]
        + seen[4] * w[4]
        + seen[5] * w[5]
        + seen[6] * w[6]
        + level * w[7]
    ) >> WEIGHT_BITS


@njit(cache=True, nogil=True, inline="always")
def learn_dc(state: State, parameters: Parameters, b: int, ring: int, magnitude: int) -> None:
    """Let the level of a DC's residuals follow what was seen."""
    state.total[b, ring] += magnitude
    state.count[b, ring] += 1
    state.level[b, ring] = (
        parameters.level[b, ring] * PRIOR + (state.total[b, ring] << LEVEL_BITS)
    ) // (PRIOR + state.count[b, ring])


@njit(cache=True, nogil=True, inline="always")
def learn_flag(state: State, parameters: Parameters, b: int, octave: int, energy: int) -> None:
    """Let the level of tiles' energies follow what was seen."""
    state.flag_total[b, octave] += energy
    state.flag_count[b, octave] += 1
    state.flag_level[b, octave] = (
        parameters.flag_level[b, octave] * PRIOR + (state.flag_total[b, octave] << LEVEL_BITS)
    ) // (PRIOR + state.flag_count[b, octave])


@njit(cache=True, nogil=True, inline="always")
def ring_of(p: int, scan: Scan, height: int, width: int) -> int:
    """Return the ring of a coefficient of a box, by its frequency in cycles a token."""
    u, v = p >> scan.bits, p & ((1 << scan.bits) - 1)
    return scan.ring[(u << scan.block_bits) // height + (v << scan.block_bits) // width]


@njit(cache=True, nogil=True, inline="always")
def learn_tile(
    state: State,
    parameters: Parameters,
    scan: Scan,
    at: tuple[int, int, int, int],
    t: int,
    height: int,
    width: int,
) -> None:
    """Let the levels of a tile's rings follow what was seen."""
    s, y, x, b = at
    here = state.symbols[s, y, x, b]
    total, count = state.total[b], state.count[b]
    edge, block = 1 << scan.bits, 1 << scan.block_bits
    whole = height == block and width == block
    lowest, highest = total.shape[0], 0
    for i in range(scan.tile_start[t], scan.tile_start[t + 1]):
        p = scan.order[i]
        u, v = p >> scan.bits, p & (edge - 1)
        if u >= height or v >= width:
            continue
        ring = scan.ring[u + v] if whole else ring_of(p, scan, height, width)
        total[ring] += abs(here[p])
        count[ring] += 1
        lowest, highest = min(lowest, ring), max(highest, ring)
    for ring in range(lowest, highest + 1):
        state.level[b, ring] = (
            parameters.level[b, ring] * PRIOR + (total[ring] << LEVEL_BITS)
        ) // (PRIOR + count[ring])


@njit(cache=True, nogil=True, inline="always")
def magnitude_bits(cost: NDArray[np.float32], context: int, magnitude: int, shift: int) -> float:
    """Return what coding a magnitude takes, bits."""
    high = magnitude >> shift
    bits: float = cost[context, min(high, ESCAPE)] + shift + (1.0 if magnitude > 0 else 0.0)
    if high >= ESCAPE:
        bits += 5 + np.floor(np.log2(high - ESCAPE + 1))
    return bits


@njit(cache=True, nogil=True, inline="always")
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
        table[events] = -min(shift, 16)
        value[events] = magnitude & ((1 << min(shift, 16)) - 1)
        events += 1
    if shift > 16:
        table[events] = -(shift - 16)
        value[events] = (magnitude >> 16) & ((1 << (shift - 16)) - 1)
        events += 1
    if magnitude > 0:
        table[events] = -1
        value[events] = 1 if q < 0 else 0
        events += 1
    return events


@njit(cache=True, nogil=True, inline="always")
def read_magnitude(
    stream: np.uint64,
    words: NDArray[np.uint32],
    at: int,
    cumulative: NDArray[np.uint32],
    context: int,
    shift: int,
) -> tuple[int, np.uint64, int]:
    """Read a signed value: (value, stream, at); an impossible one is larger than `LARGEST`."""
    high, stream, at = read_symbol(stream, words, at, cumulative, context)
    if high == ESCAPE:
        length, stream, at = read_bits(stream, words, at, 5)
        if length > MOST_BITS:
            return 4 * LARGEST, stream, at
        low, stream, at = read_bits(stream, words, at, min(length, 16))
        if length > 16:
            more, stream, at = read_bits(stream, words, at, length - 16)
            low |= more << 16
        high += low + (1 << length) - 1
    magnitude = high
    if shift > 0:
        low, stream, at = read_bits(stream, words, at, min(shift, 16))
        if shift > 16:
            more, stream, at = read_bits(stream, words, at, shift - 16)
            low |= more << 16
        magnitude = (high << shift) | low
    if magnitude > 0:
        sign, stream, at = read_bits(stream, words, at, 1)
        if sign:
            magnitude = -magnitude
    return magnitude, stream, at
