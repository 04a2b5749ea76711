"""Decision rules: what a head learned, as plain arrays, and the classes it gives to rows."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nec.errors import HeadError

Rows = NDArray[np.floating[Any]]


class Rule(Protocol):
    """Gives every row of finite numbers a probability for every class."""

    def probabilities(self, rows: Rows) -> Rows:
        """(n, d) -> (n, classes), of the dtype of `rows`."""
        ...

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that make the rule, by name."""
        ...


@dataclass(frozen=True, eq=False)
class LinearRule:
    """Logistic regression over standardised features, folded into one affine map.

    Parameters
    ----------
    weights : numpy.ndarray
        (classes, d) float64, or (1, d) for two classes.
    bias : numpy.ndarray
        (classes,) or (1,) float64.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    @classmethod
    def fit(
        cls, rows: Rows, codes: NDArray[np.intp], *, C: float, max_iter: int, class_weight: Any
    ) -> tuple["LinearRule", int]:
        """Fit to (n, d) rows and (n,) codes 0 ... classes - 1; also give the iterations used."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        scaled = scaler.fit_transform(rows.astype(np.float64))
        regression = LogisticRegression(C=C, max_iter=max_iter, class_weight=class_weight)
        regression.fit(scaled, codes)
        weights = regression.coef_ / scaler.scale_
        bias = regression.intercept_ - weights @ scaler.mean_
        return cls(weights, bias), int(np.max(regression.n_iter_))

    @classmethod
    def of(cls, tensors: dict[str, NDArray[Any]], classes: int, features: int) -> "LinearRule":
        """Rebuild from :meth:`tensors`; HeadError where a shape does not fit."""
        outputs = 1 if classes == 2 else classes
        _check_shapes(tensors, {"weights": (outputs, features), "bias": (outputs,)})
        return cls(tensors["weights"], tensors["bias"])

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that make the rule, by name."""
        return {"weights": self.weights, "bias": self.bias}

    def probabilities(self, rows: Rows) -> Rows:
        """(n, d) -> (n, classes), of the dtype of `rows`."""
        # In double precision, so that the map does not depend on how it is chunked.
        logits = rows.astype(np.float64, copy=False) @ self.weights.T + self.bias
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits.astype(rows.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class NeighbourRule:
    """Vote of the nearest training vectors.

    Parameters
    ----------
    vectors : numpy.ndarray
        (n, d) training vectors; of unit length where the metric is the cosine.
    codes : numpy.ndarray
        (n,) int64 class of each.
    n_neighbors : int
        How many vote.
    unit : bool
        Bring rows to unit length first (cosine), or leave them (Euclidean).
    """

    vectors: Rows
    codes: NDArray[np.int64]
    n_neighbors: int
    unit: bool

    @classmethod
    def fit(
        cls, rows: Rows, codes: NDArray[np.intp], *, n_neighbors: int, metric: str
    ) -> "NeighbourRule":
        """Keep (n, d) rows and (n,) codes 0 ... classes - 1."""
        unit = metric == "cosine"
        vectors = _unit(rows) if unit else rows
        return cls(np.ascontiguousarray(vectors), codes.astype(np.int64), n_neighbors, unit)

    @classmethod
    def of(
        cls,
        tensors: dict[str, NDArray[Any]],
        classes: int,
        features: int,
        *,
        n_neighbors: int,
        metric: str,
    ) -> "NeighbourRule":
        """Rebuild from :meth:`tensors`; HeadError where a shape does not fit."""
        count = tensors["codes"].size if "codes" in tensors else 0
        _check_shapes(tensors, {"vectors": (count, features), "codes": (count,)})
        if count < n_neighbors or set(np.unique(tensors["codes"])) != set(range(classes)):
            raise HeadError("the stored neighbours do not fit the stored classes", "save it again")
        return cls(tensors["vectors"], tensors["codes"], n_neighbors, metric == "cosine")

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that make the rule, by name."""
        return {"vectors": self.vectors, "codes": self.codes}

    @functools.cached_property
    def _voters(self) -> Any:
        from sklearn.neighbors import KNeighborsClassifier

        voters = KNeighborsClassifier(n_neighbors=self.n_neighbors, algorithm="brute")
        return voters.fit(self.vectors, self.codes)

    def probabilities(self, rows: Rows) -> Rows:
        """(n, d) -> (n, classes), of the dtype of `rows`."""
        # One dtype for both sides keeps scikit-learn on its fast path.
        near = (_unit(rows) if self.unit else rows).astype(self.vectors.dtype, copy=False)
        votes: Rows = self._voters.predict_proba(np.ascontiguousarray(near))
        return votes.astype(rows.dtype, copy=False)


def _unit(rows: Rows) -> Rows:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Rows = rows / np.where(length > 0, length, 1)
    return scaled


def _check_shapes(tensors: dict[str, NDArray[Any]], expected: dict[str, tuple[int, ...]]) -> None:
    shapes = {name: array.shape for name, array in tensors.items()}
    if shapes != expected:
        raise HeadError(f"the stored arrays have shapes {shapes}, not {expected}", "save it again")
    if not all(np.isfinite(array).all() for array in tensors.values()):
        raise HeadError("the stored arrays hold NaN or infinities", "fit and save it again")
