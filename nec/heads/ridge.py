"""Weighted ridge regression from sums alone, so that rows can pass by in parts."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.heads.rules import Rows

# Penalties that are tried, relative to the mean eigenvalue of the correlation matrix.
ALPHAS = np.logspace(-4, 2, 13)


# Standardisation stops at this share of the mean variance.
FLOOR = 0.1


@dataclass
class Sums:
    """Weighted sums over rows (n, d) and targets (n,), enough to solve for any penalty.

    Attributes
    ----------
    weight : float
        Sum of the weights.
    rows, products, targets : numpy.ndarray
        (d,), (d, d) and (d,) float64: of the rows, of their outer products, and of the rows
        times their target.
    target : float
        Of the targets.
    """

    size: int
    weight: float = 0.0
    target: float = 0.0
    rows: NDArray[np.float64] = field(init=False)
    products: NDArray[np.float64] = field(init=False)
    targets: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.targets = np.zeros(self.size), np.zeros(self.size)
        self.products = np.zeros((self.size, self.size))

    def add(self, rows: Rows, targets: NDArray[Any], weights: NDArray[Any]) -> None:
        """Count in (n, d) rows, (n,) targets and (n,) weights."""
        exact = rows.astype(np.float64, copy=False)
        weighted = exact * weights[:, None]
        self.weight += float(weights.sum())
        self.target += float(weights @ targets)
        self.rows += weighted.sum(0)
        self.products += weighted.T @ exact
        self.targets += weighted.T @ targets

    def __add__(self, other: "Sums") -> "Sums":
        out = Sums(self.size)
        for name in ("weight", "target", "rows", "products", "targets"):
            setattr(out, name, getattr(self, name) + getattr(other, name))
        return out

    def solve(self, alphas: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Minimise the weighted squared error plus a penalty on squared standardised weights.

        Parameters
        ----------
        alphas : numpy.ndarray
            (m,) penalties from 0, relative to the mean eigenvalue (1) of the correlation matrix.

        Returns
        -------
        tuple of numpy.ndarray
            (m, d) weights of the rows as they came, and (m,) intercepts.
        """
        mean, middle = self.rows / self.weight, self.target / self.weight
        covariance = self.products / self.weight - np.outer(mean, mean)
        variance = np.maximum(np.diag(covariance), 0)
        # Coded embeddings hold components that are zero almost everywhere: what is rare in the
        # labelled vectors must not count by how rare it is.
        scale = np.sqrt(variance + FLOOR * variance.mean() + 1e-300)
        correlation = covariance / np.outer(scale, scale)
        moments = (self.targets / self.weight - mean * middle) / scale
        values, vectors = np.linalg.eigh(correlation)
        along = vectors.T @ moments
        # What does not vary tells nothing, whatever the penalty.
        there = values > values[-1] * self.size * np.finfo(np.float64).eps
        shrunk = np.where(there, along / (np.where(there, values, 1.0) + alphas[:, None]), 0.0)
        weights = shrunk @ vectors.T / scale
        return weights, middle - weights @ mean
