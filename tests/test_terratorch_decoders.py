"""Segmenter with TerraTorch's decoders, and without TerraTorch."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from conftest import RasterWriter
from sklearn.base import clone
from test_cli import halves_store, run
from test_segmenter import LEFT, SCALE, STEP, TOP, world

from nec.errors import HeadError, MissingLibraryError
from nec.heads import Segmenter, load_head, write_map

INSTALLED = importlib.util.find_spec("terratorch") is not None
needs_terratorch = pytest.mark.skipif(
    not INSTALLED, reason="not installed: pip install 'nec[terratorch]'"
)
# TerraTorch's libraries warn a lot as they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"width": 8, "batch_size": 2, "steps": 24, "learning_rate": 1e-2}
ONE = {"width": 4, "batch_size": 2, "steps": 1}


def rewritten(path: Path, change: Any) -> Path:
    """Write a head again with a changed header and changed arrays; return its new path."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(str(path), framework="numpy") as file:
        state = json.loads(file.metadata()["nec_head"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(state, tensors)
    other = path.with_name("other.safetensors")
    save_file(tensors, other, metadata={"nec_head": json.dumps(state)})
    return other


def test_without_terratorch_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "terratorch", None)
    embedding, labels = world()
    with pytest.raises(MissingLibraryError, match=r"pip install 'nec\[terratorch\]'"):
        Segmenter(decoder="UperNetDecoder").fit(embedding, labels)
    with pytest.raises(MissingLibraryError, match="linear, conv, fpn"):
        Segmenter(decoder="smp_FPN").fit(embedding, labels)
    with pytest.raises(HeadError, match=r"unknown.*linear, conv, fpn.*terratorch.*UNetDecoder"):
        Segmenter(decoder="tree").fit(embedding, labels)

    def as_upernet(state: dict[str, Any], _: Any) -> None:
        state["parameters"]["decoder"] = "UperNetDecoder"
        state["terratorch"] = "1.2.11"

    path = Segmenter(decoder="conv", **ONE).fit(embedding, labels).save(tmp_path / "h")
    with pytest.raises(MissingLibraryError, match=r"UperNetDecoder.*pip install 'nec\[terratorch"):
        load_head(rewritten(path, as_upernet))


def test_options_are_of_terratorchs_decoders_only() -> None:
    with pytest.raises(HeadError, match="takes no decoder_options"):
        Segmenter(decoder="conv", decoder_options={"channels": 8}).fit(*world())


@needs_terratorch
@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("UperNetDecoder", {"pool_scales": [1, 2], "head_dropout": 0.1}),
        ("UNetDecoder", {"channels": [16, 16, 8, 8]}),
        ("FCNDecoder", {"num_convs": 2, "head_channel_list": [8]}),
        ("MLPDecoder", None),
    ],
)
def test_decoders_learn_map_and_come_back(
    decoder: str, options: dict[str, Any] | None, tmp_path: Path
) -> None:
    train, labels = world()
    test, truth = world(1)
    test, truth = test[:, :40, :32], truth[:160, :128]
    sparse = np.where(np.random.default_rng(2).random(labels.shape) < 0.3, labels, -1)
    head = clone(Segmenter(decoder=decoder, decoder_options=options, **SMALL))
    assert head.get_params()["decoder_options"] == options
    head.fit(train, sparse)
    assert head.classes_.tolist() == [3, 7]
    assert head.losses_[-5:].mean() < 0.8 * head.losses_[:5].mean()
    majority = max((truth == label).mean() for label in (3, 7))
    assert head.score(test, truth) > majority + 0.2

    found = head.predict(test)
    assert found.shape == truth.shape
    assert found.rio.crs.to_epsg() == 32633
    assert (found.rio.transform().c, found.rio.transform().f) == (LEFT, TOP)
    assert found.rio.transform().a == STEP / SCALE
    assert (head.classes_[found.values] == truth).mean() == pytest.approx(head.score(test, truth))
    write_map(found, tmp_path / "map.tif")

    path = head.save(tmp_path / "head.safetensors")
    again = load_head(path)
    assert again.get_params() == head.get_params()
    assert again.terratorch_version_ == head.terratorch_version_
    assert 0 < again.n_parameters_ == head.n_parameters_
    xr.testing.assert_identical(again.predict_proba(test), head.predict_proba(test))
    assert again.save(tmp_path / "again").read_bytes() == path.read_bytes()


@needs_terratorch
@pytest.mark.parametrize("chunks", [(16, 24), (50, 7), (32, 32)])
def test_a_map_does_not_depend_on_its_chunks(chunks: tuple[int, int]) -> None:
    embedding, labels = world()
    embedding[:, 20, 30] = np.nan
    options = {"head_dropout": 0.2}
    head = Segmenter(decoder="UperNetDecoder", decoder_options=options, **ONE)
    head.fit(embedding, labels)
    part = embedding[:, :61, :37]  # no multiple of the windows, and less than a margin beyond
    whole = head.predict_proba(part)
    lazy = head.predict_proba(part.chunk(y=chunks[0], x=chunks[1]))
    assert lazy.chunks is not None
    xr.testing.assert_identical(lazy.compute(), whole)
    missing = head.predict(part.chunk(y=chunks[0], x=chunks[1])).values == -1
    assert missing[80:84, 120:124].all()
    assert missing.sum() == SCALE**2
    again = clone(head).fit(embedding, labels)
    xr.testing.assert_identical(again.predict_proba(part), whole)


@needs_terratorch
def test_every_decoder_of_the_registry_runs() -> None:
    from nec.encoders.terratorch_backbones import import_terratorch

    registry = import_terratorch("registry").DECODER_REGISTRY
    embedding, labels = world()
    embedding, labels = embedding[:, :32, :32], labels[:128, :128]
    with pytest.raises(HeadError, match="unknown") as refused:
        Segmenter(decoder="tree").fit(embedding, labels)
    known = str(refused.value).partition("TerraTorch's ")[2].split(", ")
    assert {"UperNetDecoder", "UNetDecoder", "FCNDecoder", "LinearDecoder", "smp_Unet"} <= {*known}
    left_out = {name.removeprefix("terratorch_") for name in registry} - {*known}
    assert left_out <= {
        "ASPPModule",
        "ASPPRegressionHead",
        "SatMAEHead",
        "SatMAEHeadViT",
        "smp_DPT",
    }
    small = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
    for name in known:
        options = small if name == "smp_FPN" else None
        head = Segmenter(decoder=name, decoder_options=options, **{**ONE, "width": 8})
        head.fit(embedding, labels)
        assert head.predict(embedding).shape == labels.shape
    Segmenter(decoder="terratorch_LinearDecoder", **ONE).fit(embedding, labels)


@needs_terratorch
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decoder": "SatMAEHead"}, "unknown.*UperNetDecoder"),
        ({"decoder_options": {"chanels": 8}}, "no option 'chanels'.*pool_scales.*head_dropout"),
        ({"decoder_options": {"embed_dim": [8]}}, "no option 'embed_dim'"),
        ({"decoder_options": {"channels": "many"}}, "makes no UperNetDecoder.*many"),
        ({"decoder": "UNetDecoder", "decoder_options": {"channels": [8]}}, "same length"),
        ({"decoder": "FCNDecoder", "decoder_options": {"in_index": 2}}, "makes no FCNDecoder"),
        ({"decoder": "smp_Unet", "decoder_options": {"encoder_depth": 2}}, "no option"),
        ({"decoder_options": {"channels": np.array([8])}}, "cannot be saved"),
        ({"decoder_options": ["channels"]}, "cannot be saved"),
        ({"batch_size": 1}, "batch_size above 1"),
    ],
)
def test_what_terratorch_does_not_make_says_why(given: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        Segmenter(**{"decoder": "UperNetDecoder", **ONE, **given}).fit(*world())


@needs_terratorch
def test_a_head_of_another_version_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedding, labels = world()
    path = Segmenter(decoder="LinearDecoder", **ONE).fit(embedding, labels).save(tmp_path / "h")

    def older(state: dict[str, Any], _: Any) -> None:
        state["terratorch"] = "1.2.1"

    def other(state: dict[str, Any], tensors: dict[str, Any]) -> None:
        older(state, tensors)
        tensors.pop(next(name for name in tensors if name.startswith("decoder.")))

    assert load_head(rewritten(path, older)).terratorch_version_ == "1.2.1"
    assert "fitted with TerraTorch 1.2.1" in caplog.text
    with pytest.raises(HeadError, match=r"1\.2\.1.*pip install terratorch==1\.2\.1"):
        load_head(rewritten(path, other))


@needs_terratorch
def test_the_command_line_trains_and_maps(write_raster: RasterWriter, tmp_path: Path) -> None:
    store, brightness = halves_store(write_raster, tmp_path)
    labels = write_raster("labels.tif", (brightness > 50).astype(np.int16)[None])
    head, out = tmp_path / "h.safetensors", tmp_path / "map.tif"
    train = ("train", store, head, "--labels", labels)
    network = ("--decoder", "UperNetDecoder", "--decoder-option", "channels=8")
    told = run(*train, *network, "--steps", "8", "--decoder-option", "pool_scales=[1,2]")
    assert "2 classes" in told
    assert float(told.split()[-1]) > 0.8
    assert load_head(head).decoder_options == {"channels": 8, "pool_scales": [1, 2]}
    run("predict", store, head, out)
    with xr.open_dataarray(out, engine="rasterio") as written:
        assert written.rio.resolution() == (10, -10)
    for given, message in (
        ((*train, "--decoder", "UperNetDecoder", "--decoder-option", "channels"), "no value"),
        ((*train, "--steps", "8"), "go with networks"),
        (("train", store, head, "--label", "x", "--decoder", "conv"), "raster of classes"),
        (("predict", store, head, out, "--cells"), "maps tokens"),
    ):
        with pytest.raises(HeadError, match=message):
            run(*given)
