"""What linear heads read of an image, with a gradient: mean and roughness, whitened."""

import torch
from torch import Tensor


def mean_and_roughness(features: Tensor) -> Tensor:
    """Describe images as `nec.heads.pooling.mean_and_roughness` does, with a gradient.

    Parameters
    ----------
    features : Tensor of shape (n, dim, y, x)

    Returns
    -------
    Tensor of shape (n, 2 dim)
    """
    squares = features.diff(dim=2).square().sum((2, 3)) + features.diff(dim=3).square().sum((2, 3))
    rows, columns = features.shape[2:]
    pairs = (rows - 1) * columns + rows * (columns - 1)
    # Decoded images without any texture have no slope at 0.
    roughness = (squares / max(pairs, 1) + 1e-8).sqrt()
    return torch.cat((features.mean((2, 3)), roughness), 1)


def whitening(values: Tensor, floor: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Return mean and a matrix that levels the variance of all directions.

    A linear head with standardised inputs leans on weak directions as on strong ones.

    Parameters
    ----------
    values : Tensor of shape (n, c)
    floor : float
        Directions whose variance is below this fraction of the mean count less.

    Returns
    -------
    tuple of Tensor of shapes (c,) and (c, c)
        ``(values - mean) @ matrix`` is white.
    """
    mean = values.mean(0)
    scale = values.std(0).clamp_min(1e-6)
    power, directions = torch.linalg.eigh(torch.cov(((values - mean) / scale).T))
    power = power + floor * power.mean()
    return mean, directions / power.sqrt() / scale[:, None]
