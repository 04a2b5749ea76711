"""Scene classification: one label for an image, or for each cell or token of a scene."""

from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from nec.errors import HeadError, TooFewLabelsError
from nec.heads.classifier import EmbeddingClassifier, weight_of_codes
from nec.heads.estimator import along_samples
from nec.heads.pooling import POOLINGS
from nec.heads.rules import (
    LinearRule,
    NeighbourRule,
    NetworkRule,
    Rows,
    Rule,
    TemperedRule,
    fitted_temperature,
)
from nec.heads.vectors import Origin, plain_labels, sample_labels, sample_rows


class SceneClassifier(EmbeddingClassifier):
    """Classify images by their embeddings, and map scenes with what was learned.

    Parameters
    ----------
    method : {"linear", "knn", "mlp"}, default "linear"
        Logistic regression over standardised bands, a vote of the nearest vectors, or a
        multilayer perceptron over standardised bands.
    C : float, default 1.0
        Inverse strength of the L2 penalty (linear).
    class_weight : dict, "balanced" or None, default None
        As in scikit-learn's LogisticRegression (linear, mlp).
    max_iter : int, default 1000
        Limit of the L-BFGS iterations (linear) or the epochs of Adam (mlp).
    n_neighbors : int, default 10
        How many vectors vote (knn).
    metric : {"cosine", "euclidean"}, default "cosine"
        What is near (knn). The basis is orthonormal, so both metrics are those of the encoder's
        features while bands are not standardised.
    standardize : bool, default False
        Bring bands to zero mean and unit variance first (knn; the others always do).
    hidden : tuple of int, default (64,)
        Widths of the hidden layers (mlp).
    alpha : float, default 1e-3
        Strength of the L2 penalty (mlp).
    pooling : {"mean", "mean_roughness", "mean_variogram"}, default "mean"
        What an image is described by where its tokens are given (sample, band, y, x): their
        mean; or mean and how much neighbours differ, which tells more, twice as many numbers
        (:func:`nec.heads.pooling.mean_and_roughness`); or mean and how bands differ together
        between neighbours, which tells most where labels are thousands, d (d + 3) / 2 numbers
        (:func:`nec.heads.pooling.mean_and_variogram`). A head of the latter two maps no scenes.
    calibrate : bool, default False
        Scale probabilities by a temperature fitted to held-out fifths of the training data.
    random_state : int, default 0
        Of the perceptron's start and of the fifths.

    Attributes
    ----------
    classes_ : numpy.ndarray
        The labels, sorted.
    counts_ : list of int
        Vectors of each class that were learned from.
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
        standardize: bool = False,
        hidden: tuple[int, ...] = (64,),
        alpha: float = 1e-3,
        pooling: str = "mean",
        calibrate: bool = False,
        random_state: int = 0,
    ) -> None:
        self.method = method
        self.C = C
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.standardize = standardize
        self.hidden = hidden
        self.alpha = alpha
        self.pooling = pooling
        self.calibrate = calibrate
        self.random_state = random_state

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
        for name, allowed in (
            ("method", ("linear", "knn", "mlp")),
            ("metric", ("cosine", "euclidean")),
            ("pooling", ("mean", *POOLINGS)),
        ):
            if getattr(self, name) not in allowed:
                raise HeadError(
                    f"{name}={getattr(self, name)!r} is unknown", f"use one of {', '.join(allowed)}"
                )
        if isinstance(X, xr.Dataset):
            raise HeadError("got a Dataset", "pass one of its arrays: ds.scene_embedding")
        if isinstance(X, xr.DataArray):
            return self._learn(self._rows(X), sample_labels(X, y), Origin.of(X))
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
        self._check_origin(X)
        labels = sample_labels(X, y) if isinstance(X, xr.DataArray) else plain_labels(y)
        return self._accuracy(self._checked(X), labels, sample_weight)

    def _rows(self, X: Any) -> Any:
        if not isinstance(X, xr.DataArray):
            return X
        return sample_rows(X, pooling=self.pooling)

    def _check_bands(self, X: xr.DataArray) -> None:
        described = POOLINGS.get(self.pooling)
        if described and "sample" not in X.dims:
            raise HeadError(
                f"the head was fitted on {described.told} of images, and tokens have none",
                'to map scenes fit a head with pooling="mean"',
            )
        super()._check_bands(X)

    def _features(self, bands: int) -> int:
        described = POOLINGS.get(self.pooling)
        return described.size(bands) if described else bands

    def predict_top_k(self, X: Any, k: int = 3) -> Any:
        """Give each vector its `k` most probable classes, the best first.

        Parameters
        ----------
        X : numpy.ndarray, table or xarray.DataArray
            (n, d) rows or samples.
        k : int, default 3

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            Rows: (n, k) labels. Samples: (sample, rank).

        Raises
        ------
        HeadError
            As for :meth:`predict`; `k` is no number of classes; `X` is a scene.
        """
        check_is_fitted(self)
        if not 1 <= k <= self.classes_.size:
            raise HeadError(f"k={k} of {self.classes_.size} classes", "ask for some of them")
        if self._is_scene(X):
            raise HeadError("top-k goes with rows and samples", "map a scene by predict_proba")
        order = np.argsort(-self._row_probabilities(X), axis=1, kind="stable")[:, :k]
        return along_samples(X, self.classes_[order], "label", {"rank": np.arange(1, k + 1)})

    def _make_rule(self, rows: Rows, codes: NDArray[np.intp], classes: NDArray[Any]) -> Rule:
        rule = self._plain_rule(rows, codes, classes)
        if not self.calibrate:
            return rule
        from sklearn.model_selection import StratifiedKFold

        folds = int(min(5, np.bincount(codes).min()))
        if folds < 2:
            raise TooFewLabelsError(
                "calibrate=True needs two vectors of every class", "give more, or leave it out"
            )
        used = getattr(self, "n_iter_", None)
        shares = np.empty((len(codes), classes.size))
        splitter = StratifiedKFold(folds, shuffle=True, random_state=self.random_state)
        for train, test in splitter.split(rows, codes):
            part = self._plain_rule(rows[train], codes[train], classes)
            shares[test] = part.probabilities(rows[test])
        if used is not None:
            self.n_iter_ = used
        return TemperedRule(rule, fitted_temperature(shares, codes))

    def _plain_rule(self, rows: Rows, codes: NDArray[np.intp], classes: NDArray[Any]) -> Rule:
        if self.method == "knn":
            if len(rows) < self.n_neighbors:
                raise TooFewLabelsError(
                    f"n_neighbors={self.n_neighbors} and n_samples = {len(rows)}",
                    "lower n_neighbors or give more labelled vectors",
                )
            return NeighbourRule.fit(
                rows,
                codes,
                n_neighbors=self.n_neighbors,
                metric=self.metric,
                standardize=self.standardize,
            )
        weight = weight_of_codes(self.class_weight, classes)
        rule: Rule
        if self.method == "mlp":
            rule, self.n_iter_ = NetworkRule.fit(
                rows,
                codes,
                hidden=tuple(self.hidden),
                alpha=self.alpha,
                max_iter=self.max_iter,
                class_weight=weight,
                seed=self.random_state,
            )
        else:
            rule, self.n_iter_ = LinearRule.fit(
                rows, codes, C=self.C, max_iter=self.max_iter, class_weight=weight
            )
        return rule

    def _rule_of(self, tensors: dict[str, NDArray[Any]]) -> Rule:
        tensors = dict(tensors)
        temperature = tensors.pop("temperature", None)
        count, features = self.classes_.size, self.n_features_in_
        rule: Rule
        if self.method == "knn":
            rule = NeighbourRule.of(
                tensors,
                count,
                features,
                n_neighbors=self.n_neighbors,
                metric=self.metric,
                standardize=self.standardize,
            )
        elif self.method == "mlp":
            rule = NetworkRule.of(tensors, count, features)
        else:
            rule = LinearRule.of(tensors, count, features)
        return rule if temperature is None else TemperedRule(rule, float(temperature[0]))
