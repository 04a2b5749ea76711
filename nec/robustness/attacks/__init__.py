"""Attacks on any callable from images to logits, all called as ``attack(model, x, y)``."""

from nec.robustness.attacks.attack import Adversary, Attack
from nec.robustness.attacks.autopgd import APGD
from nec.robustness.attacks.gradient import FGSM, PGD, Jitter
from nec.robustness.attacks.square import Square
from nec.robustness.attacks.transfer import Admix, Mixup, Transfer

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "Admix",
    "Adversary",
    "Attack",
    "Jitter",
    "Mixup",
    "Square",
    "Transfer",
]
