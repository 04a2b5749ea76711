"""Stores of a compressor: written as a producer would, read with plain xarray, measured."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from main_job.scenes import disk_bytes
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

import nec
from nec.codec import NecCodec
from nec.compressor import Compressor
from nec.rotation import rotate


def measure_store(features: xr.DataArray, compressor: Compressor) -> dict[str, Any]:
    """Encode features (y, x, band) to a sealed store, read it back, and measure it.

    Returns
    -------
    dict
        Bytes and fidelity; see `fidelity`. `bytes_per_vector` is the payload of `embedding`:
        shards with their chunks, masks, checksums and indexes. `scene_embedding` and what is
        fixed stand apart.
    """
    size, decoded = roundtrip(features, compressor)
    original = features.transpose("y", "x", "band").to_numpy()
    valid = ~np.isnan(original).any(-1)
    vectors = int(valid.sum())
    return {
        "bytes_per_vector": round(size["payload"]["embedding"] / vectors, 4),
        "scene_embedding_per_vector": round(size["payload"]["scene_embedding"] / vectors, 4),
        "fixed_bytes": size["fixed_bytes"],
        **fidelity(original[valid], decoded[valid]),
    }


def roundtrip(
    features: xr.DataArray, compressor: Compressor
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Write a store of features (y, x, band); return its bytes, and the features as decoded."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "half.zarr"
        nec.encode(features, store, model=compressor, workers=1)
        nec.seal(store)
        size = disk_bytes(store)
        with xr.open_zarr(store) as dataset:
            # The grid reaches out to whole shards: the features' own part of it.
            place = {d: features[d].to_numpy() for d in ("y", "x")}
            part = dataset["embedding"].sel(place, method="nearest", tolerance=1e-3).load()
    rotated = part.transpose("y", "x", "band").to_numpy()
    return size, rotated @ compressor.basis.T


def measure_lone(
    vectors: NDArray[np.float32], compressor: Compressor, chunk: int
) -> dict[str, Any]:
    """Write lone vectors (n, feature) as samples, `chunk` to a chunk; read them and measure."""
    values = rotate(vectors, compressor.basis)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "lone.zarr"
        root = zarr.create_group(store, zarr_format=3)
        array = root.create_array(
            "embedding",
            shape=values.shape,
            chunks=(chunk, values.shape[1]),
            dtype="float32",
            fill_value=float("nan"),
            serializer=NecCodec(compressor.coding),
            compressors=(Crc32cCodec(),),
            dimension_names=("sample", "band"),
        )
        array[:] = values
        payload = sum(f.stat().st_size for f in (store / "embedding/c").rglob("*") if f.is_file())
        fixed = (store / "embedding/zarr.json").stat().st_size + compressor.basis.nbytes
        with xr.open_zarr(store, consolidated=False) as dataset:
            decoded = dataset["embedding"].to_numpy() @ compressor.basis.T
    return {
        "bytes_per_vector": round(payload / len(vectors), 4),
        "fixed_bytes": fixed,
        **fidelity(vectors, decoded),
    }


def fidelity(original: NDArray[np.float32], decoded: NDArray[np.float32]) -> dict[str, float]:
    """Compare features (n, feature): cosines, squared error a vector, share of variance kept."""
    a, b = original.astype(np.float64), decoded.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.maximum(norms, 1e-30)
    error = ((a - b) ** 2).sum(1)
    spread = ((a - a.mean(0)) ** 2).sum(1)
    return {
        "cosine_mean": round(float(cosine.mean()), 8),
        "cosine_p01": round(float(np.quantile(cosine, 0.01)), 8),
        "cosine_min": round(float(cosine.min()), 8),
        "squared_error": float(f"{error.mean():.6g}"),
        "variance_kept": round(float(1 - error.sum() / spread.sum()), 6),
    }


def bytes_at(points: list[dict[str, Any]], cosine: float) -> float | None:
    """Return the bytes a vector at which a curve reaches a mean cosine; None outside of it.

    Between points the log of the bytes is a straight line over the log of 1 - cosine.
    """
    ordered = sorted(points, key=lambda p: p["cosine_mean"])
    loss = -np.log([max(1 - p["cosine_mean"], 1e-12) for p in ordered])
    wanted = -np.log(1 - cosine)
    if not loss[0] <= wanted <= loss[-1]:
        return None
    size = np.interp(wanted, loss, np.log([p["bytes_per_vector"] for p in ordered]))
    return round(float(np.exp(size)), 4)
