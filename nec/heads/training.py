"""Training of decoders on labelled windows of scenes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nec.heads.classifier import weight_of_codes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Window:
    """A window of tokens with its margin, and the classes of its pixels.

    Attributes
    ----------
    tokens : numpy.ndarray
        (band, y + 2 margin, x + 2 margin) float32, NaN where missing.
    codes : numpy.ndarray
        (y * scale, x * scale) int64, -1 where there is no label.
    """

    tokens: NDArray[np.float32]
    codes: NDArray[np.int64]


@dataclass(frozen=True)
class Standard:
    """Mean and spread of the bands over the tokens of windows; missing ones are the mean."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    @classmethod
    def of(cls, windows: Sequence[Window]) -> "Standard":
        """Measure windows; what varies little is not blown up, see `nec.heads.ridge`."""
        from nec.heads.ridge import FLOOR

        def complete() -> Iterator[NDArray[np.float64]]:
            # One after the other: together in double precision they would be three times as much.
            for window in windows:
                rows = window.tokens.reshape(len(window.tokens), -1)
                yield rows[:, np.isfinite(rows).all(axis=0)].astype(np.float64)

        sums = [(rows.shape[1], rows.sum(axis=1)) for rows in complete()]
        count = sum(size for size, _ in sums)
        mean = np.sum([total for _, total in sums], axis=0) / count
        squares = [np.square(rows - mean[:, None]).sum(axis=1) for rows in complete()]
        variance = np.sum(squares, axis=0) / count
        spread = np.sqrt(variance + FLOOR * variance.mean() + 1e-12)
        return cls(mean.astype(np.float32), spread.astype(np.float32))

    def __call__(self, tokens: NDArray[np.floating[Any]]) -> Tensor:
        """Bring (band, y, x) tokens to zero mean and about unit variance."""
        shape = (-1, 1, 1)
        scaled = (tokens - self.mean.reshape(shape)) / self.spread.reshape(shape)
        return torch.from_numpy(np.nan_to_num(scaled, posinf=0, neginf=0).astype(np.float32))


def class_weights(
    class_weight: Any, windows: Sequence[Window], classes: NDArray[Any]
) -> NDArray[np.float32] | None:
    """Return the weight of each class in the loss; None where all count alike.

    Raises
    ------
    HeadError
        A weight is of no class.
    """
    from sklearn.utils.class_weight import compute_class_weight

    if class_weight is None:
        return None
    codes = np.concatenate([w.codes[w.codes >= 0] for w in windows])
    weight = weight_of_codes(class_weight, classes)
    if isinstance(weight, dict):
        weight = {code: weight.get(code, 1.0) for code in range(classes.size)}
    found = compute_class_weight(weight, classes=np.arange(classes.size), y=codes)
    return np.asarray(found, np.float32)


def train_decoder(
    decoder: nn.Module,
    windows: Sequence[Window],
    standard: Standard,
    *,
    scale: int,
    weights: NDArray[np.float32] | None,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[float]:
    """Minimise the cross-entropy of labelled pixels by AdamW with a cosine schedule.

    Windows are turned and mirrored at random. Runs on one seed give one result.

    Parameters
    ----------
    decoder : torch.nn.Module
        Trained in place.
    windows : sequence of Window
        Of one size.
    standard : Standard
    scale : int
        Pixels a token along each side.
    weights : numpy.ndarray or None
        (classes,) float32.
    steps, batch, learning_rate, seed
        As usual.
    progress : callable or None
        Called with (steps done, steps in all).

    Returns
    -------
    list of float
        Loss of each step.
    """
    rng = np.random.default_rng(seed)
    margin = (windows[0].tokens.shape[1] - windows[0].codes.shape[0] // scale) // 2
    inputs = torch.stack([standard(window.tokens) for window in windows])
    goals = torch.from_numpy(np.stack([window.codes for window in windows]))
    counted = None if weights is None else torch.from_numpy(weights)
    optimiser = torch.optim.AdamW(decoder.parameters(), learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    losses = []
    decoder.train()
    order: NDArray[np.intp] = np.empty(0, np.intp)
    for step in range(1, steps + 1):
        while len(order) < batch:
            order = np.concatenate([order, rng.permutation(len(windows))])
        chosen, order = torch.from_numpy(order[:batch]), order[batch:]
        x, y = inputs[chosen], goals[chosen]
        turn, mirror = int(rng.integers(4)), bool(rng.integers(2))
        x, y = torch.rot90(x, turn, (-2, -1)), torch.rot90(y, turn, (-2, -1))
        if mirror:
            x, y = x.flip(-1), y.flip(-1)
        logits = cut(decoder(x), margin * scale)
        loss = F.cross_entropy(logits, y, weight=counted, ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step, steps)
    decoder.eval()
    return losses


def cut(pixels: Tensor, margin: int) -> Tensor:
    """Take a margin off (n, class, y, x)."""
    return pixels[..., margin:-margin, margin:-margin] if margin else pixels
