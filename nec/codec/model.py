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
from numpy.typing import NDArray

from nec.codec.contexts import (
    LARGEST,
    LEVEL_BITS,
    MOST_EXPECTED,
    PRIOR,
    ROOT,
    TILE,
    TOP,
    WEIGHT_BITS,
    Parameters,
    Scan,
)
from nec.codec.kernels import inlined

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


def new_state(symbols: NDArray[np.int32], tiles: int, parameters: Parameters) -> State:
    """Return the state before anything is coded; `symbols` are zeros."""
    shape = symbols.shape
    level, flag_level = parameters.level, parameters.flag_level
    return State(
        symbols,
        np.zeros(shape[:4], np.int32),
        np.zeros((*shape[:4], tiles), np.uint8),
        level.copy(),
        np.zeros_like(level),
        np.zeros_like(level),
        flag_level.copy(),
        np.zeros_like(flag_level),
        np.zeros_like(flag_level),
    )


@inlined
def classify(expected: int, classes: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the context class of an expected magnitude, and how many low bits are uniform."""
    shift = 0
    while expected >= TOP:
        expected >>= 1
        shift += 1
    return np.int64(classes[np.uint64(expected)]), shift


@inlined
def refined(level: int, refinement: int) -> int:
    """Return a level, or a mean, in the finer steps of a refined block.

    Bounded, so that what is made of it stays far from the limits of integers and doubles.
    """
    if refinement & 1:
        level = (level * ROOT) >> 8
    level <<= refinement >> 1
    return min(max(level, -MOST_EXPECTED), MOST_EXPECTED)


@inlined
def neighbours(blocks: Blocks, s: int, y: int, x: int) -> tuple[bool, bool]:
    """Return whether the left and the upper block are there, in the same steps."""
    own = blocks.refinement[s, y, x]
    left = x > 0 and blocks.coded[s, y, x - 1] and blocks.refinement[s, y, x - 1] == own
    upper = y > 0 and blocks.coded[s, y - 1, x] and blocks.refinement[s, y - 1, x] == own
    return left, upper


@inlined
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


@inlined
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


@inlined
def places_around(
    shape: tuple[int, int, int, int, int],
    at: tuple[int, int, int, int],
    near: tuple[bool, bool],
) -> tuple[int, int, int, int, int]:
    """Return where the last axis begins, in a flat array, for a block and plane and around it.

    The block itself, the left and the upper one, one and two bands before (one where there are
    no two); what is not there lies at the block itself. Kernels that index one axis and not five
    are twice as fast.
    """
    s, y, x, b = at
    _, rows, columns, planes, size = shape
    here = (((s * rows + y) * columns + x) * planes + b) * size
    before = here - size if b > 0 else here
    return (
        here,
        here - planes * size if near[0] else here,
        here - columns * planes * size if near[1] else here,
        before,
        before - size if b > 1 else before,
    )


@inlined
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
        one = two = np.int64(energy[np.uint64(places[1] + t)]) << LEVEL_BITS
    if upper:
        two = np.int64(energy[np.uint64(places[2] + t)]) << LEVEL_BITS
        one = one if left else two
    before = earlier = level
    if b > 0:
        before = np.int64(energy[np.uint64(places[3] + t)]) << LEVEL_BITS
        earlier = np.int64(energy[np.uint64(places[4] + t)]) << LEVEL_BITS
    low = np.int64(energy[np.uint64(places[0] + below[t, 0])]) << LEVEL_BITS
    back = np.int64(energy[np.uint64(places[0] + below[t, 1])]) << LEVEL_BITS
    return (
        one * w[0]
        + two * w[1]
        + low * w[2]
        + back * w[3]
        + before * w[4]
        + earlier * w[5]
        + level * w[6]
    ) >> WEIGHT_BITS


@inlined
def magnitude_at(symbols: NDArray[np.int32], place: int) -> int:
    """Return the magnitude of a coefficient; `symbols` is flat."""
    # Unsigned: numba need not ask whether it counts from the end.
    return np.int64(abs(symbols[np.uint64(place)]))


@inlined
def outer_weights(
    w: NDArray[np.int64], near: tuple[bool, bool], b: int
) -> tuple[int, int, int, int, int]:
    """Return the weights of left and upper block, one and two bands before, and the level.

    What is not there hands its weight to its partner, or both to the level.
    """
    left, upper = near
    one, two, before, earlier, level = w[0], w[1], w[5], w[6], w[7]
    none = np.int64(0)
    if left and not upper:
        one, two = one + two, none
    elif upper and not left:
        one, two = none, one + two
    elif not left:
        one, two, level = none, none, level + one + two
    if b == 0:
        before, earlier, level = none, none, level + before + earlier
    return one, two, before, earlier, level


@inlined
def expected_magnitude(
    symbols: NDArray[np.int32],
    places: tuple[int, int, int, int, int],
    u: int,
    v: int,
    bits: int,
    outer: tuple[int, int, int, int, int],
    inner: tuple[int, int, int],
    seen: tuple[int, int, int],
    level: int,
) -> int:
    """Return the expected magnitude of an oscillating coefficient, 1024ths.

    Parameters
    ----------
    symbols : ndarray of int32
        Flat; `places` are those of `places_around`.
    u, v : int
        Vertical and horizontal frequency.
    bits : int
        Binary logarithm of the edge that coefficients are stored with.
    outer : tuple of int
        See `outer_weights`.
    inner : tuple of int
        Weights of the next lower frequencies: vertically, horizontally, both.
    seen : tuple of int
        Their magnitudes; what is off the edge, and the DC, may be anything.
    level : int
        Of the ring, 1024ths.
    """
    p = (u << bits) + v
    low, back, corner = seen
    total = (
        outer[0] * magnitude_at(symbols, places[1] + p)
        + outer[1] * magnitude_at(symbols, places[2] + p)
        + outer[2] * magnitude_at(symbols, places[3] + p)
        + outer[3] * magnitude_at(symbols, places[4] + p)
    )
    of_level = outer[4]
    if u > 0 and v > 0 and u + v > 2:
        total += low * inner[0] + back * inner[1] + corner * inner[2]
    elif u + v == 1:
        of_level += inner[0] + inner[1] + inner[2]
    else:
        # At an edge the one lower frequency stands for two; the DC does not count.
        of_level += inner[2]
        total += (back if u == 0 else low) * inner[0] + (low if v == 0 else back) * inner[1]
    return ((total << LEVEL_BITS) + level * of_level) >> WEIGHT_BITS


@inlined
def tile_rows(
    scan: Scan, t: int, octave: int, height: int, width: int
) -> tuple[int, int, int, int, int, int]:
    """Return the frequencies of a tile inside a box: (top, bottom, turn, far, near, end).

    Rows from `top` up to `bottom`; columns up to `end`, from `far` in rows above `turn` and from
    `near` in the others: the first octaves are squares without their first quarter.
    """
    side = 1 << octave
    if side <= TILE:
        half = side >> 1
        return 0, min(side, height), half, half, 0, min(side, width)
    top, left = np.int64(scan.corner[t, 0]), np.int64(scan.corner[t, 1])
    return top, min(top + TILE, height), 0, left, left, min(left + TILE, width)


@inlined
def learnt(prior: int, total: int, count: int) -> int:
    """Return a level, from its prior and what was seen; nothing is negative."""
    # Unsigned: numba need not ask in which direction to round.
    weighed = np.uint64(prior * PRIOR + (total << LEVEL_BITS))
    return np.int64(weighed // np.uint64(PRIOR + count))


@inlined
def learn_dc(state: State, parameters: Parameters, b: int, ring: int, magnitude: int) -> None:
    """Let the level of a DC's residuals follow what was seen."""
    state.total[b, ring] += magnitude
    state.count[b, ring] += 1
    state.level[b, ring] = learnt(
        parameters.level[b, ring], state.total[b, ring], state.count[b, ring]
    )


@inlined
def learn_flag(state: State, parameters: Parameters, b: int, octave: int, energy: int) -> None:
    """Let the level of tiles' energies follow what was seen."""
    state.flag_total[b, octave] += energy
    state.flag_count[b, octave] += 1
    state.flag_level[b, octave] = learnt(
        parameters.flag_level[b, octave],
        state.flag_total[b, octave],
        state.flag_count[b, octave],
    )


@inlined
def ring_of(u: int, v: int, scan: Scan, height: int, width: int) -> int:
    """Return the ring of a coefficient of a box, by its frequency in cycles a token."""
    block = 1 << scan.block_bits
    if height != block or width != block:
        u, v = (u << scan.block_bits) // height, (v << scan.block_bits) // width
    return np.int64(scan.ring[np.uint64(u + v)])


@inlined
def learn_tile(
    state: State,
    parameters: Parameters,
    scan: Scan,
    t: int,
    b: int,
    rows: tuple[int, int, int, int, int, int],
    height: int,
    width: int,
) -> None:
    """Let the levels of a tile's rings follow what was seen; `rows` are those of `tile_rows`.

    The magnitudes are in the totals already: only those that are not zero count there.
    """
    lowest, highest = scan.ring_span[t, 0], scan.ring_span[t, 1]
    block = 1 << scan.block_bits
    if height == block and width == block:
        for ring in range(lowest, highest):
            state.count[b, ring] += scan.ring_count[t, ring]
    else:
        lowest, highest = np.int64(state.total.shape[1]), np.int64(0)
        top, bottom, turn, far, near, end = rows
        for u in range(top, bottom):
            for v in range(far if u < turn else near, end):
                ring = ring_of(u, v, scan, height, width)
                state.count[b, ring] += 1
                lowest, highest = min(lowest, ring), max(highest, ring + 1)
    for ring in range(lowest, highest):
        state.level[b, ring] = learnt(
            parameters.level[b, ring], state.total[b, ring], state.count[b, ring]
        )
