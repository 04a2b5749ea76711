"""Learned compression: trains, resumes, and leaves as a compressor that needs no torch."""

import copy
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nec.bottleneck import (
    Bottleneck,
    EncoderEnd,
    TargetPrediction,
    Trainer,
    export,
    warm_up,
)
from nec.codec.chunk import encode_chunk, read_coefficients
from nec.codec.container import take_apart
from nec.codec.decisions import Transformed
from nec.codec.guarantee import cosines
from nec.compressor import Compressor
from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.errors import CompressorError
from nec.heads import pooling
from nec.pretrain.description import mean_and_roughness
from nec.rotation import rotate

DIM, SIDE = 12, 16
_compressai = pytest.mark.skipif(
    importlib.util.find_spec("compressai") is None,
    reason="CompressAI is not installed: pip install 'nec[train]'",
)
KINDS = (
    "transform",
    pytest.param("factorised", marks=_compressai),
    pytest.param("hyperprior", marks=_compressai),
)
SIZES = (0.3, 1.2)


@pytest.fixture(scope="module")
def features() -> Tensor:
    """Smooth maps, mixed, with a little noise: (n, dim, y, x)."""
    rng = np.random.default_rng(0)
    waves = np.fft.fftfreq(SIDE)
    decay = 1 / (0.03 + np.hypot(waves[:, None], waves)) ** 1.5
    fields = np.fft.ifft2(np.fft.fft2(rng.normal(size=(64, 6, SIDE, SIDE))) * decay).real
    mix = rng.normal(size=(6, DIM)) * np.array([4, 2, 2, 1, 1, 0.5])[:, None]
    values = np.einsum("nkyx,kd->ndyx", fields / fields.std(), mix)
    return torch.from_numpy(values + 0.1 * rng.normal(size=values.shape)).float()


def pieces(features: Tensor) -> list[np.ndarray]:
    return [features.permute(0, 2, 3, 1).contiguous().numpy()]


@pytest.fixture(scope="module")
def compressors(features: Tensor) -> list[Compressor]:
    fine = Compressor.fit(pieces(features), bytes_per_vector=SIZES[1])
    coarse = Compressor.fit(pieces(features), bytes_per_vector=SIZES[0], basis=fine.basis)
    return [coarse, fine]


def started(
    kind: str, features: Tensor, compressors: list[Compressor], rank: int | None = None
) -> Bottleneck:
    torch.manual_seed(0)
    bottleneck = Bottleneck(DIM, len(compressors), kind=kind, rank=rank)
    steps = np.stack([c.coding.step_values for c in compressors])
    bottleneck.start(features, basis=compressors[0].basis, steps=steps)
    return bottleneck


@pytest.fixture(scope="module")
def learned(features: Tensor, compressors: list[Compressor]) -> Compressor:
    bottleneck = started("transform", features, compressors[1:], rank=8)
    return export(bottleneck, pieces(features), bytes_per_vector=SIZES[1:])[0]


# The likeness drops no whole tiles, which a falloff makes many of.
@pytest.mark.parametrize(("falloff", "near"), [(1.0, 0.15), (2.2, 0.3)])
def test_estimate_is_near_the_bytes(
    falloff: float, near: float, features: Tensor, compressors: list[Compressor]
) -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck(DIM, len(SIZES), falloff=falloff)
    rates = [
        Compressor.fit(pieces(features), bytes_per_vector=s, basis=c.basis, falloff=falloff)
        for s, c in zip(SIZES, compressors, strict=True)
    ]
    steps = np.stack([c.coding.step_values for c in rates])
    bottleneck.start(features, basis=compressors[0].basis, steps=steps)
    warm_up(bottleneck, features, rounds=40)
    bottleneck.eval()
    for rate, compressor in enumerate(rates):
        with torch.no_grad():
            coded = bottleneck(features, rate)
        estimated = float(coded.bits.sum()) / 8
        data = compressor.encode(pieces(features)[0])
        assert estimated == pytest.approx(len(data), rel=near)
        decoded = torch.from_numpy(compressor.decode(data)).permute(0, 3, 1, 2)
        error = float((coded.features - features).square().mean())
        assert error == pytest.approx(float((decoded - features).square().mean()), rel=near)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_trains_and_survives_a_file(
    kind: str, features: Tensor, compressors: list[Compressor], tmp_path: Path
) -> None:
    bottleneck = started(kind, features, compressors, rank=8)
    before = warm_up(bottleneck, features, rounds=3)
    after = warm_up(bottleneck, features, rounds=15)
    assert after[1] < before[1]
    source = features[:8].clone().requires_grad_()
    for rate in range(2):
        coded = bottleneck(source, rate)
        (coded.bits.sum() + coded.features.square().sum()).backward()
    bottleneck.auxiliary_loss().backward() if kind != "transform" else None
    assert source.grad is not None
    assert source.grad.abs().sum() > 0
    for name, parameter in bottleneck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    basis = bottleneck.basis
    assert (basis.T @ basis - torch.eye(8)).abs().max() < 1e-5
    torch.save(bottleneck.state_dict(), tmp_path / "state.pt")
    again = Bottleneck(DIM, 2, kind=kind, rank=8)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        ours, theirs = (b.eval()(features[:8], 1) for b in (bottleneck, again))
    assert torch.equal(ours.features, theirs.features)
    assert torch.equal(ours.bits, theirs.bits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_prior_expects_costs_and_has_a_slope(
    kind: str, features: Tensor, compressors: list[Compressor]
) -> None:
    bottleneck = started(kind, features, compressors)
    bits = []
    for factor in (1e3, 2e3):
        source = (factor * features[:8]).requires_grad_()
        coded = bottleneck(source, 1)
        coded.bits.sum().backward()
        bits.append(float(coded.bits.detach().sum()))
        assert source.grad is not None
        assert source.grad.isfinite().all()
        assert (source.grad != 0).float().mean() > 0.99
    # What surrounds a coefficient of the transform is as large, and expects it.
    assert bits[1] > (1.1 if kind == "transform" else 1.5) * bits[0]


def trainer(features: Tensor, compressors: list[Compressor]) -> tuple[Trainer, Tensor, dict]:
    torch.manual_seed(1)
    config = VisionTransformerConfig(width=64, depth=2, heads=1, dim=DIM)
    network = VisionTransformer(config)
    end = EncoderEnd(network)
    chips = torch.nn.functional.interpolate(features[:, :3], scale_factor=4.0).sigmoid()
    tokens = end.trunk(network, chips, [0, 1, 2], torch.full((len(chips),), 10.0))
    whole = network(chips, [0, 1, 2], torch.full((len(chips),), 10.0))
    embedding = end(tokens).detach()
    assert (embedding - whole).abs().max() < 1e-4
    vectors = embedding.flatten(2).transpose(1, 2)
    targets = {"embedding": vectors, "pooled": mean_and_roughness(embedding)}
    bottleneck = started("transform", embedding, compressors)
    sizes = {k: v.shape[-1] for k, v in targets.items()}
    distillation = TargetPrediction(DIM, sizes, {"embedding": 1.0, "pooled": 0.5})
    distillation.start(embedding, targets)
    with torch.no_grad():
        found = distillation(embedding, targets)
    assert found["embedding"] < 0.01
    made = Trainer(end, bottleneck, distillation, bits=tuple(8 * s for s in SIZES), peak=1e-3)
    return made, tokens, targets


def test_codes_alike_under_autocast_and_after_inference(
    features: Tensor, compressors: list[Compressor]
) -> None:
    bottleneck = started("transform", features, compressors).eval()
    with torch.inference_mode():
        bottleneck(features[:2, :, :7, :9], 0)
    coded = bottleneck(features[:2, :, :7, :9], 0)
    coded.bits.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        again = bottleneck(features[:2, :, :7, :9], 0)
    assert torch.equal(again.features, coded.features)
    assert torch.equal(again.bits, coded.bits)


def test_pools_as_heads_do(features: Tensor) -> None:
    ours = mean_and_roughness(features).numpy()
    np.testing.assert_allclose(ours, pooling.mean_and_roughness(features.numpy()), atol=1e-4)


def test_training_lowers_the_loss_and_resumes(
    features: Tensor, compressors: list[Compressor]
) -> None:
    one, tokens, targets = trainer(features, compressors)
    other, _, _ = trainer(features, compressors)
    rows = [one.step(tokens, targets, k % 2) for k in range(4)]
    for k in range(2):
        other.step(tokens, targets, k % 2)
    state = copy.deepcopy(other.state_dict())
    for _ in range(2):  # one state serves twice
        resumed, _, _ = trainer(features, compressors)
        resumed.load_state_dict(state)
        assert [resumed.step(tokens, targets, k % 2) for k in (2, 3)] == rows[2:]
    later = [one.step(tokens, targets, k % 2) for k in range(12)]
    assert later[-1]["distortion"] < rows[1]["distortion"]
    assert set(one.trained()) == {"end", "bottleneck", "distillation"}
    one.end.freeze()
    assert one.trained()["end"] == 0


@pytest.mark.parametrize(
    ("kind", "rank"), [("transform", 6), pytest.param("factorised", None, marks=_compressai)]
)
def test_exports_what_it_learned(
    kind: str, rank: int | None, features: Tensor, compressors: list[Compressor]
) -> None:
    bottleneck = started(kind, features, compressors, rank=rank)
    with torch.no_grad():
        bottleneck.log_steps[1, 0] -= 0.7
    made = export(bottleneck, pieces(features), bytes_per_vector=SIZES)
    assert made[0].basis_hash == made[1].basis_hash
    assert made[0].basis.shape == (DIM, rank or DIM)
    within = bottleneck.basis.detach().numpy().T @ made[0].basis
    assert np.abs(within @ within.T - np.eye(rank or DIM)).max() < 1e-5
    of_band = np.abs(within).argmax(0)
    learned = bottleneck.log_steps.detach().exp().numpy()[1, of_band]
    ratio = made[1].coding.step_values / learned
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    values = pieces(features)[0]
    for size, compressor in zip(SIZES, made, strict=True):
        data = compressor.encode(values)
        assert len(data) / values[..., 0].size == pytest.approx(size, rel=0.03)
        decoded = compressor.decode(data)
        cosine = cosines(values, decoded).mean()
        assert cosine == pytest.approx(compressor.fidelity.cosine_mean, abs=2e-4)


def test_integers_do_not_depend_on_the_batch(features: Tensor, learned: Compressor) -> None:
    embedding = rotate(features.numpy(), learned.basis)
    # Rounding to the nearest heeds no other image, so integers can be compared between chunks.
    nearest = replace(learned.coding, lagrangian=0.0)
    seen = {}
    for coding in (learned.coding, nearest):
        for batch in (1, 7, 64):
            found = []
            for at in range(0, len(embedding), batch):
                values = np.ascontiguousarray(embedding[at : at + batch])
                parts = take_apart(memoryview(encode_chunk(values, coding)), coding)
                symbols = read_coefficients(parts, coding, values.shape).symbols
                decided = Transformed(values, coding.block).decide(coding)
                np.testing.assert_array_equal(symbols, decided.symbols)
                found.append(symbols)
            if coding is nearest:
                seen[batch] = np.concatenate(found)
    np.testing.assert_array_equal(seen[1], seen[64])
    np.testing.assert_array_equal(seen[7], seen[64])


def test_decodes_without_torch(features: Tensor, learned: Compressor, tmp_path: Path) -> None:
    data = learned.encode(pieces(features)[0])
    learned.save(tmp_path / "learned.json")
    (tmp_path / "data").write_bytes(data)
    reader = """
import sys
sys.modules["torch"] = sys.modules["compressai"] = None
import numpy as np
from nec import Compressor
np.save("decoded.npy", Compressor.load("learned.json").decode(open("data", "rb").read()))
"""
    subprocess.run([sys.executable, "-c", reader], cwd=tmp_path, check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "decoded.npy"), learned.decode(data))


def test_errors_say_what_to_do(features: Tensor, compressors: list[Compressor]) -> None:
    with pytest.raises(CompressorError, match="choose among"):
        Bottleneck(DIM, 1, kind="learned")
    with pytest.raises(CompressorError, match="keep 1 to 12"):
        Bottleneck(DIM, 1, rank=13)
    with pytest.raises(CompressorError, match="give one for each"):
        export(Bottleneck(DIM, 2), pieces(features), bytes_per_vector=[1.0])
    with pytest.raises(CompressorError, match="a block or less"):
        Bottleneck(DIM, 1, block=8)(features, 0)


@_compressai
def test_networks_are_no_tables(features: Tensor) -> None:
    with pytest.raises(CompressorError, match="network of floats"):
        export(Bottleneck(DIM, 1, kind="hyperprior"), pieces(features), bytes_per_vector=[1.0])
