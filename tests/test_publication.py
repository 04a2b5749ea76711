"""A sealed store in object storage, on a real S3-compatible server: all of it, or none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from affine import Affine
from typer.testing import CliRunner

import nec
from nec.cli import app
from nec.errors import StoreError

moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'nec[dev]'")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'nec[remote]'")
# Sessions of s3fs are closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Unclosed client session:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of smooth vectors."""
    y, x = np.mgrid[:400, :400] / 60
    maps = [np.ones_like(y), y, x, np.sin(5 * y + 3 * x), np.cos(4 * x), y * x]
    array = xr.DataArray(np.stack(maps, -1).astype(np.float32), dims=("y", "x", "band"))
    placed = array.rio.write_crs("EPSG:32633").rio.write_transform(
        Affine(40, 0, 400_000, 0, -40, 5_000_000)
    )
    store = tmp_path_factory.mktemp("stores") / "field.zarr"
    nec.encode(placed, store, model=nec.Compressor.fit(array.values[::2, ::2], cosine=0.999))
    nec.seal(store)
    return store


@pytest.fixture(scope="module")
def storage() -> Iterator[dict[str, Any]]:
    """Address and keys of a server with a bucket ``archive``."""
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    s3fs.S3FileSystem(**options).mkdir("archive")
    yield options
    server.stop()


def test_published_and_read_in_parts(sealed: Path, storage: dict[str, Any]) -> None:
    here = nec.open(sealed)
    calls: list[tuple[int, int]] = []
    done = nec.publish(
        sealed,
        "s3://archive/field.zarr/",
        storage_options=storage,
        progress=lambda *now: calls.append(now),
    )
    files = [f for f in sealed.rglob("*") if f.is_file()]
    assert (done.objects, done.sent) == (len(files), len(files))
    assert done.bytes == sum(f.stat().st_size for f in files)
    assert calls[-1] == (len(files), len(files))
    there = nec.open("s3://archive/field.zarr", storage_options=storage)
    box = {"y": slice(100, 110), "x": slice(100, 110)}
    np.testing.assert_array_equal(there.embedding.isel(box), here.embedding.isel(box))
    few = nec.open("s3://archive/field.zarr", bands=2, storage_options=storage)
    np.testing.assert_array_equal(few.embedding.isel(box), here.embedding.isel(box)[:2])
    assert few.nec.traffic.bytes < done.bytes / 2
    plain = xr.open_zarr("s3://archive/field.zarr", storage_options=storage)
    assert plain.embedding.shape == here.embedding.shape
    assert nec.publish(sealed, "s3://archive/field.zarr", storage_options=storage).sent == 0


def test_command(sealed: Path, storage: dict[str, Any]) -> None:
    options = [f"--option={key}={value}" for key, value in storage.items()]
    command = ["publish", str(sealed), "s3://archive/command.zarr"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    assert "s3://archive/command.zarr" in result.output
    assert nec.open("s3://archive/command.zarr", storage_options=storage).sizes
    wrong = CliRunner().invoke(app, [*command, "--option", "endpoint_url"])
    assert wrong.exit_code != 0
    assert "write KEY=VALUE" in str(wrong.exception)


def test_cut_short_it_is_not_there_and_is_brought_to_its_end(
    sealed: Path, storage: dict[str, Any]
) -> None:
    url = "s3://archive/cut.zarr"
    files = s3fs.S3FileSystem(**storage)

    def cut(done: int, _: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nec.publish(sealed, url, storage_options=storage, progress=cut)
    sent = files.find("archive/cut.zarr", withdirs=False)
    assert sent
    with pytest.raises(StoreError, match="no store at"):
        nec.open(url, storage_options=storage)
    # What another program left there in the same size is told by its digest.
    wrong = next(k for k in sent if "/c/" in k)
    files.pipe_file(wrong, bytes(files.size(wrong)))
    again = nec.publish(sealed, url, storage_options=storage)
    assert again.sent == again.objects - len(sent) + 1
    assert nec.open(url, storage_options=storage).equals(nec.open(sealed))


def test_of_two_publishers_one_wins(
    sealed: Path, storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nec.archive import publication

    url = "s3://archive/two.zarr"
    monkeypatch.setattr(publication, "_listed", lambda *_: {})
    nec.publish(sealed, url, storage_options=storage)
    # The other one did not see the first: the same store is no conflict.
    nec.publish(sealed, url, storage_options=storage)
    files = s3fs.S3FileSystem(**storage)
    monkeypatch.setattr(publication, "_refuse_others", _first_time_blind(publication))
    files.pipe_file("archive/two.zarr/zarr.json", b"{}")
    with pytest.raises(StoreError, match="another store is at"):
        nec.publish(sealed, url, storage_options=storage)
    assert files.cat_file("archive/two.zarr/zarr.json") == b"{}"


def _first_time_blind(publication: Any) -> Any:
    """Look for another store only at the second time, as where it came in between."""
    look, seen = publication._refuse_others, []

    def check(*args: Any) -> None:
        seen.append(1)
        if len(seen) > 1:
            look(*args)

    return check


def test_remains_of_another_store_are_not_mixed_in(sealed: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/remains.zarr/embedding/c/9/9/0", b"of another store")
    with pytest.raises(StoreError, match=r"not of this store, as embedding/c/9/9/0"):
        nec.publish(sealed, "memory://remains.zarr")
    files.rm("/remains.zarr/embedding/c/9/9/0")
    # Of the same key and size, and other bytes: nothing tells them apart but sending it.
    key = "y/c/0"
    files.pipe(f"/remains.zarr/{key}", bytes(len((sealed / key).read_bytes())))
    nec.publish(sealed, "memory://remains.zarr")
    assert files.cat_file(f"/remains.zarr/{key}") == (sealed / key).read_bytes()


def test_refusals(sealed: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="plain files"):
        nec.publish(sealed, str(tmp_path / "copy.zarr"))
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(sealed, damaged)
    shard = next(f for f in sorted((damaged / "embedding" / "c").rglob("*")) if f.is_file())
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="not the object that was written"):
        nec.publish(damaged, "memory://damaged.zarr")
    with pytest.raises(StoreError, match="no store at"):
        nec.open("memory://damaged.zarr")
    shard.unlink()
    with pytest.raises(StoreError, match=r"embedding/c/.* is missing"):
        nec.publish(damaged, "memory://damaged.zarr")
