"""A store of any size with the shard of a small one everywhere, and labels that repeat with it."""

import os
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from nec.archive import (
    Layout,
    Receipt,
    StoreWriter,
    TokenGrid,
    is_sealed,
    open_store,
    read_basis,
    seal,
)
from nec.archive.creation import read_root, stored_arrays, stored_codec
from nec.archive.receipts import StoredObject
from nec.sampling import Lattice, without_time

# What a store says of its own run, and not of its content.
OWN = ("format_version", "fingerprint", "seal", "tasks", "payload_bytes", "sources", "vectors")


def repeat_store(small: Path, large: Path, tokens: int) -> Path:
    """Write a sealed store of `tokens` x `tokens` tokens, all of whose shards are one.

    Every shard is a hard link to the upper left one of the small store (a copy where the file
    system has no links): each read fetches, checks and decodes it like any other.

    Parameters
    ----------
    small : Path
        An undated store, or one of one date, whose first shard is full.
    large : Path
        Taken as it is where it is there and sealed.
    tokens : int
        Whole cells of 16.
    """
    if is_sealed(large):
        return large
    root = read_root(small)
    array = without_time(open_store(small)["embedding"])
    lattice, stored = Lattice.of(array), stored_arrays(root)
    inner, shard = stored["embedding"].chunk[-1], stored["embedding"].object_shape[-1]
    cell = shard // stored["scene_embedding"].object_shape[-1]
    grid = TokenGrid(
        crs_wkt=lattice.crs.to_wkt(),
        pixel=(lattice.step[1], -lattice.step[0]),
        origin=lattice.corner[::-1],
        shape=(tokens, tokens),
        patch=1,
        chunk=inner,
        shard=shard,
        cell=cell,
        scene_offset=(0, 0),
        scene_shape=(tokens, tokens),
        epsg=lattice.crs.to_epsg(),
    )
    layout = Layout.of_scene(grid, bands=array.sizes["band"])
    own = {k: v for k, v in root["attributes"]["nec"].items() if k not in OWN}
    writer = StoreWriter.create_or_resume(
        large,
        layout,
        codec=stored_codec(root, "embedding"),
        scene_codec=stored_codec(root, "scene_embedding"),
        attributes={"nec": own},
        basis=read_basis(small),
        fingerprint=f"{root['attributes']['nec']['fingerprint']}, repeated to {tokens}",
    )
    first = layout.tasks()[0]
    sources = {a.name: small / stored[a.name].key(first) for a in layout.arrays()}
    objects = {name: StoredObject.of(path.read_bytes()) for name, path in sources.items()}
    for task in layout.tasks():
        keys = {a.name: a.key(task) for a in layout.arrays()}
        for name, key in keys.items():
            _link(sources[name], large / key)
        receipt = Receipt(
            task, "written", writer.fingerprint, {key: objects[n] for n, key in keys.items()}
        )
        # Not by Receipt.save: nothing here has to outlive a power cut.
        path = large / receipt.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(receipt.to_bytes())
    writer.finish()
    seal(large)
    return large


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def write_labels(
    path: Path, store: Path, tile: NDArray[np.generic], *, tiles: int, share: float, nodata: float
) -> Path:
    """Write a raster on the tokens of a store: in some shards some tokens have their label.

    Parameters
    ----------
    path : Path
        GeoTIFF; blocks without labels take no space.
    store : Path
        Where the labels lie.
    tile : ndarray of shape (shard, shard)
        Labels of one shard; `nodata` where there is none.
    tiles : int
        Shards that hold labels.
    share : float
        Of the tokens of such a shard.
    nodata : float
    """
    array = without_time(open_store(store)["embedding"])
    edge, (height, width) = len(tile), (array.sizes["y"], array.sizes["x"])
    rng = np.random.default_rng(0)
    places = [(r, c) for r in range(height // edge) for c in range(width // edge)]
    lattice = Lattice.of(array)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=height,
        width=width,
        dtype=tile.dtype,
        nodata=nodata,
        crs=lattice.crs,
        transform=Affine.from_gdal(*lattice.transform),
        tiled=True,
        blockxsize=edge,
        blockysize=edge,
        compress="deflate",
        sparse_ok=True,
    ) as raster:
        for at in sorted(rng.permutation(len(places))[:tiles].tolist()):
            row, column = places[at]
            kept = np.where(rng.random(tile.shape) < share, tile, tile.dtype.type(nodata))
            window = ((row * edge, (row + 1) * edge), (column * edge, (column + 1) * edge))
            raster.write(kept, 1, window=window)
    return path
