"""Intervals: accuracies of many rows, bootstrapped over test units, paired between rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.errors import EvaluationError

DRAWS = 2000
# "No worse" means: the lower bound of the paired difference lies above minus this.
MARGIN = 0.01


def confusions(
    truth: NDArray[np.intp],
    found: NDArray[np.intp],
    units: NDArray[np.intp],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Count (unit, true class, found class) of shape (units, classes, classes).

    Raises
    ------
    EvaluationError
        If a label is none of the classes, or a unit none of the units: it would count for another.
    """
    count, classes = shape
    for name, numbers, size in (
        ("truth", truth, classes),
        ("found", found, classes),
        ("units", units, count),
    ):
        if np.size(numbers) and not (np.min(numbers) >= 0 and np.max(numbers) < size):
            raise EvaluationError(
                f"{name} holds {np.min(numbers)} to {np.max(numbers)}, and {size} are counted",
                f"number them from 0 to {size - 1}; leave missing ones out",
            )
    flat = (units * classes + truth) * classes + found
    counts = np.bincount(flat, minlength=count * classes * classes)
    return counts.reshape(count, classes, classes).astype(np.float32)


def accuracy(matrix: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Share of right labels of confusions (..., class, class)."""
    share: NDArray[np.floating[Any]] = np.trace(matrix, axis1=-2, axis2=-1) / matrix.sum((-2, -1))
    return share


def mean_iou(matrix: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Intersection over union, the mean over the classes that the truth holds."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    true, found = matrix.sum(-1), matrix.sum(-2)
    union = np.maximum(true + found - hit, 1e-9)
    return _mean(hit / union, true > 0)


def balanced_accuracy(matrix: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Recall, the mean over the classes that the truth holds."""
    hit, true = np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1)
    return _mean(hit / np.maximum(true, 1e-9), true > 0)


def misses(
    truth: NDArray[np.floating[Any]],
    found: NDArray[np.floating[Any]],
    units: NDArray[np.intp],
    count: int,
) -> NDArray[np.float64]:
    """Sum up errors by unit: (units, 6) number, error, its size and square, truth, its square."""
    error = found - truth
    columns = (np.ones_like(error), error, np.abs(error), error**2, truth, truth**2)
    return np.stack([np.bincount(units, c, minlength=count) for c in columns], axis=-1)


def rmse(sums: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Root mean square error of sums (..., 6)."""
    return np.sqrt(sums[..., 3] / sums[..., 0])


def mae(sums: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Mean absolute error."""
    return sums[..., 2] / sums[..., 0]


def bias(sums: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Mean of predicted minus measured."""
    return sums[..., 1] / sums[..., 0]


def r2(sums: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Coefficient of determination."""
    spread = sums[..., 5] - sums[..., 4] ** 2 / sums[..., 0]
    found: NDArray[np.floating[Any]] = 1 - sums[..., 3] / np.maximum(spread, 1e-9)
    return found


def _mean(values: NDArray[np.floating[Any]], there: NDArray[np.bool_]) -> NDArray[np.floating[Any]]:
    mean: NDArray[np.floating[Any]] = np.where(there, values, 0).sum(-1) / np.maximum(
        there.sum(-1), 1
    )
    return mean


METRICS = {
    "accuracy": accuracy,
    "mean_iou": mean_iou,
    "balanced_accuracy": balanced_accuracy,
    "rmse": rmse,
    "mae": mae,
    "bias": bias,
    "r2": r2,
}
# Of these less is better; they are given as ratios to the reference too.
ERRORS = ("rmse", "mae")


def estimates(
    counts: Mapping[str, NDArray[np.floating[Any]]],
    *,
    reference: str,
    metrics: tuple[str, ...],
    seed: int,
    margin: float | Mapping[str, float] = MARGIN,
) -> dict[str, dict[str, Any]]:
    """Give each row its metrics with 95 % intervals, and its difference to the reference.

    Parameters
    ----------
    counts : mapping of str to ndarray of shape (unit, class, class) or (unit, 6)
        Confusions, or sums of `misses`, by row; the units are those of every row, in one order.
    reference : str
        The row that others are compared with, on the same resamples of units.
    metrics : tuple of str
        Keys of `METRICS`.
    seed : int
        Of the resamples.
    margin : float or mapping of str to float
        What "no worse" allows, of all metrics or of each; nothing is said of those that have none,
        nor of the bias, of which neither less nor more is better. Where a resample has no value,
        as of units without labels, nothing is shown to be no worse.

    Raises
    ------
    EvaluationError
        If there is no such reference, rows are of other units, or there is but one: it tells
        nothing of others.
    """
    if reference not in counts:
        raise EvaluationError(f"there is no row {reference!r}", f"rows: {', '.join(counts)}")
    units = len(counts[reference])
    if other := [row for row, matrix in counts.items() if len(matrix) != units]:
        raise EvaluationError(
            f"{other[0]!r} has {len(counts[other[0]])} units, {reference!r} {units}",
            "count the same units, in one order, for every row",
        )
    if units < 2:
        raise EvaluationError(f"an interval from {units} unit", "give two at least")
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.float32)
    values: dict[str, dict[str, tuple[float, NDArray[np.floating[Any]]]]] = {}
    for row, matrix in counts.items():
        drawn = (weights @ matrix.reshape(units, -1)).reshape(DRAWS, *matrix.shape[1:])
        values[row] = {m: (float(METRICS[m](matrix.sum(0))), METRICS[m](drawn)) for m in metrics}
    out: dict[str, dict[str, Any]] = {}
    for row, of_row in values.items():
        out[row] = {} if row == reference else {"reference": reference}
        for metric, (value, drawn) in of_row.items():
            entry: dict[str, Any] = interval(value, drawn)
            if row != reference:
                base, base_drawn = values[reference][metric]
                entry["difference"] = interval(value - base, drawn - base_drawn)
                if metric in ERRORS:
                    entry["ratio"] = interval(value / base, drawn / base_drawn)
                allowed = margin.get(metric) if isinstance(margin, Mapping) else margin
                if allowed is not None and metric != "bias":
                    change = drawn - base_drawn if metric in ERRORS else base_drawn - drawn
                    # NaN is no less.
                    entry["no_worse"] = bool(np.quantile(change, 0.975) < allowed)
            out[row][metric] = entry
    return out


def interval(value: float, drawn: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Return a value with the 95 % interval of what was drawn of it; NaN was not to be had."""
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {"value": _short(value), "low": _short(float(low)), "high": _short(float(high))}


def _short(value: float) -> float:
    """Round to five decimals, or, of what is small, to five digits."""
    return float(f"{value:.5g}") if abs(value) < 1e-2 else round(value, 5)
