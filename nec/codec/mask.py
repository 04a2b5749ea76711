"""The validity mask of a chunk: one bit per (sample, y, x), coded from its causal neighbours."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nec.codec.rans import encode_events, open_stream, read_symbol

# Probability, in 65536ths, that a token is missing, by the number of its four causal
# neighbours (left, upper left, upper, upper right; outside counts as the left one) that are
# valid. Missing areas are large and compact.
_MISSING = np.array([65200, 49152, 32768, 16384, 336], np.uint32)
_CUMULATIVE = np.stack([np.zeros(5, np.uint32), _MISSING, np.full(5, 65536, np.uint32)], axis=1)


@njit(cache=True, nogil=True)
def _context(mask: NDArray[np.bool_], s: int, y: int, x: int) -> int:
    before = x > 0 and mask[s, y, x - 1]
    if y == 0:
        return 4 if before else 0
    if x == 0:
        before = mask[s, y - 1, x]
    corner = mask[s, y - 1, x - 1] if x > 0 else before
    beyond = mask[s, y - 1, x + 1] if x + 1 < mask.shape[2] else before
    return int(before) + int(corner) + int(mask[s, y - 1, x]) + int(beyond)


@njit(cache=True, nogil=True)
def _events(mask: NDArray[np.bool_], table: NDArray[np.int32], value: NDArray[np.int32]) -> None:
    i = 0
    for s in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                table[i] = _context(mask, s, y, x)
                value[i] = mask[s, y, x]
                i += 1


@njit(cache=True, nogil=True)
def _decode(
    stream: np.uint64,
    words: NDArray[np.uint32],
    cumulative: NDArray[np.uint32],
    mask: NDArray[np.bool_],
) -> bool:
    at = 0
    for s in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                context = _context(mask, s, y, x)
                bit, stream, at = read_symbol(stream, words, at, cumulative, context)
                mask[s, y, x] = bit == 1
    return bool(at == len(words) and stream == np.uint64(0))


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """Code a mask of shape (sample, y, x), True where valid."""
    table = np.empty(mask.size, np.int32)
    value = np.empty(mask.size, np.int32)
    _events(mask, table, value)
    return encode_events(table, value, _CUMULATIVE)


def decode_mask(data: memoryview, shape: tuple[int, int, int]) -> NDArray[np.bool_] | None:
    """Undo `encode_mask`; None where the bytes are damaged."""
    mask = np.zeros(shape, np.bool_)
    if not _decode(*open_stream(data), _CUMULATIVE, mask):
        return None
    return mask
