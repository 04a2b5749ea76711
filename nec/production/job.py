"""A job: one source to one store; how the features of each task are made."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.archive import Layout, Task, TokenGrid
from nec.compressor import Compressor
from nec.encoders.tiling import Tiling, embed_image, fill_missing, missing_tokens
from nec.errors import CompressorError, ModelError, SceneError
from nec.model import Model
from nec.scene import ImageCollection, Scene

log = logging.getLogger(__name__)

CELL = 16  # tokens along the edge of a chip that `scene_embedding` pools
INSTALL_HINT = "pip install nec, then xarray.open_zarr(store)"


@dataclass(frozen=True, eq=False)
class Job:
    """One source to one store: its layout, how a task's features are made, and what is said."""

    layout: Layout
    compressor: Compressor
    attributes: dict[str, Any]
    fingerprint: dict[str, Any]
    # Features (dim, y, x) or (sample, dim, y, x) of a task, NaN where missing.
    features: Callable[[Task], NDArray[np.float32]]
    pooled: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    # Edge of a chip in tokens where an image is cut into chips, to measure seams.
    tokens_per_chip: int | None = None
    encodes: bool = True


def scene_job(
    scene: Scene, model: Model, rate: str | float, tiling: Tiling, min_cosine: float | None
) -> Job:
    """Return the job of a scene: shards of its token grid, read and embedded by window."""
    encoder, compressor = model.encoder, model.compressor(rate).guarded(min_cosine)
    patch = encoder.patch_size
    if (CELL * patch) % tiling.core or tiling.core % patch or tiling.halo % patch:
        raise ModelError(
            f"chips of {tiling.core} pixels with a halo of {tiling.halo} do not fit cells of "
            f"{CELL * patch} and patches of {patch}",
            "choose a core that divides a cell and, like the halo, is a multiple of a patch",
        )
    bands = _usable_bands(scene.name, scene.bands, model)
    scene = scene.select(bands)
    grid = TokenGrid.around(scene.geobox, patch=patch, cell=CELL)
    attributes = _own_attributes(model, compressor, rate, bands) | {
        "sources": list(scene.sources),
        "gsd": round(scene.gsd, 4),
        "scaling": asdict(scene.scaling),
        "tiling": {"core": tiling.core, "halo": tiling.halo},
    }

    def features(task: Task) -> NDArray[np.float32]:
        image = scene.read(*grid.pixel_window(task, tiling.margin))
        return embed_image(encoder, image, bands=bands, gsd=scene.gsd, tiling=tiling)

    return Job(
        layout=Layout.of_scene(grid, bands=compressor.basis.shape[1], time=scene.time),
        compressor=compressor,
        attributes={"nec": attributes},
        fingerprint=attributes
        | {
            "source_digest": scene.digest(),
            "compressor": compressor.digest,
            "batch": tiling.batch,
            "time": str(scene.time),
        },
        features=features,
        pooled=_pool_cells,
        tokens_per_chip=tiling.core // patch,
    )


def collection_job(
    collection: ImageCollection, model: Model, rate: str | float, min_cosine: float | None
) -> Job:
    """Return the job of an image collection: shards of samples, each embedded whole."""
    encoder, compressor = model.encoder, model.compressor(rate).guarded(min_cosine)
    patch = encoder.patch_size
    height, width = collection.shape
    if height % patch or width % patch:
        raise SceneError(
            f"images of {height} x {width} pixels do not fill patches of {patch}",
            "crop or pad them",
        )
    bands = _usable_bands(collection.name, collection.bands, model)
    which = [collection.bands.index(b) for b in bands]
    attributes = _own_attributes(model, compressor, rate, bands) | {
        "sources": [collection.name],
        "gsd": collection.gsd,
        "scaling": asdict(collection.scaling),
    }
    layout = Layout.of_collection(
        len(collection),
        bands=compressor.basis.shape[1],
        size=(height // patch, width // patch),
        coordinates=collection.coordinates,
    )
    assert layout.embedding is not None
    assert layout.embedding.shard is not None
    shard, batch = layout.embedding.shard[0], Tiling().batch

    def features(task: Task) -> NDArray[np.float32]:
        import torch

        first = task.row * shard
        last = min(first + shard, len(collection))
        out = np.empty((last - first, encoder.dim, height // patch, width // patch), np.float32)
        for at in range(first, last, batch):
            images = collection.read(at, min(at + batch, last))[:, which]
            filled = np.stack([fill_missing(image) for image in images])
            missing = missing_tokens(images, patch)
            filled = np.nan_to_num(filled)  # an image of nothing but nodata
            tokens = encoder.embed(torch.from_numpy(filled), bands=bands, gsd=collection.gsd)
            part = tokens.cpu().numpy()
            part[np.broadcast_to(missing[:, None], part.shape)] = np.nan
            out[at - first : at - first + len(part)] = part
        return out

    def pooled(values: NDArray[np.float32]) -> NDArray[np.float32]:
        count = (~np.isnan(values)).sum((2, 3))
        mean = np.nansum(values, axis=(2, 3)) / np.maximum(count, 1)
        return np.where(count > 0, mean, np.nan).astype(np.float32)

    return Job(
        layout=layout,
        compressor=compressor,
        attributes={"nec": attributes},
        fingerprint=attributes
        | {
            "source_digest": collection.digest(),
            "coordinates": {k: v.tolist() for k, v in collection.coordinates.items()},
            "compressor": compressor.digest,
            "batch": batch,
        },
        features=features,
        pooled=pooled,
    )


def embedding_job(source: Any, compressor: Compressor) -> Job:
    """Return the job of an array of features (y, x, band) that is there already."""
    if not isinstance(source, xr.DataArray) or {"y", "x", "band"} != set(source.dims):
        raise CompressorError(
            "with a Compressor as model, the source is a DataArray with dims y, x and band",
            "wrap the array: xr.DataArray(values, dims=('y', 'x', 'band'), coords=...)",
        )
    if source.dtype.kind != "f":
        raise CompressorError(
            f"the array holds {source.dtype}, which is not the embedding but a code for it",
            "decode it by the product's rule first; missing vectors are NaN",
        )
    import odc.geo.xr  # noqa: F401 - registers .odc
    from odc.geo.geobox import GeoBox

    geobox = source.odc.geobox
    if not isinstance(geobox, GeoBox) or geobox.crs is None:
        raise SceneError("the embedding array has no CRS", "assign one: array.rio.write_crs(...)")
    if source.sizes["band"] != len(compressor.basis):
        raise CompressorError(
            f"the array has {source.sizes['band']} bands, the compressor {len(compressor.basis)}",
            "fit a compressor to this embedding",
        )
    grid = TokenGrid.around(geobox, patch=1, cell=CELL)
    array = source.transpose("band", "y", "x")
    height, width = grid.scene_shape
    attributes = {
        "model": str(source.attrs.get("model", source.name or "unknown")),
        "basis": compressor.basis_hash,
        "space": "klt",
        **_promise(compressor),
        "install": INSTALL_HINT,
    }

    def features(task: Task) -> NDArray[np.float32]:
        rows, columns = grid.pixel_window(task)
        out = np.full(
            (source.sizes["band"], rows.stop - rows.start, columns.stop - columns.start),
            np.nan,
            np.float32,
        )
        y, x = (
            slice(max(w.start, 0), min(w.stop, size))
            for w, size in ((rows, height), (columns, width))
        )
        if y.stop > y.start and x.stop > x.start:
            part = array.isel(y=y, x=x).to_numpy()
            at = (y.start - rows.start, x.start - columns.start)
            out[:, at[0] : at[0] + part.shape[1], at[1] : at[1] + part.shape[2]] = part
        return out

    content = hashlib.sha256()
    for row in range(0, height, 256):  # a lazy array need not fit into memory
        strip = array.isel(y=slice(row, row + 256)).to_numpy()
        content.update(np.ascontiguousarray(strip, "<f4").tobytes())
    return Job(
        layout=Layout.of_scene(grid, bands=compressor.basis.shape[1]),
        compressor=compressor,
        attributes={"nec": attributes},
        fingerprint=attributes
        | {"source_digest": content.hexdigest(), "compressor": compressor.digest},
        features=features,
        pooled=_pool_cells,
        encodes=False,
    )


def _usable_bands(name: str, bands: Sequence[str], model: Model) -> tuple[str, ...]:
    """Return the bands that the model takes; nir and nir08 serve each other, nir08 first."""
    near_infrared = "nir08" if "nir08" in bands else "nir"
    wanted = [near_infrared if b in ("nir", "nir08") else b for b in model.encoder.bands]
    chosen = tuple(dict.fromkeys(b for b in wanted if b in bands))
    if not chosen:
        raise SceneError(
            f"{name} has no band that {model.name} takes (has: {', '.join(bands)}; takes: "
            f"{', '.join(model.encoder.bands)})",
            "name its bands with bands=...",
        )
    left_out = [b for b in bands if b not in chosen]
    log.info("%s: bands %s%s", name, ", ".join(chosen), f"; unused {left_out}" if left_out else "")
    return chosen


def _own_attributes(
    model: Model, compressor: Compressor, rate: str | float, bands: Sequence[str]
) -> dict[str, Any]:
    takes = model.encoder.bands
    near_infrared = {"nir": "nir08", "nir08": "nir"}
    substituted = {near_infrared[b]: b for b in bands if b not in takes}
    return {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        "basis": compressor.basis_hash,
        "space": "klt",
        "rate": rate,
        "bands": list(bands),
        **({"substituted": substituted} if substituted else {}),
        **_promise(compressor),
        "install": INSTALL_HINT,
    }


def _promise(compressor: Compressor) -> dict[str, Any]:
    """Say what a store's vectors are worth: the expected cosine, and the smallest if promised."""
    promise: dict[str, Any] = {"expected_cosine": compressor.fidelity.to_dict()}
    if compressor.coding.min_cosine > 0:
        promise["min_cosine"] = compressor.coding.min_cosine
    return promise


def _pool_cells(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the valid tokens of each cell, (dim, y / CELL, x / CELL)."""
    dim, h, w = features.shape
    cut = features.reshape(dim, h // CELL, CELL, w // CELL, CELL)
    count = (~np.isnan(cut)).sum((2, 4))
    total = np.nansum(cut, axis=(2, 4))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
