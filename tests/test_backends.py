"""Other runtimes for the encoder: the same embeddings, in stores of their own."""

import importlib.util
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import nec
from nec.archive import open_store
from nec.cli import app
from nec.encoders import Encoder
from nec.errors import ModelError, StoreError

openvino_is_here = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="not installed: pip install 'nec[openvino]'",
)
RGB = ("blue", "green", "red")


@pytest.fixture(scope="module")
def chips() -> torch.Tensor:
    return torch.rand(3, 6, 24, 40, generator=torch.Generator().manual_seed(0)) * 0.3


@pytest.fixture(scope="module")
def exact() -> Encoder:
    return nec.load_model("nec-tiny", precision="float32").encoder


@openvino_is_here
def test_embeddings_are_those_of_torch(exact: Encoder, chips: torch.Tensor) -> None:
    encoder = nec.load_model("nec-tiny", precision="float32", backend="openvino").encoder
    assert isinstance(encoder, Encoder)
    for bands, part in (
        (("red",), chips[:, :1]),
        (RGB, chips[:1, :3, :8, :16]),
        (encoder.bands, chips),
        (("swir16", "nir"), chips[:, 3:5, :, :24]),
    ):
        for gsd in (10.0, 30.0):
            there = encoder.embed(part, bands=bands, gsd=gsd)
            torch.testing.assert_close(
                there, exact.embed(part, bands=bands, gsd=gsd), atol=1e-3, rtol=1e-3
            )
    with pytest.raises(ModelError, match="4-pixel patches"):
        encoder.embed(chips[..., :9], bands=encoder.bands, gsd=10.0)


@openvino_is_here
def test_bfloat16_is_near(exact: Encoder, chips: torch.Tensor) -> None:
    encoder = nec.load_model("nec-tiny", precision="bfloat16", backend="openvino").encoder
    there = encoder.embed(chips, bands=encoder.bands, gsd=10.0)
    assert there.dtype == torch.float32
    cosine = torch.cosine_similarity(
        there, exact.embed(chips, bands=encoder.bands, gsd=10.0), dim=1
    )
    assert cosine.mean() > 0.9999
    assert cosine.min() > 0.999


@openvino_is_here
def test_threads_do_not_disturb_each_other(chips: torch.Tensor) -> None:
    encoder = nec.load_model("nec-tiny", backend="openvino").encoder
    parts = [chips[i : i + 1] + 0.1 * i for i in range(3)]
    alone = [encoder.embed(part, bands=encoder.bands, gsd=10.0) for part in parts]
    together = Barrier(len(parts))

    def often(part: torch.Tensor) -> list[torch.Tensor]:
        together.wait()
        return [encoder.embed(part, bands=encoder.bands, gsd=10.0) for _ in range(4)]

    with ThreadPoolExecutor(len(parts)) as threads:
        for expected, found in zip(alone, threads.map(often, parts), strict=True):
            assert all(torch.equal(expected, again) for again in found)


@openvino_is_here
def test_a_store_is_finished_by_the_backend_that_began_it(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((2, 3, 16, 16), np.float32) * 0.3
    model = nec.load_model("nec-tiny", backend="openvino")
    assert pickle.loads(pickle.dumps(model)).backend == "openvino"
    nec.encode(images, tmp_path / "a.zarr", model=model, bands=RGB)
    assert nec.encode(images, tmp_path / "a.zarr", model=model, bands=RGB).resumed
    assert open_store(tmp_path / "a.zarr").attrs["nec"]["backend"] == "openvino"
    with pytest.raises(StoreError, match="another run"):
        nec.encode(images, tmp_path / "a.zarr", model="nec-tiny", bands=RGB)
    nec.encode(images, tmp_path / "b.zarr", model="nec-tiny", bands=RGB)
    assert "backend" not in open_store(tmp_path / "b.zarr").attrs["nec"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_embeddings_of_a_gpu_are_those_of_the_processor(
    exact: Encoder, chips: torch.Tensor
) -> None:
    model = nec.load_model("nec-tiny", precision="float32", backend="cuda")
    found = model.encoder.embed(chips[:, :3], bands=RGB, gsd=10.0)
    assert found.device == chips.device
    np.testing.assert_allclose(
        found, exact.embed(chips[:, :3], bands=RGB, gsd=10.0), atol=2e-3, rtol=0
    )


@openvino_is_here
def test_the_command_line_takes_a_backend(rendered_scene: Path, tmp_path: Path) -> None:
    store = tmp_path / "scene.zarr"
    told = CliRunner().invoke(
        app, ["encode", str(rendered_scene), str(store), "--backend", "openvino"]
    )
    assert told.exit_code == 0, told.output
    assert open_store(store).attrs["nec"]["backend"] == "openvino"


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'tensorflow' is unknown"):
        nec.load_model("nec-tiny", backend="tensorflow")
    (tmp_path / "config.json").write_text('{"model": {"encoder": {"embedding_size": 128}}}')
    with pytest.raises(ModelError, match="does not run galileo"):
        nec.load_model(f"galileo:{tmp_path}", backend="openvino")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no NVIDIA GPU"):
        _ = nec.load_model("nec-tiny", backend="cuda").encoder
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match="openvino is not installed"):
        _ = nec.load_model("nec-tiny", backend="openvino").encoder


@openvino_is_here
def test_openvino_reports_nothing_of_its_use() -> None:
    # In a process of its own: what is imported first decides.
    code = (
        "import sys, nec; nec.load_model('nec-tiny', backend='openvino').encoder; "
        "assert 'openvino' in sys.modules; "
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry')]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
