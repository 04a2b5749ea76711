"""Square: random search with squares, which asks the model for nothing but its logits.

References
----------
.. [1] Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via
   random search, ECCV 2020 (arXiv 1912.00049), algorithms 1 to 3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nec.errors import RobustnessError
from nec.robustness.attacks.attack import (
    Attack,
    Model,
    lengths,
    logits_of,
    per_image,
    uniform,
)
from nec.robustness.attacks.losses import margin

# Queries, of 10,000, from which the share of changed pixels is halved once more ([1]_, 5).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square attack [1]_: black box, on models with or without gradients.

    An image is left alone as soon as it is misclassified. Positions and signs are drawn for
    each image.

    Parameters
    ----------
    epsilon, norm, low, high, chunk
        See `Attack`.
    queries : int
        Evaluations of the model an image, after that of its start.
    share : float
        Share of the pixels that the first squares change; the schedule is that of 10,000
        queries, rescaled.
    """

    queries: int = 1000
    share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1 or not 0 < self.share <= 1:
            raise RobustnessError(
                f"queries={self.queries}, share={self.share}",
                "give at least one query, and a share in (0, 1]",
            )

    @torch.no_grad()
    def _perturb(
        self, model: Model, x: Tensor, y: Tensor, budget: Tensor, generator: torch.Generator
    ) -> Tensor:
        if x.ndim != 4:
            raise RobustnessError(
                f"images have shape {tuple(x.shape)}", "Square needs (n, band, y, x)"
            )
        height, width = x.shape[2:]
        result = x.clone()
        score = margin(logits_of(model, x, y), y)
        stripes = self._stripes if self.norm == "linf" else self._tiles
        candidate = stripes(x, budget, generator)
        for query in range(self.queries):
            left = (score <= 0).nonzero()[:, 0]
            if not len(left):
                break
            at, known, radius = x[left], result[left], budget[left]
            if query:
                edge = round(math.sqrt(self._share(query) * height * width))
                edge = min(max(edge, 1), height, width)
                move = self._square if self.norm == "linf" else self._windows
                candidate = move(at, known, radius, edge, generator)
            else:
                candidate = candidate[left]
            found = margin(logits_of(model, candidate, y[left]), y[left])
            # The first point is the start of the search, whatever its margin.
            better = found > score[left] if query else torch.ones_like(found, dtype=torch.bool)
            result[left] = torch.where(per_image(better, at), candidate, known)
            score[left] = torch.where(better, found, score[left])
        return result

    def _share(self, query: int) -> float:
        at = int(query / self.queries * 10_000)
        return self.share * 0.5 ** sum(at > limit for limit in HALVINGS)

    def _stripes(self, x: Tensor, budget: Tensor, generator: torch.Generator) -> Tensor:
        n, bands, _, width = x.shape
        signs = _signs((n, bands, 1, width), x, generator)
        return self._inside(x, x + per_image(budget, x) * signs, budget)

    def _square(
        self, x: Tensor, known: Tensor, budget: Tensor, edge: int, generator: torch.Generator
    ) -> Tensor:
        """Set one square of each image to +-epsilon, one sign a band ([1]_, algorithm 2)."""
        inside = _window(x, edge, generator) >= 0
        value = per_image(budget, x) * _signs((*x.shape[:2], 1, 1), x, generator)
        return self._inside(x, torch.where(inside, x + value, known), budget)

    def _tiles(self, x: Tensor, budget: Tensor, generator: torch.Generator) -> Tensor:
        """Start of l2: a grid of about 5 x 5 pairs of hills."""
        n, bands, height, width = x.shape
        edge = max(min(height, width) // 5, 1)
        hill = _hills(edge, x, generator)
        down, across = height // edge, width // edge
        signs = _signs((n, bands, down, 1, across, 1), x, generator)
        tiles = (signs * hill[:, None, :]).reshape(n, bands, down * edge, across * edge)
        delta = torch.zeros_like(x)
        delta[:, :, : down * edge, : across * edge] = tiles
        return self._filled(x, delta, budget)

    def _windows(
        self, x: Tensor, known: Tensor, budget: Tensor, edge: int, generator: torch.Generator
    ) -> Tensor:
        """Move the budget of one window to another one ([1]_, algorithm 3)."""
        bands, height, width = x.shape[1:]
        edge = min(max(edge + (edge + 1) % 2, 3), height, width)
        delta = known - x
        at = _window(x, edge, generator)
        first, second = at >= 0, _window(x, edge, generator) >= 0
        hill = _hills(edge, x, generator).flatten()
        placed = torch.where(first, hill[at.clamp_min(0)], torch.zeros_like(x[:, :1]))
        fresh = placed * _signs((len(x), bands, 1, 1), x, generator)
        fresh = fresh + _unit(delta * first)
        freed = (delta * (first | second)).square().sum((2, 3), keepdim=True)
        spare = (budget.square() - lengths(delta, "l2").square()).clamp_min(0) / bands
        fresh = _unit(fresh * first) * (per_image(spare, x) + freed).sqrt()
        moved = torch.where(first, fresh, torch.where(second, torch.zeros_like(x), delta))
        return self._filled(x, moved, budget)

    def _filled(self, x: Tensor, delta: Tensor, budget: Tensor) -> Tensor:
        """Scale perturbations to the whole budget, then clip."""
        length = lengths(delta, "l2").clamp_min(torch.finfo(x.dtype).tiny)
        return self._inside(x, x + delta * per_image(budget / length, x), budget)


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return (uniform(shape, like, generator) < 0.5).to(like.dtype) * 2 - 1


def _unit(delta: Tensor) -> Tensor:
    """Scale each band of each image to length one; zeros stay."""
    length: Tensor = delta.square().sum((2, 3), keepdim=True).sqrt()
    scaled: Tensor = delta / length.clamp_min(1e-12)
    return scaled


def _window(x: Tensor, edge: int, generator: torch.Generator) -> Tensor:
    """Place a square in each image: index in it of each pixel (n, 1, y, x), -1 outside."""
    n, (height, width) = len(x), x.shape[2:]
    top = (uniform((n, 1, 1, 1), x, generator) * (height - edge + 1)).long()
    left = (uniform((n, 1, 1, 1), x, generator) * (width - edge + 1)).long()
    row = torch.arange(height, device=x.device)[:, None] - top
    column = torch.arange(width, device=x.device) - left
    inside = (row >= 0) & (row < edge) & (column >= 0) & (column < edge)
    return torch.where(inside, row * edge + column, -1)


def _hill(height: int, width: int, like: Tensor) -> Tensor:
    """Sum of nested rectangles of weight 1 / k**2 around the centre ([1]_, eq. 2)."""
    hill = torch.zeros(height, width, dtype=like.dtype, device=like.device)
    row, column = height // 2, width // 2
    for k in range(max(row, column) + 1):
        rows = slice(max(row - k, 0), row + k + 1)
        hill[rows, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return hill


def _hills(edge: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Two hills of opposite sign side by side or one above the other, of length one."""
    half = edge // 2
    pair = torch.cat((_hill(half, edge, like), -_hill(edge - half, edge, like)))
    hills: Tensor = pair / pair.norm()
    return hills.T if bool(uniform((1,), like, generator) < 0.5) else hills
