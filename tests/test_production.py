"""From a source to a store that plain xarray opens, and every way in which that can end."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from conftest import RasterWriter

import nec
from nec.archive import StoreWriter
from nec.encoders.tiling import Tiling
from nec.errors import CompressorError, ModelError, NecError, SceneError, StoreError
from nec.model import Model
from nec.production import Progress
from nec.production.features import pool_cells
from nec.production.job import check_tiling
from nec.production.measures import task_figures
from nec.scene import ImageCollection, open_scene


@pytest.fixture(scope="module")
def model() -> Model:
    return nec.load_model("nec-tiny", precision="float32")


@pytest.fixture(scope="module")
def store(rendered_scene: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "scene.zarr"
    nec.encode(rendered_scene, path, model=model)
    return path


def objects(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def test_plain_xarray_opens_what_was_encoded(store: Path, rendered_scene: Path) -> None:
    import rioxarray  # noqa: F401 - registers .rio

    dataset = xr.open_zarr(store)
    embedding = dataset["embedding"]
    assert embedding.dims == ("band", "y", "x")
    assert embedding.dtype == np.float32
    with rasterio.open(rendered_scene) as scene:
        assert dataset.rio.crs == scene.crs
        valid = scene.read().min(0) > 0
        left, top = scene.bounds.left, scene.bounds.top
    seen = embedding.notnull().all("band").to_numpy()
    assert np.array_equal(seen, embedding.notnull().any("band"))
    # Every token's corner lies on the scene's own pixel lattice.
    x = (dataset.x.to_numpy() - 20 - left) / 10
    y = (top - dataset.y.to_numpy() - 20) / 10
    assert np.abs(x - np.rint(x)).max() < 1e-6
    assert np.abs(y - np.rint(y)).max() < 1e-6
    # A token is there where at least half of its pixels are.
    rows, columns = np.rint(y).astype(int), np.rint(x).astype(int)
    share = np.zeros(seen.shape)
    padded = np.pad(valid, 2048)
    for i, row in enumerate(rows + 2048):
        for j, column in enumerate(columns + 2048):
            share[i, j] = padded[row : row + 4, column : column + 4].mean()
    assert np.array_equal(seen, share >= 0.5)
    assert seen.any()
    assert not seen.all()


def test_what_the_store_says_of_itself(store: Path, model: Model, tmp_path: Path) -> None:
    dataset = nec.open(store)
    info = dataset.nec.info
    assert dataset.nec.model == "nec-tiny"
    assert info["basis"] == model.basis_hash
    assert info["bands"] == list(model.encoder.bands)
    assert 0.9 < info["cosine"]["mean"] <= 1
    # No phase of a chip shows as a seam: neighbours differ there no more than elsewhere.
    seam = info["seam"]
    assert 1 - seam["cosine_worst_phase"] < 1.6 * (1 - seam["cosine_inside"])
    payload = sum(len(data) for key, data in objects(store).items() if "embedding/c/" in key)
    assert sum(info["payload_bytes"].values()) == payload
    assert payload < 2.0 * info["vectors"]
    png = dataset.nec.quicklook(tmp_path / "look.png")
    assert png.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(StoreError, match="no component 999 among"):
        dataset.nec.quicklook(tmp_path / "look.png", components=(0, 1, 999))
    with pytest.raises(StoreError, match="nec block"):
        _ = xr.Dataset().nec.info


def test_features_rotate_back(store: Path, rendered_scene: Path, model: Model) -> None:
    from nec.archive import TokenGrid
    from nec.encoders.tiling import Tiling, embed_image

    dataset = xr.open_zarr(store)
    features = dataset.nec.features()
    assert features.dims == ("feature", "y", "x")
    assert features.attrs["nec_basis"] == "features of nec-tiny"
    # One chip in the middle of the scene, embedded alone, is the store's but for the coding.
    scene = open_scene(rendered_scene)
    grid = TokenGrid.around(scene.geobox, patch=4)
    tiling = Tiling()
    row, column = ((grid.scene_offset[i] // 64 + 2) * 64 for i in (0, 1))  # a chip of the grid
    at = (row - grid.scene_offset[0], column - grid.scene_offset[1])  # in the scene's pixels
    window = scene.read(*(slice(a - tiling.margin, a + tiling.core + tiling.margin) for a in at))
    one = embed_image(model.encoder, window, bands=scene.bands, gsd=scene.gsd, tiling=tiling)
    part = features[:, row // 4 : row // 4 + 16, column // 4 : column // 4 + 16].to_numpy()
    cosine = (one * part).sum(0) / np.linalg.norm(one, axis=0) / np.linalg.norm(part, axis=0)
    assert np.nanmean(cosine) == pytest.approx(dataset.nec.info["cosine"]["mean"], abs=0.03)
    # A subset of bands rotates with its own rows of the basis.
    few = dataset.isel(band=[3, 0])
    expected = np.einsum("byx,bf->fyx", few.embedding.to_numpy(), dataset.nec.basis[[3, 0]])
    assert np.allclose(few.nec.features().to_numpy(), expected, atol=1e-4, equal_nan=True)


def test_an_interrupted_run_is_finished_with_the_same_bytes(
    write_raster: RasterWriter, model: Model, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.tasks_done:
            raise Killed

    # Across the corner of four shards, which lie at multiples of 1,024 pixels.
    numbers = np.random.default_rng(0).integers(200, 3000, (3, 64, 64)).astype(np.uint16)
    corner = (10240.0 * 40 - 320, 10240.0 * 500 + 320)
    bands = ("red", "nir08", "blue")
    path = write_raster("four.tif", numbers, bands=bands, corner=corner, scales=(1e-4,) * 3)
    scene = open_scene(path)
    with pytest.raises(Killed):
        nec.encode(scene, tmp_path / "a.zarr", model=model, workers=1, progress=kill)
    again = nec.encode(scene, tmp_path / "a.zarr", model=model, workers=2)
    assert again.resumed >= 1  # a task that was under way may have come to its end
    assert again.resumed < again.written == 4
    nec.encode(scene, tmp_path / "b.zarr", model=model, workers=1)
    assert objects(tmp_path / "a.zarr") == objects(tmp_path / "b.zarr")
    once_more = nec.encode(scene, tmp_path / "a.zarr", model=model)
    assert once_more.resumed == 4
    assert nec.verify(tmp_path / "a.zarr").ok


def test_stores_that_are_refused(
    rendered_scene: Path, model: Model, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="another run"):
        nec.encode(rendered_scene, store, model=model, rate="high")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("dear reader")
    with pytest.raises(StoreError, match="not a nec store"):
        nec.encode(rendered_scene, tmp_path / "foreign", model=model)
    small = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    sealed = tmp_path / "sealed.zarr"
    nec.encode(small, sealed, model=model, bands=("red", "green", "blue"))
    nec.seal(sealed)
    with pytest.raises(StoreError, match="sealed"):
        nec.encode(small, sealed, model=model, bands=("red", "green", "blue"))


def test_scenes_that_are_refused(write_raster: RasterWriter, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    numbers = np.full((2, 40, 40), 900, np.uint16)
    radar = write_raster("radar.tif", numbers, bands=("vv", "vh"))
    with pytest.raises(SceneError, match="bands"):
        nec.encode(radar, out, model=model, scale=1e-4)
    placeless = write_raster("placeless.tif", numbers, bands=("red", "nir"), crs=None)
    with pytest.raises(SceneError, match="crs="):
        nec.encode(placeless, out, model=model, scale=1e-4)
    text = tmp_path / "scene.tif"
    text.write_text("no raster")
    with pytest.raises(SceneError, match="raster"):
        nec.encode(text, out, model=model)
    with pytest.raises(ModelError, match="no rate 'huge'"):
        nec.encode(
            np.zeros((1, 3, 16, 16), np.float32),
            out,
            model=model,
            rate="huge",
            bands=("red", "green", "blue"),
        )
    with pytest.raises(ModelError, match="no rate"):
        model.compressor(-1.0)
    with pytest.raises(SceneError, match="takes no time="):
        nec.encode(
            np.zeros((1, 3, 16, 16), np.float32),
            out,
            model=model,
            bands=("red", "green", "blue"),
            time="2020-01-01",
        )
    with pytest.raises(ModelError, match="no model"):
        nec.load_model("nec-enormous")
    assert not out.exists()


def test_a_scene_of_nothing_but_nodata_is_recorded(
    write_raster: RasterWriter, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = np.zeros((3, 40, 40), np.uint16)
    empty = write_raster("s2_empty.tif", numbers, bands=("red", "nir", "blue"), nodata=0)
    with caplog.at_level(logging.WARNING):
        report = nec.encode(empty, tmp_path / "empty.zarr", model=model, scale=1e-4)
    assert (report.written, report.vectors) == (0, 0)
    assert report.missing >= 1
    assert "all nodata" in caplog.text
    assert xr.open_zarr(tmp_path / "empty.zarr")["embedding"].isnull().all()


def test_what_the_model_does_not_take_is_told(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = np.full((2, 3, 8, 8), 0.2, np.float32)
    named = {"model": model, "bands": ("red", "coastal", "blue")}
    with caplog.at_level(logging.WARNING):
        nec.encode(images, tmp_path / "aerial.zarr", **named, gsd=0.3)
        assert "takes no coastal: the embedding of" in caplog.text
        assert "has seen 5 to 40 m, and takes them for 5" in caplog.text
        caplog.clear()
        nec.encode(images[:, ::2], tmp_path / "known.zarr", model=model, bands=("red", "blue"))
    assert not caplog.text


def test_a_band_that_is_not_used_hides_no_pixel(
    write_raster: RasterWriter, model: Model, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(300, 3000, (4, 64, 64)).astype(np.uint16)
    values[3] = 0
    bands = ("blue", "green", "red", "cirrus")
    write_raster("images/a.tif", values, bands=bands, scales=(1e-4,) * 4, nodata=0)
    report = nec.encode(tmp_path / "images", tmp_path / "s.zarr", model=model)
    assert report.vectors == 16 * 16


def test_a_folder_that_may_not_be_written_to_is_said_so(
    write_raster: RasterWriter, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(300, 3000, (3, 64, 64)).astype(np.uint16)
    scene = write_raster("s.tif", values, bands=("blue", "green", "red"), scales=(1e-4,) * 3)

    def refuse(code: int) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(StoreWriter, "finish", fail)

    for code, told in ((errno.EACCES, "may be written to"), (errno.ENOSPC, "make room")):
        refuse(code)
        with pytest.raises(StoreError, match=rf"s.zarr cannot be written .*{told}"):
            nec.encode(scene, tmp_path / "s.zarr", model=model)


def test_a_scene_smaller_than_a_chip_is_padded(
    write_raster: RasterWriter, model: Model, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(200, 3000, (3, 10, 14)).astype(np.uint16)
    tiny = write_raster("tiny.tif", numbers, bands=("red", "nir08", "blue"))
    report = nec.encode(tiny, tmp_path / "tiny.zarr", model=model, scale=1e-4)
    seen = xr.open_zarr(tmp_path / "tiny.zarr")["embedding"].notnull().all("band")
    assert int(seen.sum()) == report.vectors
    assert 4 <= report.vectors <= 15


def test_a_truncated_store_is_noticed(store: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken.zarr"
    shutil.copytree(store, broken)
    shard = next(p for p in (broken / "embedding" / "c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-7])
    key = str(shard.relative_to(broken))
    assert [p.key for p in nec.verify(broken).problems] == [key]
    with pytest.raises(NecError, match="embedding"):
        nec.open(broken)["embedding"].load()
    with pytest.raises(Exception, match=r"(?i)crc|checksum|index"):
        xr.open_zarr(broken)["embedding"].load()


def test_collections_of_pictures_in_class_folders(model: Model, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("Forest", "River"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{label}_{i}.png")
    report = nec.encode(tmp_path / "images", tmp_path / "c.zarr", model=model, rate="high")
    dataset = xr.open_zarr(tmp_path / "c.zarr")
    assert dataset["embedding"].dims == ("sample", "band", "y", "x")
    assert dataset["embedding"].shape == (6, 64, 8, 8)
    assert dataset["scene_embedding"].shape == (6, 64)
    assert list(dataset["label"].values) == ["Forest"] * 3 + ["River"] * 3
    assert report.vectors == 6 * 64
    pixels = ImageCollection.open(tmp_path / "images").read(0, 6)
    direct = nec.embed(pixels, model=model, bands=("red", "green", "blue"))
    decoded = dataset.nec.features().to_numpy()
    cosine = (direct * decoded).sum(1) / (
        np.linalg.norm(direct, axis=1) * np.linalg.norm(decoded, axis=1)
    )
    assert cosine.mean() == pytest.approx(report.cosine_mean, abs=1e-3)
    (tmp_path / "images" / "River" / "odd.png").write_bytes(
        (tmp_path / "images" / "River" / "River_0.png").read_bytes()[:50]
    )
    failed = nec.encode(tmp_path / "images", tmp_path / "d.zarr", model=model)
    assert failed.failed == 1
    assert "odd.png" in next(iter(failed.failures.values()))


def test_chips_that_do_not_cover_an_image_are_refused(model: Model) -> None:
    for core, halo in ((64, -16), (0, 0), (16, 32)):
        with pytest.raises(ModelError, match="do not cover an image"):
            check_tiling(model, Tiling(core=core, halo=halo))
    check_tiling(model, Tiling(core=64, halo=64))


def test_a_vector_with_a_missing_band_is_in_no_mean() -> None:
    features = np.ones((3, 16, 16), np.float32)
    features[:, 2, 3] = (1000, np.nan, 1000)
    assert np.array_equal(pool_cells(features)[:, 0, 0], [1, 1, 1])


def test_cosines_are_of_features() -> None:
    features = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    embedding = features[:2]
    told = task_figures(features, embedding, embedding, None)
    kept = np.linalg.norm(embedding, axis=0) / np.linalg.norm(features, axis=0)
    assert told["cosine_sum"] == pytest.approx(kept.sum(), rel=1e-5)
    nothing = task_figures(0 * features, 0 * embedding, 0 * embedding, None)
    assert (nothing["vectors"], nothing["cosine_min"]) == (64, 1.0)


def test_embeddings_of_others_are_compressed(tmp_path: Path) -> None:
    import rioxarray  # noqa: F401 - registers .rio

    y, x = np.mgrid[:60, :50] / 60
    rng = np.random.default_rng(0)
    maps = np.stack([np.ones_like(y), y, x, np.sin(8 * x), np.cos(9 * y)], -1)
    values = (maps @ rng.normal(size=(5, 12)) + 0.02 * rng.normal(size=(60, 50, 12))).astype("f4")
    values[:7, :9] = np.nan
    array = xr.DataArray(
        values,
        dims=("y", "x", "band"),
        coords={"y": 5e6 - 10.0 * np.arange(60) - 5, "x": 4e5 + 10.0 * np.arange(50) + 5},
    ).rio.write_crs("EPSG:32632")
    compressor = nec.Compressor.fit(array, cosine=0.9995)
    report = nec.encode(array, tmp_path / "e.zarr", model=compressor)
    assert report.cosine_mean == pytest.approx(0.9995, abs=0.0005)
    # The same numbers elsewhere are another store, within a cell of the grid as well.
    east = (array.assign_coords(x=array.x + by) for by in (20, 7680))
    for moved in (array.rio.write_crs("EPSG:32633"), *east):
        with pytest.raises(StoreError, match=r"e\.zarr is of another run"):
            nec.encode(moved, tmp_path / "e.zarr", model=compressor)
    features = xr.open_zarr(tmp_path / "e.zarr").nec.features()
    features = features.sel(y=array.y, x=array.x).transpose("y", "x", "feature").to_numpy()
    assert np.array_equal(np.isnan(features), np.isnan(values))
    cosine = (features * values).sum(-1) / (
        np.linalg.norm(features, axis=-1) * np.linalg.norm(values, axis=-1)
    )
    assert np.nanmean(cosine) == pytest.approx(report.cosine_mean, abs=1e-4)
    with pytest.raises(SceneError, match="takes no nodata="):
        nec.encode(array, tmp_path / "f.zarr", model=compressor, nodata=0)
    with pytest.raises(CompressorError, match="not the embedding but a code"):
        nec.encode(array.fillna(0).astype("i1"), tmp_path / "f.zarr", model=compressor)
    with pytest.raises(CompressorError, match="dims y, x and band"):
        nec.encode(values, tmp_path / "f.zarr", model=compressor)


def test_a_store_that_another_producer_seals_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rioxarray  # noqa: F401 - registers .rio

    values = np.random.default_rng(0).normal(size=(40, 40, 4)).astype("f4")
    coords = {"y": 5e6 - 10.0 * np.arange(40) - 5, "x": 4e5 + 10.0 * np.arange(40) + 5}
    array = xr.DataArray(values, dims=("y", "x", "band"), coords=coords).rio.write_crs(32632)
    finish = StoreWriter.finish

    def too_late(writer: StoreWriter, attributes: dict) -> bool:
        finish(writer, attributes)
        nec.seal(writer.path)
        return finish(writer, attributes)

    monkeypatch.setattr(StoreWriter, "finish", too_late)
    report = nec.encode(array, tmp_path / "s.zarr", model=nec.Compressor.fit(array, cosine=0.99))
    assert (report.failed, report.vectors) == (0, 1600)
    assert nec.verify(tmp_path / "s.zarr").ok
