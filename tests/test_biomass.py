import logging
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import estimator_checks_generator

from nec.errors import HeadError
from nec.heads import BiomassRegressor, DissimilarityIndex, load_head, write_map
from nec.heads.labelled import LabelledScene, SceneParts
from nec.heads.targets import Residuals

D, SIZE, STEP = 4, 48, 40.0
LEFT, TOP = 300_020.0, 5_800_010.0


def scene(seed=0, *, lazy=False, size=SIZE, basis="b1", left=LEFT):
    """White noise: what a neighbour tells is not in the token itself."""
    values = np.random.default_rng(seed).normal(size=(D, size, size)).astype(np.float32)
    coords = {
        "y": TOP - (np.arange(size) + 0.5) * STEP,
        "x": left + (np.arange(size) + 0.5) * STEP,
    }
    array = xr.DataArray(
        values, dims=("band", "y", "x"), coords=coords, attrs={"nec_basis": basis}
    ).rio.write_crs(32633)
    return array.chunk(y=20, x=16) if lazy else array


def truth(embedding, noise=0.0, seed=9):
    """Square of a convolution: a token's first band and the mean of the second around it."""
    one, two = (np.pad(band, 1, mode="edge") for band in embedding.values[:2])
    size = embedding.sizes["y"]
    around = sum(two[a : a + size, b : b + size] for a in range(3) for b in range(3)) / 3
    linear = 8 + one[1:-1, 1:-1] + around
    linear = linear + noise * np.random.default_rng(seed).normal(size=linear.shape)
    return np.square(np.maximum(linear, 0))


def sparse(values, share=0.3, seed=2):
    keep = np.random.default_rng(seed).random(values.shape) < share
    return np.where(keep, values, np.nan)


def placed(values, embedding):
    return embedding[0].drop_vars("band", errors="ignore").copy(data=values)


def r2(found, true):
    keep = np.isfinite(found) & np.isfinite(true)
    return 1 - np.var(found[keep] - true[keep]) / np.var(true[keep])


def test_a_convolution_finds_what_neighbours_tell():
    train, test = scene(0), scene(1)
    labels = sparse(truth(train))
    one, three = (BiomassRegressor(kernel_size=k, block_size=8).fit(train, labels) for k in (1, 3))
    assert r2(three.predict(test).values[1:-1, 1:-1], truth(test)[1:-1, 1:-1]) > 0.99
    assert r2(one.predict(test).values, truth(test)) < 0.7
    assert three.n_parameters_ == 9 * D + 1
    assert three.n_labels_ == np.isfinite(labels).sum()
    assert three.score(test, truth(test)) > 0.97


def test_rows_are_weighted_ridge_regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, D)) * [1, 5, 0.2, 3] + 7
    y = 20 + X @ [1, 0.5, 2, 0] + rng.normal(size=200)
    errors = rng.uniform(5, 30, 200)
    head = BiomassRegressor(target_transform="none", alpha=0.1).fit(X, y, standard_error=errors)
    weights = (10 / np.maximum(errors, 10)) ** 2
    mean = np.average(X, axis=0, weights=weights)
    variance = np.average((X - mean) ** 2, axis=0, weights=weights)
    spread = np.sqrt(variance + 0.1 * variance.mean())  # a rare component is not blown up
    ours = Ridge(alpha=0.1 * weights.sum()).fit((X - mean) / spread, y, sample_weight=weights)
    np.testing.assert_allclose(
        head.predict(X), ours.predict((X - mean) / spread), rtol=1e-10, atol=1e-8
    )


def test_lazy_scenes_are_fitted_and_mapped_chunk_by_chunk(tmp_path):
    eager, lazy = scene(), scene(lazy=True)
    eager[:, 5, 5] = np.nan
    lazy = lazy.where(eager.notnull().all("band"))
    labels = placed(sparse(truth(scene())), eager)
    heads = [BiomassRegressor(block_size=8).fit(x, labels) for x in (eager, lazy)]
    np.testing.assert_allclose(heads[0].weights_, heads[1].weights_, rtol=1e-9)
    found = heads[1].predict(lazy)
    assert found.chunks == ((20, 20, 8), (16, 16, 16))
    assert found.attrs["units"] == "Mg/ha"
    assert found.rio.crs.to_epsg() == 32633
    np.testing.assert_allclose(found.values, heads[0].predict(eager).values, rtol=1e-5)
    assert np.isnan(found.values).sum() == 1
    path = write_map(found, tmp_path / "biomass.tif")
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), found.values)
        assert (file.dtypes[0], file.units[0], file.crs.to_epsg()) == ("float32", "Mg/ha", 32633)
        assert np.isnan(file.nodata)
    bounds = heads[1].predict_interval(lazy)
    with rasterio.open(write_map(bounds, tmp_path / "bounds.tif")) as file:
        np.testing.assert_array_equal(file.read(), bounds.values)
        assert file.descriptions == ("prediction lower", "prediction upper")
    with xr.open_zarr(write_map(bounds, tmp_path / "bounds.zarr")) as stored:
        np.testing.assert_array_equal(stored["prediction"].values, bounds.values)
        assert stored["bound"].values.tolist() == ["lower", "upper"]
    assert bounds.dims == ("bound", "y", "x")
    inside = bounds.sel(bound="lower").values <= found.values
    assert inside[np.isfinite(found.values)].mean() > 0.99


def test_fitting_reads_only_chunks_with_labels():
    read = []

    def spy(block, block_info=None):
        read.append(tuple(block_info[0]["chunk-location"]))
        return block

    lazy = scene(lazy=True)
    meta = np.empty((0, 0, 0), np.float32)
    lazy = lazy.copy(data=lazy.data.map_blocks(spy, dtype=np.float32, meta=meta))
    labels = np.full((SIZE, SIZE), np.nan)
    labels[22:38, 18:30] = truth(scene())[22:38, 18:30]
    BiomassRegressor(block_size=4).fit(lazy, labels)
    assert set(read) == {(0, 1, 1)}


@pytest.mark.parametrize("transform", ["none", "sqrt", "log"])
def test_intervals_cover_new_places_as_often_as_asked_and_means_are_unbiased(transform):
    train, test = scene(0, size=96), scene(1, size=96)
    head = BiomassRegressor(target_transform=transform, block_size=8)
    head.fit(train, sparse(truth(train, noise=1.5)))
    measured = truth(test, noise=1.5, seed=4)[1:-1, 1:-1]
    for coverage in (0.5, 0.9):
        low, high = head.predict_interval(test, coverage=coverage).values[:, 1:-1, 1:-1]
        assert abs(((low <= measured) & (measured <= high)).mean() - coverage) < 0.04
    bias = (head.predict(test).values[1:-1, 1:-1] - measured).mean()
    assert abs(bias) < 0.03 * measured.mean()


def test_intervals_hold_measurements_of_any_uncertainty():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, D))
    errors = rng.choice([5.0, 50.0], 4000)
    y = np.maximum(200 + X @ [10, 5, 0, 0] + errors * rng.normal(size=4000), 0)
    learned, new = np.s_[:2000], np.s_[2000:]
    head = BiomassRegressor(target_transform="none", se_floor=5)
    head.fit(X[learned], y[learned], standard_error=errors[learned])
    low, high = head.predict_interval(X[new], coverage=0.9).T
    assert abs(((low <= y[new]) & (y[new] <= high)).mean() - 0.9) < 0.03
    assert head.held_out_rmse_ < 20  # by weight: of what is known well


def test_points_of_several_dates_are_measured_once():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(12, D)), columns=[f"band_{i}" for i in range(D)])
    y = 50 + 5 * X["band_0"].to_numpy() + rng.normal(size=12)
    one = BiomassRegressor().fit(X, y)
    dates = pd.concat([X + 0.01 * rng.normal(size=X.shape) for _ in range(5)])
    several = BiomassRegressor().fit(dates, np.tile(y, 5), groups=np.tile(np.arange(12), 5))
    assert one.residuals_.count == several.residuals_.count == 12
    assert np.isinf(several.predict_interval(X)[:, 1]).all()


def test_which_held_out_labels_are_looked_at_hangs_on_no_chunks(monkeypatch):
    monkeypatch.setattr("nec.heads.cross_fit.HELD_OUT", 200)
    labels = placed(sparse(truth(scene(), noise=1.0)), scene())
    heads = [
        BiomassRegressor(block_size=8).fit(x, labels)
        for x in (scene(), scene(lazy=True), scene().chunk(y=7, x=48))
    ]
    for head in heads[1:]:
        assert head.alpha_ == heads[0].alpha_
        np.testing.assert_allclose(
            head.residuals_.quantiles, heads[0].residuals_.quantiles, rtol=1e-6
        )


def test_ranks_of_residuals_are_whole():
    ordered = np.arange(19.0)
    assert Residuals.of(ordered).band(0.9) == (0, 18)
    assert Residuals.of(np.arange(39.0)).band(0.9) == pytest.approx((1, 37))


def test_label_pixels_larger_than_tokens_are_held_out_whole():
    embedding = scene(size=64)
    few = np.random.default_rng(1).uniform(0, 200, (4, 4))
    coords = {
        "y": TOP - (np.arange(4) + 0.5) * 16 * STEP,
        "x": LEFT + (np.arange(4) + 0.5) * 16 * STEP,
    }
    labels = xr.DataArray(few, dims=("y", "x"), coords=coords).rio.write_crs(32633)
    head = BiomassRegressor(kernel_size=1, target_transform="none", block_size=8)
    head.fit(embedding, labels)
    # Noise tells nothing of another place, and sixteen measurements are sixteen.
    assert head.held_out_rmse_ > 0.9 * few.std()
    assert head.residuals_.count == pytest.approx(16)
    assert np.isposinf(head.predict_interval(embedding).values[1]).all()


@pytest.mark.parametrize("cuts", [[(0, 28), (28, 64)], [(0, 30), (20, 45), (35, 64)]])
@pytest.mark.parametrize("crs", [32633, 3035])
def test_a_measurement_over_several_scenes_is_held_out_once(cuts, crs):
    embedding = scene(size=64)
    labels = xr.DataArray(
        np.random.default_rng(1).uniform(0, 200, (16, 16)),
        dims=("y", "x"),
        coords={
            "y": TOP - (np.arange(16) - 1.5) * 8 * STEP,
            "x": LEFT + (np.arange(16) - 1.5) * 8 * STEP,
        },
    ).rio.write_crs(32633)
    if crs != 32633:
        labels = labels.rio.reproject(crs, nodata=np.nan)
    scenes = [embedding[:, :, slice(*cut)] for cut in cuts]

    def parts_of(scenes):
        laid = [LabelledScene.of(s, labels, None) for s in scenes]
        return SceneParts(laid, kernel=1, folds=4, block=8, seed=0)

    whole, parts = parts_of([embedding]), parts_of(scenes)
    assert parts.measurements == whole.measurements
    folds: dict[float, set[int]] = {}
    for part in parts:
        for value, fold in zip(part.values.tolist(), part.folds.tolist(), strict=True):
            folds.setdefault(value, set()).add(fold)
    assert len(folds) == whole.measurements
    assert all(len(found) == 1 for found in folds.values())


def test_uncertain_labels_count_less():
    train, test = scene(0), scene(1)
    wrong = np.random.default_rng(3).random((SIZE, SIZE)) < 0.3
    labels = np.where(wrong, 300.0, truth(train))
    errors = np.where(wrong, 1000.0, np.nan)  # NaN is not known: the floor
    plain, weighted = (
        BiomassRegressor(block_size=8).fit(train, labels, standard_error=e) for e in (None, errors)
    )
    inner = np.s_[1:-1, 1:-1]
    error = [
        np.abs(head.predict(test).values[inner] - truth(test)[inner]).mean()
        for head in (plain, weighted)
    ]
    assert error[1] < 0.1 * error[0]


def test_labels_of_other_resolutions_meet_their_tokens():
    embedding = scene()
    fine = truth(embedding).repeat(4, 0).repeat(4, 1)
    fine[::2] += 10
    fine[1::2] -= 10
    coords = {
        "y": TOP - (np.arange(4 * SIZE) + 0.5) * STEP / 4,
        "x": LEFT + (np.arange(4 * SIZE) + 0.5) * STEP / 4,
    }
    raster = xr.DataArray(fine, dims=("y", "x"), coords=coords).rio.write_crs(32633)
    heads = [
        BiomassRegressor(block_size=8).fit(embedding, y)
        for y in (truth(embedding), fine, raster, raster.isel(y=slice(None, None, -1)))
    ]
    for head in heads[1:]:
        np.testing.assert_allclose(head.weights_, heads[0].weights_, rtol=1e-9)


def test_a_saved_head_comes_back_the_same_and_knows_its_basis(tmp_path):
    embedding = scene()
    head = BiomassRegressor(block_size=8, units="t/ha").fit(embedding, truth(embedding))
    path = head.save(tmp_path / "biomass.safetensors")
    again = load_head(path)
    assert isinstance(again, BiomassRegressor)
    assert again.get_params() == head.get_params()
    xr.testing.assert_identical(again.predict(embedding), head.predict(embedding))
    xr.testing.assert_identical(again.predict_interval(embedding), head.predict_interval(embedding))
    assert again.save(path).read_bytes() == head.save(tmp_path / "again").read_bytes()
    for call in (head.predict, lambda x: head.score(x, truth(embedding))):
        with pytest.raises(HeadError, match="basis b2 and the head was fitted on basis b1"):
            call(scene(basis="b2"))
    with pytest.raises(HeadError, match="3 bands"):
        head.predict(embedding[:3])


def test_several_scenes_and_rows_with_places(caplog):
    scenes = [scene(0), scene(1)]
    head = BiomassRegressor(kernel_size=1, block_size=8)
    head.fit(scenes, [truth(s) for s in scenes])
    rows = np.concatenate([s.values.reshape(D, -1).T for s in scenes])
    values = np.concatenate([truth(s).ravel() for s in scenes])
    rows[7] = np.nan
    values[3] = np.nan
    places = np.arange(len(rows)) // 100
    with caplog.at_level(logging.WARNING):
        from_rows = BiomassRegressor(alpha=head.alpha_).fit(rows, values, groups=places)
    assert "1 of 4607 labelled vectors hold NaN" in caplog.text
    np.testing.assert_allclose(from_rows.weights_, head.weights_, atol=2e-3)
    assert from_rows.score(rows, values) == pytest.approx(
        from_rows.score(rows[8:], values[8:]), 0.01
    )
    still = np.concatenate([rows[8:], np.ones((len(rows) - 8, 1))], axis=1)
    flat = BiomassRegressor(alpha=0.0).fit(still, values[8:])
    assert flat.score(still, values[8:]) > 0.5


@pytest.mark.parametrize("coarse", [1, 3])
def test_dates_of_one_place_are_held_out_together(coarse):
    # Labels are noise: whatever a fold seems to predict was learned from another date of it.
    rng = np.random.default_rng(5)
    first = scene(3, size=24)
    other = first.copy(data=np.float32(first + 0.01 * rng.normal(size=first.shape)))
    part = other[:, 3:, 6:]
    edge = 24 // coarse
    labels = placed(np.zeros((24, 24)), first).coarsen(y=coarse, x=coarse).mean()
    labels = labels.copy(data=sparse(rng.gamma(2, 50, (edge, edge)), 0.3 if coarse == 1 else 0.9))
    head = BiomassRegressor(kernel_size=3, block_size=6, target_transform="none")
    alone = head.fit(first, labels).held_out_rmse_
    for several in ([first, other], [first, part, other]):
        again = head.fit(several, [labels] * len(several)).held_out_rmse_
        assert again > 0.95 * alone


def test_a_lazy_map_is_of_the_fit_that_made_it():
    lazy = scene(0, lazy=True)
    head = BiomassRegressor().fit(lazy, truth(scene(0)))
    first, bounds = head.predict(lazy), head.predict_interval(lazy)
    wanted = head.predict(scene(0)), head.predict_interval(scene(0))
    index = DissimilarityIndex(max_vectors=100).fit(scene(0).values.reshape(D, -1).T)
    far, wanted_far = index.predict(lazy), index.predict(scene(0))
    head.fit(lazy, 10 * truth(scene(0)))
    index.fit(9 + scene(1).values.reshape(D, -1).T)
    np.testing.assert_allclose(first, wanted[0], rtol=1e-4)
    np.testing.assert_allclose(bounds, wanted[1], rtol=1e-4)
    np.testing.assert_allclose(far, wanted_far, rtol=1e-4)


def test_labels_by_shape_have_their_nodata_and_their_direction():
    embedding = scene().drop_vars("spatial_ref")
    values = truth(embedding)
    labels = xr.DataArray(np.where(values > 90, values, 0), dims=("y", "x")).rio.write_nodata(0)
    head = BiomassRegressor(block_size=8).fit(embedding, labels)
    assert head.n_labels_ == (values > 90).sum()
    fine = xr.DataArray(
        values.repeat(2, 0).repeat(2, 1)[::-1],
        dims=("y", "x"),
        coords={"y": np.sort(TOP - (np.arange(2 * SIZE) + 0.5) * STEP / 2)},
    )
    with pytest.raises(HeadError, match="'y' is not that of the embedding"):
        BiomassRegressor(block_size=8).fit(embedding, fine)
    BiomassRegressor(block_size=8).fit(embedding, fine[::-1])
    # A token northwards is another place, however far from the equator both are.
    with pytest.raises(HeadError, match="'y' is not that of the embedding"):
        BiomassRegressor(block_size=8).fit(
            embedding, fine[::-1].assign_coords(y=fine[::-1].y + STEP)
        )


EMPTY = np.full((SIZE, SIZE), np.nan)
ONE = EMPTY.copy()
ONE[3, 3] = 5
UNFIT = [
    ({}, scene(), truth(scene())[:-1], "do not fit"),
    ({}, scene(), EMPTY, "too few labels: 0"),
    ({}, scene(), ONE, "too few labels: 1"),
    ({}, scene() * np.nan, truth(scene()), "hold NaN"),
    ({}, scene(), -truth(scene()), "negative"),
    ({}, scene(), truth(scene()) + np.inf, "infinity"),
    ({}, scene(), placed(truth(scene()), scene(left=LEFT + 1e6)), "do not overlap"),
    ({}, scene(), placed(truth(scene()), scene()).rio.write_crs(32634), "do not overlap"),
    ({}, [scene(), scene(basis="b2")], [truth(scene())] * 2, "basis"),
    ({}, scene().to_dataset(name="embedding"), truth(scene()), "ds.embedding"),
    ({"kernel_size": 2}, scene(), truth(scene()), "odd"),
    ({"target_transform": "cube"}, scene(), truth(scene()), "none, sqrt, log"),
    ({}, np.zeros((5, D)), np.zeros(4), "5 vectors and 4 labels"),
]


@pytest.mark.parametrize(("options", "X", "y", "message"), UNFIT, ids=lambda v: str(v)[:24])
def test_what_cannot_be_learned_says_why(options, X, y, message):
    with pytest.raises(HeadError, match=message):
        BiomassRegressor(**options).fit(X, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_tags_of_a_raster_are_heard():
    whole = placed(np.round(truth(scene())), scene())
    tenths = (10 * whole - 50).astype(np.int32).rio.write_nodata(-50)
    tenths.attrs |= {"scale_factor": 0.1, "add_offset": 5.0}
    known = whole.where(whole != 0)
    plain, tagged = (BiomassRegressor(block_size=8).fit(scene(), y) for y in (known, tenths))
    np.testing.assert_allclose(tagged.weights_, plain.weights_, rtol=1e-6)


def test_errors_that_are_none_are_refused():
    errors = placed(np.full((SIZE, SIZE), -9999.0), scene())
    with pytest.raises(HeadError, match="standard errors are negative, the first is -9999"):
        BiomassRegressor().fit(scene(), truth(scene()), standard_error=errors)
    with pytest.raises(HeadError, match="1 standard errors for 2 embeddings"):
        BiomassRegressor().fit([scene()] * 2, [truth(scene())] * 2, standard_error=[None])


def test_scikit_learn_takes_it_for_a_regressor():
    failed = {}
    for estimator, check in estimator_checks_generator(BiomassRegressor(), legacy=True):
        try:
            check(estimator)
        except Exception as error:
            if type(error).__name__ != "SkipTest":
                failed[check.func.__name__] = error
    # On purpose: fit leaves out vectors with NaN, as scenes have them.
    assert set(failed) == {"check_estimators_nan_inf"}, failed


LARGER_THAN_MEMORY = """
import resource, sys
from pathlib import Path
import dask, dask.array as da, numpy as np, rasterio, rioxarray, sklearn.linear_model, xarray as xr
from nec.heads import BiomassRegressor, Segmenter, write_map
dask.config.set(scheduler="threads", num_workers=2)
size, chunk = 2048, 256
tile = np.random.default_rng(0).normal(size=(64, chunk, chunk)).astype(np.float32)
def made(block_info):
    return np.roll(tile, sum(block_info[None]["chunk-location"]), axis=1)
data = da.map_blocks(made, dtype=np.float32, chunks=((64,), (chunk,) * 8, (chunk,) * 8))
coords = {"y": -10.0 * np.arange(size), "x": 10.0 * np.arange(size)}
store = xr.DataArray(data, dims=("band", "y", "x"), coords=coords).rio.write_crs(32633)
labels = np.full((size, size), np.nan, np.float32)
labels[::64, :1024] = 50
labels[::64, :512] = 20
Segmenter(max_samples=5000).fit(store[:, :512, :512], np.nan_to_num(labels[:512, :512], nan=-1)
    .astype(int) + np.arange(512) % 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
head = BiomassRegressor(block_size=256).fit(store, labels)
assert head.n_labels_ == 32 * 1024
write_map(head.predict(store), Path(sys.argv[1]) / "map.tif")
classes = Segmenter(max_samples=20000).fit(store, np.nan_to_num(labels, nan=-1).astype(int))
write_map(classes.predict(store), Path(sys.argv[1]) / "classes.tif")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(data.nbytes / 2**20, (after - before) / 2**10)
"""


@pytest.mark.slow
def test_a_store_larger_than_the_memory_it_takes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LARGER_THAN_MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, taken = map(float, done.stdout.split())
    assert taken < 0.5 * whole, (whole, taken)
