"""What the classifying heads share: learning from rows, the basis check, prediction of rows."""

import logging
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from nec.errors import HeadError
from nec.heads.labels import is_label
from nec.heads.maps import class_map, probability_map
from nec.heads.persistence import load_state, save_state
from nec.heads.rules import Rows, Rule
from nec.heads.vectors import Origin, plain_labels

logger = logging.getLogger(__name__)

FLOATS = (np.float64, np.float32)


class EmbeddingClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Common part of :class:`SceneClassifier` and :class:`Segmenter`; not used by itself."""

    classes_: NDArray[Any]
    rule_: Rule
    basis_: str | None
    model_: str | None
    n_features_in_: int

    def _make_rule(self, rows: Rows, codes: NDArray[np.intp], classes: NDArray[Any]) -> Rule:
        raise NotImplementedError

    def _rule_of(self, tensors: dict[str, NDArray[Any]]) -> Rule:
        raise NotImplementedError

    def _ignored(self) -> tuple[Any, ...]:
        return ()

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
        return _along_samples(X, labels, "label")

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
        return _along_samples(X, shares, "probability", {"class": self.classes_})

    def save(self, path: str | Path) -> Path:
        """Write the fitted head to a safetensors file.

        Parameters
        ----------
        path : str or path
            The file; it appears when it is complete, and replaces one that is there.

        Returns
        -------
        pathlib.Path
            The file.
        """
        check_is_fitted(self)
        return save_state(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a head that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path
            The file.

        Raises
        ------
        HeadError
            No head, a damaged one, one of another class or of a later version.
        """
        return load_state(cls, path)

    def _learn(self, rows: Any, labels: Any, origin: Origin) -> Self:
        if labels is not None and _count(rows) != _count(labels):
            raise HeadError(
                f"{_count(rows)} vectors and {_count(labels)} labels",
                "pass one label for each vector",
            )
        labels = labels if labels is None else plain_labels(labels)
        rows, labels = validate_data(
            self, rows, labels, dtype=FLOATS, ensure_all_finite="allow-nan"
        )
        keep = _complete(rows)
        if not keep.any():
            raise HeadError(f"all {keep.size} vectors hold NaN", "choose an area that has data")
        if not keep.all():
            logger.warning("%d of %d vectors hold NaN: dropped", (~keep).sum(), keep.size)
        keep &= is_label(labels, self._ignored())
        rows, labels = rows[keep], labels[keep]
        if labels.size:
            check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(rows) < 2 or classes.size < 2:
            raise HeadError(
                f"{len(rows)} labelled vectors of {classes.size} class(es): "
                f"{classes.tolist()} (n_samples = {len(rows)})",
                "give two classes at least, with vectors that are not missing",
            )
        self.rule_ = self._make_rule(rows, codes, classes)
        self.classes_ = classes
        self.basis_, self.model_ = origin.basis, origin.model
        return self

    def _is_scene(self, X: Any) -> bool:
        """Check origin and bands; tell whether `X` is to be mapped."""
        if isinstance(X, xr.Dataset):
            raise HeadError(
                "got a Dataset", "pass one of its arrays: ds.embedding or ds.scene_embedding"
            )
        check_basis(self.basis_, Origin.of(X).basis)
        if not isinstance(X, xr.DataArray):
            return False
        if "band" not in X.dims:
            raise HeadError(f"the array has dimensions {X.dims} and no `band`", "name it: X.rename")
        if X.sizes["band"] != self.n_features_in_:
            raise HeadError(
                f"the array has {X.sizes['band']} bands and the head was fitted on "
                f"{self.n_features_in_}",
                "take the same bands, or fit the head again",
            )
        return self._maps(X)

    def _maps(self, X: xr.DataArray) -> bool:
        return "sample" not in X.dims

    def _rows(self, X: Any) -> Any:
        return X

    def _row_probabilities(self, X: Any) -> Rows:
        rows = self._checked(X)
        if not (complete := _complete(rows)).all():
            raise HeadError(
                f"{(~complete).sum()} of {len(rows)} vectors hold NaN, the first at "
                f"{int(np.argmin(complete))}, and have no label",
                "leave them out; in the map of a scene missing tokens are -1",
            )
        return self.rule_.probabilities(rows)

    def _checked(self, X: Any) -> Rows:
        if isinstance(X, xr.DataArray):
            return _floats(self._rows(X))
        rows: Rows = validate_data(
            self, X, reset=False, dtype=FLOATS, ensure_all_finite="allow-nan"
        )
        return rows

    def _accuracy(self, rows: Rows, labels: NDArray[Any], sample_weight: Any = None) -> float:
        """Share of right labels among the rows that have both a label and no NaN."""
        from sklearn.metrics import accuracy_score

        if len(rows) != len(labels):
            raise HeadError(
                f"{len(rows)} vectors and {len(labels)} labels", "pass one label for each vector"
            )
        keep = is_label(labels, self._ignored())
        complete = _complete(rows)
        if (lost := int((keep & ~complete).sum())) > 0:
            logger.warning("%d of %d labelled vectors hold NaN: not scored", lost, keep.sum())
        keep &= complete
        if not keep.any():
            raise HeadError("no vector has both a label and data", "choose an area that has data")
        found = self.classes_[self.rule_.probabilities(rows[keep]).argmax(axis=1)]
        weight = None if sample_weight is None else np.asarray(sample_weight)[keep]
        return float(accuracy_score(labels[keep], found, sample_weight=weight))


def check_basis(ours: str | None, theirs: str | None) -> None:
    """Refuse vectors of another basis; pass where either side does not say.

    Raises
    ------
    HeadError
        The two differ.
    """
    if ours is not None and theirs is not None and ours != theirs:
        raise HeadError(
            f"the embedding has basis {theirs} and the head was fitted on basis {ours}",
            "use embeddings of the same model, or fit the head again on these",
        )


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


def _complete(rows: Rows) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(rows).all(axis=1))


def _floats(rows: Rows) -> Rows:
    return rows if rows.dtype in FLOATS else rows.astype(np.float64)


def _count(values: Any) -> int:
    shape = getattr(values, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else 1
    return len(values) if hasattr(values, "__len__") else len(np.asarray(values))


def _along_samples(
    X: Any, values: NDArray[Any], name: str, more: dict[str, Any] | None = None
) -> Any:
    if not isinstance(X, xr.DataArray):
        return values
    kept = {key: coord for key, coord in X.coords.items() if set(coord.dims) <= {"sample"}}
    return xr.DataArray(
        values, dims=("sample", *(more or {})), coords={**kept, **(more or {})}, name=name
    )
