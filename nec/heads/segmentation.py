"""Segmentation: a label for every token, learned from maps or points."""

from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from nec.errors import HeadError
from nec.heads.classifier import EmbeddingClassifier, weight_of_codes
from nec.heads.estimator import check_basis
from nec.heads.rules import LinearRule, Rows, Rule
from nec.heads.vectors import Origin, labelled_rows, scene_pairs
from nec.sampling import without_time


class Segmenter(EmbeddingClassifier):
    """Label every token of a scene by its embedding: logistic regression.

    Parameters
    ----------
    C : float, default 1.0
        Inverse strength of the L2 penalty.
    class_weight : dict, "balanced" or None, default None
        As in scikit-learn's LogisticRegression.
    max_iter : int, default 1000
        Limit of the L-BFGS iterations.
    ignore_index : int, str or None, default -1
        The label that means "no label"; None where every value is one. NaN never is a label,
        nor is the nodata value of a label raster.

    Attributes
    ----------
    classes_ : numpy.ndarray
        The labels, sorted.
    basis_, model_ : str or None
        Basis hash and model id of the embeddings the head was fitted on.
    rule_ : Rule
        What was learned, as plain arrays.
    n_iter_ : int
        Iterations used.
    """

    n_iter_: int

    def __init__(
        self,
        *,
        C: float = 1.0,
        class_weight: Any = None,
        max_iter: int = 1000,
        ignore_index: Any = -1,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.ignore_index = ignore_index

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from labelled tokens.

        Parameters
        ----------
        X : xarray.DataArray, sequence of them, numpy.ndarray or table
            Embedding (band, y, x), possibly lazy: only chunks with labels are read and only
            labelled vectors are kept. Or (n, d) vectors.
        y : xarray.DataArray, numpy.ndarray or sequence of them
            Labels (y, x). With a CRS on both sides they are matched by coordinate: a token
            takes the majority of the label pixels whose centres lie in it (ties: the smallest
            label), or, where label pixels are larger, the one its centre lies in. Else
            by shape: that of the tokens, or an integer multiple of it. Or (n,) labels.

        Returns
        -------
        Segmenter
            Itself. Vectors with NaN are dropped, and their number is logged.

        Raises
        ------
        HeadError
            Labels that do not fit the embedding in shape, CRS or extent; a single class;
            everything missing; embeddings of several bases.
        """
        scenes = scene_pairs(X, y)
        if scenes is None:
            return self._learn(X, y, Origin.of(X))
        origins = [Origin.of(embedding) for embedding, _ in scenes]
        for origin in origins[1:]:
            check_basis(origins[0].basis, origin.basis)
        rows, labels = self._labelled(scenes)
        return self._learn(rows, labels, origins[0])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy over the labelled tokens.

        Parameters
        ----------
        X, y
            As for :meth:`fit`.
        sample_weight : array_like, optional
            (n,) weights, for (n, d) vectors only.

        Returns
        -------
        float
            Share of right labels among the tokens or rows that have a label and no NaN.
        """
        check_is_fitted(self)
        scenes = scene_pairs(X, y)
        if scenes is None:
            check_basis(self.basis_, Origin.of(X).basis)
            return self._accuracy(self._checked(X), np.asarray(y), sample_weight)
        if sample_weight is not None:
            raise HeadError("sample_weight goes with (n, d) vectors only", "leave it out")
        for embedding, _ in scenes:
            self._is_scene(embedding)
        return self._accuracy(*self._labelled(scenes))

    def _labelled(self, scenes: list[tuple[xr.DataArray, Any]]) -> tuple[Rows, NDArray[Any]]:
        parts = [
            labelled_rows(without_time(embedding), labels, ignore_index=self.ignore_index)
            for embedding, labels in scenes
        ]
        if len({rows.shape[1] for rows, _ in parts}) > 1:
            raise HeadError("the embeddings differ in their number of bands", "take the same bands")
        return (
            np.concatenate([rows for rows, _ in parts]),
            np.concatenate([labels for _, labels in parts]),
        )

    def _ignored(self) -> tuple[Any, ...]:
        return () if self.ignore_index is None else (self.ignore_index,)

    def _maps(self, X: xr.DataArray) -> bool:
        if "y" not in X.dims and "cell_y" not in X.dims:
            raise HeadError(f"the array has dimensions {X.dims}", "pass (band, y, x), or X.values")
        return True

    def _make_rule(self, rows: Rows, codes: NDArray[np.intp], classes: NDArray[Any]) -> Rule:
        rule, self.n_iter_ = LinearRule.fit(
            rows,
            codes,
            C=self.C,
            max_iter=self.max_iter,
            class_weight=weight_of_codes(self.class_weight, classes),
        )
        return rule

    def _rule_of(self, tensors: dict[str, NDArray[Any]]) -> Rule:
        return LinearRule.of(tensors, self.classes_.size, self.n_features_in_)
