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
    """Return the matrices (frequency, position) of all sizes with 13 fractional bits.

    Shape (block + 1, block + 3, block): three rows of zeros let kernels take four at a time.
    """
    matrices = np.zeros((block + 1, block + 3, block), np.int32)
    for n in range(1, block + 1):
        matrices[n, :n, :n] = np.rint(cosine_matrix(n) * (1 << MATRIX_BITS))
    return matrices


@njit(cache=True, nogil=True)
def forward(
    values: NDArray[np.float32],
    height: int,
    width: int,
    across: NDArray[np.float32],
    down: NDArray[np.float32],
    half: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Transform the box of one plane.

    Parameters
    ----------
    values : ndarray of shape (edge, edge), float32
        The box in its first `height` rows and `width` columns.
    height, width : int
        Of the box.
    across, down : ndarray of shape (edge, edge), float32
        `cosine_matrices` of the width and of the height.
    half : ndarray of shape (edge, edge), float32
        Scratch.
    out : ndarray of shape (edge**2,), float32
        Coefficients, row-major in vertical and horizontal frequency.
    """
    edge = across.shape[0]
    for y in range(height):
        row = half[y, :width]
        row[:] = 0
        for x in range(width):
            value, wave = values[y, x], across[x, :width]
            for v in range(width):
                row[v] += value * wave[v]
    # Even and odd parts of columns: waves of even frequency see the first, others the second.
    for y in range(height // 2):
        upper, lower = half[y, :width], half[height - 1 - y, :width]
        for v in range(width):
            first, second = upper[v], lower[v]
            upper[v] = first + second
            lower[v] = first - second
    for u in range(height):
        line = out[u * edge : u * edge + width]
        line[:] = 0
        for y in range(height // 2):
            factor = down[y, u]
            row = half[y, :width] if u % 2 == 0 else half[height - 1 - y, :width]
            for v in range(width):
                line[v] += factor * row[v]
        if height % 2 == 1 and u % 2 == 0:
            factor, row = down[height // 2, u], half[height // 2, :width]
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
def inverse(  # noqa: PLR0912 - two passes
    symbols: NDArray[np.int32],
    rows: int,
    columns: int,
    height: int,
    width: int,
    offsets: NDArray[np.int64],
    down: NDArray[np.int32],
    across: NDArray[np.int32],
    half: NDArray[np.int64],
    pair: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Reconstruct the box of one plane from its integer coefficients, in integers.

    Parameters
    ----------
    symbols : ndarray of shape (block**2,), int32
        Quantised coefficients.
    rows, columns : int
        All coefficients outside of the first rows and columns are zero.
    height, width : int
        Of the box.
    offsets : ndarray of shape (4,), int64
        Taken from the magnitude of an oscillating coefficient of magnitude 0, 1, 2 and above,
        in sixteenths of a step.
    down, across : ndarray of shape (edge + 3, edge), int32
        `integer_matrices` of the box's height and width.
    half : ndarray of shape (edge + 3, edge), int32 or int64
        Scratch; int32 where no sum can leave it, see `fits`.
    pair : ndarray of shape (2, edge), of the same type
        Scratch.
    out : ndarray of shape (edge, edge), of the same type
        Its first `height` rows and `width` columns become values in 2**-16 of a step. Whole,
        so that the compiler knows its rows to be contiguous.
    """
    block = down.shape[1]
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
    half[rows : rows + 3, :width] = 0
    # Waves of even frequency are even, those of odd frequency odd: half the rows give all.
    even, odd = pair[0, :width], pair[1, :width]
    for y in range((height + 1) // 2):
        even[:] = 1 << (SECOND_SHIFT - 1)
        odd[:] = 0
        # Two at a time; beyond `rows` the lines are zero.
        for u in range(0, rows, 4):
            one, two = down[u, y], down[u + 2, y]
            first, second = half[u, :width], half[u + 2, :width]
            for x in range(width):
                even[x] += one * first[x] + two * second[x]
        for u in range(1, rows, 4):
            one, two = down[u, y], down[u + 2, y]
            first, second = half[u, :width], half[u + 2, :width]
            for x in range(width):
                odd[x] += one * first[x] + two * second[x]
        row, mirrored = out[y, :width], out[height - 1 - y, :width]
        for x in range(width):
            row[x] = (even[x] + odd[x]) >> SECOND_SHIFT
        if height - 1 - y != y:
            for x in range(width):
                mirrored[x] = (even[x] - odd[x]) >> SECOND_SHIFT


@njit(cache=True, nogil=True, inline="always")
def fits(total: int, largest_down: int, largest_across: int) -> bool:
    """Return whether sums stay within int32, for a sum of magnitudes of coefficients."""
    first = ((total + 1) << COEFFICIENT_BITS) * 2 * largest_across
    second = ((first >> FIRST_SHIFT) + 64) * largest_down
    return first < 1 << 30 and second < 1 << 30
