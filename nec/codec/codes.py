"""Codes of vectors by a codebook: chosen, coded and decoded one after the other."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nec.codec.codebook import Codebook
from nec.codec.kernels import kernel
from nec.codec.rans import advance, encode_events, open_stream
from nec.codec.tables import PRECISION, TOTAL

# A code that was seen counts this much more; counts are halved before they pass TOTAL.
SEEN = 32


@kernel
def _choose(
    values: NDArray[np.float32],
    centres: NDArray[np.float64],
    weights: NDArray[np.float64],
    refinement: NDArray[np.int64],
    bit: float,
    count: NDArray[np.int64],
    codes: NDArray[np.uint8],
    bounds: NDArray[np.uint32],
) -> None:
    """Choose codes one after the other; `bounds` become where each lies in the stream's table.

    The best code is that of the least squared error, in steps, plus the worth of its bits.
    """
    tokens, bands = values.shape
    for t in range(tokens):
        total = count.sum()
        finer = 2.0 ** refinement[t]
        best, chosen = np.inf, 0
        for k in range(len(count)):
            cost = bit * np.log2(total / count[k])
            for b in range(bands):
                away = values[t, b] - centres[k, b]
                cost += away * away * weights[b] * finer
            if cost < best:
                best, chosen = cost, k
        codes[t] = chosen
        below = count[:chosen].sum()
        bounds[t, 0] = (below << PRECISION) // total
        bounds[t, 1] = ((below + count[chosen]) << PRECISION) // total
        _learn(count, chosen, total)


@kernel
def _learn(count: NDArray[np.int64], code: int, total: int) -> None:
    if total + SEEN > TOTAL:
        for k in range(len(count)):
            count[k] = (count[k] + 1) >> 1
    count[code] += SEEN


@kernel
def _decode(
    stream: np.uint64,
    words: NDArray[np.uint32],
    count: NDArray[np.int64],
    codes: NDArray[np.uint8],
) -> bool:
    at = 0
    for t in range(len(codes)):
        total = count.sum()
        slot = np.int64(stream & np.uint64(TOTAL - 1))
        code, end = 0, count[0]
        start = np.int64(0)
        while ((end << PRECISION) // total) <= slot:
            code += 1
            start = end
            end += count[code]
        first = (start << PRECISION) // total
        frequency = (end << PRECISION) // total - first
        stream, at = advance(stream, np.uint64(first), np.uint64(frequency), words, at)
        codes[t] = code
        _learn(count, code, total)
    return bool(at == len(words) and stream == np.uint64(0))


class Coded(NamedTuple):
    """Codes of a chunk's vectors.

    Attributes
    ----------
    codes : ndarray of shape (token,), uint8
    bounds : ndarray of shape (token, 2), uint32
        Where each lay in the table of frequencies of its time.
    """

    codes: NDArray[np.uint8]
    bounds: NDArray[np.uint32]


def choose_codes(
    values: NDArray[np.float32],
    refinement: NDArray[np.int64],
    codebook: Codebook,
    steps: NDArray[np.float32],
    lagrangian: float,
) -> Coded:
    """Choose the code of each vector.

    Parameters
    ----------
    values : ndarray of shape (token, band), float32
        In the order in which they are coded.
    refinement : ndarray of shape (token,), int64
        Halvings of the squared step.
    codebook : Codebook
    steps : ndarray of shape (band,), float32
    lagrangian : float
        Squared error, in steps, that a bit is worth.
    """
    codes = np.zeros(len(values), np.uint8)
    bounds = np.zeros((len(values), 2), np.uint32)
    _choose(
        values,
        codebook.values(steps, 0),
        1 / steps.astype(np.float64) ** 2,
        refinement,
        lagrangian,
        codebook.counts.copy(),
        codes,
        bounds,
    )
    return Coded(codes, bounds)


def encode_codes(coded: Coded) -> bytes:
    """Code codes into a stream."""
    # A table for each: what lies below it, itself, and the rest.
    table = np.arange(len(coded.bounds), dtype=np.int32)
    return encode_events(table, np.zeros(len(table), np.int32), coded.bounds)


def decode_codes(data: memoryview, codebook: Codebook, tokens: int) -> NDArray[np.uint8] | None:
    """Undo `encode_codes`; None where the bytes are damaged."""
    codes = np.zeros(tokens, np.uint8)
    stream, words = open_stream(data)
    return codes if _decode(stream, words, codebook.counts.copy(), codes) else None
