"""The coefficients of one chunk: our entropy coder without the transform either way."""

from copy import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nec.codec import Coding, chunk
from nec.codec.container import take_apart
from nec.codec.contexts import RING_EDGES
from nec.codec.decisions import Transformed


class ChunkCoder:
    """Codes the coefficients of a chunk, and reads them back.

    `decide_and_encode` starts from the transform's floats: it quantises, decides by rate and
    distortion, and codes. `encode` is given what was decided. Decoding ends with the integers,
    all of them in place.

    Parameters
    ----------
    values : ndarray of shape (band, y, x), float32
        All valid.
    coding : Coding

    Attributes
    ----------
    symbols : ndarray of shape (1, row, column, band, coefficient), int32
    rings : ndarray of shape (coefficient,), int64
        Frequency ring of each coefficient of a block.
    size : int
        Bytes of the chunk.
    """

    def __init__(self, values: NDArray[np.float32], coding: Coding) -> None:
        self._coding = coding
        self._shape = (1, *values.shape)
        self._transformed = Transformed(np.ascontiguousarray(values[None]), coding.block)
        self._data = self.decide_and_encode()
        self.size = len(self._data)
        self.symbols = self._transformed.decide(coding).symbols
        # Whole steps round to themselves, and nothing is decided at no price of a bit.
        self._nearest = replace(coding, lagrangian=0.0)
        self._whole = copy(self._transformed)
        self._whole.coefficients = self.symbols * coding.step_values[:, None]
        assert self.encode() == self._data
        edge = self._transformed.partition.edge
        u, v = np.mgrid[:edge, :edge]
        self.rings = np.searchsorted(np.array(RING_EDGES), (u + v).ravel()).astype(np.int64)
        np.testing.assert_array_equal(self.decode(), self.symbols)

    def encode(self) -> bytes:
        """Code the coefficients as they were decided."""
        return chunk.pack_chunk(self._whole.decide(self._nearest), self._nearest)

    def decide_and_encode(self) -> bytes:
        """Quantise, decide and code."""
        return chunk.pack_chunk(self._transformed.decide(self._coding), self._coding)

    def decode(self) -> NDArray[np.int32]:
        """Read the coefficients."""
        parts = take_apart(memoryview(self._data), self._coding)
        return chunk.read_coefficients(parts, self._coding, self._shape).symbols
