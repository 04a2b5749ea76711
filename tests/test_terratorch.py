"""TerraTorch's backbones, random weights in files as their publishers lay them out."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RasterWriter
from torch import Tensor
from typer.testing import CliRunner

import nec
from nec.cli import app
from nec.encoders import Encoder
from nec.errors import ModelError

if importlib.util.find_spec("terratorch") is None:
    pytest.skip("not installed: pip install 'nec[terratorch]'", allow_module_level=True)

from nec.encoders.terratorch_backbones import HLS, SENTINEL2_L2A, kind_of
from nec.encoders.torchvision_schemas import import_torchvision

# TerraTorch's libraries warn a lot as they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")
RGB = ("blue", "green", "red")
NAMES = {
    "prithvi_eo_tiny": (16, 256),
    "terramind_v1_tiny": (16, 192),
    "dofa_small_patch16_224": (16, 384),
    "clay_v1_base": (8, 768),
    "prithvi_swin_B": (16, 512),
}


def published(name: str, network: Any) -> dict[str, Any]:
    """Lay a network's weights out as its publisher does, with what else is in such files."""
    own = network.state_dict()
    if name.startswith("prithvi_eo"):  # an autoencoder
        more = {"decoder.mask_token": torch.zeros(1), "decoder.decoder_embed.bias": torch.zeros(1)}
        return {f"encoder.{key}": value for key, value in own.items()} | more
    if name.startswith("clay"):  # a Lightning checkpoint
        kept = {k.replace("clay_encoder.", "model.encoder."): v for k, v in own.items()}
        return {"state_dict": kept | {"model.teacher.x": torch.zeros(1)}, "epoch": 7}
    if name.startswith("dofa"):
        return {k.removeprefix("dofa_model."): v for k, v in own.items() if ".head." not in k}
    if name.startswith("prithvi_swin"):
        return {f"backbone.{k.replace('stages_', 'stages.', 1)}": v for k, v in own.items()}
    return own | {"decoder.0.weight": torch.zeros(1), "mask_token": torch.zeros(1)}


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, network and the file of its weights."""
    name = request.param
    torch.manual_seed(0)
    network = kind_of(name).make(name).eval()
    with torch.no_grad():
        for weight in network.parameters():  # some begin as zeros
            weight.add_(0.02 * torch.randn_like(weight))
    file = tmp_path_factory.mktemp("weights") / f"{name}.pt"
    torch.save(published(name, network), file)
    if not kind_of(name).statistics(name):
        pairs = {band: [1000.0 + 10 * k, 900.0] for k, band in enumerate(kind_of(name).bands)}
        Path(f"{file}.statistics.json").write_text(json.dumps(pairs))
    return name, network, file


def expected(name: str, network: Any, chips: Tensor, bands: tuple[str, ...], file: Path) -> Tensor:
    """Run the network as TerraTorch's users do."""
    beside = Path(f"{file}.statistics.json")
    known = json.loads(beside.read_text()) if beside.exists() else kind_of(name).statistics(name)
    mean, deviation = torch.tensor([known[band] for band in bands]).T[..., None, None]
    x = (1e4 * chips - mean) / deviation
    with torch.inference_mode():
        if name.startswith("clay"):
            waves = torch.tensor([kind_of(name).waves[b] for b in bands])
            tokens = network(x, waves=waves, gsd=10.0)[-1][:, 1:]
        elif name.startswith("dofa"):
            network.wavelengths = [0.49, 0.56, 0.665][: len(bands)]
            tokens = network(x)[-1][:, 1:]
        elif name.startswith("prithvi_swin"):
            return network(x)[2].permute(0, 3, 1, 2)
        else:
            tokens = network(x)[-1][:, -196:]
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def test_says_what_the_network_says(made: Any) -> None:
    name, network, file = made
    model = nec.load_model(f"terratorch:{name}@{file}", precision="float32")
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    assert (encoder.patch_size, encoder.dim) == NAMES[name]
    edge = model.tiling.core + 2 * model.tiling.halo
    bands = {"terramind_v1_tiny": SENTINEL2_L2A, "prithvi_eo_tiny": HLS, "prithvi_swin_B": HLS}
    given = bands.get(name, RGB)
    chips = torch.rand(1, len(given), edge, edge)
    ours = encoder.embed(chips, bands=given, gsd=10.0)
    theirs = expected(name, network, chips, given, file)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    # Bands come in any order.
    turned = encoder.embed(chips.flip(1), bands=given[::-1], gsd=10.0)
    torch.testing.assert_close(turned, ours, atol=1e-4, rtol=1e-4)
    some = encoder.embed(chips[:, -2:], bands=given[-2:], gsd=10.0)
    assert some.isfinite().all()
    assert not torch.allclose(some, ours, atol=1e-2)
    with pytest.raises(ModelError, match="not all among"):
        encoder.embed(chips[:, :1], bands=("vv",), gsd=10.0)
    with pytest.raises(ModelError, match="takes squares"):
        encoder.embed(chips[..., :60], bands=given, gsd=10.0)


def test_a_missing_band_is_as_if_it_were_not_read(tmp_path: Path) -> None:
    import_torchvision()
    from terratorch.registry import BACKBONE_REGISTRY

    torch.manual_seed(1)
    file = tmp_path / "p.pt"
    whole = BACKBONE_REGISTRY.build("prithvi_eo_tiny", pretrained=False).eval()
    torch.save(whole.state_dict(), file)
    # TerraTorch's own way: a network of fewer bands, whose weights are picked from the file.
    few = BACKBONE_REGISTRY.build(
        "prithvi_eo_tiny", pretrained=True, ckpt_path=str(file), bands=["BLUE", "GREEN", "RED"]
    ).eval()
    chips = torch.rand(1, 3, 224, 224)
    theirs = expected("prithvi_eo_tiny", few, chips, RGB, file)
    encoder = nec.load_model(f"terratorch:prithvi_eo_tiny@{file}", precision="float32").encoder
    ours = encoder.embed(chips, bands=RGB, gsd=10.0)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_time_is_told_to_networks_that_take_it(tmp_path: Path) -> None:
    name, file = "prithvi_eo_v2_tiny_tl", tmp_path / "tl.pt"
    torch.manual_seed(2)
    network = kind_of(name).make(name).eval()
    torch.save(published("prithvi_eo", network), file)
    encoder = nec.load_model(f"terratorch:{name}@{file}", precision="float32").encoder
    chips = torch.rand(1, 3, 64, 64)
    winter, summer = (torch.tensor([s]) for s in (1578873600, 1594771200))
    undated = encoder.embed(chips, bands=RGB, gsd=10.0)
    found = [encoder.embed(chips, bands=RGB, gsd=10.0, time=t) for t in (winter, summer)]
    assert not torch.equal(*found)
    assert not torch.equal(undated, found[0])
    places = torch.tensor([[[2020.0, 12.0]]])  # 13 January, counted from 0
    mean, deviation = torch.tensor([kind_of(name).statistics(name)[b] for b in HLS]).T[
        ..., None, None
    ]
    x = torch.zeros(1, 6, 64, 64)
    x[:, :3] = (1e4 * chips - mean[:3]) / deviation[:3]
    with torch.inference_mode():
        theirs = network(x, temporal_coords=places)[-1][:, 1:]
    torch.testing.assert_close(found[0].flatten(2).transpose(1, 2), theirs, atol=1e-4, rtol=1e-4)


def test_refusals(tmp_path: Path) -> None:
    network = kind_of("prithvi_eo_tiny").make("prithvi_eo_tiny")
    weights = dict(network.state_dict())
    weights.pop("blocks.1.attn.qkv.weight")
    torch.save(weights, tmp_path / "part.pt")
    with pytest.raises(ModelError, match="does not hold the weights"):
        _ = nec.load_model(f"terratorch:prithvi_eo_tiny@{tmp_path / 'part.pt'}").encoder
    with pytest.raises(ModelError, match="no adapter"):
        _ = nec.load_model(f"terratorch:resnet50@{tmp_path / 'part.pt'}").encoder
    with pytest.raises(ModelError, match="builds no prithvi_eo_v9"):
        _ = nec.load_model(f"terratorch:prithvi_eo_v9@{tmp_path / 'part.pt'}").encoder
    with pytest.raises(ModelError, match="names no backbone with a file"):
        nec.load_model(f"terratorch:prithvi_eo_tiny@{tmp_path / 'none.pt'}")
    with pytest.raises(ModelError, match=r"write them to .*statistics\.json"):
        _ = nec.load_model(f"terratorch:dofa_small_patch16_224@{tmp_path / 'part.pt'}").encoder
    (tmp_path / "part.pt.statistics.json").write_text("[1, 2]")
    with pytest.raises(ModelError, match="holds no statistics"):
        nec.load_model(f"terratorch:dofa_small_patch16_224@{tmp_path / 'part.pt'}")


def test_a_scene_is_encoded_with_it(write_raster: RasterWriter, tmp_path: Path) -> None:
    torch.manual_seed(3)
    file = tmp_path / "tiny.pt"
    torch.save(kind_of("prithvi_eo_tiny").make("prithvi_eo_tiny").state_dict(), file)
    numbers = np.random.default_rng(0).integers(200, 3000, (6, 256, 256)).astype(np.uint16)
    scene = write_raster("scene.tif", numbers, bands=HLS, scales=(1e-4,) * 6)
    fitted, store = tmp_path / "p.json", tmp_path / "s.zarr"
    model = ("--model", "terratorch:prithvi_eo_tiny", "--checkpoint", file)
    for line in (
        ("fit", scene, fitted, "--bytes", 8, *model),
        ("encode", scene, store, "--rate", fitted, *model),
    ):
        result = CliRunner().invoke(app, list(map(str, line)))
        assert result.exit_code == 0, result.output
    here = nec.open(store)
    assert here.nec.info["model"] == "prithvi_eo_tiny"
    assert here.embedding.sizes["band"] == 256
    assert here.embedding.notnull().any()


def test_torchvision_of_another_build_is_imported() -> None:
    code = """
from nec.encoders.torchvision_schemas import import_torchvision
print(import_torchvision().__version__, import_torchvision().ops.nms)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
