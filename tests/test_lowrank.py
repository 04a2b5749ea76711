"""Low-rank layers are exact, train in any loop, find ranks, and go back to dense ones."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import nec
from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.errors import LowRankError
from nec.lowrank import (
    LowRankConv2d,
    LowRankLinear,
    LowRankTrainer,
    compression,
    condition_bound,
    condition_number,
    condition_numbers,
    convert,
    deploy,
    load_lowrank,
    lowrank_layers,
    merge,
    penalty,
    spectral_penalty,
)

STUDENTS = ("nec-tiny-lowrank", "nec-tiny")
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=3e-3, weight_decay=0.1),
    "amsgrad": lambda m: torch.optim.Adam(m.parameters(), lr=3e-3, amsgrad=True),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=1e-2),
}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return a convolutional network for images (n, 3, 8, 8)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 20),
        nn.ReLU(),
        nn.Linear(20, 4),
    ).to(dtype)


def task(model: nn.Module, n: int = 32) -> Callable[[], Tensor]:
    """Return a closure: which quadrant of the image is bright."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(4, (n,), generator=generator)
    x = torch.randn(n, 3, 8, 8, generator=generator) * 0.3
    for image, label in zip(x, y, strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 0.7
    return lambda: F.cross_entropy(model(x), y)


def skew(model: nn.Module) -> float:
    """Return how far the bases are from orthonormal."""
    return max(
        (basis.T @ basis - torch.eye(basis.shape[1])).abs().max().item()
        for layer in lowrank_layers(model).values()
        for basis in (layer.output_basis, layer.input_basis)
    )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("padding", ["same", (2, 1)])
def test_full_rank_is_the_dense_convolution(
    padding: str | tuple[int, int], padding_mode: str
) -> None:
    dense = nn.Conv2d(
        5, 7, (3, 2), padding=padding, dilation=(1, 2), padding_mode=padding_mode
    ).double()  # type: ignore[arg-type]
    low = LowRankConv2d.of(dense, 1.0)
    x = torch.randn(2, 5, 9, 8, dtype=torch.double)
    assert low.ranks == (7, 5)
    torch.testing.assert_close(low(x), dense(x))
    torch.testing.assert_close(low.dense()(x), dense(x))


@settings(max_examples=25, deadline=None)
@given(
    out=st.integers(1, 12),
    inputs=st.integers(1, 12),
    size=st.sampled_from([None, 1, 3]),
    rank=st.integers(1, 12),
    bias=st.booleans(),
)
def test_every_form_of_a_layer_is_one_map(
    out: int, inputs: int, size: int | None, rank: int, bias: bool
) -> None:
    layer = (
        nn.Linear(inputs, out, bias=bias)
        if size is None
        else nn.Conv2d(inputs, out, size, stride=2, padding=1, bias=bias)
    )
    layer = layer.double()
    low = (LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv2d).of(layer, rank)
    x = torch.randn((3, inputs) if size is None else (3, inputs, 5, 5), dtype=torch.double)
    y = low(x)
    for form in (low.dense(), low.factored()):
        torch.testing.assert_close(form(x), y)
    if rank >= max(out, inputs):
        torch.testing.assert_close(y, layer(x))
    factored = sum(p.numel() for p in low.factored().parameters())
    assert factored <= sum(p.numel() for p in layer.parameters())


@settings(max_examples=12, deadline=None)
@given(
    widths=st.tuples(*[st.integers(2, 14)] * 3),
    rank=st.sampled_from([1, 2, 0.3, 1.0]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    core_steps=st.integers(1, 3),
    beta=st.sampled_from([0.0, 0.1]),
)
def test_bases_stay_orthonormal(
    widths: tuple[int, int, int], rank: float, optimizer: str, core_steps: int, beta: float
) -> None:
    a, b, c = widths
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * b, c)
    )
    x, y = torch.randn(16, a, 2, 2), torch.randn(16, c)
    convert(model, rank=rank, minimum=1)
    trainer = LowRankTrainer(
        model, OPTIMIZERS[optimizer](model), tau=0.05, beta=beta, core_steps=core_steps
    )
    for _ in range(30):
        trainer.step(lambda: F.mse_loss(model(x), y))
        assert skew(model) < 1e-5


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_training_learns_biases_and_core(optimizer: str) -> None:
    model = network()
    convert(model, rank=0.5, minimum=4, exclude="0")
    trainer = LowRankTrainer(
        model, OPTIMIZERS[optimizer](model), tau=0.1, core_steps=5, max_rank=0.5, max_norm=1.0
    )
    closure = task(model)
    biases = {name: layer.bias for name, layer in lowrank_layers(model).items()}
    before = {name: bias.detach().clone() for name, bias in biases.items() if bias is not None}
    first = float(closure().detach())
    for _ in range(60):
        trainer.step(closure)
    assert float(closure().detach()) < 0.35 * first
    for name, bias in biases.items():
        assert bias is not None
        assert bias.grad is not None
        assert not torch.equal(bias, before[name])
    assert all(ranks[0] <= 10 and ranks[1] <= 10 for ranks in trainer.ranks.values())


@pytest.mark.parametrize("start", [1, 12])
def test_the_rank_of_a_matrix_is_found(start: int) -> None:
    torch.manual_seed(0)
    target = torch.randn(20, 4) @ torch.randn(4, 15)
    model = nn.Sequential(nn.Linear(15, 20, bias=False))
    convert(model, rank=start, minimum=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = LowRankTrainer(model, optimizer, tau=0.02, core_steps=3)
    eye = torch.eye(15)
    for _ in range(60):
        loss = trainer.step(lambda: (model(eye).T - target).square().sum() / 2)
    assert trainer.ranks == {"0": (4, 4)}
    assert loss < 1e-3 * target.square().sum()


def test_ranks_of_a_kernel_are_found() -> None:
    torch.manual_seed(0)
    core = torch.randn(3, 2, 3, 3)
    target = torch.einsum("abyx,oa,ib->oiyx", core, torch.randn(12, 3), torch.randn(10, 2))
    model = nn.Sequential(nn.Conv2d(10, 12, 3, bias=False))
    convert(model, rank=7, minimum=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = LowRankTrainer(model, optimizer, tau=0.02, core_steps=3)
    eye = torch.eye(90).view(90, 10, 3, 3)
    for _ in range(60):
        trainer.step(lambda: (model(eye).flatten(1).T - target.flatten(1)).square().sum() / 2)
    assert trainer.ranks == {"0": (3, 2)}


def test_truncation_keeps_its_promise() -> None:
    torch.manual_seed(0)
    for layer, factor in ((nn.Linear(30, 20), 1.0), (nn.Conv2d(12, 16, 3), 2**0.5)):
        low = (LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv2d).of(layer, 1.0)
        low.truncate(0.3)
        error = (low.weight - layer.weight).norm() / layer.weight.norm()
        assert 0 < error <= 0.3 * factor
        assert low.ranks[0] < layer.weight.shape[0]
    # Five output directions, and two input channels of two taps that can feed four.
    assert LowRankConv2d.of(nn.Conv2d(5, 12, (1, 2)), 0.5).ranks == (4, 2)


def test_bases_trained_as_plain_matrices_are_made_orthonormal() -> None:
    model = network()
    convert(model, rank=3, minimum=4)
    model.requires_grad_(True)
    closure = task(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = closure().item()
    for _ in range(10):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    after = closure().item()
    assert after < before
    assert skew(model) > 1e-3
    for layer in lowrank_layers(model).values():
        layer.orthonormalise()
    assert skew(model) < 1e-5
    assert closure().item() == pytest.approx(after, rel=1e-4)


def test_decay_and_plain_loops_leave_the_bases_alone() -> None:
    model = network()
    convert(model, rank=3, minimum=4)
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("basis")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        task(model)().backward()
        optimizer.step()
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in kept.items())


def test_state_of_the_optimiser_follows_the_core() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 8, bias=False))
    convert(model, rank=3, minimum=1)
    layer = lowrank_layers(model)["0"]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = LowRankTrainer(model, optimizer, tau=0.0, core_steps=2)
    x, y = torch.randn(16, 9), torch.randn(16, 8)
    trainer.step(lambda: F.mse_loss(model(x), y))
    momentum = optimizer.state[layer.core]["exp_avg"]
    wide = layer.output_basis @ momentum @ layer.input_basis.T
    trainer.truncate()
    momentum = optimizer.state[layer.core]["exp_avg"]
    assert momentum.shape == layer.core.shape == (6, 6)
    torch.testing.assert_close(layer.output_basis @ momentum @ layer.input_basis.T, wide)
    assert optimizer.state[layer.core]["exp_avg_sq"].shape == (6, 6)

    even = torch.full(layer.core.shape, 2.0)
    change = layer.augment(torch.randn(8, 6), torch.randn(9, 6))
    torch.testing.assert_close(change.of_squares(even), torch.full((8, 9), 2.0))
    change = layer.truncate(0.5)
    torch.testing.assert_close(change.of_squares(torch.full((8, 9), 2.0))[0, 0], torch.tensor(2.0))


@settings(max_examples=15, deadline=None)
@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.sampled_from([(), (1, 1), (3, 2)]))
def test_penalty_its_gradient_and_the_bound(shape: tuple[int, int], size: tuple[int, ...]) -> None:
    core = torch.randn(*shape, *size, dtype=torch.double, requires_grad=True)
    assert condition_number(core) <= condition_bound(core) * (1 + 1e-9)
    value = spectral_penalty(core)
    if min(shape) > 1:
        assert torch.autograd.gradcheck(spectral_penalty, core)
    if size in ((), (1, 1)):
        s = torch.linalg.svdvals(core.detach().flatten(1))
        expected = (s.square() - s.square().mean()).norm()
        torch.testing.assert_close(value.detach(), expected)
    if min(shape) > 1 and size == () and shape[0] >= shape[1]:
        (gradient,) = torch.autograd.grad(value, core)
        excess = core.T @ core - core.square().sum() / shape[1] * torch.eye(shape[1])
        # Near a perfect core the penalty, which divides, is a difference of much larger numbers.
        torch.testing.assert_close(gradient, 2 * core @ excess / value, rtol=1e-5, atol=1e-5)


def test_penalty_of_a_perfect_core_has_a_gradient_and_of_a_singular_one_no_bound() -> None:
    core = torch.eye(4, requires_grad=True)
    spectral_penalty(core).backward()
    assert core.grad is not None
    assert torch.isfinite(core.grad).all()
    assert condition_bound(core) == condition_number(core) == 1
    assert condition_bound(torch.zeros(3, 3)) == condition_number(torch.zeros(3, 3)) == math.inf


def test_the_penalty_improves_conditioning() -> None:
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(12, 4))[0] for _ in range(2))
    target = u @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5])) @ v.T

    def train(beta: float) -> tuple[float, float]:
        model = nn.Sequential(nn.Linear(12, 12, bias=False))
        convert(model, rank=4, minimum=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        trainer = LowRankTrainer(model, optimizer, tau=0.0, beta=beta, core_steps=3, max_rank=4)
        for _ in range(90):
            loss = trainer.step(lambda: (model(torch.eye(12)).T - target).square().sum() / 2)
        assert (trainer.penalty > 0) == (beta > 0)
        return condition_numbers(model)["0"], float(loss)

    worst, loss = zip(*(train(beta) for beta in (0.0, 0.1, 0.3)), strict=True)
    assert worst[0] == pytest.approx(8, rel=0.01)
    assert worst[2] < worst[1] < 0.9 * worst[0]
    assert loss[0] < loss[1] < loss[2]


def test_autocast_and_checkpointing() -> None:
    def train(outside: bool, reentrant: bool | None) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        convert(model, rank=2, minimum=4)
        trainer = LowRankTrainer(model, OPTIMIZERS["adamw"](model), beta=0.1, core_steps=4)
        x, y = torch.randn(16, 8, requires_grad=True), torch.randn(16, 8)

        cast = torch.autocast("cpu", dtype=torch.bfloat16)

        def closure() -> Tensor:
            with nullcontext() if outside else cast:
                if reentrant is None:
                    output = model(x)
                else:
                    output = checkpoint(model, x, use_reentrant=reentrant)
            assert output.dtype == torch.bfloat16
            return F.mse_loss(output.float(), y)

        with cast if outside else nullcontext():
            losses = [float(trainer.step(closure)) for _ in range(24)]
        assert skew(model) < 1e-5
        assert all(p.dtype == torch.float32 for p in model.parameters())
        return losses

    expected = train(False, None)
    assert expected[-1] < expected[0]
    # Also where casts of weights, kept until autocast ends, outlive a step.
    for outside, reentrant in ((True, None), (False, False), (False, True), (True, True)):
        assert train(outside, reentrant) == pytest.approx(expected, rel=1e-3)


def test_checkpoints_carry_ranks_and_the_place_in_the_cycle() -> None:
    def start(rank: float) -> tuple[nn.Module, LowRankTrainer]:
        model = network()
        convert(model, rank=rank, minimum=4)
        return model, LowRankTrainer(model, OPTIMIZERS["adamw"](model), core_steps=4)

    model, trainer = start(2)
    for _ in range(6):
        trainer.step(task(model))
    saved = copy.deepcopy((model.state_dict(), trainer.state_dict()))
    other, resumed = start(0.9)
    assert other.state_dict()["3.core"].shape != saved[0]["3.core"].shape
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(7):
        assert torch.equal(trainer.step(task(model)), resumed.step(task(other)))
    assert trainer.ranks == resumed.ranks
    trainer.adaptive = False
    resumed.load_state_dict(trainer.state_dict())
    assert not resumed.adaptive

    model, trainer = start(2)
    trainer.step(task(model))
    model.load_state_dict(saved[0])
    with pytest.raises(LowRankError, match="one checkpoint"):
        trainer.step(task(model))
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Sequential(LowRankLinear.of(nn.Linear(5, 5), 2)).load_state_dict(
            nn.Sequential(LowRankLinear.of(nn.Linear(6, 5), 3)).state_dict()
        )


def test_fixed_bases_for_the_last_steps() -> None:
    model = network()
    convert(model, rank=3, minimum=4)
    trainer = LowRankTrainer(model, OPTIMIZERS["adamw"](model), core_steps=3)
    closure = task(model)
    trainer.step(closure)
    trainer.adaptive = False
    for _ in range(2):
        trainer.step(closure)
    basis = lowrank_layers(model)["3"].output_basis.detach().clone()
    core = lowrank_layers(model)["3"].core.detach().clone()
    for _ in range(5):
        trainer.step(closure)
    assert torch.equal(lowrank_layers(model)["3"].output_basis, basis)
    assert not torch.equal(lowrank_layers(model)["3"].core, core)


def test_merge_deploy_and_what_is_saved() -> None:
    model = network().eval()
    report = convert(model, rank=2, minimum=4, exclude=["0"])
    assert [layer.name for layer in report.layers] == ["3", "6", "8"]
    assert report.skipped == {"0": "not chosen"}
    assert "6: 20x144, rank 2x2" in str(report)
    x = torch.rand(2, 3, 8, 8)
    expected = model(x).detach()
    saved = compression(model, x)
    assert saved.layer_parameters == sum(
        p.numel() for layer in lowrank_layers(model).values() for p in layer.parameters()
    )
    assert saved.dense_layer_parameters == 16 * 12 * 9 + 16 + 20 * 144 + 20 + 20 * 4 + 4
    assert saved.flops is not None
    assert saved.dense_operations is not None
    assert 0 < saved.model < saved.layers < 1
    assert 0 < saved.flops < 1
    assert compression(model).flops is None
    deployed = compression(model, x, deployed=True)
    assert deployed.layers > saved.layers
    assert f"{deployed.layers:.1%}" in str(deployed)
    torch.testing.assert_close(model(x), expected)

    small = deploy(copy.deepcopy(model))
    assert not any(type(m).__module__.startswith("nec") for m in small.modules())
    assert sum(p.numel() for p in small.parameters()) == deployed.parameters
    torch.testing.assert_close(small(x), expected, atol=1e-6, rtol=1e-5)
    half = deploy(copy.deepcopy(model), dtype=torch.bfloat16)
    y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0.05)

    merge(model)
    assert [type(m) for m in model] == [type(m) for m in network()]
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


def test_the_encoder_trains_at_low_rank() -> None:
    torch.manual_seed(0)
    config = VisionTransformerConfig(width=24, depth=1, heads=1, dim=8)
    model = VisionTransformer(config)
    report = convert(model, rank=4, include="blocks.*")
    assert len(report.layers) == 4
    assert set(report.skipped) == {"gsd_embedding", "head"}
    trainer = LowRankTrainer(model, OPTIMIZERS["adamw"](model), core_steps=2, beta=0.01)
    chips, gsd = torch.rand(2, 3, 8, 8), torch.full((2,), 10.0)
    for _ in range(4):
        trainer.step(lambda: model(chips, [0, 1, 2], gsd).square().mean())
    trainer.truncate()
    saved = compression(model, chips, [0, 1, 2], gsd)
    dense = VisionTransformer(config)
    assert saved.dense_parameters == sum(p.numel() for p in dense.parameters())
    tokens, width = 4, 24
    layers, attention = 12 * width**2 + 8 * width + 3 * 16 * width, 2 * tokens * width
    assert saved.dense_operations == 2 * 2 * (tokens * (layers + attention) + 3 * width)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.shared = nn.Linear(16, 16)
        self.mirror = nn.Linear(16, 16)
        self.mirror.weight = self.shared.weight
        self.grouped = nn.Conv2d(16, 16, 1, groups=2)
        self.zero = nn.Linear(16, 16)
        nn.init.zeros_(self.zero.weight)
        self.attention = nn.MultiheadAttention(16, 2)


def test_weights_of_any_ranks_load_into_the_dense_architecture() -> None:
    torch.manual_seed(3)
    config = VisionTransformerConfig(bands=("red", "nir"), dim=8, width=32, depth=2, heads=1)
    trained = VisionTransformer(config)
    convert(trained, rank=0.5, include="blocks.*")
    layers = list(lowrank_layers(trained).values())
    layers[0].truncate(0.0, min_rank=1, max_rank=3)
    view = (torch.rand(2, 2, 16, 16), [0, 1], torch.tensor([10.0, 10.0]))
    with torch.no_grad():
        wanted = trained(*view)
        found = load_lowrank(VisionTransformer(config), trained.state_dict())
        assert torch.equal(found(*view), wanted)
        assert next(iter(lowrank_layers(found).values())).ranks == (3, 3)
        narrow, fresh = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
        convert(narrow, rank=2, minimum=8)
        nn.init.zeros_(fresh[0].weight)
        rows = torch.rand(3, 8)
        assert torch.equal(load_lowrank(fresh, narrow.state_dict())(rows), narrow(rows))
        torch.testing.assert_close(deploy(found)(*view), wanted, rtol=1e-4, atol=1e-5)
        dense = merge(trained)
        again = load_lowrank(VisionTransformer(config), dense.state_dict())
    assert torch.equal(again(*view), dense(*view))
    # The shipped student of low rank gives nearly its teacher's embeddings. Not near enough for
    # heads to move, so its basis is another.
    models = {name: nec.load_model(name, precision="float32") for name in STUDENTS}
    assert len({model.basis_hash for model in models.values()}) == 2
    bands = ("blue", "green", "red")
    chips = torch.rand(2, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3) * 0.3
    ours, theirs = (m.encoder.embed(chips, bands=bands, gsd=10.0) for m in models.values())
    assert F.cosine_similarity(ours, theirs, dim=1).mean() > 0.9
    assert sum(p.numel() for p in models[STUDENTS[0]].encoder.network.parameters()) < 600_000
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        load_lowrank(VisionTransformer(VisionTransformerConfig.sized(64)), trained.state_dict())


def test_what_stays_dense_and_what_stays_shared() -> None:
    model = Tied()
    report = convert(model, rank=4, keep_norm=True)
    assert model.again is model.first
    assert isinstance(model.first, LowRankLinear)
    assert [layer.name for layer in report.layers] == ["first"]
    assert {name: why.split(",")[0] for name, why in report.skipped.items()} == {
        "shared": "its weight is shared with another module",
        "mirror": "its weight is shared with another module",
        "grouped": "2 groups",
        "zero": "its weight is zero",
        "attention.out_proj": "a NonDynamicallyQuantizableLinear",
    }
    layer = nn.Linear(16, 16)
    low = nn.Sequential(layer)
    convert(low, rank=4, keep_norm=True, include=lambda name, module: name == "0")
    torch.testing.assert_close(low[0].weight.norm(), layer.weight.norm())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_types_keep_the_ranks_that_they_can_tell(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(192, 192))
    part = nn.Sequential(nn.Linear(192, 192))
    with torch.no_grad():
        part[0].weight.copy_(torch.randn(192, 12) @ torch.randn(12, 192) / 50)
    whole = convert(copy.deepcopy(wide).to(kind), rank=0.5).layers[0]
    assert whole.ranks == (96, 96)
    assert convert(part.to(kind), rank=1.0).layers[0].ranks == (12, 12)
    # What was converted wide and is kept narrow stays what it is, too.
    convert(wide, rank=0.25)
    low = lowrank_layers(wide.to(kind))["0"]
    low.truncate(0.0)
    assert low.ranks == (48, 48)


def test_what_is_frozen_or_not_used_loses_nothing() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])
    used, frozen, idle = model
    frozen.requires_grad_(False)
    convert(model, rank=1.0)
    used, frozen, idle = model
    x = torch.randn(64, 32)
    kept = {id(layer): layer.weight.detach().clone() for layer in (frozen, idle)}
    other = nn.Parameter(torch.zeros(32))
    model.other = other
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if n != "other"], lr=0.0)
    trainer = LowRankTrainer(model, optimizer, tau=0.1, core_steps=1)
    sizes = []
    for _ in range(3):
        # Whoever unfreezes the model unfreezes no basis.
        model.requires_grad_(True)
        frozen.requires_grad_(False)
        trainer.step(lambda: (used(frozen(x)) - x + other).square().mean())
        sizes.append(float(other.grad.norm()))
        other.grad = None
    assert used.ranks[0] < 32
    for layer in (frozen, idle):
        torch.testing.assert_close(layer.weight, kept[id(layer)], rtol=0, atol=1e-6)
    # Of each step the gradient of one pass.
    assert sizes[2] == pytest.approx(sizes[0], rel=0.2)
    gram = used.output_basis.T @ used.output_basis
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
    model.requires_grad_(False)
    with pytest.raises(LowRankError, match="all low-rank layers are frozen"):
        LowRankTrainer(model, optimizer)


def test_torchs_own_transformer_is_deployed() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 1, enable_nested_tensor=False
    ).eval()
    convert(model, rank=4, include="*linear*")
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(deploy(model)(x), expected, rtol=1e-4, atol=1e-5)


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(LowRankError, match=r"itself a Linear.*nn.Sequential"):
        convert(nn.Linear(20, 20), rank=2)
    for rank, message in ((0, "rank 0 is below 1"), (1.5, "rank 1.5 is no fraction")):
        with pytest.raises(LowRankError, match=message):
            convert(network(), rank=rank, minimum=4)
    with pytest.raises(LowRankError, match="include='head' matches no layer; layers are 0, 3, 6"):
        convert(network(), rank=2, include="head")
    with pytest.raises(LowRankError, match=r"no layer was converted.*fewer than 64 channels"):
        convert(network(), rank=2, minimum=64)
    with pytest.raises(LowRankError, match="2 groups"):
        LowRankConv2d.of(nn.Conv2d(4, 4, 1, groups=2), 2)
    for act in (merge, deploy, compression, penalty, condition_numbers):
        with pytest.raises(LowRankError, match=r"no low-rank layer.*convert"):
            act(network())  # type: ignore[operator]

    hooked = nn.Sequential(nn.utils.spectral_norm(nn.Linear(20, 20)), nn.Linear(20, 20))
    nn.init.constant_(hooked[1].weight, math.nan)
    with pytest.raises(LowRankError, match=r"0 \(its weight is made by a hook.*is not finite"):
        convert(hooked, rank=2)

    model = network()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model, rank=2, minimum=4)
    with pytest.raises(LowRankError, match="'3' is not among the optimiser's parameters"):
        LowRankTrainer(model, early)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrong = (("tau", 1.0), ("beta", -1.0), ("core_steps", 0), ("min_rank", 0), ("min_rank", 1.5))
    for name, value in (*wrong, ("max_norm", -1.0), ("max_norm", math.nan)):
        with pytest.raises(LowRankError, match=f"{name} is {value}"):
            LowRankTrainer(model, optimizer, **{name: value})  # type: ignore[arg-type]
    trainer = LowRankTrainer(model, optimizer, core_steps=1)
    with pytest.raises(LowRankError, match="core of layer '3' is not finite; lower"):
        trainer.step(lambda: task(model)() * math.nan)
    model = network()
    convert(model, rank=2, minimum=4)
    trainer = LowRankTrainer(model, torch.optim.Rprop(model.parameters()), core_steps=1)
    with pytest.raises(LowRankError, match=r"'prev' of Rprop"):
        trainer.step(task(model))
