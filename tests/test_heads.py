import logging

import geopandas
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from pyproj import Transformer
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import estimator_checks_generator

import nec
from nec.errors import HeadError
from nec.heads import SceneClassifier, Segmenter, load_head, write_map
from nec.heads.labels import LabelRaster
from nec.heads.pooling import mean_and_roughness, mean_and_variogram

D, SIZE = 5, 24
STEP, LEFT, TOP = 40.0, 300_020.0, 5_800_010.0
CENTRES = 5 * np.eye(3, D)
NAMES = np.array(["annual crop", "forest", "water"])


def truth():
    """Three fields, side by side."""
    return np.repeat(np.arange(3), SIZE // 3)[None, :].repeat(SIZE, 0)


def scene(*, lazy=False, gap=True, basis="b1", seed=0):
    values = np.moveaxis(CENTRES[truth()], -1, 0)
    values = (values + np.random.default_rng(seed).normal(size=values.shape)).astype(np.float32)
    if gap:
        values[:, :3, :5] = np.nan
        values[2, 10, 10] = np.nan
    array = xr.DataArray(
        values,
        dims=("band", "y", "x"),
        coords={
            "y": TOP - (np.arange(SIZE) + 0.5) * STEP,
            "x": LEFT + (np.arange(SIZE) + 0.5) * STEP,
        },
        attrs={"nec_basis": basis, "nec_model": "nec-tiny"},
        name="embedding",
    )
    array = array.rio.write_crs(32633)
    array.spatial_ref.attrs["GeoTransform"] = f"{LEFT} {STEP} 0.0 {TOP} 0.0 {-STEP}"
    return array.chunk(y=8, x=12) if lazy else array


def samples(n=60, seed=1, shape=()):
    codes = np.random.default_rng(seed).integers(0, 3, n)
    noise = np.random.default_rng(seed + 1).normal(size=(n, D, *shape))
    values = CENTRES[codes].reshape(n, D, *(1,) * len(shape)) + noise
    dims = ("sample", "band", "y", "x")[: values.ndim]
    return xr.DataArray(values.astype(np.float32), dims=dims, attrs={"nec_basis": "b1"}), NAMES[
        codes
    ]


def raster(values, step, *, left=LEFT, top=TOP, crs=32633):
    rows, columns = values.shape
    coords = {
        "y": top - (np.arange(rows) + 0.5) * step,
        "x": left + (np.arange(columns) + 0.5) * step,
    }
    return xr.DataArray(values, dims=("y", "x"), coords=coords).rio.write_crs(crs)


# Why a check of scikit-learn does not apply: what the head does on purpose instead.
DROPS_NAN = {"check_estimators_nan_inf": "fit drops vectors with NaN, as scenes have them"}
VOTES = {
    "check_class_weight_classifiers": "class_weight belongs to method='linear'",
    "check_non_transformer_estimators_n_iter": "a vote has no iterations",
}
IGNORES = {"check_classifiers_classes": "its label -1 is the ignore_index"}
CHECKED = [
    (SceneClassifier(), DROPS_NAN),
    (SceneClassifier(method="mlp", max_iter=200), DROPS_NAN),
    (SceneClassifier(method="knn", n_neighbors=3), DROPS_NAN | VOTES),
    (SceneClassifier(method="knn", n_neighbors=3, metric="euclidean"), DROPS_NAN | VOTES),
    (Segmenter(ignore_index=None), DROPS_NAN),
    (Segmenter(), DROPS_NAN | IGNORES),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize(("head", "expected"), CHECKED, ids=lambda v: str(v)[:60])
def test_scikit_learn_takes_the_heads_for_estimators(head, expected):
    failed = {}
    for estimator, check in estimator_checks_generator(head, legacy=True):
        name = check.func.__name__
        try:
            check(estimator)
        except Exception as error:
            if type(error).__name__ == "SkipTest":
                continue
            failed[name] = error
    assert set(failed) == set(expected), failed


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_rows_work_in_pipelines_and_cross_validation(method):
    vectors, labels = samples(90)
    head = clone(SceneClassifier(method=method, n_neighbors=5))
    assert cross_val_score(head, vectors.values, labels, cv=3).min() > 0.9
    assert (
        make_pipeline(Normalizer(), head).fit(vectors.values, labels).score(vectors.values, labels)
        > 0.9
    )


@pytest.mark.parametrize("shape", [(), (4, 4)])
def test_samples_are_pooled_and_scored(shape, caplog):
    vectors, labels = samples(shape=shape)
    vectors = vectors.assign_coords(sample=np.arange(vectors.sizes["sample"]) * 10)
    if shape:
        vectors[0, :, 0, 0] = np.nan  # one missing token does not spoil its image
    vectors[3] = np.nan
    with caplog.at_level(logging.WARNING):
        head = SceneClassifier().fit(vectors.chunk(sample=20), labels)
    assert "1 of 60 vectors hold NaN" in caplog.text
    assert head.score(vectors, labels) > 0.95
    with pytest.raises(HeadError, match=r"1 of 60 vectors hold NaN, the first at 3"):
        head.predict(vectors)
    found = head.predict(vectors.drop_isel(sample=3))
    assert found.dims == ("sample",)
    assert found["sample"].values[3] == 40
    assert set(found.values) <= set(NAMES)
    assert head.predict_proba(vectors[:2]).dims == ("sample", "class")


def test_a_head_of_images_maps_a_scene_lazily():
    head = SceneClassifier().fit(*samples())
    found = head.predict(scene(lazy=True))
    assert found.chunks == ((8, 8, 8), (12, 12))
    assert found.dtype == np.int16
    assert found.attrs["flag_meanings"] == "annual_crop forest water"
    assert found.rio.crs.to_epsg() == 32633
    transform = found.spatial_ref.attrs["GeoTransform"].split()
    assert list(map(float, transform)) == [LEFT, STEP, 0, TOP, 0, -STEP]
    missing = np.isnan(scene().values).any(axis=0)
    np.testing.assert_array_equal(found.values == -1, missing)
    assert (found.values == truth())[~missing].mean() > 0.95
    np.testing.assert_array_equal(found.values, head.predict(scene()).values)
    shares = head.predict_proba(scene(lazy=True))
    assert shares.dims == ("class", "y", "x")
    assert shares["class"].values.tolist() == NAMES.tolist()
    np.testing.assert_allclose(shares.sum("class").values[~missing], 1, atol=1e-6)
    assert np.isnan(shares.values[:, missing]).all()


def test_cells_are_mapped_with_their_own_transform():
    cells = scene(gap=False).coarsen(y=4, x=4).mean().rename(y="cell_y", x="cell_x")
    found = SceneClassifier().fit(*samples()).predict(cells.expand_dims("time"))
    assert found.dims == ("time", "cell_y", "cell_x")
    assert found.spatial_ref.attrs["GeoTransform"].split()[1] == repr(4 * STEP)
    np.testing.assert_array_equal(found[0], truth()[::4, ::4])


def test_a_written_map_is_a_coloured_cog(tmp_path):
    found = Segmenter().fit(scene(), truth()).predict(scene(lazy=True)[:, 2:])
    path = write_map(found, tmp_path / "map.tif", colours=[(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32633
        assert (file.transform.c, file.transform.f) == (LEFT, TOP - 2 * STEP)
        assert file.colormap(1)[2] == (7, 8, 9, 255)
        assert file.tags(1)["flag_meanings"] == "0 1 2"
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        values = file.read(1)
        assert file.nodata == 255
    np.testing.assert_array_equal(np.where(values == 255, -1, values.astype(int)), found.values)
    with pytest.raises(HeadError, match="no class map"):
        write_map(scene(), tmp_path / "other.tif")
    with pytest.raises(HeadError, match="2 colours for 3 classes"):
        write_map(found, tmp_path / "other.tif", colours=[(0, 0, 0)] * 2)


def test_a_map_replaces_a_map_and_never_a_store(tmp_path):
    found = Segmenter().fit(scene(), truth()).predict(scene())
    store = tmp_path / "store.zarr"
    xr.Dataset({"embedding": scene().drop_attrs()}).to_zarr(store, consolidated=False)
    sealed = tmp_path / "sealed.zarr"
    xr.Dataset(attrs={"nec": {"seal": 1}}).to_zarr(sealed, consolidated=False)
    for path in (store, sealed):
        before = sorted(p.name for p in path.rglob("*"))
        with pytest.raises(HeadError, match="is an embedding store"):
            write_map(found, path)
        assert sorted(p.name for p in path.rglob("*")) == before
    for labels in (found, found.where(found == 1, 2).assign_attrs(found.attrs)):
        path = write_map(labels, tmp_path / "map.ZARR")
        np.testing.assert_array_equal(xr.open_zarr(path)[found.name], labels)
    for name in ("none.tif", "none.zarr"):
        with pytest.raises(HeadError, match="has no CRS"):
            write_map(found.drop_vars("spatial_ref"), tmp_path / name)
    for write in (lambda p: write_map(found, p), Segmenter().fit(scene(), truth()).save):
        with pytest.raises(HeadError, match="there is no folder"):
            write(tmp_path / "no" / "map.tif")
    assert {p.name for p in tmp_path.iterdir()} == {"store.zarr", "sealed.zarr", "map.ZARR"}


def test_each_class_of_a_map_has_a_word_of_its_own():
    names = np.array(["", "a b", "a_b"])[truth()]
    found = Segmenter(ignore_index=None).fit(scene(), names).predict(scene())
    assert found.attrs["flag_meanings"] == "unnamed a_b a_b_2"


FINE = truth().repeat(4, 0).repeat(4, 1)


@pytest.mark.parametrize(
    "labels",
    [
        truth(),
        FINE,
        raster(FINE, 10),
        raster(FINE[::-1], 10).isel(y=slice(None, None, -1)),
        raster(FINE[:, 16:80], 10, left=LEFT + 160),  # part of the scene
        raster(np.pad(FINE, 8, constant_values=-1), 10, left=LEFT - 80, top=TOP + 80),
        raster(FINE.astype(float), 10, left=LEFT + 3, top=TOP - 4),  # another phase
        raster(truth()[::4, ::4], 160),  # coarser than tokens
        raster(FINE, 10).expand_dims("band").rio.write_nodata(99).chunk(x=7),
    ],
    ids=["tokens", "pixels", "crs", "southup", "part", "larger", "phase", "coarse", "file"],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_label_maps_of_any_resolution_meet_their_tokens(labels, lazy):
    head = Segmenter().fit(scene(lazy=lazy), labels)
    assert head.classes_.tolist() == [0, 1, 2]
    assert head.score(scene(seed=5), truth()) > 0.95


def test_labels_in_another_crs_are_reprojected_and_that_is_said(caplog):
    fine = raster(FINE.astype(np.int16), 10)
    elsewhere = fine.rio.reproject("EPSG:4326", nodata=-1)
    with caplog.at_level("WARNING"):
        head = Segmenter().fit(scene(), elsewhere)
    assert "EPSG:4326: reprojected to EPSG:32633" in caplog.text
    with pytest.raises(HeadError, match=r"labels such as 0\.5 are no classes"):
        Segmenter().fit(scene(), fine * 0.5)
    assert head.classes_.tolist() == [0, 1, 2]
    assert head.score(scene(seed=5), truth()) > 0.95
    # Unlabelled pixels stay so, and the edges of what is turned are none.
    fine[:, : FINE.shape[1] // 2] = -1
    half = Segmenter().fit(scene(), fine.rio.reproject("EPSG:4326", nodata=-1))
    assert half.classes_.tolist() == [1, 2]
    bare = elsewhere.copy()
    del bare.attrs["_FillValue"]
    assert Segmenter().fit(scene(), bare).classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("crs", "size"), [(4326, 0.001), (6933, 150), (32632, 100), (3035, 60)], ids=str
)
def test_labels_of_another_crs_are_looked_up_at_the_centres_of_tokens(crs, size, caplog):
    embedding = scene(gap=False)
    x, y = np.meshgrid(embedding.x.values, embedding.y.values)
    turn = Transformer.from_crs(32633, crs, always_xy=True).transform
    theirs_x, theirs_y = turn(x, y)
    left, top = theirs_x.min() - 0.4 * size, theirs_y.max() + 0.3 * size
    shape = [int(np.ptp(v) / size) + 3 for v in (theirs_y, theirs_x)]
    names = np.arange(np.prod(shape)).reshape(shape)
    labels = raster(names, size, left=left, top=top, crs=crs)
    expected = names[
        ((top - theirs_y) // size).astype(int), ((theirs_x - left) // size).astype(int)
    ]
    with caplog.at_level("WARNING"):
        over = LabelRaster.over(embedding, labels.chunk(x=4), ignore_index=None)
    assert "looked up at the centres of tokens" in caplog.text
    found, valid = over.window(slice(0, SIZE), slice(0, SIZE))
    assert valid.all()
    np.testing.assert_array_equal(found, expected)
    found, _ = over.window(slice(3, 9), slice(5, 20))
    np.testing.assert_array_equal(found, expected[3:9, 5:20])
    tokens = SIZE**2 / np.unique(expected).size
    assert np.prod(over.pixel_size) == pytest.approx(tokens, rel=0.5)


def test_a_token_takes_the_majority_of_its_valid_pixels():
    labels = np.full((SIZE * 4, SIZE * 4), -1)
    labels[:4, :4] = [[5, 5, 7, -1], [7, 7, -1, -1], [-1] * 4, [-1] * 4]  # 7 by 3 to 2
    labels[4:8, :4] = [[5, 7, 7, 5]] + [[-1] * 4] * 3  # a tie: the smallest
    embedding = scene(gap=False)
    head = Segmenter().fit(embedding, labels)
    assert head.classes_.tolist() == [5, 7]
    assert head.predict(embedding).values[:2, 0].tolist() == [1, 0]
    assert head.score(embedding, labels) == 1.0


def test_fitting_reads_only_chunks_with_labels():
    read = []

    def spy(block, block_info=None):
        read.append(tuple(block_info[0]["chunk-location"]))
        return block

    embedding = scene(lazy=True)
    embedding = embedding.copy(
        data=embedding.data.map_blocks(spy, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    )
    labels = np.full((SIZE, SIZE), -1)
    labels[10, 14:] = truth()[10, 14:]
    Segmenter().fit(embedding, labels)
    assert read == [(0, 1, 1)]


def test_several_scenes_and_points_of_a_table():
    from_maps = Segmenter().fit([scene(), scene(seed=3)], [truth(), FINE])
    # One without labels teaches nothing, and is no error.
    nothing = np.full_like(truth(), -1)
    more = Segmenter().fit([scene(), scene(seed=4), scene(seed=3)], [truth(), nothing, FINE])
    np.testing.assert_array_equal(more.rule_.weights, from_maps.rule_.weights)
    with pytest.raises(HeadError, match="no token has a label"):
        Segmenter().fit([scene(), scene(seed=3)], [nothing, nothing])
    rows = [scene(seed=s).values.reshape(D, -1).T for s in (0, 3)]
    with_gaps = Segmenter().fit(np.concatenate(rows), np.tile(truth().ravel(), 2))
    np.testing.assert_allclose(from_maps.rule_.weights, with_gaps.rule_.weights, atol=1e-3)
    assert with_gaps.score(rows[0], truth().ravel()) > 0.95


HEADS = [
    SceneClassifier(class_weight={"water": 2.0, "forest": 1, "annual crop": 1}),
    SceneClassifier(method="knn", n_neighbors=7),
    SceneClassifier(method="knn", standardize=True, calibrate=True),
    SceneClassifier(method="mlp", hidden=(8, 8), max_iter=50),
    Segmenter(ignore_index=None, C=0.5),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("head", HEADS, ids=["linear", "knn", "tempered", "mlp", "segmenter"])
@pytest.mark.parametrize("dtype", [str, object])
def test_a_saved_head_comes_back_the_same(head, dtype, tmp_path):
    vectors, labels = samples(30)
    head = clone(head)
    if isinstance(head, Segmenter):
        head.fit(scene(), NAMES[truth()].astype(dtype))
    else:
        head.fit(vectors, labels.astype(dtype))
    path = head.save(tmp_path / "head.safetensors")
    first = path.read_bytes()
    again = load_head(path)
    assert type(again) is type(head)
    assert again.get_params() == head.get_params()
    assert (again.basis_, again.classes_.dtype) == ("b1", head.classes_.dtype)
    xr.testing.assert_identical(again.predict(scene()), head.predict(scene()))
    xr.testing.assert_identical(again.predict_proba(scene()), head.predict_proba(scene()))
    assert again.save(path).read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_head_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = Segmenter().fit(scene(), truth()).save(tmp_path / "head")
    with pytest.raises(HeadError, match="is a Segmenter, not a SceneClassifier"):
        SceneClassifier.load(path)
    whole = path.read_bytes()
    for end in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(HeadError, match="no safetensors file"):
            load_head(path)
    path.write_bytes(whole.replace(b'version\\": 1', b'version\\": 9'))
    with pytest.raises(HeadError, match="format version 9"):
        load_head(path)
    path.write_bytes(whole.replace(b'n_features\\": 5', b'n_features\\": 6'))
    with pytest.raises(HeadError, match="shapes"):
        load_head(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(HeadError, match="no head of nec"):
        load_head(path)
    with pytest.raises(HeadError, match="not a file"):
        load_head(tmp_path / "none")


def test_another_basis_is_refused_and_none_passes():
    head = Segmenter().fit(scene(), truth())
    assert (head.basis_, head.model_) == ("b1", "nec-tiny")
    for call in (head.predict, head.predict_proba, lambda x: head.score(x, truth())):
        with pytest.raises(HeadError, match="basis b2 and the head was fitted on basis b1"):
            call(scene(basis="b2"))
    with pytest.raises(HeadError, match="basis"):
        Segmenter().fit([scene(), scene(basis="b2")], [truth(), truth()])
    other = scene().assign_attrs(nec_model="another")
    del other.attrs["nec_basis"]
    with pytest.raises(HeadError, match="of model another and the head"):
        head.predict(other)
    assert head.predict(scene().drop_attrs()).dtype == np.int16
    assert head.predict(np.zeros((2, D))).shape == (2,)


def test_other_bands_of_the_same_basis_are_refused(tmp_path):
    embedding = scene().assign_coords(band=np.arange(D))
    head = Segmenter().fit(embedding[[0, 1, 2]], truth())
    head = load_head(head.save(tmp_path / "head.safetensors"))
    head.predict(embedding[[0, 1, 2]])
    head.predict(embedding[[0, 1, 2]].drop_vars("band"))
    for other in ([2, 3, 4], [2, 1, 0]):
        with pytest.raises(HeadError, match="bands 0, 1, 2"):
            head.predict(embedding[other])
    points = geopandas.GeoDataFrame(
        geometry=geopandas.points_from_xy(embedding.x.values, embedding.y.values), crs=32633
    )
    table = nec.sample(embedding[[0, 1, 2]], points)
    head = SceneClassifier().fit(table.filter(like="band_"), truth()[0][table.index])
    with pytest.raises(HeadError, match="bands 0, 1, 2"):
        head.predict(embedding[[2, 3, 4]])
    with pytest.raises(HeadError, match="another of the embeddings"):
        Segmenter().fit([embedding[[0, 1]], embedding[[1, 2]]], [truth(), truth()])


def test_rows_without_a_label_train_nothing():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, 60).astype(float)
    rows = rng.normal(size=(60, D)) + 3 * codes[:, None]
    codes[::5] = np.nan
    head = SceneClassifier().fit(rows, codes)
    assert head.classes_.tolist() == [0, 1]
    assert sum(head.counts_) == 48
    assert head.score(rows, codes) > 0.9


VECTORS, LABELS = samples()
UNFIT = [
    (SceneClassifier(), VECTORS, LABELS[:-1], "60 vectors and 59 labels"),
    (SceneClassifier(), VECTORS, np.repeat("a", 60), r"of 1 class\(es\): \['a'\]"),
    (SceneClassifier(), VECTORS * np.nan, LABELS, "all 60 vectors hold NaN"),
    (SceneClassifier(), scene(), truth(), "holds no samples"),
    (SceneClassifier(), scene().to_dataset(), truth(), "ds.scene_embedding"),
    (SceneClassifier(method="tree"), VECTORS, LABELS, "use one of linear, knn"),
    (SceneClassifier(pooling="mean_roughness"), VECTORS, LABELS, "pooled already"),
    (SceneClassifier(calibrate=True), VECTORS[:4], ["a", "a", "a", "b"], "two vectors of every"),
    (SceneClassifier(method="knn", n_neighbors=99), VECTORS, LABELS, "lower n_neighbors"),
    (Segmenter(), scene(), truth()[:-1], "do not fit"),
    (Segmenter(), scene(), FINE[:, :-4], "do not fit"),
    (Segmenter(), scene(), np.full((SIZE, SIZE), -1), "no token has a label"),
    (Segmenter(), scene() * np.nan, truth(), "hold NaN"),
    (Segmenter(), scene(), raster(FINE, 10, crs=32634), "do not overlap"),
    (Segmenter(), scene(), raster(FINE, 10, crs=32722), "do not overlap"),
    (Segmenter(), "store.zarr", raster(FINE, 10), "got a path, store.zarr"),
    (Segmenter(), scene(), raster(FINE.astype(str), 10, crs=32634), "cannot be brought over"),
    (Segmenter(), scene(), raster(FINE, 10, left=LEFT + 1e6), "do not overlap"),
    (Segmenter(), scene(), raster(truth(), 9.0).drop_vars("spatial_ref"), "write the CRS"),
    (Segmenter(), [scene()], truth(), "as many label maps"),
    (Segmenter(), VECTORS, LABELS, "a list of such"),
    (Segmenter(), scene().expand_dims(time=2), truth(), "2 times"),
]


@pytest.mark.parametrize(("head", "X", "y", "message"), UNFIT, ids=lambda v: str(v)[:30])
def test_what_cannot_be_learned_says_why(head, X, y, message):
    with pytest.raises(HeadError, match=message):
        clone(head).fit(X, y)


def test_what_cannot_be_mapped_says_why():
    head = SceneClassifier().fit(VECTORS, LABELS)
    with pytest.raises(HeadError, match="3 bands and the head was fitted on 5"):
        head.predict(scene()[:3])
    with pytest.raises(HeadError, match=r"ds\.embedding"):
        head.predict(scene().to_dataset())
    with pytest.raises(HeadError, match="no `band`"):
        head.predict(scene().rename(band="feature"))


def test_which_tokens_are_learned_from_hangs_on_the_seed_and_not_on_chunks():
    one = Segmenter(max_samples=200).fit(scene(), truth())
    lazy = scene().chunk(y=7, x=5)
    same = Segmenter(max_samples=200).fit(lazy, truth())
    other = Segmenter(max_samples=200, random_state=1).fit(lazy, truth())
    assert one.counts_ == same.counts_
    np.testing.assert_allclose(one.rule_.weights, same.rule_.weights, atol=1e-3)
    assert np.abs(one.rule_.weights - other.rule_.weights).max() > 1e-2


def test_as_many_vectors_with_data_are_learned_from_as_are_asked_for():
    # Labels cover what is missing too, as land cover covers the padding of stores.
    embedding, labels = scene(gap=False), truth()
    embedding[:, 4:] = np.nan
    with_data = Segmenter(max_samples=60, ignore_index=None).fit(embedding, labels)
    assert 40 < sum(with_data.counts_) <= 96
    # Most labels are in one of many scenes.
    nothing = np.full((SIZE, SIZE), -1)
    scenes, maps = [scene(seed=s, gap=False) for s in range(6)], [truth()] + [nothing] * 5
    several = Segmenter(max_samples=300).fit(scenes, maps)
    assert 240 < sum(several.counts_) < 360
    lazy = Segmenter(max_samples=300).fit([s.chunk(y=7, x=5) for s in scenes], maps)
    assert lazy.counts_ == several.counts_


def test_labels_straight_from_a_store():
    rows = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    rows[6:] += 4
    names = np.array(["forest"] * 6 + ["river"] * 6, dtype=np.dtypes.StringDType())
    vectors = xr.DataArray(rows, dims=("sample", "band"), coords={"label": ("sample", names)})
    head = SceneClassifier().fit(vectors, vectors.label)
    assert head.score(vectors, vectors.label) == head.score(rows, names) == 1
    assert list(head.classes_) == ["forest", "river"]


def test_roughness_tells_texture_and_not_a_slope():
    ramp = np.broadcast_to(np.arange(8.0), (8, 8))
    stripes = np.broadcast_to(np.arange(8) % 2 * 7.0, (8, 8))
    tokens = np.stack([ramp, stripes, np.full((8, 8), 3.5)])[:, None]
    found = mean_and_roughness(tokens)
    np.testing.assert_allclose(found[:, 0], 3.5)
    # Half of the pairs are along the columns, and alike.
    np.testing.assert_allclose(found[:, 1], [0.5**0.5, 7 * 0.5**0.5, 0])


def test_missing_tokens_leave_the_roughness_of_the_others():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 3, 6, 6)).astype(np.float32)
    cut = tokens.copy()
    cut[0, :, 4:] = np.nan
    cut[1] = np.nan
    found = mean_and_roughness(cut)
    np.testing.assert_allclose(found[0], mean_and_roughness(tokens[:1, :, :4])[0], rtol=1e-6)
    assert np.isnan(found[1]).all()


def test_the_variogram_tells_whether_bands_have_their_edges_in_one_place():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(6, 6))
    tokens = np.stack([np.stack([first, s * first + 5, first[::-1]]) for s in (1.0, -2.0)])
    found = mean_and_variogram(tokens)
    assert found.shape == (2, 3 + 6)
    plain = mean_and_roughness(tokens)
    np.testing.assert_allclose(found[:, :3], plain[:, :3])
    # The upper triangle by rows: 11 12 13 22 23 33.
    np.testing.assert_allclose(found[:, [3, 6, 8]], plain[:, 3:], rtol=1e-5)
    rough = plain[0, 3]
    np.testing.assert_allclose(found[:, 4], [rough, -(2**0.5) * rough], rtol=1e-5)
    cut = tokens.copy()
    cut[0, 1, 4:] = np.nan
    cut[1] = np.nan
    found = mean_and_variogram(cut)
    np.testing.assert_allclose(found[0], mean_and_variogram(tokens[:1, :, :4])[0], rtol=1e-5)
    assert np.isnan(found[1]).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_perceptron_learns_what_no_plane_divides():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 2)).astype(np.float32)
    labels = np.where(rows[:, 0] * rows[:, 1] > 0, "same", "other")
    scores = [
        SceneClassifier(method=method, max_iter=400)
        .fit(rows[:300], labels[:300])
        .score(rows[300:], labels[300:])
        for method in ("linear", "mlp")
    ]
    assert scores[0] < 0.7
    assert scores[1] > 0.9
    few = labels == "same"
    few[few] = rng.random(few.sum()) < 0.1
    kept = few | (labels == "other")
    shares = [
        SceneClassifier(method="mlp", max_iter=30, class_weight=weight)
        .fit(rows[kept], labels[kept])
        .predict_proba(rows)[:, 1]
        .mean()
        for weight in (None, "balanced")
    ]
    assert shares[1] > shares[0] + 0.1


def test_calibrated_probabilities_come_true():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 20))
    labels = (rows[:, 0] + rng.normal(size=2000) > 0).astype(int)
    losses = []
    for calibrate in (False, True):
        head = SceneClassifier(C=1e3, calibrate=calibrate).fit(rows[:80], labels[:80])
        shares = head.predict_proba(rows[80:])
        right = shares[np.arange(len(shares)), labels[80:]]
        losses.append(-np.log(np.maximum(right, 1e-9)).mean())
    assert losses[1] < 0.8 * losses[0]


def test_few_labels_that_are_all_right_are_not_sharpened_without_end():
    losses = np.zeros(2)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        codes = np.arange(330) % 3
        rows = 1.2 * rng.normal(size=(3, 8))[codes] + rng.normal(size=(330, 8))
        for at, calibrate in enumerate((False, True)):
            head = SceneClassifier(calibrate=calibrate).fit(rows[:30], codes[:30])
            shares = head.predict_proba(rows[30:])[np.arange(300), codes[30:]]
            losses[at] -= np.log(np.maximum(shares, 1e-9)).mean()
    assert losses[1] < losses[0]


def test_a_card_tells_what_a_head_learned_and_serves():
    vectors, labels = samples()
    head = SceneClassifier(C=3.0).fit(vectors.assign_coords(band=np.arange(D)), labels)
    card = head.card(data="three fields", scores={"accuracy, another year": 0.5})
    for told in ("basis `b1`", "`C=3.0`", "three fields", "| water | ", "another year | 0.5 |"):
        assert told in card
    assert sum(head.counts_) == len(labels)


def test_top_k_and_pooling_of_mean_and_roughness():
    vectors, labels = samples(60, shape=(4, 4))
    head = SceneClassifier().fit(vectors, labels)
    top = head.predict_top_k(vectors, k=2)
    assert top.dims == ("sample", "rank")
    assert (top[:, 0].values == head.predict(vectors).values).all()
    assert (top[:, 1].values != top[:, 0].values).all()
    with pytest.raises(HeadError, match="k=4 of 3"):
        head.predict_top_k(vectors, k=4)
    # Classes of one mean that differ in how much they vary.
    rng = np.random.default_rng(0)
    spread = np.where(np.arange(80) % 2, 1.0, 3.0)[:, None, None, None]
    tokens = xr.DataArray(
        rng.normal(size=(80, D, 4, 4)) * spread, dims=("sample", "band", "y", "x")
    )
    names = np.where(np.arange(80) % 2, "even", "rough")
    mean, both = (
        SceneClassifier(pooling=p).fit(tokens[:60], names[:60]) for p in ("mean", "mean_roughness")
    )
    assert mean.score(tokens[60:], names[60:]) < 0.8
    assert both.score(tokens[60:], names[60:]) == 1.0
    with pytest.raises(HeadError, match="mean and roughness"):
        both.predict(scene(basis=None))
    # Bands of one mean and one spread that go together, or against each other.
    tokens = xr.DataArray(rng.normal(size=(80, D, 4, 4)), dims=("sample", "band", "y", "x"))
    tokens[:, 1] = tokens[:, 0] * np.where(names == "even", 1, -1)[:, None, None]
    apart, together = (
        SceneClassifier(pooling=p).fit(tokens[:60], names[:60])
        for p in ("mean_roughness", "mean_variogram")
    )
    assert apart.score(tokens[60:], names[60:]) < 0.8
    assert together.score(tokens[60:].chunk(sample=7), names[60:]) == 1.0
    with pytest.raises(HeadError, match=f"has {D - 1} bands"):
        together.predict(tokens[:, 1:])


def test_neighbours_may_be_standardised():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=300), 1000 * rng.normal(size=300)])
    labels = rows[:, 0] > 0
    plain, standard = (
        SceneClassifier(method="knn", metric="euclidean", standardize=s, n_neighbors=5)
        .fit(rows[:200], labels[:200])
        .score(rows[200:], labels[200:])
        for s in (False, True)
    )
    assert standard > 0.85 > plain
