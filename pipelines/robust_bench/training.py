"""One training run: a row of the table, with a seed."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nec.lowrank import LowRankTrainer, convert, spectral_penalty

BATCH = 64
# Share of the steps at the end in which ranks and bases stay.
SETTLED = 0.3


@dataclass(frozen=True)
class Recipe:
    """How a row is trained.

    Attributes
    ----------
    low_rank : bool
        Convert the network and train it rank-adaptively.
    beta : float
        Weight of the spectral penalty, on cores or on dense weights.
    tau : float
        Truncation of singular values.
    rank : float
        Initial rank, fraction of the full one.
    peak : float
        Peak learning rate of AdamW; cores need a higher one than dense weights.
    core_steps : int
        Steps between augmentations.
    """

    low_rank: bool = False
    beta: float = 0.0
    tau: float = 0.1
    rank: float = 0.25
    peak: float = 2e-3
    core_steps: int = 20


@dataclass
class Progress:
    """What a run says of itself, an entry an epoch."""

    loss: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    ranks: list[dict[str, tuple[int, int]]] = field(default_factory=list)


def train(
    model: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor, *, epochs: int, seed: int
) -> Progress:
    """Train a model in place; right-angle turns and flips are the only augmentation.

    Parameters
    ----------
    model : nn.Module
        Freshly made; converted here where the recipe says so.
    recipe : Recipe
    images : Tensor of shape (n, band, y, x)
        Display values.
    labels : Tensor of shape (n,)
    epochs, seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    dense = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = [m.weight for m in dense if min(m.weight.shape[:2]) >= 16]
    if recipe.low_rank:
        convert(model, rank=recipe.rank, exclude="*head", minimum=16, keep_norm=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak, weight_decay=0.02)
    trainer = None
    if recipe.low_rank:
        trainer = LowRankTrainer(
            model, optimizer, tau=recipe.tau, beta=recipe.beta, core_steps=recipe.core_steps
        )
    steps = epochs * (len(images) // BATCH)
    progress, step = Progress(), 0
    for _ in range(epochs):
        model.train()
        total = penalty = 0.0
        order = torch.randperm(len(images), generator=generator)
        batches = order.split(BATCH)[: len(images) // BATCH]
        for picked in batches:
            x, y = _turned(images[picked], generator), labels[picked]
            for group in optimizer.param_groups:
                group["lr"] = recipe.peak * _rate(step / steps)

            def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
                with torch.autocast(x.device.type, torch.bfloat16):
                    logits = model(x)
                return F.cross_entropy(logits.float(), y)

            if trainer is not None:
                trainer.adaptive = step < (1 - SETTLED) * steps
                total += trainer.step(loss).item()
                penalty += trainer.penalty
            else:
                optimizer.zero_grad(set_to_none=True)
                value = loss()
                both = value
                if recipe.beta:
                    excess = torch.stack([spectral_penalty(w) for w in weights]).sum()
                    both = value + recipe.beta * excess
                    penalty += excess.item()
                both.backward()
                optimizer.step()
                total += value.item()
            step += 1
        progress.loss.append(total / len(batches))
        progress.penalty.append(penalty / len(batches))
        progress.ranks.append({} if trainer is None else trainer.ranks)
    if trainer is not None:
        trainer.truncate()
    model.eval()
    return progress


def _rate(done: float) -> float:
    """Linear warm-up over a twentieth of the steps, then linear to zero."""
    return min(done / 0.05 + 1e-3, (1 - done) / 0.95)


def _turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror a batch: each quarter of it by another right angle."""
    parts = []
    for quarter, part in enumerate(images.chunk(4)):
        mirrored = part.flip(3) if torch.rand((), generator=generator) < 0.5 else part
        parts.append(mirrored.rot90(quarter, (2, 3)))
    return torch.cat(parts)
