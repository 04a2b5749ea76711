"""How far embeddings lie from those that a head was trained on."""

from functools import partial
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from nec.errors import HeadError, TooFewLabelsError
from nec.heads.estimator import FLOATS, EmbeddingHead, complete_rows, count_of
from nec.heads.maps import georeferenced
from nec.heads.rules import Rows
from nec.heads.vectors import Origin
from nec.sampling import without_time

BATCH = 1 << 13


class DissimilarityIndex(EmbeddingHead):
    """Distance of an embedding to its nearest training embedding, over their mean distance.

    The dissimilarity index and the threshold of the area of applicability of Meyer and Pebesma
    2021 (doi:10.1111/2041-210X.13650), without weights of features: a head's predictions where
    the index is above `threshold_` are extrapolations.

    Parameters
    ----------
    max_vectors : int, default 2000
        Training vectors that are kept, at random of more.
    folds : int, default 5
        Parts of the training vectors; the threshold comes from each vector's distance to other
        parts.
    random_state : int, default 0

    Attributes
    ----------
    vectors_ : numpy.ndarray
        (n, d) float32 training vectors.
    scale_ : float
        Their mean distance.
    threshold_ : float
        Upper whisker (third quartile and 1.5 interquartile ranges) of the training vectors' own
        indices across folds.
    basis_, model_ : str or None
        Of the embeddings.
    """

    vectors_: NDArray[np.float32]
    scale_: float
    threshold_: float

    def __init__(self, *, max_vectors: int = 2000, folds: int = 5, random_state: int = 0) -> None:
        self.max_vectors = max_vectors
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> Self:
        """Remember training vectors.

        Parameters
        ----------
        X : numpy.ndarray or table
            (n, d); those with NaN are left out.
        y : ignored
        groups : array_like, optional
            (n,) place of each: distances across places make the threshold. Without, vectors are
            dealt into folds by chance, and the threshold is too strict where neighbours are alike.

        Raises
        ------
        HeadError
            Fewer than two vectors, all of them equal, or another number of groups.
        """
        if isinstance(X, xr.DataArray):  # of two dimensions, whose order scikit-learn cannot know
            X = X.transpose(..., "band") if "band" in X.dims else X
        rows = validate_data(self, X, dtype=FLOATS, ensure_all_finite="allow-nan")
        if groups is not None and count_of(groups) != len(rows):
            raise HeadError(f"{len(rows)} vectors and {count_of(groups)} groups", "pass as many")
        keep = np.flatnonzero(complete_rows(rows))
        rng = np.random.default_rng(self.random_state)
        keep = np.sort(rng.permutation(keep)[: self.max_vectors])
        rows = rows[keep].astype(np.float32)
        names = np.arange(len(rows)) if groups is None else np.asarray(groups)[keep]
        names = np.unique(names, return_inverse=True)[1].ravel()
        count = int(names.max()) + 1 if len(rows) else 0
        folds = min(self.folds, count)
        if folds < 2:
            raise TooFewLabelsError(
                f"{len(rows)} vectors in {count} place(s) (n_samples = {len(rows)})",
                "give two at least, in different places",
            )
        fold = (rng.permutation(count) % folds)[names]
        distances = _distances(rows, rows)
        self.scale_ = float(distances.sum() / (len(rows) * (len(rows) - 1)))
        if not self.scale_ > 0:
            raise HeadError("all training vectors are the same", "give vectors that vary")
        across = np.where(fold[:, None] == fold[None, :], np.inf, distances).min(axis=1)
        low, high = np.quantile(across / self.scale_, (0.25, 0.75))
        self.threshold_ = float(high + 1.5 * (high - low))
        self.vectors_ = rows
        self._keep_origin(Origin.of(X))
        return self

    def predict(self, X: Any) -> Any:
        """Return the index of rows (n, d), or of each token of a scene (band, y, x), lazily.

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            (n,), or (y, x) float32 with the threshold among its attributes; NaN where missing.

        Raises
        ------
        HeadError
            Another basis or number of bands.
        """
        check_is_fitted(self)
        if not self._is_scene(X):
            rows = self._checked(X)
            found = np.full(len(rows), np.nan, np.float32)
            keep = complete_rows(rows)
            found[keep] = _index(rows[keep], self.vectors_, self.scale_)
            return found
        scene = without_time(X)
        whole = scene.chunk({"band": -1}) if scene.chunks is not None else scene
        mapped: xr.DataArray = xr.apply_ufunc(
            # Of this fit, whatever the index learns later.
            partial(_block, vectors=self.vectors_, scale=self.scale_),
            whole,
            input_core_dims=[["band"]],
            dask="parallelized",
            output_dtypes=[np.float32],
        )
        mapped.attrs = {
            "long_name": "dissimilarity to the training data",
            "units": "1",
            "threshold": self.threshold_,
        }
        return georeferenced(mapped.rename("dissimilarity"), scene)

    def _maps(self, X: xr.DataArray) -> bool:
        if "sample" in X.dims:
            raise HeadError(f"the array has dimensions {X.dims}", "pass X.values, or a scene")
        return True

    def _learned(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"scale": self.scale_, "threshold": self.threshold_}, {"vectors": self.vectors_}

    def _restore(self, state: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        if tensors["vectors"].ndim != 2 or tensors["vectors"].shape[1] != self.n_features_in_:
            raise HeadError("the stored vectors do not fit the stored bands", "save it again")
        self.vectors_ = tensors["vectors"]
        self.scale_, self.threshold_ = float(state["scale"]), float(state["threshold"])


def _distances(one: Rows, other: Rows) -> NDArray[np.float64]:
    from sklearn.metrics import pairwise_distances

    return np.asarray(pairwise_distances(one, other))


def _block(block: Rows, *, vectors: Rows, scale: float) -> NDArray[np.float32]:
    rows = block.reshape(-1, block.shape[-1])
    found = np.full(len(rows), np.nan, np.float32)
    keep = np.flatnonzero(complete_rows(rows))
    for at in range(0, keep.size, BATCH):
        part = keep[at : at + BATCH]
        found[part] = _index(rows[part], vectors, scale)
    return found.reshape(block.shape[:-1])


def _index(rows: Rows, vectors: Rows, scale: float) -> NDArray[np.float32]:
    near = _distances(rows, vectors).min(axis=1, initial=np.inf)
    return np.asarray(near / scale, dtype=np.float32)
