"""Intervals: accuracies of many rows, bootstrapped over test units, paired between rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
# "No worse" means: the lower bound of the paired difference lies above minus this.
MARGIN = 0.01


def confusions(
    truth: NDArray[np.intp],
    found: NDArray[np.intp],
    units: NDArray[np.intp],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Count (unit, true class, found class) of shape (units, classes, classes)."""
    count, classes = shape
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
        nor of the bias, of which neither less nor more is better.
    """
    units = len(counts[reference])
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
                    change = entry["difference"]
                    entry["no_worse"] = (
                        change["high"] < allowed if metric in ERRORS else change["low"] > -allowed
                    )
            out[row][metric] = entry
    return out


def interval(value: float, drawn: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Return a value with the 95 % interval of what was drawn of it; NaN was not to be had."""
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {"value": round(value, 5), "low": round(float(low), 5), "high": round(float(high), 5)}
