"""The spectral penalty that keeps cores well conditioned, and condition numbers.

References
----------
.. [1] Schotthöfer, Yang and Schnake, Dynamical Low-Rank Compression of Neural Networks with
   Robustness under Adversarial Attacks, arXiv 2505.08022, Section 4 (R is its Definition 1, the
   gradient Proposition 1, the bound Proposition 2) and Section 5.1 (convolutions).
"""

import math

import torch
from torch import Tensor, nn

from nec.lowrank.bases import unfold, working_dtype
from nec.lowrank.conversion import lowrank_layers


def spectral_penalty(core: Tensor) -> Tensor:
    """Return R(S) = ‖Sᵀ S - α² I‖_F with α² = ‖S‖²_F / r [1]_.

    Zero where all r singular values are alike. Its gradient is 2 S (Sᵀ S - α² I) / R, the part
    through α² being zero because Sᵀ S - α² I has no trace. A convolution's core is taken as
    two matrices, its unfoldings by output and by input channel, and R is the mean of theirs:
    that keeps the scale of beta in [1]_, which takes the output channel alone.

    Parameters
    ----------
    core : Tensor of shape (a, b) or (a, b, y, x)
        A core, or a dense weight. The shorter side's Gram matrix is taken, so r = min(a, b).

    Returns
    -------
    Tensor, scalar, float32 or better, also under autocast
    """
    with torch.autocast(core.device.type, enabled=False):
        core = core.to(working_dtype(core))
        return torch.stack([_imbalance(matrix) for matrix in _matrices(core)]).mean()


def penalty(model: nn.Module) -> Tensor:
    """Return the sum of `spectral_penalty` over the low-rank layers of a model.

    Raises
    ------
    LowRankError
        If the model has no low-rank layer.
    """
    layers = lowrank_layers(model).values()
    return torch.stack([spectral_penalty(layer.core) for layer in layers]).sum()


def condition_number(core: Tensor) -> float:
    """Return largest by smallest singular value; of a convolution's two unfoldings the worse.

    Parameters
    ----------
    core : Tensor of shape (a, b) or (a, b, y, x)
        A core, or a dense weight.

    Returns
    -------
    float
        Infinite where the smallest singular value is zero.
    """
    spectra = [_singular_values(matrix) for matrix in _matrices(core)]
    return max(float(s[0] / s[-1]) if s[-1] > 0 else math.inf for s in spectra)


def condition_numbers(model: nn.Module) -> dict[str, float]:
    """Return `condition_number` of the core of each low-rank layer, by layer name.

    Because the bases are orthonormal, these are the condition numbers of the weights on their
    row and column spaces.

    Raises
    ------
    LowRankError
        If the model has no low-rank layer.
    """
    return {name: condition_number(layer.core) for name, layer in lowrank_layers(model).items()}


def condition_bound(core: Tensor) -> float:
    """Return the bound exp(R(S) / (√2 s_r²)) on the condition number of a core [1]_.

    It follows from ln κ = ½ ln(s_1² / s_r²) ≤ (s_1² - s_r²) / (2 s_r²) and s_1² - s_r² ≤ √2 R.

    Parameters
    ----------
    core : Tensor of shape (a, b) or (a, b, y, x)
        Of a convolution the larger bound of its two unfoldings.

    Returns
    -------
    float
        Infinite where the smallest singular value is zero, or the bound too large for a float.
    """
    bounds = []
    for matrix in _matrices(core.detach().double()):
        smallest = float(_singular_values(matrix)[-1])
        scaled = smallest * smallest * math.sqrt(2)
        exponent = float(_imbalance(matrix)) / scaled if scaled > 0 else math.inf
        bounds.append(math.exp(exponent) if exponent < 709 else math.inf)
    return max(bounds)


def _matrices(core: Tensor) -> list[Tensor]:
    if core.shape[2:].numel() == 1:
        return [core.flatten(1)]
    return [unfold(core, 0), unfold(core, 1)]


def _imbalance(matrix: Tensor) -> Tensor:
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    excess = gram - gram.diagonal().mean() * torch.eye(
        len(gram), dtype=gram.dtype, device=gram.device
    )
    norm: Tensor = torch.linalg.norm(excess)
    return norm


def _singular_values(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(matrix.detach().double())
    return values
