import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from sklearn.linear_model import Ridge

from nec.errors import HeadError
from nec.evaluate import (
    label_curve,
    spatial_blocks,
    spatial_folds,
    spatial_split,
    transfer_curve,
)
from nec.heads import (
    BiomassRegressor,
    DissimilarityIndex,
    SceneClassifier,
    Segmenter,
    load_head,
)

RNG = np.random.default_rng(0)
PLACES = RNG.uniform(0, 1000, (400, 2))
ROWS = RNG.normal(size=(400, 8))
LABELS = np.where(ROWS[:, 0] + 0.3 * RNG.normal(size=400) > 0, "a", "b")
BLOCKS = spatial_blocks(PLACES[:, 0], PLACES[:, 1], size=250)


def test_blocks_hold_what_lies_together_and_splits_keep_them_whole():
    assert len(np.unique(BLOCKS)) == 16
    for block in range(16):
        inside = PLACES[block == BLOCKS]
        assert (np.ptp(inside, axis=0) < 250).all()
    fold = spatial_folds(BLOCKS, folds=3, seed=1)
    assert [len({BLOCKS[i] for i in np.flatnonzero(fold == f)}) for f in range(3)] == [6, 5, 5]
    assert all(len(set(fold[block == BLOCKS])) == 1 for block in range(16))
    rng = np.random.default_rng(1)
    again = [spatial_folds(BLOCKS, folds=3, seed=rng) for _ in range(2)]
    np.testing.assert_array_equal(again[0], fold)
    assert (again[1] != fold).any()
    with pytest.raises(HeadError, match="cannot be dealt"):
        spatial_folds(BLOCKS, folds=1)
    train, test = spatial_split(BLOCKS, share=0.25, seed=3)
    assert not set(BLOCKS[train]) & set(BLOCKS[test])
    assert len(set(BLOCKS[test])) == 4
    near, _ = spatial_split(BLOCKS, share=0.25, seed=3, places=PLACES, buffer=50)
    assert len(near) < len(train)
    apart = np.linalg.norm(PLACES[near][:, None] - PLACES[test][None], axis=-1).min()
    assert apart >= 50
    with pytest.raises(HeadError, match="1 group"):
        spatial_split(np.zeros(9))
    with pytest.raises(HeadError, match="nothing is left"):
        spatial_split(BLOCKS, places=PLACES, buffer=1e4)


def test_a_label_curve_rises_and_is_paired():
    told = []
    curve = label_curve(
        SceneClassifier(),
        ROWS,
        LABELS,
        groups=BLOCKS,
        fractions=(0.03, 0.3, 1.0),
        repeats=4,
        progress=lambda done, all_: told.append((done, all_)),
    )
    assert len(curve) == 12
    assert told[-1] == (12, 12)
    mean = curve.groupby("fraction").score.mean()
    assert mean[0.03] < mean[0.3] <= mean[1.0] + 0.02
    assert mean[1.0] > 0.85
    again = label_curve(SceneClassifier(), ROWS, LABELS, groups=BLOCKS, fractions=(1.0,), repeats=4)
    assert again.score.tolist() == curve[curve.fraction == 1.0].score.tolist()
    few = label_curve(
        SceneClassifier(),
        ROWS,
        np.where(BLOCKS == 0, "a", "b"),
        groups=BLOCKS,
        fractions=(0.01,),
        repeats=8,
    )
    assert few.score.isna().any()  # a single class among so few
    assert label_curve(Ridge(), ROWS, ROWS[:, 0], fractions=(1.0,)).score.min() > 0.99
    away = label_curve(
        *(BiomassRegressor(target_transform="none"), ROWS, ROWS[:, 0] + 10),
        **{"groups": BLOCKS, "places": PLACES, "buffer": 100, "fractions": (1.0,), "repeats": 2},
    )
    assert away.score.min() > 0.9
    assert away.labels.max() < curve[curve.fraction == 1.0].labels.min()
    with pytest.raises(HeadError, match="out of range"):
        label_curve(SceneClassifier(), ROWS, LABELS, fractions=(0.0,))
    with pytest.raises(HeadError, match="400 samples, 400 labels, 400 groups, 50 places"):
        label_curve(SceneClassifier(), ROWS, LABELS, places=np.zeros((50, 2)), buffer=1)
    with pytest.raises(HeadError, match="399 labels"):
        label_curve(SceneClassifier(), ROWS, LABELS[:-1])


def a_scene(edge: int, seed: int) -> xr.DataArray:
    values = np.random.default_rng(seed).normal(size=(4, edge, edge)).astype(np.float32)
    place = (np.arange(edge) + 0.5) * 40
    coords = {"y": 5e6 - place, "x": 4e5 + place, "spatial_ref": 0}
    scene = xr.DataArray(values, dims=("band", "y", "x"), coords=coords)
    return scene.rio.write_crs("EPSG:32633")


def test_a_label_curve_of_scenes_draws_pixels_and_leaves_blocks_out():
    scenes = [a_scene(24, 1), a_scene(16, 2)]
    truth = [(s[0] > 0).astype(np.int16).drop_vars("spatial_ref") for s in scenes]
    for classes in truth:
        classes[:2] = -1  # no label
    options = {"fractions": (0.02, 1.0), "repeats": 3, "block": 8}
    curve = label_curve(Segmenter(), scenes, truth, **options)
    few, many = (curve[curve.fraction == f] for f in (0.02, 1.0))
    assert few.score.mean() < many.score.mean()
    assert many.score.min() > 0.9
    # 13 blocks of 8 x 8 tokens, of which 3 test; the first rows have no labels.
    assert many.labels.between(10 * 64 - 120, 10 * 64).all()
    away = label_curve(Segmenter(), scenes, truth, **(options | {"buffer": 3.0}))
    assert (away[away.fraction == 1.0].labels.to_numpy() < many.labels.to_numpy()).all()
    with pytest.raises(HeadError, match="leave groups= and places= out"):
        label_curve(Segmenter(), scenes, truth, groups=np.zeros(3))
    with pytest.raises(HeadError, match="2 scenes, 1 label maps"):
        label_curve(Segmenter(), scenes, truth[:1])
    with pytest.raises(HeadError, match="labels of dtype"):
        label_curve(Segmenter(), scenes[1], np.full((16, 16), "a"))


def test_a_label_curve_of_scenes_keeps_coarse_labels_whole():
    scene = a_scene(24, 3)
    # A label is 3 tokens wide; a whole one is on one side of the split.
    coarse = scene[0].coarsen(y=3, x=3).mean().rio.write_crs("EPSG:32633") + 10
    head = BiomassRegressor(target_transform="none", block_size=3)
    curve = label_curve(head, scene, coarse, fractions=(0.5, 1.0), repeats=2, block=2)
    assert curve[curve.fraction == 1.0].labels.tolist() == [48, 48]
    assert np.isfinite(curve.score).all()


def test_transfer_needs_labels_where_the_rule_is_another():
    regions = np.where(PLACES[:, 0] < 500, "west", "east")
    labels = np.where(regions == "west", ROWS[:, 0] > 0, ROWS[:, 0] + 3 * ROWS[:, 1] > 0)
    curve = transfer_curve(
        SceneClassifier(), ROWS, labels, regions, target="east", counts=(0, 60), repeats=4
    )
    mean = curve.groupby("labels")[["score", "alone"]].mean()
    assert np.isnan(mean.alone[0])
    assert mean.score[0] < mean.score[60] < mean.alone[60]
    with pytest.raises(HeadError, match="region 'north'"):
        transfer_curve(SceneClassifier(), ROWS, labels, regions, target="north")
    with pytest.raises(HeadError, match="399 regions"):
        transfer_curve(SceneClassifier(), ROWS, labels, regions[:399], target="east")
    with pytest.raises(HeadError, match="-3 is negative"):
        transfer_curve(SceneClassifier(), ROWS, labels, regions, target="east", counts=(-3,))


def test_what_touches_a_tested_place_trains_nothing_in_another_region_either():
    places = np.arange(40.0)[:, None] * [1, 0]
    regions = np.where(places[:, 0] < 20, "west", "east")
    groups = np.arange(40) // 6  # the fourth lies in both regions
    seen = []

    class Seen(Ridge):
        def fit(self, X, y):
            seen.append(("fit", X[:, 0]))
            return super().fit(X, y)

        def score(self, X, y):
            seen.append(("score", X[:, 0]))
            return super().score(X, y)

    options = {"target": "east", "counts": (0,), "groups": groups, "places": places}
    for buffer in (0.0, 1.5):
        seen.clear()
        transfer_curve(Seen(), places, places[:, 0], regions, buffer=buffer, **options)
        for (_, train), (_, test) in zip(seen[::2], seen[1::2], strict=True):
            assert not set(train // 6) & set(test // 6)
            assert np.abs(train[:, None] - test).min() >= max(buffer, 1)


def test_a_curve_hides_no_wrong_option():
    with pytest.raises(HeadError, match="method='typo'"):
        label_curve(SceneClassifier(method="typo"), ROWS, LABELS)


def test_dissimilarity_tells_what_a_head_has_not_seen(tmp_path):
    index = DissimilarityIndex(max_vectors=300).fit(ROWS, groups=BLOCKS)
    assert index.vectors_.shape == (300, 8)
    new = RNG.normal(size=(200, 8))
    assert (index.predict(new) < index.threshold_).mean() > 0.9
    assert (index.predict(new + 6) > index.threshold_).all()
    values = np.moveaxis(new.reshape(10, 20, 8), -1, 0).astype(np.float32)
    values[:, 3, 4] = np.nan
    coords = {"y": 100.0 - np.arange(10), "x": np.arange(20.0)}
    scene = xr.DataArray(values, dims=("band", "y", "x"), coords=coords).rio.write_crs(32633)
    found = index.predict(scene.chunk(y=5))
    assert found.chunks == ((5, 5), (20,))
    assert found.rio.crs.to_epsg() == 32633
    assert np.isnan(found.values).sum() == 1
    np.testing.assert_allclose(found.values.ravel()[:60], index.predict(new)[:60], rtol=1e-4)
    again = load_head(index.save(tmp_path / "index"))
    xr.testing.assert_identical(again.predict(scene), index.predict(scene))
    with pytest.raises(HeadError, match="give two at least"):
        DissimilarityIndex().fit(ROWS[:1])
    bands = xr.DataArray(ROWS.T, dims=("band", "sample"))
    assert DissimilarityIndex().fit(bands).n_features_in_ == ROWS.shape[1]
    with pytest.raises(HeadError, match="the same"):
        DissimilarityIndex().fit(np.ones((9, 3)))


def test_plots_say_what_they_show(tmp_path):
    import matplotlib.pyplot as plt

    from nec.evaluate import draw_confusion, draw_measured_against_predicted

    ax = draw_confusion([[8, 2], [1, 9]], ["dry", "wet"])
    assert [text.get_text() for text in ax.texts][:2] == ["80%\n8", "20%\n2"]
    ax = draw_measured_against_predicted([1, 2, 3, np.nan], [2, 3, 4, 5])
    assert "n = 3" in ax.texts[0].get_text()
    assert "bias +1" in ax.texts[0].get_text()
    plt.close("all")
    with pytest.raises(HeadError, match="3 classes"):
        draw_confusion([[1, 2], [3, 4]], ["a", "b", "c"])
    with pytest.raises(HeadError, match="no pair"):
        draw_measured_against_predicted([np.nan], [1])
