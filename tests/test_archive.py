"""The store: plain xarray reads it, nothing is half written, every damage has a name."""

import functools
import http.server
import itertools
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from nec.archive import (
    Layout,
    StoreWriter,
    Task,
    TokenGrid,
    creation,
    open_store,
    read_basis,
    seal,
    verify,
)
from nec.archive.metadata import canonical, stamp_root
from nec.archive.receipts import Receipt
from nec.codec import NecCodec
from nec.compressor import Compressor
from nec.errors import StoreError

PIXEL, BANDS = 30.0, 6
# Corner in an odd phase; 180 x 220 pixels are 3 x 3 tasks of at most 32 x 32 tokens.
BOX = GeoBox((180, 220), Affine(PIXEL, 0, 690_015.0, 0, -PIXEL, 5_690_985.0), "EPSG:32611")
GRID = TokenGrid.around(BOX, patch=4, chunk=16, shard=32, cell=16)
Make = Callable[..., StoreWriter]


def field(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]] / 40
    maps = np.stack([np.ones_like(y), y, x, np.sin(5 * y + 3 * x), np.cos(4 * x), y * x])
    return (maps * np.array([4, 2, 2, 1, 1, 0.5])[:, None, None]).astype(np.float32)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """The whole embedding, (band, y, x), NaN outside of the scene and in a hole inside."""
    full = field(GRID.shape)
    row, column = (-(-offset // 4) for offset in GRID.scene_offset)
    full[:, :row] = np.nan
    full[:, :, :column] = np.nan
    full[:, row + 2 : row + 5, column + 3 : column + 9] = np.nan
    return full


@pytest.fixture(scope="module")
def codecs() -> tuple[NecCodec, NecCodec]:
    fitted = Compressor.fit(
        field((48, 48)).transpose(1, 2, 0), cosine=0.9999, basis=np.eye(BANDS, dtype="f4")
    )
    return NecCodec(fitted.coding), NecCodec(fitted.scene_coding)


@pytest.fixture
def make(codecs: tuple[NecCodec, NecCodec]) -> Make:
    def start(path: Path, layout: Layout | None = None, fingerprint: str = "a" * 64) -> StoreWriter:
        return StoreWriter.create_or_resume(
            path,
            layout or Layout.of_scene(GRID, bands=BANDS),
            codec=codecs[0],
            scene_codec=codecs[1],
            attributes={"title": "a test", "nec": {"model": "toy", "basis": "0123456789abcdef"}},
            basis=np.eye(BANDS, dtype=np.float32),
            fingerprint=fingerprint,
        )

    return start


def part(values: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    tokens = values[:, GRID.task_rows(task), GRID.task_columns(task)]
    cells = tokens.reshape(BANDS, tokens.shape[1] // 16, 16, tokens.shape[2] // 16, 16)
    valid = ~np.isnan(cells)
    count = valid.sum((2, 4))
    mean = np.where(valid, cells, 0).sum((2, 4)) / np.where(count, count, np.nan)
    return tokens, mean.astype(np.float32)


def fill(writer: StoreWriter, values: np.ndarray) -> None:
    for task in writer.pending():
        writer.write(task, *part(values, task), figures={"row": task.row})
    writer.finish({"nec": {"seam": 0.99}})


def tree(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


@pytest.fixture
def store(tmp_path: Path, make: Make, values: np.ndarray) -> Path:
    fill(make(tmp_path / "s.zarr"), values)
    return tmp_path / "s.zarr"


@pytest.fixture
def sealed(store: Path) -> Path:
    seal(store)
    return store


def flip(file: Path, position: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


# rioxarray multiplies transforms in a way that affine is about to drop.
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_plain_xarray_reads_it(
    store: Path, values: np.ndarray, codecs: tuple[NecCodec, NecCodec]
) -> None:
    ds = xr.open_zarr(store)
    assert set(ds.data_vars) == {"embedding", "scene_embedding"}
    assert ds.embedding.dims == ("band", "y", "x")
    assert ds.embedding.dtype == np.float32
    assert ds.embedding.data.chunksize == (BANDS, 16, 16)
    assert ds.rio.crs.to_epsg() == 32611
    assert ds.embedding.rio.crs.to_epsg() == 32611
    assert ds.scene_embedding.coords["spatial_ref"].attrs["crs_wkt"]
    assert np.allclose(ds.rio.transform()[:6], Affine.from_gdal(*GRID.transform)[:6], atol=1e-6)
    moved = ds.isel(x=slice(5, None)).rio.transform()
    assert moved.c == pytest.approx(GRID.transform[0] + 5 * 4 * PIXEL)
    decoded = ds.embedding.to_numpy()
    assert np.array_equal(np.isnan(decoded), np.isnan(values))
    assert np.nanmean(np.abs(decoded - values)) < 0.1
    # Not a bit is lost between the codec and xarray.
    for y, x in itertools.product(range(0, 80, 16), repeat=2):
        chunk = values[:, y : y + 16, x : x + 16]
        if np.isfinite(chunk).any():
            alone = codecs[0].decode_array(codecs[0].encode_array(chunk), chunk.shape)
            np.testing.assert_array_equal(decoded[:, y : y + 16, x : x + 16], alone)
    means = np.concatenate(
        [np.concatenate([part(values, Task(r, c))[1] for c in range(3)], 2) for r in range(3)], 1
    )
    pooled = ds.scene_embedding.to_numpy()
    assert np.array_equal(np.isnan(pooled), np.isnan(means))
    assert np.nanmax(np.abs(pooled - means)) < 0.2
    checked = open_store(store)
    assert checked.identical(ds)
    # Ranges of a shard: index and some chunks of it.
    np.testing.assert_array_equal(checked.embedding[:, 30:35, 40], decoded[:, 30:35, 40])
    checked.to_zarr(store.with_name("copy.zarr"), consolidated=False)
    copy = xr.open_zarr(store.with_name("copy.zarr"), consolidated=False)
    assert copy.load().identical(ds)
    assert pickle.loads(pickle.dumps(checked)).load().identical(ds)
    np.testing.assert_array_equal(read_basis(store), np.eye(BANDS))
    assert ds.attrs["nec"]["seam"] == 0.99
    assert ds.attrs["spatial:transform"][2] == GRID.origin[0]
    assert ds.embedding.attrs["nec_basis"] == "0123456789abcdef"
    assert ds.attrs["nec"]["tasks"] == {"written": 9, "missing": 0, "failed": 0}


def test_dated_scene(tmp_path: Path, make: Make, values: np.ndarray) -> None:
    time = np.datetime64("2021-08-02T18:20:01")
    path = tmp_path / "dated.zarr"
    fill(make(path, Layout.of_scene(GRID, bands=BANDS, time=time)), values)
    ds = xr.open_zarr(path)
    assert ds.embedding.dims == ("time", "band", "y", "x")
    assert ds.time.to_numpy()[0] == time
    assert ds.rio.crs.to_epsg() == 32611
    assert np.array_equal(np.isnan(ds.embedding[0]), np.isnan(values))
    seal(path)
    assert verify(path).ok


def test_collection_with_labels(tmp_path: Path, make: Make) -> None:
    n, path = 250, tmp_path / "images.zarr"
    labels = {"label": np.arange(n) % 3, "file": np.array([f"Forêt_{i}.jpg" for i in range(n)])}
    layout = Layout.of_collection(
        n, bands=BANDS, size=(16, 16), chunk=50, shard=100, coordinates=labels
    )
    writer = make(path, layout)
    images = np.stack([field((16, 16)) * (1 + i / n) for i in range(n)])
    for task in writer.pending():
        of = images[task.row * 100 : (task.row + 1) * 100]
        writer.write(task, of, of.mean((2, 3)))
    writer.finish()
    seal(path)
    assert verify(path).ok
    for ds in (xr.open_zarr(path), open_store(path)):
        assert ds.embedding.sizes == {"sample": n, "band": BANDS, "y": 16, "x": 16}
        assert ds.scene_embedding.dims == ("sample", "band")
        assert list(ds.file.to_numpy()) == list(labels["file"])
        np.testing.assert_array_equal(ds.scene_embedding.label, labels["label"])
        assert float(np.abs(ds.embedding - images).max()) < 0.5
        assert np.abs(ds.scene_embedding.to_numpy() - images.mean((2, 3))).max() < 0.3


@pytest.mark.parametrize("killed_in", ["receipt", "object"])
def test_resume_after_a_kill_gives_the_same_bytes(
    tmp_path: Path,
    make: Make,
    values: np.ndarray,
    store: Path,
    killed_in: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "killed.zarr"
    writer = make(path)
    tasks = writer.pending()
    writer.write(tasks[0], *part(values, tasks[0]), figures={"row": tasks[0].row})
    writer.fail(tasks[1], "out of memory")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed_in == "receipt":
            patch.setattr(Receipt, "save", killed)
        else:
            patch.setattr("nec.archive.writer.put", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.write(tasks[4], *part(values, tasks[4]))
    (path / "embedding" / ".1.0123.partial").write_bytes(b"left by kill -9")
    again = make(path)
    assert again.pending() == tasks[1:]
    assert verify(path).ok
    # An object that changed since its receipt is done again as well.
    flip(path / again.layout.embedding.key(tasks[0]))
    assert again.pending() == tasks
    fill(again, values)
    assert tree(path) == tree(store)


def test_a_codec_that_was_sent_elsewhere_writes_the_same(codecs: tuple[NecCodec, NecCodec]) -> None:
    values = field((32, 32))[None] + np.float32(0.05) * np.random.default_rng(0).normal(
        size=(1, BANDS, 32, 32)
    ).astype(np.float32)
    coding = codecs[0].coding
    for change in ({}, {"falloff": 4.0}, {"min_cosine": 0.999}, {"lagrangian": 0.0}):
        codec = NecCodec(replace(coding, **change))
        there = pickle.loads(pickle.dumps(codec))
        assert there.encode_array(values) == codec.encode_array(values)
    codings = [pickle.loads(pickle.dumps(codecs[0])).coding for _ in range(2)]
    assert codings[0] is codings[1]  # compiled once


def test_two_producers_of_one_run_meet(
    tmp_path: Path, make: Make, values: np.ndarray, store: Path
) -> None:
    path = tmp_path / "shared.zarr"

    def produce(_: int) -> None:
        fill(make(path), values)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(produce, range(4)))
    assert tree(path) == tree(store)
    assert {file.name for file in tmp_path.iterdir()} == {"shared.zarr", "s.zarr"}


def test_a_new_store_appears_complete_or_not_at_all(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(creation, "_consolidate", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "s.zarr")
    assert np.isnan(xr.open_zarr(tmp_path / "s.zarr").embedding).all()
    assert verify(tmp_path / "s.zarr").ok


def test_missing_and_failed_tasks(tmp_path: Path, make: Make, values: np.ndarray) -> None:
    path = tmp_path / "s.zarr"
    writer = make(path)
    first, second, *rest = writer.pending()
    assert writer.write(first, None, None).status == "missing"
    assert writer.write(second, np.full((6, 32, 32), np.nan, "f4"), None).status == "missing"
    with pytest.raises(StoreError, match=r"task 0\.2 .* is not done"):
        seal(path)
    for task in rest[:-1]:
        writer.write(task, *part(values, task))
    writer.fail(rest[-1], "the file ends early")
    assert make(path).pending() == rest[-1:]
    assert not (path / "embedding/c/0/0/0").exists()
    assert writer.summary()["tasks"] == {"written": 6, "missing": 2, "failed": 1}
    with pytest.raises(StoreError, match="the file ends early"):
        seal(path)
    seal(path, allow_failed=True)
    assert verify(path).ok
    assert json.loads((path / "nec/manifest.json").read_bytes())["failed"] == {
        rest[-1].name: "the file ends early"
    }
    assert np.isnan(open_store(path).embedding[:, :32, :32]).all()
    with pytest.raises(StoreError, match="shape"):
        make(tmp_path / "t.zarr").write(first, np.zeros((6, 31, 32), "f4"), None)


def test_refusals(tmp_path: Path, make: Make, store: Path, values: np.ndarray) -> None:
    with pytest.raises(StoreError, match="another run"):
        make(store, fingerprint="b" * 64)
    with pytest.raises(StoreError, match="another layout"):
        make(store, Layout.of_scene(GRID, bands=BANDS, time=np.datetime64("2021-01-01")))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a nec store"):
        make(foreign)
    with pytest.raises(StoreError, match="not a nec store"):
        make(foreign / "notes.txt")
    xr.Dataset({"a": ("x", np.ones(3))}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    with pytest.raises(StoreError, match="not a nec store"):
        make(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="no store at"):
        open_store(tmp_path / "nowhere.zarr")
    writer = make(store)
    with pytest.raises(StoreError, match="other content"):
        writer.write(Task(1, 1), part(values, Task(1, 1))[0] + 1, None)
    seal(store)
    before = tree(store)
    seal(store)
    for attempt in (
        lambda: make(store),
        lambda: writer.write(Task(1, 1), *part(values, Task(1, 1))),
        lambda: writer.finish({}),
    ):
        with pytest.raises(StoreError, match="is sealed"):
            attempt()
    assert tree(store) == before


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(0, "was a draft"), (7, "release of nec that reads version 7"), ("1", "")],
)
def test_other_versions_are_refused(store: Path, make: Make, version: Any, remedy: str) -> None:
    root = json.loads((store / "zarr.json").read_bytes())
    root["attributes"]["nec"]["format_version"] = version
    (store / "zarr.json").write_bytes(canonical(stamp_root(root)))
    for attempt in (open_store, verify, seal, read_basis, make):
        with pytest.raises(
            StoreError, match=rf"format version {version!r}.*reads 1 and 2; .*{remedy}"
        ):
            attempt(store)


def test_an_unknown_coding_is_refused(store: Path, make: Make) -> None:
    # As a later release might code the times of a place together.
    def extended(document: dict[str, Any]) -> dict[str, Any]:
        document["codecs"][0]["configuration"]["codecs"][0]["configuration"]["joint_times"] = 4
        return document

    root = json.loads((store / "zarr.json").read_bytes())
    extended(root["consolidated_metadata"]["metadata"]["embedding"])
    (store / "zarr.json").write_bytes(canonical(stamp_root(root)))
    array = store / "embedding/zarr.json"
    array.write_bytes(canonical(extended(json.loads(array.read_bytes()))))
    before = tree(store)
    for options in ({}, {"bands": 2}, {"overview": 8}):
        with pytest.raises(StoreError, match=r"s\.zarr.*unknown .* \['joint_times'\]"):
            open_store(store, **options)
    with pytest.raises(ValueError, match="joint_times"):
        xr.open_zarr(store)
    with pytest.raises(StoreError, match=r"embedding of .* another layout or coding"):
        make(store)
    assert {p.key for p in verify(store).problems} == {"embedding/zarr.json"}
    assert tree(store) == before


def test_vectors_try_any_reader(store: Path, codecs: tuple[NecCodec, NecCodec]) -> None:
    for name, codec in zip(("embedding", "scene_embedding"), codecs, strict=True):
        group = zarr.open_group(store / "nec/vectors" / name, mode="r")
        chunk, values = (np.asarray(group[part]) for part in ("chunk", "values"))
        assert chunk.dtype == np.uint8
        assert values.shape == (1, BANDS, 5, 4)
        np.testing.assert_array_equal(np.isnan(values).all((0, 1)), np.isnan(values).any((0, 1)))
        assert np.isnan(values[0, 0]).sum() == 1
        assert len(chunk) + values.nbytes < 120 * BANDS
        decoded = codec.decode_array(chunk, values.shape)
        np.testing.assert_array_equal(decoded.view(np.uint32), values.view(np.uint32))
        # They hold something at all frequencies, so a reader has everything to get right.
        spread = np.nanstd(values, (0, 2, 3)) / codec.coding.step_values
        assert (spread > 1).all()


def test_vectors_that_decode_otherwise_are_named(store: Path) -> None:
    values = zarr.open_array(store / "nec/vectors/embedding/values", mode="r+")
    first = np.asarray(values[0, 0, 0, 0])
    values[0, 0, 0, 0] = np.nextafter(first, np.float32(np.inf))
    (problem,) = verify(store).problems
    assert problem.key == "nec/vectors/embedding"
    assert "test vector of embedding decodes to other values" in problem.what
    values[0, 0, 0, 0] = first
    assert verify(store).ok
    chunk = zarr.open_array(store / "nec/vectors/scene_embedding/chunk", mode="r+")
    chunk[-1] ^= np.uint8(1)
    (problem,) = verify(store).problems
    assert "test vector of scene_embedding does not decode" in problem.what
    assert verify(store, decode=False).ok


@pytest.mark.parametrize("published", [True, False])
def test_every_flipped_byte_is_reported_by_name(store: Path, *, published: bool) -> None:
    if published:
        seal(store)
    assert verify(store).ok
    rng = np.random.default_rng(0)
    for key, data in sorted(tree(store).items()):
        for position in {0, len(data) - 1, *rng.integers(0, len(data), 2).tolist()}:
            flip(store / key, position)
            report = verify(store)
            assert {problem.key for problem in report.problems} == {key}, (position, str(report))
            flip(store / key, position)
    assert verify(store).ok


def test_damage_is_named(sealed: Path) -> None:
    shard = sealed / "embedding/c/0/1/1"
    intact = shard.read_bytes()

    def problem() -> str:
        (found,) = verify(sealed).problems
        assert found.key == "embedding/c/0/1/1"
        return found.what

    def read() -> Any:
        return open_store(sealed).embedding.load()

    flip(shard, 3)
    assert "chunk (0, 0, 0) of the shard" in problem()
    with pytest.raises(StoreError, match=r"embedding/c/0/1/1.*s\.zarr.*chunk \(0, 0, 0\)"):
        read()
    with pytest.raises(ValueError, match="checksum"):
        xr.open_zarr(sealed).embedding.load()
    shard.write_bytes(intact[:-7])
    assert "index of the shard" in problem()
    with pytest.raises(StoreError, match="index of the shard"):
        read()
    shard.write_bytes((sealed / "embedding/c/0/0/1").read_bytes())
    assert "instead of" in problem()
    with pytest.raises(StoreError, match="swapped, stale or changed"):
        read()
    shard.unlink()
    assert problem() == "object is missing"
    with pytest.raises(StoreError, match=r"embedding/c/0/1/1 .* is missing"):
        read()
    shard.write_bytes(intact)
    assert verify(sealed).ok
    (sealed / "embedding/c/0/7").mkdir()
    (sealed / "embedding/c/0/7/7").write_bytes(intact)
    assert [p.key for p in verify(sealed).problems] == ["embedding/c/0/7/7"]
    (sealed / "embedding/c/0/7/7").unlink()
    (sealed / "nec/manifest.json").unlink()
    assert "nec/manifest.json" in {p.key for p in verify(sealed).problems}
    with pytest.raises(StoreError, match=r"manifest\.json .* missing"):
        open_store(sealed)


@pytest.mark.parametrize("key", ["y/c/0", "nec/basis/c/0/0", "nec/vectors/embedding/chunk/c/0"])
def test_what_tasks_do_not_fill_is_not_sealed_when_it_is_lost(store: Path, key: str) -> None:
    kept = (store / key).read_bytes()
    (store / key).unlink()
    with pytest.raises(StoreError, match=f"{key} .*is missing"):
        seal(store)
    if not key.startswith("nec/vectors"):
        with pytest.raises(StoreError, match=f"{key} .* is missing"):
            _ = open_store(store).load(), open_store(store).nec.basis
    (store / key).write_bytes(kept)
    flip(store / key)
    with pytest.raises(StoreError, match=f"{key} .*is damaged"):
        seal(store)
    assert not verify(store).ok
    (store / key).write_bytes(kept)
    flip(store / "y" / "zarr.json", 30)
    with pytest.raises(StoreError, match=r"y/zarr.json"):
        seal(store)


def test_documents_are_those_of_the_checked_root(sealed: Path) -> None:
    document = sealed / "nec" / "basis" / "zarr.json"
    text = document.read_text()
    assert f'"shape":[{BANDS},{BANDS}]' in text
    document.write_text(text.replace(f'"shape":[{BANDS},{BANDS}]', f'"shape":[{BANDS},7]'))
    assert open_store(sealed).nec.basis.shape == (BANDS, BANDS)
    assert not verify(sealed).ok


def test_lost_shard_of_an_unsealed_store(store: Path) -> None:
    (store / "embedding/c/0/1/1").unlink()
    assert [p.key for p in verify(store).problems] == ["embedding/c/0/1/1"]
    with pytest.raises(StoreError, match="embedding/c/0/1/1"):
        open_store(store).embedding.load()


class Plain(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which ignores ranges."""

    def log_message(self, *_: object) -> None:
        pass


class Ranges(Plain):
    """A server as object stores are: it answers byte ranges."""

    def do_GET(self) -> None:
        file, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if wanted is None or not file.is_file():
            super().do_GET()
            return
        data = file.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        start = int(first) if first else len(data) - int(last)
        part = data[start : int(last) + 1 if first and last else None]
        if not part:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture(params=[Plain, Ranges])
def url(sealed: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    handler = functools.partial(request.param, directory=str(sealed.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{sealed.name}"
        server.shutdown()
        thread.join()


def test_over_http(url: str, sealed: Path, request: pytest.FixtureRequest) -> None:
    local = xr.open_zarr(sealed).load()
    assert open_store(url).load().identical(local)
    remote = xr.open_zarr(url)
    assert remote.rio.crs.to_epsg() == 32611
    assert remote.scene_embedding.load().identical(local.scene_embedding)
    if "Ranges" in request.node.name:
        assert remote.load().identical(local)
    else:
        # Inner chunks are asked for by range; a server without is noticed, never misread.
        with pytest.raises(ValueError, match="checksum"):
            remote.load()
