"""Subsets of a store: the same values, checked, for fewer bytes and few requests."""

import contextlib
import functools
import http.server
import itertools
import pickle
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import rioxarray  # noqa: F401
from affine import Affine
from odc.geo.geobox import GeoBox
from test_archive import Plain, Ranges, flip

import nec
from nec.archive import Layout, StoreWriter, Task, TokenGrid, open_store, seal, verify
from nec.archive.shard import chunks_of
from nec.codec import Coding, NecCodec
from nec.codec.chunk import decode_parts
from nec.codec.container import PART_NAMES, PATCHES, read_head, take_apart
from nec.compressor import Compressor
from nec.errors import StoreError

BANDS, BLOCK = 20, 32
# 2 x 2 shards of 2 x 2 chunks, the last of them cut, after margins of the pixels' lattice.
BOX = GeoBox((800, 840), Affine(10.0, 0, 500_120.0, 0, -10.0, 5_699_800.0), "EPSG:32633")
GRID = TokenGrid.around(BOX, patch=4, chunk=64, shard=128, cell=16)

LAYOUT = Layout.of_scene(GRID, bands=BANDS, time=np.datetime64("2021-08-02"))
ARRAY = next(iter(LAYOUT.arrays()))


def field(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Bands (band, y, x) of falling power, smooth with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    maps = [
        (np.sin(y * a + x * b + c) + 0.3 * rng.normal(size=y.shape)) * 4 / (1 + i) ** 0.7
        for i, (a, b, c) in enumerate(rng.uniform(0, 0.4, (BANDS, 3)))
    ]
    maps[0] += 6
    return np.stack(maps).astype(np.float32)


@pytest.fixture(scope="module")
def codecs() -> tuple[NecCodec, NecCodec]:
    fitted = Compressor.fit(
        field(96, 96, seed=1).transpose(1, 2, 0),
        cosine=0.995,
        basis=np.eye(BANDS, dtype="f4"),
        block=BLOCK,
        min_cosine=0.98,
    )
    coding = replace(fitted.coding, octave_groups=(1, 2, 3, 4, 6), band_groups=(4, 12, BANDS))
    return NecCodec(coding), NecCodec(fitted.scene_coding)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """The whole embedding, (band, y, x): margins, a hole, tokens far from all others."""
    full = field(*GRID.shape)
    row, column = (-(-offset // 4) for offset in GRID.scene_offset)
    full[:, :row] = np.nan
    full[:, :, :column] = np.nan
    full[:, 100:123, 60:75] = np.nan
    full[:, 160, 30:60:9] = 1e9  # too large for the steps, so verbatim
    return full


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory,
    values: np.ndarray,
    codecs: tuple[NecCodec, NecCodec],
) -> Path:
    path = tmp_path_factory.mktemp("subset") / "s.zarr"
    writer = StoreWriter.create_or_resume(
        path,
        LAYOUT,
        codec=codecs[0],
        scene_codec=codecs[1],
        attributes={"nec": {"model": "toy"}},
        basis=np.linalg.qr(np.random.default_rng(2).normal(size=(BANDS, BANDS)))[0].astype("f4"),
        fingerprint="a" * 64,
    )
    for task in writer.pending():
        tokens = values[:, GRID.task_rows(task), GRID.task_columns(task)]
        scene = tokens[:, 8::16, 8::16]
        writer.write(task, None if task == Task(0, 1) else tokens, np.ascontiguousarray(scene))
    writer.finish()
    seal(path)
    return path


@pytest.fixture
def own(store: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be damaged."""
    return Path(shutil.copytree(store, tmp_path / store.name))


def low_octaves(store: Path, codec: NecCodec, overview: int) -> np.ndarray:
    """The embedding (band, y, x) decoded from what an overview is made of, chunk by chunk."""
    coding = codec.coding
    out = np.full((BANDS, *(128 * n for n in ARRAY.objects[2:])), np.nan, np.float32)
    lowest = {
        len(PART_NAMES) + i
        for i, s in enumerate(coding.segments)
        if s.first_octave == 0 or 2**s.first_octave <= coding.block / overview
    }
    for task in ARRAY.tasks():
        file = store / "embedding/c/0/0" / str(task.row) / str(task.column)
        if not file.exists():
            continue
        for (_, _, r, c), data in chunks_of(ARRAY, file.read_bytes()):
            assert data is not None
            parts = take_apart(memoryview(data), coding)
            kept = {n: p for n, p in parts.items() if n < PATCHES or n in lowest}
            y, x = 128 * task.row + 64 * r, 128 * task.column + 64 * c
            decoded = decode_parts(kept, coding, (1, BANDS, 64, 64))
            out[:, y : y + 64, x : x + 64] = decoded[0]
    return out[:, : GRID.shape[0], : GRID.shape[1]]


def cell_means(values: np.ndarray, edge: int) -> np.ndarray:
    rows, columns = (-(-size // edge) for size in values.shape[1:])
    out = np.full((len(values), rows, columns), np.nan, np.float32)
    for r, c in itertools.product(range(rows), range(columns)):
        cell = values[:, r * edge : (r + 1) * edge, c * edge : (c + 1) * edge].reshape(BANDS, -1)
        cell = cell[:, ~np.isnan(cell[0])].astype(np.float64)
        if cell.size:
            out[:, r, c] = cell.mean(1)
    return out


def bits(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("bands", [1, 4, 5, 13, BANDS])
def test_first_bands_are_those_of_the_whole(store: Path, bands: int) -> None:
    whole = open_store(store)
    some = nec.open(store, bands=bands)
    np.testing.assert_array_equal(bits(some.embedding), bits(whole.embedding[:, :bands]))
    for thing in (some, *some.data_vars.values()):
        assert thing.attrs.pop("geoemb:dimensions") == bands
    first = whole.isel(band=slice(bands))
    for thing in (first, *first.data_vars.values()):
        thing.attrs.pop("geoemb:dimensions")
    assert some.load().identical(first.load())


def test_overview_of_one_is_the_whole(store: Path) -> None:
    whole, same = open_store(store), open_store(store, overview=1)
    assert same.load().identical(whole.load())
    np.testing.assert_array_equal(bits(same.embedding), bits(whole.embedding))


@pytest.mark.parametrize("overview", [2, 4, 8, 16, 32, 64])
def test_overviews_are_means_of_the_low_octaves(
    store: Path, codecs: tuple[NecCodec, NecCodec], overview: int
) -> None:
    expected = cell_means(low_octaves(store, codecs[0], overview), overview)
    found = open_store(store, overview=overview)
    assert found.embedding.dims == ("time", "band", "y", "x")
    np.testing.assert_allclose(found.embedding[0], expected, rtol=1e-6, atol=1e-9)
    # Missing where all of a cell is, as in the whole.
    whole = cell_means(open_store(store).embedding[0].to_numpy(), overview)
    np.testing.assert_array_equal(np.isnan(found.embedding[0]), np.isnan(whole))
    assert np.isnan(whole[0]).any()
    # And near to the means of all octaves.
    regular = np.isfinite(whole) & (np.abs(whole) < 1e3)
    assert np.corrcoef(found.embedding[0].to_numpy()[regular], whole[regular])[0, 1] > 0.9
    both = open_store(store, overview=overview, bands=5)
    np.testing.assert_array_equal(bits(both.embedding), bits(found.embedding[:, :5]))


def test_parts_of_a_subset_are_read_alone(store: Path) -> None:
    for options in ({"bands": 13}, {"overview": 4}):
        lazy = open_store(store, **options).embedding
        loaded = lazy.to_numpy()
        for part in (
            np.s_[0, 3:9, 11:50, 7],
            np.s_[:, ::-2, 40:3:-3, -1],
            np.s_[0, 2, 5:5, :],
            np.s_[:, :, [30, 2, 9], :],
        ):
            np.testing.assert_array_equal(
                lazy.isel(dict(zip(lazy.dims, part, strict=True))), loaded[part]
            )


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
@pytest.mark.parametrize("overview", [4, 64])
def test_coordinates_and_transform(store: Path, overview: int) -> None:
    whole, coarse = open_store(store), open_store(store, overview=overview)
    left, dx, _, top, _, dy = GRID.transform
    expected = Affine(dx * overview, 0, left, 0, dy * overview, top)
    for thing in (coarse, coarse.embedding):
        assert thing.rio.crs.to_epsg() == 32633
        assert thing.rio.transform().almost_equals(expected, 1e-6)
    moved = coarse.isel(x=slice(1, None)).rio.transform()
    assert moved.c == pytest.approx(left + dx * overview)
    for name in ("y", "x"):
        tokens = whole[name].to_numpy()
        centres = tokens[: len(tokens) // overview * overview].reshape(-1, overview).mean(1)
        np.testing.assert_allclose(coarse[name][: len(centres)], centres)
        assert coarse[name].attrs["standard_name"] == whole[name].attrs["standard_name"]
        assert len(coarse[name]) == -(-len(tokens) // overview)
    assert coarse.attrs["nec"] == whole.attrs["nec"]
    assert coarse.scene_embedding.load().identical(
        whole.scene_embedding.load().assign_coords(spatial_ref=coarse.spatial_ref)
    )
    assert coarse.attrs["spatial:transform"][2] == left
    again = pickle.loads(pickle.dumps(coarse))
    assert again.load().identical(coarse.load())


def test_features_of_the_first_bands(store: Path) -> None:
    some = open_store(store, bands=5)
    rows = some.nec.basis[:5]
    expected = np.einsum("tbyx,bf->tfyx", some.embedding.to_numpy(), rows)
    np.testing.assert_allclose(some.nec.features(), expected, rtol=1e-4, atol=1e-4)


def counted(store: Path | str, **options: Any) -> tuple[int, int]:
    """Requests and bytes of reading the embedding, beyond those of opening the store."""
    dataset = open_store(store, **options)
    traffic = dataset.nec.traffic
    before = traffic.requests, traffic.bytes
    assert min(before) > 0
    with dask.config.set(scheduler="synchronous"):
        dataset.embedding.load()
    return traffic.requests - before[0], traffic.bytes - before[1]


def test_fewer_bytes_and_few_requests(store: Path) -> None:
    requests, everything = counted(store)
    files = list(store.glob("embedding/c/0/0/*/*"))
    chunks = sum(len(list(chunks_of(ARRAY, f.read_bytes()))) for f in files)
    counts = {}
    for name, options in {
        "bands": {"bands": 4},
        "overview": {"overview": 4},
        "both": {"overview": 8, "bands": 4},
    }.items():
        counts[name] = counted(store, **options)
        # The index of each shard, and its chunks each in few requests.
        assert counts[name][0] <= requests + chunks * 3
    assert counts["bands"][1] < 0.8 * everything
    assert counts["overview"][1] < 0.4 * everything
    assert counts["both"][1] < 0.3 * everything
    # Everything, by ranges: what lies side by side comes in one request.
    same = counted(store, overview=1)
    assert same[0] <= 2 * requests + chunks
    assert same[1] <= 1.01 * everything


def damages(store: Path, coding: Coding, key: str) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """For each part of each chunk of a shard: its number, the chunk, the place of a byte."""
    data = (store / key).read_bytes()
    for index, chunk in chunks_of(ARRAY, data):
        assert chunk is not None
        start = data.index(chunk)
        head = read_head(chunk, coding)
        assert head is not None
        for part, (first, last) in head.spans.items():
            if first < last:
                yield part, index, start + (first + last) // 2


def test_damage_is_an_error_where_it_is_needed(
    own: Path, codecs: tuple[NecCodec, NecCodec]
) -> None:
    coding, key = codecs[0].coding, "embedding/c/0/0/1/0"
    whole = {options: read(own, *options) for options in ((4, 1), (20, 8), (4, 8))}
    seen = set()
    for part, index, position in damages(own, coding, key):
        flip(own / key, position)
        for (bands, overview), intact in whole.items():
            if part < len(PART_NAMES):
                needed = part != PATCHES or overview == 1
            else:
                segment = coding.segments[part - len(PART_NAMES)]
                needed = segment.first_plane < bands and (
                    2**segment.first_octave <= coding.block // overview
                )
            seen.add((part < len(PART_NAMES), needed))
            if needed:
                where = rf"{key} \(shard of embedding\) of .*s\.zarr is damaged: chunk "
                with pytest.raises(StoreError, match=where) as raised:
                    read(own, bands, overview)
                assert f"chunk {index} of the shard" in str(raised.value)
                assert "does not match its checksum" in str(raised.value)
            else:
                np.testing.assert_array_equal(read(own, bands, overview), intact)
        flip(own / key, position)
    assert seen == set(itertools.product((False, True), repeat=2))
    assert verify(own).ok


def read(store: Path, bands: int, overview: int) -> np.ndarray:
    dataset = open_store(store, bands=bands, overview=overview)
    with dask.config.set(scheduler="synchronous"):
        return bits(dataset.embedding)


@pytest.mark.parametrize("shard", [(1, 0), (1, 1)])
def test_every_damage_of_a_head_is_found(own: Path, shard: tuple[int, int]) -> None:
    key = "/".join(map(str, ("embedding/c/0/0", *shard)))
    rows, columns = (slice(4 * i, 4 * i + 2) for i in shard)  # its first chunk

    def look() -> np.ndarray:
        dataset = open_store(own, bands=4, overview=32)
        with dask.config.set(scheduler="synchronous"):
            return bits(dataset.embedding[..., rows, columns])

    intact, before = (own / key).read_bytes(), look()
    for position, bit in itertools.product(range(26), range(8)):
        data = bytearray(intact)
        data[position] ^= 1 << bit
        (own / key).write_bytes(data)
        try:
            found = look()
        except StoreError as error:
            assert f"{key} (shard of embedding)" in str(error)  # noqa: PT017
        else:
            # Of no consequence: a checksum of a part that is not needed.
            np.testing.assert_array_equal(found, before)
            assert position > 20


def test_empty_segments_are_vouched_for(tmp_path: Path, codecs: tuple[NecCodec, NecCodec]) -> None:
    coding = codecs[0].coding
    steps, mean = coding.step_values[:, None, None], coding.parameters.mean[:, None, None]
    # The mean that is expected, and the highest frequency: no low octave holds anything.
    y, x = np.mgrid[:64, :64]
    image = (steps * (mean / BLOCK + 3 * (-1.0) ** (x + y))).astype(np.float32)
    writer = StoreWriter.create_or_resume(
        tmp_path / "s.zarr",
        Layout.of_collection(1, bands=BANDS, size=(64, 64), chunk=1, shard=1),
        codec=codecs[0],
        scene_codec=codecs[1],
        attributes={},
        basis=None,
        fingerprint="c" * 64,
    )
    writer.write(Task(0), image[None], image[None, :, 0, 0])
    file = tmp_path / "s.zarr/embedding/c/0/0/0/0"
    intact, before = file.read_bytes(), read(tmp_path / "s.zarr", 4, 8)
    head = read_head(intact, coding)
    assert head is not None
    assert head.spans[len(PART_NAMES)] == (len(head.raw) + 12, len(head.raw) + 12)
    for position, bit in itertools.product(range(len(head.raw)), range(8)):
        data = bytearray(intact)
        data[position] ^= 1 << bit
        file.write_bytes(data)
        with pytest.raises(StoreError, match="is damaged"):
            read(tmp_path / "s.zarr", 4, 8)
    file.write_bytes(intact)
    np.testing.assert_array_equal(read(tmp_path / "s.zarr", 4, 8), before)


def test_lost_and_foreign_objects(own: Path) -> None:
    file = own / "embedding/c/0/0/1/0"
    intact = file.read_bytes()
    for data, what in (
        (intact[:-1], "swapped or stale"),
        (intact + b"0", "swapped or stale"),
        (b"", "swapped or stale"),
        ((own / "embedding/c/0/0/1/1").read_bytes(), "swapped or stale"),
        (intact[:-9] + bytes([intact[-9] ^ 1]) + intact[-8:], "index of the shard"),
    ):
        file.write_bytes(data)
        with pytest.raises(StoreError, match=rf"embedding/c/0/0/1/0 .*{what}"):
            read(own, 4, 8)
    file.unlink()
    with pytest.raises(StoreError, match=r"embedding/c/0/0/1/0 .* is missing"):
        read(own, 4, 8)


def test_senseless_arguments(store: Path, tmp_path: Path) -> None:
    for options, what in (
        ({"bands": 0}, "bands=0"),
        ({"bands": BANDS + 1}, f"bands={BANDS + 1} .* {BANDS} bands"),
        ({"bands": "16"}, "bands='16'"),
        ({"bands": True}, "bands=True"),
        ({"overview": 3}, "overview=3.*1, 2, 4"),
        ({"overview": 128}, "overview=128"),
        ({"overview": 8.0}, r"overview=8\.0"),
    ):
        with pytest.raises(StoreError, match=what):
            open_store(store, **options)


def test_cells_wider_than_shards(tmp_path: Path, codecs: tuple[NecCodec, NecCodec]) -> None:
    grid = TokenGrid.around(BOX, patch=4, chunk=16, shard=32, cell=16)
    assert grid.shape[0] % 64 > 0  # the last cells are partial
    writer = StoreWriter.create_or_resume(
        tmp_path / "s.zarr",
        Layout.of_scene(grid, bands=BANDS),
        codec=codecs[0],
        scene_codec=codecs[1],
        attributes={},
        basis=None,
        fingerprint="d" * 64,
    )
    rows, columns = (-(-size // 64) for size in grid.shape)
    means = field(rows, columns, seed=5) * 4
    full = means.repeat(64, axis=1).repeat(64, axis=2)
    for task in writer.pending():
        part = np.ascontiguousarray(full[:, grid.task_rows(task), grid.task_columns(task)])
        writer.write(task, part, np.ascontiguousarray(part[:, ::16, ::16]))
    writer.finish()
    coarse = open_store(tmp_path / "s.zarr", overview=64)
    assert coarse.embedding.shape == means.shape
    allowed = codecs[0].coding.step_values[:, None, None] / 8
    assert (np.abs(coarse.embedding.to_numpy() - means) < allowed).all()
    fine = open_store(tmp_path / "s.zarr", overview=16)
    assert (np.abs(fine.embedding[:, ::4, ::4].to_numpy() - means) < allowed).all()


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_collections(
    tmp_path: Path, codecs: tuple[NecCodec, NecCodec], size: tuple[int, int]
) -> None:
    n, path = 25, tmp_path / "images.zarr"
    layout = Layout.of_collection(n, bands=BANDS, size=size, chunk=5, shard=10)
    writer = StoreWriter.create_or_resume(
        path,
        layout,
        codec=codecs[0],
        scene_codec=codecs[1],
        attributes={},
        basis=None,
        fingerprint="b" * 64,
    )
    images = np.stack([field(*size, seed=i) for i in range(n)])
    images[3, :, :4, :4] = np.nan
    images[7] = np.nan
    for task in writer.pending():
        part = images[10 * task.row : 10 * (task.row + 1)]
        writer.write(task, part, part[..., 8, 8].copy())
    # Without the totals it is not finished: the receipts vouch for what is there.
    whole = open_store(path)
    some = open_store(path, bands=7)
    np.testing.assert_array_equal(bits(some.embedding), bits(whole.embedding[:, :7]))
    for overview in (4, 8, 64):
        coarse = open_store(path, overview=overview).embedding
        assert coarse.shape[2:] == tuple(-(-edge // overview) for edge in size)
        means = np.stack([cell_means(image, overview) for image in whole.embedding.to_numpy()])
        np.testing.assert_array_equal(np.isnan(coarse), np.isnan(means))
        assert np.nanmean(np.abs(coarse - means)) < 0.25
        np.testing.assert_array_equal(coarse[11], open_store(path, overview=overview).embedding[11])
    scenes = tmp_path / "scenes.zarr"
    StoreWriter.create_or_resume(
        scenes,
        Layout.of_collection(n, bands=BANDS),
        codec=None,
        scene_codec=codecs[1],
        attributes={},
        basis=None,
        fingerprint="b" * 64,
    )
    assert open_store(scenes, bands=3).scene_embedding.shape == (n, 3)
    with pytest.raises(StoreError, match="no `embedding`"):
        open_store(scenes, overview=2)


@contextlib.contextmanager
def served(folder: Path, handler: type[Plain]) -> Iterator[str]:
    serve = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("handler", [Plain, Ranges])
def test_over_http(own: Path, handler: type[Plain]) -> None:
    with served(own.parent, handler) as host:
        url = f"{host}/{own.name}"
        for options in ({"bands": 4}, {"overview": 8}):
            assert open_store(url, **options).load().identical(open_store(own, **options).load())
            requests, size = counted(url, **options)
            if handler is Ranges:
                assert (requests, size) == counted(own, **options)
            else:
                # Whole objects, each of them once.
                assert size == counted(url)[1]
                assert requests <= counted(url)[0]
        shard = own / "embedding/c/0/0/1/1"
        shard.write_bytes(shard.read_bytes()[:5000])
        with pytest.raises(StoreError, match=r"embedding/c/0/0/1/1 .* swapped or stale"):
            open_store(url, overview=8).load()
        shard.unlink()
        with pytest.raises(StoreError, match=r"embedding/c/0/0/1/1 .* is missing"):
            open_store(url, overview=8).load()


def test_memory_filesystem(store: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/subset.zarr", recursive=True)
    remote = open_store("memory://subset.zarr", overview=8)
    assert remote.load().identical(open_store(store, overview=8).load())
