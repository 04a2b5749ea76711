"""What all heads share: the basis check, the bands, rows out of whatever comes, files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from nec.errors import HeadError
from nec.heads.card import card_text
from nec.heads.persistence import load_state, save_state
from nec.heads.rules import Rows
from nec.heads.vectors import Origin

FLOATS = (np.float64, np.float32)


class EmbeddingHead(BaseEstimator):  # type: ignore[misc]
    """Common part of all heads; not used by itself.

    A head keeps what it learned as plain arrays, and says how by two methods: `_learned` gives
    metadata and arrays of a fitted head, `_restore` takes them back.
    """

    basis_: str | None
    model_: str | None
    bands_: tuple[Any, ...] | None
    n_features_in_: int

    def _keep_origin(self, origin: Origin) -> None:
        self.basis_, self.model_, self.bands_ = origin.basis, origin.model, origin.bands

    def _check_origin(self, X: Any) -> None:
        """Refuse vectors of another basis, or of other bands of it."""
        Origin(self.basis_, self.model_, self.bands_).check(Origin.of(X), "the head was fitted on")

    def _learned(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        raise NotImplementedError

    def _restore(self, state: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        raise NotImplementedError

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

    def card(
        self,
        *,
        data: str | None = None,
        licence: str | None = None,
        scores: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the model card of the fitted head, in Markdown.

        Parameters
        ----------
        data : str, optional
            What it learned from: places, source, time.
        licence : str, optional
            Of the head; that of its labels may bind it.
        scores : mapping, optional
            Figures on data that it did not learn from, by name.
        """
        check_is_fitted(self)
        return card_text(self, data=data, licence=licence, scores=scores or {})

    def _is_scene(self, X: Any) -> bool:
        """Check origin and bands; tell whether `X` is to be mapped."""
        if isinstance(X, xr.Dataset):
            raise HeadError(
                "got a Dataset", "pass one of its arrays: ds.embedding or ds.scene_embedding"
            )
        self._check_origin(X)
        if not isinstance(X, xr.DataArray):
            return False
        if "band" not in X.dims:
            raise HeadError(f"the array has dimensions {X.dims} and no `band`", "name it: X.rename")
        self._check_bands(X)
        return self._maps(X)

    def _check_bands(self, X: xr.DataArray) -> None:
        if self._features(X.sizes["band"]) != self.n_features_in_:
            raise HeadError(
                f"the array has {X.sizes['band']} bands and the head was fitted on "
                f"{self.n_features_in_}",
                "take the same bands, or fit the head again",
            )

    def _features(self, bands: int) -> int:
        """Return how many numbers describe a sample of so many bands."""
        return bands

    def _maps(self, X: xr.DataArray) -> bool:
        return "sample" not in X.dims

    def _rows(self, X: Any) -> Any:
        return X

    def _checked(self, X: Any) -> Rows:
        if isinstance(X, xr.DataArray):
            return as_floats(self._rows(X))
        rows: Rows = validate_data(
            self, X, reset=False, dtype=FLOATS, ensure_all_finite="allow-nan"
        )
        return rows


def complete_rows(rows: Rows) -> NDArray[np.bool_]:
    """Which rows hold no NaN and no infinity."""
    return np.asarray(np.isfinite(rows).all(axis=1))


def as_floats(rows: Rows) -> Rows:
    """Bring rows to float64 where they are neither that nor float32."""
    return rows if rows.dtype in FLOATS else rows.astype(np.float64)


def count_of(values: Any) -> int:
    """Return how many rows, samples or labels there are."""
    shape = getattr(values, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else 1
    return len(values) if hasattr(values, "__len__") else len(np.asarray(values))


def along_samples(
    X: Any, values: NDArray[Any], name: str, more: dict[str, Any] | None = None
) -> Any:
    """Give what was found for samples their coordinates; values for rows stay as they are."""
    if not isinstance(X, xr.DataArray):
        return values
    kept = {key: coord for key, coord in X.coords.items() if set(coord.dims) <= {"sample"}}
    return xr.DataArray(
        values, dims=("sample", *(more or {})), coords={**kept, **(more or {})}, name=name
    )
