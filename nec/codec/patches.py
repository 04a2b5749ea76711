"""Corrections of single vectors: what keeps a worst-case bound where a block has few bad ones.

A patch adds whole numbers of half steps to some bands of one token, before the last multiply.
"""

from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.contexts import MOST_BITS
from nec.codec.rans import encode_events, open_stream, read_bits, read_symbol

# How many bands of a token are corrected picks one of 16 tables of "is this one?".
_ROWS = 16
_ONE = ((2 * np.arange(_ROWS) + 1) << 11).astype(np.uint32)
_CUMULATIVE = np.stack(
    [np.zeros(_ROWS, np.uint32), (1 << 16) - _ONE, np.full(_ROWS, 1 << 16, np.uint32)], axis=1
)
# Corrections are no larger, half steps.
LARGEST_PATCH = (1 << 15) - 1


def _put_gamma(events: list[tuple[int, int]], value: int) -> None:
    """Append an Elias gamma code of a number from 1: its length in 5 bits, then its low bits."""
    length = value.bit_length() - 1
    events.append((-5, length))
    for low in range(0, length, 16):
        bits = min(length - low, 16)
        events += [(-bits, (value >> low) & ((1 << bits) - 1))]


def encode_patches(patches: Mapping[int, NDArray[np.int64]]) -> bytes:
    """Code patches by token number in the chunk: half steps of every band, not all zero."""
    events: list[tuple[int, int]] = []
    _put_gamma(events, len(patches))
    before = -1
    for token, steps in sorted(patches.items()):
        _put_gamma(events, token - before)
        before = token
        bands = np.flatnonzero(steps)
        _put_gamma(events, len(bands))
        row = (len(bands) * _ROWS - 1) // len(steps)
        for step in steps.tolist():
            events.append((row, int(step != 0)))
            if step:
                magnitude = abs(step)
                # A unary length: most corrections are of one or two half steps.
                length = magnitude.bit_length() - 1
                events += [(-1, 1)] * length + [(-1, 0)]
                if length:
                    events.append((-length, magnitude - (1 << length)))
                events.append((-1, int(step < 0)))
    pairs = np.array(events, np.int32)
    return encode_events(pairs[:, 0].copy(), pairs[:, 1].copy(), _CUMULATIVE)


@njit(cache=True, nogil=True, inline="always")
def _read_gamma(
    stream: np.uint64, words: NDArray[np.uint32], at: int
) -> tuple[int, np.uint64, int]:
    length, stream, at = read_bits(stream, words, at, 5)
    if length > MOST_BITS:
        return 1 << 40, stream, at
    low, stream, at = read_bits(stream, words, at, min(length, 16))
    if length > 16:
        more, stream, at = read_bits(stream, words, at, length - 16)
        low |= more << 16
    return low + (1 << length), stream, at


@njit(cache=True, nogil=True)
def _read_count(stream: np.uint64, words: NDArray[np.uint32]) -> int:
    count, _, _ = _read_gamma(stream, words, 0)
    return int(count)


@njit(cache=True, nogil=True)
def _decode(
    stream: np.uint64,
    words: NDArray[np.uint32],
    cumulative: NDArray[np.uint32],
    tokens: NDArray[np.int64],
    steps: NDArray[np.int32],
    size: int,
) -> bool:
    bands = steps.shape[1]
    count, stream, at = _read_gamma(stream, words, 0)
    token = np.int64(-1)
    for i in range(count):
        gap, stream, at = _read_gamma(stream, words, at)
        token += gap
        corrected, stream, at = _read_gamma(stream, words, at)
        if token >= size or corrected > bands:
            return False
        tokens[i] = token
        row = (corrected * 16 - 1) // bands
        for b in range(bands):
            one, stream, at = read_symbol(stream, words, at, cumulative, row)
            if one == 0:
                continue
            length = 0
            more, stream, at = read_bits(stream, words, at, 1)
            while more:
                length += 1
                if length > 14:
                    return False
                more, stream, at = read_bits(stream, words, at, 1)
            low, stream, at = read_bits(stream, words, at, length)
            sign, stream, at = read_bits(stream, words, at, 1)
            magnitude = low + (1 << length)
            steps[i, b] = -magnitude if sign else magnitude
            corrected -= 1
        if corrected != 0:
            return False
    return bool(at == len(words) and stream == np.uint64(0))


def decode_patches(
    data: memoryview, shape: tuple[int, int, int], bands: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """Undo `encode_patches`; None where the bytes are damaged.

    Returns
    -------
    tuple of ndarray
        Number of the patch of each token (sample, y, x), -1 for none, int32; and half steps
        (patch, band), int32.
    """
    stream, words = open_stream(data)
    count = _read_count(stream, words)
    size = int(np.prod(shape))
    if count > min(size, 8 * len(data)):
        return None
    tokens, steps = np.empty(count, np.int64), np.zeros((count, bands), np.int32)
    if not _decode(stream, words, _CUMULATIVE, tokens, steps, size):
        return None
    patch_of = np.full(size, -1, np.int32)
    patch_of[tokens] = np.arange(count)
    return patch_of.reshape(shape), steps
