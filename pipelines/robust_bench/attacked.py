"""Accuracy of a trained network, clean and under attack, image by image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nec.robustness import APGD, FGSM, PGD, Square, evaluate
from nec.robustness.attacks.attack import Adversary

# Images attacked together: attacks draw by image of a block, so blocks may be added later.
BLOCK = 100
# Attacks of one gradient; an image that withstands one may fall to a smaller budget.
SINGLE = ("FGSM", "FGSM, scaled")


@dataclass(frozen=True)
class Threat:
    """What networks are attacked with.

    Attributes
    ----------
    budgets : tuple of float
        255ths of the range of a pixel, ascending, maximum norm.
    pgd_steps, apgd_steps, queries : int
        Of PGD, APGD and Square, one start each.
    only : tuple of str
        Names of the attacks that are run.
    """

    budgets: tuple[float, ...] = (0.25, 0.5, 1.0)
    pgd_steps: int = 10
    apgd_steps: int = 20
    queries: int = 100
    only: tuple[str, ...] = ("FGSM", "FGSM, scaled", "PGD", "APGD", "Square")

    def attacks(self, budget: float) -> dict[str, Adversary]:
        """Return the attacks of a budget by name; `FGSM, scaled` is the papers' ℓ2 form."""
        ball: dict[str, Any] = {"epsilon": budget / 255, "chunk": BLOCK}
        known: dict[str, Adversary] = {
            "FGSM": FGSM(**ball),
            "FGSM, scaled": FGSM(direction="scaled", **ball),
            "PGD": PGD(steps=self.pgd_steps, **ball),
            "APGD": APGD(steps=self.apgd_steps, **ball),
            "Square": Square(queries=self.queries, **ball),
        }
        return {name: known[name] for name in self.only}


def answers_right(model: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    """Return whether the network is right on each image."""
    with torch.inference_mode():
        return (torch.cat([model(x).argmax(1) for x in images.split(256)]) == labels).numpy()


def outcomes(
    model: nn.Module, images: Tensor, labels: Tensor, threat: Threat
) -> dict[str, NDArray[np.bool_]]:
    """Return whether the network withstands each attack on each image, by ``ATTACK BUDGET``.

    Of attacks of many steps, an image that fell to a budget is not attacked with a larger one:
    what made it fall lies in the larger ball as well.
    """
    blocks = [
        _block(model, x, y, threat)
        for x, y in zip(images.split(BLOCK), labels.split(BLOCK), strict=True)
    ]
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


def _block(
    model: nn.Module, images: Tensor, labels: Tensor, threat: Threat
) -> dict[str, NDArray[np.bool_]]:
    clean = torch.from_numpy(answers_right(model, images, labels))
    left = {name: clean.clone() for name in threat.only}
    found = {}
    for budget in threat.budgets:
        for name, attack in threat.attacks(budget).items():
            at = (clean if name in SINGLE else left[name]).nonzero()[:, 0]
            robust = torch.zeros_like(clean)
            if len(at):
                robust[at] = evaluate(model, images[at], labels[at], attack).robust
            left[name] = robust
            found[f"{name} {budget:g}"] = robust.numpy()
    return found
