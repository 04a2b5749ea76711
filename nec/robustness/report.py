"""All measures of gradient masking in one call, as numbers, table, plot and model-card row."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nec.errors import MissingLibraryError
from nec.robustness.attacks.attack import (
    Adversary,
    Model,
    Norm,
    check_images,
    check_labels,
    check_threat,
    logits_of,
)
from nec.robustness.attacks.autopgd import APGD
from nec.robustness.attacks.losses import margin
from nec.robustness.evaluation import evaluate, refuse_training
from nec.robustness.masking import (
    fgsm_pgd_cosine,
    gradient_information,
    gradient_norm,
    linearization_error,
    pgd_collinearity,
)

#: What masking does to each measure.
MASKED = {
    "gradient_norm": "lower",
    "fgsm_pgd_cosine": "lower",
    "linearization_error": "higher",
    "pgd_collinearity": "lower",
    "gradient_information": "lower",
}


class Mean(NamedTuple):
    """A mean over images with its 95 % bootstrap interval, and what it does not tell.

    `median` and `zeros`, the share of images at exactly zero, show saturation: it silences most
    gradients and makes the few others larger. `images` have a value.
    """

    mean: float
    low: float
    high: float
    median: float
    zeros: float
    images: int


class Cost(NamedTuple):
    """Wall clock, and images put through the model, of one measure or attack."""

    seconds: float
    images: int


@dataclass(frozen=True)
class MaskingReport:
    """Measures of gradient masking of one model.

    Attributes
    ----------
    name : str
        Of the model.
    epsilon : float
        Budget, pixel units.
    norm : {"linf", "l2"}
        Of the budget.
    values : dict of str to numpy.ndarray of shape (n,), float64
        Each measure, image by image; NaN where it is not defined.
    costs : dict of str to Cost
        Of each measure.
    clean_accuracy : float
        Share of images that the model gets right.
    margin : float
        Median of how far the highest logit is above the second: the ratio of two models' is
        the temperature that brings their logits to one scale.
    strong : Cost or None
        Of the strong attack; None where it was not run.
    robust_accuracy : float or None
        Under the strong attack.
    """

    name: str
    epsilon: float
    norm: Norm
    values: dict[str, NDArray[np.float64]]
    costs: dict[str, Cost]
    clean_accuracy: float
    margin: float
    strong: Cost | None
    robust_accuracy: float | None

    def means(self, *, resamples: int = 2000, seed: int = 0) -> dict[str, Mean]:
        """Average each measure, with percentile bootstrap intervals over images."""
        return {
            name: bootstrap(values, resamples=resamples, seed=seed)
            for name, values in self.values.items()
        }

    def table(self) -> str:
        """Return a markdown table, one row a measure."""
        lines = [
            "| measure | mean (95 %) | median | zero | images | masking makes it | seconds "
            "| evaluations |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, mean in self.means().items():
            cost = self.costs[name]
            lines.append(
                f"| {name.replace('_', ' ')} | {mean.mean:.3g} ({mean.low:.3g} to {mean.high:.3g})"
                f" | {mean.median:.3g} | {mean.zeros:.0%} | {mean.images} | {MASKED[name]} | "
                f"{cost.seconds:.2f} | {cost.images} |"
            )
        if self.strong is not None:
            lines.append(
                f"| accuracy under the strong attack | {self.robust_accuracy:.3g} | | | "
                f"{len(next(iter(self.values.values())))} | | {self.strong.seconds:.2f} | "
                f"{self.strong.images} |"
            )
        return "\n".join(lines)

    def card_row(self) -> dict[str, Any]:
        """Return the report as plain JSON types, for a model card."""
        row: dict[str, Any] = {
            "model": self.name,
            "epsilon": self.epsilon,
            "norm": self.norm,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "logit_margin": self.margin,
        }
        for name, mean in self.means().items():
            row[name] = {
                key: None if np.isnan(number) else number for key, number in mean._asdict().items()
            }
        row["seconds"] = sum(cost.seconds for cost in self.costs.values())
        row["strong_attack_seconds"] = None if self.strong is None else self.strong.seconds
        return row

    def plot(self, path: str | Path) -> None:
        """Draw the distribution of each measure over images to a file.

        Raises
        ------
        MissingLibraryError
            matplotlib is not installed.
        """
        plot_reports([self], path)


def masking_report(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    low: float = 0.0,
    high: float = 1.0,
    perturbations: int = 64,
    strong: Adversary | None = None,
    compare: bool = True,
    name: str = "model",
    chunk: int = 256,
    generator: torch.Generator | None = None,
) -> MaskingReport:
    """Measure gradient masking in five ways, and what that costs against a strong attack.

    Parameters
    ----------
    model : callable
        (n, ...) images to (n, classes) logits.
    x : Tensor of shape (n, ...), floating
        Images within [low, high].
    y : Tensor of shape (n,), integer
        Their classes.
    epsilon, norm, low, high
        Budget and valid range, pixel units.
    perturbations : int
        Of each image, for the linearisation error.
    strong : Adversary, optional
        What the cost is compared with; APGD of 100 steps where none is given.
    compare : bool
        Run the strong attack.
    name : str
        Of the model, for table and plot.
    chunk : int
        Images at a time.
    generator : torch.Generator, optional
        Source of all randomness; seed 0 where none is given.

    Returns
    -------
    MaskingReport

    Raises
    ------
    RobustnessError
        A module in training mode; images or labels that an `Attack` refuses too.
    """
    refuse_training(model)
    check_threat(epsilon, norm, low, high)
    check_images(x, low, high)
    check_labels(x, y)
    generator = generator or torch.Generator().manual_seed(0)
    counted = _Counted(model)
    ball: dict[str, Any] = {"norm": norm, "low": low, "high": high, "chunk": chunk}
    measures: dict[str, Callable[[], Tensor]] = {
        "gradient_norm": lambda: gradient_norm(counted, x, y, chunk=chunk),
        "fgsm_pgd_cosine": lambda: fgsm_pgd_cosine(
            counted, x, y, epsilon=epsilon, generator=generator, **ball
        ),
        "linearization_error": lambda: linearization_error(
            counted,
            x,
            y,
            epsilon=epsilon,
            norm=norm,
            perturbations=perturbations,
            chunk=chunk,
            generator=generator,
        ),
        "pgd_collinearity": lambda: pgd_collinearity(counted, x, epsilon=epsilon, **ball),
        "gradient_information": lambda: gradient_information(counted, x, **ball),
    }
    # First, so that no measure pays for warming up.
    with torch.no_grad():
        parts = [logits_of(model, x[i : i + chunk]) for i in range(0, len(x), chunk)]
    logits = torch.cat(parts)
    answer = logits.argmax(1)
    values, costs = {}, {}
    for measure, run in measures.items():
        counted.images, start = 0, time.perf_counter()
        # Bringing numbers to the processor waits for the device.
        values[measure] = run().detach().double().cpu().numpy()
        costs[measure] = Cost(time.perf_counter() - start, counted.images)
    cost, robust = None, None
    if compare:
        attack = strong or APGD(epsilon=epsilon, **ball)
        counted.images = 0
        outcome = evaluate(counted, x, y, attack, generator=generator)
        # Two evaluations of each image are the measurement's, not the attack's.
        cost = Cost(outcome.seconds, counted.images - 2 * len(x))
        robust = outcome.robust_accuracy
    return MaskingReport(
        name=name,
        epsilon=epsilon,
        norm=norm,
        values=values,
        costs=costs,
        clean_accuracy=(answer == y).double().mean().item(),
        margin=-margin(logits, answer).median().item(),
        strong=cost,
        robust_accuracy=robust,
    )


def bootstrap(values: NDArray[np.float64], *, resamples: int = 2000, seed: int = 0) -> Mean:
    """Average what is not NaN, with a 95 % percentile bootstrap interval over images."""
    known = values[~np.isnan(values)]
    if not known.size:
        nan = float("nan")
        return Mean(nan, nan, nan, nan, nan, 0)
    rng = np.random.default_rng(seed)
    means = [known[rng.integers(known.size, size=known.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Mean(
        float(known.mean()),
        float(low),
        float(high),
        float(np.median(known)),
        float((known == 0).mean()),
        int(known.size),
    )


def plot_reports(reports: list[MaskingReport], path: str | Path) -> None:
    """Draw the measures of several models side by side, one panel a measure.

    Parameters
    ----------
    reports : list of MaskingReport
        One a model.
    path : str or path
        File to write; its suffix says the format.

    Raises
    ------
    MissingLibraryError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingLibraryError.of(error) or error from error
    figure = Figure(figsize=(3 * len(MASKED), 3), layout="constrained")
    axes = figure.subplots(1, len(MASKED))
    for axis, (measure, change) in zip(axes, MASKED.items(), strict=True):
        for place, report in enumerate(reports):
            known = report.values[measure][~np.isnan(report.values[measure])]
            mean = bootstrap(known)
            if known.size:
                axis.boxplot(known, positions=[place], widths=0.6, showfliers=False)
                axis.errorbar(
                    place,
                    mean.mean,
                    yerr=[[mean.mean - mean.low], [mean.high - mean.mean]],
                    fmt="o",
                    capsize=3,
                )
        axis.set_xlim(-0.6, len(reports) - 0.4)
        axis.set_xticks(range(len(reports)), [report.name for report in reports], rotation=30)
        axis.set_title(f"{measure.replace('_', ' ')}\n(masking: {change})", fontsize=9)
    figure.savefig(path)


class _Counted:
    """A model that counts the images put through it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.images = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.model(x)
