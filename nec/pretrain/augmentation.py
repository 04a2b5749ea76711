"""Augmentations that keep colour, because colour is physics here."""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_view(
    chips: Tensor,
    gsd: Tensor,
    maps: Tensor | None = None,
    *,
    generator: torch.Generator,
    least_area: float = 0.4,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return one random view of each chip: turn, flip, crop, gain and blur.

    Parameters
    ----------
    chips : Tensor of shape (n, band, y, x), y = x
        Reflectance; a band that is missing is NaN throughout.
    gsd : Tensor of shape (n,)
        Ground sampling distance of the chips, metres.
    maps : Tensor of shape (n, c, rows, columns), optional
        What is known of the chips' places on a coarser grid; turned, flipped and cropped alike.
    generator : torch.Generator
        Source of randomness.
    least_area : float
        Smallest fraction of the chip's area that a crop keeps.

    Returns
    -------
    tuple of Tensor
        Views of the shape of `chips`, their ground sampling distance (a crop that is enlarged
        back to the chip's size has smaller pixels), and the views of the maps.
    """
    n, band = chips.shape[:2]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    scale = uniform(least_area, 1.0).sqrt()
    quarter = torch.randint(0, 4, (n,), generator=generator)
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1.0
    cos = torch.tensor([1.0, 0.0, -1.0, 0.0])[quarter]
    sin = torch.tensor([0.0, 1.0, 0.0, -1.0])[quarter]
    shift = uniform(-1, 1, 2) * (1 - scale)[:, None]
    theta = torch.stack(
        (
            torch.stack((cos * mirror * scale, -sin * scale, shift[:, 0]), -1),
            torch.stack((sin * mirror * scale, cos * scale, shift[:, 1]), -1),
        ),
        dim=1,
    ).to(chips.device)
    view = _warped(chips, theta)
    gain = uniform(0.9, 1.1, 1, 1, 1) * uniform(0.97, 1.03, band, 1, 1)
    view = view * gain.to(chips.device)
    blurred = torch.rand(n, generator=generator) < 0.2
    if blurred.any():
        soft = F.avg_pool2d(
            F.pad(view[blurred], (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1
        )
        view = view.clone()
        view[blurred] = soft
    return view, gsd * scale.to(gsd.device), None if maps is None else _warped(maps, theta)


def _warped(images: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_bands(present: list[int], *, generator: torch.Generator) -> list[int]:
    """Drop up to half of the bands present; at least one stays."""
    most = len(present) // 2
    drop = int(torch.randint(0, most + 1, (1,), generator=generator))
    order = torch.randperm(len(present), generator=generator)[: len(present) - drop].tolist()
    return sorted(present[i] for i in order)
