"""Gradient masking: five measures of whether gradients tell an attacker anything.

An attack that follows gradients fails on a robust model, and on one whose gradients lead
nowhere. These measures tell the two apart for the price of a few gradients.

The measures are those of Gomes [1]_; definitions follow the author's code [2]_, module
``gradient_masking_tests``. Where ours differ, the function says so.

References
----------
.. [1] Gomes, Measuring the false sense of security, 2022 (arXiv 2204.04778).
.. [2] github.com/CarlosGomes98/false_sense_of_security.
"""

from typing import Any

import torch
from torch import Tensor

from nec.errors import RobustnessError
from nec.robustness.attacks.attack import (
    Model,
    Norm,
    Objective,
    check_labels,
    check_threat,
    inside,
    logits_of,
    random_like,
    slope_at,
    steepest,
    uniform,
)
from nec.robustness.attacks.gradient import FGSM, PGD
from nec.robustness.attacks.losses import cross_entropy
from nec.robustness.boundary import DeepFool, answers, differences


def gradient_norm(model: Model, x: Tensor, y: Tensor, *, chunk: int = 256) -> Tensor:
    """Return the l2 norm of each image's gradient of the cross-entropy, per unit of a pixel.

    Masking lowers it: saturated logits leave a gradient of exactly zero. Squares are summed in
    float64, in which those of tiny gradients do not vanish. The author's code
    divides by the batch size; here it is that of each image by itself.

    Parameters
    ----------
    model : callable
        (n, ...) images to (n, classes) logits.
    x : Tensor of shape (n, ...)
    y : Tensor of shape (n,)
    chunk : int
        Images at a time.

    Returns
    -------
    Tensor of shape (n,), float64
    """
    check_labels(x, y)
    parts = [
        _gradient(model, x[i : i + chunk], y[i : i + chunk]).double().flatten(1).norm(dim=1)
        for i in range(0, len(x), chunk)
    ]
    return torch.cat(parts)


def fgsm_pgd_cosine(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    low: float = 0.0,
    high: float = 1.0,
    steps: int = 10,
    chunk: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the cosine between the perturbations of FGSM and of PGD.

    Masking lowers it: the gradient at the image does not point where many steps end up. It is 0
    where one of them is zero. PGD takes ten steps of epsilon / 4 from a random start and gives the
    best point that it visits; the author's code, whose settings changed with its versions, takes
    the last.

    Parameters
    ----------
    model, x, y, chunk
        See `gradient_norm`.
    epsilon, norm, low, high
        Budget and valid range, pixel units.
    steps : int
        Steps of PGD.
    generator : torch.Generator, optional
        Source of PGD's start; seed 0 where none is given.

    Returns
    -------
    Tensor of shape (n,)
    """
    ball: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "low": low, "high": high}
    one = FGSM(chunk=chunk, **ball)(model, x, y)
    many = PGD(chunk=chunk, steps=steps, step=0.25, **ball)
    return _cosine(one - x, many(model, x, y, generator=generator) - x)


@torch.no_grad()
def linearization_error(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    perturbations: int = 64,
    chunk: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return by how much the class's logit misses its linear prediction nearby.

    With z the logit of the class, g its gradient and d random corners of the ball (random
    points of the sphere for l2): ``mean |z(x) + g.d - z(x + d)| / mean |z(x + d)|``. Masking
    raises it. It does not depend on the scale of the logits.

    The author's code sums ``g.d`` over all perturbations of a batch; here each has its own. It
    also averages the ratio, which has no bound where a logit passes zero; here the means are
    taken first.

    Parameters
    ----------
    model, x, y, chunk
        See `gradient_norm`.
    epsilon, norm
        The ball, pixel units; the valid range does not count.
    perturbations : int
        Random perturbations an image.
    generator : torch.Generator, optional
        Their source; seed 0 where none is given.

    Returns
    -------
    Tensor of shape (n,)

    Raises
    ------
    RobustnessError
        A budget below zero, an unknown norm, no perturbation.
    """
    check_labels(x, y)
    check_threat(epsilon, norm, 0.0, 1.0)
    if perturbations < 1:
        raise RobustnessError(f"perturbations is {perturbations}", "draw at least one an image")
    generator = generator or torch.Generator().manual_seed(0)
    parts = []
    for i in range(0, len(x), chunk):
        here, label = x[i : i + chunk], y[i : i + chunk].long()
        slope = slope_at(model, here, label, _own_of(label))
        value = _own(slope.logits, label)
        miss, size = torch.zeros_like(value), torch.zeros_like(value)
        for _ in range(perturbations):
            if norm == "linf":
                delta = (uniform(here.shape, here, generator) < 0.5).to(here) * 2 - 1
            else:
                delta = steepest(random_like(here, "l2", generator), "l2")
            delta = epsilon * delta
            there = _own(logits_of(model, here + delta), label)
            miss += (value + (slope.gradient * delta).flatten(1).sum(1) - there).abs()
            size += there.abs()
        parts.append(miss / size.clamp_min(torch.finfo(size.dtype).tiny))
    return torch.cat(parts)


def pgd_collinearity(
    model: Model,
    x: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    low: float = 0.0,
    high: float = 1.0,
    steps: int = 25,
    chunk: int = 256,
) -> Tensor:
    """Return how well PGD's later steps agree with the first: the mean of their cosines.

    Steps are the unprojected ones, epsilon / 16 long, against the model's own answer, from the
    image itself. Masking lowers it; it is 0 where the first step is.

    Here the path stays in the ball and the valid range; only the steps compared are free.

    Parameters
    ----------
    model, x, chunk
        See `gradient_norm`.
    epsilon, norm, low, high
        Budget and valid range, pixel units.
    steps : int
        Steps, the first among them.

    Returns
    -------
    Tensor of shape (n,)
    """
    check_threat(epsilon, norm, low, high)
    if steps < 2:
        raise RobustnessError(f"steps is {steps}", "compare at least two steps")
    parts = []
    for i in range(0, len(x), chunk):
        here = x[i : i + chunk]
        answer = answers(model, here)
        budget = torch.full((len(here),), epsilon, dtype=here.dtype, device=here.device)
        first = steepest(_gradient(model, here, answer), norm)
        point, step = here, first
        total = torch.zeros(len(here), dtype=here.dtype, device=here.device)
        for _ in range(steps - 1):
            ahead = point + epsilon / 16 * step
            point = inside(here, ahead, budget, norm=norm, low=low, high=high)
            step = steepest(_gradient(model, point, answer), norm)
            total = total + _cosine(first, step)
        parts.append(total / (steps - 1))
    return torch.cat(parts)


def gradient_information(
    model: Model,
    x: Tensor,
    *,
    norm: Norm = "linf",
    low: float = 0.0,
    high: float = 1.0,
    steps: int = 10,
    chunk: int = 256,
) -> Tensor:
    """Return the cosine of the gradients at the image and at the boundary that DeepFool finds.

    Both are gradients of the logit beyond the boundary less that of the model's answer. Masking
    lowers it. It is 0 where the model has no gradient at the image, and NaN where it has one
    and DeepFool reaches no boundary with it.

    The author's code stops DeepFool after 5 steps, where it first crosses; here the point is
    then brought back to the boundary by bisection.

    Parameters
    ----------
    model, x, chunk
        See `gradient_norm`.
    norm, low, high
        Norm in which the boundary is near, and valid range.
    steps : int
        Linearisations of DeepFool.

    Returns
    -------
    Tensor of shape (n,)
    """
    near = DeepFool(norm=norm, low=low, high=high, steps=steps, chunk=chunk)(model, x)
    parts = []
    for i in range(0, len(x), chunk):
        part = slice(i, i + chunk)
        # Where DeepFool arrived nowhere, the runner-up stands in for the class beyond.
        with torch.no_grad():
            runner = logits_of(model, x[part]).topk(2, dim=1).indices[:, 1]
        beyond = torch.where(near.reached[part], near.other[part], runner)
        classes = torch.stack((near.predicted[part], beyond), dim=1)
        _, at_image = differences(model, x[part], classes)
        _, at_boundary = differences(model, near.x[part], classes)
        cosine = _cosine(at_image, at_boundary)
        has_gradient = (at_image != 0).flatten(1).any(1)
        unknown = has_gradient & ~near.reached[part]
        parts.append(torch.where(unknown, float("nan"), torch.where(has_gradient, cosine, 0.0)))
    return torch.cat(parts)


def _gradient(model: Model, x: Tensor, y: Tensor) -> Tensor:
    y = y.long()
    return slope_at(model, x, y, lambda logits, _: cross_entropy(logits, y)).gradient


def _own_of(y: Tensor) -> Objective:
    return lambda logits, _: _own(logits, y)


def _own(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0]


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of each pair, 0 where one is zero."""
    return (steepest(a, "l2") * steepest(b, "l2")).flatten(1).sum(1)
