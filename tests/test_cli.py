"""The command line does what it says, and says what went wrong."""

import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from conftest import CORNER, RasterWriter
from shapely.geometry import Point
from typer.testing import CliRunner

import nec
from nec.cli import app
from nec.errors import NecError

COMMANDS = ("encode", "fit", "info", "train", "predict", "seal", "verify", "models", "demo")


def run(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command: str) -> None:
    assert f"nec {command}" in run(command, "--help")


def test_the_main_job(
    write_raster: RasterWriter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    # A dark and wet half, and a bright and dry one.
    numbers = np.full((3, 128, 128), 400)
    numbers[:, :, 64:] = [[[900]], [[1500]], [[3000]]]
    numbers = (numbers + rng.normal(0, 30, numbers.shape)).astype(np.uint16)
    scene = write_raster("sentinel2_halves.tif", numbers, bands=("blue", "red", "nir08"))
    store, head, out = tmp_path / "s.zarr", tmp_path / "h.safetensors", tmp_path / "map.tif"
    assert "1 written" in run("encode", scene, store)
    assert "sentinel2_halves.tif" in run("info", store, "--quicklook", tmp_path / "look.png")
    assert (tmp_path / "look.png").exists()

    classes = np.zeros((1, 128, 128), np.int16)
    classes[:, :, 64:] = 1
    labels = write_raster("labels.tif", classes)
    assert "2 classes" in run("train", store, head, "--labels", labels)
    assert "embeddings of nec-tiny" in head.with_suffix(".md").read_text()
    # The default rate costs maps, and who maps is told.
    assert "encode at a higher rate" in caplog.text
    run("predict", store, head, out)
    with rasterio.open(out) as written:
        found = written.read(1)
        assert written.crs.to_epsg() == 32633
    assert set(np.unique(found[found != written.nodata])) == {0, 1}

    xs, ys = rng.uniform(0, 1280, 60), rng.uniform(0, 1280, 60)
    points = geopandas.GeoDataFrame(
        {"class": np.where(xs > 640, "dry", "wet")},
        geometry=[Point(CORNER[0] + x, CORNER[1] - y) for x, y in zip(xs, ys, strict=True)],
        crs="EPSG:32633",
    )
    points.to_crs("EPSG:4326").to_file(tmp_path / "points.gpkg")
    assert "60 points, 2 classes" in run(
        "train", store, head, "--points", tmp_path / "points.gpkg", "--column", "class"
    )
    run("predict", store, head, out, "--cells")
    run("seal", store)
    assert "as written" in run("verify", store)
    shard = next(p for p in (store / "embedding" / "c").rglob("*") if p.is_file())
    shard.unlink()
    assert "embedding" in run("verify", store, status=1)


def halves_store(write_raster: RasterWriter, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Encode a scene of two halves; return its store and the brightness of its pixels."""
    rng = np.random.default_rng(0)
    numbers = np.full((3, 128, 128), 400)
    numbers[:, :, 64:] = [[[900]], [[1500]], [[3000]]]
    numbers = (numbers + rng.normal(0, 30, numbers.shape)).astype(np.uint16)
    scene = write_raster("sentinel2_halves.tif", numbers, bands=("blue", "red", "nir08"))
    run("encode", scene, tmp_path / "s.zarr")
    return tmp_path / "s.zarr", numbers[2].astype(np.float32) / 30


def test_biomass_from_sparse_measurements(
    write_raster: RasterWriter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, biomass = halves_store(write_raster, tmp_path)
    head, out = tmp_path / "h.safetensors", tmp_path / "agb.tif"
    shots = np.zeros((2, 128, 128), np.float32)
    keep = np.random.default_rng(1).random((128, 128)) < 0.2
    shots[0] = np.where(keep, biomass, 0)
    shots[1] = np.where(keep, 12, 0)
    raster = write_raster("agbd.tif", shots)
    train = ("train", store, head, "--task", "biomass")
    told = run(*train, "--labels", raster, "--ignore", "0", "--error-band", "2")
    assert "RMSE of held-out blocks" in told
    assert "Mg/ha" in told
    assert "lower bound" in run("predict", store, head, out, "--interval", "0.9")
    with rasterio.open(out) as file:
        found = file.read(1)
        assert (file.units[0], file.crs.to_epsg()) == ("Mg/ha", 32633)
    with rasterio.open(tmp_path / "agb.lower.tif") as file:
        lower = file.read(1)
        assert file.descriptions == ("lower bound of 90%",)
    there = np.isfinite(found)
    assert there.sum() == 32 * 32
    assert (lower[there] <= found[there]).all()
    low, high = np.nanquantile(found, [0.2, 0.8])
    assert low == pytest.approx(biomass[:, :64].mean(), rel=0.3)
    assert high == pytest.approx(biomass[:, 64:].mean(), rel=0.2)
    run("predict", store, head, tmp_path / "agb.zarr")
    assert xr.open_zarr(tmp_path / "agb.zarr").prediction.attrs["units"] == "Mg/ha"

    y, x = np.nonzero(keep)
    points = geopandas.GeoDataFrame(
        {"rh95": biomass[y, x], "se": 2.0, "kind": "tree"},
        geometry=geopandas.points_from_xy(CORNER[0] + 10 * x + 5, CORNER[1] - 10 * y - 5),
        crs="EPSG:32633",
    )
    points.to_crs("EPSG:4326").to_file(tmp_path / "shots.gpkg")
    listed = (*train, "--points", tmp_path / "shots.gpkg")
    assert " m" in run(*listed, "--column", "rh95", "--error-column", "se", "--units", "m")

    # Numbers are in the unit that the tags of a raster bring them to.
    tenths = np.round(10 * shots).astype(np.int16)
    tagged = write_raster("tenths.tif", tenths, scales=(0.1, 0.1))
    again = run(*train, "--labels", tagged, "--ignore", "0", "--error-band", "2")
    error = [float(text.split("blocks ")[1].split()[0]) for text in (told, again)]
    assert error[1] == pytest.approx(error[0], rel=0.02)

    # The same raster in degrees: reprojected, and said so.
    with rioxarray.open_rasterio(raster) as opened:
        opened.rio.reproject("EPSG:4326").rio.to_raster(tmp_path / "degrees.tif")
    with caplog.at_level("WARNING"):
        run(*train, "--labels", tmp_path / "degrees.tif", "--ignore", "0")
    assert "reprojected" in caplog.text

    far = write_raster("far.tif", shots, corner=(CORNER[0] + 9e5, CORNER[1]))
    few = np.zeros((1, 128, 128), np.float32)
    few[0, 5, 5] = 40
    nan = np.full((1, 128, 128), np.nan, np.float32)
    one = write_raster("one.tif", np.ones((1, 128, 128), np.int16))
    wrong: list[tuple[tuple[object, ...], str]] = [
        ((*train, "--labels", far, "--ignore", "0"), "do not overlap"),
        ((*train, "--labels", write_raster("few.tif", few), "--ignore", "0"), "too few labels: 1"),
        ((*train, "--labels", write_raster("nan.tif", nan)), "too few labels: 0"),
        ((*train, "--labels", write_raster("below.tif", -1 - few)), "negative or infinity"),
        ((*train, "--labels", raster, "--band", "3"), "has 2 bands, and band 3"),
        ((*train, "--labels", raster, "--method", "knn"), "takes no --method"),
        ((*train, "--labels", raster, "--column", "rh95"), "takes no --column"),
        ((*listed, "--column", "rh95", "--error-band", "2"), "takes no --error-band"),
        ((*train, "--label", "kind"), "takes no --label"),
        ((*train, "--labels", raster, "--time", "2024-07-31"), "no times"),
        ((*listed, "--column", "kind"), "holds no numbers"),
        ((*listed, "--column", "gone"), "has no column 'gone'"),
        (train, "come from one place"),
        (("train", store, head, "--labels", one), "1 class"),
        (("train", store, head, "--labels", raster, "--error-band", "2"), "takes no --error-band"),
        (("train", store, tmp_path / "no" / "h.safetensors", "--labels", one), "is no folder"),
        (("predict", store, head, tmp_path / "no" / "m.tif"), "is no folder"),
        (("predict", store, head, store), "is an embedding store"),
        (
            ("train", store, head, "--points", tmp_path / "shots.gpkg", "--column", "rh95"),
            "classes",
        ),
        (("predict", store, head, out, "--cells"), "maps tokens"),
        (("predict", store, head, tmp_path / "new.tif", "--interval", "90"), "is no share"),
        (("predict", store, head, tmp_path / "new.png"), "no name of a map"),
        (("predict", tmp_path / "none.zarr", head, out), "none.zarr"),
    ]
    for arguments, message in wrong:
        with pytest.raises(NecError, match=message):
            run(*arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("new.*"))


def test_what_a_mask_hides_is_no_label_and_a_card_no_head(
    write_raster: RasterWriter, tmp_path: Path
) -> None:
    store, _ = halves_store(write_raster, tmp_path)
    kinds = np.ones((1, 128, 128), np.uint8)
    kinds[:, :, 64:] = 2
    kinds[:, :48] = 0
    path = write_raster("kinds.tif", kinds)
    with rasterio.open(path, "r+") as file:
        file.write_mask(kinds[0] > 0)
    assert "2 classes" in run("train", store, tmp_path / "head.md", "--labels", path)
    assert (tmp_path / "head.md.md").read_text().startswith("# Segmenter")
    run("predict", store, tmp_path / "head.md", tmp_path / "kinds_map.tif")


def test_vectors_without_a_place_say_what_they_have(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    run("fit", tmp_path / "v.npy", tmp_path / "c.json", "--bytes", "4")
    run("encode", tmp_path / "v.npy", tmp_path / "v.zarr", "--model", tmp_path / "c.json")
    store, head = tmp_path / "v.zarr", tmp_path / "h.safetensors"
    for arguments in (
        ("train", store, head, "--points", "p.gpkg", "--column", "a"),
        ("predict", store, head, tmp_path / "m.tif"),
        ("info", store, "--quicklook", tmp_path / "q.png"),
    ):
        with pytest.raises(NecError, match="no array 'embedding'"):
            run(*arguments)


def test_embeddings_of_others(write_raster: RasterWriter, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    waves = [np.sin(y * a + x * b + c) + 0.2 for a, b, c in rng.uniform(0, 0.5, (12, 3))]
    features = np.stack(waves) + rng.normal(0, 0.2, (12, 96, 96))
    source = write_raster("e.tif", features.astype(np.float32))
    compressor, store = tmp_path / "c.json", tmp_path / "s.zarr"
    assert "cosine" in run("fit", source, compressor, "--bytes", "3")
    assert "9,216 vectors" in run("encode", source, store, "--model", compressor)
    with pytest.raises(NecError, match="2 sources of embeddings"):
        run("encode", source, source, tmp_path / "two.zarr", "--model", compressor)
    output = run("info", store)
    assert "share of the bytes" in output
    assert "100%" in output
    run("seal", store)
    assert "as written" in run("verify", store)


def test_a_rate_of_ones_own_has_the_basis_of_the_model(
    write_raster: RasterWriter, tmp_path: Path
) -> None:
    numbers = np.random.default_rng(0).integers(300, 3000, (3, 64, 64)).astype(np.uint16)
    scene = write_raster("s.tif", numbers, bands=("blue", "red", "nir08"), scales=(1e-4,) * 3)
    run("fit", scene, tmp_path / "own.json", "--model", "nec-tiny", "--bytes", "6")
    own = nec.Compressor.load(tmp_path / "own.json")
    assert own.basis_hash == nec.load_model("nec-tiny").basis_hash


def test_a_series_is_trained_on_and_mapped_at_a_day_that_is_named(
    write_raster: RasterWriter, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    scenes, folder, head = tmp_path / "scenes", tmp_path / "stores", tmp_path / "h.safetensors"
    for day in (3, 8):
        numbers = rng.integers(300, 3000, (3, 64, 64)).astype(np.uint16)
        name = f"scenes/f_2024-07-0{day}.tif"
        write_raster(name, numbers, bands=("blue", "red", "nir08"), scales=(1e-4,) * 3)
    run("encode", scenes, folder, "--series")
    (store,) = folder.glob("*.zarr")
    classes = write_raster("labels.tif", np.arange(64 * 64).reshape(1, 64, 64).astype("u2") // 2048)
    train = ("train", store, head, "--labels", classes)
    for command in (train, (*train, "--time", "2024-07"), (*train, "--time", "2023")):
        with pytest.raises(NecError, match=r"2 times|0 times.*2024-07-03"):
            run(*command)
    assert "2 classes" in run(*train, "--time", "2024-07-08")
    with pytest.raises(NecError, match="give --time, one of: 2024-07-03, 2024-07-08"):
        run("predict", store, head, tmp_path / "map.tif")
    maps = [tmp_path / f"{day}.tif" for day in (3, 8)]
    for day, path in zip((3, 8), maps, strict=True):
        run("predict", store, head, path, "--time", f"2024-07-0{day}")
    assert maps[0].read_bytes() != maps[1].read_bytes()


def test_errors_are_one_line_and_a_status(tmp_path: Path) -> None:
    text = tmp_path / "scene.tif"
    text.write_text("no raster")
    command = [sys.executable, "-m", "nec.cli", "encode", str(text), str(tmp_path / "o.zarr")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "SceneReadError" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_demo_on_a_rendered_scene(tmp_path: Path) -> None:
    output = run("demo", "--out", tmp_path / "demo")
    assert "rendered itself" in output
    for name in ("embedding.png", "land_cover.png", "land_cover.tif", "head.safetensors"):
        assert (tmp_path / "demo" / name).stat().st_size > 500
