"""A regression whose penalty, error and residuals come from folds that it has not seen."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from nec.errors import HeadError, TooFewLabelsError
from nec.heads.estimator import complete_rows
from nec.heads.labelled import Part, RowParts, SceneParts
from nec.heads.ridge import Sums
from nec.heads.targets import Residuals, expectation, forward, inverse

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
# Of each fold: weights (penalty, d) and intercepts (penalty,) without it; None where it is empty.
Fits = Sequence[tuple[Floats, Floats] | None]

# Held-out predictions that are looked at, of each penalty; of more labels a sample.
HELD_OUT = 500_000


@dataclass(frozen=True, eq=False)
class CrossFit:
    """What was fitted to all folds, and what predictions of held-out folds missed.

    Attributes
    ----------
    weights : numpy.ndarray
        (d,) float64.
    intercept, alpha : float
        Offset on the scale of the regression, and the penalty that was chosen.
    residuals : Residuals
        On that scale, every measurement alike: what a new one may miss the prediction by.
    smearing : float
        What brings predictions back as means, of residuals that count as their labels do: the
        noise of an uncertain label is none of the ground's. See `nec.heads.targets.expectation`.
    held_out_rmse : float
        In units of the label, weighted.
    count : int
        Labelled vectors used.
    """

    weights: Floats
    intercept: float
    alpha: float
    residuals: Residuals
    smearing: float
    held_out_rmse: float
    count: int


def cross_fitted(
    parts: RowParts | SceneParts,
    size: int,
    *,
    transform: str,
    alphas: Floats,
    se_floor: float,
    seed: int,
) -> CrossFit:
    """Take the sums of each fold, choose the penalty by the others' fits, solve for all.

    Parameters
    ----------
    parts : RowParts or SceneParts
        Passed over twice.
    size : int
        Length d of a row.
    transform : str
        See `nec.heads.targets.forward`.
    alphas : numpy.ndarray
        Penalties to choose among.
    se_floor : float
        A label counts (floor / max(error, floor))**2 times.
    seed : int
        Of the sample of held-out predictions.

    Raises
    ------
    HeadError
        Too few labels or folds, negative or infinite labels, everything missing.
    """
    if parts.count < 2 or parts.folds < 2:
        raise TooFewLabelsError(
            f"too few labels: {parts.count} in {parts.folds} block(s) (n_samples = {parts.count})",
            "give two labels at least, in different places",
        )
    sums = [Sums(size) for _ in range(parts.folds)]
    count = lost = 0
    for part in parts:
        keep, weights = _usable(part, se_floor)
        lost += int((~keep).sum())
        count += int(keep.sum())
        values = forward(transform, part.values)
        for fold in np.unique(part.folds[keep]):
            at = keep & (part.folds == fold)
            sums[fold].add(part.rows[at], values[at], weights[at])
    if lost:
        logger.warning("%d of %d labelled vectors hold NaN: left out", lost, parts.count)
    filled = [s.weight > 0 for s in sums]
    if count < 2 or sum(filled) < 2:
        raise TooFewLabelsError(
            f"of {parts.count} labelled vectors {lost} hold NaN, too few are left "
            f"(n_samples = {count})",
            "choose an area that has data",
        )
    without = [
        _subtracted(sums, fold).solve(alphas) if there else None
        for fold, there in enumerate(filled)
    ]
    found, values, weights = _held_out(parts, without, alphas.size, se_floor, seed)
    best = int(np.argmin(np.square(inverse(transform, found) - values) @ weights))
    missed = forward(transform, values) - found[best]
    smearing = Residuals.of(missed, weights).smearing(transform)
    residuals = Residuals.of(missed)
    # Tokens under one label pixel are one measurement.
    residuals = replace(residuals, count=residuals.count * parts.measurements / parts.count)
    squares = np.square(expectation(transform, found[best], smearing) - values)
    coefficients, intercepts = _subtracted(sums, -1).solve(alphas[[best]])
    return CrossFit(
        coefficients[0],
        float(intercepts[0]),
        float(alphas[best]),
        residuals,
        smearing,
        float(np.sqrt(np.average(squares, weights=weights))),
        count,
    )


def _usable(part: Part, se_floor: float) -> tuple[NDArray[np.bool_], Floats]:
    """Which vectors count, and how much."""
    if (wrong := ~np.isfinite(part.values)).any() or (wrong := part.values < 0).any():
        raise HeadError(
            f"{wrong.sum()} labels are negative or infinity, the first is "
            f"{part.values[np.argmax(wrong)]}",
            "NaN marks what is not labelled",
        )
    if (wrong := part.errors < 0).any():
        raise HeadError(
            f"{wrong.sum()} standard errors are negative, the first is "
            f"{part.errors[np.argmax(wrong)]}",
            "NaN marks what is not known; give the nodata value of a raster of errors",
        )
    error = np.maximum(part.errors, se_floor)
    return complete_rows(part.rows), np.square(se_floor / error)


def _held_out(
    parts: RowParts | SceneParts, without: Fits, count: int, se_floor: float, seed: int
) -> tuple[Floats, Floats, Floats]:
    """Predict each fold by the fits without it: (penalties, n), their labels and weights."""
    found: list[Floats] = [np.empty((count, 0))]
    values: list[Floats] = [np.empty(0)]
    counted: list[Floats] = [np.empty(0)]
    share = min(1.0, HELD_OUT / parts.count)
    for part in parts:
        keep, weights = _usable(part, se_floor)
        keep &= _drawn(part, seed) < share
        for fold in np.unique(part.folds[keep]):
            at = keep & (part.folds == fold)
            fit = without[fold]
            assert fit is not None, "a fold that holds vectors was fitted without"
            coefficients, intercepts = fit
            rows = part.rows[at].astype(np.float64, copy=False)
            found.append(coefficients @ rows.T + intercepts[:, None])
            values.append(part.values[at])
            counted.append(weights[at])
    return np.concatenate(found, axis=1), np.concatenate(values), np.concatenate(counted)


def _drawn(part: Part, seed: int) -> Floats:
    """Return a number in [0, 1) for each row that hangs on the row alone, not on its part."""
    # A hash: the order in which chunks bring rows says nothing.
    hashes = pd.util.hash_pandas_object(pd.DataFrame(part.rows), index=False).to_numpy()
    turn = np.random.default_rng(seed).integers(2**64, dtype=np.uint64)
    drawn: Floats = (hashes + turn) / 2.0**64
    return drawn


def _subtracted(sums: list[Sums], fold: int) -> Sums:
    """Return the sums of all folds but one (-1: of all); adding them up anew loses no digits."""
    total = Sums(sums[0].size)
    for at, part in enumerate(sums):
        if at != fold:
            total = total + part
    return total
