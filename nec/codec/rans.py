"""Range asymmetric numeral system (rANS) over static 16-bit frequency tables.

A 64-bit state and 32-bit words: the state keeps at least 15 bits above the table's precision,
so a stream is within a fraction of a per mille of the tables' ideal length [1]_. A symbol is an
*event*: a table number and a value; a negative table number -k stands for k uniform bits.

The state starts at 0 in the encoder and grows; the decoder reads a word where the state is below
2**31 and words are left, and ends at 0. A stream of nothing but first symbols is empty.

References
----------
.. [1] Duda, Asymmetric numeral systems, arXiv 1311.2540.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.kernels import inlined
from nec.codec.tables import PRECISION

LOWER = 1 << 31

_LOWER = np.uint64(LOWER)
_WORD = np.uint64(32)
_PRECISION = np.uint64(PRECISION)
_SLOT_MASK = np.uint64((1 << PRECISION) - 1)
_WORD_MASK = np.uint64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def _encode(
    table: NDArray[np.int32], value: NDArray[np.int32], cumulative: NDArray[np.uint32]
) -> tuple[np.uint64, NDArray[np.uint32]]:
    words = np.empty(len(table), np.uint32)
    at = len(words)
    state = np.uint64(0)
    for i in range(len(table) - 1, -1, -1):
        t = table[i]
        if t < 0:
            frequency = np.uint64(1 << (PRECISION + t))
            start = np.uint64(value[i]) * frequency
        else:
            start = np.uint64(cumulative[t, value[i]])
            frequency = np.uint64(cumulative[t, value[i] + 1]) - start
        if state >= frequency << np.uint64(47):
            at -= 1
            words[at] = np.uint32(state & _WORD_MASK)
            state >>= _WORD
        state = ((state // frequency) << _PRECISION) + state % frequency + start
    return state, words[at:].copy()


def encode_events(
    table: NDArray[np.int32], value: NDArray[np.int32], cumulative: NDArray[np.uint32]
) -> bytes:
    """Code events into bytes; the decoder reads them in the same order.

    Parameters
    ----------
    table : ndarray of shape (event,), int32
        Row of `cumulative`, or -k for k <= 16 uniform bits.
    value : ndarray of shape (event,), int32
        Symbol of each event.
    cumulative : ndarray of shape (table, symbol + 1), uint32
        Cumulative frequencies, from 0 to 2**16.

    Returns
    -------
    bytes
        The state in as few bytes as hold it, 5 at least where words follow, most significant
        first; then the words, little-endian, in reading order.
    """
    state, words = _encode(table, value, cumulative)
    size = (int(state).bit_length() + 7) // 8
    if len(words):
        size = max(size, 5)
    coded: bytes = int(state).to_bytes(size, "big") + words.astype("<u4").tobytes()
    return coded


def open_stream(data: memoryview) -> tuple[np.uint64, NDArray[np.uint32]]:
    """Return the state and the words of a stream."""
    size = len(data) if len(data) < 5 else 5 + (len(data) - 5) % 4
    words = np.frombuffer(data[size:], "<u4").astype(np.uint32)
    return np.uint64(int.from_bytes(data[:size], "big")), words


def open_streams(
    parts: Sequence[memoryview],
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.int64]]:
    """Return states of streams, the words of all, and the edges between those of each."""
    states, words = zip(*(open_stream(part) for part in parts), strict=True)
    edges = np.cumsum([0, *map(len, words)], dtype=np.int64)
    return np.array(states, np.uint64), np.concatenate(words), edges


@inlined
def advance(
    state: np.uint64,
    start: np.uint64,
    frequency: np.uint64,
    words: NDArray[np.uint32],
    at: int,
) -> tuple[np.uint64, int]:
    """Remove one symbol from the state; read a word where the state runs low."""
    state = frequency * (state >> _PRECISION) + (state & _SLOT_MASK) - start
    if state < _LOWER and at < len(words):
        state = (state << _WORD) | np.uint64(words[np.uint64(at)])
        at += 1
    return state, at


@inlined
def read_symbol(
    state: np.uint64,
    words: NDArray[np.uint32],
    at: int,
    cumulative: NDArray[np.uint32],
    table: int,
) -> tuple[int, np.uint64, int]:
    """Read one symbol of a table: (symbol, state, at)."""
    # Unsigned throughout: numba need not ask whether an index counts from the end.
    slot, row = state & _SLOT_MASK, np.uint64(table)
    start, end = np.uint64(0), np.uint64(cumulative[row, np.uint64(1)])
    symbol = 0
    while slot >= end:
        symbol += 1
        start, end = end, np.uint64(cumulative[row, np.uint64(symbol + 1)])
    frequency = end - start
    state, at = advance(state, start, frequency, words, at)
    return symbol, state, at


@inlined
def read_bits(
    state: np.uint64, words: NDArray[np.uint32], at: int, bits: int
) -> tuple[int, np.uint64, int]:
    """Read up to 16 uniform bits: (value, state, at)."""
    frequency = np.uint64(1 << (PRECISION - bits))
    value = (state & _SLOT_MASK) >> np.uint64(PRECISION - bits)
    state, at = advance(state, value * frequency, frequency, words, at)
    # As int64: numba turns mixtures of int64 and uint64 into floats.
    return np.int64(value), state, at  # type: ignore[return-value]
