"""The built-in encoder: any of its bands, any size, no seams, and it learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nec
from nec.codec.guarantee import cosines
from nec.encoders import Encoder
from nec.encoders.tiling import Tiling, embed_image, missing_tokens
from nec.encoders.vit import VisionTransformer, VisionTransformerConfig
from nec.errors import ModelError
from nec.pretrain.augmentation import random_bands, random_view
from nec.pretrain.distillation import Distillation
from nec.pretrain.objective import MaskedContrast


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return nec.load_model("nec-tiny", precision="float32").encoder


def test_any_subset_of_bands_and_any_multiple_of_the_patch(encoder: Encoder) -> None:
    assert isinstance(encoder, Encoder)
    chips = torch.rand(2, 6, 24, 40) * 0.3
    for bands in (("red",), ("red", "green", "blue"), encoder.bands):
        tokens = encoder.embed(chips[:, : len(bands)], bands=bands, gsd=10.0)
        assert tokens.shape == (2, 64, 6, 10)
        assert torch.isfinite(tokens).all()
    order = encoder.embed(chips[:, :2], bands=("red", "blue"), gsd=10.0)
    swapped = encoder.embed(chips[:, [1, 0]], bands=("blue", "red"), gsd=10.0)
    assert torch.allclose(order, swapped, atol=1e-4)
    nir = encoder.embed(chips[:, :1], bands=("nir",), gsd=10.0)
    assert torch.equal(nir, encoder.embed(chips[:, :1], bands=("nir08",), gsd=10.0))


@pytest.mark.parametrize(
    ("bands", "shape", "message"),
    [
        (("thermal",), (1, 1, 8, 8), "not among"),
        (("nir", "nir08"), (1, 2, 8, 8), "twice"),
        (("red",), (1, 2, 8, 8), "1 bands"),
        (("red",), (1, 1, 9, 8), "4-pixel patches"),
        ((), (1, 0, 8, 8), "not among"),
    ],
)
def test_what_it_cannot_take(
    encoder: Encoder, bands: tuple[str, ...], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        encoder.embed(torch.zeros(shape), bands=bands, gsd=10.0)


def test_what_it_gives_can_be_trained_on(encoder: Encoder) -> None:
    tokens = encoder.embed(torch.full((1, 1, 8, 8), 0.1), bands=("red",), gsd=10.0)
    head = torch.nn.Conv2d(encoder.dim, 1, 1)
    head(tokens).sum().backward()
    assert head.weight.grad is not None


def test_shapes_that_positions_cannot_turn() -> None:
    with pytest.raises(ModelError, match="width of 90 with 1 heads"):
        VisionTransformerConfig.sized(90)


def test_a_token_is_missing_where_more_than_half_of_it_is() -> None:
    image = np.zeros((2, 8, 8), np.float32)
    image[0, :2, :4] = np.nan  # half of the first token
    image[1, 4:7, 4:] = np.nan  # three quarters of the last
    assert missing_tokens(image, 4).tolist() == [[False, False], [False, True]]


def test_tiling_covers_the_image_once_and_keeps_holes(encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    tiling = Tiling(core=16, halo=8, batch=2)
    image = rng.random((3, 80 + 48, 48 + 48), np.float32) * 0.3
    image[:, 24:40, 24:40] = np.nan
    bands = ("blue", "green", "red")
    features = embed_image(encoder, image, bands=bands, gsd=10.0, tiling=tiling)
    assert features.shape == (64, 20, 12)
    assert np.isnan(features[:, :4, :4]).all()
    assert np.isfinite(features[:, 4:]).all()
    # A neighbouring image agrees where the two meet: here, the lower half alone.
    lower = embed_image(encoder, image[:, 48:], bands=bands, gsd=10.0, tiling=tiling)
    assert np.allclose(features[:, 12:], lower, atol=1e-4)
    with pytest.raises(ModelError, match="do not fit"):
        embed_image(encoder, image[:, :-4], bands=bands, gsd=10.0, tiling=tiling)


def test_a_few_steps_of_pretraining_bring_the_losses_down() -> None:
    torch.manual_seed(0)
    config = VisionTransformerConfig(width=48, depth=2, heads=2, dim=16)
    objective = MaskedContrast(VisionTransformer(config), decoder_width=32, teacher_dim=3)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 32)
    chips = torch.rand(8, 6, 1, 1) * 0.3 + 0.1 * ramp[:, None] * torch.rand(8, 6, 1, 32)
    chips[:, 3:] = torch.nan
    maps = 5 * F.avg_pool2d(chips[:, :3], 4)
    losses = []
    for _ in range(30):
        views, gsd, teacher = zip(
            *(random_view(chips, torch.full((8,), 10.0), maps, generator=generator) for _ in "ab"),
            strict=True,
        )
        bands = tuple(random_bands([0, 1, 2], generator=generator) for _ in "ab")
        parts = objective(views, bands, torch.stack(gsd), teacher=teacher, noise=0.03)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append([parts[key].item() for key in ("loss", "teacher")])
    first, last = np.mean(losses[:3], axis=0), np.mean(losses[-5:], axis=0)
    assert (last < 0.6 * first).all()

    chips[5, 1] = torch.nan
    with pytest.raises(ModelError, match="different bands"):
        objective([chips, chips], ([0], [0]), torch.full((2, 8), 10.0))
    few = torch.zeros(2, 6, 8, 8)
    with pytest.raises(ModelError, match="of 4 tokens 1 are seen"):
        objective([few, few], ([0], [0]), torch.full((2, 2), 10.0))


def test_distillation_brings_a_smaller_network_to_its_teacher() -> None:
    torch.manual_seed(0)
    sizes = {"bands": ("red", "nir"), "dim": 8, "depth": 1}
    teacher = VisionTransformer(VisionTransformerConfig(**sizes, width=64, heads=1))
    student = VisionTransformer(VisionTransformerConfig(**sizes, width=32, heads=1))
    view, gsd = torch.rand(8, 2, 16, 16), torch.full((8,), 10.0)
    with torch.no_grad():
        target = teacher(view, [0, 1], gsd)
    basis = torch.linalg.qr(torch.randn(8, 8))[0]
    rows = target.movedim(1, -1).flatten(0, -2) @ basis
    own = Distillation(teacher, basis, rows.std(0))
    with pytest.raises(ModelError, match=r"described_weight is 0\.5, and there is no sample"):
        Distillation(student, basis, rows.std(0), described_weight=0.5)
    assert own(view, [0, 1], gsd, target)["loss"] == 0
    # What gives the teacher's mean alone is off by all of its variance.
    mean = target.mean((0, 2, 3), keepdim=True).expand_as(target)
    assert own(view, [0, 1], gsd, 2 * target - mean)["tokens"].item() == pytest.approx(1, rel=0.01)
    objective = Distillation(
        student, basis, rows.std(0), sample=[target[:4], target[4:]], described_weight=0.1
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        found = objective(view, [0, 1], gsd, target)
        found["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append([found[k].item() for k in ("loss", "tokens", "described")])
    assert (np.array(losses[-1]) < 0.5 * np.array(losses[0])).all()


def test_maps_turn_and_crop_as_their_chips_do() -> None:
    chips = torch.rand(6, 1, 32, 32)
    maps = F.avg_pool2d(chips, 4)
    generator = torch.Generator().manual_seed(3)
    view, _, moved = random_view(
        chips, torch.full((6,), 10.0), maps, generator=generator, least_area=1.0
    )
    means = F.avg_pool2d(view, 4)
    # Gain and blur are the view's alone: what stays is where things are.
    for one, other in zip(means, moved, strict=True):
        assert torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1] > 0.8


def test_every_built_in_model_codes_what_it_embeds() -> None:
    models = [nec.load_model(name, precision="float32") for name in nec.list_models()]
    assert len({model.basis_hash for model in models}) == len(models) > 1
    coarse = torch.rand(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    chips = 0.3 * F.interpolate(coarse, scale_factor=8.0, mode="bicubic")
    for model in models:
        embedded = model.encoder.embed(chips.clamp(0, 1), bands=model.encoder.bands, gsd=10.0)
        vectors = np.moveaxis(embedded.numpy(), 1, -1)
        found = []
        for rate in ("low", "medium", "high"):
            compressor = model.compressor(rate)
            found.append(cosines(vectors, compressor.decode(compressor.encode(vectors))).mean())
        assert found == sorted(found), model.name
        assert found[-1] > 0.98, model.name
