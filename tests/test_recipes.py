"""What pipelines rest on: results that survive a stop, and the score of a detector."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nec.evaluate.intervals import r2


@pytest.fixture(autouse=True)
def pipelines(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "pipelines")


def test_what_was_found_is_not_sought_again(tmp_path):
    from ledger import Ledger

    made = []

    def make(value):
        made.append(value)
        return {"found": np.array([value])}

    step = {"part": "p", "split": 1}
    with Ledger(tmp_path, {"steps": 3}).counting("p", 2) as _:
        pass
    for value in (1, 2):
        found = Ledger(tmp_path, {"steps": 3}).take(step, lambda v=value: make(v))
        assert found["found"].tolist() == [1]
    # Another setting or another step is another result; a failure leaves none.
    assert Ledger(tmp_path, {"steps": 4}).take(step, lambda: make(5))["found"].tolist() == [5]
    ledger = Ledger(tmp_path, {"steps": 3})
    with pytest.raises(ZeroDivisionError):
        ledger.take({**step, "split": 2}, lambda: {"found": np.array([1 / 0])})
    assert ledger.take({**step, "split": 2}, lambda: make(6))["found"].tolist() == [6]
    assert made == [1, 5, 6]


def test_average_precision_counts_what_is_never_found():
    from detect_trees import OVERLAP, Found, average_precision, matches, overlaps

    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30.0]])
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60], [20, 1, 30, 11.0]])
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert overlaps(boxes[[1]], truth)[0, 0] == pytest.approx(0.9)
    right = matches(Found(boxes, scores), truth)
    assert right.tolist() == [True, False, False, True]  # the second finds what was found
    # Precision 1 at the first hit, 2 of 4 at the second; the third crown counts 0.
    value = average_precision(right, scores, np.ones(4), len(truth))
    assert value == pytest.approx((1 + 0.5 + 0) / 3)
    assert average_precision(right & False, scores, np.ones(4), 3) == 0
    assert 0 < OVERLAP < 1


def test_the_share_of_labels_that_matches():
    from heads_bench.classification import matched

    points = [
        {"fraction": f, "difference": {"value": d}, "no_worse": n}
        for f, d, n in ((0.1, -0.2, False), (0.3, -0.004, True), (1.0, 0.02, True))
    ]
    assert matched(points) == {"reaches_at": 1.0, "no_worse_at": 0.3}
    assert matched(points[:1]) == {"reaches_at": None, "no_worse_at": None}


def test_bands_come_back_from_a_codec_of_pixels_and_tokens_tell_their_classes():
    from rate_bench.bands import BAND_CODECS
    from rate_bench.map_heads import Classes, Values

    y, x = np.mgrid[:64, :64] / 64
    band = (0.3 * y + 0.1 * np.sin(9 * x)).clip(0).astype(np.float32)
    band[:8, :8] = np.nan
    there = np.isfinite(band)
    codecs = {c.name: c for c in BAND_CODECS}
    for name in ("JPEG 2000", "half size, JPEG 2000"):
        errors, sizes = [], []
        for quality in codecs[name].ladder[:: len(codecs[name].ladder) - 1]:
            data = codecs[name].encode(band, quality)
            back = codecs[name].decode(data, band.shape)
            assert back.shape == band.shape
            errors.append(float(np.abs(back - band)[there].mean()))
            sizes.append(len(data))
        assert sizes[0] < sizes[1] < band.size
        assert errors[1] < min(errors[0], 0.01)

    # Classes are tested in blocks that trained nothing; what has none counts nowhere.
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 3, 600)
    vectors = np.eye(3, dtype=np.float32)[truth] + rng.normal(0, 0.1, (600, 3)).astype(np.float32)
    units = np.repeat(np.arange(30), 20)
    splits = [(units % 3 != fold, units % 3 == fold) for fold in range(3)]
    found = Classes(truth).tested(vectors, splits, units)
    assert found.shape == (30, 3, 3)
    assert found.sum() == (truth >= 0).sum()
    assert np.trace(found.sum(0)) == found.sum()
    assert 0 < np.trace(Classes(truth).guessed(splits, units).sum(0)) < found.sum()

    # Values alike: what has none counts nowhere.
    values = np.where(truth < 0, np.nan, 3.0 * truth)
    sums = Values(values).tested(vectors, splits, units)
    guess = Values(values).guessed(splits, units)
    assert sums[:, 0].sum() == guess[:, 0].sum() == (truth >= 0).sum()
    assert r2(sums.sum(0)) > 0.9
    assert r2(guess.sum(0)) < 0.1


def test_coders_give_back_every_vector_of_chunks_of_images_and_of_scenes():
    from codec_bench.baselines import PrincipalComponents
    from rate_bench.coders import Passage, plain, principal, stream

    from nec.compressor import Compressor

    rng = np.random.default_rng(3)
    tokens = np.cumsum(rng.normal(size=(5, 8, 8, 4)), axis=1) @ rng.normal(size=(4, 12))
    tokens = tokens.astype(np.float32)
    flat = tokens.reshape(-1, 12)
    compressor = Compressor.fit([*tokens], bytes_per_vector=2)
    components = PrincipalComponents.fit(flat)
    for coder in (
        stream(compressor, tokens[:1]),
        plain("float16"),
        principal(components, 4, packed=False),
    ):
        for values in (tokens, tokens[0]):
            back, size = Passage(coder).through(values)
            assert back.shape == values.shape
            errors = np.square(back - values).mean(axis=(-3, -2, -1))
            assert (errors < 0.1 * flat.var()).all()
            assert 0 < size < values.nbytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_counts_what_was_freed_and_not_what_was_there():
    # In a process of its own, as the benchmark does it: others hold memory that they let go.
    script = """
import numpy as np
from rate_bench.memory import peak_of

held = np.ones(25_000_000, np.float32)
found, peak = peak_of(lambda: float(np.ones(10_000_000, np.float32).sum()))
assert found == 1e7
assert 36 < peak < 80, peak  # 40 MB, gone by now; of the 100 MB before nothing
_, less = peak_of(held[:1000].sum)
assert less < 5, less
"""
    folder = Path(__file__).parents[1] / "pipelines"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_course_that_goes_on_takes_the_rates_and_the_steps_of_the_new_call(tmp_path):
    torch = pytest.importorskip("torch", reason="a course trains: pip install 'nec[encode]'")
    from argparse import Namespace

    from course import Course

    from nec.lowrank import LowRankTrainer, convert

    images = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    truth = images @ torch.randn(16, 16, generator=torch.Generator().manual_seed(1))

    def taken(steps, peak, stop_after=None):
        torch.manual_seed(0)
        objective = torch.nn.Module()
        objective.network = torch.nn.Sequential(torch.nn.Linear(16, 16))
        convert(objective.network, rank=4)
        optimizer = torch.optim.AdamW(
            [{"params": list(objective.parameters()), "weight_decay": 0.0, "peak": peak}], lr=peak
        )
        trainer = LowRankTrainer(objective, optimizer, tau=0.02, core_steps=3)
        course = Course(objective, [optimizer], steps, trainer)

        def step(_):
            course.take_step(lambda: {"loss": (objective.network(images) - truth).square().mean()})

        args = Namespace(batch=32, stop_after=stop_after, steps=steps, peak=peak)
        assert course.run(tmp_path / "checkpoint.pt", args, step) == (stop_after is None)
        return course

    first = taken(24, 1e-2)
    second = taken(60, 2e-2)
    assert second.step == 60
    assert [group["peak"] for o in second.optimizers for group in o.param_groups] == [2e-2]
    assert second.log[-1]["loss"] < first.log[-1]["loss"]

    # An end that is moved before the rates fall leaves no trace in the steps, so none in what a
    # card tells of them.
    taken(120, 2e-2, stop_after=2)
    third = taken(150, 2e-2)
    assert [(s["steps"], s["peak"]) for s in third.stages] == [
        ("24", "0.01"),
        ("60", "0.02"),
        ("150", "0.02"),
    ]
