"""What predicts sparse measurements: the head, forests, a U-Net, the mean; cross-validated."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from heads_bench.unet import Schedule, squared, train_unet
from nec.evaluate.intervals import estimates, misses
from nec.heads import BiomassRegressor

log = logging.getLogger(__name__)

SE_FLOOR = 10.0
SEED = 5
# Errors of biomass, Mg/ha, that count as no worse.
MARGIN = {"rmse": 2.0, "mae": 2.0}
METRICS = ("rmse", "mae", "bias", "r2")
OURS = "float32, one convolution"
UNET = "raw bands, U-Net from scratch"
SETTINGS = [
    {"kernel_size": kernel, "target_transform": transform}
    for kernel in (1, 3)
    for transform in ("none", "sqrt")
]

Floats = NDArray[np.float64]
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Field:
    """Images with sparse measurements, all of one pixel size.

    Attributes
    ----------
    images : list of ndarray of shape (band, y, x)
        What every row gets.
    labels, errors : list of ndarray of shape (y, x)
        NaN where nothing was measured; standard errors, 0 where unknown.
    inner : list of ndarray of shape (y, x)
        Blocks that validation parts consist of, numbered through.
    """

    images: list[Image]
    labels: list[Floats]
    errors: list[Floats]
    inner: list[NDArray[np.intp]]


# What a row makes of training masks: a prediction for every pixel, and its trained parameters.
Row = Callable[[list[NDArray[np.bool_]]], tuple[list[Floats], int | None]]


def cross_validated(
    rows: dict[str, Row],
    field: Field,
    splits: list[tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]]],
    units: list[NDArray[np.intp]],
    scored: dict[str, list[NDArray[np.bool_]] | None],
    margin: Mapping[str, float],
) -> dict[str, Any]:
    """Fit every row to every split, and compare them on all labels or on part of them."""
    truth = np.concatenate([y.ravel() for y in field.labels])
    unit = np.concatenate([u.ravel() for u in units])
    parameters: dict[str, int | None] = {}
    predicted: dict[str, Floats] = {}
    for name, row in rows.items():
        found = [np.full(y.shape, np.nan) for y in field.labels]
        for train, test in splits:
            masks = [t & ~np.isnan(y) for t, y in zip(train, field.labels, strict=True)]
            out, parameters[name] = row(masks)
            for target, values, inside in zip(found, out, test, strict=True):
                target[inside] = values[inside]
        predicted[name] = np.concatenate([f.ravel() for f in found])
        log.info("%s done", name)
    table: dict[str, Any] = {name: {"parameters": parameters[name]} for name in rows}
    there = ~np.isnan(truth) & np.all([~np.isnan(p) for p in predicted.values()], axis=0)
    result: dict[str, Any] = {"labels": {}, "units": {}}
    for part, masks in scored.items():
        keep = there.copy()
        if masks is not None:
            keep &= np.concatenate([m.ravel() for m in masks])
        names, of_label = np.unique(unit[keep], return_inverse=True)
        sums = {
            name: misses(truth[keep], values[keep], of_label, len(names))
            for name, values in predicted.items()
        }
        result["labels"][part], result["units"][part] = int(keep.sum()), len(names)
        entries = estimates(sums, reference=OURS, metrics=METRICS, seed=SEED, margin=margin)
        for name, entry in entries.items():
            table[name][part] = entry
    rng = np.random.default_rng(SEED)
    shown = np.flatnonzero(there)
    shown = np.sort(rng.permutation(shown)[:3000])
    drawn = [name for name in (OURS, UNET) if name in predicted]
    return {
        **result,
        "rows": table,
        "scatter": {
            "measured": truth[shown].round(1).tolist(),
            **{name: predicted[name][shown].round(1).tolist() for name in drawn},
        },
    }


def best_head(
    field: Field, embeddings: list[xr.DataArray], masks: list[NDArray[np.bool_]], *, edge: int
) -> BiomassRegressor:
    """Fit the convolution of each setting to masked labels; return that of the least error.

    The error is that of held-out blocks of `edge` tokens.
    """
    labels = [
        _like(np.where(m, y, np.nan), e)
        for y, m, e in zip(field.labels, masks, embeddings, strict=True)
    ]
    errors = [_like(s, e) for s, e in zip(field.errors, embeddings, strict=True)]
    heads = [
        BiomassRegressor(block_size=edge, se_floor=SE_FLOOR, **options).fit(
            embeddings, labels, standard_error=errors
        )
        for options in SETTINGS
    ]
    return min(heads, key=lambda head: head.held_out_rmse_)


def head_row(field: Field, embeddings: list[xr.DataArray], *, edge: int, patch: int = 1) -> Row:
    """Fit the convolution; kernel and scale of the target by held-out blocks of `edge` tokens."""

    def row(masks: list[NDArray[np.bool_]]) -> tuple[list[Floats], int | None]:
        best = best_head(field, embeddings, masks, edge=edge)
        maps = [best.predict(e).values.repeat(patch, 0).repeat(patch, 1) for e in embeddings]
        return maps, best.n_parameters_

    return row


def _like(values: Floats, embedding: xr.DataArray) -> Any:
    """Give cell values the place of an embedding of as many tokens; else leave them to shape."""
    if "y" not in embedding.coords:
        return values
    return embedding.isel(band=0).drop_vars("band", errors="ignore").copy(data=values)


def _validation(field: Field, masks: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Choose a fifth of the blocks that train."""
    names = np.unique(np.concatenate([b[m] for b, m in zip(field.inner, masks, strict=True)]))
    chosen = np.random.default_rng(SEED).permutation(names)[: max(1, len(names) // 5)]
    return [np.isin(b, chosen) & m for b, m in zip(field.inner, masks, strict=True)]


def _weights(field: Field) -> list[Floats]:
    return [np.square(SE_FLOOR / np.maximum(e, SE_FLOOR)) for e in field.errors]


def forest_row(field: Field, features: list[Image]) -> Row:
    """Fit a forest; its leaves by the validation blocks."""

    def row(masks: list[NDArray[np.bool_]]) -> tuple[list[Floats], int | None]:
        held = _validation(field, masks)
        weights = _weights(field)

        def rows_of(chosen: list[NDArray[np.bool_]]) -> tuple[Image, Floats, Floats]:
            parts = [
                (x[:, m].T, y[m], w[m])
                for x, y, w, m in zip(features, field.labels, weights, chosen, strict=True)
            ]
            X, y, w = (np.concatenate(p) for p in zip(*parts, strict=True))
            return X, y, w

        def forest(leaf: int) -> RandomForestRegressor:
            return RandomForestRegressor(
                200, min_samples_leaf=leaf, max_features=0.34, n_jobs=-1, random_state=SEED
            )

        X, y, w = rows_of([m & ~h for m, h in zip(masks, held, strict=True)])
        validation = rows_of(held)
        missed = {}
        for leaf in (2, 5, 15):
            found = forest(leaf).fit(X, y, sample_weight=w).predict(validation[0])
            missed[leaf] = np.average((found - validation[1]) ** 2, weights=validation[2])
        X, y, w = rows_of(masks)
        fitted = forest(min(missed, key=lambda leaf: missed[leaf])).fit(X, y, sample_weight=w)
        maps = [fitted.predict(x.reshape(len(x), -1).T).reshape(x.shape[1:]) for x in features]
        return maps, None

    return row


def unet_row(field: Field, schedule: Schedule) -> Row:
    """Train a U-Net on the labels' own scale, so that it minimises what it is judged by."""

    def row(masks: list[NDArray[np.bool_]]) -> tuple[list[Floats], int | None]:
        known = np.concatenate([y[m] for y, m in zip(field.labels, masks, strict=True)])
        middle, spread = known.mean(), known.std()
        apply, count = train_unet(
            field.images,
            [((y - middle) / spread).astype(np.float32) for y in field.labels],
            [
                np.where(m, w, 0).astype(np.float32)
                for m, w in zip(masks, _weights(field), strict=True)
            ],
            _validation(field, masks),
            outputs=1,
            loss=squared,
            schedule=schedule,
            seed=SEED,
        )
        maps = [
            np.maximum(apply(i)[0].astype(np.float64) * spread + middle, 0) for i in field.images
        ]
        return maps, count

    return row


def mean_row(field: Field) -> Row:
    def row(masks: list[NDArray[np.bool_]]) -> tuple[list[Floats], int | None]:
        y, w = (
            np.concatenate([v[m] for v, m in zip(values, masks, strict=True)])
            for values in (field.labels, _weights(field))
        )
        return [np.full(v.shape, np.average(y, weights=w)) for v in field.labels], 1

    return row


def around(image: Image) -> Image:
    """Bands of the 3 x 3 pixels around each, (9 band, y, x)."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.moveaxis(windows, (3, 4), (1, 2)).reshape(-1, *image.shape[1:])
