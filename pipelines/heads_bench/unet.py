"""The baseline without any pretraining: a U-Net trained from scratch on the same pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 3
PEAK, DECAY = 2e-3, 1e-2
# Steps between looks at the validation part; the weights that did best there are kept.
LOOK = 25

Image = NDArray[np.float32]


class Block(nn.Sequential):
    """Two convolutions with group normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(8, outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(8, outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """U-Net of Ronneberger et al. 2015 (arXiv:1505.04597), padded, with group normalisation."""

    def __init__(self, inputs: int, outputs: int, width: int = 16) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS + 1)]
        self.down = nn.ModuleList(
            Block(a, b) for a, b in zip([inputs, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(Block(a + b, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, inputs, y, x) to (n, outputs, y, x); sides are padded to a multiple of 8."""
        height, width = images.shape[2:]
        x = F.pad(images, (0, -width % 2**LEVELS, 0, -height % 2**LEVELS), "replicate")
        kept = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for block, near in zip(reversed(self.up), reversed(kept[:-1]), strict=True):
            x = block(torch.cat((near, F.interpolate(x, scale_factor=2, mode="bilinear")), 1))
        return self.head(x)[..., :height, :width]


@dataclass(frozen=True)
class Schedule:
    """How long a U-Net trains, and on what crops."""

    steps: int
    batch: int = 8
    crop: int = 64
    width: int = 16


def train_unet(
    images: list[Image],
    targets: list[NDArray[np.floating]],
    weights: list[NDArray[np.float32]],
    validation: list[NDArray[np.bool_]],
    *,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    seed: int,
) -> tuple[Callable[[Image], NDArray[np.float32]], int]:
    """Train a U-Net on labelled pixels alone; choose the moment on a part of them.

    Parameters
    ----------
    images : list of ndarray of shape (band, y, x)
    targets : list of ndarray of shape (y, x)
        Whatever `loss` compares outputs with.
    weights : list of ndarray of shape (y, x)
        How much each pixel counts; 0 where there is no label.
    validation : list of ndarray of shape (y, x)
        Labelled pixels by which the moment to stop is chosen; they are trained on by no one.
    outputs : int
        Channels.
    loss : callable
        (n, outputs, y, x) outputs and (n, y, x) targets to a loss a pixel (n, y, x).
    schedule : Schedule
    seed : int

    Returns
    -------
    tuple
        A function from an image to its outputs (outputs, y, x), and the trained parameters.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    learn = [
        (w > 0) & ~v & np.isfinite(i).all(0)
        for w, v, i in zip(weights, validation, images, strict=True)
    ]
    seen = np.concatenate([i[:, m] for i, m in zip(images, learn, strict=True)], axis=1)
    middle, spread = seen.mean(1)[:, None, None], seen.std(1)[:, None, None] + 1e-6
    scaled = [torch.from_numpy(np.nan_to_num((i - middle) / spread)) for i in images]
    goal = [torch.from_numpy(np.asarray(t)) for t in targets]
    counted = [
        torch.from_numpy(np.where(m, w, 0).astype(np.float32))
        for m, w in zip(learn, weights, strict=True)
    ]
    tested = [
        torch.from_numpy(np.where(v, w, 0).astype(np.float32))
        for v, w in zip(validation, weights, strict=True)
    ]
    centres = [
        (i, int(y), int(x))
        for i, mask in enumerate(learn)
        for y, x in zip(*np.nonzero(mask), strict=True)
    ]
    network = UNet(len(images[0]), outputs, schedule.width)
    optimiser = torch.optim.AdamW(network.parameters(), PEAK, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, schedule.steps)
    best, kept = np.inf, {k: v.clone() for k, v in network.state_dict().items()}
    for step in range(1, schedule.steps + 1):
        crops = []
        for at in rng.integers(len(centres), size=schedule.batch):
            i, *centre = centres[at]
            y, x = (
                int(np.clip(c - rng.integers(schedule.crop), 0, max(s - schedule.crop, 0)))
                for c, s in zip(centre, learn[i].shape, strict=True)
            )
            window = np.s_[..., y : y + schedule.crop, x : x + schedule.crop]
            turn, flip = int(rng.integers(4)), bool(rng.integers(2))
            crops.append([_turned(a[window], turn, flip) for a in (scaled[i], goal[i], counted[i])])
        inputs, wanted, weight = (torch.stack(parts) for parts in zip(*crops, strict=True))
        optimiser.zero_grad()
        (_weighted(loss(network(inputs), wanted), weight)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        if step % LOOK == 0 or step == schedule.steps:
            network.eval()
            with torch.inference_mode():
                missed = [
                    (loss(network(i[None]), g[None])[0], w)
                    for i, g, w in zip(scaled, goal, tested, strict=True)
                    if w.sum() > 0
                ]
            network.train()
            total = sum(float((a[w > 0] * w[w > 0]).sum()) for a, w in missed)
            if total < best:
                best = total
                kept = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(kept)
    network.eval()

    def apply(image: Image) -> NDArray[np.float32]:
        values = np.nan_to_num((image - middle) / spread)
        with torch.inference_mode():
            return network(torch.from_numpy(values)[None])[0].numpy()

    return apply, sum(p.numel() for p in network.parameters())


def _turned(array: Tensor, turn: int, flip: bool) -> Tensor:
    turned = torch.rot90(array, turn, (-2, -1))
    return turned.flip(-1) if flip else turned


def _weighted(loss: Tensor, weight: Tensor) -> Tensor:
    # Where there is no label the target may be NaN, which times nothing is still NaN.
    return torch.where(weight > 0, loss * weight, 0).sum() / weight.sum().clamp(min=1e-9)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error of the one channel; NaN targets count nowhere, and spoil no gradient."""
    return (outputs[:, 0] - targets.nan_to_num()).square()


def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of class channels; negative targets count nowhere."""
    return F.cross_entropy(outputs, targets.clamp(min=0).long(), reduction="none")
