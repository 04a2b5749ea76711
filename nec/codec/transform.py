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
# Rows of frequencies that the second pass takes at a time, and how far apart they lie: a constant,
# so that the compiler sees that they do not overlap, and need not ask at every line.
ROWS = 16
PITCH = 64


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

    Shape (block + 1, block + 15, block): rows of zeros let kernels take sixteen at a time.
    """
    matrices = np.zeros((block + 1, block + ROWS - 1, block), np.int32)
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
    half : ndarray of shape ((edge + ROWS - 1) * PITCH,)
        Frequencies down, positions across.
    pair : ndarray of shape (2 * PITCH,)
        Sums over even and over odd frequencies, of one line.
    """

    half: NDArray[np.int64]
    pair: NDArray[np.int64]


def scratch(edge: int, kind: type[np.signedinteger[Any]]) -> Scratch:
    """Return room for the inverse of blocks of an edge."""
    return Scratch(np.empty((edge + ROWS - 1) * PITCH, kind), np.empty(2 * PITCH, kind))


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
    padded: int,
    columns: int,
    width: int,
    offsets: NDArray[np.int64],
    across: NDArray[np.int32],
    half: NDArray[np.int64],
) -> None:
    """First pass of the inverse; lines from `rows` up to `padded` become zero."""
    block = across.shape[1]
    for u in range(rows):
        line = half[u * PITCH : u * PITCH + width]
        line[:] = 1 << (FIRST_SHIFT - 1)
        for v in range(columns):
            q = np.int64(symbols[u * block + v])
            if q == 0:
                continue
            value, wave = dequantised(q, u + v > 0, offsets), across[v]
            for x in range(width):
                line[x] += wave[x] * value
        for x in range(width):
            line[x] >>= FIRST_SHIFT
    for u in range(rows, padded):
        half[u * PITCH : u * PITCH + width] = 0


@inlined
def eight_factors(
    down: NDArray[np.int32], u: int, y: int
) -> tuple[int, int, int, int, int, int, int, int]:
    """Return what eight waves have at a line: even frequencies, then odd ones."""
    return (
        down[u, y],
        down[u + 2, y],
        down[u + 4, y],
        down[u + 6, y],
        down[u + 1, y],
        down[u + 3, y],
        down[u + 5, y],
        down[u + 7, y],
    )


@inlined
def four_waves(half: NDArray[np.int64], at: int, a: int, b: int, c: int, d: int) -> int:
    """Return a sum over every other of eight rows."""
    total: int = (a * half[at] + b * half[at + 2 * PITCH]) + (
        c * half[at + 4 * PITCH] + d * half[at + 6 * PITCH]
    )
    return total


@inlined
def begin_line(
    pair: NDArray[np.int64],
    width: int,
    patched: bool,
    patch_of: NDArray[np.int32],
    patches: NDArray[np.int64],
    b: int,
    upper: int,
    lower: int,
) -> None:
    """Set sums to what rounds them, and to what is added to single tokens."""
    for x in range(width):
        pair[x] = 1 << (SECOND_SHIFT - 1)
    for x in range(width):
        pair[PITCH + x] = 0
    if patched:
        for x in range(width):
            above = below = np.int64(0)
            if patch_of[0, upper, x] >= 0:
                above = patches[patch_of[0, upper, x], b]
            if patch_of[0, lower, x] >= 0:
                below = patches[patch_of[0, lower, x], b]
            # Half to either sum: the line's own is their sum, the other's their difference.
            pair[x] += (above + below) << (SECOND_SHIFT - 1)
            pair[PITCH + x] += (above - below) << (SECOND_SHIFT - 1)


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
    patched: bool,
    patch_of: NDArray[np.int32],
    patches: NDArray[np.int64],
    b: int,
    out: NDArray[np.float32],
    top: int,
    left: int,
) -> None:
    """Reconstruct the box of one plane from its integer coefficients.

    Waves of even frequency are even, those of odd frequency odd: half the lines give all.

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
    down, across : ndarray of shape (edge + 15, edge), int32
        `integer_matrices` of the box's height and width.
    scratch : Scratch
        Of int32 only where no sum can leave it, see `fits`.
    factor : float32
        2**-16 of a step.
    patched : bool
        Whether there are patches.
    patch_of : ndarray of shape (1, height, width), int32
        Which patch each token has, or -1.
    patches : ndarray of shape (patch, band), int64
        What is added to a token, 2**-OUTPUT_BITS of a step.
    b : int
        Band.
    out : ndarray of shape (y, x), float32
        The plane; whole, so that the compiler knows its rows to be contiguous.
    top, left : int
        Where the box lies in it.
    """
    half, pair = scratch.half, scratch.pair
    # Sums are cast to what the scratch holds: numba reckons in 64 bits.
    kind = half.dtype.type
    # All of the sixteens of frequencies but the last; a box of patches alone has none at all.
    whole = (max(rows, 1) - 1) // ROWS * ROWS
    transform_across(symbols, rows, whole + ROWS, columns, width, offsets, across, half)
    few = rows - whole <= ROWS // 2
    for y in range((height + 1) // 2):
        image = height - 1 - y
        if y == 0 or whole > 0 or patched:
            begin_line(pair, width, patched, patch_of, patches, b, y, image)
        for u in range(0, whole, ROWS):
            f = eight_factors(down, u, y)
            g = eight_factors(down, u + 8, y)
            part = half[u * PITCH : (u + ROWS) * PITCH]
            for x in range(width):
                pair[x] += four_waves(part, x, f[0], f[1], f[2], f[3]) + four_waves(
                    part, x + 8 * PITCH, g[0], g[1], g[2], g[3]
                )
                pair[PITCH + x] += four_waves(part, x + PITCH, f[4], f[5], f[6], f[7]) + four_waves(
                    part, x + 9 * PITCH, g[4], g[5], g[6], g[7]
                )
        # In the middle both are the same row, and the upper is what counts.
        lower = out[top + image, left : left + width]
        upper = out[top + y, left : left + width]
        f = eight_factors(down, whole, y)
        part = half[whole * PITCH : (whole + ROWS) * PITCH]
        if few:
            for x in range(width):
                even = kind(pair[x] + four_waves(part, x, f[0], f[1], f[2], f[3]))
                odd = kind(pair[PITCH + x] + four_waves(part, x + PITCH, f[4], f[5], f[6], f[7]))
                lower[x] = np.float32(kind(even - odd) >> SECOND_SHIFT) * factor
                upper[x] = np.float32(kind(even + odd) >> SECOND_SHIFT) * factor
        else:
            g = eight_factors(down, whole + 8, y)
            for x in range(width):
                even = kind(
                    pair[x]
                    + four_waves(part, x, f[0], f[1], f[2], f[3])
                    + four_waves(part, x + 8 * PITCH, g[0], g[1], g[2], g[3])
                )
                odd = kind(
                    pair[PITCH + x]
                    + four_waves(part, x + PITCH, f[4], f[5], f[6], f[7])
                    + four_waves(part, x + 9 * PITCH, g[4], g[5], g[6], g[7])
                )
                lower[x] = np.float32(kind(even - odd) >> SECOND_SHIFT) * factor
                upper[x] = np.float32(kind(even + odd) >> SECOND_SHIFT) * factor


@inlined
def fits(total: int, largest_down: int, largest_across: int) -> bool:
    """Return whether sums stay within int32, for a sum of magnitudes of coefficients."""
    first = ((total + 1) << COEFFICIENT_BITS) * 2 * largest_across
    second = ((first >> FIRST_SHIFT) + 64) * largest_down
    return first < 1 << 30 and second < 1 << 30
