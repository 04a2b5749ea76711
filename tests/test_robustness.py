"""Attacks, distances and masking: closed forms on linear models, invariants, known masks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.errors import RobustnessError
from nec.robustness import (
    APGD,
    FGSM,
    PGD,
    Admix,
    Attack,
    DeepFool,
    Jitter,
    Mixup,
    Square,
    Transfer,
    embedding_shift,
    evaluate,
    gradient_norm,
    linearization_error,
    masking_report,
    minimal_perturbation,
    plot_reports,
    scene_embedding,
)

Model = Callable[[Tensor], Tensor]
Task = tuple[nn.Module, Tensor, Tensor]

IMAGES = 64
RECIPES: dict[str, dict[str, Any]] = {
    "FGSM": {},
    "PGD": {"steps": 4, "restarts": 2},
    "APGD": {"steps": 5},
    "Jitter": {"steps": 4},
    "Mixup": {"steps": 2, "copies": 2},
    "Admix": {"steps": 2, "copies": 2, "partners": 2},
    "Square": {"queries": 12},
}
KINDS: dict[str, type[Attack]] = {
    kind.__name__: kind for kind in (FGSM, PGD, APGD, Jitter, Mixup, Admix, Square)
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(128, 4),
        )


def images(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four classes of patterns in noise: hard enough that small budgets matter."""
    patterns = torch.rand(4, 3, 8, 8, generator=seeded(1)) - 0.5
    y = torch.arange(n) % 4
    noise = torch.randn(n, 3, 8, 8, generator=generator)
    return (0.5 + 0.12 * patterns[y] + 0.12 * noise).clamp(0, 1), y


@pytest.fixture(scope="module")
def task() -> Task:
    """A trained network with test images."""
    generator = seeded(2)
    x, y = images(400, generator)
    model = trained(network(0), x, y)
    x, y = images(IMAGES, generator)
    assert (model(x).argmax(1) == y).float().mean() > 0.8
    return model, x, y


def trained(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


class Linear(nn.Module):
    """Logits (0, w.x + b): the boundary is a plane."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.weight.flatten() + self.bias
        return torch.stack((torch.zeros_like(score), score), dim=1)


@pytest.fixture
def plane() -> tuple[Linear, Tensor, Tensor, dict[str, Tensor]]:
    """A linear model in double precision, images, answers, and their exact distances."""
    weight = torch.randn(1, 4, 5, generator=seeded(3), dtype=torch.float64)
    x = 0.5 + 0.1 * torch.randn(12, 1, 4, 5, generator=seeded(4), dtype=torch.float64)
    model = Linear(weight, -0.5 * weight.sum().item())
    with torch.no_grad():
        score = model(x)[:, 1]
    distance = {"linf": score.abs() / weight.abs().sum(), "l2": score.abs() / weight.norm()}
    return model.eval(), x.clamp(0, 1), (score > 0).long(), distance


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distances_to_a_plane_are_exact(plane: Any, norm: Any) -> None:
    model, x, y, distance = plane
    near = DeepFool(norm=norm, refine=16)(model, x)
    assert near.reached.all()
    assert torch.allclose(near.distance, distance[norm], rtol=1e-3, atol=2e-6)
    for attack in (FGSM(epsilon=1, norm=norm), PGD(epsilon=1, norm=norm, random_start=False)):
        found = minimal_perturbation(model, x, y, attack, largest=0.4, rounds=12)
        assert torch.allclose(found.epsilon, distance[norm], rtol=1e-3, atol=2e-4)
        assert (found.tried <= found.epsilon).all()
        assert (model(found.x).argmax(1) != y).all()
    # What is wrong already is at distance zero, what cannot be reached at infinity.
    wrong = minimal_perturbation(model, x, 1 - y, FGSM(epsilon=0.4, norm=norm), rounds=2)
    assert (wrong.epsilon == 0).all()
    out = minimal_perturbation(model, x, y, FGSM(epsilon=1e-6, norm=norm), rounds=2)
    assert out.epsilon.isinf().all()
    assert torch.equal(out.x, x)


def test_steps_on_a_plane_have_a_closed_form(plane: Any) -> None:
    model, x, y, _ = plane
    sign = torch.where(y == 1, -1.0, 1.0).double().view(-1, 1, 1, 1)
    weight = model.weight.detach()[None]
    steps = {
        ("linf", "steepest"): weight.sign(),
        ("linf", "scaled"): weight / weight.abs().max(),
        ("l2", "steepest"): weight / weight.norm(),
    }
    for (norm, direction), step in steps.items():
        attack = FGSM(epsilon=0.02, norm=norm, direction=direction, low=-9, high=9)  # type: ignore[arg-type]
        assert torch.allclose(attack(model, x, y), x + 0.02 * sign * step, atol=1e-9)
    for norm in ("linf", "l2"):
        ball: dict[str, Any] = {"epsilon": 0.02, "norm": norm, "low": -9, "high": 9}
        best = x + 0.02 * sign * steps[norm, "steepest"]
        assert torch.allclose(PGD(random_start=False, **ball)(model, x, y), best, atol=1e-9)
        assert torch.allclose(APGD(steps=40, **ball)(model, x, y), best, atol=1e-4)


@given(
    name=st.sampled_from(sorted(KINDS)),
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.floats(0, 2),
    low=st.floats(-1, 0.3),
    seed=st.integers(0, 9),
    size=st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(3, 7), st.integers(3, 7)),
)
@settings(max_examples=80, deadline=None)
def test_attacks_stay_in_the_ball_and_the_range(
    name: str, norm: Any, epsilon: float, low: float, seed: int, size: tuple[int, ...]
) -> None:
    generator = seeded(seed)
    high = low + 0.7
    x = low + 0.7 * torch.rand(size, generator=generator)
    x = x.clamp(low, high)
    weight = torch.randn(x[0].numel(), 3, generator=generator)
    y = torch.randint(3, (len(x),), generator=generator)

    def model(x: Tensor) -> Tensor:
        return (x.flatten(1) @ weight).sin()

    attack = KINDS[name](epsilon=epsilon, norm=norm, low=low, high=high, chunk=3, **RECIPES[name])
    before = x.clone()
    attacked = attack(model, x, y, generator=seeded(seed))
    assert torch.equal(x, before)
    assert attacked.shape == x.shape
    assert attacked.dtype == x.dtype
    assert attacked.min() >= torch.tensor(low)
    assert attacked.max() <= torch.tensor(high)
    order = math.inf if norm == "linf" else 2
    moved = torch.linalg.vector_norm((attacked - x).flatten(1), ord=order, dim=1)
    assert (moved <= epsilon * (1 + 1e-5) + 1e-6).all()
    again = attack(model, x, y, generator=seeded(seed))
    assert torch.equal(attacked, again)


def test_stronger_attacks_are_stronger(task: Task) -> None:
    model, x, y = task

    def loss(attacked: Tensor) -> float:
        return F.cross_entropy(model(attacked), y).item()

    for norm, epsilon in (("linf", 0.015), ("l2", 0.15)):
        ball: dict[str, Any] = {"epsilon": epsilon, "norm": norm}
        fgsm = FGSM(**ball)(model, x, y)
        pgd = PGD(steps=20, restarts=2, random_start=False, **ball)(model, x, y)
        apgd = APGD(steps=20, **ball)(model, x, y)
        assert loss(x) < loss(fgsm) <= loss(pgd) + 1e-4
        assert loss(pgd) <= loss(apgd) + 5e-3
        starts = [
            evaluate(model, x, y, PGD(steps=3, restarts=r, **ball)).robust_accuracy for r in (1, 4)
        ]
        assert starts[1] <= starts[0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_attack_lowers_accuracy(task: Task) -> None:
    model, x, y = task
    for name, kind in KINDS.items():
        attack = kind(epsilon=0.04, **({"queries": 150} if name == "Square" else {}))
        outcome = evaluate(model, x, y, attack)
        assert outcome.robust_accuracy < outcome.clean_accuracy - 0.3, name
        assert (outcome.size <= 0.04 + 1e-6).all()
        assert not outcome.robust[~outcome.clean].any()
        mine = attack(model, x, y, generator=seeded(5))
        assert torch.equal(mine, attack(model, x, y, generator=seeded(5)))
        if name in ("PGD", "APGD", "Jitter", "Square"):
            assert not torch.equal(mine, attack(model, x, y, generator=seeded(6)))
    mosaic = evaluate(model, x, y, Mixup(epsilon=0.04, mixture="mixcut", features=model[:5]))  # type: ignore[index]
    assert mosaic.robust_accuracy < mosaic.clean_accuracy


def test_square_needs_no_gradient_and_others_say_that_they_do(task: Task) -> None:
    model, x, y = task

    @torch.no_grad()
    def staircase(x: Tensor) -> Tensor:
        return model((x * 40).round() / 40)

    for norm, epsilon in (("linf", 0.04), ("l2", 0.5)):
        attack = Square(epsilon=epsilon, norm=norm, queries=200)  # type: ignore[arg-type]
        outcome = evaluate(staircase, x, y, attack)
        assert outcome.robust_accuracy < outcome.clean_accuracy - 0.3
    for other in (FGSM(epsilon=0.04), APGD(epsilon=0.04), Jitter(epsilon=0.04)):
        with pytest.raises(RobustnessError, match="no gradient"):
            other(staircase, x, y)
    with pytest.raises(RobustnessError, match="no gradient"):
        DeepFool()(staircase, x)


def test_attacks_transfer_from_a_surrogate(task: Task) -> None:
    target, x, y = task
    surrogate = trained(network(7), *images(400, seeded(8)))
    attack = PGD(epsilon=0.04)
    carried = evaluate(target, x, y, Transfer(surrogate, attack))
    direct = evaluate(target, x, y, attack)
    assert direct.robust_accuracy <= carried.robust_accuracy < carried.clean_accuracy - 0.2
    assert torch.equal(carried.x, attack(surrogate, x, y))


def test_apgd_with_the_ratio_of_logits_sees_through_saturation(task: Task) -> None:
    model, x, y = task

    def saturated(x: Tensor) -> Tensor:
        return 1000 * model(x)

    ratio = APGD(epsilon=0.03, steps=20, loss="dlr")
    plain = evaluate(model, x, y, ratio).robust_accuracy
    assert evaluate(saturated, x, y, ratio).robust_accuracy == pytest.approx(plain, abs=0.05)
    blind = evaluate(saturated, x, y, APGD(epsilon=0.03, steps=20)).robust_accuracy
    assert blind > plain + 0.3
    with pytest.raises(RobustnessError, match="three classes"):
        ratio(lambda x: model(x)[:, :2], x, y % 2)


def test_embedding_shift_is_relative_to_the_distance_between_images() -> None:
    generator = seeded(9)
    weight = torch.randn(48, 6, generator=generator)
    x = torch.rand(10, 3, 4, 4, generator=generator)

    def embed(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight

    found = embedding_shift(embed, x, epsilon=0.05, norm="l2", low=-1, high=2, steps=60)
    # For a linear map the largest shift is the largest singular value times the budget.
    largest = 0.05 * torch.linalg.matrix_norm(weight, ord=2) / found.spread
    assert torch.allclose(found.shift, largest.double().expand(10), rtol=0.02)
    assert (found.noise < found.shift).all()
    assert not found.lost.any()
    # A collapsed encoder, whose cosines are all near one, is no more stable by this measure.
    collapsed = embedding_shift(
        lambda x: 500 + 1e-2 * (x.flatten(1) @ weight.double()),
        x.double(),
        epsilon=0.05,
        norm="l2",
        low=-1,
        high=2,
        steps=60,
    )
    assert torch.allclose(collapsed.shift, found.shift, rtol=0.02)
    where = torch.zeros(4, 4, dtype=torch.bool)
    where[1, 2] = True
    one = embedding_shift(embed, x, epsilon=0.3, where=where)
    changed = (one.x != x).any(1).any(0)
    assert torch.equal(changed, where)
    # What it has to beat is noise of the same budget on the same pixels, in either norm.
    for norm in ("linf", "l2"):
        one = embedding_shift(embed, x, epsilon=0.05, norm=norm, low=-1, high=2, where=where)
        assert (one.shift / one.noise).median() < 5
    with pytest.raises(RobustnessError, match="look the same"):
        embedding_shift(lambda x: 0 * embed(x) + 1, x, epsilon=0.1)
    with pytest.raises(RobustnessError, match="one vector"):
        embedding_shift(lambda x: x, x, epsilon=0.1)
    with pytest.raises(RobustnessError, match="no gradient"):
        embedding_shift(torch.no_grad()(embed), x, epsilon=0.1)


def test_the_built_in_encoder_can_be_attacked() -> None:
    torch.manual_seed(0)
    config = VisionTransformerConfig(width=32, depth=1, heads=2, dim=8)
    embed = scene_embedding(VisionTransformer(config).eval(), bands=("red", "nir"), gsd=10)
    x = 0.3 * torch.rand(6, 2, 8, 8, generator=seeded(10))
    found = embedding_shift(
        embed,
        x,
        epsilon=0.05,
        metric="cosine",
        steps=5,
        stored=lambda x: embed(x).round(decimals=3),
    )
    assert (found.shift > found.noise).all()
    assert found.shift.isfinite().all()


def test_tiny_gradients_are_not_none(task: Task) -> None:
    model, x, y = task
    weak = gradient_norm(lambda x: 1e-30 * model(x), x, y)
    assert (weak > 0).all()
    flat = gradient_norm(lambda x: 1e-30 * model(x).double(), x, y)
    torch.testing.assert_close(weak, flat, rtol=1e-4, atol=0)


def test_the_boundary_is_found_whatever_the_precision_of_logits(task: Task) -> None:
    model, x, _ = task
    own, wide = DeepFool()(model, x), DeepFool()(lambda x: model(x).double(), x)
    assert wide.x.dtype == x.dtype
    torch.testing.assert_close(wide.distance.to(x), own.distance, rtol=1e-2, atol=1e-4)


def test_masking_measures_tell_masks_from_a_plain_network(task: Task, tmp_path: Path) -> None:
    model, x, y = task
    models: dict[str, Model] = {
        "plain": model,
        "saturated": lambda x: 100 * model(x),
        "quantised": lambda x: model((x * 8).round() / 8),
    }
    reports = {
        name: masking_report(m, x, y, epsilon=0.03, name=name, strong=APGD(epsilon=0.03, steps=30))
        for name, m in models.items()
    }
    means = {name: report.means() for name, report in reports.items()}
    plain, saturated, quantised = means["plain"], means["saturated"], means["quantised"]
    for measure in ("fgsm_pgd_cosine", "pgd_collinearity"):
        assert saturated[measure].high < plain[measure].low
        assert quantised[measure].high < plain[measure].low
    # Saturation leaves the geometry alone, and silences the loss.
    assert saturated["gradient_norm"].zeros > 0.3 > plain["gradient_norm"].zeros
    assert saturated["linearization_error"].mean == pytest.approx(
        plain["linearization_error"].mean, rel=0.01
    )
    # The margins tell the temperature.
    assert reports["saturated"].margin == pytest.approx(100 * reports["plain"].margin, rel=1e-3)
    assert quantised["linearization_error"].low > 10 * plain["linearization_error"].high
    assert quantised["gradient_norm"].zeros == 1
    assert quantised["gradient_information"].mean == 0
    assert plain["gradient_information"].low > 0.9
    # Both look more robust than they are.
    assert reports["saturated"].robust_accuracy > reports["plain"].robust_accuracy + 0.2
    assert reports["quantised"].robust_accuracy > reports["plain"].robust_accuracy + 0.2

    report = reports["plain"]
    assert all(values.shape == (IMAGES,) for values in report.values.values())
    assert report.values["gradient_norm"] == pytest.approx(gradient_norm(model, x, y).numpy())
    assert report.table().count("\n") == 7
    row = report.card_row()
    assert row["pgd_collinearity"]["images"] == IMAGES
    assert report.strong is not None
    cheap = ("gradient_norm", "fgsm_pgd_cosine", "pgd_collinearity")
    assert sum(report.costs[name].images for name in cheap) < 2 * report.strong.images
    pytest.importorskip("matplotlib", reason="matplotlib draws the plot: pip install 'nec[plot]'")
    plot_reports(list(reports.values()), tmp_path / "masking.png")
    assert (tmp_path / "masking.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGSM(epsilon=-0.1), "epsilon is -0.1"),
        (lambda: FGSM(epsilon=math.nan), "epsilon is nan"),
        (lambda: PGD(epsilon=0.1, low=1, high=0), "valid range"),
        (lambda: PGD(epsilon=0.1, norm="l1"), "norm is 'l1'"),  # type: ignore[arg-type]
        (lambda: PGD(epsilon=0.1, steps=0), "steps=0"),
        (lambda: APGD(epsilon=0.1, loss="hinge"), "loss is 'hinge'"),  # type: ignore[arg-type]
        (lambda: FGSM(epsilon=0.1, norm="l2", direction="scaled"), "ball of linf"),
        (lambda: Square(epsilon=0.1, share=2), "share=2"),
    ],
)
def test_what_an_attack_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RobustnessError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 255, y), r"outside of \[0.0, 1.0\]; pass low="),
        (lambda x, y: (x * math.nan, y), "NaN"),
        (lambda x, y: (x.long(), y), "dtype"),
        (lambda x, y: (x, y[:-1]), "labels have shape"),
        (lambda x, y: (x, y.float()), "class indexes"),
        (lambda x, y: (x, y + 4), "4 classes"),
        (lambda x, y: (x[:0], y[:0]), "at least one image"),
    ],
)
def test_what_an_attack_cannot_take(task: Task, change: Any, message: str) -> None:
    model, x, y = task
    x, y = change(x, y)
    for attack in (PGD(epsilon=0.1, steps=1), Square(epsilon=0.1, queries=1)):
        with pytest.raises(RobustnessError, match=message):
            attack(model, x, y)
    with pytest.raises(RobustnessError, match=message):
        masking_report(model, x, y, epsilon=0.1, compare=False)


def test_what_a_measure_cannot_be(task: Task) -> None:
    for change, message in (({"norm": "Linf"}, "norm is"), ({"perturbations": 0}, "perturbations")):
        with pytest.raises(RobustnessError, match=message):
            linearization_error(*task, **{"epsilon": 0.1} | change)


def test_models_that_are_none(task: Task) -> None:
    model, x, y = task
    with pytest.raises(RobustnessError, match="logits"):
        FGSM(epsilon=0.1)(lambda x: model(x)[:, 0], x, y)
    with pytest.raises(RobustnessError, match="NaN or infinite logits"):
        FGSM(epsilon=0.1)(lambda x: model(x) / 0, x, y)
    model.train()
    try:
        with pytest.raises(RobustnessError, match="training mode"):
            evaluate(model, x, y, FGSM(epsilon=0.1))
    finally:
        model.eval()


def test_agrees_with_the_adversarial_robustness_toolbox(task: Task) -> None:
    """FGSM to the last digit, DeepFool and PGD as near as their rounding."""
    reason = "the toolbox is not installed: pip install 'nec[attacks]'"
    evasion = pytest.importorskip("art.attacks.evasion", reason=reason)
    classification = pytest.importorskip("art.estimators.classification", reason=reason)
    model, x, y = task
    theirs = classification.PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 8, 8),
        nb_classes=4,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    array, labels = x.numpy(), y.numpy()
    for norm, order, epsilon in (("linf", np.inf, 0.02), ("l2", 2, 0.2)):
        ball: dict[str, Any] = {"epsilon": epsilon, "norm": norm}
        one = evasion.FastGradientMethod(theirs, norm=order, eps=epsilon).generate(array, labels)
        assert np.allclose(FGSM(**ball)(model, x, y).numpy(), one, atol=1e-5)
        many = evasion.ProjectedGradientDescent(
            theirs, norm=order, eps=epsilon, eps_step=epsilon / 8, max_iter=20, verbose=False
        ).generate(array, labels)
        ours = PGD(steps=20, random_start=False, **ball)(model, x, y)
        right = [(model(torch.as_tensor(a)).argmax(1) == y).float().mean() for a in (many, ours)]
        assert right[0] == pytest.approx(right[1].item(), abs=2 / IMAGES)
    fooled = evasion.DeepFool(theirs, max_iter=50, epsilon=0.02, batch_size=64, verbose=False)
    length = np.linalg.norm((fooled.generate(array) - array).reshape(IMAGES, -1), axis=1)
    near = DeepFool(norm="l2", refine=0)(model, x)
    assert near.reached.all()
    assert np.median(near.distance.numpy() / length) == pytest.approx(1, abs=0.05)


def test_agrees_with_the_authors_of_apgd_and_square(task: Task) -> None:
    reason = "AutoAttack is not installed: pip install 'nec[attacks]'"
    climb = pytest.importorskip("pyautoattack.autopgd_base", reason=reason)
    search = pytest.importorskip("pyautoattack.square", reason=reason)
    model, x, y = task

    class EveryPosition(search.SquareAttack):  # type: ignore[misc, name-defined]
        """Theirs leaves out the last position of a window, which small images need."""

        def random_int(self, low: int = 0, high: int = 1, shape: Any = (1,)) -> Any:
            return super().random_int(low, high + 1, shape)

    for norm, theirs, epsilon in (("linf", "Linf", 0.015), ("l2", "L2", 0.15)):
        ball: dict[str, Any] = {"epsilon": epsilon, "norm": norm}
        for loss, name in (("cross_entropy", "ce"), ("dlr", "dlr")):
            attack = climb.APGDAttack(model, n_iter=20, norm=theirs, eps=epsilon, loss=name)
            them = (model(attack.perturb(x, y)).argmax(1) == y).float().mean().item()
            ours = evaluate(model, x, y, APGD(steps=20, loss=loss, **ball)).robust_accuracy
            assert ours == pytest.approx(them, abs=3 / IMAGES)
        query = EveryPosition(model, norm=theirs, eps=2 * epsilon, n_queries=200)
        them = (model(query.perturb(x, y)).argmax(1) == y).float().mean().item()
        ball["epsilon"] = 2 * epsilon
        ours = evaluate(model, x, y, Square(queries=200, **ball)).robust_accuracy
        assert ours == pytest.approx(them, abs=0.1)
