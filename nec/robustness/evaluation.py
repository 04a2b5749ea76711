"""Accuracy under attack, image by image."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nec.errors import RobustnessError
from nec.robustness.attacks.attack import Adversary, Model, lengths
from nec.robustness.boundary import answers


@dataclass(frozen=True)
class Outcome:
    """What an attack did.

    Attributes
    ----------
    clean, attacked : Tensor of shape (n,), bool
        Whether the model is right on the images, and on the attacked ones.
    size : Tensor of shape (n,)
        Norm of each perturbation, pixel units.
    x : Tensor of shape (n, ...)
        The attacked images.
    seconds : float
        Wall clock of the attack.
    """

    clean: Tensor
    attacked: Tensor
    size: Tensor
    x: Tensor
    seconds: float

    @property
    def robust(self) -> Tensor:
        """Whether the model is right on both: an attacker leaves alone what is wrong already."""
        return self.clean & self.attacked

    @property
    def clean_accuracy(self) -> float:
        """Share of images that the model gets right."""
        return self.clean.double().mean().item()

    @property
    def robust_accuracy(self) -> float:
        """Share of images that the model gets right with and without the attack."""
        return self.robust.double().mean().item()


def evaluate(
    model: Model,
    x: Tensor,
    y: Tensor,
    attack: Adversary,
    *,
    generator: torch.Generator | None = None,
) -> Outcome:
    """Attack images and see what the model makes of them.

    Parameters
    ----------
    model : callable
        (n, ...) images to (n, classes) logits; the target, also of a `Transfer`.
    x : Tensor of shape (n, ...)
        Images within the attack's range.
    y : Tensor of shape (n,)
        Their classes.
    attack : Adversary
        Such as ``PGD(epsilon=8 / 255)``.
    generator : torch.Generator, optional
        Source of the attack's randomness; seed 0 where none is given.

    Returns
    -------
    Outcome
        One entry an image, so that models are compared in pairs.

    Raises
    ------
    RobustnessError
        A module in training mode, and what the attack refuses.
    """
    refuse_training(model)
    start = time.perf_counter()
    attacked = attack(model, x, y, generator=generator)
    # Reading a number waits for the device.
    size = lengths(attacked - x, attack.norm).cpu()
    seconds = time.perf_counter() - start
    return Outcome(
        clean=(answers(model, x) == y).cpu(),
        attacked=(answers(model, attacked) == y).cpu(),
        size=size,
        x=attacked,
        seconds=seconds,
    )


def refuse_training(model: object) -> None:
    """Refuse a module in training mode: dropout and batch statistics would answer for it."""
    if isinstance(model, nn.Module) and model.training:
        raise RobustnessError("the model is in training mode", "call model.eval() first")
