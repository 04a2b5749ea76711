"""The entropy model: which table each quantised coefficient is coded with.

Coefficients of a block are coded in octave groups: the DC, then the rest of the first 2 x 2,
4 x 4, 8 x 8 and 16 x 16 frequencies. A flag says whether a group holds anything; 98 % of them
do not. Inside a group, magnitudes are coded with a table picked by the scale class of the
coefficient (fitted for each band and frequency ring) and by what is already known around it:
the same coefficient of the left and the upper block, lower frequencies, the band before. The
DC is predicted from the left and the upper block. One traversal serves coding and decoding,
so both sides see the same contexts by construction.
"""

from collections.abc import Callable
from typing import Any

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
def neighbourhood(total: int, scale: int, lone: bool) -> int:
    """Return the class of a weighted sum of magnitudes around a coefficient."""
    total >>= max(0, (scale - UNIT_SCALE) // 2)
    if lone:
        return 6 + (0 if total == 0 else (1 if total <= 3 else 2))
    if total <= 2:
        return total
    if total <= 5:
        return 3
    return 4 if total <= 10 else 5


def _traversal(decode: bool) -> Callable[..., Any]:  # noqa: PLR0915
    """Compile the traversal for coding (events out) or decoding (coefficients out)."""

    def traverse(  # noqa: PLR0912, PLR0915 - one loop nest: cut up, no clearer and slower
        symbols: NDArray[np.int32],
        coded: NDArray[np.bool_],
        order: NDArray[np.int32],
        edges: NDArray[np.int32],
        ring: NDArray[np.int32],
        scale: NDArray[np.uint8],
        activity: NDArray[np.uint8],
        mean: NDArray[np.int32],
        weight: NDArray[np.uint8],
        cumulative: NDArray[np.uint32],
        table: NDArray[np.int32],
        value: NDArray[np.int32],
        words: NDArray[np.uint32],
        extent: NDArray[np.uint8],
    ) -> int:
        samples, rows, columns, bands, size = symbols.shape
        block = int(np.sqrt(size) + 0.5)
        groups = len(edges) - 1
        # Saturated sum of magnitudes of each group: flags and coarse contexts.
        energy = np.zeros((samples, rows, columns, bands, groups), np.uint8)
        at = 2
        events: int = 0
        state = np.uint64(LOWER)
        if decode:
            if len(words) < 2:
                return -1
            state = (np.uint64(words[0]) << np.uint64(32)) | np.uint64(words[1])
        for g in range(groups):
            for s in range(samples):
                for y in range(rows):
                    for x in range(columns):
                        if not coded[s, y, x]:
                            continue
                        left = x > 0 and coded[s, y, x - 1]
                        upper = y > 0 and coded[s, y - 1, x]
                        lone = not (left or upper)
                        here = symbols[s, y, x]
                        for b in range(bands):
                            if decode and at > len(words):
                                return -1
                            prediction = 0
                            if g == 0:
                                prediction = mean[b]
                                if not lone:
                                    total = 0
                                    if left:
                                        total += symbols[s, y, x - 1, b, 0] - mean[b]
                                    if upper:
                                        total += symbols[s, y - 1, x, b, 0] - mean[b]
                                    if not (left and upper):
                                        total *= 2
                                    prediction += (total * np.int64(weight[b]) + 16) >> 5
                            else:
                                flags = 0
                                if left and energy[s, y, x - 1, b, g] > 0:
                                    flags += 1
                                if upper and energy[s, y - 1, x, b, g] > 0:
                                    flags += 1
                                if lone:
                                    flags = 3
                                coarse = min(2, (energy[s, y, x, b, g - 1] + 1) // 2)
                                before = 1 if b > 0 and energy[s, y, x, b - 1, g] > 0 else 0
                                context = (
                                    (np.int64(activity[b, g - 1]) * 4 + flags) * 3 + coarse
                                ) * 2 + before
                                if decode:
                                    flag, state, at = read_symbol(
                                        state, words, at, cumulative, context
                                    )
                                else:
                                    flag = 0
                                    for i in range(edges[g], edges[g + 1]):
                                        if here[b, order[i]] != 0:
                                            flag = 1
                                            break
                                    table[events] = context
                                    value[events] = flag
                                    events += 1
                                if flag == 0:
                                    continue
                                extent[s, y, x, b] = 1 << g
                            sum_ = 0
                            for i in range(edges[g], edges[g + 1]):
                                p = order[i]
                                if g == 0:
                                    step = np.int64(scale[b, LONE_DC if lone else 0])
                                    around = 0
                                    if left:
                                        around += energy[s, y, x - 1, b, 0]
                                    if upper:
                                        around += energy[s, y - 1, x, b, 0]
                                    if left != upper:
                                        around *= 2
                                    if b > 0:
                                        around += energy[s, y, x, b - 1, 0]
                                else:
                                    step = np.int64(scale[b, ring[p]])
                                    around = 0
                                    if left:
                                        around += abs(symbols[s, y, x - 1, b, p])
                                    if upper:
                                        around += abs(symbols[s, y - 1, x, b, p])
                                    if left != upper:
                                        around *= 2
                                    if p > block:
                                        around += abs(here[b, p - block])
                                    if p % block > 0 and p > 1:
                                        around += abs(here[b, p - 1])
                                    if b > 0:
                                        around += abs(here[b - 1, p])
                                near = neighbourhood(around, step, lone)
                                shift = scale_shift(step)
                                context = FLAG_CONTEXTS + step * NEIGHBOURHOODS + near
                                if decode:
                                    high, state, at = read_symbol(
                                        state, words, at, cumulative, context
                                    )
                                    if high == ESCAPE:
                                        length, state, at = read_bits(state, words, at, 5)
                                        if length > 22:
                                            return -1
                                        low, state, at = read_bits(
                                            state, words, at, min(length, 16)
                                        )
                                        if length > 16:
                                            more, state, at = read_bits(
                                                state, words, at, length - 16
                                            )
                                            low |= more << 16
                                        high += low + (1 << length) - 1
                                    magnitude = high
                                    if shift > 0:
                                        low, state, at = read_bits(state, words, at, shift)
                                        magnitude = (high << shift) | low
                                    q = magnitude
                                    if magnitude > 0:
                                        sign, state, at = read_bits(state, words, at, 1)
                                        if sign:
                                            q = -magnitude
                                    q += prediction
                                    if abs(q) > 2 * LARGEST:
                                        return -1
                                    here[b, p] = q
                                else:
                                    q = here[b, p] - prediction
                                    magnitude = abs(q)
                                    high = magnitude >> shift
                                    table[events] = context
                                    value[events] = min(high, ESCAPE)
                                    events += 1
                                    if high >= ESCAPE:
                                        rest = high - ESCAPE + 1
                                        length = 0
                                        while rest >> (length + 1) > 0:
                                            length += 1
                                        rest -= 1 << length
                                        table[events] = -5
                                        value[events] = length
                                        table[events + 1] = -min(length, 16)
                                        value[events + 1] = rest & 0xFFFF
                                        events += 2
                                        if length == 0:
                                            events -= 1
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
                                sum_ += magnitude
                            energy[s, y, x, b, g] = min(sum_, 255)
                            if g == 0 and here[b, 0] != 0:
                                extent[s, y, x, b] = 1
        if decode and (at != len(words) or state != np.uint64(LOWER)):
            return -1
        return events

    return traverse


encode_traversal = njit(cache=True, nogil=True)(_traversal(decode=False))
decode_traversal = njit(cache=True, nogil=True)(_traversal(decode=True))


def most_events(symbols: NDArray[np.int32], groups: int) -> int:
    """Return an upper bound of the events that coding these coefficients takes."""
    vectors: int = symbols.size // symbols.shape[-1]
    return int(vectors * (groups + 7) + symbols.size + 5 * np.count_nonzero(symbols))
