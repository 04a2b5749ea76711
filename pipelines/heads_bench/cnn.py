"""The baseline without any pretraining: a small convolutional classifier of images."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (32, 64, 128)
PEAK, DECAY, BATCH = 3e-3, 1e-2, 64
# Images of a forward pass that learns nothing.
LOOK = 256

Images = NDArray[np.float32]
Codes = NDArray[np.intp]


class ConvolutionalClassifier(nn.Sequential):
    """Three stages of two convolutions each, halved before every stage, pooled, and a layer."""

    def __init__(self, bands: int, classes: int) -> None:
        stages: list[nn.Module] = []
        for inputs, outputs in zip((bands, *WIDTHS), WIDTHS, strict=False):
            for at, (a, b) in enumerate(((inputs, outputs), (outputs, outputs))):
                stages += [
                    nn.Conv2d(a, b, 3, stride=1 + (at == 0), padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(inplace=True),
                ]
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], classes))
        super().__init__(*stages, *pooled)


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier with the standardisation of its input."""

    network: nn.Module
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    parameters: int

    def predict(self, images: Images) -> Codes:
        """Return the class of each image (n, band, y, x)."""
        found = []
        with torch.inference_mode():
            for at in range(0, len(images), LOOK):
                scaled = _scaled(images[at : at + LOOK], self.mean, self.spread)
                found.append(self.network(scaled).argmax(1).numpy())
        return np.concatenate(found).astype(np.intp)


def train_classifier(
    images: Images,
    codes: Codes,
    *,
    classes: int,
    epochs: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedClassifier:
    """Train on images (n, band, y, x), turned and mirrored; a fifth of them chooses the epoch.

    Parameters
    ----------
    images : ndarray of shape (n, band, y, x)
    codes : ndarray of shape (n,)
        0 ... classes - 1.
    classes, epochs, seed : int
    progress : callable, optional
        Called with (epochs done, epochs in all).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(codes))
    held, learned = np.split(order, [max(1, len(order) // 5)])
    mean = images[learned].mean((0, 2, 3))[:, None, None]
    spread = images[learned].std((0, 2, 3))[:, None, None] + np.float32(1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConvolutionalClassifier(images.shape[1], classes)
    steps = epochs * -(-len(learned) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), PEAK, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, steps)
    count = sum(p.numel() for p in network.parameters())
    best, kept = -1.0, {k: v.clone() for k, v in network.state_dict().items()}
    for epoch in range(1, epochs + 1):
        network.train()
        for part in np.array_split(rng.permutation(learned), -(-len(learned) // BATCH)):
            inputs = torch.rot90(
                _scaled(images[part], mean, spread), int(rng.integers(4)), (-2, -1)
            )
            if rng.integers(2):
                inputs = inputs.flip(-1)
            loss = F.cross_entropy(network(inputs), torch.from_numpy(codes[part]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
        network.eval()
        found = TrainedClassifier(network, mean, spread, count).predict(images[held])
        if (score := float((found == codes[held]).mean())) > best:
            best, kept = score, {k: v.clone() for k, v in network.state_dict().items()}
        if progress is not None:
            progress(epoch, epochs)
    network.load_state_dict(kept)
    return TrainedClassifier(network.eval(), mean, spread, count)


def _scaled(images: Images, mean: NDArray[np.float32], spread: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(((images - mean) / spread).astype(np.float32))
