"""How far an attack on pixels moves an embedding, against how far images lie apart.

A cosine between clean and attacked embedding rewards collapse: an encoder that maps all images
to one point is perfectly stable and useless. So the shift is stated in units of the median
distance between images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nec.encoders.vit import VisionTransformer
from nec.errors import RobustnessError
from nec.robustness.attacks.attack import (
    Norm,
    check_images,
    check_threat,
    inside,
    per_image,
    random_like,
    steepest,
)

#: An encoder: images (n, ...) to embeddings (n, d), differentiable.
Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EmbeddingShift:
    """Shifts of embeddings under attack.

    Attributes
    ----------
    shift : Tensor of shape (n,)
        Distance from the embedding of the attacked image to that of the image, in units of
        `spread`.
    noise : Tensor of shape (n,)
        The same for random noise of the same budget: what the attack has to beat.
    lost : Tensor of shape (n,), bool
        Whether the attacked image's embedding is nearer to another image's than to its own.
    spread : float
        Median distance between the embeddings of two images.
    x : Tensor of shape (n, ...)
        The attacked images.
    """

    shift: Tensor
    noise: Tensor
    lost: Tensor
    spread: float
    x: Tensor


def embedding_shift(
    embed: Embed,
    x: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    low: float = 0.0,
    high: float = 1.0,
    where: Tensor | None = None,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    stored: Embed | None = None,
    steps: int = 20,
    restarts: int = 1,
    chunk: int = 256,
    generator: torch.Generator | None = None,
) -> EmbeddingShift:
    """Attack images so that their embeddings move as far as they can.

    PGD on the distance, with steps from 2 epsilon down to 0.

    Parameters
    ----------
    embed : callable
        (n, ...) images to (n, d) embeddings, differentiable; see `scene_embedding`.
    x : Tensor of shape (n, ...), floating
        At least two images within [low, high]; the more, the better is the spread known.
        All their (n, n) distances are held at once.
    epsilon, norm, low, high
        Budget and valid range, in pixel units.
    where : Tensor, optional
        Pixels that may change, bool, broadcast to an image: for one pixel of all bands
        ``(y, x)`` with a single True.
    metric : {"euclidean", "cosine"}
        Distance of embeddings, or of their directions (the chord of the angle).
    stored : callable, optional
        (n, ...) images to (n, d) embeddings as they are stored, coded and decoded. Where given,
        all distances are measured on it; the attack still climbs `embed`.
    steps, restarts : int
        Gradients a start, and random starts.
    chunk : int
        Images at a time.
    generator : torch.Generator, optional
        Source of all randomness; seed 0 where none is given.

    Returns
    -------
    EmbeddingShift

    Raises
    ------
    RobustnessError
        Images with NaN or out of range, or a single one; embeddings that are not (n, d), are
        the same for all images, or have no gradient.

    Notes
    -----
    The ratio ``|e(x') - e(x)| / median |e(x_i) - e(x_j)|`` does not change when embeddings are
    shifted, rotated or scaled.
    """
    check_threat(epsilon, norm, low, high)
    check_images(x, low, high)
    if len(x) < 2:
        raise RobustnessError("there is one image", "pass several: the shift is relative to them")
    if steps < 1 or restarts < 1 or chunk < 1 or metric not in ("euclidean", "cosine"):
        raise RobustnessError(
            f"steps={steps}, restarts={restarts}, chunk={chunk}, metric={metric!r}",
            "give one step, start and image at least, and 'euclidean' or 'cosine'",
        )
    generator = generator or torch.Generator().manual_seed(0)
    free = _free(where, x)
    climb = _Climb(embed, epsilon, norm, low, high, metric, free, steps, restarts)
    parts = [climb(x[i : i + chunk].detach().clone(), generator) for i in range(0, len(x), chunk)]
    attacked = torch.cat(parts)
    noise = climb.start(x, generator)

    def measured(images: Tensor) -> Tensor:
        with torch.no_grad():
            rows = [
                _rows(stored or embed, images[i : i + chunk], metric)
                for i in range(0, len(images), chunk)
            ]
        return torch.cat(rows)

    clean, moved, noisy = measured(x), measured(attacked), measured(noise)
    apart = torch.pdist(clean.double())
    spread = apart.median().item()
    # Rounding alone moves a float32 embedding by about 1e-7 of its length.
    if spread <= 1e-6 * clean.double().norm(dim=1).mean().item():
        raise RobustnessError(
            f"the median distance between embeddings is {spread:.3g}: all images look the same",
            "check the encoder and pass images that differ",
        )
    to_all = torch.cdist(moved.double(), clean.double())
    own = to_all.diagonal().clone()
    nearest_other = to_all.fill_diagonal_(float("inf")).amin(1)
    return EmbeddingShift(
        shift=(moved.double() - clean.double()).norm(dim=1) / spread,
        noise=(noisy.double() - clean.double()).norm(dim=1) / spread,
        lost=nearest_other < own,
        spread=spread,
        x=attacked,
    )


def scene_embedding(network: VisionTransformer, *, bands: tuple[str, ...], gsd: float) -> Embed:
    """Return the built-in encoder as a differentiable map from chips to scene embeddings.

    Parameters
    ----------
    network : VisionTransformer
        For a loaded model: ``model.encoder.network``.
    bands : tuple of str
        Common name of each band of the chips.
    gsd : float
        Metres a pixel.

    Returns
    -------
    callable
        (n, band, y, x) reflectance to (n, dim): the mean over tokens.
    """
    index = network.band_index(bands)

    def embed(chips: Tensor) -> Tensor:
        if chips.ndim != 4 or chips.shape[1] != len(bands):
            raise RobustnessError(
                f"chips have shape {tuple(chips.shape)}, and {len(bands)} bands are named",
                "pass (n, band, y, x) of those bands",
            )
        scale = torch.full((len(chips),), float(gsd), device=chips.device)
        tokens: Tensor = network(chips, index, scale)
        return tokens.mean((2, 3))

    return embed


@dataclass(frozen=True)
class _Climb:
    """PGD on the distance from the clean embedding."""

    embed: Embed
    epsilon: float
    norm: Norm
    low: float
    high: float
    metric: str
    free: Tensor
    steps: int
    restarts: int

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            clean = _rows(self.embed, x, self.metric)
        best, furthest = x, torch.full((len(x),), -1.0, dtype=clean.dtype, device=x.device)
        for _ in range(self.restarts):
            # The distance has no gradient at the image itself.
            point = self.start(x, generator)
            for step in range(self.steps + 1):
                distance, gradient = self._slope(point, clean)
                further = distance > furthest
                best = torch.where(per_image(further, x), point, best)
                furthest = torch.where(further, distance, furthest)
                if step < self.steps:
                    move = steepest(gradient * self.free, self.norm)
                    # Long steps first: those across the ball find the direction that counts.
                    length = 2 * self.epsilon * (1 - step / self.steps)
                    point = self._inside(x, point + length * move)
        return best

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random point of the ball, within the valid range."""
        noise = random_like(x, self.norm, generator, free=self.free)
        return self._inside(x, x + self.epsilon * noise)

    def _inside(self, x: Tensor, point: Tensor) -> Tensor:
        budget = torch.full((len(x),), self.epsilon, dtype=x.dtype, device=x.device)
        return inside(x, point, budget, norm=self.norm, low=self.low, high=self.high)

    def _slope(self, point: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            # Squared: the same direction, and a gradient of zero where nothing has moved.
            distance = (_rows(self.embed, point, self.metric) - clean).square().sum(1)
            gradient = None
            if distance.requires_grad:
                (gradient,) = torch.autograd.grad(distance.sum(), point, allow_unused=True)
        if gradient is None:
            raise RobustnessError(
                "the embedding has no gradient with respect to the pixels",
                "pass the network itself, such as scene_embedding(model.encoder.network, ...): "
                "an encoder's embed() runs without gradients",
            )
        return distance.detach(), gradient


def _rows(embed: Embed, x: Tensor, metric: str) -> Tensor:
    rows = embed(x)
    if rows.ndim != 2 or len(rows) != len(x):
        raise RobustnessError(
            f"{len(x)} images are embedded to shape {tuple(rows.shape)}",
            "return one vector (n, d) an image: pool tokens, or flatten them",
        )
    if not bool(torch.isfinite(rows).all()):
        raise RobustnessError("embeddings hold NaN or infinities", "check the encoder's weights")
    if metric == "cosine":
        length: Tensor = rows.norm(dim=1, keepdim=True)
        rows = rows / length.clamp_min(torch.finfo(rows.dtype).tiny)
    return rows


def _free(where: Tensor | None, x: Tensor) -> Tensor:
    if where is None:
        return torch.ones_like(x[:1])
    try:
        free = where.bool().expand(x.shape[1:])
    except RuntimeError as error:
        raise RobustnessError(
            f"where= has shape {tuple(where.shape)}",
            f"pass one that broadcasts to an image, {tuple(x.shape[1:])}",
        ) from error
    if not bool(free.any()):
        raise RobustnessError("where= allows no pixel", "set at least one to True")
    return free[None].to(x)
