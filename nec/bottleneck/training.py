"""The training loop's step: two optimisers, and the worth of a bit at each rate."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nec.bottleneck.bottleneck import Bottleneck
from nec.bottleneck.encoder_end import EncoderEnd
from nec.bottleneck.prediction import TargetPrediction
from nec.bottleneck.priors import HyperPrior

# How fast the worth of a bit follows a rate that is missed.
PRICE_RATE = 0.1
LARGEST_GRADIENT = 1.0
# By which steps are made finer and coarser to see what a bit is worth; a logarithm.
NUDGE = 0.1


def warm_up(
    bottleneck: Bottleneck, features: Tensor, *, rounds: int = 60, batch: int = 32
) -> list[float]:
    """Fit the prior alone to the symbols of a sample, before anything else trains.

    Parameters
    ----------
    bottleneck : Bottleneck
        Its steps and basis stay.
    features : Tensor of shape (n, dim, y, x)
    rounds : int
        Steps at each rate.
    batch : int
        Images a step.

    Returns
    -------
    list of float
        Bits a token at each rate, a mean over the last rounds.
    """
    slow = isinstance(bottleneck.prior, HyperPrior)
    optimizer = torch.optim.Adam(bottleneck.prior.parameters(), lr=3e-3 if slow else 3e-2)
    tokens = features[0, 0].numel()
    seen: list[list[float]] = [[] for _ in range(bottleneck.rates)]
    bottleneck.train()
    for k in range(rounds * bottleneck.rates):
        rate = k % bottleneck.rates
        index = torch.randint(len(features), (batch,))
        with torch.no_grad():
            steps = bottleneck.log_steps[rate].exp()
            values = bottleneck.analyse(features[index]) / steps[:, None, None]
        bits = bottleneck.prior(values, steps, rate).bits.mean() / tokens
        (bits + bottleneck.auxiliary_loss()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen[rate].append(float(bits.detach()))
    bottleneck.zero_grad(set_to_none=True)
    return [sum(s[-5:]) / len(s[-5:]) for s in seen]


class Trainer:
    """Trains the end of an encoder, a bottleneck and its predictions.

    The loss is distortion + price of the rate * bits a token. The prices, a ladder of Lagrange
    multipliers, begin where a common factor on all steps neither gains nor loses, and follow
    the bits: dearer where a rate takes more than it is to.

    Parameters
    ----------
    end : EncoderEnd
    bottleneck : Bottleneck
    distillation : TargetPrediction
    bits : sequence of float
        Bits a token that each rate is to take.
    peak : float
        Learning rate of the end of the encoder and the predictions.
    precision : {"float32", "bfloat16"}
        Arithmetic of the end of the encoder; bits and predictions are counted in float32.
    """

    def __init__(
        self,
        end: EncoderEnd,
        bottleneck: Bottleneck,
        distillation: TargetPrediction,
        *,
        bits: tuple[float, ...],
        peak: float = 3e-4,
        precision: str = "float32",
    ) -> None:
        self.precision = precision
        self.end, self.bottleneck, self.distillation = end, bottleneck, distillation
        self.bits = torch.tensor(bits)
        self.log_prices = torch.full((len(bits),), torch.nan)
        inside = [p for p in end.parameters() if p.requires_grad]
        auxiliary = {id(p) for p in bottleneck.quantiles()}
        steps = [bottleneck.log_steps]
        projection = list(bottleneck.projection.parameters())
        prior = [p for p in bottleneck.prior.parameters() if id(p) not in auxiliary]
        groups: list[dict[str, Any]] = [
            {"params": inside + list(distillation.parameters()), "lr": peak},
            {"params": projection, "lr": 2 * peak},
            # Logarithms of steps and scales move by factors.
            {"params": steps, "lr": 20 * peak},
            {"params": prior, "lr": 10 * peak},
        ]
        groups = [g | {"peak": g["lr"]} for g in groups if g["params"]]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
        self.auxiliary = (
            torch.optim.Adam(bottleneck.quantiles(), lr=1e-2) if bottleneck.quantiles() else None
        )

    @property
    def modules(self) -> nn.ModuleDict:
        """All that trains, by name."""
        return nn.ModuleDict(
            {"end": self.end, "bottleneck": self.bottleneck, "distillation": self.distillation}
        )

    def trained(self) -> dict[str, int]:
        """Count the parameters that train, by part."""
        return {
            name: sum(p.numel() for p in part.parameters() if p.requires_grad)
            for name, part in self.modules.items()
        }

    def step(
        self, tokens: Tensor, targets: Mapping[str, Tensor], rate: int, *, pace: float = 1.0
    ) -> dict[str, float]:
        """Take one step at one rate.

        Parameters
        ----------
        tokens : Tensor of shape (n, y, x, width)
            Of the encoder's trunk.
        targets : mapping of str to Tensor
            See `TargetPrediction`.
        rate : int
        pace : float
            Fraction of the peak learning rates.

        Returns
        -------
        dict of str to float
            Distortion and its parts, bits a token, price.
        """
        mixed = self.precision == "bfloat16"
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=mixed):
            features = self.end(tokens).float()
        coded = self.bottleneck(features, rate)
        with torch.autocast(tokens.device.type, enabled=False):
            parts = self.distillation(coded.features, targets)
        bits = coded.bits.mean() / features[0, 0].numel()
        if self.log_prices[rate].isnan():
            self.log_prices[rate] = self._price(features, targets, rate)
        price = float(self.log_prices[rate].exp())
        (parts["distortion"] + price * bits).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = pace * group["peak"]
            torch.nn.utils.clip_grad_norm_(group["params"], LARGEST_GRADIENT)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.auxiliary is not None:
            self.bottleneck.auxiliary_loss().backward()
            self.auxiliary.step()
            self.auxiliary.zero_grad(set_to_none=True)
        over = torch.log(bits.detach() / self.bits[rate]).clamp(-1, 1)
        self.log_prices[rate] += PRICE_RATE * float(over)
        told = {k: float(v.detach()) for k, v in parts.items()}
        return told | {"bits": float(bits.detach()), "price": price}

    @torch.no_grad()
    def _price(self, features: Tensor, targets: Mapping[str, Tensor], rate: int) -> float:
        """Return the log price at which a common factor on the steps changes nothing."""
        steps, found = self.bottleneck.log_steps[rate], []
        kept = steps.clone()
        self.bottleneck.eval()
        for factor in (-NUDGE, NUDGE):
            steps.copy_(kept + factor)
            coded = self.bottleneck(features, rate)
            told = self.distillation(coded.features, targets)["distortion"]
            found.append((float(told), float(coded.bits.mean()) / features[0, 0].numel()))
        steps.copy_(kept)
        self.bottleneck.train()
        (fine, dear), (coarse, cheap) = found
        worth = (coarse - fine) / (dear - cheap) if dear > cheap else 0.0
        # Where steps say nothing: a hundredth of the distortion a bit.
        return math.log(max(worth, 0.01 * fine))

    def state_dict(self) -> dict[str, Any]:
        """Return what a training run needs to go on."""
        return {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "auxiliary": None if self.auxiliary is None else self.auxiliary.state_dict(),
            "log_prices": self.log_prices.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, which stays what it is."""
        state = copy.deepcopy(state)
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.log_prices = state["log_prices"]
