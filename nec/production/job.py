"""A job: one source to one store; how the features of each task are made."""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.archive import Layout, StoreWriter, TokenGrid
from nec.codec import NecCodec
from nec.compressor import Compressor
from nec.encoders.tiling import Tiling
from nec.errors import CompressorError, ModelError, SceneError
from nec.model import Model, load_model
from nec.production.features import (
    CELL,
    ArrayFeatures,
    CollectionFeatures,
    FeatureSource,
    SceneFeatures,
    VectorFeatures,
)
from nec.scene import ImageCollection, Scene, is_collection, open_scene

log = logging.getLogger(__name__)

#: Options of `nec.scene.open_scene`.
SCENE_OPTIONS = ("bands", "scale", "offset", "nodata", "mask", "mask_classes", "time", "crs")

INSTALL_HINT = "pip install nec, then xarray.open_zarr(store)"


@dataclass(frozen=True, eq=False)
class Job:
    """One source to one store: its layout, how a task's features are made, and what is said."""

    layout: Layout
    compressor: Compressor
    attributes: dict[str, Any]
    fingerprint: dict[str, Any]
    source: FeatureSource
    # Edge of a chip in tokens where an image is cut into chips, to measure seams.
    tokens_per_chip: int | None = None
    encodes: bool = True

    @cached_property
    def fingerprint_digest(self) -> str:
        """SHA-256 of the fingerprint: names the run."""
        text = json.dumps(self.fingerprint, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def writer(self, store: Path) -> StoreWriter:
        """Create the job's store, or open what an earlier run left of it; see `StoreWriter`."""
        return StoreWriter.create_or_resume(
            store,
            self.layout,
            codec=NecCodec(self.compressor.coding),
            scene_codec=NecCodec(self.compressor.scene_coding),
            attributes=self.attributes,
            basis=np.ascontiguousarray(self.compressor.basis.T),
            fingerprint=self.fingerprint_digest,
        )


def job_of(
    source: Any,
    *,
    model: str | Path | Model | Compressor,
    rate: str | float | Path = "medium",
    min_cosine: float | None = None,
    tiling: Tiling | None = None,
    **options: Any,
) -> Job:
    """Return the job of a source, whatever it is; see `nec.encode` for the parameters.

    Raises
    ------
    SceneError, CompressorError
        If an option does not go with the kind of source, among others.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if tiling is not None:
        given["tiling"] = tiling

    def only(kind: str, *names: str) -> dict[str, Any]:
        """Return the options of a kind of source; refuse the others rather than drop them."""
        if others := [name for name in given if name not in names]:
            raise SceneError(f"{kind} takes no {others[0]}=", "leave it out")
        return {name: given[name] for name in names if name in given and name != "tiling"}

    if isinstance(model, Compressor):
        if rate != "medium":
            raise CompressorError("a Compressor has one rate", "leave out rate=")
        only("an embedding array")
        return embedding_job(source, model.guarded(min_cosine))
    model = model if isinstance(model, Model) else load_model(model)
    if is_collection(source):
        kept = only("an image collection", "bands", "gsd", "scale", "offset")
        collection = ImageCollection.open(source, **kept)
        return collection_job(collection, model, rate, min_cosine, asked="bands" in given)
    if isinstance(source, Scene):
        only("an open scene", "tiling")
        return scene_job(source, model, rate, tiling or model.tiling, min_cosine)
    scene = open_scene(source, **only("a scene", *SCENE_OPTIONS, "tiling"))
    tiling = tiling or model.tiling
    return scene_job(scene, model, rate, tiling, min_cosine, asked="bands" in given)


def scene_source(scene: Scene, model: Model, tiling: Tiling) -> SceneFeatures:
    """Return where the features of a scene's tasks come from: its grid, and the bands it takes.

    Raises
    ------
    SceneError, ModelError
        If the scene has no band that the model takes, or chips do not fit cells.
    """
    return _source(scene.select(usable_bands(scene.name, scene.bands, model)), model, tiling)


def _source(scene: Scene, model: Model, tiling: Tiling) -> SceneFeatures:
    check_tiling(model, tiling)
    grid = TokenGrid.around(scene.geobox, patch=model.encoder.patch_size, cell=CELL)
    return SceneFeatures(scene, model, grid, tiling, scene.versions())


def check_tiling(model: Model, tiling: Tiling) -> None:
    """Check that chips fit cells and patches; ModelError where they do not."""
    patch = model.encoder.patch_size
    if tiling.core < patch or not 0 <= tiling.halo <= tiling.core:
        raise ModelError(
            f"chips of {tiling.core} pixels with a halo of {tiling.halo} do not cover an image",
            f"choose a core of {patch} and more, and a halo from 0 to the core",
        )
    if (CELL * patch) % tiling.core or tiling.core % patch or tiling.halo % patch:
        raise ModelError(
            f"chips of {tiling.core} pixels with a halo of {tiling.halo} do not fit cells of "
            f"{CELL * patch} and patches of {patch}",
            "choose a core that divides a cell and, like the halo, is a multiple of a patch",
        )


def scene_job(
    scene: Scene,
    model: Model,
    rate: str | float | Path,
    tiling: Tiling,
    min_cosine: float | None,
    *,
    asked: bool = False,
) -> Job:
    """Return the job of a scene: shards of its token grid, read and embedded by window.

    Where its bands were `asked` for, those that the model does not take are warned of.
    """
    compressor = model.compressor(rate).guarded(min_cosine)
    scene = scene.select(usable_bands(scene.name, scene.bands, model, asked=asked))
    check_scale(scene.name, scene.gsd, model)
    source = _source(scene, model, tiling)
    grid = source.grid
    attributes = own_attributes(model, compressor, rate, scene.bands) | {
        "sources": list(scene.sources),
        "gsd": round(scene.gsd, 4),
        "scaling": asdict(scene.scaling),
        "tiling": {"core": tiling.core, "halo": tiling.halo},
    }
    return Job(
        layout=Layout.of_scene(grid, bands=compressor.basis.shape[1], time=scene.time),
        compressor=compressor,
        attributes={"nec": attributes},
        # Versions were taken before the digest: a change after it is noticed.
        fingerprint=attributes
        | {
            "source_digest": scene.digest(),
            "compressor": compressor.digest,
            "batch": tiling.batch,
            "time": str(scene.time),
        },
        source=source,
        tokens_per_chip=tiling.core // grid.patch,
    )


def collection_job(
    collection: ImageCollection,
    model: Model,
    rate: str | float | Path,
    min_cosine: float | None,
    *,
    asked: bool = False,
) -> Job:
    """Return the job of an image collection: shards of samples, each embedded whole.

    `asked` as for `scene_job`.
    """
    encoder, compressor = model.encoder, model.compressor(rate).guarded(min_cosine)
    patch = encoder.patch_size
    height, width = collection.shape
    if height % patch or width % patch:
        raise SceneError(
            f"images of {height} x {width} pixels do not fill patches of {patch}",
            "crop or pad them",
        )
    bands = usable_bands(collection.name, collection.bands, model, asked=asked)
    check_scale(collection.name, collection.gsd, model)
    attributes = own_attributes(model, compressor, rate, bands) | {
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
        source=CollectionFeatures(collection, model, bands, shard, batch),
    )


def embedding_job(source: Any, compressor: Compressor) -> Job:
    """Return the job of an array of features (y, x, band) or (sample, band) that is there."""
    dims = set(source.dims) if isinstance(source, xr.DataArray) else set()
    if dims not in ({"y", "x", "band"}, {"sample", "band"}):
        raise CompressorError(
            "with a Compressor as model, the source is a DataArray with dims y, x and band, or "
            "sample and band",
            "wrap the array: xr.DataArray(values, dims=('y', 'x', 'band'), coords=...)",
        )
    if source.dtype.kind != "f":
        raise CompressorError(
            f"the array holds {source.dtype}, which is not the embedding but a code for it",
            "decode it by the product's rule first; missing vectors are NaN",
        )
    if source.sizes["band"] != len(compressor.basis):
        raise CompressorError(
            f"the array has {source.sizes['band']} bands, the compressor {len(compressor.basis)}",
            "fit a compressor to this embedding",
        )
    attributes = {
        "model": str(source.attrs.get("model", source.name or "unknown")),
        "basis": compressor.basis_hash,
        "space": "klt",
        **_promise(compressor),
        "install": INSTALL_HINT,
    }
    if "sample" in dims:
        array = source.transpose("sample", "band")
        return _vectors_job(array, compressor, attributes)
    import odc.geo.xr  # noqa: F401 - registers .odc
    from odc.geo.geobox import GeoBox

    geobox = source.odc.geobox
    if not isinstance(geobox, GeoBox) or geobox.crs is None:
        raise SceneError("the embedding array has no CRS", "assign one: array.rio.write_crs(...)")
    grid = TokenGrid.around(geobox, patch=1, cell=CELL)
    array = source.transpose("band", "y", "x")
    return Job(
        layout=Layout.of_scene(grid, bands=compressor.basis.shape[1]),
        compressor=compressor,
        attributes={"nec": attributes},
        fingerprint=attributes
        | {
            "source_digest": _digest(array, "y", 256),
            "place": [*tuple(geobox.affine)[:6], *geobox.shape, str(geobox.crs)],
            "compressor": compressor.digest,
        },
        source=ArrayFeatures(array, grid),
        encodes=False,
    )


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return the strings of a store, which are of a type of their own, as numpy's fixed ones."""
    if values.dtype.kind not in "TO":
        return values
    held = values.tolist()
    return np.array(held) if all(isinstance(item, str) for item in held) else values


def _vectors_job(array: xr.DataArray, compressor: Compressor, attributes: dict[str, Any]) -> Job:
    """Return the job of vectors (sample, band) without a place: they are `scene_embedding`."""
    coordinates = {
        str(name): _plain(values.to_numpy())
        for name, values in array.coords.items()
        if values.dims == ("sample",)
    }
    for name, held in coordinates.items():
        if held.dtype.kind not in "biufU":
            raise CompressorError(
                f"the coordinate {name!r} of the samples holds {held.dtype}",
                "drop it, or make numbers or strings of it",
            )
    layout = Layout.of_collection(
        array.sizes["sample"], bands=compressor.basis.shape[1], coordinates=coordinates
    )
    assert layout.scene_embedding is not None
    return Job(
        layout=layout,
        # What it was fitted to are these vectors, not means of tokens.
        compressor=replace(compressor, scene_coding=compressor.coding),
        attributes={"nec": attributes},
        fingerprint=attributes
        | {
            "source_digest": _digest(array, "sample", 1 << 16),
            "coordinates": {k: v.tolist() for k, v in coordinates.items()},
            "compressor": compressor.digest,
        },
        source=VectorFeatures(array, layout.scene_embedding.chunk[0]),
        encodes=False,
    )


def _digest(array: xr.DataArray, dim: str, stride: int) -> str:
    """Return the SHA-256 of an array's values, by parts: a lazy one need not fit into memory."""
    content = hashlib.sha256()
    for at in range(0, array.sizes[dim], stride):
        part = array.isel({dim: slice(at, at + stride)}).to_numpy()
        content.update(np.ascontiguousarray(part, "<f4").tobytes())
    return content.hexdigest()


def check_scale(name: str, gsd: float, model: Model) -> None:
    """Warn of a ground sampling distance, metres, that the model does not tell from others."""
    least, most = getattr(model.encoder, "gsd_range", (0.0, math.inf))
    if not least <= gsd <= most:
        log.warning(
            "%s has pixels of %.3g m: %s has seen %g to %g m, and takes them for %g",
            *(name, gsd, model.name, least, most, min(max(gsd, least), most)),
        )


def usable_bands(
    name: str, bands: Sequence[str], model: Model, *, asked: bool = False
) -> tuple[str, ...]:
    """Return the bands that the model takes; of bands that were asked for, warn of the others.

    Where it takes one of nir and nir08, they serve each other, nir08 first.
    """
    wanted = list(model.encoder.bands)
    if not {"nir", "nir08"} <= set(wanted):
        near_infrared = "nir08" if "nir08" in bands else "nir"
        wanted = [near_infrared if b in ("nir", "nir08") else b for b in wanted]
    chosen = tuple(dict.fromkeys(b for b in wanted if b in bands))
    if not chosen:
        raise SceneError(
            f"{name} has no band that {model.name} takes (has: {', '.join(bands)}; takes: "
            f"{', '.join(model.encoder.bands)})",
            "name its bands with bands=...",
        )
    left_out = [b for b in bands if b not in chosen]
    if asked and left_out:
        log.warning(
            "%s takes no %s: the embedding of %s is made of %s alone",
            model.name,
            ", ".join(left_out),
            name,
            ", ".join(chosen),
        )
    log.info("%s: bands %s%s", name, ", ".join(chosen), f"; unused {left_out}" if left_out else "")
    return chosen


def own_attributes(
    model: Model, compressor: Compressor, rate: str | float | Path, bands: Sequence[str]
) -> dict[str, Any]:
    """Say what made a store's vectors, and from which bands, for its `nec` block."""
    takes = model.encoder.bands
    near_infrared = {"nir": "nir08", "nir08": "nir"}
    substituted = {near_infrared[b]: b for b in bands if b not in takes}
    return {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        # Left out where it is torch: stores from before there was a choice go on.
        **({} if model.backend == "torch" else {"backend": model.backend}),
        "basis": compressor.basis_hash,
        "space": "klt",
        "rate": Path(rate).name if isinstance(rate, str | Path) else rate,
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
