"""Accuracy of a trained network, clean and under attack, image by image."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nec.robustness import APGD, FGSM, PGD, Square, evaluate

# Budgets, pixel units of 0 to 1, maximum norm.
BUDGETS = (0.5 / 255, 1 / 255, 2 / 255, 4 / 255)
STEPS, QUERIES = 20, 500


def attacks(budget: float) -> dict[str, Any]:
    """Return the attacks of one budget by name; `FGSM, scaled` is the papers' ℓ2 form."""
    return {
        "FGSM": FGSM(epsilon=budget),
        "FGSM, scaled": FGSM(epsilon=budget, direction="scaled"),
        "PGD": PGD(epsilon=budget, steps=STEPS),
        "APGD": APGD(epsilon=budget, steps=STEPS),
        "Square": Square(epsilon=budget, queries=QUERIES),
    }


def outcomes(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, NDArray[np.bool_]]:
    """Return whether the network is right on each image: clean, and under each attack.

    Keys are ``clean`` and ``ATTACK BUDGET`` with the budget in 255ths.
    """
    model.eval()
    with torch.inference_mode():
        clean = torch.cat([model(part).argmax(1) for part in images.split(256)]) == labels
    found = {"clean": clean.numpy()}
    for budget in BUDGETS:
        for name, attack in attacks(budget).items():
            found[f"{name} {255 * budget:g}"] = evaluate(
                model, images, labels, attack
            ).robust.numpy()
    return found
