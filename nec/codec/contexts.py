"""The shape of the entropy model: alphabets, context classes, the scan of a block."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Magnitudes 0..14 have a symbol; 15 is an escape, followed by an exponential Golomb code.
MAGNITUDES = 16
ESCAPE = MAGNITUDES - 1
# Scale class s stands for a mean magnitude of 2 ** ((s - 12) / 2).
SCALES = 32
UNIT_SCALE = 12
# Neighbourhood classes: 6 with a left or an upper block, 3 without.
NEIGHBOURHOODS = 9
ACTIVITIES = 8
FLAG_CONTEXTS = ACTIVITIES * 4 * 3 * 2
# Frequency rings by u + v: 0, 1, 2, 3, 4, 5-6, 7-8, 9-11, 12-15, 16-20, 21-30.
RING_EDGES = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 30)
RINGS = len(RING_EDGES)
# Row of the scale classes that holds the DC of a block without neighbours.
LONE_DC = RINGS
# Coefficients of larger magnitude send their block to the verbatim path.
LARGEST = 1 << 20


class Geometry(NamedTuple):
    """Scan of a block: frequencies in order of octave group.

    Attributes
    ----------
    block : int
        Edge of a block, tokens.
    order : ndarray of shape (block**2,), int32
        Coefficients (row-major index) in coding order.
    edges : ndarray of shape (group + 1,), int32
        Where each group begins in `order`.
    ring : ndarray of shape (block**2,), int32
        Frequency ring of each coefficient.
    """

    block: int
    order: NDArray[np.int32]
    edges: NDArray[np.int32]
    ring: NDArray[np.int32]


def geometry(block: int) -> Geometry:
    """Return the scan of a block of 1, 2, 4, 8 or 16 tokens."""
    u, v = (a.ravel() for a in np.mgrid[:block, :block])
    group = np.ceil(np.log2(np.maximum(u, v) + 1)).astype(np.int32)
    order = np.argsort(group, kind="stable").astype(np.int32)
    groups = int(group.max()) + 1
    edges = np.searchsorted(group[order], np.arange(groups + 1)).astype(np.int32)
    ring = np.searchsorted(np.array(RING_EDGES), u + v).astype(np.int32)
    return Geometry(block, order, edges, ring)


class Parameters(NamedTuple):
    """Integers that fix the contexts; part of the codec's configuration.

    Attributes
    ----------
    scale : ndarray of shape (band, RINGS + 1), uint8
        Scale class of each ring; the last is the DC of a block without neighbours.
    activity : ndarray of shape (band, group - 1), uint8
        Class of how often a group holds anything.
    mean : ndarray of shape (band,), int32
        DC that a block without neighbours is predicted to have.
    weight : ndarray of shape (band,), uint8
        Sixteenths of the neighbours' departure from the mean that the prediction takes over.
    """

    scale: NDArray[np.uint8]
    activity: NDArray[np.uint8]
    mean: NDArray[np.int32]
    weight: NDArray[np.uint8]
