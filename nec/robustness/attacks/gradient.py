"""Attacks that climb the gradient: FGSM, PGD with restarts, Jitter.

References
----------
.. [1] Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples, ICLR 2015.
.. [2] Schotthöfer, Yang and Schnake, Dynamical low-rank compression of neural networks with
   robustness under adversarial attacks, 2025 (arXiv 2505.08022), and its code, RobustDLRT.
.. [3] Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018.
.. [4] Schwinn et al., Exploring misclassifications of robust neural networks to enhance
   adversarial attacks, 2021 (arXiv 2105.10304).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nec.errors import RobustnessError
from nec.robustness.attacks.attack import (
    Attack,
    Model,
    Objective,
    Record,
    lengths,
    logits_of,
    per_image,
    random_like,
    slope_at,
    steepest,
)
from nec.robustness.attacks.losses import LOSSES, LossName, check_loss, jitter, margin


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of the whole budget along the gradient of the cross-entropy [1]_.

    Parameters
    ----------
    epsilon, norm, low, high, chunk
        See `Attack`.
    direction : {"steepest", "scaled"}
        ``steepest``: ``epsilon * sign(g)`` for linf, ``epsilon * g / |g|_2`` for l2.
        ``scaled``: ``epsilon * g / max|g|``, what RobustDLRT [2]_ reports as l2-FGSM: the
        direction of l2 in a ball of linf. There epsilon is in units of standardised images:
        0.1 of theirs is about 0.1 * 0.226 of the range [0, 1].
    """

    direction: Literal["steepest", "scaled"] = "steepest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction not in ("steepest", "scaled"):
            raise RobustnessError(
                f"direction is {self.direction!r}", "choose 'steepest' or 'scaled'"
            )
        if self.direction == "scaled" and self.norm != "linf":
            raise RobustnessError(
                "the scaled gradient fills a ball of linf, and norm is 'l2'",
                "use norm='linf', or direction='steepest'",
            )

    def _perturb(
        self, model: Model, x: Tensor, y: Tensor, budget: Tensor, generator: torch.Generator
    ) -> Tensor:
        del generator
        loss = LOSSES["cross_entropy"]
        gradient = slope_at(model, x, y, lambda logits, _: loss(logits, y)).gradient
        if self.direction == "scaled":
            tiny = torch.finfo(x.dtype).tiny
            step = gradient / per_image(lengths(gradient, "linf").clamp_min(tiny), x)
        else:
            step = steepest(gradient, self.norm)
        return self._inside(x, x + per_image(budget, x) * step, budget)


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient ascent from random starts [3]_.

    Returned is the best of all points visited, the unattacked image among them: one that is
    misclassified, then one of higher loss.

    Parameters
    ----------
    epsilon, norm, low, high, chunk
        See `Attack`.
    steps : int
        Gradients a restart.
    step : float, optional
        Length of a step as a multiple of epsilon; 2.5 / steps where none is given.
    restarts : int
        Starts, all of them random unless `random_start` is off.
    random_start : bool
        Start anywhere in the ball; else the first start is the image itself.
    loss : {"cross_entropy", "dlr", "margin"}
        What is raised.
    """

    steps: int = 20
    step: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        if self.steps < 1 or self.restarts < 1 or (self.step is not None and self.step <= 0):
            raise RobustnessError(
                f"steps={self.steps}, restarts={self.restarts}, step={self.step}",
                "give at least one step and one start, and a length above zero",
            )

    def _perturb(
        self, model: Model, x: Tensor, y: Tensor, budget: Tensor, generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            logits = logits_of(model, x, y)
        record = Record.at(x, self._rank(logits, y), logits.argmax(1) != y)
        relative = 2.5 / self.steps if self.step is None else self.step
        length = per_image(relative * budget, x)
        objective = self._objective(x, y, generator)
        for restart in range(self.restarts):
            point = x
            if self.random_start or restart:
                start = per_image(budget, x) * random_like(x, self.norm, generator)
                point = self._inside(x, x + start, budget)
            for _ in range(self.steps):
                slope = slope_at(model, point, y, objective)
                record.update(point, self._rank(slope.logits, y), slope.logits.argmax(1) != y)
                point = point + length * steepest(slope.gradient, self.norm)
                point = self._inside(x, point, budget)
            with torch.no_grad():
                logits = logits_of(model, point, y)
            record.update(point, self._rank(logits, y), logits.argmax(1) != y)
        return record.x

    def _objective(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Objective:
        del x, generator
        return lambda logits, _: LOSSES[self.loss](logits, y)

    def _rank(self, logits: Tensor, y: Tensor) -> Tensor:
        return LOSSES[self.loss](logits, y)


@dataclass(frozen=True, kw_only=True)
class Jitter(PGD):
    """PGD on the Jitter loss [4]_: rescaled logits, noise on the probabilities.

    Rescaling undoes saturated logits; noise leads to other wrong classes than the nearest,
    which takes many classes: with few, less noise is stronger.
    Points are compared by their margin, which is free of noise. The authors climb with APGD's
    schedule, here steps are PGD's, as in other implementations of it.

    Parameters
    ----------
    epsilon, norm, low, high, chunk, steps, step, restarts, random_start
        See `PGD`; `loss` is not used.
    scale : float
        The largest logit after rescaling.
    noise : float
        Standard deviation of the noise.
    """

    scale: float = 10.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0 or self.noise < 0:
            raise RobustnessError(
                f"scale={self.scale}, noise={self.noise}", "give a scale above 0, a noise of 0 on"
            )

    def _objective(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Objective:
        def objective(logits: Tensor, point: Tensor) -> Tensor:
            drawn = torch.randn(
                logits.shape, generator=generator, device=generator.device, dtype=logits.dtype
            )
            noise = self.noise * drawn.to(logits.device)
            return jitter(logits, y, point - x, scale=self.scale, noise=noise)

        return objective

    def _rank(self, logits: Tensor, y: Tensor) -> Tensor:
        return margin(logits, y)
