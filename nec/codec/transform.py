"""Block cosine transform: forward in floats for the encoder, inverse in integers.

The inverse is the format: integer coefficients meet an integer matrix and only the last step
multiplies by a float32, so every decoder gives the same floats. A block's box may have any
height and width up to 64.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nec.codec.kernels import inlined, kernel

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

    Shape (block + 1, 2, block // 2 + 1, block // 2 + 1); number n holds the first half of the
    positions of size n, the middle one included, with even and odd frequencies apart. The other
    half are the same, but for the sign of the odd ones.
    """
    most = block // 2 + 1
    matrices = np.zeros((block + 1, 2, most, most), np.float32)
    for n in range(1, block + 1):
        first = cosine_matrix(n).T[: (n + 1) // 2]
        for parity in (0, 1):
            part = first[:, parity::2]
            matrices[n, parity, : part.shape[0], : part.shape[1]] = part
    return matrices


@cache
def integer_matrices(block: int) -> NDArray[np.int32]:
    """Return the matrices (frequency, position) of all sizes with 13 fractional bits.

    Shape (block + 1, block + 7, block): seven rows of zeros let kernels take eight at a time.
    """
    matrices = np.zeros((block + 1, block + 7, block), np.int32)
    for n in range(1, block + 1):
        matrices[n, :n, :n] = np.rint(cosine_matrix(n) * (1 << MATRIX_BITS))
    return matrices


@cache
def largest_factors(block: int) -> NDArray[np.int64]:
    """Return the largest factor of each of `integer_matrices`, shape (block + 1,)."""
    largest: NDArray[np.int64] = np.abs(integer_matrices(block)).max((1, 2)).astype(np.int64)
    return largest


class Scratch(NamedTuple):
    """Where the inverse works, int32 or int64.

    Attributes
    ----------
    half : ndarray of shape (edge + 7, edge)
    pair : ndarray of shape (2, edge)
    tile : ndarray of shape (edge, edge)
        Of `inverse_integers`, its result.
    """

    half: NDArray[np.int64]
    pair: NDArray[np.int64]
    tile: NDArray[np.int64]


def scratch(edge: int, kind: type[np.signedinteger[Any]]) -> Scratch:
    """Return room for the inverse of blocks of an edge."""
    return Scratch(
        np.empty((edge + 7, edge), kind), np.empty((2, edge), kind), np.empty((edge, edge), kind)
    )


@inlined
def accumulate(
    factors: NDArray[np.float32],
    rows: NDArray[np.float32],
    count: int,
    width: int,
    line: NDArray[np.float32],
) -> None:
    """Set the first of `line` to the sum of the first `count` rows times their factors."""
    line[:width] = 0
    whole = count & ~3
    for i in range(0, whole, 4):
        a, b, c, d = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        for v in range(width):
            line[v] += (a * rows[i, v] + b * rows[i + 1, v]) + (
                c * rows[i + 2, v] + d * rows[i + 3, v]
            )
    for i in range(whole, count):
        for v in range(width):
            line[v] += factors[i] * rows[i, v]


@kernel
def forward(
    values: NDArray[np.float32],
    height: int,
    width: int,
    across: NDArray[np.float32],
    down: NDArray[np.float32],
    scratch: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Transform the box of one plane.

    Parameters
    ----------
    values : ndarray of shape (edge, edge), float32
        The box in its first `height` rows and `width` columns. Overwritten.
    height, width : int
        Of the box.
    across, down : ndarray of shape (2, edge // 2 + 1, edge // 2 + 1), float32
        `cosine_matrices` of the width and of the height.
    scratch : ndarray of shape (5 + edge // 2, edge), float32
    out : ndarray of shape (edge**2,), float32
        Coefficients, row-major in vertical and horizontal frequency.
    """
    edge = values.shape[1]
    factors, line, even, odd, parted = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    differences = scratch[5:]
    # Even and odd parts of columns: waves of even frequency see the first, others the second.
    for y in range(height // 2):
        upper, lower, difference = values[y], values[height - 1 - y], differences[y]
        for x in range(width):
            first, second = upper[x], lower[x]
            upper[x] = first + second
            difference[x] = first - second
    for u in range(height):
        parity, k = u & 1, u >> 1
        count = (height + 1 - parity) // 2
        for y in range(count):
            factors[y] = down[parity, y, k]
        accumulate(factors, differences if parity else values, count, width, line)
        for x in range(width // 2):
            first, second = line[x], line[width - 1 - x]
            even[x] = first + second
            odd[x] = first - second
        if width & 1:
            even[width // 2] = line[width // 2]
        evens, odds = (width + 1) // 2, width // 2
        accumulate(even, across[0], evens, evens, parted)
        accumulate(odd, across[1], odds, odds, line)
        here = out[u * edge : u * edge + width]
        for v in range(odds):
            here[2 * v] = parted[v]
            here[2 * v + 1] = line[v]
        if width & 1:
            here[width - 1] = parted[odds]


@inlined
def dequantised(q: int, oscillating: bool, offsets: NDArray[np.int64]) -> int:
    """Return what a coefficient stands for, sixteenths of a step."""
    value = q << COEFFICIENT_BITS
    if oscillating:
        offset = offsets[min(abs(q), 3)]
        value += -offset if q > 0 else offset
    return value


@inlined
def transform_across(
    symbols: NDArray[np.int32],
    rows: int,
    columns: int,
    width: int,
    offsets: NDArray[np.int64],
    across: NDArray[np.int32],
    half: NDArray[np.int64],
) -> None:
    """First pass of the inverse; seven lines beyond `rows` become zero."""
    block = across.shape[1]
    for u in range(rows):
        line = half[u]
        line[:width] = 1 << (FIRST_SHIFT - 1)
        for v in range(columns):
            q = np.int64(symbols[u * block + v])
            if q == 0:
                continue
            value, wave = dequantised(q, u + v > 0, offsets), across[v]
            for x in range(width):
                line[x] += wave[x] * value
        for x in range(width):
            line[x] >>= FIRST_SHIFT
    half[rows : rows + 7] = 0


@inlined
def transform_down(
    half: NDArray[np.int64],
    rows: int,
    width: int,
    down: NDArray[np.int32],
    y: int,
    pair: NDArray[np.int64],
) -> None:
    """Second pass of the inverse: a row and its mirror image, in 2**-21 of a step.

    Waves of even frequency are even, those of odd frequency odd: half the rows give all.
    """
    even, odd = pair[0], pair[1]
    even[:width] = 1 << (SECOND_SHIFT - 1)
    odd[:width] = 0
    # Every result is stored, which keeps it as narrow as the scratch: numba reckons in 64 bits.
    for u in range(0, rows, 8):
        a, b, c, d = down[u, y], down[u + 2, y], down[u + 4, y], down[u + 6, y]
        for x in range(width):
            even[x] += (a * half[u, x] + b * half[u + 2, x]) + (
                c * half[u + 4, x] + d * half[u + 6, x]
            )
        a, b, c, d = down[u + 1, y], down[u + 3, y], down[u + 5, y], down[u + 7, y]
        for x in range(width):
            odd[x] += (a * half[u + 1, x] + b * half[u + 3, x]) + (
                c * half[u + 5, x] + d * half[u + 7, x]
            )
    for x in range(width):
        first, second = even[x], odd[x]
        even[x] = first + second
        odd[x] = first - second


@kernel
def inverse(
    symbols: NDArray[np.int32],
    rows: int,
    columns: int,
    height: int,
    width: int,
    offsets: NDArray[np.int64],
    down: NDArray[np.int32],
    across: NDArray[np.int32],
    scratch: Scratch,
    factor: np.float32,
    out: NDArray[np.float32],
    top: int,
    left: int,
) -> None:
    """Reconstruct the box of one plane from its integer coefficients.

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
    down, across : ndarray of shape (edge + 7, edge), int32
        `integer_matrices` of the box's height and width.
    scratch : Scratch
        Of int32 only where no sum can leave it, see `fits`.
    factor : float32
        2**-16 of a step.
    out : ndarray of shape (y, x), float32
        The plane; whole, so that the compiler knows its rows to be contiguous.
    top, left : int
        Where the box lies in it.
    """
    half, pair = scratch.half, scratch.pair
    transform_across(symbols, rows, columns, width, offsets, across, half)
    row, image = pair[0], pair[1]
    for y in range((height + 1) // 2):
        transform_down(half, rows, width, down, y, pair)
        # In the middle both are the same row, and the first is what counts.
        line = out[top + height - 1 - y, left : left + width]
        for x in range(width):
            line[x] = np.float32(image[x] >> SECOND_SHIFT) * factor
        line = out[top + y, left : left + width]
        for x in range(width):
            line[x] = np.float32(row[x] >> SECOND_SHIFT) * factor


@kernel
def inverse_integers(
    symbols: NDArray[np.int32],
    rows: int,
    columns: int,
    height: int,
    width: int,
    offsets: NDArray[np.int64],
    down: NDArray[np.int32],
    across: NDArray[np.int32],
    scratch: Scratch,
) -> None:
    """Reconstruct like `inverse`, but leave integers, 2**-16 of a step, in the scratch's tile."""
    half, pair, tile = scratch
    transform_across(symbols, rows, columns, width, offsets, across, half)
    for y in range((height + 1) // 2):
        transform_down(half, rows, width, down, y, pair)
        for x in range(width):
            tile[height - 1 - y, x] = pair[1, x] >> SECOND_SHIFT
        for x in range(width):
            tile[y, x] = pair[0, x] >> SECOND_SHIFT


@inlined
def fits(total: int, largest_down: int, largest_across: int) -> bool:
    """Return whether sums stay within int32, for a sum of magnitudes of coefficients."""
    first = ((total + 1) << COEFFICIENT_BITS) * 2 * largest_across
    second = ((first >> FIRST_SHIFT) + 64) * largest_down
    return first < 1 << 30 and second < 1 << 30
