"""Decision rules: what a head learned, as plain arrays, and the classes it gives to rows."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nec.errors import HeadError

Rows = NDArray[np.floating[Any]]
# Deviation of the logarithm of a temperature before anything is known of it.
TEMPERED = 0.3


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
        return _softmax(logits).astype(rows.dtype, copy=False)


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
    mean, spread : numpy.ndarray or None
        (d,) what rows are standardised by before that.
    """

    vectors: Rows
    codes: NDArray[np.int64]
    n_neighbors: int
    unit: bool
    mean: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None

    @classmethod
    def fit(
        cls,
        rows: Rows,
        codes: NDArray[np.intp],
        *,
        n_neighbors: int,
        metric: str,
        standardize: bool,
    ) -> "NeighbourRule":
        """Keep (n, d) rows and (n,) codes 0 ... classes - 1."""
        unit = metric == "cosine"
        mean = spread = None
        if standardize:
            mean, spread = (f(rows.astype(np.float64), axis=0) for f in (np.mean, np.std))
            spread = np.where(spread > 0, spread, 1.0)
            rows = ((rows - mean) / spread).astype(rows.dtype)
        vectors = _unit(rows) if unit else rows
        return cls(
            np.ascontiguousarray(vectors), codes.astype(np.int64), n_neighbors, unit, mean, spread
        )

    @classmethod
    def of(
        cls,
        tensors: dict[str, NDArray[Any]],
        classes: int,
        features: int,
        *,
        n_neighbors: int,
        metric: str,
        standardize: bool,
    ) -> "NeighbourRule":
        """Rebuild from :meth:`tensors`; HeadError where a shape does not fit."""
        count = tensors["codes"].size if "codes" in tensors else 0
        scales = {"mean": (features,), "spread": (features,)} if standardize else {}
        _check_shapes(tensors, {"vectors": (count, features), "codes": (count,), **scales})
        if count < n_neighbors or set(np.unique(tensors["codes"])) != set(range(classes)):
            raise HeadError("the stored neighbours do not fit the stored classes", "save it again")
        return cls(
            tensors["vectors"],
            tensors["codes"],
            n_neighbors,
            metric == "cosine",
            tensors.get("mean"),
            tensors.get("spread"),
        )

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that make the rule, by name."""
        arrays: dict[str, NDArray[Any]] = {"vectors": self.vectors, "codes": self.codes}
        if self.mean is not None and self.spread is not None:
            arrays |= {"mean": self.mean, "spread": self.spread}
        return arrays

    @functools.cached_property
    def _voters(self) -> Any:
        from sklearn.neighbors import KNeighborsClassifier

        voters = KNeighborsClassifier(n_neighbors=self.n_neighbors, algorithm="brute")
        return voters.fit(self.vectors, self.codes)

    def probabilities(self, rows: Rows) -> Rows:
        """(n, d) -> (n, classes), of the dtype of `rows`."""
        # One dtype for both sides keeps scikit-learn on its fast path.
        if self.mean is not None and self.spread is not None:
            rows = ((rows - self.mean) / self.spread).astype(rows.dtype)
        near = (_unit(rows) if self.unit else rows).astype(self.vectors.dtype, copy=False)
        votes: Rows = self._voters.predict_proba(np.ascontiguousarray(near))
        return votes.astype(rows.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class NetworkRule:
    """Multilayer perceptron with rectified units, standardisation folded into its first layer.

    Parameters
    ----------
    layers : tuple of (weights, bias)
        (inputs, outputs) and (outputs,) float64; one output for two classes.
    """

    layers: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]

    @classmethod
    def fit(
        cls,
        rows: Rows,
        codes: NDArray[np.intp],
        *,
        hidden: tuple[int, ...],
        alpha: float,
        max_iter: int,
        class_weight: Any,
        seed: int,
    ) -> tuple["NetworkRule", int]:
        """Fit to (n, d) rows and (n,) codes by Adam; also give the epochs used."""
        from sklearn.neural_network import MLPClassifier
        from sklearn.preprocessing import StandardScaler
        from sklearn.utils.class_weight import compute_sample_weight

        scaler = StandardScaler()
        scaled = scaler.fit_transform(rows.astype(np.float64))
        network = MLPClassifier(hidden, alpha=alpha, max_iter=max_iter, random_state=seed)
        weight = None if class_weight is None else compute_sample_weight(class_weight, codes)
        network.fit(scaled, codes, sample_weight=weight)
        layers = list(zip(network.coefs_, network.intercepts_, strict=True))
        first = layers[0][0] / scaler.scale_[:, None]
        layers[0] = (first, layers[0][1] - scaler.mean_ @ first)
        return cls(tuple(layers)), int(network.n_iter_)

    @classmethod
    def of(cls, tensors: dict[str, NDArray[Any]], classes: int, features: int) -> "NetworkRule":
        """Rebuild from :meth:`tensors`; HeadError where a shape does not fit."""
        count = len(tensors) // 2
        sizes = [features] + [tensors[f"bias_{i}"].size for i in range(count)]
        expected: dict[str, tuple[int, ...]] = {}
        for i in range(count):
            expected |= {f"weights_{i}": (sizes[i], sizes[i + 1]), f"bias_{i}": (sizes[i + 1],)}
        _check_shapes(tensors, expected)
        if sizes[-1] != (1 if classes == 2 else classes):
            raise HeadError("the stored network does not fit the stored classes", "save it again")
        return cls(tuple((tensors[f"weights_{i}"], tensors[f"bias_{i}"]) for i in range(count)))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that make the rule, by name."""
        out: dict[str, NDArray[Any]] = {}
        for i, (weights, bias) in enumerate(self.layers):
            out |= {f"weights_{i}": weights, f"bias_{i}": bias}
        return out

    def probabilities(self, rows: Rows) -> Rows:
        """(n, d) -> (n, classes), of the dtype of `rows`."""
        x = rows.astype(np.float64, copy=False)
        for i, (weights, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0) if i else x) @ weights + bias
        return _softmax(x).astype(rows.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class TemperedRule:
    """A rule whose probabilities are flattened or sharpened to what came true.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599) of the logarithms of probabilities.
    """

    rule: Rule
    temperature: float

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that make the rule, by name."""
        return {**self.rule.tensors(), "temperature": np.array([self.temperature])}

    def probabilities(self, rows: Rows) -> Rows:
        """(n, d) -> (n, classes), of the dtype of `rows`."""
        shares = self.rule.probabilities(rows).astype(np.float64, copy=False)
        return _softmax(_logarithms(shares) / self.temperature).astype(rows.dtype, copy=False)


def fitted_temperature(shares: Rows, codes: NDArray[np.intp]) -> float:
    """Return the temperature that fits held-out (n, classes) shares best.

    Its logarithm minimises the sum of the log losses and (log T / `TEMPERED`)^2 / 2: where few
    vectors are all right, nothing else would keep it from sharpening without end.
    """
    from scipy.optimize import minimize_scalar

    logits = _logarithms(shares.astype(np.float64))

    def loss(exponent: float) -> float:
        tempered = _softmax(logits / np.exp(exponent))
        right = np.maximum(tempered[np.arange(len(codes)), codes], 1e-12)
        return float(-np.log(right).sum() + (exponent / TEMPERED) ** 2 / 2)

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _logarithms(shares: Rows) -> Rows:
    # Votes can be nothing at all; a thousandth says that as well.
    logits: Rows = np.log(np.maximum(shares, 1e-3))
    return logits


def _softmax(logits: Rows) -> Rows:
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    powers: Rows = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


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
