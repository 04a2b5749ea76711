"""Scenes to stores at every rate: bytes, place, nodata, seams, fidelity, time."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from numpy.typing import NDArray

import nec
from nec.archive import TokenGrid
from nec.encoders import Encoder
from nec.encoders.tiling import Tiling, embed_image
from nec.model import RATES, Model
from nec.rotation import rotate
from nec.sampling import without_time
from nec.scene import Scene, open_scene

SCENES = {
    "calgary": "scenes/landsat8_calgary.tif",
    "alberta": "scenes/sentinel2_alberta.tif",
    "saxony": "scenes/sentinel2_saxony_l1c",
}
THREADS = 2


@dataclass(frozen=True)
class EncodedScene:
    """A scene with its stores, its uncompressed embedding and its pixels, on one token grid.

    Attributes
    ----------
    scene : Scene
        Its bands are those that the encoder sees.
    grid : TokenGrid
        Tokens.
    stores : dict of str to Path
        By rate.
    features : ndarray of shape (dim, y, x), float32
        Of the encoder, not rotated, NaN where missing.
    template : DataArray (band, y, x)
        Lazy embedding of a store, for its coordinates.
    """

    scene: Scene
    grid: TokenGrid
    stores: dict[str, Path]
    features: NDArray[np.float32]
    template: xr.DataArray

    def uncompressed(self, model: Model) -> xr.DataArray:
        """Return the float32 embedding in the store's basis and place."""
        return self.placed(rotate(self.features, model.basis), basis=model.basis_hash)

    def decoded(self, rate: str) -> xr.DataArray:
        """Open a store with plain xarray and read its embedding (band, y, x)."""
        with xr.open_zarr(self.stores[rate]) as dataset:
            return without_time(dataset["embedding"]).load()

    def pixels(self) -> xr.DataArray:
        """Return the pixels of each token (band x row x column, y, x), reflectance.

        A missing pixel of a token that counts as valid takes the mean of the token's others.
        """
        patch = self.grid.patch
        rows, columns = self.grid.shape
        top, left = self.grid.scene_offset
        image = self.scene.read(
            slice(-top, rows * patch - top), slice(-left, columns * patch - left)
        )
        cut = image.reshape(len(image), rows, patch, columns, patch).transpose(0, 2, 4, 1, 3)
        cut = cut.reshape(len(image), patch * patch, rows, columns)
        count = (~np.isnan(cut)).sum(1, keepdims=True)
        mean = np.nansum(cut, axis=1, keepdims=True) / np.maximum(count, 1)
        filled = np.where(np.isnan(cut), mean, cut)
        filled[:, :, np.isnan(self.features).any(0)] = np.nan
        return self.placed(filled.reshape(-1, rows, columns).astype(np.float32))

    def placed(self, values: NDArray[np.float32], basis: str | None = None) -> xr.DataArray:
        """Give (band, y, x) values the coordinates and the CRS of the store."""
        array = xr.DataArray(
            values,
            dims=("band", "y", "x"),
            coords={k: self.template.coords[k] for k in ("y", "x", "spatial_ref")},
            attrs={} if basis is None else {"nec_basis": basis},
        )
        array.encoding["grid_mapping"] = "spatial_ref"
        return array


def embed_scene(
    encoder: Encoder, scene: Scene, grid: TokenGrid, tiling: Tiling
) -> NDArray[np.float32]:
    """Embed a scene in memory, from the chips that an encoding run takes."""

    def work(task: Any) -> NDArray[np.float32]:
        image = scene.read(*grid.pixel_window(task, tiling.margin))
        return embed_image(encoder, image, bands=scene.bands, gsd=scene.gsd, tiling=tiling)

    out = np.full((encoder.dim, *grid.shape), np.nan, np.float32)
    with ThreadPoolExecutor(THREADS) as pool:
        for task, part in zip(grid.tasks(), pool.map(work, grid.tasks()), strict=True):
            out[:, grid.task_rows(task), grid.task_columns(task)] = part
    return out


def bench_scene(source: Path, folder: Path, model: Model) -> tuple[dict[str, Any], EncodedScene]:
    """Encode a scene at every rate and measure it.

    Parameters
    ----------
    source : Path
        The scene.
    folder : Path
        Where the stores go.
    model : Model
    """
    stores, reports, seconds = {}, {}, {}
    for rate in RATES:
        stores[rate] = folder / f"{source.stem}_{rate}.zarr"
        start = time.perf_counter()
        reports[rate] = nec.encode(source, stores[rate], model=model, rate=rate)
        seconds[rate] = time.perf_counter() - start
        nec.seal(stores[rate])
    dataset = xr.open_zarr(stores["medium"])
    own = dataset.attrs["nec"]
    scene = open_scene(source).select(own["bands"])
    grid = TokenGrid.around(scene.geobox, patch=model.encoder.patch_size)
    start = time.perf_counter()
    features = embed_scene(model.encoder, scene, grid, Tiling(**own["tiling"]))
    embedding_seconds = time.perf_counter() - start
    encoded = EncodedScene(scene, grid, stores, features, without_time(dataset["embedding"]))

    raw = _raw_bytes(source, scene)
    vectors = int((~np.isnan(features).any(0)).sum())
    result: dict[str, Any] = {
        "source": source.name,
        "bands": list(scene.bands),
        "substituted": own.get("substituted", {}),
        "gsd": round(scene.gsd, 3),
        "tokens_valid": vectors,
        "raw": raw,
        "embedding_bytes": {"float32": vectors * 4 * model.encoder.dim},
        "embedding_seconds": round(embedding_seconds, 2),
        "rates": {},
    }
    result["embedding_bytes"]["int8"] = vectors * model.encoder.dim
    reference = _reference(source, scene)
    for rate in RATES:
        size = disk_bytes(stores[rate])
        read_seconds = [_read_seconds(stores[rate]) for _ in range(3)]
        decoded = encoded.decoded(rate)
        entry = {
            **size,
            "bytes_per_token": round(size["payload"]["embedding"] / vectors, 4),
            "ratio": {
                name: round(whole / size["total"], 2)
                for name, whole in {
                    "raw_file": raw["file"],
                    "raw_uint16": raw["uint16"],
                    "float32": vectors * 4 * model.encoder.dim,
                    "int8": vectors * model.encoder.dim,
                }.items()
            },
            "pays_off": _break_even(size, vectors, raw, scene, grid, model.encoder.dim),
            "fidelity": _fidelity(encoded.uncompressed(model).values, decoded.values),
            "fidelity_reported": {
                "cosine_mean": round(reports[rate].cosine_mean, 5),
                "cosine_min": round(reports[rate].cosine_min, 5),
            },
            "seam": reports[rate].seam,
            "place": check_place(decoded, reference, grid.patch),
            "encode_seconds": round(seconds[rate], 2),
            "open_and_read_seconds": round(float(np.median(read_seconds)), 3),
        }
        result["rates"][rate] = entry
    return result, encoded


def disk_bytes(store: Path) -> dict[str, Any]:
    """Bytes of a store on disk: payload by array, and what is fixed by kind."""
    payload = {"embedding": 0, "scene_embedding": 0}
    fixed = {"metadata": 0, "coordinates": 0, "basis": 0, "manifest": 0}
    for path in store.rglob("*"):
        if not path.is_file():
            continue
        key = path.relative_to(store).as_posix()
        size = path.stat().st_size
        array = key.partition("/c/")[0]
        if array in payload:
            payload[array] += size
        elif path.name == "zarr.json":
            fixed["metadata"] += size
        elif array == "nec/basis":
            fixed["basis"] += size
        elif key.startswith(("nec/manifest", "nec/receipts")):
            fixed["manifest"] += size
        else:
            fixed["coordinates"] += size
    total = sum(payload.values()) + sum(fixed.values())
    return {"payload": payload, "fixed": fixed, "fixed_bytes": sum(fixed.values()), "total": total}


def check_place(decoded: xr.DataArray, reference: dict[str, Any], patch: int) -> dict[str, Any]:
    """Hold a store's coordinates and missing tokens against rasterio's reading of the scene.

    Parameters
    ----------
    decoded : DataArray (band, y, x)
        As read from the store.
    reference : dict
        `transform`, `crs` and `missing` (rows, columns) of the scene, as rasterio has them.
    patch : int
        Edge of a token, pixels.

    Returns
    -------
    dict
        `corner_error_pixels`: how far the corners of the store's valid area lie from where the
        scene's pixels and the rule for missing tokens (more than half of the pixels missing)
        put them; `lattice_error_pixels`: how far the grid is off the scene's pixel lattice;
        `mask_differences`: tokens that are missing on one side only.
    """
    import rioxarray  # noqa: F401 - registers .rio

    transform, missing = reference["transform"], reference["missing"]
    empty = np.isnan(decoded.values).any(0)
    edges = {}
    for axis, (dim, step, origin) in enumerate(
        (("y", transform.e, transform.f), ("x", transform.a, transform.c))
    ):
        centres = decoded[dim].values
        spacing = (centres[-1] - centres[0]) / (len(centres) - 1)
        outer = np.append(centres - spacing / 2, centres[-1] + spacing / 2)
        edges[axis] = (outer - origin) / step  # scene pixels
    first = [round(float(edges[axis][0])) for axis in (0, 1)]
    lattice = max(
        float(np.abs(edges[axis] - (first[axis] + patch * np.arange(len(edges[axis])))).max())
        for axis in (0, 1)
    )
    canvas = np.ones([s * patch for s in empty.shape], bool)
    canvas[-first[0] : missing.shape[0] - first[0], -first[1] : missing.shape[1] - first[1]] = (
        missing
    )
    rows, columns = empty.shape
    share = canvas.reshape(rows, patch, columns, patch).mean((1, 3))
    expected = share > 0.5
    found, wanted, own = [], [], []
    for axis in (0, 1):
        in_store = np.flatnonzero(~empty.all(1 - axis))
        by_rule = np.flatnonzero(~expected.all(1 - axis))
        in_scene = np.flatnonzero(~missing.all(1 - axis))
        found += [float(edges[axis][in_store[0]]), float(edges[axis][in_store[-1] + 1])]
        wanted += [first[axis] + patch * by_rule[0], first[axis] + patch * (by_rule[-1] + 1)]
        own += [int(in_scene[0]), int(in_scene[-1]) + 1]
    return {
        "corner_error_pixels": round(float(np.abs(np.subtract(found, wanted)).max()), 6),
        "lattice_error_pixels": round(lattice, 6),
        "valid_rows_and_columns": {
            "store_pixels": [round(v, 4) for v in found],
            "scene_pixels": own,
            "largest_rounding_pixels": round(float(np.abs(np.subtract(found, own)).max()), 4),
        },
        "mask_differences": int((empty != expected).sum()),
        "missing_share": round(float(missing.mean()), 4),
        "nodata_is_nan": bool(empty[share == 1].all()),
        "crs_equal": bool(decoded.rio.crs == reference["crs"]),
    }


def _reference(source: Path, scene: Scene) -> dict[str, Any]:
    """Read transform, CRS and missing pixels of a scene with rasterio alone."""
    files = [source] if source.is_file() else [source / name for name in scene.sources]
    missing, finest = [], None
    for file in files:
        with rasterio.open(file) as dataset:
            if finest is None or dataset.transform.a < finest[0].a:
                finest = (dataset.transform, dataset.crs, dataset.shape)
            if dataset.nodata is not None:
                missing.append((dataset.read() == dataset.nodata).any(0))
    assert finest is not None
    nothing = np.zeros(finest[2], bool)
    absent = np.logical_or.reduce([nothing, *missing])
    return {"transform": finest[0], "crs": finest[1], "missing": absent}


def _raw_bytes(source: Path, scene: Scene) -> dict[str, int]:
    """Bytes of the bands used: the file(s) as stored, and plain uint16 at native resolution."""
    files = [source] if source.is_file() else [source / name for name in scene.sources]
    plain = 0
    for file in files:
        with rasterio.open(file) as dataset:
            plain += 2 * dataset.width * dataset.height * dataset.count
    return {"file": sum(f.stat().st_size for f in files), "files": len(files), "uint16": plain}


def _read_seconds(store: Path) -> float:
    start = time.perf_counter()
    with xr.open_zarr(store) as dataset:
        dataset.load()
    return time.perf_counter() - start


def _fidelity(original: NDArray[np.float32], decoded: NDArray[np.float32]) -> dict[str, float]:
    valid = ~np.isnan(original).any(0)
    a, b = (v[:, valid].astype(np.float64) for v in (original, decoded))
    cosine = (a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    spread = ((a - a.mean(1, keepdims=True)) ** 2).sum()
    return {
        # The mean vector is most of every vector: what differs between tokens counts.
        "variance_kept": round(float(1 - ((a - b) ** 2).sum() / spread), 5),
        "cosine_mean": round(float(cosine.mean()), 5),
        "cosine_p01": round(float(np.quantile(cosine, 0.01)), 5),
        "cosine_min": round(float(cosine.min()), 5),
    }


def _break_even(
    size: dict[str, Any], vectors: int, raw: dict[str, int], scene: Scene, grid: TokenGrid, dim: int
) -> dict[str, float]:
    """Area (km2) from which the whole store is smaller than each of the others."""
    variable = sum(size["payload"].values()) / vectors
    square = (grid.patch * scene.gsd / 1000) ** 2
    others = {"float32": 4 * dim, "int8": dim, "raw_file": raw["file"] / vectors}
    return {
        f"km2_against_{name}": round(size["fixed_bytes"] / (each - variable) * square, 3)
        for name, each in others.items()
        if each > variable
    }
