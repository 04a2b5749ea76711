"""Scene classification: one label for an image, or for each cell or token of a scene."""

from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from nec.errors import HeadError
from nec.heads.classifier import EmbeddingClassifier, weight_of_codes
from nec.heads.estimator import check_basis
from nec.heads.rules import LinearRule, NeighbourRule, Rows, Rule
from nec.heads.vectors import Origin, sample_labels, sample_rows


class SceneClassifier(EmbeddingClassifier):
    """Classify images by their embeddings, and map scenes with what was learned.

    Parameters
    ----------
    method : {"linear", "knn"}, default "linear"
        Logistic regression over standardised bands, or a vote of the nearest vectors.
    C : float, default 1.0
        Inverse strength of the L2 penalty (linear).
    class_weight : dict, "balanced" or None, default None
        As in scikit-learn's LogisticRegression (linear).
    max_iter : int, default 1000
        Limit of the L-BFGS iterations (linear).
    n_neighbors : int, default 10
        How many vectors vote (knn).
    metric : {"cosine", "euclidean"}, default "cosine"
        What is near (knn). Bands are not standardised: the basis is orthonormal, so both
        metrics are those of the encoder's features.

    Attributes
    ----------
    classes_ : numpy.ndarray
        The labels, sorted.
    basis_, model_ : str or None
        Basis hash and model id of the embeddings the head was fitted on.
    rule_ : Rule
        What was learned, as plain arrays.
    n_iter_ : int
        Iterations used (linear).
    """

    n_iter_: int

    def __init__(
        self,
        *,
        method: str = "linear",
        C: float = 1.0,
        class_weight: Any = None,
        max_iter: int = 1000,
        n_neighbors: int = 10,
        metric: str = "cosine",
    ) -> None:
        self.method = method
        self.C = C
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.n_neighbors = n_neighbors
        self.metric = metric

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from labelled samples.

        Parameters
        ----------
        X : numpy.ndarray, table or xarray.DataArray
            (n, d); or (sample, band), (sample, band, cell_y, cell_x) or (sample, band, y, x),
            of which the mean over the place is taken (missing cells and tokens left out).
        y : array_like or xarray.DataArray
            (n,) labels, numbers or strings.

        Returns
        -------
        SceneClassifier
            Itself. Vectors with NaN are dropped, and their number is logged.

        Raises
        ------
        HeadError
            Unknown method or metric, other dimensions, another number of labels, a single
            class, everything missing, or fewer vectors than neighbours.
        """
        for name, allowed in (("method", ("linear", "knn")), ("metric", ("cosine", "euclidean"))):
            if getattr(self, name) not in allowed:
                raise HeadError(
                    f"{name}={getattr(self, name)!r} is unknown", f"use one of {', '.join(allowed)}"
                )
        if isinstance(X, xr.Dataset):
            raise HeadError("got a Dataset", "pass one of its arrays: ds.scene_embedding")
        if isinstance(X, xr.DataArray):
            return self._learn(sample_rows(X), sample_labels(X, y), Origin.of(X))
        return self._learn(X, np.asarray(y) if isinstance(y, xr.DataArray) else y, Origin.of(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy on labelled samples.

        Parameters
        ----------
        X, y
            As for :meth:`fit`.
        sample_weight : array_like, optional
            (n,) weights.

        Returns
        -------
        float
            Share of right labels among the vectors without NaN; the others are counted in
            the log.
        """
        check_is_fitted(self)
        check_basis(self.basis_, Origin.of(X).basis)
        labels = sample_labels(X, y) if isinstance(X, xr.DataArray) else np.asarray(y)
        return self._accuracy(self._checked(X), labels, sample_weight)

    def _rows(self, X: Any) -> Any:
        return sample_rows(X) if isinstance(X, xr.DataArray) else X

    def _make_rule(self, rows: Rows, codes: NDArray[np.intp], classes: NDArray[Any]) -> Rule:
        if self.method == "knn":
            if len(rows) < self.n_neighbors:
                raise HeadError(
                    f"n_neighbors={self.n_neighbors} and n_samples = {len(rows)}",
                    "lower n_neighbors or give more labelled vectors",
                )
            return NeighbourRule.fit(rows, codes, n_neighbors=self.n_neighbors, metric=self.metric)
        rule, self.n_iter_ = LinearRule.fit(
            rows,
            codes,
            C=self.C,
            max_iter=self.max_iter,
            class_weight=weight_of_codes(self.class_weight, classes),
        )
        return rule

    def _rule_of(self, tensors: dict[str, NDArray[Any]]) -> Rule:
        if self.method == "knn":
            return NeighbourRule.of(
                tensors,
                self.classes_.size,
                self.n_features_in_,
                n_neighbors=self.n_neighbors,
                metric=self.metric,
            )
        return LinearRule.of(tensors, self.classes_.size, self.n_features_in_)
