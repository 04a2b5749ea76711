"""Biomass of the Hainich and canopy height in Nicaragua, from sparse GEDI shots."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rioxarray
import xarray as xr
from encoder_bench.dense import Tile, embed_tile
from main_job.scenes import EncodedScene, disk_bytes, embed_scene
from numpy.typing import NDArray
from scipy.ndimage import zoom
from sklearn.ensemble import RandomForestRegressor

import nec
from heads_bench.places import block_folds, blocks_of
from heads_bench.unet import Schedule, squared, train_unet
from nec.archive import TokenGrid
from nec.compressor import Compressor
from nec.encoders import Encoder
from nec.encoders.tiling import Tiling
from nec.evaluate.intervals import estimates, misses
from nec.heads import BiomassRegressor
from nec.model import RATES, Model
from nec.sampling import without_time
from nec.scene import open_scene

log = logging.getLogger(__name__)

# Names in the files of the bands that the encoder takes, by common name.
BANDS = {"blue": "B2", "green": "B3", "red": "B4", "nir": "B8", "swir16": "B11", "swir22": "B12"}
# A metre of EPSG:3857 is this much on the ground there.
GROUND = 0.63
# Ground metres: edge of a block that is tested together, ring around it, edge of inner blocks.
BLOCK, BUFFER, INNER = 5000.0, 1000.0, 2500.0
CELL = 100.0
SE_FLOOR = 10.0
# Cells become this many pixels wide, so that a token is about a label.
UPSAMPLED = 4
FOREST = 10
SEED = 5
MARGIN = 2.0
METRICS = ("rmse", "mae", "bias", "r2")
OURS = "float32, one convolution"
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


@dataclass(frozen=True)
class Hainich:
    """The Hainich: a field of one image, encoded, on the grid of its cells.

    Attributes
    ----------
    field : Field
    raster : dict of str to ndarray of shape (y, x)
        All predictors by name.
    template : xarray.DataArray
        (band, y, x) with the place of the cells.
    encoded : EncodedScene
    blocks : ndarray of shape (y, x)
        What is tested together.
    buffer : int
        Cells around that train nothing.
    """

    field: Field
    raster: dict[str, Image]
    template: xr.DataArray
    encoded: EncodedScene
    blocks: NDArray[np.intp]
    buffer: int

    def on_cells(self, embedding: xr.DataArray) -> xr.DataArray:
        """Take the token of each cell."""
        places = {"y": self.template.y, "x": self.template.x}
        return embedding.sel(places, method="nearest", tolerance=1)


def read_hainich(data: Path, model: Model, work: Path) -> Hainich:
    """Read predictors and shots, and encode the optical bands, or take the stores in `work`."""
    folder = data / "biomass" / "hainich_gedi_100m"
    raster, template = _read_hainich(folder / "predictors.tif")
    measured, _ = _read_hainich(folder / "agbd.tif")
    labels = np.where(measured["agbd"] > 0, measured["agbd"], np.nan).astype(np.float64)
    errors = np.maximum(measured["agbd_se"], SE_FLOOR).astype(np.float64)
    optical = np.stack([raster[name] for name in BANDS.values()]) / np.float32(1e4)
    cells = [round(size / (CELL * GROUND)) for size in (BLOCK, BUFFER, INNER)]
    blocks = blocks_of(labels.shape, cells[0])
    field = Field([optical], [labels], [errors], [blocks_of(labels.shape, cells[2])])
    encoded = _encode(_upsampled(optical, template), work / "hainich", model)
    return Hainich(field, raster, template, encoded, blocks, cells[1])


def bench_hainich(
    data: Path, model: Model, twin: Encoder, work: Path, *, folds: int, steps: int
) -> dict[str, Any]:
    """Cross-validate by blocks of 5 km, with 1 km around them; intervals over the blocks."""
    place = read_hainich(data, model, work)
    field, raster, encoded, blocks = place.field, place.raster, place.encoded, place.blocks
    optical = field.images[0]
    embeddings = {"float32": encoded.uncompressed(model)}
    embeddings |= {f"decoded {rate}": encoded.decoded(rate) for rate in reversed(RATES)}
    untrained = embed_scene(twin, encoded.scene, encoded.grid, Tiling())
    embeddings["untrained twin, float32"] = encoded.placed(untrained)
    raw = place.template.copy(data=optical)
    rows: dict[str, Row] = {
        f"{name}, one convolution": _head_row(field, [place.on_cells(array)])
        for name, array in {**embeddings, "raw bands": raw}.items()
    }
    rows["raw bands of 3 x 3 cells, random forest"] = _forest_row(field, [_around(optical)])
    rows["raw bands, U-Net from scratch"] = unet_row(field, Schedule(steps))
    everything = np.stack(list(raster.values()))
    rows["all 16 predictors (radar, elevation, WorldCover), random forest"] = _forest_row(
        field, [everything]
    )
    rows["mean of the training labels"] = _mean_row(field)
    splits = [
        ([train], [test])
        for train, test in block_folds(blocks, folds=folds, buffer=place.buffer, seed=SEED)
    ]
    forest = raster["Map"] == FOREST
    found = _cross_validated(rows, field, splits, [blocks], {"all": None, "forest": [forest]})
    vectors = int((~np.isnan(encoded.features).any(0)).sum())
    for rate in RATES:
        size = disk_bytes(encoded.stores[rate])["payload"]["embedding"]
        found["rows"][f"decoded {rate}, one convolution"]["bytes_per_vector"] = round(
            size / vectors, 4
        )
    return {
        "task": "Aboveground biomass density of GEDI L4A shots, Mg/ha, Hainich (Sentinel-2 at "
        f"{CELL:g} m, upsampled {UPSAMPLED} times so that a token is a label); blocks of "
        f"{BLOCK / 1e3:g} km on the ground left out with {BUFFER / 1e3:g} km around them",
        "unit": "block",
        "folds": len(splits),
        "unet_steps": steps,
        "se_floor": SE_FLOOR,
        "margin": MARGIN,
        **found,
    }


def bench_gedi_structure(data: Path, model: Model, twin: Encoder, *, steps: int) -> dict[str, Any]:
    """Leave one tile out; canopy height (RH95, m) at about 39 shots a tile."""
    paths = sorted((data / "biomass" / "gedi_structure").glob("*.npz"))
    images, labels = [], []
    for path in paths:
        with np.load(path) as file:
            # Blue, green, red, nir, swir16, swir22 among the bands of the file.
            images.append(file["X"][[1, 2, 3, 7, 10, 11]])
            labels.append(file["y"][2].astype(np.float64))
    quarter = [blocks_of(y.shape, y.shape[0] // 2) + 4 * i for i, y in enumerate(labels)]
    field = Field(images, labels, [np.zeros(y.shape) for y in labels], quarter)
    tokens = [np.moveaxis(embed_tile(model.encoder, _tile(image)), -1, 0) for image in images]
    embeddings: dict[str, list[Image]] = {"float32": [_rotated(t, model) for t in tokens]}
    sizes = {}
    for rate in reversed(RATES):
        compressor = model.compressors[rate]
        coded = [compressor.encode(np.moveaxis(t, 0, -1)) for t in tokens]
        embeddings[f"decoded {rate}"] = [_decoded(compressor, c, model) for c in coded]
        sizes[rate] = sum(map(len, coded)) / sum(t[0].size for t in tokens)
    embeddings["untrained twin, float32"] = [
        np.moveaxis(embed_tile(twin, _tile(image)), -1, 0) for image in images
    ]
    patch = model.encoder.patch_size
    means = [_token_means(image, patch) for image in images]
    rows: dict[str, Row] = {
        f"{name}, one convolution": _head_row(field, [_array(part) for part in parts], patch)
        for name, parts in {**embeddings, "raw bands, mean of each token": means}.items()
    }
    rows["raw bands of 3 x 3 pixels, random forest"] = _forest_row(
        field, list(map(_around, images))
    )
    rows["raw bands, U-Net from scratch"] = unet_row(field, Schedule(steps))
    rows["mean of the training labels"] = _mean_row(field)
    splits = []
    for left in range(len(images)):
        inside = [np.full(y.shape, i == left) for i, y in enumerate(labels)]
        splits.append(([~mask for mask in inside], inside))
    found = _cross_validated(rows, field, splits, quarter, {"all": None})
    for rate, size in sizes.items():
        found["rows"][f"decoded {rate}, one convolution"]["bytes_per_vector"] = round(size, 4)
    return {
        "task": "Canopy height (RH95) of GEDI shots, m, five tiles in Nicaragua, one left out",
        "unit": "quarter of a tile (shots of a tile are not independent: intervals are too narrow)",
        "folds": len(splits),
        "unet_steps": steps,
        "margin": MARGIN,
        **found,
    }


def _cross_validated(
    rows: dict[str, Row],
    field: Field,
    splits: list[tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]]],
    units: list[NDArray[np.intp]],
    scored: dict[str, list[NDArray[np.bool_]] | None],
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
        entries = estimates(sums, reference=OURS, metrics=METRICS, seed=SEED, margin=MARGIN)
        for name, entry in entries.items():
            table[name][part] = entry
    rng = np.random.default_rng(SEED)
    shown = np.flatnonzero(there)
    shown = np.sort(rng.permutation(shown)[:3000])
    drawn = [name for name in (OURS, "raw bands, U-Net from scratch") if name in predicted]
    return {
        **result,
        "rows": table,
        "scatter": {
            "measured": truth[shown].round(1).tolist(),
            **{name: predicted[name][shown].round(1).tolist() for name in drawn},
        },
    }


def _head_row(field: Field, embeddings: list[xr.DataArray], patch: int = 1) -> Row:
    """Fit the convolution; kernel and scale of the target by its own held-out blocks."""

    def row(masks: list[NDArray[np.bool_]]) -> tuple[list[Floats], int | None]:
        labels = [
            _like(np.where(m, y, np.nan), e)
            for y, m, e in zip(field.labels, masks, embeddings, strict=True)
        ]
        errors = [_like(s, e) for s, e in zip(field.errors, embeddings, strict=True)]
        edge = round(INNER / (CELL * GROUND)) if patch == 1 else field.labels[0].shape[0] // patch
        heads = [
            BiomassRegressor(block_size=edge, se_floor=SE_FLOOR, **options).fit(
                embeddings, labels, standard_error=errors
            )
            for options in SETTINGS
        ]
        best = min(heads, key=lambda head: head.held_out_rmse_)
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


def _forest_row(field: Field, features: list[Image]) -> Row:
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


def _mean_row(field: Field) -> Row:
    def row(masks: list[NDArray[np.bool_]]) -> tuple[list[Floats], int | None]:
        y, w = (
            np.concatenate([v[m] for v, m in zip(values, masks, strict=True)])
            for values in (field.labels, _weights(field))
        )
        return [np.full(v.shape, np.average(y, weights=w)) for v in field.labels], 1

    return row


def _around(image: Image) -> Image:
    """Bands of the 3 x 3 pixels around each, (9 band, y, x)."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.moveaxis(windows, (3, 4), (1, 2)).reshape(-1, *image.shape[1:])


def _read_hainich(path: Path) -> tuple[dict[str, Image], xr.DataArray]:
    """Read bands by name, north-up, and an empty array with their place."""
    opened = rioxarray.open_rasterio(path)
    with rasterio.open(path) as dataset:
        names = dataset.descriptions
    north_up = opened.sortby("y", ascending=False)
    bands = dict(zip(names, north_up.values, strict=True))
    return bands, north_up.isel(band=slice(len(BANDS))).drop_vars("band")


def _upsampled(optical: Image, template: xr.DataArray) -> xr.DataArray:
    """Interpolate cells bilinearly to `UPSAMPLED` pixels each way, with coordinates."""
    values = zoom(
        optical, (1, UPSAMPLED, UPSAMPLED), order=1, mode="nearest", grid_mode=True
    ).astype(np.float32)
    step = CELL / UPSAMPLED
    y, x = (float(template[d][0]) for d in ("y", "x"))
    coords = {
        "band": list(BANDS),
        "y": y + CELL / 2 - (np.arange(values.shape[1]) + 0.5) * step,
        "x": x - CELL / 2 + (np.arange(values.shape[2]) + 0.5) * step,
    }
    array = xr.DataArray(values, dims=("band", "y", "x"), coords=coords, name="hainich")
    return array.rio.write_crs(template.rio.crs)


def _encode(source: xr.DataArray, folder: Path, model: Model) -> EncodedScene:
    """Encode at every rate, and embed in memory the same way; finished stores are taken."""
    stores = {rate: folder / f"{rate}.zarr" for rate in RATES}
    for rate, store in stores.items():
        nec.encode(source, store, model=model, rate=rate)
    dataset = xr.open_zarr(stores[RATES[0]])
    scene = open_scene(source).select(dataset.attrs["nec"]["bands"])
    grid = TokenGrid.around(scene.geobox, patch=model.encoder.patch_size)
    features = embed_scene(model.encoder, scene, grid, Tiling(**dataset.attrs["nec"]["tiling"]))
    template = without_time(dataset["embedding"])
    return EncodedScene(scene, grid, stores, features, template)


def _tile(image: Image) -> Tile:
    return Tile(image, np.empty((0, 0), np.int64))


def _rotated(features: Image, model: Model) -> Image:
    return np.tensordot(model.basis.T, features, 1)


def _decoded(compressor: Compressor, coded: bytes, model: Model) -> Image:
    return _rotated(np.moveaxis(compressor.decode(coded)[0], -1, 0), model)


def _array(values: Image) -> xr.DataArray:
    return xr.DataArray(values, dims=("band", "y", "x"))


def _token_means(image: Image, patch: int) -> Image:
    bands, height, width = image.shape
    return image.reshape(bands, height // patch, patch, width // patch, patch).mean((2, 4))


def parts_of(args: Any, model: Model, twin: Encoder) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Give the parts of this task, by name."""
    yield (
        "hainich",
        lambda: bench_hainich(
            args.data, model, twin, args.work, folds=args.folds, steps=args.steps
        ),
    )
    yield "gedi_structure", lambda: bench_gedi_structure(args.data, model, twin, steps=args.steps)
