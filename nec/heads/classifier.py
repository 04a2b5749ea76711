"""What the classifying heads share: learning from rows, probabilities, accuracy."""

import logging
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from nec.errors import HeadError, TooFewLabelsError
from nec.heads.estimator import (
    FLOATS,
    EmbeddingHead,
    along_samples,
    complete_rows,
    count_of,
)
from nec.heads.labels import is_label
from nec.heads.maps import class_map, probability_map
from nec.heads.rules import Rows, Rule
from nec.heads.vectors import Origin, plain_labels

logger = logging.getLogger(__name__)


class EmbeddingClassifier(ClassifierMixin, EmbeddingHead):  # type: ignore[misc]
    """Common part of :class:`SceneClassifier` and :class:`Segmenter`; not used by itself."""

    classes_: NDArray[Any]
    counts_: list[int] | None
    rule_: Rule

    def _make_rule(self, rows: Rows, codes: NDArray[np.intp], classes: NDArray[Any]) -> Rule:
        raise NotImplementedError

    def _rule_of(self, tensors: dict[str, NDArray[Any]]) -> Rule:
        raise NotImplementedError

    def _ignored(self) -> tuple[Any, ...]:
        return ()

    def _learned(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        state = {
            "classes": self.classes_.tolist(),
            "classes_dtype": self.classes_.dtype.str,
            "counts": self.counts_,
            "n_iter": getattr(self, "n_iter_", None),
        }
        return state, self.rule_.tensors()

    def _restore(self, state: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        self.classes_ = np.array(state["classes"], dtype=np.dtype(state["classes_dtype"]))
        # Heads of earlier releases say neither.
        self.counts_ = state.get("counts")
        if state.get("n_iter") is not None:
            self.n_iter_ = int(state["n_iter"])
        self.rule_ = self._rule_of(tensors)

    def predict(self, X: Any) -> Any:
        """Give each vector its most probable class.

        Parameters
        ----------
        X : numpy.ndarray, table or xarray.DataArray
            (n, d) rows; samples (``sample, band`` and possibly a place); or a scene
            (``band, y, x`` or ``band, cell_y, cell_x``), possibly lazy.

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            Rows: (n,) labels. Samples: a DataArray (sample,) of labels. A scene: a DataArray
            without ``band``, lazy where `X` is, of int16 indices into ``classes_`` (CF
            ``flag_values`` and ``flag_meanings``), -1 where any band is NaN, with the
            coordinates and the CRS of `X`.

        Raises
        ------
        HeadError
            Another basis or number of bands; a row or sample with NaN, which has no label.
        """
        check_is_fitted(self)
        if self._is_scene(X):
            return class_map(self.rule_, self.classes_, X)
        labels = self.classes_[self._row_probabilities(X).argmax(axis=1)]
        return along_samples(X, labels, "label")

    def predict_proba(self, X: Any) -> Any:
        """Give each vector the probability of every class.

        Parameters
        ----------
        X : numpy.ndarray, table or xarray.DataArray
            As for :meth:`predict`.

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            Rows: (n, classes). Samples: a DataArray (sample, class). A scene: a DataArray with
            ``class`` in the place of ``band``, float32, NaN where any band is.

        Raises
        ------
        HeadError
            As for :meth:`predict`.
        """
        check_is_fitted(self)
        if self._is_scene(X):
            return probability_map(self.rule_, self.classes_, X)
        shares = self._row_probabilities(X)
        return along_samples(X, shares, "probability", {"class": self.classes_})

    def _learn(self, rows: Any, labels: Any, origin: Origin) -> Self:
        if labels is not None and count_of(rows) != count_of(labels):
            raise HeadError(
                f"{count_of(rows)} vectors and {count_of(labels)} labels",
                "pass one label for each vector",
            )
        labels = labels if labels is None else plain_labels(labels)
        # scikit-learn refuses NaN among labels, which says here that there is none.
        known = None if labels is None or labels.ndim != 1 else is_label(labels, ())
        if known is not None and not known.all() and known.any():
            filled = labels.copy()
            filled[~known] = labels[known][0]
            labels = filled
        rows, labels = validate_data(
            self, rows, labels, dtype=FLOATS, ensure_all_finite="allow-nan"
        )
        keep = complete_rows(rows)
        if not keep.any():
            raise TooFewLabelsError(
                f"all {keep.size} vectors hold NaN", "choose an area that has data"
            )
        if not keep.all():
            logger.warning("%d of %d vectors hold NaN: dropped", (~keep).sum(), keep.size)
        keep &= is_label(labels, self._ignored())
        if known is not None:
            keep &= known
        rows, labels = rows[keep], labels[keep]
        if labels.size:
            check_classes(labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(rows) < 2 or classes.size < 2:
            raise TooFewLabelsError(
                f"{len(rows)} labelled vectors of {classes.size} class(es): "
                f"{classes.tolist()} (n_samples = {len(rows)})",
                "give two classes at least, with vectors that are not missing",
            )
        self.rule_ = self._make_rule(rows, codes, classes)
        self.classes_, self.counts_ = classes, np.bincount(codes).tolist()
        self._keep_origin(origin)
        return self

    def _row_probabilities(self, X: Any) -> Rows:
        rows = self._checked(X)
        if not (complete := complete_rows(rows)).all():
            raise HeadError(
                f"{(~complete).sum()} of {len(rows)} vectors hold NaN, the first at "
                f"{int(np.argmin(complete))}, and have no label",
                "leave them out; in the map of a scene missing tokens are -1",
            )
        return self.rule_.probabilities(rows)

    def _accuracy(self, rows: Rows, labels: NDArray[Any], sample_weight: Any = None) -> float:
        """Share of right labels among the rows that have both a label and no NaN."""
        from sklearn.metrics import accuracy_score

        if len(rows) != len(labels):
            raise HeadError(
                f"{len(rows)} vectors and {len(labels)} labels", "pass one label for each vector"
            )
        keep = is_label(labels, self._ignored())
        complete = complete_rows(rows)
        if (lost := int((keep & ~complete).sum())) > 0:
            logger.warning("%d of %d labelled vectors hold NaN: not scored", lost, keep.sum())
        keep &= complete
        if not keep.any():
            raise HeadError("no vector has both a label and data", "choose an area that has data")
        found = self.classes_[self.rule_.probabilities(rows[keep]).argmax(axis=1)]
        weight = None if sample_weight is None else np.asarray(sample_weight)[keep]
        return float(accuracy_score(labels[keep], found, sample_weight=weight))


def check_classes(labels: NDArray[Any]) -> None:
    """Refuse labels (n,) that are quantities.

    Raises
    ------
    HeadError
        scikit-learn takes them for no classes.
    """
    try:
        check_classification_targets(labels)
    except ValueError as error:
        odd = labels[labels % 1 != 0] if labels.dtype.kind == "f" else labels
        raise HeadError(
            f"labels such as {odd[0]} are no classes ({error})",
            "for quantities take BiomassRegressor: nec train --task biomass",
        ) from error


def weight_of_codes(class_weight: Any, classes: NDArray[Any]) -> Any:
    """Turn weights by label into weights by index into `classes`; other settings pass.

    Raises
    ------
    HeadError
        A label is none of the classes.
    """
    if not isinstance(class_weight, dict):
        return class_weight
    codes = {label: code for code, label in enumerate(classes.tolist())}
    if unknown := [label for label in class_weight if label not in codes]:
        raise HeadError(
            f"class_weight names {unknown[0]!r}, which is not among the labels {list(codes)}",
            "give weights by label",
        )
    return {codes[label]: weight for label, weight in class_weight.items()}
