"""Targets on another scale, and intervals on it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TRANSFORMS = ("none", "sqrt", "log")
# Residuals that are kept: as many quantiles of them.
KEPT = 2000


def forward(transform: str, values: NDArray[Any]) -> Floats:
    """Bring non-negative values to the scale they are regressed on."""
    exact = np.asarray(values, dtype=np.float64)
    if transform == "sqrt":
        return np.sqrt(exact)
    return np.log1p(exact) if transform == "log" else exact


def inverse(transform: str, values: NDArray[Any]) -> Floats:
    """Bring values back; nothing is negative there."""
    exact = np.asarray(values, dtype=np.float64)
    if transform == "sqrt":
        return np.square(np.maximum(exact, 0))
    # 20 is half a billion: a stray vector shall not overflow a map
    back = np.expm1(np.minimum(exact, 20)) if transform == "log" else exact
    return np.maximum(back, 0)


def upper_bound(transform: str, values: NDArray[Any]) -> Floats:
    """Bring upper bounds back, infinite ones too; nothing is negative there."""
    exact = np.asarray(values, dtype=np.float64)
    return np.where(np.isposinf(exact), np.inf, inverse(transform, exact))


def expectation(transform: str, values: NDArray[Any], smearing: float) -> Floats:
    """Return the mean, on the original scale, of predictions with residuals around.

    Smearing (Duan 1983, doi:10.1080/01621459.1983.10478017): going back through a curved
    transform without it predicts too little on average. Of the square root it is the variance of
    the residuals, of the logarithm the mean of their exponentials.
    """
    exact = np.asarray(values, dtype=np.float64)
    if transform == "sqrt":
        return np.asarray(np.where(exact < 0, 0, np.square(exact)) + smearing)
    if transform == "log":
        return np.maximum(np.exp(np.minimum(exact, 20)) * smearing - 1, 0)
    return inverse(transform, exact)


@dataclass(frozen=True, eq=False)
class Residuals:
    """What out-of-fold predictions missed, on the scale of the regression.

    Attributes
    ----------
    quantiles : numpy.ndarray
        (m,) float64, sorted, evenly spaced in rank: all of them where there are few.
    count : float
        How many measurements they are of; where they have weights, as many of equal weight as
        tell as much.
    """

    quantiles: Floats
    count: float

    @classmethod
    def of(cls, values: NDArray[Any], weights: NDArray[Any] | None = None) -> "Residuals":
        """Keep (n,) residuals, measured minus predicted, by (n,) weights."""
        order = np.argsort(values)
        ordered = np.asarray(values, dtype=np.float64)[order]
        counted = np.ones(ordered.size) if weights is None else np.asarray(weights)[order]
        count = float(counted.sum() ** 2 / np.square(counted).sum())
        if ordered.size > KEPT or counted.min() < counted.max():
            place = (np.cumsum(counted) - counted / 2) / counted.sum()
            ordered = np.interp((np.arange(KEPT) + 0.5) / KEPT, place, ordered)
        return cls(ordered, count)

    def band(self, coverage: float) -> tuple[float, float]:
        """Return the two offsets between which a new residual falls with this probability.

        Order statistics of signed residuals with the finite-sample correction of split
        conformal prediction, half of the miss on each side (Linusson et al. 2014, "Signed-error
        conformal regression"); infinite where there are too few residuals to tell.
        """
        miss = (1 - coverage) / 2
        # A tenth of 20 is 2, and a hair less in floats.
        rank = np.floor(miss * (self.count + 1) + 1e-9)
        if rank < 1:
            return -np.inf, np.inf
        at = (rank - 1) / max(self.count - 1, 1)
        place = np.linspace(0, 1, self.quantiles.size)
        low, high = np.interp((at, 1 - at), place, self.quantiles)
        return float(low), float(high)

    def smearing(self, transform: str) -> float:
        """Return what brings predictions back as means: see `expectation`."""
        if transform == "sqrt":
            return float(np.mean(np.square(self.quantiles)) - np.mean(self.quantiles) ** 2)
        if transform == "log":
            return float(np.mean(np.exp(self.quantiles - self.quantiles.mean())))
        return 0.0
