"""The shape of the entropy model: the scan of a block, its tiles, rings, and context classes."""

from functools import cache
from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Blocks are at most 64 x 64 tokens.
BLOCKS = (1, 2, 4, 8, 16, 32, 64)
OCTAVES = 7
# Beyond the first 8 x 8 frequencies an octave is cut into tiles of 8 x 8.
TILE = 8
# Magnitudes 0..14 have a symbol; 15 is an escape, followed by an exponential Golomb code.
MAGNITUDES = 16
ESCAPE = MAGNITUDES - 1
# Coefficients of larger magnitude send their block to the verbatim path.
LARGEST = 1 << 20
# Uniform bits of an escape, or of the low part of a magnitude.
MOST_BITS = 24
# Expected magnitudes are integers in 1024ths, weights of what surrounds a coefficient in 64ths.
LEVEL_BITS = 10
WEIGHT_BITS = 6
# What is seen around a coefficient, in the order of its weights: the same coefficient of the left
# and the upper block, the next lower frequencies (above, left, both), the same coefficient one
# and two bands before, and the level of its ring.
NEIGHBOURS = 8
# And around a tile's flag: left, upper, two lower tiles, one and two bands before, the level.
FLAG_NEIGHBOURS = 7
# Classes of expected magnitude: below 2**-7, then 4 an octave up to 8.
CLASSES = 41
# Tables: flags by octave (from 1) and class, then magnitudes of DC residuals and of the rest.
FLAG_CONTEXTS = (OCTAVES - 1) * CLASSES
CONTEXTS = FLAG_CONTEXTS + 2 * CLASSES
TOP = 1 << (LEVEL_BITS + 3)
# No level or mean is taken to be larger.
MOST_EXPECTED = 2 * LARGEST << LEVEL_BITS
# What a level's prior weighs against the magnitudes seen in the chunk, in magnitudes.
PRIOR = 4
# Rings of frequency by u + v, of a block of 64; edges are the last sum of each ring.
RING_EDGES = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 126)
# A refinement halves the squared step; 2**8 * 2**(1/2) for the odd ones.
MOST_REFINED = 32
ROOT = 362


def rings_of(block: int) -> int:
    """Return how many frequency rings a block has."""
    return int(np.searchsorted(np.array(RING_EDGES), 2 * block - 2)) + 1


class Scan(NamedTuple):
    """Tiles and rings of a block, for the kernels.

    Attributes
    ----------
    octave_start : ndarray of shape (octave + 1,), int32
        The first tile of each octave: frequencies with max(u, v) < 2**octave that no lower
        octave holds.
    octave : ndarray of shape (tile,), int32
    corner : ndarray of shape (tile, 2), int32
        The lowest frequencies of each tile, vertically and horizontally.
    below : ndarray of shape (tile, 2), int32
        The tiles of the next lower frequencies, vertically and horizontally.
    ring : ndarray of shape (2 * block - 1,), int32
        Frequency ring by u + v.
    ring_count : ndarray of shape (tile, ring), int64
        Number of coefficients of each tile by ring, in a whole block.
    ring_span : ndarray of shape (tile, 2), int64
        First and last + 1 ring of each tile, in a whole block.
    classes : ndarray of shape (8192,), uint8
        Context class of an expected magnitude.
    bits : int
        Binary logarithm of the edge that coefficients are stored with.
    block_bits : int
        Binary logarithm of the block's edge, which frequencies are relative to.
    """

    octave_start: NDArray[np.int32]
    octave: NDArray[np.int32]
    corner: NDArray[np.int32]
    below: NDArray[np.int32]
    ring: NDArray[np.int32]
    ring_count: NDArray[np.int64]
    ring_span: NDArray[np.int64]
    classes: NDArray[np.uint8]
    bits: int
    block_bits: int


@cache
def scan_of(block: int, edge: int) -> Scan:
    """Return the scan of a block of 1, 2, 4, 8, 16, 32 or 64 tokens.

    Where no box of a chunk is larger than `edge`, a power of two, coefficients are stored with
    that edge; the order of those that there are is the same.
    """
    u, v = (a.ravel() for a in np.mgrid[:block, :block])
    octave = np.array([int(f).bit_length() for f in np.maximum(u, v)])
    whole = TILE.bit_length() - 1
    cut = octave > whole
    within = np.where(cut, u // TILE * block + v // TILE, 0)
    order = np.lexsort((v, u, within, octave)).astype(np.int32)
    key = (octave * block * block + within)[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    tile_octave = octave[order][first].astype(np.int32)
    tile_of = np.empty(block * block, np.int64)
    tile_of[order] = np.searchsorted(first, np.arange(block * block), side="right") - 1
    below = np.zeros((len(first), 2), np.int32)
    for t in range(1, len(first)):
        if tile_octave[t] <= whole:
            below[t] = t - 1
            continue
        p = int(order[first[t]])
        up, back = p - block, p - 1
        below[t, 0] = tile_of[up if p >= block else back]
        below[t, 1] = tile_of[back if p % block else up]
    corner = np.stack([u[order[first]], v[order[first]]], axis=1)
    ring = np.searchsorted(np.array(RING_EDGES), np.arange(2 * block - 1)).astype(np.int32)
    ring_count = np.zeros((len(first), rings_of(block)), np.int64)
    np.add.at(ring_count, (tile_of, ring[u + v]), 1)
    lowest = (ring_count > 0).argmax(1)
    ring_span = np.stack([lowest, lowest + (ring_count > 0).sum(1)], axis=1)
    return Scan(
        np.searchsorted(tile_octave, np.arange(int(tile_octave[-1]) + 2)).astype(np.int32),
        tile_octave,
        corner.astype(np.int32),
        below,
        ring,
        ring_count,
        ring_span,
        context_classes(),
        edge.bit_length() - 1,
        block.bit_length() - 1,
    )


@cache
def context_classes() -> NDArray[np.uint8]:
    """Return the class of every expected magnitude below 8: four an octave."""
    classes = np.zeros(TOP, np.uint8)
    for level in range(8, TOP):
        n = level.bit_length() - 1
        classes[level] = 1 + 4 * (n - 3) + ((level >> (n - 2)) & 3)
    return classes


def unpack_levels(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return levels, 1024ths, from their codes: eight an octave, from 1 up."""
    wide = codes.astype(np.int64)
    levels: NDArray[np.int64] = ((8 + (wide & 7)) << (wide >> 3)) >> 3
    return levels


def pack_levels(means: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the nearest codes of mean magnitudes."""
    levels = unpack_levels(np.arange(160, dtype=np.uint8)).astype(np.float64)
    wanted = np.maximum(means * (1 << LEVEL_BITS), 1)
    middle = np.sqrt(levels[1:] * levels[:-1])
    codes: NDArray[np.uint8] = np.searchsorted(middle, wanted).astype(np.uint8)
    return codes


def dc_gain(block: int, height: int, width: int) -> int:
    """Return what the DC of a smaller box is multiplied by to compare, 256ths: an integer root."""
    return isqrt((block * block << 16) // (height * width))


class Segment(NamedTuple):
    """A part of a chunk that is coded as one stream: octaves and planes, from and up to."""

    first_octave: int
    last_octave: int
    first_plane: int
    last_plane: int


class Parameters(NamedTuple):
    """Integers that fix the contexts; part of the codec's configuration.

    Attributes
    ----------
    weights : ndarray of shape (octave, NEIGHBOURS), int64
        Of what is seen around a coefficient, 64ths, by octave.
    flag_weights : ndarray of shape (octave, FLAG_NEIGHBOURS), int64
        Of what is seen around a tile, 64ths.
    level : ndarray of shape (plane, ring + 1), int64
        Expected magnitude by ring, 1024ths; the last is the DC of a block without neighbours.
    flag_level : ndarray of shape (plane, octave), int64
        Expected sum of magnitudes of a tile (up to 255), 1024ths.
    mean : ndarray of shape (plane,), int64
        DC that a block without neighbours is predicted to have.
    weight : ndarray of shape (plane,), int64
        Sixteenths of the neighbours' departure from the mean that the prediction takes over.
    """

    weights: NDArray[np.int64]
    flag_weights: NDArray[np.int64]
    level: NDArray[np.int64]
    flag_level: NDArray[np.int64]
    mean: NDArray[np.int64]
    weight: NDArray[np.int64]
