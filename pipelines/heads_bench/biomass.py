"""Biomass of the Hainich and canopy height in Nicaragua, from sparse GEDI shots."""

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

import nec
from heads_bench.places import block_folds, blocks_of
from heads_bench.regression import (
    MARGIN,
    SE_FLOOR,
    SEED,
    UNET,
    Field,
    Image,
    Row,
    around,
    best_head,
    cross_validated,
    forest_row,
    head_row,
    mean_row,
    unet_row,
)
from heads_bench.unet import Schedule
from nec.archive import TokenGrid
from nec.compressor import Compressor
from nec.encoders import Encoder
from nec.encoders.tiling import Tiling
from nec.evaluate.intervals import confusions, estimates
from nec.model import RATES, Model
from nec.sampling import without_time
from nec.scene import open_scene

# Names in the files of the bands that the encoder takes, by common name.
BANDS = {"blue": "B2", "green": "B3", "red": "B4", "nir": "B8", "swir16": "B11", "swir22": "B12"}
# A metre of EPSG:3857 is this much on the ground there.
GROUND = 0.63
# Ground metres: edge of a block that is tested together, ring around it, edge of inner blocks.
BLOCK, BUFFER, INNER = 5000.0, 1000.0, 2500.0
CELL = 100.0
# Cells become this many pixels wide, so that a token is about a label.
UPSAMPLED = 4
FOREST = 10
# Shares of measurements that intervals shall hold.
COVERAGES = (0.5, 0.9)


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


def cells_of(distance: float) -> int:
    """Return how many of the Hainich's cells a distance on the ground is, metres."""
    return round(distance / (CELL * GROUND))


def read_hainich(data: Path, model: Model, work: Path) -> Hainich:
    """Read predictors and shots, and encode the optical bands, or take the stores in `work`."""
    folder = data / "biomass" / "hainich_gedi_100m"
    raster, template = _read_hainich(folder / "predictors.tif")
    measured, _ = _read_hainich(folder / "agbd.tif")
    labels = np.where(measured["agbd"] > 0, measured["agbd"], np.nan).astype(np.float64)
    errors = np.maximum(measured["agbd_se"], SE_FLOOR).astype(np.float64)
    optical = np.stack([raster[name] for name in BANDS.values()]) / np.float32(1e4)
    blocks = blocks_of(labels.shape, cells_of(BLOCK))
    field = Field([optical], [labels], [errors], [blocks_of(labels.shape, cells_of(INNER))])
    encoded = _encode(_upsampled(optical, template), work / "hainich", model)
    return Hainich(field, raster, template, encoded, blocks, cells_of(BUFFER))


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
        f"{name}, one convolution": head_row(field, [place.on_cells(array)], edge=cells_of(INNER))
        for name, array in {**embeddings, "raw bands": raw}.items()
    }
    rows["raw bands of 3 x 3 cells, random forest"] = forest_row(field, [around(optical)])
    rows[UNET] = unet_row(field, Schedule(steps))
    everything = np.stack(list(raster.values()))
    rows["all 16 predictors (radar, elevation, WorldCover), random forest"] = forest_row(
        field, [everything]
    )
    rows["mean of the training labels"] = mean_row(field)
    splits = [
        ([train], [test])
        for train, test in block_folds(blocks, folds=folds, buffer=place.buffer, seed=SEED)
    ]
    forest = raster["Map"] == FOREST
    found = cross_validated(
        rows, field, splits, [blocks], {"all": None, "forest": [forest]}, MARGIN
    )
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
        "margin": MARGIN["rmse"],
        **found,
    }


def bench_intervals(data: Path, model: Model, work: Path, *, folds: int) -> dict[str, Any]:
    """Count the Hainich's measurements that fall into intervals of heads that saw other blocks."""
    place = read_hainich(data, model, work)
    truth = place.field.labels[0]
    labelled = ~np.isnan(truth)
    arrays = {"float32": place.encoded.uncompressed(model)}
    arrays |= {f"decoded {rate}": place.encoded.decoded(rate) for rate in reversed(RATES)}
    splits = list(block_folds(place.blocks, folds=folds, buffer=place.buffer, seed=SEED))
    rows: dict[str, Any] = {}
    for name, array in arrays.items():
        embedding = place.on_cells(array)
        bounds = {c: np.full((2, *truth.shape), np.nan) for c in COVERAGES}
        for train, test in splits:
            head = best_head(place.field, [embedding], [train & labelled], edge=cells_of(INNER))
            for coverage, found in bounds.items():
                found[:, test] = head.predict_interval(embedding, coverage=coverage).values[:, test]
        rows[name] = {}
        for coverage, (low, high) in bounds.items():
            there = labelled & ~np.isnan(low)
            inside = (low[there] <= truth[there]) & (truth[there] <= high[there])
            blocks, unit = np.unique(place.blocks[there], return_inverse=True)
            counts = confusions(np.ones_like(unit), inside.astype(np.intp), unit, (len(blocks), 2))
            of = estimates({name: counts}, reference=name, metrics=("accuracy",), seed=SEED)
            width = float(np.median(high[there] - low[there]))
            rows[name][f"{coverage:g}"] = {
                "inside": of[name]["accuracy"],
                "median_width": round(width, 1),
            }
    return {
        "task": "Prediction intervals of biomass, Hainich: measurements of blocks left out",
        "unit": "block",
        "folds": len(splits),
        "coverages": list(COVERAGES),
        "intervals": rows,
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
    edge = labels[0].shape[0] // patch
    means = [_token_means(image, patch) for image in images]
    rows: dict[str, Row] = {
        f"{name}, one convolution": head_row(
            field, [_array(part) for part in parts], edge=edge, patch=patch
        )
        for name, parts in {**embeddings, "raw bands, mean of each token": means}.items()
    }
    rows["raw bands of 3 x 3 pixels, random forest"] = forest_row(field, list(map(around, images)))
    rows[UNET] = unet_row(field, Schedule(steps))
    rows["mean of the training labels"] = mean_row(field)
    splits = []
    for left in range(len(images)):
        inside = [np.full(y.shape, i == left) for i, y in enumerate(labels)]
        splits.append(([~mask for mask in inside], inside))
    found = cross_validated(rows, field, splits, quarter, {"all": None}, {})
    for rate, size in sizes.items():
        found["rows"][f"decoded {rate}, one convolution"]["bytes_per_vector"] = round(size, 4)
    return {
        "task": "Canopy height (RH95) of GEDI shots, m, five tiles in Nicaragua, one left out",
        "unit": "quarter of a tile (shots of a tile are not independent: intervals are too narrow)",
        "folds": len(splits),
        "unet_steps": steps,
        **found,
    }


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
    yield (
        "hainich_intervals",
        lambda: bench_intervals(args.data, model, args.work, folds=args.folds),
    )
    yield "gedi_structure", lambda: bench_gedi_structure(args.data, model, twin, steps=args.steps)
