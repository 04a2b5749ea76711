"""The codec: every array comes back within its error, every damage is noticed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nec.codec import Coding, NecCodec
from nec.codec.chunk import decode_parts, encode_chunk
from nec.codec.clustering import fit_clusters
from nec.codec.container import PART_NAMES, take_apart
from nec.codec.fitting import fit_coding
from nec.codec.guarantee import cosines
from nec.codec.tables import cumulate, pack, quantise_frequencies
from nec.errors import ChunkError


def smooth_field(bands: int, height: int, width: int, samples: int = 1) -> np.ndarray:
    """Bands of falling power, smooth in space, as an embedding is."""
    rng = np.random.default_rng(bands * height + width)
    y, x = np.mgrid[:height, :width]
    out = np.empty((samples, bands, height, width), np.float32)
    for s in range(samples):
        for b in range(bands):
            phase, fy, fx = rng.uniform(0, 6.3), *rng.uniform(0, 0.3, 2)
            out[s, b] = np.sin(fy * y + fx * x + phase) + 0.2 * rng.normal(size=(height, width))
            out[s, b] *= 2.0 / (1 + b)
    out[:, 0] += 5
    return out


@pytest.fixture(scope="module", params=[64, 8, 1, "codebook"])
def codec(request: pytest.FixtureRequest) -> NecCodec:
    sample = smooth_field(4, 48, 40)
    steps = np.full(4, 0.1, np.float32)
    options = {"relative_steps": steps, "lagrangian": 0.1, "cosine": 0.999}
    if request.param == "codebook":
        coding, _ = fit_clusters([sample], 20, block=1, **options)
    else:
        coding, _ = fit_coding([sample], block=request.param, **options)
    return NecCodec(coding)


def any_array(samples: int, edge: int) -> st.SearchStrategy[np.ndarray]:
    """Arrays (sample, 4, y, x) of any finite values, mostly of one, with any missing."""
    shapes = st.tuples(
        st.integers(1, samples), st.just(4), st.integers(1, edge), st.integers(1, edge)
    )
    return shapes.flatmap(
        lambda shape: hnp.arrays(
            np.float32,
            shape,
            elements=st.floats(width=32, allow_infinity=False, allow_nan=True),
            fill=st.sampled_from([0.0, 1.5, np.nan, -3e4, 1e-30, 2.5e38]),
        )
    )


def worst_error(coding: Coding) -> np.ndarray:
    """A bound of the error of any value, for each band: every coefficient off by its most."""
    worst = 1.5  # a step off the nearest, and more where a whole tile is left out
    return coding.step_values * worst * coding.block


def test_round_trip_through_bytes_and_dict(codec: NecCodec) -> None:
    values = smooth_field(4, 45, 37)[0]
    values[:, 5:20, 30:] = np.nan
    values[2, 0, 0] = np.nan  # one component missing: the vector is missing
    again = NecCodec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert again == codec
    data = codec.encode_array(values)
    decoded = again.decode_array(data, values.shape)
    missing = np.isnan(values).any(0)
    assert np.array_equal(np.isnan(decoded), np.broadcast_to(missing, values.shape))
    valid = ~missing
    cosine = (values * decoded).sum(0)[valid] / (
        np.linalg.norm(values, axis=0)[valid] * np.linalg.norm(decoded, axis=0)[valid]
    )
    assert cosine.mean() > 0.998
    assert len(data) < values.size


@settings(deadline=None, max_examples=60)
@given(any_array(samples=3, edge=35))
def test_any_array_comes_back_within_its_error(codec: NecCodec, values: np.ndarray) -> None:
    decoded = codec.decode_array(codec.encode_array(values), values.shape)
    missing = np.isnan(values).any(axis=1)
    assert np.array_equal(np.isnan(decoded).any(axis=1), missing)
    assert np.array_equal(np.isnan(decoded).all(axis=1), missing)
    valid = np.broadcast_to(~missing[:, None], values.shape)
    error = np.abs(decoded.astype(np.float64) - values)
    # Beside the steps: rounding of float32, and of the 13-bit matrix, to the block's largest.
    largest = np.abs(np.where(valid, values, 0)).max(initial=0)
    allowed = worst_error(codec.coding)[None, :, None, None] + 4e-3 * min(
        largest, float(codec.coding.step_values.max()) * 2**20
    )
    assert (error <= allowed)[valid].all()


def test_infinities_are_refused(codec: NecCodec) -> None:
    values = np.ones((4, 16, 16), np.float32)
    values[1, 2, 3] = np.inf
    with pytest.raises(ChunkError, match="infinities"):
        codec.encode_array(values)


def test_collections_and_single_vectors(codec: NecCodec) -> None:
    for shape in ((7, 4, 16, 16), (50, 4)):
        values = np.broadcast_to(
            smooth_field(4, 16, 16, 50)[: shape[0]].mean((2, 3)).reshape(shape[0], 4, *[1] * 2),
            (shape[0], 4, 16, 16),
        )
        values = values.mean((2, 3)) if len(shape) == 2 else values
        decoded = codec.decode_array(codec.encode_array(values.copy()), shape)
        assert np.abs(decoded - values).max() < worst_error(codec.coding).max()


def test_every_flipped_bit_and_truncation_is_noticed() -> None:
    sample = smooth_field(3, 24, 20)
    sample[0, :, 3:9, :4] = np.nan
    steps = np.full(3, 0.3, np.float32)
    coding, _ = fit_coding([sample], relative_steps=steps, block=16, lagrangian=0.1, cosine=0.97)
    coding = replace(coding, min_cosine=0.9, octave_groups=(2, 5), band_groups=(1, 3))
    sample[0, :, 20:] *= 1e9  # verbatim
    data = encode_chunk(sample, coding)
    codec = NecCodec(coding)
    for cut in range(len(data)):
        with pytest.raises(ChunkError):
            codec.decode_array(data[:cut], sample.shape)
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChunkError):
            codec.decode_array(bytes(broken), sample.shape)


def test_segments_that_do_not_decode_are_named(codec: NecCodec) -> None:
    # Past the checksums, as where a chunk was written wrongly.
    values = smooth_field(4, 48, 40)
    parts = take_apart(memoryview(encode_chunk(values, codec.coding)), codec.coding)
    first = len(PART_NAMES)
    segments = [n for n in parts if n >= first and len(parts[n]) > 8]
    assert segments
    for n in segments:
        broken = {**parts, n: parts[n][:-4]}
        with pytest.raises(ChunkError, match=rf"segment {n - first} does not decode"):
            decode_parts(broken, codec.coding, values.shape)


def test_coarser_segments_decode_by_themselves() -> None:
    values = smooth_field(6, 64, 64)
    values[0, :, 10:14, 50:] = np.nan
    coding, _ = fit_coding(
        [values],
        relative_steps=np.full(6, 0.1, np.float32),
        block=32,
        lagrangian=0.1,
        cosine=0.9999,
    )
    coding = replace(coding, octave_groups=(1, 3, 6), band_groups=(2, 6))
    parts = take_apart(memoryview(encode_chunk(values, coding)), coding)
    whole = decode_parts(parts, coding, values.shape)
    first = len(PART_NAMES)
    few = {n: p for n, p in parts.items() if n < first or (n - first) % 2 == 0}
    assert np.array_equal(decode_parts(few, coding, (1, 2, 64, 64)), whole[:, :2], equal_nan=True)
    # Without the highest octaves, the means of cells are nearly the same.
    low = {n: p for n, p in parts.items() if n < first + 4}
    smooth = decode_parts(low, coding, values.shape)
    assert not np.array_equal(smooth, whole, equal_nan=True)
    cells = [v[0, :, 32:].reshape(6, 4, 8, 8, 8).mean((2, 4)) for v in (smooth, whole)]
    assert np.abs(cells[0] - cells[1]).max() < 0.2


@settings(deadline=None, max_examples=40)
@given(
    any_array(samples=2, edge=20),
    st.floats(0.5, 0.99999),
)
def test_the_smallest_cosine_is_kept(
    codec: NecCodec, values: np.ndarray, min_cosine: float
) -> None:
    guarded = NecCodec(replace(codec.coding, min_cosine=min_cosine))
    decoded = guarded.decode_array(guarded.encode_array(values), values.shape)
    valid = ~np.isnan(values).any(axis=1)
    cosine = cosines(np.moveaxis(values, 1, -1)[valid], np.moveaxis(decoded, 1, -1)[valid])
    assert (cosine >= min_cosine).all()


def test_faint_blocks_and_small_boxes_beside_strong_ones(codec: NecCodec) -> None:
    guarded = NecCodec(replace(codec.coding, min_cosine=0.95))
    values = smooth_field(4, 128, 64)
    values[:, :, 64:] = 1e-5 * np.random.default_rng(0).normal(size=(1, 4, 64, 64))
    decoded = guarded.decode_array(guarded.encode_array(values), values.shape)
    assert cosines(np.moveaxis(values, 1, -1), np.moveaxis(decoded, 1, -1)).min() >= 0.95
    lone = np.full((1, 4, 8, 16), np.nan, np.float32)
    lone[..., :8] = 1
    lone[..., 3, 12] = 5e5 * codec.coding.step_values
    decoded = codec.decode_array(codec.encode_array(lone), lone.shape)
    assert np.nanmax(np.abs(decoded - lone)) < 4e-3 * np.nanmax(lone)
    many = np.full((300, 4, 1, 1), 1.04e6, np.float32) * codec.coding.step_values[:, None, None]
    many[-1] *= 1e-11
    decoded = guarded.decode_array(guarded.encode_array(many), many.shape)
    assert cosines(many[..., 0, 0], decoded[..., 0, 0]).min() >= 0.95


def test_a_guarantee_costs_little_where_few_vectors_are_bad() -> None:
    values = smooth_field(8, 64, 64)
    values += np.random.default_rng(0).normal(0, 0.3, values.shape).astype(np.float32)
    values[0, :, 30, 7] *= -1
    coding, measured = fit_coding(
        [values],
        relative_steps=np.full(8, 0.1, np.float32),
        block=64,
        lagrangian=0.1,
        cosine=0.995,
    )
    guarded = replace(coding, min_cosine=0.98)
    plain, kept = encode_chunk(values, coding), encode_chunk(values, guarded)
    assert measured["cosine_min"] < 0.98
    assert len(plain) < len(kept) < 1.3 * len(plain)


def test_configuration_refuses_what_it_does_not_know(codec: NecCodec) -> None:
    configuration = codec.to_dict()["configuration"]
    assert len(json.dumps(configuration)) < 16 * 1024
    for change in (
        {"version": 99},
        {"surprise": 1},
        {"tables": "AAAA"},
        {"flags": "?"},
        {"steps": pack(np.array([0.1, -1.0, 0.1, 0.1], np.float32))},
        {"block": 7},
        {"band_groups": [3]},
        {"octave_groups": [2, 1]},
        {"times": 4},
    ):
        with pytest.raises(ChunkError):
            NecCodec.from_dict({"name": "nec", "configuration": configuration | change})


@given(hnp.arrays(np.float64, (3, 16), elements=st.floats(0, 1e9)))
def test_frequencies_sum_and_never_vanish(weights: np.ndarray) -> None:
    frequency = quantise_frequencies(weights)
    assert (frequency > 0).all()
    assert (cumulate(frequency)[:, -1] == 1 << 16).all()


def test_a_table_that_does_not_sum_is_refused() -> None:
    frequency = quantise_frequencies(np.ones((2, 16)))
    frequency[1, 3] += 1
    with pytest.raises(ChunkError, match="table 1 sums"):
        cumulate(frequency)


def test_sparse_spikes_under_tables_of_rough_data() -> None:
    rng = np.random.default_rng(0)
    rough = rng.normal(0, 40, (1, 2, 64, 64)).astype(np.float32)
    steps = np.full(2, 0.25, np.float32)
    coding, _ = fit_coding(
        [rough], relative_steps=steps, block=16, lagrangian=0.0, bytes_per_vector=2.0
    )
    y, x = np.mgrid[:64, :64]
    spikes = (20 * np.cos(np.pi * (2 * (x % 16) + 1) * 9 / 32) * np.ones_like(y))[None, None]
    spikes = np.repeat(spikes, 2, axis=1).astype(np.float32)
    codec = NecCodec(coding)
    decoded = codec.decode_array(codec.encode_array(spikes), spikes.shape)
    assert np.abs(decoded - spikes).max() < worst_error(coding).max()
