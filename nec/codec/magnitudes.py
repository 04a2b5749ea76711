"""Signed magnitudes as events of the entropy coder: what they cost, writing, reading.

A magnitude is expected to be of a class, which has a table, and a number of low bits that count as
uniform. What is above them has a symbol up to 14; 15 escapes to an exponential Golomb code. The
low bits follow, then the sign.
"""

import numpy as np
from numpy.typing import NDArray

from nec.codec.contexts import ESCAPE, LARGEST, MOST_BITS
from nec.codec.kernels import inlined
from nec.codec.rans import read_bits, read_symbol


@inlined
def magnitude_bits(cost: NDArray[np.float32], context: int, magnitude: int, shift: int) -> float:
    """Return what coding a magnitude takes, bits."""
    high = magnitude >> shift
    bits: float = cost[context, min(high, ESCAPE)] + shift + (1.0 if magnitude > 0 else 0.0)
    if high >= ESCAPE:
        bits += 5 + np.floor(np.log2(high - ESCAPE + 1))
    return bits


@inlined
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


@inlined
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
        # No branch: it would be mispredicted every other time.
        sign, stream, at = read_bits(stream, words, at, 1)
        magnitude = (magnitude ^ -sign) + sign
    return magnitude, stream, at
