"""Block cosine transform: forward in floats for the encoder, inverse in integers.

The inverse is the format: integer coefficients meet an integer matrix and only the last step
multiplies by a float32, so every decoder gives the same floats. A block's box may have any
height and width up to 64.
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


def cosine_matrix(size: int) -> NDArray[np.float64]:
    """Return the orthonormal DCT-II matrix (frequency, position)."""
    k, x = np.mgrid[:size, :size]
    matrix: NDArray[np.float64] = np.sqrt(2 / size) * np.cos(np.pi * (2 * x + 1) * k / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix


@cache
def cosine_matrices(block: int) -> NDArray[np.float32]:
    """Return the transposed matrices (position, frequency) of all sizes up to a block's.

    Shape (block + 1, block, block); number n holds that of size n in its corner.
    """
    matrices = np.zeros((block + 1, block, block), np.float32)
    for n in range(1, block + 1):
        matrices[n, :n, :n] = cosine_matrix(n).T
    return matrices


@cache
def integer_matrices(block: int) -> NDArray[np.int32]:
    """Return the matrices (frequency, position) of all sizes with 13 fractional bits."""
    matrices = np.zeros((block + 1, block, block), np.int32)
    for n in range(1, block + 1):
        matrices[n, :n, :n] = np.rint(cosine_matrix(n) * (1 << MATRIX_BITS))
    return matrices


@njit(cache=True, nogil=True)
def forward(
    values: NDArray[np.float32],
    across: NDArray[np.float32],
    down: NDArray[np.float32],
    half: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Transform the box of one plane.

    Parameters
    ----------
    values : ndarray of shape (height, width), float32
    across, down : ndarray of shape (block, block), float32
        `cosine_matrices` of the width and of the height.
    half : ndarray of shape (block, block), float32
        Scratch.
    out : ndarray of shape (block**2,), float32
        Coefficients, row-major in vertical and horizontal frequency.
    """
    height, width = values.shape
    block = across.shape[0]
    for y in range(height):
        row = half[y]
        row[:width] = 0
        for x in range(width):
            value, wave = values[y, x], across[x]
            for v in range(width):
                row[v] += value * wave[v]
    for u in range(height):
        line = out[u * block : u * block + width]
        line[:] = 0
        for y in range(height):
            factor, row = down[y, u], half[y]
            for v in range(width):
                line[v] += factor * row[v]


@njit(cache=True, nogil=True, inline="always")
def dequantised(q: int, oscillating: bool, offsets: NDArray[np.int64]) -> int:
    """Return what a coefficient stands for, sixteenths of a step."""
    value = q << COEFFICIENT_BITS
    if oscillating:
        offset = offsets[min(abs(q), 3)]
        value += -offset if q > 0 else offset
    return value


@njit(cache=True, nogil=True)
def inverse(
    symbols: NDArray[np.int32],
    rows: int,
    columns: int,
    offsets: NDArray[np.int64],
    down: NDArray[np.int32],
    across: NDArray[np.int32],
    half: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Reconstruct the box of one plane from its integer coefficients, in integers.

    Parameters
    ----------
    symbols : ndarray of shape (block**2,), int32
        Quantised coefficients.
    rows, columns : int
        All coefficients outside of the first rows and columns are zero.
    offsets : ndarray of shape (4,), int64
        Taken from the magnitude of an oscillating coefficient of magnitude 0, 1, 2 and above,
        in sixteenths of a step.
    down, across : ndarray of shape (block, block), int32
        `integer_matrices` of the box's height and width.
    half : ndarray of shape (block, block), int32 or int64
        Scratch; int32 where no sum can leave it, see `fits`.
    out : ndarray of shape (height, width), of the same type
        Values in 2**-16 of a step; written in full.
    """
    height, width = out.shape
    block = down.shape[0]
    for u in range(rows):
        line = half[u, :width]
        line[:] = 1 << (FIRST_SHIFT - 1)
        for v in range(columns):
            q = np.int64(symbols[u * block + v])
            if q == 0:
                continue
            value, wave = dequantised(q, u + v > 0, offsets), across[v, :width]
            for x in range(width):
                line[x] += wave[x] * value
        for x in range(width):
            line[x] >>= FIRST_SHIFT
    for y in range(height):
        row = out[y]
        row[:] = 1 << (SECOND_SHIFT - 1)
        for u in range(rows):
            factor, line = down[u, y], half[u, :width]
            for x in range(width):
                row[x] += factor * line[x]
        for x in range(width):
            row[x] >>= SECOND_SHIFT


@njit(cache=True, nogil=True, inline="always")
def fits(total: int, largest_down: int, largest_across: int) -> bool:
    """Return whether sums stay within int32, for a sum of magnitudes of coefficients."""
    first = ((total + 1) << COEFFICIENT_BITS) * 2 * largest_across
    second = ((first >> FIRST_SHIFT) + 64) * largest_down
    return first < 1 << 30 and second < 1 << 30
