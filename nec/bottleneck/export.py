"""A trained bottleneck as compressors of the store's format: integer tables, no network."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nec.bottleneck.bottleneck import Bottleneck
from nec.compressor import Compressor
from nec.errors import CompressorError


def export(
    bottleneck: Bottleneck,
    sample: Sequence[ArrayLike],
    *,
    bytes_per_vector: Sequence[float],
    scenes: ArrayLike | Sequence[ArrayLike] | None = None,
    gamma: float = 0.125,
) -> list[Compressor]:
    """Turn a bottleneck into a compressor for each of its rates, all of one basis.

    Basis and ratios of the steps are those that were learned; tables, contexts and the common
    factor of the steps are fitted to a sample, so that the size is hit.

    Parameters
    ----------
    bottleneck : Bottleneck
        Of a kind without a network in its decoder: "transform" or "factorised".
    sample : sequence of array of shape (y, x, feature) or (sample, y, x, feature)
        Features that the trained encoder gives of training images; NaN is missing.
    bytes_per_vector : sequence of float
        Size of each rate on the sample.
    scenes : array, optional
        Pooled features, see `nec.Compressor.fit`.
    gamma : float
        Of the steps of pooled features, which are not learned.

    Raises
    ------
    CompressorError
        If the bottleneck is a hyperprior, the number of sizes is not that of its rates, or a
        size is out of reach.
    """
    if bottleneck.kind == "hyperprior":
        raise CompressorError(
            "a hyperprior decodes by a network of floats, which no table stands for",
            "export a bottleneck of kind 'transform' or 'factorised'",
        )
    if len(bytes_per_vector) != bottleneck.rates:
        raise CompressorError(
            f"{len(bytes_per_vector)} sizes for {bottleneck.rates} rates", "give one for each"
        )
    with torch.no_grad():
        basis = bottleneck.basis.double().cpu().numpy()
        steps = bottleneck.log_steps.exp().float().cpu().numpy()
    order = _importance(sample, basis, steps)
    exact, triangle = np.linalg.qr(basis[:, order])
    columns = np.ascontiguousarray(exact * np.sign(np.diag(triangle)), np.float32)
    return [
        Compressor.fit(
            sample,
            bytes_per_vector=size,
            basis=columns,
            relative_steps=own[order],
            scenes=scenes,
            gamma=gamma,
            block=bottleneck.block,
            falloff=bottleneck.falloff,
        )
        for size, own in zip(bytes_per_vector, steps, strict=True)
    ]


def _importance(
    sample: Sequence[ArrayLike], basis: NDArray[np.float64], steps: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Return the bands in order: how many steps they are wide, over all rates."""
    energy, count = np.zeros(basis.shape[1]), 0
    for piece in sample:
        vectors = np.asarray(piece, np.float32)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        vectors = vectors[~np.isnan(vectors).any(1)]
        energy += np.square(vectors @ basis).sum(0)
        count += len(vectors)
    width = np.log(np.maximum(energy / max(count, 1), 1e-12)) / 2 - np.log(steps).mean(0)
    return np.argsort(-width, kind="stable")
