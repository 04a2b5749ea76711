"""The reader of docs/ shares no code with the package: both must read the same from any chunk."""

import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec

import nec
from nec.codec import Coding, NecCodec
from nec.codec.chunk import decode_chunk, pack_chunk
from nec.codec.contexts import CLASSES, FLAG_CONTEXTS, MAGNITUDES, rings_of
from nec.codec.decisions import Decided, Transformed
from nec.codec.guarantee import decide_within
from nec.codec.tables import pack, quantise_frequencies

SCRIPT = Path(__file__).parents[1] / "docs" / "format_reader.py"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("format_reader", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_coding(rng: np.random.Generator, bands: int, block: int, **changes: object) -> Coding:
    """Return a coding of no sense: every parameter somewhere in its range."""
    octaves = block.bit_length()
    tables = rng.uniform(size=(5, MAGNITUDES)) ** rng.integers(1, 9, (5, 1))
    fields = {
        "block": block,
        "steps": pack(np.exp(rng.normal(size=bands)).astype(np.float32)),
        "offsets": tuple(rng.integers(-8, 9, 3).tolist()),
        "band_groups": (bands,),
        "octave_groups": (octaves,),
        "weights": pack(rng.integers(0, 64, (octaves, 8)).astype(np.uint8)),
        "flag_weights": pack(rng.integers(0, 64, (octaves, 7)).astype(np.uint8)),
        "level": pack(rng.integers(0, 140, (bands, rings_of(block) + 1)).astype(np.uint8)),
        "flag_level": pack(rng.integers(0, 140, (bands, octaves)).astype(np.uint8)),
        "mean": pack(rng.integers(-300, 300, bands).astype(np.int32)),
        "weight": pack(rng.integers(0, 17, bands).astype(np.uint8)),
        "flags": pack(rng.integers(1, 1 << 16, FLAG_CONTEXTS).astype(np.uint16)),
        "table_of": pack(np.append(rng.integers(0, 5, 2 * CLASSES - 1), 4).astype(np.uint8)),
        "tables": pack(quantise_frequencies(tables)),
    }
    return Coding(**fields | changes)


def random_values(
    rng: np.random.Generator, shape: tuple[int, int, int, int], missing: float = 0.2
) -> np.ndarray:
    """Return values that vary over scales, with areas and single tokens missing."""
    samples, _, height, width = shape
    parts = ((samples, 1, 1, 1), (1, *shape[1:2], 1, 1), (samples, 1, height, 1), (1, 1, 1, width))
    values = sum(10 * rng.normal(size=part) for part in (*parts, shape))
    values *= 10 ** rng.uniform(-1.5, 1.5, (samples, 1, height, width))
    gone = rng.uniform(size=(samples, height, width)) < missing / 2
    gone |= (np.arange(width) < missing * width) & (np.arange(height) > height / 3)[:, None]
    values[np.broadcast_to(gone[:, None], shape)] = np.nan
    return values.astype(np.float32)


def compare(reader: ModuleType, values: np.ndarray, coding: Coding) -> Decided:
    """Code values, read them by both, and return what the encoder decided."""
    transformed = Transformed(values, coding.block)
    guarded = coding.min_cosine > 0
    decided = decide_within(transformed, coding) if guarded else transformed.decide(coding)
    data = pack_chunk(decided, coding)
    plain = reader.Coding(coding.to_dict())
    chunk = reader.Chunk(data, plain, values.shape)
    valid = np.zeros_like(decided.valid)
    for token in chunk.valid:
        valid[token] = True
    assert np.array_equal(valid, decided.valid)
    symbols, edge = np.zeros_like(decided.symbols), decided.partition.edge
    refinement = np.zeros_like(decided.blocks.refinement)
    verbatim = np.zeros_like(decided.verbatim)
    boxes = np.zeros_like(decided.partition.box)
    for at, block in chunk.blocks.items():
        refinement[at], verbatim[at] = block.refinement, block.verbatim is not None
        boxes[at] = (block.y, block.y + block.height, block.x, block.x + block.width)
        for band, coefficients in enumerate(block.symbols):
            for (u, v), q in coefficients.items():
                symbols[(*at, band, u * edge + v)] = q
    assert np.array_equal(boxes, decided.partition.box)
    assert np.array_equal(verbatim, decided.verbatim)
    assert np.array_equal(refinement, np.where(verbatim, 0, decided.blocks.refinement))
    assert np.array_equal(symbols, decided.symbols)
    assert chunk.patches == {k: v.tolist() for k, v in decided.patches.items()}
    assert chunk.values() == decode_chunk(data, coding, values.shape).tobytes()
    return decided


SHAPES = {1: (2, 3, 7, 6), 4: (2, 3, 15, 13), 16: (2, 3, 21, 37), 64: (1, 2, 70, 23)}


@pytest.mark.parametrize("block", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_any_coding(reader: ModuleType, block: int, seed: int) -> None:
    rng = np.random.default_rng([block, seed])
    coding = random_coding(rng, SHAPES[block][1], block, lagrangian=0.05 * seed)
    compare(reader, random_values(rng, SHAPES[block]), coding)


@pytest.mark.parametrize("block", SHAPES)
def test_segments(reader: ModuleType, block: int) -> None:
    rng = np.random.default_rng(block)
    octaves = block.bit_length()
    groups = tuple(sorted({1, (octaves + 1) // 2, octaves}))
    coding = random_coding(rng, 5, block, octave_groups=groups, band_groups=(1, 3, 5))
    samples, _, height, width = SHAPES[block]
    compare(reader, random_values(rng, (samples, 5, height, width)), coding)
    # Nothing but zeros: every segment may be empty.
    compare(reader, np.zeros((1, 5, 9, 9), np.float32), coding)


@pytest.mark.parametrize("block", [4, 16, 64])
def test_refinements_and_patches(reader: ModuleType, block: int) -> None:
    rng = np.random.default_rng(block)
    shape = (1, 6, 66, 20) if block == 64 else (2, 6, 23, 17)
    coding = random_coding(
        rng,
        6,
        block,
        steps=pack(np.full(6, 4, np.float32)),
        min_cosine=0.97,
        lagrangian=0.1,
        band_groups=(2, 6),
    )
    values = random_values(rng, shape, 0.05) / 10
    values += 40 * np.arange(6, 0, -1, dtype=np.float32)[:, None, None]
    values[:, :, 12:, :9] /= 50
    values[0, :, 3, 4] *= -1
    decided = compare(reader, values, coding)
    assert decided.patches
    assert {0, 1} <= set((decided.blocks.refinement % 2).ravel().tolist())


@pytest.mark.parametrize("block", SHAPES)
def test_huge_values(reader: ModuleType, block: int) -> None:
    rng = np.random.default_rng(block)
    values = random_values(rng, SHAPES[block])
    values[0, :, 4:6] *= np.float32(1e35)
    values[-1, :, -1, -1] = 1e5
    decided = compare(reader, values, random_coding(rng, values.shape[1], block))
    assert decided.verbatim.any()


def test_large_coefficients_and_levels(reader: ModuleType) -> None:
    """Uniform low bits, long escapes, levels at the end of their range."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        coding = random_coding(
            rng,
            3,
            8,
            weights=pack(rng.integers(0, 256, (4, 8)).astype(np.uint8)),
            level=pack(rng.choice([0, 120, 247], (3, rings_of(8) + 1)).astype(np.uint8)),
            mean=pack(rng.choice([-(1 << 20), 7, 1 << 20], 3).astype(np.int32)),
            min_cosine=0.999 * (seed % 2),
        )
        values = random_values(rng, (1, 3, 20, 11))
        compare(reader, values * np.float32(10.0 ** rng.uniform(0, 4)), coding)


def test_lone_vectors_and_small_boxes(reader: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for block in (1, 64):
        compare(reader, random_values(rng, (40, 4, 1, 1)), random_coding(rng, 4, block))
    values = np.full((2, 3, 40, 40), np.nan, np.float32)
    values[0, :, 5, 7] = values[1, :, 30:33, 2] = 3
    values[0, :, 20:, 20:22] = rng.normal(size=(3, 20, 2))
    compare(reader, values, random_coding(rng, 3, 16))
    compare(reader, np.full((1, 3, 5, 5), np.nan, np.float32), random_coding(rng, 3, 4))


def with_codebook(rng: np.random.Generator, bands: int, codes: int, **changes: object) -> Coding:
    """Return a coding of no sense with a codebook of none."""
    counts = rng.integers(1, (1 << 15) // codes, codes)
    return random_coding(
        rng,
        bands,
        1,
        version=2,
        codebook=pack(rng.integers(-128, 128, (codes, bands)).astype(np.int8)),
        units=pack((10 ** rng.uniform(0, 5, bands)).astype(np.uint32)),
        counts=pack(counts.astype(np.uint16)),
        **changes,
    )


@pytest.mark.parametrize("codes", [1, 2, 7, 256])
def test_codebooks(reader: ModuleType, codes: int) -> None:
    rng = np.random.default_rng(codes)
    coding = with_codebook(rng, 5, codes, lagrangian=0.1, band_groups=(2, 5))
    decided = compare(reader, random_values(rng, (2, 5, 15, 13)), coding)
    assert decided.coded is not None
    assert codes == 1 or len(set(decided.coded.codes.tolist())) > 1
    values = random_values(rng, (60, 5, 1, 1), 0.5)
    assert np.isnan(values).any()
    compare(reader, values, coding)
    compare(reader, np.full((3, 5, 1, 1), np.nan, np.float32), coding)
    # Counts are halved, and halved again.
    compare(reader, np.repeat(values[~np.isnan(values).any((1, 2, 3))][:1], 2500, 0), coding)
    guarded = with_codebook(rng, 5, codes, min_cosine=0.98, lagrangian=0.1)
    values = random_values(rng, (1, 5, 12, 11), 0.05)
    values[0, :, 4:6] *= np.float32(1e35)
    decided = compare(reader, values, guarded)
    assert decided.verbatim.any()
    assert len(set((decided.blocks.refinement % 2).ravel().tolist())) == 2


def test_the_cosine_matrices(reader: ModuleType) -> None:
    import hashlib

    rows = [row for n in range(1, 65) for row in reader.cosines(n)]
    content = b"".join(struct.pack(f"<{len(row)}h", *row) for row in rows)
    digest = "86040e7e856dd03f6d72c13c03949bc20ebba52f6e6e8f2b6eab371ae8dd499d"
    assert hashlib.sha256(content).hexdigest() == digest
    assert digest in SCRIPT.with_name("format.md").read_text()


def test_damage_and_other_versions_are_refused(reader: ModuleType) -> None:
    rng = np.random.default_rng(0)
    coding = random_coding(rng, 3, 8)
    values = random_values(rng, (1, 3, 9, 9))
    data = pack_chunk(Transformed(values, 8).decide(coding), coding)
    plain = reader.Coding(coding.to_dict())
    for at in range(0, len(data), 7):
        broken = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises((ValueError, IndexError)):
            reader.Chunk(broken, plain, values.shape)
    with pytest.raises(ValueError, match="version"):
        reader.Coding(coding.to_dict() | {"version": 3})
    with pytest.raises((ValueError, KeyError)):
        reader.Coding(coding.to_dict() | {"version": 2})


def assembled(reader: ModuleType, store: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of a store as the reader reads it."""
    whole_shape, chunk_shape, codec, chunks = reader.open_array(store, name)
    assert tuple(whole_shape) == shape
    coding = reader.Coding(codec["configuration"])
    whole = np.full(shape, np.nan, np.float32)
    for first, data in chunks.items():
        content = reader.Chunk(data, coding, chunk_shape).values()
        part = np.frombuffer(content, "<f4").reshape(chunk_shape)
        target = whole[tuple(slice(f, f + c) for f, c in zip(first, chunk_shape, strict=True))]
        target[:] = part[tuple(slice(size) for size in target.shape)]
    return whole


def test_a_store(reader: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y, x = np.mgrid[:70, :50] / 40
    fields = [np.cos((1 + b) * y + b * x + b) / (1 + b) for b in range(5)]
    features = np.stack(fields, axis=-1).astype(np.float32)
    features[:4, :6] = np.nan
    source = xr.DataArray(
        features,
        dims=("y", "x", "band"),
        coords={"y": 5_700_000 - 10.0 * np.arange(70), "x": 400_000 + 10.0 * np.arange(50)},
    ).rio.write_crs("EPSG:32633")
    store = tmp_path / "s.zarr"
    nec.encode(source, store, model=nec.Compressor.fit(source, cosine=0.99))
    dataset = xr.open_zarr(store)
    for name in ("embedding", "scene_embedding"):
        expected = dataset[name].to_numpy()
        found = assembled(reader, store, name, expected.shape)
        assert np.isfinite(expected).any()
        assert np.array_equal(found, expected, equal_nan=True)
    reader.main(store)
    output = capsys.readouterr().out
    assert output.count("decodes to its values") == 2
    reader.main(store, "embedding")
    assert "scene" not in capsys.readouterr().out
    file = store / "embedding" / "c" / "0" / "0" / "0"
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    with pytest.raises(ValueError, match="checksum"):
        reader.main(store)


def test_an_array_of_single_vectors(reader: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = random_values(rng, (25, 4, 1, 1))[..., 0, 0]
    array = zarr.create_array(
        tmp_path / "a.zarr",
        name="v",
        shape=(25, 4),
        chunks=(4, 4),
        shards=(12, 4),
        dtype="float32",
        fill_value=float("nan"),
        serializer=NecCodec(random_coding(rng, 4, 4)),
        compressors=(Crc32cCodec(),),
    )
    array[:12], array[24:] = values[:12], values[24:]
    expected = np.asarray(array[:])
    assert np.isnan(expected[12:24]).all()
    found = assembled(reader, tmp_path / "a.zarr", "v", (25, 4))
    assert np.array_equal(found, expected, equal_nan=True)
