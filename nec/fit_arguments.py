"""What a compressor is asked to be fitted to: arguments that cannot be are told by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from nec.codec.coding import Coding
from nec.errors import ChunkError, CompressorError


def check_target(bytes_per_vector: float | None, cosine: float | None, codebook: int | str) -> None:
    """Refuse two targets, none where one is needed, and those that are no size or fidelity."""
    targets = (bytes_per_vector is not None) + (cosine is not None)
    if targets != 1 and (targets or not codebook or isinstance(codebook, str)):
        raise CompressorError(
            "a compressor is fitted to bytes_per_vector= or to cosine=", "give one of them"
        )
    if bytes_per_vector is not None and not bytes_per_vector > 0:
        raise CompressorError(f"bytes_per_vector={bytes_per_vector} is no size", "give more than 0")
    if cosine is not None and not cosine > 0:
        raise CompressorError(f"cosine={cosine} is no fidelity", "give one above 0, below 1")


def check_weights(**weights: float) -> None:
    """Refuse arguments that are below 0, infinite or no number."""
    for name, value in weights.items():
        if not 0 <= value < np.inf:
            raise CompressorError(f"{name}={value} is none", "give 0 or more")


def check_steps(relative_steps: ArrayLike | None, basis: ArrayLike | None) -> None:
    """Refuse steps without a basis, or of another number than its components."""
    if relative_steps is not None and (
        basis is None or np.shape(relative_steps) != np.shape(basis)[1:]
    ):
        raise CompressorError(
            f"relative_steps of shape {np.shape(relative_steps)} are not those of a basis",
            "give basis=, and one step for each of its components",
        )


@contextmanager
def arguments() -> Iterator[None]:
    """Let what a coding cannot be made of be told as an argument of the caller's."""
    try:
        yield
    except ChunkError as error:
        raise CompressorError(error.what, "correct the argument") from error


def fitting_by(codebook: int | str) -> Callable[..., tuple[Coding, dict[str, float]]]:
    """Return what fits a coding with a codebook of this size."""
    from nec.codec.clustering import choose_clusters, fit_clusters
    from nec.codec.fitting import fit_coding

    if codebook == "auto":
        return choose_clusters
    if not isinstance(codebook, int):
        raise CompressorError(f"{codebook!r} is no size of a codebook", 'give a number, or "auto"')
    return partial(fit_clusters, codes=codebook) if codebook else fit_coding
