"""Block cosine transform: forward in floats for the encoder, inverse in integers.

The inverse is the format: integer coefficients meet an integer matrix and only the last step
multiplies by a float32, so every decoder gives the same floats.
"""

from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Coefficients carry 4 fractional bits, the matrix 13; the two passes shift by 9 and by 5, which
# leaves 4 + 13 - 9 + 13 - 5 = 16 fractional bits in the integer output.
COEFFICIENT_BITS = 4
MATRIX_BITS = 13
FIRST_SHIFT = 9
SECOND_SHIFT = 5
OUTPUT_BITS = COEFFICIENT_BITS + 2 * MATRIX_BITS - FIRST_SHIFT - SECOND_SHIFT


@cache
def cosine_matrix(block: int) -> NDArray[np.float64]:
    """Return the orthonormal DCT-II matrix (frequency, position)."""
    k, x = np.mgrid[:block, :block]
    matrix: NDArray[np.float64] = np.sqrt(2 / block) * np.cos(np.pi * (2 * x + 1) * k / (2 * block))
    matrix[0] /= np.sqrt(2)
    return matrix


@cache
def integer_matrix(block: int) -> NDArray[np.int64]:
    """Return the cosine matrix with 13 fractional bits."""
    return np.rint(cosine_matrix(block) * (1 << MATRIX_BITS)).astype(np.int64)


@njit(cache=True, nogil=True)
def forward(
    values: NDArray[np.float32], matrix: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Transform one block of every band.

    Parameters
    ----------
    values : ndarray of shape (band, block, block), float32
    matrix : ndarray of shape (block, block), float64
    out : ndarray of shape (band, block * block), float32
        Coefficients, row-major in vertical and horizontal frequency.
    """
    n = matrix.shape[0]
    half = np.empty((n, n), np.float64)
    for b in range(values.shape[0]):
        for y in range(n):
            for v in range(n):
                total = 0.0
                for x in range(n):
                    total += matrix[v, x] * values[b, y, x]
                half[y, v] = total
        for u in range(n):
            for v in range(n):
                total = 0.0
                for y in range(n):
                    total += matrix[u, y] * half[y, v]
                out[b, u * n + v] = total


@njit(cache=True, nogil=True)
def inverse(
    symbols: NDArray[np.int32],
    extent: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    matrix: NDArray[np.int64],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Reconstruct one block of every band from its integer coefficients.

    Parameters
    ----------
    symbols : ndarray of shape (band, block * block), int32
        Quantised coefficients.
    extent : ndarray of shape (band,), uint8
        All coefficients outside the first `extent` rows and columns are zero.
    offsets : ndarray of shape (4,), int64
        Taken from the magnitude of an oscillating coefficient of magnitude 0, 1, 2 and above,
        in sixteenths of a step.
    matrix : ndarray of shape (block, block), int64
        `integer_matrix`.
    scale : ndarray of shape (band,), float32
        Step of each band times 2**-16.
    out : ndarray of shape (band, block, block), float32
        Written in full.
    """
    n = matrix.shape[0]
    half = np.empty((n, n), np.int64)
    row = np.empty(n, np.int64)
    for b in range(symbols.shape[0]):
        k = extent[b]
        if k == 0:
            out[b] = 0
            continue
        for u in range(k):
            row[:] = 1 << (FIRST_SHIFT - 1)
            for v in range(k):
                q = np.int64(symbols[b, u * n + v])
                if q == 0:
                    continue
                value = q << COEFFICIENT_BITS
                if u + v > 0:
                    offset = offsets[3] if abs(q) > 3 else offsets[abs(q)]
                    value += -offset if q > 0 else offset
                for x in range(n):
                    row[x] += matrix[v, x] * value
            for x in range(n):
                half[u, x] = row[x] >> FIRST_SHIFT
        for y in range(n):
            row[:] = 1 << (SECOND_SHIFT - 1)
            for u in range(k):
                m = matrix[u, y]
                for x in range(n):
                    row[x] += m * half[u, x]
            for x in range(n):
                out[b, y, x] = np.float32(row[x] >> SECOND_SHIFT) * scale[b]
