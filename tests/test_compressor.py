"""The compressor: hits its target, keeps products, survives a file."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from nec.codec.tables import pack
from nec.compressor import Compressor
from nec.errors import ChunkError, CompressorError


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """Smooth features of rank 5 and a little noise, (y, x, feature)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96] / 96
    maps = [np.ones_like(y), y, x, np.sin(9 * y + 5 * x), (y > 0.4) & (x < 0.6)]
    mix = rng.normal(size=(5, 12)) * np.array([4, 2, 2, 1, 1])[:, None]
    values = np.stack(maps, -1) @ mix + 0.05 * rng.normal(size=(96, 96, 12))
    values[:10, :30] = np.nan
    return values.astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_basis_is_orthonormal_and_ordered(features: np.ndarray) -> None:
    compressor = Compressor.fit(features, cosine=0.99)
    basis = compressor.basis.astype(np.float64)
    assert np.abs(basis.T @ basis - np.eye(12)).max() < 1e-6
    power = np.nanmean((features @ basis) ** 2, axis=(0, 1))
    assert (np.diff(power) <= 1e-6).all()


@pytest.mark.parametrize("target", [0.99, 0.9995])
def test_hits_a_cosine(features: np.ndarray, target: float) -> None:
    compressor = Compressor.fit(features, cosine=target)
    decoded = compressor.decode(compressor.encode(features))[0]
    measured = cosine(features, decoded)
    assert np.array_equal(np.isnan(decoded), np.isnan(features))
    assert np.nanmean(measured) == pytest.approx(target, abs=(1 - target) * 0.02)
    assert np.nanmin(measured) == pytest.approx(compressor.fidelity.cosine_min, abs=1e-4)


def test_hits_a_size(features: np.ndarray) -> None:
    compressor = Compressor.fit(features, bytes_per_vector=1.0)
    size = len(compressor.encode(features)) / np.isfinite(features[..., 0]).sum()
    assert size == pytest.approx(1.0, rel=0.02)


def test_save_and_load(features: np.ndarray, tmp_path: Path) -> None:
    compressor = Compressor.fit(features, cosine=0.99)
    compressor.save(tmp_path / "c.json")
    again = Compressor.load(tmp_path / "c.json")
    assert again.digest == compressor.digest
    assert again.encode(features) == compressor.encode(features)
    other = Compressor.fit(features, cosine=0.95)
    with pytest.raises(ChunkError, match="another store"):
        other.decode(compressor.encode(features))


def test_damaged_bytes_and_files_are_told(features: np.ndarray, tmp_path: Path) -> None:
    compressor = Compressor.fit(features, cosine=0.99)
    data = compressor.encode(np.full((2, 48, 32, 12), np.nan, np.float32))
    assert compressor.decode(data).shape == (2, 48, 32, 12)
    for at in range(16):
        for bit in range(8):
            damaged = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            with pytest.raises(ChunkError, match="no shape"):
                compressor.decode(damaged)
    path = tmp_path / "c.json"
    compressor.save(path)
    told = json.loads(path.read_text())
    narrow = Compressor.fit(features[..., :4], cosine=0.9).to_dict()
    unknown = {"shape": [12, 12], "float32": pack(np.full((12, 12), np.nan, "f4"))}
    for key, value, message in (
        ("nec_compressor", 99, "version 99"),
        ("scene_coding", narrow["coding"], "of other bands"),
        ("fidelity", {}, "not a compressor"),
        ("basis", unknown, "orthonormal"),
    ):
        path.write_text(json.dumps(told | {key: value}))
        with pytest.raises(CompressorError, match=message):
            Compressor.load(path)
    with pytest.raises(CompressorError, match="5 and 12 features"):
        compressor.measure(features[..., :5])


def test_rates_of_one_basis_share_its_name(features: np.ndarray) -> None:
    fine = Compressor.fit(features, cosine=0.999)
    coarse = Compressor.fit(features, cosine=0.95, basis=fine.basis)
    assert coarse.basis_hash == fine.basis_hash
    assert coarse.digest != fine.digest


def test_errors_say_what_to_do(features: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CompressorError, match="give one of them"):
        Compressor.fit(features)
    with pytest.raises(CompressorError, match="valid vector"):
        Compressor.fit(np.full((8, 8, 3), np.nan), cosine=0.9)
    with pytest.raises(CompressorError, match="ask for less"):
        Compressor.fit(features, cosine=1.0)
    (tmp_path / "no.json").write_text("{}")
    skewed = np.eye(12, dtype="f4") + 0.1
    with pytest.raises(CompressorError, match="not orthonormal"):
        Compressor.fit(features, cosine=0.99, basis=skewed)
    with pytest.raises(CompressorError, match="features are infinite"):
        Compressor.fit(features, cosine=0.99).encode(np.full((1, 4, 4, 12), np.inf, np.float32))
    for wrong in ({"block": 3}, {"whitening": np.nan}, {"lagrangian": -1}, {"falloff": 0.5}):
        with pytest.raises(CompressorError, match=str(next(iter(wrong.values())))):
            Compressor.fit(features, cosine=0.99, **wrong)
    with pytest.raises(CompressorError, match="no valid vector"):
        Compressor.fit(features, cosine=0.99, scenes=np.full((3, 12), np.nan))
    with pytest.raises(CompressorError, match="not a compressor"):
        Compressor.load(tmp_path / "no.json")


def test_fewer_components_and_given_steps(features: np.ndarray) -> None:
    whole = Compressor.fit(features, cosine=0.99)
    steps = np.array([1, 2, 4, 4], np.float32)
    part = Compressor.fit(features, cosine=0.99, basis=whole.basis[:, :4], relative_steps=steps)
    np.testing.assert_allclose(part.coding.step_values / part.coding.step_values[0], steps)
    decoded = part.decode(part.encode(features))[0]
    measured = cosine(features, decoded)
    # On features: what lies outside of the basis counts as lost.
    assert np.nanmean(measured) == pytest.approx(part.fidelity.cosine_mean, abs=1e-5)
    assert np.nanmean(measured) == pytest.approx(0.99, abs=5e-4)
    assert part.measure(features).cosine_min == pytest.approx(np.nanmin(measured), abs=1e-4)
    with pytest.raises(CompressorError, match="as many bands as features"):
        part.guarded(0.9)
    with pytest.raises(CompressorError, match="as many bands as there are"):
        Compressor.fit(features, cosine=0.99, basis=whole.basis[:, :4], min_cosine=0.9)
    with pytest.raises(CompressorError, match="one step for each"):
        Compressor.fit(features, cosine=0.99, relative_steps=steps)


def test_falloff_gives_bytes_to_the_whole_and_stays_out_of_the_store(tmp_path):
    rng = np.random.default_rng(5)
    sample = rng.normal(size=(40, 16, 16, 8)) + 2 * rng.normal(size=(40, 1, 1, 8))
    plain, whole = (
        Compressor.fit(sample, bytes_per_vector=0.1, falloff=falloff) for falloff in (1.0, 2.5)
    )

    def missed(compressor):
        decoded = compressor.decode(compressor.encode(sample))
        return np.square(decoded.mean((1, 2)) - sample.mean((1, 2))).mean()

    assert missed(whole) < 0.7 * missed(plain)
    assert whole.coding.digest != plain.coding.digest
    assert "falloff" not in whole.coding.to_dict()
    whole.save(tmp_path / "whole.json")
    again = Compressor.load(tmp_path / "whole.json")
    assert again.digest == whole.digest
    assert again.encode(sample) == whole.encode(sample)


def of_kinds(count: int, seed: int) -> np.ndarray:
    """Lone vectors (n, 8): those of 30 kinds, with a little beside."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(30, 8))
    vectors = centres[rng.integers(30, size=count)] + 0.1 * rng.normal(size=(count, 8))
    return vectors.astype(np.float32)


def test_a_codebook_for_vectors_of_kinds() -> None:
    sample, later = of_kinds(1200, 1), of_kinds(500, 2)
    plain = Compressor.fit(sample, bytes_per_vector=1.5)
    kinds = Compressor.fit(sample, bytes_per_vector=1.5, codebook="auto")
    assert (plain.format_version, kinds.format_version) == (1, 2)
    found = {c.format_version: c.measure(later) for c in (plain, kinds)}
    assert 1 - found[2].cosine_mean < 0.3 * (1 - found[1].cosine_mean)
    assert found[2].bytes_per_vector < 1.05 * found[1].bytes_per_vector
    # What was said of the sample holds for others: clusters were of other parts of it.
    assert found[2].bytes_per_vector == pytest.approx(kinds.fidelity.bytes_per_vector, rel=0.1)
    assert 1 - found[2].cosine_mean == pytest.approx(1 - kinds.fidelity.cosine_mean, rel=0.1)
    decoded = kinds.decode(kinds.encode(later))[:, 0, 0]
    cosine = (later * decoded).sum(1) / np.linalg.norm(later, axis=1)
    cosine /= np.linalg.norm(decoded, axis=1)
    assert cosine.mean() == pytest.approx(found[2].cosine_mean, abs=1e-5)
    guarded = kinds.guarded(0.98)
    assert guarded.measure(later).cosine_min >= 0.98


def test_a_codebook_is_left_out_where_it_does_not_pay() -> None:
    rng = np.random.default_rng(0)
    shapeless = rng.normal(size=(900, 2)).astype(np.float32) * np.float32([4, 1])
    chosen = Compressor.fit(shapeless, cosine=0.99999, codebook="auto")
    assert chosen.format_version == 1
    none = Compressor.fit(shapeless, cosine=0.99999)
    size = chosen.fidelity.bytes_per_vector
    assert size <= none.fidelity.bytes_per_vector * 1.01


def test_codes_alone() -> None:
    sample, later = of_kinds(1200, 1), of_kinds(500, 2)
    alone = Compressor.fit(sample, codebook=30)
    decoded = alone.decode(alone.encode(later))[:, 0, 0]
    assert len(np.unique(decoded, axis=0)) <= 30
    found = alone.measure(later)
    # A kind of 30 takes about 5 bits.
    assert found.bytes_per_vector < 0.7
    assert found.cosine_mean > 0.98
    # What is like nothing in the sample takes no more.
    strange = alone.measure(np.random.default_rng(0).normal(size=(500, 8)))
    assert strange.bytes_per_vector < 0.8


def test_codebooks_say_what_is_wrong(features: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    lone = of_kinds(50, 0)
    with pytest.raises(CompressorError, match="cannot be fitted to 50 vectors"):
        Compressor.fit(lone, bytes_per_vector=2, codebook=30)
    with pytest.raises(CompressorError, match="no size of a codebook"):
        Compressor.fit(lone, bytes_per_vector=2, codebook="large")
    for codebook in (0, "auto"):
        with pytest.raises(CompressorError, match="one of them"):
            Compressor.fit(lone, codebook=codebook)
    with pytest.raises(CompressorError, match="one of them"):
        Compressor.fit(lone, bytes_per_vector=2, cosine=0.9, codebook=4)
    with pytest.raises(CompressorError, match="vectors alone"):
        Compressor.fit(features, bytes_per_vector=2, codebook=4, block=8)
    with pytest.raises(CompressorError, match="distinct"):
        Compressor.fit(np.repeat(lone[:3], 20, 0), bytes_per_vector=2, codebook=8)
    part = np.eye(8, dtype=np.float32)[:, :3]
    with pytest.raises(CompressorError, match="part of the features"):
        Compressor.fit(lone, basis=part, bytes_per_vector=2, codebook=4, min_cosine=0.9)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    for codebook in (4, "auto"):
        with pytest.raises(CompressorError, match=r"nec\[heads\]"):
            Compressor.fit(lone, bytes_per_vector=2, codebook=codebook)
