"""EuroSAT RGB at half its resolution: training, validation and test images as tensors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from encoder_bench.images import eurosat_rgb
from torch import Tensor

# Pixels that are averaged each way: 64 to 32.
FACTOR = 2


@dataclass(frozen=True)
class Part:
    """Images (n, 3, y, x), display values, and labels (n,)."""

    images: Tensor
    labels: Tensor

    def first(self, count: int) -> "Part":
        """Return the first images of the part."""
        return Part(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Parts:
    """Fixed parts of the set: a larger training part begins with the smaller one.

    Attributes
    ----------
    training : Part
    validation : Part
        Of the training side: for choices, never for a table.
    test : Part
        The fixed pool, shuffled.
    """

    training: Part
    validation: Part
    test: Part

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each band of the training images."""
        return self.training.images.mean((0, 2, 3)), self.training.images.std((0, 2, 3))


def load_parts(data: Path, split: Path, *, training: int, validation: int = 700) -> Parts:
    """Read EuroSAT RGB, reduced by means of `FACTOR` × `FACTOR` pixels.

    Raises
    ------
    SystemExit
        If there are fewer training images than asked for.
    """
    source = eurosat_rgb(data, split)
    small = F.avg_pool2d(torch.from_numpy(source.images), FACTOR)
    small = small.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(np.unique(source.labels, return_inverse=True)[1])
    rng = np.random.default_rng(0)
    learn, test = (rng.permutation(np.flatnonzero(at)) for at in (~source.pool, source.pool))
    most = len(learn) - validation
    if training > most:
        raise SystemExit(f"{training} training images asked for, there are {most}: ask for fewer")
    return Parts(
        *(
            Part(small[at], labels[at])
            for at in (learn[:training], learn[len(learn) - validation :], test)
        )
    )
