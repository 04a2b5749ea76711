"""One training run: a row of the table, with a seed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nec.lowrank import (
    LowRankTrainer,
    condition_numbers,
    convert,
    lowrank_layers,
    spectral_penalty,
)
from nec.robustness.attacks.attack import Adversary
from robust_bench.images import Part

BATCH = 64
WEIGHT_DECAY = 0.02
# Share of the steps at the end in which ranks and bases stay.
SETTLED = 0.3
# Which layers have a low rank; the last one, of ten outputs, has not.
CONVERTED: dict[str, Any] = {"exclude": "*head", "minimum": 16}


@dataclass(frozen=True)
class Recipe:
    """How a row is trained.

    Attributes
    ----------
    epochs : int
    bfloat16 : bool
        Forward passes under autocast: narrow convolutions gain by it on CPUs, narrow
        transformers lose.
    low_rank : bool
        Convert the network and train it rank-adaptively.
    beta : float
        Weight of the spectral penalty, on cores or on dense weights.
    tau : float
        Truncation of singular values.
    rank : float
        Rank at the start, fraction of the full one.
    cap : int, optional
        Ranks do not exceed this: the penalty holds small singular values above what `tau` cuts.
    falling : float
        Share of the steps at the beginning over which the highest rank falls to `cap`.
    peak : float
        Peak learning rate of AdamW; cores need a higher one than dense weights.
    core_steps : int
        Steps between augmentations.
    """

    epochs: int
    bfloat16: bool
    low_rank: bool = False
    beta: float = 0.0
    tau: float = 0.02
    rank: float = 1.0
    cap: int | None = None
    falling: float = 0.55
    peak: float = 2e-3
    core_steps: int = 50


@dataclass
class Progress:
    """What a run says of itself, an entry an epoch.

    Attributes
    ----------
    loss, penalty : list of float
        Means of the epoch.
    condition_before : float, optional
        Median condition number of the cores before training.
    """

    loss: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    condition_before: float | None = None


def train(
    model: nn.Module,
    recipe: Recipe,
    part: Part,
    *,
    seed: int,
    adversary: Adversary | None = None,
    watch: Callable[[], None] | None = None,
) -> Progress:
    """Train a model in place; right-angle turns and flips are the only augmentation.

    Parameters
    ----------
    model : nn.Module
        Freshly made; converted here where the recipe says so.
    recipe : Recipe
    part : Part
        The training images.
    seed : int
        Of order and augmentation.
    adversary : Adversary, optional
        Attacks every batch before the network learns from it, in training mode: with other
        statistics of the batch, training on FGSM's images would not overfit to them.
    watch : callable, optional
        Called after each epoch, with the model in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    dense = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = [m.weight for m in dense if min(m.weight.shape[:2]) >= CONVERTED["minimum"]]
    progress = Progress()
    if recipe.low_rank:
        convert(model, rank=recipe.rank, keep_norm=True, **CONVERTED)
        progress.condition_before = median(condition_numbers(model).values())
    # Convolutions of few channels run up to twice as fast so on CPUs.
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak, weight_decay=WEIGHT_DECAY)
    trainer = None
    if recipe.low_rank:
        trainer = LowRankTrainer(
            model,
            optimizer,
            tau=recipe.tau,
            beta=recipe.beta,
            core_steps=recipe.core_steps,
        )
        full = max(min(layer.shape[:2]) for layer in lowrank_layers(model).values())
    batches = len(part.labels) // BATCH
    steps, step = recipe.epochs * batches, 0
    for _ in range(recipe.epochs):
        model.train()
        total = penalty = 0.0
        order = torch.randperm(len(part.labels), generator=generator)
        for picked in order.split(BATCH)[:batches]:
            x, y = _turned(part.images[picked], generator), part.labels[picked]
            if adversary is not None:
                x = adversary(model, x, y, generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = recipe.peak * _rate(step / steps)

            def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
                with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.bfloat16):
                    logits = model(x)
                return F.cross_entropy(logits.float(), y)

            if trainer is not None:
                trainer.adaptive = step < (1 - SETTLED) * steps
                trainer.max_rank = _highest_rank(recipe, full, step / steps)
                total += trainer.step(loss).item()
                penalty += trainer.penalty
            else:
                value, excess = _dense_step(optimizer, loss, weights, recipe.beta)
                total += value
                penalty += excess
            step += 1
        model.eval()
        progress.loss.append(round(total / batches, 4))
        progress.penalty.append(round(penalty / batches, 4))
        if watch is not None:
            watch()
    if trainer is not None:
        trainer.truncate()
    return progress


def _highest_rank(recipe: Recipe, full: int, done: float) -> int | None:
    if recipe.cap is None:
        return None
    left = max(0.0, 1 - done / recipe.falling) if recipe.falling else 0.0
    return round(recipe.cap + left * (full - recipe.cap))


def _dense_step(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    weights: list[Tensor],
    beta: float,
) -> tuple[float, float]:
    """Take a step with the penalty on dense weights; return loss and penalty."""
    optimizer.zero_grad(set_to_none=True)
    value, excess = loss(), torch.zeros(())
    if beta:
        excess = torch.stack([spectral_penalty(w) for w in weights]).sum()
    (value + beta * excess).backward()
    optimizer.step()
    return value.item(), excess.item()


def _rate(done: float) -> float:
    """Linear warm-up over a twentieth of the steps, then linear to zero."""
    return min(done / 0.05 + 1e-3, (1 - done) / 0.95)


def _turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror a batch: each quarter of it by another right angle."""
    parts = []
    for quarter, part in enumerate(images.chunk(4)):
        mirrored = part.flip(3) if torch.rand((), generator=generator) < 0.5 else part
        parts.append(mirrored.rot90(quarter, (2, 3)))
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)
