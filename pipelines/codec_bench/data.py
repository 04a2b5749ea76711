"""Embeddings that the codec is measured on: real ones, as features."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.products import open_embedding

# Where arrays without a place are put: the corner of a shard, so that they fill whole chunks.
CRS = "EPSG:32631"
GSD = 10.0


class Galileo(NamedTuple):
    """Tokens of Galileo-nano.

    Attributes
    ----------
    patches : ndarray of shape (6, 64, 64, 128), float32
        Of Sentinel-2 patches, to fit on.
    tiles : ndarray of shape (4, 48, 48, 128), float32
        Of the TerraMesh tiles with more than one class, to measure on.
    labels : ndarray of shape (4, 48, 48), uint8
        Majority land cover of each token.
    names : tuple of str
        Files of the tiles.
    """

    patches: NDArray[np.float32]
    tiles: NDArray[np.float32]
    labels: NDArray[np.uint8]
    names: tuple[str, ...]


def alphaearth(data: Path) -> xr.DataArray:
    """Return the AlphaEarth crop (y, x, band)."""
    file = data / "embeddings/alphaearth_dense/alphaearth_wisconsin_2024_int8.tif"
    return open_embedding(file, rule="alphaearth")


def alphaearth_numbers(data: Path) -> NDArray[np.int8]:
    """Return what the product ships for the crop, (band, y, x)."""
    import rasterio

    file = data / "embeddings/alphaearth_dense/alphaearth_wisconsin_2024_int8.tif"
    with rasterio.open(file) as dataset:
        return dataset.read()


def presto(data: Path) -> xr.DataArray:
    """Return the Presto field (y, x, band), NaN at its border."""
    values = np.load(data / "embeddings/presto_dense/presto_field_64x64.npy")
    return placed(values.reshape(64, 64, -1))


def galileo(data: Path) -> Galileo:
    """Return the Galileo tokens."""
    folder = data / "embeddings/galileo_nano_dense"
    patches = np.load(folder / "sentinel2_patches.npy").astype(np.float32)
    tiles = np.load(folder / "terramesh.npy").astype(np.float32)
    labels = np.load(folder / "terramesh_lulc.npy")
    names = (folder / "terramesh.txt").read_text().split()
    several = [i for i, tile in enumerate(labels) if len(np.unique(tile)) > 1]
    return Galileo(patches, tiles[several], labels[several], tuple(names[i] for i in several))


def alphaearth_points(data: Path) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Return lone AlphaEarth vectors (n, 64), and the region of each."""
    with np.load(data / "embeddings/alphaearth_points/alphaearth_points.npz") as archive:
        return archive["embedding"], archive["region"]


def clay(data: Path) -> NDArray[np.float32]:
    """Return lone Clay vectors (n, 768)."""
    import geopandas as gpd

    file = next((data / "embeddings/clay").glob("*.gpq"))
    return np.stack(gpd.read_parquet(file)["embeddings"]).astype(np.float32)


def halves(array: xr.DataArray) -> dict[str, xr.DataArray]:
    """Cut an array into its north and its south half."""
    middle = array.sizes["y"] // 2
    return {"north": array.isel(y=slice(middle)), "south": array.isel(y=slice(middle, None))}


def placed(values: NDArray[np.float32]) -> xr.DataArray:
    """Give features (y, x, band) a place at the corner of a shard."""
    import rioxarray  # noqa: F401 - registers .rio

    rows, columns = values.shape[:2]
    array = xr.DataArray(
        np.ascontiguousarray(values, np.float32),
        dims=("y", "x", "band"),
        coords={
            "y": -(np.arange(rows) + 0.5) * GSD,
            "x": (np.arange(columns) + 0.5) * GSD,
        },
    )
    return array.rio.write_crs(CRS)


def mirrored(values: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """Fill a square of (edge, edge, band) with mirror images of features (y, x, band).

    Mirroring keeps every neighbour a real one; it adds no new vectors.
    """
    gaps = [(0, max(edge - size, 0)) for size in values.shape[:2]]
    return np.pad(values, [*gaps, (0, 0)], mode="symmetric")[:edge, :edge]
