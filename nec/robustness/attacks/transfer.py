"""Attacks meant to carry over from one model to another: mixed images, and the carrying itself.

References
----------
.. [1] Xu and Ghamisi, Universal adversarial examples in remote sensing: methodology and
   benchmark, IEEE TGRS 2022 (arXiv 2202.07054), and its code, UAE-RS.
.. [2] Wang et al., Admix: enhancing the transferability of adversarial attacks, ICCV 2021
   (arXiv 2102.00436), eq. 7.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nec.errors import RobustnessError
from nec.robustness.attacks.attack import (
    Adversary,
    Attack,
    Model,
    Norm,
    logits_of,
    per_image,
    slope_at,
    steepest,
    uniform,
)
from nec.robustness.attacks.losses import cross_entropy


@dataclass(frozen=True)
class Transfer:
    """Attack a surrogate, whatever model is given: the target answers no question.

    Called like an `Attack`; `nec.robustness.evaluate` then measures on the target.

    Parameters
    ----------
    surrogate : callable
        (n, ...) images to (n, classes) logits, with the target's classes.
    attack : Adversary
        The attack on it.
    """

    surrogate: Model
    attack: Adversary

    @property
    def epsilon(self) -> float:
        """The budget of the attack, in pixel units."""
        return self.attack.epsilon

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return self.attack.norm

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        epsilon: Tensor | None = None,
    ) -> Tensor:
        """Return images attacked on the surrogate; see `Attack.__call__`."""
        del model
        return self.attack(self.surrogate, x, y, generator=generator, epsilon=epsilon)


@dataclass(frozen=True, kw_only=True)
class Momentum(Attack):
    """Iterated steps along a running mean of gradients, from the image itself.

    Parameters
    ----------
    epsilon, norm, low, high, chunk
        See `Attack`.
    steps : int
        Steps of length epsilon / steps.
    decay : float
        Weight of the past; each new gradient counts with length one in l1.
    """

    steps: int = 10
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.decay < 0:
            raise RobustnessError(
                f"steps={self.steps}, decay={self.decay}", "give a step at least, a decay of 0 on"
            )

    def _perturb(
        self, model: Model, x: Tensor, y: Tensor, budget: Tensor, generator: torch.Generator
    ) -> Tensor:
        length = per_image(budget / self.steps, x)
        partner = self._partner(x, y, generator)
        point, mean = x, torch.zeros_like(x)
        for _ in range(self.steps):
            gradient = self._gradient(model, point, y, partner)
            size = gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(x.dtype).tiny)
            mean = self.decay * mean + gradient / per_image(size, x)
            point = self._inside(x, point + length * steepest(mean, self.norm), budget)
        return point

    @abstractmethod
    def _partner(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return what images are mixed with."""

    @abstractmethod
    def _gradient(self, model: Model, point: Tensor, y: Tensor, partner: Tensor) -> Tensor:
        """Return the direction to climb, (n, ...)."""

    def _copy(self, x: Tensor, k: int) -> Tensor:
        """Fade images towards the low end of the range by 2**-k."""
        return self.low + (x - self.low) * 0.5**k


@dataclass(frozen=True, kw_only=True)
class Mixup(Momentum):
    """Mixup-Attack and Mixcut-Attack [1]_: pull features towards those of a mixed image.

    Raised is ``weight * CE(f(x), y) - KL(features of the mixed image || features of x)``,
    summed over faded copies x / 2**k. The features are taken as probabilities (softmax), which
    the divergence needs; the authors' code passes them raw.

    Parameters
    ----------
    epsilon, norm, low, high, chunk, steps, decay
        See `Momentum`.
    features : callable, optional
        (n, ...) images to features, flattened here; the model's logits where none is given.
    mixed : Tensor of shape (band, y, x), optional
        The mixed image. Where none is given, it is made of the first image of each class in
        the chunk.
    mixture : {"mixup", "mixcut"}
        How that is done: their mean, or a mosaic of the first four.
    copies : int
        Faded copies.
    weight : float
        Of the cross-entropy.
    """

    features: Model | None = None
    mixed: Tensor | None = None
    mixture: Literal["mixup", "mixcut"] = "mixup"
    copies: int = 5
    weight: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture not in ("mixup", "mixcut") or self.copies < 1 or self.weight < 0:
            raise RobustnessError(
                f"mixture={self.mixture!r}, copies={self.copies}, weight={self.weight}",
                "choose 'mixup' or 'mixcut', at least one copy, a weight of 0 on",
            )

    def _partner(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        if self.mixed is not None:
            if self.mixed.shape != x.shape[1:]:
                raise RobustnessError(
                    f"mixed= has shape {tuple(self.mixed.shape)}",
                    f"pass one of the shape of an image, {tuple(x.shape[1:])}",
                )
            return self.mixed.to(x)[None]
        first = [int((y == label).nonzero()[0]) for label in y.unique()]
        if self.mixture == "mixup":
            return x[first].mean(0, keepdim=True)
        if x.ndim != 4:
            raise RobustnessError(
                f"images have shape {tuple(x.shape)}", "a mosaic needs (n, band, y, x)"
            )
        chosen = x[[first[i % len(first)] for i in range(4)]]
        row, column = x.shape[2] // 2, x.shape[3] // 2
        mosaic = chosen[:1].clone()
        mosaic[..., :row, column:] = chosen[1:2, :, :row, column:]
        mosaic[..., row:, :column] = chosen[2:3, :, row:, :column]
        mosaic[..., row:, column:] = chosen[3:4, :, row:, column:]
        return mosaic

    def _gradient(self, model: Model, point: Tensor, y: Tensor, partner: Tensor) -> Tensor:
        features = self.features or model
        with torch.no_grad():
            goal = features(partner).flatten(1).softmax(1)

        def objective(logits: Tensor, point: Tensor) -> Tensor:
            total = torch.zeros_like(logits[:, 0])
            for k in range(self.copies):
                copy = self._copy(point, k)
                scores = logits if not k else logits_of(model, copy, y)
                own = scores if self.features is None else features(copy)
                own = own.flatten(1).log_softmax(1)
                # The entropy of the goal is constant and left out.
                total = total + (goal * own).sum(1)
                total = total + self.weight * cross_entropy(scores, y)
            return total

        return slope_at(model, point, y, objective).gradient


@dataclass(frozen=True, kw_only=True)
class Admix(Momentum):
    """Admix [2]_: gradients of images with a little of other classes' images mixed in.

    Parameters
    ----------
    epsilon, norm, low, high, chunk, steps, decay
        See `Momentum`.
    strength : float
        Weight of the image that is mixed in.
    partners : int
        Images mixed in, each by itself; of another class where the chunk has one.
    copies : int
        Faded copies x / 2**k of each mixture.
    """

    strength: float = 0.2
    partners: int = 3
    copies: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength < 0 or self.partners < 1 or self.copies < 1:
            raise RobustnessError(
                f"strength={self.strength}, partners={self.partners}, copies={self.copies}",
                "give a strength of 0 on, at least one partner and one copy",
            )

    def _partner(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        # Keys below zero for the same class: chosen only where no other is there.
        keys = uniform((self.partners, len(x), len(x)), x, generator)
        keys = keys - 2 * (y[:, None] == y).to(x.dtype)
        return x[keys.argmax(-1)]

    def _gradient(self, model: Model, point: Tensor, y: Tensor, partner: Tensor) -> Tensor:
        total = torch.zeros_like(point)
        for other in partner:
            for k in range(self.copies):

                def mixture(point: Tensor, other: Tensor = other, k: int = k) -> Tensor:
                    return model(self._copy(point + self.strength * (other - self.low), k))

                slope = slope_at(mixture, point, y, lambda logits, _: cross_entropy(logits, y))
                total = total + slope.gradient
        return total
