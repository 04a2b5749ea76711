"""Heads on a store of one shard, repeated until it is larger than the memory they may take."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from affine import Affine

import nec
from nec.compressor import Compressor
from nec.heads import BiomassRegressor, Segmenter, write_map

BANDS, SHARD, TOKENS = 24, 256, 3584
# Writable memory of a process that fits and maps. Libraries, and the stacks of as many threads as
# there are cores, take a part of it that grows when a busy machine lets threads run ahead.
LIMIT = 896 << 20


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Write a store of 14 x 14 shards, with classes and quantities all over it."""
    pipelines = Path(__file__).parents[1] / "pipelines"
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(pipelines)
    from out_of_core.store import repeat_store, write_labels
    from scipy.ndimage import gaussian_filter

    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    noise = [gaussian_filter(rng.normal(size=(SHARD, SHARD)), 6, mode="wrap") for _ in range(BANDS)]
    values = np.stack(noise, axis=-1).astype(np.float32)
    values /= values.std()
    step = 40.0
    array = xr.DataArray(
        values,
        dims=("y", "x", "band"),
        coords={
            "y": 5_898_240.0 - (np.arange(SHARD) + 0.5) * step,
            "x": 409_600.0 + (np.arange(SHARD) + 0.5) * step,
        },
    ).rio.write_crs(32633)
    compressor = Compressor.fit(values[None], bytes_per_vector=1.0)
    nec.encode(array, folder / "small.zarr", model=compressor)
    store = repeat_store(folder / "small.zarr", folder / "large.zarr", TOKENS)
    paths = {"folder": folder, "store": store}
    classes = (values[..., 0] > 0).astype(np.uint8)
    quantity = (20 + 5 * values[..., 1]).clip(0).astype(np.float32)
    for name, tile, nodata in (("classes", classes, 255), ("quantity", quantity, -1)):
        paths[name] = write_labels(
            folder / f"{name}.tif", store, tile, tiles=30, share=0.02, nodata=nodata
        )
    yield paths, classes, quantity
    patch.undo()


def test_a_repeated_store_is_a_store(places):
    paths, _, _ = places
    dataset = nec.open(paths["store"])
    assert dataset.embedding.shape == (BANDS, TOKENS, TOKENS)
    small = nec.open(paths["folder"] / "small.zarr").embedding.values
    far = dataset.embedding[:, -SHARD:, SHARD : 2 * SHARD]
    np.testing.assert_array_equal(far.values, small)
    assert nec.archive.verify(paths["store"]).ok


@pytest.mark.slow
@pytest.mark.parametrize("step", ["linear", "biomass"])
def test_a_store_larger_than_memory_is_learned_from_and_mapped(places, step):
    paths, classes, quantity = places
    from bench_out_of_core import run_step

    out = paths["folder"] / f"{step}{'.zarr' if step == 'biomass' else '.tif'}"
    found = run_step(
        step, paths | {"points": ""}, out, rows=TOKENS, limit=LIMIT, workers=2, steps=0
    )
    assert found["embedding_gib_as_float32"] * 2**30 > 1.15 * LIMIT
    assert found["mapped_tokens"] == TOKENS**2
    if step == "linear":
        with rasterio.open(out) as file:
            corner = file.read(1, window=((TOKENS - SHARD, TOKENS), (0, SHARD)))
        assert (corner == classes).mean() > 0.97
    else:
        mapped = xr.open_zarr(out).prediction
        assert mapped.rio.crs.to_epsg() == 32633
        corner = mapped[-SHARD:, :SHARD].values
        assert np.corrcoef(corner.ravel(), quantity.ravel())[0, 1] > 0.97


@pytest.mark.slow
def test_the_limit_is_one(places):
    from bench_out_of_core import run_step

    paths, _, _ = places
    # Extensions that find no memory when they are loaded may leave no exception (SystemError).
    shortage = r"(?s)failed.*(MemoryError|allocate|new thread|SystemError)"
    with pytest.raises(RuntimeError, match=shortage):
        run_step(
            "linear", paths | {"points": ""}, paths["folder"] / "no.tif",
            rows=SHARD, limit=250 << 20, workers=2, steps=0,
        )  # fmt: skip


def test_maps_in_blocks_are_those_of_one_piece(tmp_path):
    rng = np.random.default_rng(0)
    coords = {"y": -np.arange(40.0), "x": np.arange(50.0)}
    scene = xr.DataArray(
        rng.normal(size=(3, 40, 50)).astype(np.float32), dims=("band", "y", "x"), coords=coords
    ).rio.write_crs(32633)
    scene[:, 3, 4] = np.nan
    labels = np.where(rng.random((40, 50)) < 0.3, scene.values[0] ** 2, np.nan)
    lazy = scene.chunk(y=16, x=8)
    number = BiomassRegressor(block_size=8).fit(scene, labels).predict(lazy)
    whole = np.where(np.isnan(labels), -1, labels > 0.5).astype(int)
    fine = whole.repeat(4, 0).repeat(4, 1)
    classes = Segmenter(decoder="fpn", width=8, steps=2).fit(scene, fine).predict(lazy)
    for name, found in (("number", number), ("classes", classes)):
        written = xr.open_zarr(write_map(found, tmp_path / f"{name}.zarr", block=2))[found.name]
        np.testing.assert_array_equal(written.values, found.values)
        assert written.rio.crs == found.rio.crs
        assert written.rio.transform() == found.rio.transform()
        with rasterio.open(write_map(found, tmp_path / f"{name}.tif", block=2)) as file:
            read = file.read(1).astype(float)
            assert file.transform == Affine(*found.rio.transform()[:6])
        missing = np.isnan(found.values) if name == "number" else found.values < 0
        np.testing.assert_array_equal(read[~missing], found.values[~missing])
    # What is there is replaced, unless it is something else.
    write_map(number, tmp_path / "number.zarr")
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "mine.txt").write_text("kept")
    with pytest.raises(nec.errors.HeadError, match="no Zarr group"):
        write_map(number, tmp_path / "folder.zarr")
