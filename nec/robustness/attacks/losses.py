"""What attacks raise: losses of logits, each (n, classes) and labels (n,) to (n,).

References
----------
.. [1] Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
   parameter-free attacks, ICML 2020 (arXiv 2003.01690).
.. [2] Schwinn et al., Exploring misclassifications of robust neural networks to enhance
   adversarial attacks, 2021 (arXiv 2105.10304).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nec.errors import RobustnessError

LossName = Literal["cross_entropy", "dlr", "margin"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy; it has no gradient left where logits are saturated."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the best other logit less that of the class: above zero where misclassified."""
    own = F.one_hot(y, logits.shape[1]).bool()
    others = logits.masked_fill(own, float("-inf")).amax(1)
    return others - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio ([1]_, eq. 6), blind to shift and scale of logits.

    Raises
    ------
    RobustnessError
        Fewer than three classes: the ratio is then constant.
    """
    if logits.shape[1] < 3:
        raise RobustnessError(
            f"the DLR loss needs three classes and the model has {logits.shape[1]}",
            "use loss='margin'",
        )
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def jitter(logits: Tensor, y: Tensor, delta: Tensor, *, scale: float, noise: Tensor) -> Tensor:
    """Return the Jitter loss ([2]_, section 4; as in the authors' code).

    The distance of noisy, rescaled probabilities from the label; where the point is already
    misclassified, over the length of the perturbation, so that it shrinks.

    Parameters
    ----------
    logits : Tensor of shape (n, classes)
    y : Tensor of shape (n,)
    delta : Tensor of shape (n, ...)
        The perturbation.
    scale : float
        The largest logit after rescaling.
    noise : Tensor of shape (n, classes)
        Added to the probabilities.
    """
    tiny = torch.finfo(logits.dtype).tiny
    rescaled = scale * logits / logits.abs().amax(1, keepdim=True).clamp_min(tiny)
    target = F.one_hot(y, logits.shape[1]).to(logits.dtype)
    distance = (rescaled.softmax(1) + noise - target).norm(dim=1)
    flat = delta.flatten(1)
    shrinks = (logits.argmax(1) != y) & (flat != 0).any(1)
    # The norm has no gradient at zero, so a vector of ones stands in where it is not used.
    length = torch.where(shrinks[:, None], flat, torch.ones_like(flat)).norm(dim=1)
    result: Tensor = distance / torch.where(shrinks, length, torch.ones_like(length))
    return result


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "dlr": dlr,
    "margin": margin,
}


def check_loss(name: str) -> None:
    """Refuse a loss that is not there."""
    if name not in LOSSES:
        raise RobustnessError(f"loss is {name!r}", f"choose one of {', '.join(LOSSES)}")
