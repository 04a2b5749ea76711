"""How the codec's kernels are compiled.

Kernels get their arrays from Python and allocate none, so numba need not count references to
them; counting took almost half of the decoder's time.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

Kernel = Callable[..., Any]

inlined = njit(cache=True, nogil=True, inline="always")


def kernel(function: Kernel) -> Kernel:
    """Compile a function that allocates nothing, and neither do the functions that it calls."""
    try:
        compiled: Kernel = njit(cache=True, nogil=True, _nrt=False)(function)
    except KeyError:
        # A release of numba without the option: slower, otherwise the same.
        compiled = njit(cache=True, nogil=True)(function)
    return compiled
