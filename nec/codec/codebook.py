"""Vectors that lone vectors lie near to: each is coded as one of them, and what is left.

Vectors without neighbours are seldom of one Gaussian: there are kinds of places. A code of some
bits tells the kind, which saves more than as many bits for components can [1]_. Frequencies of
codes follow the chunk.

References
----------
.. [1] Gersho and Gray, Vector quantization and signal compression, chapter 12 (multistage VQ).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nec.codec.contexts import ROOT
from nec.codec.tables import PRECISION

# Most vectors of a codebook: a code is a byte.
MOST_CODES = 256
# Largest unit of a codebook, 2**-16 of a step.
LARGEST_UNIT = 1 << 24
# Most that the counts of a configuration sum to.
MOST_COUNTED = 1 << 15


class Codebook(NamedTuple):
    """What codes stand for.

    Attributes
    ----------
    centres : ndarray of shape (code, band), int64
        Vectors in 2**-16 of an unrefined step.
    counts : ndarray of shape (code,), int64
        What is expected of them: counts of at least 1, of at most 2**15 together.
    """

    centres: NDArray[np.int64]
    counts: NDArray[np.int64]

    def refined(self, refinement: int) -> NDArray[np.int64]:
        """Return the vectors in 2**-16 of the finer steps of a refined block."""
        centres = (self.centres * ROOT) >> 8 if refinement & 1 else self.centres
        return centres << (refinement >> 1)

    def values(self, steps: NDArray[np.float32], refinement: int) -> NDArray[np.float64]:
        """Return what a reader makes of them: (code, band), in units of the values."""
        factor = steps.astype(np.float64) * 2.0 ** (-PRECISION - refinement / 2)
        values: NDArray[np.float64] = self.refined(refinement) * factor
        return values
