"""How far the decision boundary is: DeepFool, and bisection over the budget of any attack.

References
----------
.. [1] Moosavi-Dezfooli, Fawzi and Frossard, DeepFool: a simple and accurate method to fool deep
   neural networks, CVPR 2016 (arXiv 1511.04599), algorithm 2 and section 3.3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nec.errors import RobustnessError
from nec.robustness.attacks.attack import (
    Adversary,
    Model,
    Norm,
    check_images,
    check_threat,
    lengths,
    logits_of,
    per_image,
    steepest,
)


@dataclass(frozen=True)
class Boundary:
    """Points at the decision boundary.

    Attributes
    ----------
    x : Tensor of shape (n, ...)
        The points, just beyond the boundary; the images themselves where it was not reached.
    reached : Tensor of shape (n,), bool
        Whether the model's answer is another than for the image.
    distance : Tensor of shape (n,)
        Norm of the way there, pixel units; inf where the boundary was not reached.
    predicted, other : Tensor of shape (n,), int64
        The answer for the image, and for the point.
    """

    x: Tensor
    reached: Tensor
    distance: Tensor
    predicted: Tensor
    other: Tensor


@dataclass(frozen=True, kw_only=True)
class DeepFool:
    """Go to the nearest boundary of the linearised model until the answer changes [1]_.

    The way from the image to the point found is then halved `refine` times to bring it to the
    boundary, which takes the overshoot out again.

    Parameters
    ----------
    norm : {"linf", "l2"}
        Norm in which the boundary is near.
    low, high : float
        Valid range of a pixel.
    steps : int
        Linearisations.
    overshoot : float
        Share by which the way is prolonged.
    candidates : int
        Most likely classes that are tried.
    refine : int
        Bisections between image and point; each asks for one evaluation.
    chunk : int
        Images at a time.
    """

    norm: Norm = "l2"
    low: float = 0.0
    high: float = 1.0
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    refine: int = 10
    chunk: int = 256

    def __post_init__(self) -> None:
        check_threat(0.0, self.norm, self.low, self.high)
        if min(self.steps, self.chunk) < 1 or self.candidates < 2 or self.refine < 0:
            raise RobustnessError(
                f"steps={self.steps}, candidates={self.candidates}, refine={self.refine}, "
                f"chunk={self.chunk}",
                "give a step, two candidates and a chunk of one at least",
            )

    def __call__(self, model: Model, x: Tensor) -> Boundary:
        """Find the boundary near each image, starting from the model's own answer.

        Parameters
        ----------
        model : callable
            (n, ...) images to (n, classes) logits.
        x : Tensor of shape (n, ...), floating
            Images within [low, high].

        Raises
        ------
        RobustnessError
            Images with NaN or out of range, a model without logits or without a gradient.
        """
        check_images(x, self.low, self.high)
        parts = [
            self._walk(model, x[i : i + self.chunk].detach().clone())
            for i in range(0, len(x), self.chunk)
        ]
        return Boundary(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("x", "reached", "distance", "predicted", "other")
            )
        )

    def _walk(self, model: Model, x: Tensor) -> Boundary:
        with torch.no_grad():
            logits = logits_of(model, x)
        count = min(self.candidates, logits.shape[1])
        classes = logits.topk(count, dim=1).indices
        predicted = classes[:, 0]
        total, point = torch.zeros_like(x), x
        reached = torch.zeros_like(predicted, dtype=torch.bool)
        for _ in range(self.steps):
            left = (~reached).nonzero()[:, 0]
            gaps, gradients = differences(model, point[left], classes[left])
            step = self._step(gaps, gradients).to(x)
            total[left] = total[left] + step
            ahead = (x[left] + (1 + self.overshoot) * total[left]).clamp(self.low, self.high)
            point = point.index_copy(0, left, ahead)
            with torch.no_grad():
                answer = logits_of(model, ahead).argmax(1)
            reached[left] = answer != predicted[left]
            if bool(reached.all()):
                break
        near = x.new_zeros(len(x))
        far = torch.ones_like(near)
        with torch.no_grad():
            for _ in range(self.refine):
                middle = (near + far) / 2
                answer = logits_of(model, x + per_image(middle, x) * (point - x)).argmax(1)
                beyond = answer != predicted
                far = torch.where(beyond, middle, far)
                near = torch.where(beyond, near, middle)
            found = x + per_image(far.masked_fill(~reached, 0.0), x) * (point - x)
            other = logits_of(model, found).argmax(1)
        distance = lengths(found - x, self.norm).masked_fill(~reached, float("inf"))
        return Boundary(found, reached, distance, predicted, other)

    def _step(self, gaps: Tensor, gradients: Tensor) -> Tensor:
        """Return the shortest step to a linearised boundary ([1]_, eqs. 8 to 13)."""
        flat = gradients.flatten(2)
        dual = flat.abs().sum(2) if self.norm == "linf" else flat.norm(dim=2)
        # A class without a gradient is out of reach.
        away = torch.where(dual > 0, gaps.abs() / dual.clamp_min(1e-30), float("inf"))
        nearest = away.argmin(1)
        rows = torch.arange(len(gaps), device=gaps.device)
        chosen = gradients[rows, nearest]
        length = away.masked_fill(away.isinf(), 0.0)[rows, nearest] + 1e-6
        return per_image(length, chosen) * steepest(chosen, self.norm)


def differences(model: Model, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate logits of candidate classes less that of the first one.

    Parameters
    ----------
    model : callable
        (n, ...) images to (n, classes) logits.
    x : Tensor of shape (n, ...)
    classes : Tensor of shape (n, k)
        Candidates of each image.

    Returns
    -------
    tuple of Tensor
        Differences (n, k - 1) and their gradients (n, k - 1, ...).

    Raises
    ------
    RobustnessError
        The model cannot be differentiated by its input.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = logits_of(model, x).gather(1, classes)
        gaps = logits[:, 1:] - logits[:, :1]
        gradients = []
        for k in range(gaps.shape[1]):
            gradient = None
            if gaps.requires_grad:
                (gradient,) = torch.autograd.grad(
                    gaps[:, k].sum(), x, retain_graph=True, allow_unused=True
                )
            if gradient is None:
                raise RobustnessError(
                    "the model has no gradient with respect to its input",
                    "run it without inference_mode or no_grad",
                )
            gradients.append(gradient)
    return gaps.detach(), torch.stack(gradients, dim=1)


@dataclass(frozen=True)
class MinimalPerturbation:
    """Smallest budgets with which an attack succeeds.

    Attributes
    ----------
    epsilon : Tensor of shape (n,)
        Norm of the smallest successful perturbation found, pixel units: 0 where the image
        itself is misclassified, inf where the attack fails with the largest budget.
    tried : Tensor of shape (n,)
        The largest budget with which the attack failed.
    x : Tensor of shape (n, ...)
        The attacked images; the images themselves where the attack fails.
    """

    epsilon: Tensor
    tried: Tensor
    x: Tensor


def minimal_perturbation(
    model: Model,
    x: Tensor,
    y: Tensor,
    attack: Adversary,
    *,
    largest: float | None = None,
    rounds: int = 10,
    generator: torch.Generator | None = None,
) -> MinimalPerturbation:
    """Bisect the budget of an attack, for each image by itself.

    Parameters
    ----------
    model : callable
        (n, ...) images to (n, classes) logits.
    x : Tensor of shape (n, ...)
        Images within the attack's range.
    y : Tensor of shape (n,)
        Their classes.
    attack : Adversary
        Run once with the largest budget and once a round.
    largest : float, optional
        Largest budget; the attack's own epsilon where none is given.
    rounds : int
        Bisections: the result is within largest / 2**rounds of what the attack can do, as
        long as a larger budget does no harm to it.
    generator : torch.Generator, optional
        Source of the attack's randomness; seed 0 where none is given.

    Returns
    -------
    MinimalPerturbation

    Raises
    ------
    RobustnessError
        As the attack's.
    """
    top = attack.epsilon if largest is None else largest
    check_threat(top, attack.norm, 0, 1)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    best, best_length = x.clone(), torch.full((len(x),), float("inf")).to(x)
    below = torch.zeros_like(best_length)
    budget = torch.full_like(best_length, top)
    for round_ in range(rounds + 1):
        attacked = attack(model, x, y, generator=generator, epsilon=budget)
        won = answers(model, attacked) != y
        length = lengths(attacked - x, attack.norm)
        better = won & (length < best_length)
        best = torch.where(per_image(better, x), attacked, best)
        best_length = torch.where(better, length, best_length)
        below = torch.where(won, below, torch.maximum(below, budget))
        # Where the largest budget fails, it is tried again with new randomness.
        high = best_length.clamp_max(top)
        if round_ < rounds:
            budget = torch.where(best_length.isfinite(), (below.minimum(high) + high) / 2, budget)
    clean = answers(model, x) != y
    best_length = best_length.masked_fill(clean, 0.0)
    best = torch.where(per_image(clean, x), x, best)
    return MinimalPerturbation(best_length, below.masked_fill(clean, 0.0), best)


@torch.no_grad()
def answers(model: Model, x: Tensor, *, chunk: int = 256) -> Tensor:
    """Return the most likely class (n,) of each image."""
    parts = [logits_of(model, x[i : i + chunk]).argmax(1) for i in range(0, len(x), chunk)]
    return torch.cat(parts)
