"""APGD: projected gradient ascent with momentum that halves its own step.

References
----------
.. [1] Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
   parameter-free attacks, ICML 2020 (arXiv 2003.01690), algorithm 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nec.errors import RobustnessError
from nec.robustness.attacks.attack import (
    Attack,
    Model,
    Record,
    logits_of,
    per_image,
    random_like,
    slope_at,
    steepest,
)
from nec.robustness.attacks.losses import LOSSES, LossName, check_loss

# Weight of the new step against the last one ([1]_, eq. 1).
STEP_WEIGHT = 0.75


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD [1]_: a strong attack without a step size to tune.

    Steps start at twice the budget and are halved, and the climb goes back to its best point,
    where too few steps raised the loss or nothing came of the last ones.

    Parameters
    ----------
    epsilon, norm, low, high, chunk
        See `Attack`.
    steps : int
        Gradients a restart.
    restarts : int
        Random starts.
    loss : {"cross_entropy", "dlr", "margin"}
        What is raised. ``dlr`` does not depend on the scale of the logits.
    rising : float
        Share of steps that must raise the loss to keep the step (rho in [1]_).
    """

    steps: int = 100
    restarts: int = 1
    loss: LossName = "cross_entropy"
    rising: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        if self.steps < 1 or self.restarts < 1 or not 0 < self.rising <= 1:
            raise RobustnessError(
                f"steps={self.steps}, restarts={self.restarts}, rising={self.rising}",
                "give at least one step and one start, and a share in (0, 1]",
            )

    def _perturb(
        self, model: Model, x: Tensor, y: Tensor, budget: Tensor, generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            logits = logits_of(model, x, y)
        record = Record.at(x, LOSSES[self.loss](logits, y), logits.argmax(1) != y)
        for _ in range(self.restarts):
            start = per_image(budget, x) * random_like(x, self.norm, generator)
            self._climb(model, x, y, budget, self._inside(x, x + start, budget), record)
        return record.x

    def _climb(
        self, model: Model, x: Tensor, y: Tensor, budget: Tensor, point: Tensor, record: Record
    ) -> None:
        """Run one restart from `point`, entering what it visits into `record`."""
        loss_of = LOSSES[self.loss]
        checkpoints = self._checkpoints()
        step = 2 * budget
        slope = slope_at(model, point, y, lambda logits, _: loss_of(logits, y))
        loss = loss_of(slope.logits, y)
        record.update(point, loss, slope.logits.argmax(1) != y)
        gradient, before = slope.gradient, point
        best, best_loss, best_gradient = point, loss, gradient
        rises = torch.zeros_like(loss)
        checked_loss = best_loss
        halved = torch.ones_like(loss, dtype=torch.bool)
        last_check = 0
        for i in range(1, self.steps + 1):
            ahead = point + per_image(step, x) * steepest(gradient, self.norm)
            ahead = self._inside(x, ahead, budget)
            if i > 1:
                mixed = STEP_WEIGHT * (ahead - point) + (1 - STEP_WEIGHT) * (point - before)
                ahead = self._inside(x, point + mixed, budget)
            before, point = point, ahead
            slope = slope_at(model, point, y, lambda logits, _: loss_of(logits, y))
            gradient, last_loss = slope.gradient, loss
            loss = loss_of(slope.logits, y)
            record.update(point, loss, slope.logits.argmax(1) != y)
            rises = rises + (loss > last_loss)
            better = loss > best_loss
            best = torch.where(per_image(better, x), point, best)
            best_gradient = torch.where(per_image(better, x), gradient, best_gradient)
            best_loss = torch.where(better, loss, best_loss)
            if i in checkpoints:
                few = rises <= self.rising * (i - last_check)
                stuck = ~halved & (checked_loss >= best_loss)
                halved = few | stuck
                step = torch.where(halved, step / 2, step)
                point = torch.where(per_image(halved, x), best, point)
                gradient = torch.where(per_image(halved, x), best_gradient, gradient)
                rises, checked_loss, last_check = torch.zeros_like(rises), best_loss, i

    def _checkpoints(self) -> set[int]:
        """Return the steps after which steps may be halved ([1]_, section 3)."""
        period, shortest = max(int(0.22 * self.steps), 1), max(int(0.06 * self.steps), 1)
        shrink = max(int(0.03 * self.steps), 1)
        found, at = set(), period
        while at <= self.steps:
            found.add(at)
            period = max(period - shrink, shortest)
            at += period
        return found
