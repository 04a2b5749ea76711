"""What attacks share: the ball and the range they stay in, slopes, and the best point so far."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from nec.errors import RobustnessError

#: A classifier: images (n, ...) to logits (n, classes), per image.
Model = Callable[[Tensor], Tensor]
Norm = Literal["linf", "l2"]
#: What a gradient step raises: logits (n, classes) and the point (n, ...) -> (n,).
Objective = Callable[[Tensor, Tensor], Tensor]


class Adversary(Protocol):
    """Anything that is called like an `Attack`: an attack, or one carried over from a surrogate."""

    @property
    def epsilon(self) -> float:
        """The budget, in pixel units."""

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        epsilon: Tensor | None = None,
    ) -> Tensor:
        """Return attacked images of the shape of `x`; see `Attack.__call__`."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack: what it may change, and how it is run.

    Parameters
    ----------
    epsilon : float
        Radius of the ball around each image, in the units of its pixels.
    norm : {"linf", "l2"}
        Norm of the ball, over all pixels and bands of an image.
    low, high : float
        Valid range of a pixel; attacked images stay in it.
    chunk : int
        Images attacked at a time.

    Raises
    ------
    RobustnessError
        A budget below zero, an empty range, an unknown norm, no image a chunk.
    """

    epsilon: float
    norm: Norm = "linf"
    low: float = 0.0
    high: float = 1.0
    chunk: int = 256

    def __post_init__(self) -> None:
        check_threat(self.epsilon, self.norm, self.low, self.high)
        if self.chunk < 1:
            raise RobustnessError(f"chunk is {self.chunk}", "attack at least one image at a time")

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        epsilon: Tensor | None = None,
    ) -> Tensor:
        """Attack images.

        Parameters
        ----------
        model : callable
            (n, ...) images to (n, classes) logits. A module is used in the mode it is in.
        x : Tensor of shape (n, ...), floating
            Images within [low, high].
        y : Tensor of shape (n,), integer
            Their classes.
        generator : torch.Generator, optional
            Source of all randomness, on any device; seed 0 where none is given. The result
            depends on it and on `chunk` alone.
        epsilon : Tensor of shape (n,), optional
            A budget for each image in place of `self.epsilon`.

        Returns
        -------
        Tensor of the shape and dtype of `x`
            Within the budget and the valid range; detached.

        Raises
        ------
        RobustnessError
            Images with NaN or outside of the range, labels that do not fit them, a model that
            returns no logits or, where the attack needs one, has no gradient.
        """
        check_images(x, self.low, self.high)
        check_labels(x, y)
        budget = self._budget(x, epsilon)
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        parts = [
            self._perturb(
                model,
                x[i : i + self.chunk].detach().clone(),
                y[i : i + self.chunk].long(),
                budget[i : i + self.chunk],
                generator,
            )
            for i in range(0, len(x), self.chunk)
        ]
        return torch.cat(parts)

    @abstractmethod
    def _perturb(
        self, model: Model, x: Tensor, y: Tensor, budget: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Attack one chunk; `budget` has shape (n,)."""

    def _budget(self, x: Tensor, epsilon: Tensor | None) -> Tensor:
        if epsilon is None:
            return torch.full((len(x),), self.epsilon, dtype=x.dtype, device=x.device)
        if epsilon.shape != (len(x),) or not bool((epsilon >= 0).all()):
            raise RobustnessError(
                f"epsilon= has shape {tuple(epsilon.shape)} for {len(x)} images, "
                "or values below zero or NaN",
                "pass one budget for each image",
            )
        return epsilon.to(x)

    def _inside(self, x: Tensor, point: Tensor, budget: Tensor) -> Tensor:
        """Bring points into the ball around `x` and the valid range; see `inside`."""
        return inside(x, point, budget, norm=self.norm, low=self.low, high=self.high)


def inside(
    x: Tensor, point: Tensor, budget: Tensor, *, norm: Norm, low: float, high: float
) -> Tensor:
    """Bring points into the balls of radius `budget` (n,) around `x`, then into the valid range.

    Clipping brings every pixel nearer to `x`, which lies in the range: the ball is kept.
    """
    return (x + project(point - x, norm, budget)).clamp(low, high)


def check_threat(epsilon: float, norm: str, low: float, high: float) -> None:
    """Refuse a budget, norm or range that means nothing; RobustnessError says which."""
    if not 0 <= epsilon < float("inf"):
        raise RobustnessError(
            f"epsilon is {epsilon}", "give a finite budget of at least 0, in pixel units"
        )
    if norm not in ("linf", "l2"):
        raise RobustnessError(f"norm is {norm!r}", "choose 'linf' or 'l2'")
    if not low < high:
        raise RobustnessError(
            f"the valid range is [{low}, {high}]", "give low < high, in pixel units"
        )


def check_images(x: Tensor, low: float, high: float) -> None:
    """Refuse images that cannot be attacked: none, integers, NaN, values out of range."""
    if x.ndim < 2 or not len(x) or not x.is_floating_point():
        raise RobustnessError(
            f"images have shape {tuple(x.shape)} and dtype {x.dtype}",
            "pass at least one image as floats, (n, band, y, x)",
        )
    if not bool(torch.isfinite(x).all()):
        raise RobustnessError("images hold NaN or infinities", "fill missing pixels first")
    least, most = x.min().item(), x.max().item()
    # In the images' own precision: float32 has no 0.3.
    if least < x.new_tensor(low).item() or most > x.new_tensor(high).item():
        raise RobustnessError(
            f"images have values in [{least:.4g}, {most:.4g}], outside of [{low}, {high}]",
            "pass low= and high= in the units of the images, or clip them",
        )


def check_labels(x: Tensor, y: Tensor) -> None:
    """Refuse labels that are not one class index for each image."""
    if y.shape != (len(x),):
        raise RobustnessError(
            f"labels have shape {tuple(y.shape)} for {len(x)} images", "pass one for each image"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or bool((y < 0).any()):
        raise RobustnessError(
            f"labels have dtype {y.dtype} or values below zero", "pass class indexes from 0"
        )


def logits_of(model: Model, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the model's logits (n, classes); RobustnessError where they are none.

    Where labels are given, each must be one of the classes.
    """
    logits = model(x)
    if logits.ndim != 2 or logits.shape[0] != len(x) or logits.shape[1] < 2:
        raise RobustnessError(
            f"the model maps {len(x)} images to shape {tuple(logits.shape)}",
            "pass a callable that returns (n, classes) logits of at least two classes",
        )
    if not bool(torch.isfinite(logits).all()):
        raise RobustnessError("the model returns NaN or infinite logits", "check its weights")
    if y is not None and int(y.max()) >= logits.shape[1]:
        raise RobustnessError(
            f"a label is {int(y.max())} and the model has {logits.shape[1]} classes",
            "pass the labels this model was trained on",
        )
    return logits


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """Give (n,) values the trailing axes of `like`, so that they broadcast."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def lengths(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm (n,) of each perturbation (n, ...)."""
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def project(delta: Tensor, norm: Norm, budget: Tensor) -> Tensor:
    """Return the nearest perturbations (n, ...) within the balls of radius `budget` (n,)."""
    if norm == "linf":
        bound = per_image(budget, delta)
        return delta.clamp(-bound, bound)
    tiny = torch.finfo(delta.dtype).tiny
    return delta * per_image((budget / lengths(delta, norm).clamp_min(tiny)).clamp_max(1), delta)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the step of length one that raises a linear function most; 0 for no gradient."""
    if norm == "linf":
        return gradient.sign()
    # Scaled by its largest entry first: squares of tiny gradients vanish.
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / per_image(lengths(gradient, "linf").clamp_min(tiny), gradient)
    return scaled / per_image(lengths(scaled, "l2").clamp_min(tiny), gradient)


def random_like(
    x: Tensor, norm: Norm, generator: torch.Generator, *, free: Tensor | None = None
) -> Tensor:
    """Return perturbations of the shape of `x`, uniform in the unit ball.

    With `free`, 1 where entries may change and 0 elsewhere (broadcast over `x`), in that of these.
    """
    free = torch.ones_like(x) if free is None else free.to(x).expand_as(x)
    if norm == "linf":
        return (2 * uniform(x.shape, x, generator) - 1) * free
    direction = torch.randn(
        x.shape, generator=generator, device=generator.device, dtype=x.dtype
    ).to(x.device)
    entries = free.flatten(1).sum(1).clamp_min(1)
    radius = uniform((len(x),), x, generator) ** (1 / entries)
    return steepest(direction * free, norm) * per_image(radius, x)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform numbers in [0, 1) of the dtype and on the device of `like`."""
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)


class Slope(NamedTuple):
    """Gradient (n, ...) of an objective at points, with the detached logits (n, classes)."""

    gradient: Tensor
    logits: Tensor


def slope_at(model: Model, point: Tensor, y: Tensor, objective: Objective) -> Slope:
    """Differentiate an objective at each point; parameters collect no gradient.

    Raises
    ------
    RobustnessError
        The model cannot be differentiated by its input.
    """
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        logits = logits_of(model, point, y)
        value = objective(logits, point).sum()
        gradient = None
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(value, point, allow_unused=True)
    if gradient is None:
        raise RobustnessError(
            "the model has no gradient with respect to its input",
            "run it without inference_mode or no_grad, or use Square, which needs no gradient",
        )
    return Slope(gradient.detach(), logits.detach())


@dataclass
class Record:
    """The best point found for each image: one that is misclassified, then one of higher loss."""

    x: Tensor
    loss: Tensor
    wrong: Tensor

    @classmethod
    def at(cls, x: Tensor, loss: Tensor, wrong: Tensor) -> "Record":
        """Begin with points (n, ...), their losses (n,) and whether they are misclassified."""
        return cls(x.clone(), loss.clone(), wrong.clone())

    def update(self, x: Tensor, loss: Tensor, wrong: Tensor) -> None:
        """Take over the points that are better."""
        better = (wrong & ~self.wrong) | ((wrong == self.wrong) & (loss > self.loss))
        self.x = torch.where(per_image(better, x), x, self.x)
        self.loss = torch.where(better, loss, self.loss)
        self.wrong = self.wrong | wrong
