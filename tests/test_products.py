"""Embeddings of others go in by file and come out of a store."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from conftest import RasterWriter
from typer.testing import CliRunner

import nec
from nec.cli import app
from nec.errors import CompressorError
from nec.products import open_embedding


def smooth(bands: int = 6) -> np.ndarray:
    """Smooth fields (band, y, x) of unit vectors."""
    y, x = np.mgrid[:70, :50] / 40
    fields = np.stack([np.cos((1 + b) * y + b * x + b) / (1 + b) for b in range(bands)])
    return (fields / np.linalg.norm(fields, axis=0)).astype(np.float32)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_an_int8_product_through_the_command_line(
    write_raster: RasterWriter, tmp_path: Path
) -> None:
    values = smooth()
    numbers = np.rint(np.sign(values) * np.sqrt(np.abs(values)) * 127.5).clip(-127, 127)
    numbers[:, :4, :6] = -128
    product = write_raster("product.tif", numbers.astype(np.int8))
    fitted, store = tmp_path / "c.json", tmp_path / "s.zarr"
    assert "cosine" in run("fit", product, fitted, "--cosine", "0.995", "--rule", "alphaearth")
    assert "vectors" in run("encode", product, store, "--model", fitted, "--rule", "alphaearth")
    dataset = xr.open_zarr(store)
    features = dataset.nec.features()
    array = open_embedding(product, rule="alphaearth")
    decoded = features.sel(y=array.y, x=array.x).transpose("y", "x", "feature").to_numpy()
    assert np.array_equal(np.isnan(decoded), np.isnan(array.to_numpy()))
    assert np.isnan(decoded[:4, :6]).all()
    original = array.to_numpy()
    cosine = (decoded * original).sum(-1) / (
        np.linalg.norm(decoded, axis=-1) * np.linalg.norm(original, axis=-1)
    )
    assert np.nanmean(cosine) == pytest.approx(0.995, abs=0.003)


def test_files_of_floats(tmp_path: Path) -> None:
    values = np.moveaxis(smooth(), 0, -1)
    np.save(tmp_path / "a.npy", values)
    assert np.array_equal(open_embedding(tmp_path / "a.npy"), values)
    dataset = xr.Dataset({"e": (("band", "y", "x"), smooth())})
    dataset.to_zarr(tmp_path / "a.zarr", consolidated=False)
    assert np.array_equal(open_embedding(tmp_path / "a.zarr"), values)
    assert "B a vector" in run("fit", tmp_path / "a.npy", tmp_path / "c.json", "--bytes", "0.5")


def test_tags_of_rasters_are_heard(tmp_path: Path) -> None:
    values = np.moveaxis(smooth(), 0, -1)
    bands = np.moveaxis(values, -1, 0)
    profile = {"driver": "GTiff", "dtype": "float32", "count": len(bands), "crs": 32633}
    where = {"height": bands.shape[1], "width": bands.shape[2], "transform": Affine.scale(10, -10)}
    for scales in ((0.5,) * len(bands), tuple(1.0 + np.arange(len(bands)))):
        with rasterio.open(tmp_path / "t.tif", "w", **profile, **where) as file:
            file.write(((bands - 3) / np.array(scales)[:, None, None]).astype(np.float32))
            file.scales, file.offsets = scales, (3.0,) * len(bands)
        np.testing.assert_allclose(open_embedding(tmp_path / "t.tif"), values, atol=1e-5)


def test_what_is_no_embedding_says_why(write_raster: RasterWriter, tmp_path: Path) -> None:
    numbers = write_raster("n.tif", np.ones((3, 8, 8), np.int8))
    with pytest.raises(CompressorError, match="a code and not the embedding"):
        open_embedding(numbers)
    with pytest.raises(CompressorError, match="no rule 'clay'"):
        open_embedding(numbers, rule="clay")
    np.save(tmp_path / "flat.npy", np.ones(4, np.float32))
    (tmp_path / "empty.npy").touch()
    for name in ("flat.npy", "empty.npy"):
        with pytest.raises(CompressorError, match="cannot be read"):
            open_embedding(tmp_path / name)
    np.save(tmp_path / "f.npy", np.ones((4, 3, 2), np.float32))
    with pytest.raises(CompressorError, match="decodes int8"):
        open_embedding(tmp_path / "f.npy", rule="alphaearth")


@pytest.mark.shared
def test_the_alphaearth_crop(shared: Path) -> None:
    crop = shared / "embeddings" / "alphaearth_dense" / "alphaearth_wisconsin_2024_int8.tif"
    array = open_embedding(crop, rule="alphaearth")
    assert array.shape == (99, 99, 64)
    norm = np.linalg.norm(array.to_numpy(), axis=-1)
    assert np.abs(norm - 1).max() < 0.02


def kinds(count: int) -> np.ndarray:
    """Vectors (n, 6) of a few kinds."""
    rng = np.random.default_rng(count)
    centres = np.random.default_rng(0).normal(size=(12, 6))
    vectors = centres[rng.integers(12, size=count)] + 0.1 * rng.normal(size=(count, 6))
    return vectors.astype(np.float32)


def test_vectors_without_a_place(tmp_path: Path) -> None:
    vectors, fitted, store = kinds(2300), tmp_path / "v.json", tmp_path / "s.zarr"
    vectors[7] = np.nan
    np.save(tmp_path / "v.npy", vectors)
    assert "B a vector" in run("fit", tmp_path / "v.npy", fitted, "--bytes", "1")
    assert "2,299 vectors" in run("encode", tmp_path / "v.npy", store, "--model", fitted)
    assert nec.verify(store).ok
    run("seal", store)
    dataset = nec.open(store)
    assert dict(dataset.sizes) == {"sample": 2300, "band": 6}
    assert dataset.nec.info["format_version"] == 2
    decoded = dataset.nec.features("scene_embedding").to_numpy()
    assert np.isnan(decoded[7]).all()
    valid = ~np.isnan(vectors).any(1)
    assert np.array_equal(~np.isnan(decoded).any(1), valid)
    cosine = (vectors * decoded).sum(1) / np.linalg.norm(vectors, axis=1)
    assert np.nanmean(cosine / np.linalg.norm(decoded, axis=1)) > 0.99
    size = sum(f.stat().st_size for f in (store / "scene_embedding/c").rglob("*") if f.is_file())
    assert size / 2299 < 1.1
    # Labels go along, from Python.
    array = xr.DataArray(
        vectors, dims=("sample", "band"), coords={"label": ("sample", np.arange(2300) % 3)}
    )
    nec.encode(array, tmp_path / "l.zarr", model=nec.Compressor.load(fitted))
    dated = array.assign_coords(day=("sample", np.full(2300, "2020-01-01", "datetime64[s]")))
    with pytest.raises(CompressorError, match="'day' of the samples holds datetime64"):
        nec.encode(dated, tmp_path / "d.zarr", model=nec.Compressor.load(fitted))
    again = xr.open_zarr(tmp_path / "l.zarr")
    assert np.array_equal(again.label, array.label)
    same = xr.open_zarr(store).scene_embedding
    assert np.array_equal(again.scene_embedding, same, equal_nan=True)
