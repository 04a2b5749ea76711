"""Biomass, or another quantity of the ground, from embeddings and sparse measurements."""

from functools import partial
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from nec.errors import HeadError, TooFewLabelsError
from nec.heads.cross_fit import cross_fitted
from nec.heads.estimator import FLOATS, EmbeddingHead, complete_rows, count_of
from nec.heads.labelled import LabelledScene, RowParts, SceneParts
from nec.heads.maps import georeferenced
from nec.heads.ridge import ALPHAS
from nec.heads.rules import Rows
from nec.heads.targets import TRANSFORMS, Residuals, expectation, inverse, upper_bound
from nec.heads.vectors import Origin, scene_pairs
from nec.heads.windows import Blocks, apply_windows, project, read_window, shifted_sum
from nec.sampling import without_time

Floats = NDArray[np.float64]


class BiomassRegressor(RegressorMixin, EmbeddingHead):  # type: ignore[misc]
    """Map a quantity by one convolution over frozen embeddings, learned from sparse labels.

    The convolution is a weighted ridge regression on each labelled token's neighbourhood, solved
    exactly from sums that are taken chunk by chunk: no label, no contribution, and no scene has
    to fit in memory. Penalty and prediction interval come from spatial blocks that the
    coefficients they are judged by have not seen. After the frozen-encoder regression of
    Muszynski et al. 2024 (arXiv:2406.19888), with a smaller head.

    Parameters
    ----------
    kernel_size : int, default 3
        Edge of the convolution in tokens, odd. Rows (n, d) have no neighbours: of them it is 1.
    target_transform : {"sqrt", "log", "none"}, default "sqrt"
        Scale of the regression; predictions come back as means, not medians (smearing).
    alpha : "auto" or float, default "auto"
        Ridge penalty relative to the mean eigenvalue of the features' correlation matrix; chosen
        by the mean squared error of the held-out folds where "auto".
    se_floor : float, default 10.0
        Smallest standard error that is believed, in units of the label. A label counts
        (floor / max(error, floor))**2 times.
    folds : int, default 5
        Parts of the labels that are held out in turn.
    block_size : int, default 32
        Edge of the spatial blocks that folds consist of, tokens. Smaller where the labels lie in
        fewer blocks than there are folds.
    units : str, default "Mg/ha"
        Of the labels; written into maps.
    random_state : int, default 0
        Seed of the folds.

    Attributes
    ----------
    weights_ : numpy.ndarray
        (kernel, kernel, band) float64.
    intercept_, alpha_ : float
        Offset on the scale of the regression, and the penalty that was used.
    residuals_ : Residuals
        What held-out predictions missed, on that scale, every measurement alike.
    smearing_ : float
        What brings predictions back as means.
    held_out_rmse_ : float
        Root mean square error of the held-out predictions, weighted, in `units`: to compare
        settings by.
    n_labels_ : int
        Labelled vectors used.
    basis_, model_ : str or None
        Basis hash and model id of the embeddings the head was fitted on.

    Notes
    -----
    Prediction intervals are those of cross-conformal prediction (Vovk 2015): residuals of
    held-out blocks around a fit to all of them. For places that are exchangeable with the blocks
    they cover about as often as asked; far away, or in another kind of forest, they do not.
    """

    weights_: Floats
    intercept_: float
    alpha_: float
    residuals_: Residuals
    smearing_: float
    held_out_rmse_: float
    n_labels_: int

    def __init__(
        self,
        *,
        kernel_size: int = 3,
        target_transform: str = "sqrt",
        alpha: Any = "auto",
        se_floor: float = 10.0,
        folds: int = 5,
        block_size: int = 32,
        units: str = "Mg/ha",
        random_state: int = 0,
    ) -> None:
        self.kernel_size = kernel_size
        self.target_transform = target_transform
        self.alpha = alpha
        self.se_floor = se_floor
        self.folds = folds
        self.block_size = block_size
        self.units = units
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that targets are not negative."""
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        # One convolution is linear: some of scikit-learn's made data is not
        tags.regressor_tags.poor_score = True
        return tags

    @property
    def n_parameters_(self) -> int:
        """Trained parameters."""
        check_is_fitted(self)
        return int(self.weights_.size) + 1

    def fit(self, X: Any, y: Any, *, standard_error: Any = None, groups: Any = None) -> Self:
        """Learn from sparse measurements.

        Parameters
        ----------
        X : xarray.DataArray, sequence of them, numpy.ndarray or table
            Embedding (band, y, x), possibly lazy: it is read by windows, chunks without labels
            not at all. Or (n, d) vectors, as `nec.sample` gives them: rows of one index of a
            table are one measurement, at several times.
        y : xarray.DataArray, numpy.ndarray or sequence of them
            Labels (y, x), NaN where nothing was measured; with a CRS on both sides matched by
            coordinate (the mean of the label pixels whose centres lie in a token; or, where label
            pixels are larger, that which the token's centre lies in), else by shape. Or (n,).
        standard_error : like `y`, optional
            Of the labels, in their units; NaN and 0 count as `se_floor`.
        groups : array_like, optional
            (n,) place of each row, for rows only: rows of one place are held out together.
            `nec.evaluate.spatial_blocks` makes them of coordinates.

        Returns
        -------
        BiomassRegressor
            Itself. Tokens with NaN are left out, and their number is logged.

        Raises
        ------
        HeadError
            A parameter out of range, labels that do not fit, negative or infinite ones, fewer
            than two, everything missing, embeddings of several bases.
        """
        self._check_parameters()
        scenes = scene_pairs(X, y)
        if scenes is None:
            kernel, origin = 1, Origin.of(X)
            parts: Any = self._row_parts(X, y, standard_error, groups)
        else:
            if groups is not None:
                raise HeadError("groups= goes with (n, d) vectors", "scenes have block_size=")
            errors = standard_error
            if not isinstance(standard_error, list | tuple):
                errors = [standard_error] * len(scenes)
            if len(errors) != len(scenes):
                raise HeadError(
                    f"{len(errors)} standard errors for {len(scenes)} embeddings",
                    "pass one for each, or one for all",
                )
            origin = Origin.common([Origin.of(embedding) for embedding, _ in scenes])
            kernel = self.kernel_size
            labelled = [
                LabelledScene.of(without_time(embedding), labels, error)
                for (embedding, labels), error in zip(scenes, errors, strict=True)
            ]
            if len({scene.embedding.sizes["band"] for scene in labelled}) > 1:
                raise HeadError("the embeddings differ in their bands", "take the same bands")
            self.n_features_in_ = labelled[0].embedding.sizes["band"]
            parts = SceneParts(
                labelled,
                kernel=kernel,
                folds=self.folds,
                block=self.block_size,
                seed=self.random_state,
            )
        self._solve(parts, kernel)
        self._keep_origin(origin)
        return self

    def predict(self, X: Any) -> Any:
        """Predict the quantity.

        Parameters
        ----------
        X : xarray.DataArray, numpy.ndarray or table
            A scene (band, y, x), possibly lazy; or (n, d) rows, which have no neighbours: the
            token itself stands for them.

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            Rows: (n,). A scene: (y, x) float32 in `units`, lazy where `X` is, NaN where a token is
            missing, with the coordinates and the CRS of `X`. Never negative.

        Raises
        ------
        HeadError
            Another basis or number of bands; a row with NaN.
        """
        check_is_fitted(self)
        means = partial(expectation, self.target_transform, smearing=self.smearing_)
        return self._mapped(X, means, (), np.float32)

    def predict_interval(self, X: Any, *, coverage: float = 0.9) -> Any:
        """Predict between which two values a measurement falls.

        Parameters
        ----------
        X
            As for :meth:`predict`.
        coverage : float, default 0.9
            Share of measurements that shall fall between, where places and standard errors are
            exchangeable with those that were learned from. The errors of the measurements are
            part of the width.

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            Rows: (n, 2). A scene: (bound, y, x) float32, ``bound`` being lower and upper. The
            upper bound is infinite where there are too few labels for this coverage.

        Raises
        ------
        HeadError
            As for :meth:`predict`; `coverage` is not between 0 and 1.
        """
        if not 0 < coverage < 1:
            raise HeadError(f"coverage={coverage} is no share", "give one between 0 and 1")
        check_is_fitted(self)
        low, high = self.residuals_.band(coverage)
        transform = self.target_transform

        def bounds(values: Floats) -> Floats:
            pair = [
                inverse(transform, values + low),
                upper_bound(transform, values + high),
            ]
            pair = [np.where(np.isnan(values), np.nan, bound) for bound in pair]
            return np.stack(pair)

        found = self._mapped(X, bounds, (2,), np.float32)
        if isinstance(found, xr.DataArray):
            return found.assign_attrs(coverage=coverage)
        return found.T

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination (R2) over what is labelled.

        Parameters
        ----------
        X, y
            As for :meth:`fit`.
        sample_weight : array_like, optional
            (n,) weights, for rows only.

        Returns
        -------
        float
            Over what has a label and no NaN.

        Raises
        ------
        HeadError
            Nothing has both; another basis or number of bands.
        """
        from sklearn.metrics import r2_score

        check_is_fitted(self)
        scenes = scene_pairs(X, y)
        if scenes is None:
            return self._row_score(X, y, sample_weight)
        if sample_weight is not None:
            raise HeadError("sample_weight goes with (n, d) vectors only", "leave it out")
        measured, found = [], []
        margin = len(self.weights_) // 2
        for embedding, labels in scenes:
            self._is_scene(embedding)
            scene = LabelledScene.of(without_time(embedding), labels, None)
            for rows, columns, values in scene.windows():
                predicted = self._means(
                    self._regressed(read_window(scene.embedding, rows, columns, margin))
                )
                keep = np.isfinite(values) & np.isfinite(predicted)
                measured.append(values[keep])
                found.append(predicted[keep])
        if not measured or not np.concatenate(measured).size:
            raise HeadError("no token has both a label and data", "choose an area that has data")
        return float(r2_score(np.concatenate(measured), np.concatenate(found)))

    def _row_score(self, X: Any, y: Any, sample_weight: Any) -> float:
        from sklearn.metrics import r2_score

        self._check_origin(X)
        rows, values = self._checked(X), np.asarray(y, dtype=np.float64)
        if len(rows) != len(values):
            raise HeadError(f"{len(rows)} vectors and {len(values)} labels", "pass one for each")
        keep = complete_rows(rows) & np.isfinite(values)
        if not keep.any():
            raise HeadError("no vector has both a label and data", "NaN is no label")
        found = self._means(self._alone(rows[keep]))
        weight = None if sample_weight is None else np.asarray(sample_weight)[keep]
        return float(r2_score(values[keep], found, sample_weight=weight))

    def _learned(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        state = {
            "alpha": self.alpha_,
            "held_out_rmse": self.held_out_rmse_,
            "n_labels": self.n_labels_,
            "n_residuals": self.residuals_.count,
            "smearing": self.smearing_,
        }
        return state, {
            "weights": self.weights_,
            "intercept": np.array([self.intercept_]),
            "residuals": self.residuals_.quantiles,
        }

    def _restore(self, state: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        weights, residuals = tensors["weights"], tensors["residuals"]
        kernel = weights.shape[0]
        if weights.shape != (kernel, kernel, self.n_features_in_) or residuals.ndim != 1:
            raise HeadError(
                f"the stored convolution has shape {weights.shape} for {self.n_features_in_} bands",
                "save the head again",
            )
        self.weights_, self.intercept_ = weights, float(tensors["intercept"][0])
        self.residuals_ = Residuals(residuals, float(state["n_residuals"]))
        # Heads of earlier releases say it by their residuals.
        smearing = state.get("smearing", self.residuals_.smearing(self.target_transform))
        self.smearing_ = float(smearing)
        self.alpha_, self.n_labels_ = float(state["alpha"]), int(state["n_labels"])
        self.held_out_rmse_ = float(state["held_out_rmse"])

    def _maps(self, X: xr.DataArray) -> bool:
        if "sample" in X.dims or not {"y", "x"} <= set(X.dims):
            raise HeadError(f"the array has dimensions {X.dims}", "pass (band, y, x), or X.values")
        return True

    def _check_parameters(self) -> None:
        kernel = self.kernel_size
        if not (isinstance(kernel, int | np.integer) and kernel > 0 and kernel % 2):
            raise HeadError(f"kernel_size={kernel!r} is no odd number", "use 1, 3 or 5")
        if self.target_transform not in TRANSFORMS:
            raise HeadError(
                f"target_transform={self.target_transform!r} is unknown",
                f"use one of {', '.join(TRANSFORMS)}",
            )
        if self.alpha != "auto" and not (np.isreal(self.alpha) and self.alpha >= 0):
            raise HeadError(f"alpha={self.alpha!r} is no penalty", 'use "auto" or 0 and more')
        for name, least in (("se_floor", 0.0), ("folds", 1), ("block_size", 0)):
            if not getattr(self, name) > least:
                raise HeadError(f"{name}={getattr(self, name)!r} is too small", "give more")

    def _row_parts(self, X: Any, y: Any, standard_error: Any, groups: Any) -> RowParts:
        if isinstance(X, xr.DataArray | xr.Dataset):
            raise HeadError("got no scene (band, y, x)", "pass ds.embedding, or rows (n, d)")
        for name, given in (("labels", y), ("standard errors", standard_error), ("groups", groups)):
            if given is not None and count_of(given) != count_of(X):
                raise HeadError(
                    f"{count_of(X)} vectors and {count_of(given)} {name}",
                    "pass one for each vector",
                )
        # Rows of one index are one measurement at several times, as `nec.sample` makes them.
        index = np.asarray(X.index) if hasattr(X, "index") and hasattr(X, "columns") else None
        y = None if y is None else np.asarray(y)
        known = ~np.isnan(y) if y is not None and y.ndim == 1 and y.dtype.kind == "f" else None
        filled = y if known is None else np.where(known, y, 0.0)
        rows, values = validate_data(
            self, X, filled, dtype=FLOATS, ensure_all_finite="allow-nan", y_numeric=True
        )
        keep = np.ones(len(rows), bool) if known is None else known
        errors = np.zeros(len(rows))
        if standard_error is not None:
            errors = np.nan_to_num(np.asarray(standard_error, dtype=np.float64))
        places = None if groups is None else np.asarray(groups)[keep]
        if not keep.any():
            raise TooFewLabelsError("no vector has a label", "NaN is no label")
        return RowParts(
            rows[keep],
            np.asarray(values, dtype=np.float64)[keep],
            errors[keep],
            groups=places,
            folds=self.folds,
            seed=self.random_state,
            measurements=None if index is None else len(set(index[keep].tolist())),
        )

    def _solve(self, parts: Any, kernel: int) -> None:
        """Choose the penalty by the held-out folds, solve for all, and keep what came of it."""
        found = cross_fitted(
            parts,
            kernel * kernel * self.n_features_in_,
            transform=self.target_transform,
            alphas=ALPHAS if self.alpha == "auto" else np.array([float(self.alpha)]),
            se_floor=self.se_floor,
            seed=self.random_state,
        )
        self.weights_ = found.weights.reshape(kernel, kernel, -1)
        self.intercept_, self.alpha_ = found.intercept, found.alpha
        self.residuals_, self.smearing_ = found.residuals, found.smearing
        self.held_out_rmse_ = found.held_out_rmse
        self.n_labels_ = found.count

    def _means(self, values: Floats) -> Floats:
        return expectation(self.target_transform, values, self.smearing_)

    def _alone(self, rows: Rows) -> Floats:
        """Regress rows, whose neighbours are taken to be as they are."""
        found: Floats = rows.astype(np.float64) @ self.weights_.sum((0, 1)) + self.intercept_
        return found

    def _regressed(self, block: Blocks) -> Floats:
        return shifted_sum(project(block, self.weights_)) + self.intercept_

    def _mapped(self, X: Any, function: Any, leading: tuple[int, ...], dtype: Any) -> Any:
        check_is_fitted(self)
        if not self._is_scene(X):
            rows = self._checked(X)
            if not (complete := complete_rows(rows)).all():
                raise HeadError(
                    f"{(~complete).sum()} of {len(rows)} vectors hold NaN, the first at "
                    f"{int(np.argmin(complete))}",
                    "leave them out; in the map of a scene missing tokens are NaN",
                )
            return function(self._alone(rows))
        scene = without_time(X).transpose("band", "y", "x")
        # A lazy map is of this fit, whatever the head learns later.
        weights, intercept = self.weights_, self.intercept_
        data = apply_windows(
            scene,
            lambda planes: function(shifted_sum(planes) + intercept).astype(dtype),
            before=lambda block: project(block, weights),
            margin=len(weights) // 2,
            leading=leading,
            dtype=dtype,
        )
        kept = {key: coord for key, coord in scene.coords.items() if "band" not in coord.dims}
        extra = {"bound": ["lower", "upper"]} if leading else {}
        mapped = xr.DataArray(
            data, dims=(*extra, "y", "x"), coords={**kept, **extra}, name="prediction"
        )
        mapped.attrs = {
            "long_name": "prediction",
            "units": self.units,
            **{k: scene.attrs[k] for k in ("nec_model",) if k in scene.attrs},
        }
        return georeferenced(mapped, scene)
