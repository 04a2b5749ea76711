"""Scenes to produce from: cut out of real ones, or tiled from them to the size that is wanted."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")
# Edge of a shard, pixels: 256 tokens of 4.
SHARD = 1024
# Pixels of a Sentinel-2 tile, each way.
TILE = 10980


def real_numbers(data: Path) -> NDArray[np.uint16]:
    """Return the valid part of the Landsat scene: (6, 384, 384) digital numbers, no nodata."""
    with rasterio.open(data / "scenes" / "landsat8_calgary.tif") as scene:
        numbers = scene.read()
    valid = (numbers > 0).all(0)
    edge = 384
    for row in range(0, valid.shape[0] - edge, 64):
        for column in range(0, valid.shape[1] - edge, 64):
            if valid[row : row + edge, column : column + edge].all():
                return numbers[:, row : row + edge, column : column + edge]
    raise ValueError(f"the scene has no {edge} x {edge} pixels without nodata")


def write_tiled(
    path: Path, numbers: NDArray[np.uint16], shape: tuple[int, int], *, corner: tuple[float, float]
) -> Path:
    """Write numbers, mirrored at every border, to a GeoTIFF of any size; reflectance tags.

    Parameters
    ----------
    path : Path
    numbers : ndarray of shape (6, y, x), uint16
        Landsat level 1.
    shape : tuple of int
        Rows and columns of the file.
    corner : tuple of float
        Upper left corner in EPSG:32633, metres.
    """
    height, width = shape
    block = 512
    mirrored = np.concatenate([numbers, numbers[:, ::-1]], 1)
    mirrored = np.concatenate([mirrored, mirrored[:, :, ::-1]], 2)
    rows, columns = mirrored.shape[1:]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(numbers),
        height=height,
        width=width,
        dtype="uint16",
        crs="EPSG:32633",
        transform=Affine(10, 0, corner[0], 0, -10, corner[1]),
        tiled=True,
        blockxsize=block,
        blockysize=block,
        compress="deflate",
        bigtiff="if_safer",
    ) as file:
        for row in range(0, height, block):
            count = min(block, height - row)
            at = np.arange(row, row + count) % rows
            strip = mirrored[:, at][:, :, np.arange(width) % columns]
            file.write(strip, window=((row, row + count), (0, width)))
        file.descriptions = BANDS
        file.scales, file.offsets = (2e-5,) * len(numbers), (-0.1,) * len(numbers)
    return path


def write_small(folder: Path, numbers: NDArray[np.uint16], count: int, *, edge: int = 96) -> Path:
    """Write small scenes of different pixels, each across the corner of four shards."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        row, column = rng.integers(0, numbers.shape[1] - edge, 2)
        part = numbers[:, row : row + edge, column : column + edge]
        # Shards are counted from the CRS's origin: a corner of four lies at multiples of them.
        x, y = (10 * (SHARD * (40 + index) - edge // 2) for _ in range(2))
        write_tiled(folder / f"scene{index:03}.tif", part, (edge, edge), corner=(x, 10 * edge + y))
    return folder
