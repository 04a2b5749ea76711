import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nec.errors import EvaluationError
from nec.evaluate import RateCurve, bytes_at_levels, compare_rates, neuco
from nec.evaluate.intervals import confusions, estimates, misses

SIZES = np.array([8.0, 16.0, 64.0, 256.0])
SCORES = np.array([0.7, 0.8, 0.85, 0.9])


def test_a_curve_interpolates_in_the_logarithm_of_bytes_and_does_not_extrapolate():
    curve = RateCurve.of(zip(SIZES, SCORES, strict=True))
    assert curve.bytes_at(0.75) == pytest.approx(np.sqrt(8 * 16))
    assert curve.score_at(32) == pytest.approx(0.825)
    assert curve.bytes_at(0.9) == pytest.approx(256)
    assert curve.bytes_at(0.91) is None
    assert curve.bytes_at(0.69) is None
    assert curve.score_at(4) is None
    # A dearer point that tells no more is no part of it, in whatever order they come.
    worse = [(300, 0.6), *zip(SIZES, SCORES, strict=True), (16, 0.5), (64, 0.85)]
    assert RateCurve.of(worse).sizes.tolist() == SIZES.tolist()
    levels = bytes_at_levels({"a": curve, "b": RateCurve.of([(5, 0.8)])}, [0.8, 0.9])
    assert levels[0.8] == {"a": pytest.approx(16), "b": pytest.approx(5)}
    assert levels[0.9]["b"] is None
    for wrong in ([], [(0, 0.5)], [(4, np.nan)]):
        with pytest.raises(EvaluationError, match="no curve"):
            RateCurve.of(wrong)


@given(
    steps=st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.01, 0.2)), min_size=2, max_size=8),
    factor=st.floats(0.05, 20),
)
def test_a_curve_of_scaled_bytes_saves_just_that(steps, factor):
    sizes, scores = np.cumsum(np.array(steps), axis=0).T
    base = RateCurve.of(zip(np.exp(sizes), scores, strict=True))
    scaled = RateCurve.of(zip(factor * np.exp(sizes), scores, strict=True))
    assert scaled.saving_over(base) == pytest.approx(1 - factor, abs=1e-6)
    there, back = scaled.saving_over(base), base.saving_over(scaled)
    assert (1 - there) * (1 - back) == pytest.approx(1)
    assert base.saving_over(RateCurve.of([(5, scores[-1] + 1), (9, scores[-1] + 2)])) is None


def labelled(accuracy, *, count=400, seed=0):
    """Confusions of a classifier of two classes that is right on the first share of images."""
    truth = np.random.default_rng(seed).integers(0, 2, count)
    right = np.arange(count) < accuracy * count
    return confusions(truth, np.where(right, truth, 1 - truth), np.arange(count), (count, 2))


def test_methods_are_compared_where_the_bound_of_the_difference_holds():
    wanted = {"a": {10: 0.85, 40: 0.892, 160: 0.9}, "b": {100: 0.85, 400: 0.892, 1600: 0.9}}
    counts = {"float": labelled(0.9)}
    counts |= {f"{m} {s}": labelled(v) for m, of in wanted.items() for s, v in of.items()}
    table = estimates(counts, reference="float", metrics=("accuracy",), seed=1)
    rows = {m: [{"bytes_per_image": s} | table[f"{m} {s}"] for s in of] for m, of in wanted.items()}
    found = compare_rates(rows, base="b", margin=0.02)
    a, b = found["a"], found["b"]
    assert a["saving_over_base"] == pytest.approx(0.9)
    assert a["bytes_saved_at_margin"] == pytest.approx(0.9)
    assert b["saving_over_base"] == 0
    assert 10 < a["bytes_at_margin"] < a["bytes_no_worse"] < 40
    assert a["smallest_no_worse"] == 40
    assert not table["a 40"]["accuracy"]["low"] > 0.9 - 0.02  # what pairing is good for
    # A margin that no interval keeps, and one that even the coarsest does.
    assert compare_rates(rows, base="b", margin=1e-6)["a"]["smallest_no_worse"] == 160
    assert compare_rates(rows, base="b", margin=0.5)["a"]["bytes_no_worse"] is None
    with pytest.raises(EvaluationError, match="methods: a, b"):
        compare_rates(rows, base="c", margin=0.01)


def test_of_errors_less_is_better():
    rng = np.random.default_rng(0)
    truth, units = rng.normal(size=4000), np.repeat(np.arange(80), 50)
    off, noise = {"float": 1.0, "1": 1.02, "2": 2.0}, rng.normal(size=4000)
    sums = {n: misses(truth, truth + f * noise, units, 80) for n, f in off.items()}
    found = estimates(sums, reference="float", metrics=("rmse",), seed=0, margin=0.1)
    rows = {"a": [{"bytes_per_image": float(9 - 4 * int(n)), **found[n]} for n in ("1", "2")]}
    told = compare_rates(rows, base="a", margin=0.1, metric="rmse")["a"]
    assert told["smallest_no_worse"] == 5
    assert 1 < told["bytes_at_margin"] < 5


def test_what_cannot_be_estimated_says_why():
    matrix = labelled(0.9)
    for wrong, message in (
        ({"reference": "b", "counts": {"a": matrix}}, "no row 'b'"),
        ({"reference": "a", "counts": {"a": matrix[:1]}}, "from 1 unit"),
        ({"reference": "a", "counts": {"a": matrix, "b": matrix[1:]}}, "'b' has"),
    ):
        with pytest.raises(EvaluationError, match=message):
            estimates(wrong["counts"], reference=wrong["reference"], metrics=("accuracy",), seed=0)
    labels = np.array([0, 1, 0])
    for truth, found, units in ((labels - 1, labels, labels), (labels, labels + 1, labels)):
        with pytest.raises(EvaluationError, match="2 are counted"):
            confusions(truth, found, units, (2, 2))
    tiny = {"a": misses(np.zeros(9), np.full(9, 1e-6), np.arange(9), 9)}
    tiny["b"] = 9 * tiny["a"]
    tiny["b"][:, 0] /= 9
    found = estimates(tiny, reference="a", metrics=("rmse",), seed=0, margin=1e-6)["b"]["rmse"]
    assert found["difference"]["value"] == pytest.approx(2e-6)
    assert not found["no_worse"]


def test_neuco_bench_files_come_back_and_scores_tell_signal_from_noise(tmp_path):
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(240, 6)).astype(np.float32)
    ids = [f"{i:04d}" for i in range(len(vectors))]
    noise = 0.3 * rng.normal(size=240)
    neuco.write_labels(tmp_path, "slope", "regression", ids, vectors[:, 0] + noise)
    neuco.write_labels(tmp_path, "chance", "regr", ids, rng.normal(size=240))
    path = neuco.write_labels(tmp_path, "forest", "cls", ids, (vectors[:, 1] + noise > 0) * 1)
    # A label that is missing, and one of a sample without an embedding.
    with path.open("a") as stream:
        stream.write("0001,\nelsewhere,1\n")
    file = tmp_path / "vectors.csv"
    neuco.write_embeddings(file, [f"{i}.zarr.zip" for i in ids], vectors)
    assert file.read_text().startswith("id,0,1,2,")
    embeddings = neuco.read_embeddings(file)
    assert embeddings.shape == (240, 1024)
    assert embeddings.index.tolist() == ids
    np.testing.assert_array_equal(embeddings.to_numpy()[:, :6], vectors)
    assert not embeddings.to_numpy()[:, 6:].any()

    told = []
    table = neuco.score(
        embeddings,
        tmp_path,
        bytes_per_vector=24,
        splits=8,
        progress=lambda *n: told.append(n),
    )
    assert told[-1] == (24, 24)
    assert table.index.tolist() == ["chance", "forest", "slope"]
    assert table["samples"].tolist() == [240, 240, 240]
    assert (table["bytes_per_vector"] == 24).all()
    expected = 1 - 0.09 / 1.09
    assert table.loc["slope", "mean"] == pytest.approx(expected, abs=0.05)
    assert table.loc["forest", "mean"] > 0.8
    assert table.loc["chance", "mean"] < 0.1
    row = table.loc["slope"]
    assert row["q"] == pytest.approx(2 * row["mean"] / (0.02 + row["std"]))
    assert neuco.q_score([0.5, 0.7]) == pytest.approx(1.2 / 0.12)


def test_neuco_bench_refuses_what_its_files_cannot_hold(tmp_path):
    with pytest.raises(EvaluationError, match="up to 4"):
        neuco.write_embeddings(tmp_path / "a.csv", ["a"], np.zeros((1, 5)), dim=4)
    with pytest.raises(EvaluationError, match="1 vectors are not finite"):
        neuco.write_embeddings(tmp_path / "a.csv", ["a", "b"], [[1.0], [np.nan]])
    with pytest.raises(EvaluationError, match="occur twice"):
        neuco.write_embeddings(tmp_path / "a.csv", ["a", "a"], np.zeros((2, 3)))
    pd.DataFrame({"name": ["a"], "0": [1.0]}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(EvaluationError, match="id,0,1"):
        neuco.read_embeddings(tmp_path / "b.csv")
    table = pd.DataFrame(np.zeros((30, 2), np.float32), index=[str(i) for i in range(30)])
    with pytest.raises(EvaluationError, match="TASK__KIND"):
        neuco.score(table, tmp_path)
    with pytest.raises(EvaluationError, match="kinds: "):
        neuco.write_labels(tmp_path, "x", "segmentation", ["a"], [1])
    neuco.write_labels(tmp_path, "x", "cls", table.index, np.arange(30) % 3)
    with pytest.raises(EvaluationError, match="nor _ at its end"):
        neuco.write_labels(tmp_path, "forest_", "classification", ["a"], [0])
    with pytest.raises(EvaluationError, match="2 names, 1 labels"):
        neuco.write_labels(tmp_path, "forest", "classification", ["a", "b"], [0])
    with pytest.raises(EvaluationError, match="3 different labels"):
        neuco.score(table, tmp_path)
