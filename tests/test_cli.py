"""The command line does what it says, and says what went wrong."""

import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from conftest import CORNER, RasterWriter
from shapely.geometry import Point
from typer.testing import CliRunner

from nec.cli import app

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


def test_the_main_job(write_raster: RasterWriter, tmp_path: Path) -> None:
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


def test_embeddings_of_others(write_raster: RasterWriter, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    waves = [np.sin(y * a + x * b + c) + 0.2 for a, b, c in rng.uniform(0, 0.5, (12, 3))]
    features = np.stack(waves) + rng.normal(0, 0.2, (12, 96, 96))
    source = write_raster("e.tif", features.astype(np.float32))
    compressor, store = tmp_path / "c.json", tmp_path / "s.zarr"
    assert "cosine" in run("fit", source, compressor, "--bytes", "3")
    assert "9,216 vectors" in run("encode", source, store, "--model", compressor)
    output = run("info", store)
    assert "share of the bytes" in output
    assert "100%" in output
    run("seal", store)
    assert "as written" in run("verify", store)


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
