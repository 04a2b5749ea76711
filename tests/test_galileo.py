"""Galileo behind the protocol says what the published encoder says, and can be encoded with."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from conftest import RasterWriter
from typer.testing import CliRunner

import nec
from nec.cli import app
from nec.encoders import Encoder
from nec.encoders.galileo import Galileo, GalileoEncoder
from nec.errors import ModelError
from nec.scene.sensors import SENTINEL2, common_name

RGB = ("blue", "green", "red")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of Galileo's files, the weights drawn at random."""
    folder = tmp_path_factory.mktemp("galileo")
    torch.manual_seed(0)
    shape = {"embedding_size": 96, "depth": 1, "num_heads": 4, "drop_path": 0.1}
    network = GalileoEncoder(embedding_size=96, depth=1, num_heads=4)
    (folder / "config.json").write_text(json.dumps({"model": {"encoder": shape}}))
    torch.save(network.state_dict(), folder / "encoder.pt")
    return folder


def test_the_protocol_is_kept_and_refusals_say_why(untrained: Path, tmp_path: Path) -> None:
    encoder = Galileo(GalileoEncoder.load(untrained))
    assert isinstance(encoder, Encoder)
    chips = torch.rand(3, 3, 32, 32)
    tokens = encoder.embed(chips, bands=RGB, gsd=10.0)
    assert tokens.shape == (3, 96, 8, 8)
    july, january = (torch.full((3,), stamp) for stamp in (1594771200, 1578873600))
    assert torch.equal(tokens, encoder.embed(chips, bands=RGB, gsd=10.0, time=july))
    assert not torch.equal(tokens, encoder.embed(chips, bands=RGB, gsd=10.0, time=january))
    both = torch.cat((july[:1], january[1:]))
    mixed = encoder.embed(chips, bands=RGB, gsd=10.0, time=both)
    assert torch.allclose(mixed[0], tokens[0], atol=1e-5)
    for bad, bands, why in (
        (chips, ("blue", "green", "vv"), "not all among"),
        (chips[:, :2], ("blue", "green"), "complete no group"),
        (chips[..., :30], RGB, "no squares"),
        (chips, RGB[:2], "each band"),
    ):
        with pytest.raises(ModelError, match=why):
            encoder.embed(bad, bands=bands, gsd=10.0)
    with pytest.raises(ModelError, match="no Galileo"):
        nec.load_model(f"galileo:{tmp_path}")
    (tmp_path / "config.json").write_text((untrained / "config.json").read_text())
    (tmp_path / "encoder.pt").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="no Galileo"):
        _ = nec.load_model(f"galileo:{tmp_path}").encoder


def test_a_compressor_is_fitted_and_encoded_with(
    untrained: Path, write_raster: RasterWriter, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(200, 3000, (3, 64, 64)).astype(np.uint16)
    scene = write_raster("scene.tif", numbers, bands=RGB, scales=(1e-4,) * 3)
    model, fitted = f"galileo:{untrained}", tmp_path / "g.json"
    store = tmp_path / "s.zarr"
    with pytest.raises(ModelError, match="comes without compressors"):
        nec.encode(scene, store, model=model)
    lines = (
        ("fit", scene, fitted, "--bytes", 4, "--model", model),
        ("encode", scene, store, "--model", model, "--rate", fitted),
    )
    for line in lines:
        result = CliRunner().invoke(app, list(map(str, line)))
        assert result.exit_code == 0, result.output
    info = nec.open(store).nec.info
    assert (info["model"], info["rate"], info["bands"]) == ("galileo-96", "g.json", list(RGB))
    assert nec.encode(scene, store, model=model, rate=fitted).resumed == 1
    with pytest.raises(ModelError, match="compresses 96 features"):
        nec.load_model("nec-tiny").compressor(str(fitted))


@pytest.mark.shared
def test_embeddings_are_the_published_ones(shared: Path) -> None:
    dense = shared / "embeddings" / "galileo_nano_dense"
    expected = np.load(dense / "sentinel2_patches.npy", mmap_mode="r")[0].astype(np.float32)
    chips, bands = _patch(shared, (dense / "sentinel2_patches.txt").read_text().split()[0])
    for precision, most in (("float32", 2**-10), ("bfloat16", 2**-4)):
        model = nec.load_model(
            f"galileo:{shared / 'weights' / 'galileo_nano'}", precision=precision
        )
        assert model.name == "galileo-nano"
        found = nec.embed(_tiles(chips), model=model, bands=bands)
        grid = found.reshape(4, 4, 128, 16, 16).transpose(0, 3, 1, 4, 2).reshape(64, 64, 128)
        scale = np.maximum(np.abs(expected), 1)
        assert np.abs(grid - expected).max() < most * scale.max(), precision
        assert (np.abs(grid - expected) / scale).mean() < most / 4


@pytest.mark.shared
def test_the_command_line_stores_the_published_ones(
    shared: Path, write_raster: RasterWriter, tmp_path: Path
) -> None:
    dense = shared / "embeddings" / "galileo_nano_dense"
    expected = np.load(dense / "sentinel2_patches.npy", mmap_mode="r")[0].astype(np.float32)
    chips, bands = _patch(shared, (dense / "sentinel2_patches.txt").read_text().split()[0])
    # Where its tiles are those of the grid: at a multiple of 64 pixels from the CRS's origin.
    scene = write_raster(
        "patch.tif",
        np.rint(chips[:, :128, :128] * 1e4).astype(np.uint16),
        bands=bands,
        scales=(1e-4,) * len(bands),
        corner=(640.0 * 640, 640.0 * 8000),
    )
    model = f"galileo:{shared / 'weights' / 'galileo_nano'}"
    fitted, store = tmp_path / "g.json", tmp_path / "s.zarr"
    sample = [expected[:64, :64]]
    nec.Compressor.fit(sample, cosine=0.99999).save(fitted)
    options = ["--rate", fitted, "--core", 64, "--halo", 0, "--time", "2020-07-01"]
    line = ["encode", scene, store, "--model", model, *options]
    result = CliRunner().invoke(app, list(map(str, line)))
    assert result.exit_code == 0, result.output
    found = nec.open(store).nec.features().isel(time=0).transpose("y", "x", "feature")
    found = found.dropna("y", how="all").dropna("x", how="all").to_numpy()
    part = expected[:32, :32]
    assert found.shape == part.shape
    cosine = (found * part).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(part, axis=-1)
    assert cosine.min() > 0.999
    assert cosine.mean() > 0.9998  # what bfloat16 leaves


def _patch(shared: Path, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return reflectance (band, y, x) of Galileo's bands, and their names."""
    with rasterio.open(shared / "sentinel2_patches" / name) as file:
        names = [common_name(band, SENTINEL2) for band in file.descriptions]
        numbers = file.read().astype(np.float32) / np.float32(1e4)
    bands = tuple(band for band in Galileo.bands if band in names)
    assert len(bands) == 10
    return numbers[[names.index(band) for band in bands]], bands


def _tiles(image: np.ndarray) -> np.ndarray:
    cut = image[:, :256, :256].reshape(len(image), 4, 64, 4, 64).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(cut.reshape(16, len(image), 64, 64))
