import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from nec.errors import HeadError
from nec.heads import Segmenter, load_head, write_map
from nec.heads.pixels import PixelScene, labelled_windows

D, SIZE, SCALE, STEP = 6, 64, 4, 40.0
LEFT, TOP = 300_020.0, 5_800_010.0
QUICK = {"width": 16, "batch_size": 4, "steps": 60, "learning_rate": 5e-3}


def world(seed=0, *, lazy=False):
    """Blobs of two classes in pixels; a token holds the classes' shares in its four quarters."""
    rng = np.random.default_rng(seed)
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.normal(size=(SIZE * SCALE,) * 2), 4)
    classes = np.where(field > 0, 7, 3)
    half = SCALE // 2
    shares = (classes == 7).reshape(SIZE, 2, half, SIZE, 2, half).mean((2, 5))
    quarters = shares.transpose(1, 3, 0, 2).reshape(4, SIZE, SIZE)
    values = np.concatenate([quarters, rng.normal(size=(2, SIZE, SIZE))]).astype(np.float32)
    coords = {
        d: a - s * (np.arange(SIZE) + 0.5) * STEP for d, a, s in (("y", TOP, 1), ("x", LEFT, -1))
    }
    embedding = xr.DataArray(
        values, dims=("band", "y", "x"), coords=coords, attrs={"nec_basis": "b1"}
    ).rio.write_crs(32633)
    return (embedding.chunk(y=16, x=24) if lazy else embedding), classes


@pytest.mark.parametrize("decoder", ["conv", "fpn"])
def test_decoders_find_pixels_that_tokens_cannot(decoder, tmp_path):
    train, labels = world()
    test, truth = world(1)
    sparse = np.where(np.random.default_rng(2).random(labels.shape) < 0.3, labels, -1)
    head = Segmenter(decoder=decoder, **QUICK).fit(train, sparse)
    assert head.classes_.tolist() == [3, 7]
    tokens = Segmenter().fit(train, labels).predict(test).values
    linear = np.array([3, 7])[tokens].repeat(SCALE, 0).repeat(SCALE, 1)
    assert head.score(test, truth) > (linear == truth).mean() + 0.02
    found = head.predict(test)
    assert found.shape == truth.shape
    assert found.rio.crs.to_epsg() == 32633
    assert found.rio.transform().c == LEFT
    assert found.rio.transform().a == STEP / SCALE
    assert (head.classes_[found.values] == truth).mean() == pytest.approx(head.score(test, truth))
    path = head.save(tmp_path / "head.safetensors")
    again = load_head(path)
    xr.testing.assert_identical(again.predict(test), found)
    write_map(found, tmp_path / "map.tif")


@pytest.mark.parametrize("decoder", ["conv", "fpn"])
def test_a_lazy_map_is_that_of_the_whole_scene(decoder):
    embedding, labels = world()
    embedding[:, 20, 30] = np.nan
    head = Segmenter(decoder=decoder, width=8, steps=3).fit(embedding, labels)
    lazy = head.predict(embedding.chunk(y=16, x=24))
    assert lazy.chunks == ((64,) * 4, (96, 96, 64))
    assert (head.predict(embedding).values == lazy.values).mean() > 0.999
    assert (lazy.values == -1).sum() == SCALE**2
    assert (lazy.values[80:84, 120:124] == -1).all()
    shares = head.predict_proba(embedding.chunk(y=16, x=24))
    assert shares.dims == ("class", "y", "x")
    np.testing.assert_allclose(np.nansum(shares.values, 0)[:80], 1, atol=1e-5)
    # Wherever a scene is cut, and where it is smaller than what the network sees.
    for part, chunks in ((embedding, {"y": 13, "x": 35}), (embedding[:, :9, :30], {"x": 17})):
        np.testing.assert_allclose(
            head.predict_proba(part.chunk(chunks)).values,
            head.predict_proba(part).values,
            atol=1e-5,
        )


def test_class_weights_and_seeds():
    embedding, labels = world()
    rare = np.where(
        (labels == 7) & (np.random.default_rng(0).random(labels.shape) < 0.9), -1, labels
    )
    plain, weighted, same = (
        Segmenter(decoder="conv", class_weight=w, **QUICK).fit(embedding, rare).predict(embedding)
        for w in (None, "balanced", "balanced")
    )
    assert (weighted.values == 1).mean() > (plain.values == 1).mean()
    xr.testing.assert_identical(weighted, same)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"decoder": "tree"}, lambda x, y: (x, y), "linear, conv, fpn"),
        (
            {"decoder": "conv"},
            lambda x, y: (x.values.reshape(D, -1).T, y[::4, ::4].ravel()),
            "rows",
        ),
        ({"decoder": "conv"}, lambda x, y: (x, y[:-1]), "do not fit"),
        ({"decoder": "conv"}, lambda x, y: (x, np.full_like(y, 3)), "1 class"),
        ({"decoder": "conv"}, lambda x, y: (x, np.full_like(y, -1)), "no pixel"),
        ({"decoder": "conv"}, lambda x, y: (x * np.nan, y), "no pixel"),
    ],
)
def test_what_a_network_cannot_learn_says_why(options, change, message):
    with pytest.raises(HeadError, match=message):
        Segmenter(**options).fit(*change(*world()))


def test_windows_without_data_are_not_counted() -> None:
    values = np.full((2, 64, 64), np.nan, np.float32)
    values[:, 40:48, 8:16] = 1.0
    embedding = xr.DataArray(values, dims=("band", "y", "x"))
    labels = np.arange(2).repeat(128)[None].repeat(256, 0)
    laid = [PixelScene.of(embedding, labels, scale=4, ignore_index=None)]
    windows, classes = labelled_windows(laid, margin=1, edge=8, most=3, seed=0)
    assert len(windows) == 1
    assert classes.tolist() == [0]
    laid = [PixelScene.of(embedding, labels + 0.5, scale=4, ignore_index=None)]
    with pytest.raises(HeadError, match=r"labels such as 0\.5 are no classes"):
        labelled_windows(laid, margin=1, edge=8, most=3, seed=0)
