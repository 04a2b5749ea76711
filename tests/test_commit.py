"""Stores in Icechunk repositories: whole commits or none, earlier states, damage, conflicts."""

import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
import zarr
from toy_series import DAYS, GRID, Open, fill
from typer.testing import CliRunner
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import nec
from nec.cli import app
from nec.errors import MissingLibraryError, StoreError

icechunk = pytest.importorskip(
    "icechunk", reason="Icechunk is not installed: pip install 'nec[icechunk]'"
)
# It warns of commits to folders, which ours are locked for.
icechunk.set_logs_filter("error")
TWO, THREE, FOUR = DAYS[:2], DAYS[:3], DAYS


@pytest.fixture
def store(open_series: Open, tmp_path: Path) -> Path:
    """A finished series of two days."""
    path = tmp_path / "s.zarr"
    fill(open_series, path, TWO)
    return path


def plainly(repository: Path, **choice: Any) -> xr.Dataset:
    """Open as somebody does who has Icechunk and the codec alone."""
    storage = icechunk.local_filesystem_storage(str(repository))
    session = icechunk.Repository.open(storage).readonly_session(**choice or {"branch": "main"})
    return xr.open_zarr(session.store)


def test_a_series_grows_and_its_earlier_states_stay(
    open_series: Open, store: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "archive"
    name = f"icechunk:{repository}"
    calls: list[tuple[int, int]] = []
    first = nec.commit(store, repository, tag="january", progress=lambda *now: calls.append(now))
    assert first.new
    assert first.written == first.objects == calls[-1][0] == calls[-1][1]
    two = nec.open(store).load()
    again = nec.commit(store, name, tag="january")
    assert (again.new, again.snapshot, again.written) == (False, first.snapshot, 0)

    fill(open_series, store, FOUR)
    second = nec.commit(store, repository, message="two weeks more")
    four = nec.open(store).load()
    shards = 2 * 2 * (len(GRID.tasks()) - 1)  # the last one of a day holds nothing
    # The times, the scenes of two days, and what says how long the arrays are.
    assert second.written == shards + 1 + 2 + 4
    assert second.bytes < first.bytes + sum(f.stat().st_size for f in store.glob("**/zarr.json"))
    nec.seal(store)
    third = nec.commit(store, repository, tag="sealed")
    assert (third.written, third.removed) == (1, 0)

    for found in (nec.open(name), plainly(repository), nec.open(name, branch="main")):
        assert found.load().equals(four)
    assert nec.open(name).attrs["nec"]["seal"]
    assert plainly(repository).identical(xr.open_zarr(store))
    # By tag, snapshot and time; in words and in the name.
    moments = {one.id: one.time for one in nec.history(repository)}
    before = moments[second.snapshot] - timedelta(microseconds=1)
    states = (
        nec.open(name, tag="january"),
        nec.open(f"{name}#tag=january"),
        nec.open(name, snapshot=first.snapshot),
        nec.open(first.name),
        nec.open(name, as_of=before),
        nec.open(name, as_of=before.replace(tzinfo=None).isoformat()),
        nec.open(f"{name}#branch=main&as_of={before.isoformat().replace('+00:00', 'Z')}"),
        plainly(repository, tag="january"),
    )
    for state in states:
        assert state.load().equals(two)
    assert nec.open(name, snapshot=second.snapshot).load().equals(four)

    # What was opened is a snapshot, whatever comes after it; so is what it says of itself.
    old = nec.open(name, tag="january")
    assert old.nec.scenes["name"].tolist() == [f"scene of {day}" for day in TWO]
    assert nec.open(name).nec.scenes.equals(nec.open(store).nec.scenes)
    features, expected = old.nec.features(), nec.open(store).nec.features()[:2]
    np.testing.assert_array_equal(features, expected)
    assert pickle.loads(pickle.dumps(old)).load().equals(two)
    few, part = nec.open(name, bands=2), nec.open(store, bands=2)
    assert few.load().equals(part.load())
    assert few.nec.traffic.bytes > 0
    coarse = nec.open(name, tag="january", overview=8)
    assert coarse.load().equals(nec.open(store, overview=8).isel(time=slice(0, 2)).load())
    assert coarse.rio.crs == four.rio.crs

    told = nec.history(repository)
    assert [one.id for one in told] == [third.snapshot, second.snapshot, first.snapshot]
    assert [one.tags for one in told] == [("sealed",), (), ("january",)]
    assert told[1].message == "two weeks more"
    assert told[2].message == f"s.zarr: 2 times to {TWO[-1]}, {first.written} objects written"
    assert [one.details["times"] for one in told] == [4, 4, 2]
    assert [one.details["sealed"] for one in told] == [True, False, False]
    assert [one.id for one in nec.history(f"{name}#tag=january")] == [first.snapshot]
    for one in told:
        report = nec.verify(f"{name}#snapshot={one.id}")
        assert report.ok
        assert report.sealed == one.details["sealed"]


def test_what_is_no_finished_state_is_not_committed(
    open_series: Open, store: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "archive"
    nec.commit(store, repository)
    told = nec.history(repository)
    # Days are there and not their shards: what any reader of the folder sees as missing.
    open_series(store, THREE)
    with pytest.raises(StoreError, match="unfinished"):
        nec.commit(store, repository)
    fill(open_series, store, THREE)
    shard = store / "embedding/c/2/0/0/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"embedding/c/2/0/0/0 of .* is not the object"):
        nec.commit(store, repository)
    shard.unlink()
    with pytest.raises(StoreError, match=r"embedding/c/2/0/0/0 of .* is missing"):
        nec.commit(store, repository)
    fill(open_series, store, THREE)
    # No receipt vouches for what no task wrote; checksums and the root do.
    times = store / "time/c/0"
    good = times.read_bytes()
    times.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"time/c/0 of .* is damaged: .* checksum"):
        nec.commit(store, repository)
    times.write_bytes(good)
    document = store / "y/zarr.json"
    good = document.read_bytes()
    document.write_bytes(good.replace(b'"y"', b'"z"'))
    with pytest.raises(StoreError, match=r"y/zarr.json of .* differs from its copy"):
        nec.commit(store, repository)
    document.write_bytes(good)
    assert nec.history(repository) == told
    assert nec.open(f"icechunk:{repository}").sizes["time"] == 2
    assert nec.commit(store, repository).new


def test_failed_tasks_are_committed_only_if_allowed(open_series: Open, tmp_path: Path) -> None:
    path, repository = tmp_path / "f.zarr", tmp_path / "archive"
    writer = fill(open_series, path, TWO)
    step = nec.archive.series.load_step(path, 0)
    task = GRID.tasks()[0]
    (path / f"nec/receipts/{task.name}.json").unlink()
    writer.at(step).fail(task, "no such file")
    writer.finish()
    with pytest.raises(StoreError, match="no such file"):
        nec.commit(path, repository)
    assert nec.commit(path, repository, allow_failed=True).new


def test_nothing_that_was_committed_is_taken_back_unasked(
    open_series: Open, store: Path, tmp_path: Path
) -> None:
    repository, copy = tmp_path / "archive", tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    fill(open_series, store, FOUR)
    last = nec.commit(store, repository, tag="v1")
    with pytest.raises(StoreError, match=r"holds 2 scenes that .*copy.zarr lacks \(scene of"):
        nec.commit(copy, repository)
    with pytest.raises(StoreError, match=r"tag v1 .* tags never move"):
        nec.commit(copy, repository, tag="v1", replace=True)
    earlier = nec.commit(copy, repository, replace=True)
    assert earlier.removed > 0
    name = f"icechunk:{repository}"
    assert nec.open(name).load().equals(nec.open(copy).load())
    assert nec.verify(name).ok
    assert nec.open(name, tag="v1").load().equals(nec.open(last.name).load())
    with pytest.raises(StoreError, match=r"tag v1 .* tags never move"):
        nec.commit(copy, repository, tag="v1")  # nothing changed, the tag is elsewhere

    other = Path(__file__).parent / "golden/v1/series.zarr"
    with pytest.raises(StoreError, match="another run's store"):
        nec.commit(other, repository)
    nec.commit(other, repository, replace=True)
    assert nec.open(name).load().equals(nec.open(other).load())
    assert nec.open(name).nec.scenes.equals(nec.open(other).nec.scenes)
    assert nec.verify(name).ok
    # A store that was copied to a repository by other means has no digests there.
    foreign = tmp_path / "foreign"
    session = icechunk.Repository.create(
        icechunk.local_filesystem_storage(str(foreign))
    ).writable_session("main")
    nec.open(store).drop_encoding().to_zarr(session.store, consolidated=False)
    session.commit("by hand")
    with pytest.raises(StoreError, match="no store of nec"):
        nec.commit(store, foreign)
    assert nec.commit(store, foreign, replace=True).new
    assert nec.verify(f"icechunk:{foreign}").ok


SCRIPT = """
import os, signal, sys, nec

def kill(done, _):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

nec.commit(sys.argv[1], sys.argv[2], progress=kill)
"""


def test_killed_in_the_middle_it_has_not_been(
    open_series: Open, store: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "archive"
    name = f"icechunk:{repository}"
    # Before anything was committed, and after.
    for days, counts in ((TWO, (30,)), (FOUR, (1, 12))):
        fill(open_series, store, days)
        for at in counts:
            killed = subprocess.run(
                [sys.executable, "-c", SCRIPT, store, repository, str(at)], check=False
            )
            assert killed.returncode == -signal.SIGKILL
            assert len(nec.history(repository)) == (days is FOUR)
            if days is FOUR:
                assert nec.open(name).sizes["time"] == 2
                assert nec.verify(name).ok
            else:
                with pytest.raises(StoreError, match="no store at"):
                    nec.open(name)
        assert nec.commit(store, repository).new
        assert nec.open(name).load().equals(nec.open(store).load())
    # While Icechunk made the repository: its first snapshot is there, the branch not yet, or half.
    for left in (None, "ref.json#1"):
        half = tmp_path / f"half{bool(left):d}"
        icechunk.Repository.create(icechunk.local_filesystem_storage(str(half)))
        branch = half / "refs/branch.main/ref.json"
        if left is None:
            shutil.rmtree(half / "refs")
        else:
            branch.rename(branch.with_name(left))
        assert nec.commit(store, half).new


def test_readers_see_the_state_before_or_after(
    open_series: Open, store: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "archive"
    name = f"icechunk:{repository}"
    nec.commit(store, repository)
    held = nec.open(name)  # opened now, read when there is more
    two = nec.open(store).load()
    fill(open_series, store, FOUR)
    four = nec.open(store).load()
    sent, done = Event(), Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set() or 4 not in seen:
            for dataset in (nec.open(name), plainly(repository)):
                values = dataset.load()
                seen.append(values.sizes["time"])
                assert values.equals(two if seen[-1] == 2 else four)
            sent.set()

    def wait(*_: int) -> None:  # between batches of objects, until somebody has read
        sent.clear()
        assert sent.wait(20)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        nec.commit(store, repository, progress=wait)
        done.set()
        reading.result(60)
    assert seen == sorted(seen)
    assert set(seen) == {2, 4}
    assert held.load().equals(two)


def test_commits_to_a_folder_wait_for_each_other(
    open_series: Open, store: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: nec.commit(store, tmp_path / "archive"), range(4)))
    assert sorted(one.new for one in done) == [False, False, False, True]
    assert len({one.snapshot for one in done}) == len(nec.history(tmp_path / "archive")) == 1


def test_damage_of_the_repository_is_noticed(tmp_path: Path) -> None:
    repository = tmp_path / "archive"
    name = f"icechunk:{repository}"
    nec.commit(Path(__file__).parent / "golden/v1/guarded.zarr", repository)
    shards = {}
    # Smaller objects are in Icechunk's own manifests.
    for file in (f for f in (repository / "chunks").iterdir() if f.stat().st_size > 512):
        data = file.read_bytes()
        file.write_bytes(data[:40] + bytes([data[40] ^ 4]) + data[41:])
        problems = nec.verify(name).problems
        assert len(problems) == 1, file
        key = problems[0].key
        if key.startswith("embedding"):
            shards[key] = file
            # The codec's own checksums tell plain readers too, who know no digests.
            with pytest.raises(Exception, match="checksum"):
                plainly(repository)["embedding"].load()
            with pytest.raises(StoreError, match=rf"{key} .*snapshot=.* is damaged"):
                nec.open(name)["embedding"].load()
        file.write_bytes(data)
    assert set(shards) == {"embedding/c/0/0/0", "embedding/c/0/1/0"}
    assert nec.verify(name).ok

    file = shards["embedding/c/0/0/0"]
    data = file.read_bytes()
    file.unlink()
    assert any("Icechunk says" in problem.what for problem in nec.verify(name).problems)
    with pytest.raises(StoreError, match=r"embedding/c/0/0/0 .*Icechunk says"):
        nec.open(name)["embedding"].load()
    file.write_bytes(data)

    # A shard in another one's place is intact in itself: the digests alone tell.
    storage = icechunk.local_filesystem_storage(str(repository))
    session = icechunk.Repository.open(storage).writable_session("main")
    wrong = default_buffer_prototype().buffer.from_bytes(data)
    sync(session.store.set("embedding/c/0/1/0", wrong))
    session.commit("another program")
    assert plainly(repository)["embedding"].load().shape
    with pytest.raises(StoreError, match=r"embedding/c/0/1/0 .* not the one that was written here"):
        nec.open(name)["embedding"].load()
    problems = nec.verify(name).problems
    assert [problem.key for problem in problems] == ["embedding/c/0/1/0"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"tag": "v2"}, "ref not found `v2`"),
        ({"snapshot": "AAAA"}, "invalid snapshot id"),
        ({"branch": "dev"}, "ref not found `dev`"),
        ({"as_of": "2020-01-01"}, "does not have a snapshot"),
        ({"as_of": "yesterday"}, "as_of=yesterday is no time; write it as"),
        ({"tag": "v1", "branch": "main"}, "main and v1 at once"),
    ],
)
def test_states_that_are_not_there(
    words: dict[str, str], match: str, whole_repository: Path
) -> None:
    with pytest.raises(StoreError, match=match):
        nec.open(f"icechunk:{whole_repository}", **words)


@pytest.fixture(scope="module")
def whole_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the golden series, tagged."""
    repository = tmp_path_factory.mktemp("whole") / "archive"
    nec.commit(Path(__file__).parent / "golden/v1/series.zarr", repository, tag="v1")
    return repository


def test_refusals(
    whole_repository: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = (
        (lambda: nec.open(whole_repository), f"open icechunk:{whole_repository}"),
        (lambda: nec.open(store, tag="v1"), "is no repository, so it has no tag"),
        (lambda: nec.open(f"icechunk:{whole_repository}#tg=v1"), "names no state"),
        (lambda: nec.open(f"icechunk:{tmp_path}/nowhere"), "no Icechunk repository at"),
        (lambda: nec.open("icechunk:ftp://a/b"), "nec opens no repositories on ftp://"),
        (lambda: nec.commit(store, tmp_path), "is there and is no Icechunk repository"),
        (lambda: nec.commit(store, f"icechunk:{whole_repository}#tag=v1"), "one state of"),
        (lambda: nec.commit(tmp_path / "no.zarr", tmp_path / "r"), "no store at"),
        (lambda: nec.commit(store, tmp_path / "r", branch="dev"), "ref not found `dev`"),
        (
            lambda: nec.commit(store, tmp_path / "r", storage_options={"endpoint_url": "x"}),
            "takes no endpoint_url",
        ),
        (
            lambda: nec.commit(store, "s3://a/b", storage_options={"key": "x"}),
            "does not take these options .*'key'",
        ),
    )
    for call, match in cases:
        with pytest.raises(StoreError, match=match):
            call()
    assert not (tmp_path / "nowhere").exists()
    monkeypatch.setitem(sys.modules, "icechunk", None)
    for call in (lambda: nec.commit(store, tmp_path / "r"), lambda: nec.open("icechunk:r")):
        with pytest.raises(MissingLibraryError, match=r"pip install 'nec\[icechunk\]'"):
            call()


def test_commands(store: Path, tmp_path: Path) -> None:
    repository = tmp_path / "archive"

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    told = run("commit", str(store), str(repository), "--tag", "v1", "-m", "two days")
    assert "#snapshot=" in told
    assert "nothing changed since" in run("commit", str(store), str(repository))
    history = run("history", str(repository))
    assert "two days" in history
    assert "v1" in history
    name = f"icechunk:{repository}#tag=v1"
    assert "2 from 2020-01-30" in run("info", name)
    assert "all objects are as written" in run("verify", name)


@pytest.fixture(scope="module")
def storage() -> Iterator[dict[str, Any]]:
    """Address and keys, in Icechunk's words, of a server with a bucket ``repositories``."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install moto[s3]")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="repositories")
    client.close()
    yield {
        "endpoint_url": url,
        "access_key_id": "test",
        "secret_access_key": "test",
        "region": "us-east-1",
    }
    server.stop()


def test_conflicts_in_object_storage(
    open_series: Open, store: Path, storage: dict[str, Any]
) -> None:
    url = "s3://repositories/conflict"
    name = f"icechunk:{url}"
    options = {"storage_options": storage}
    nec.commit(store, url, tag="v1", **options)
    two = nec.open(store).load()

    # Another process commits the same in the middle: there is nothing left to do.
    fill(open_series, store, THREE)
    others: list[nec.archive.Commit] = []

    def meanwhile(*_: int) -> None:
        if not others:
            others.append(nec.commit(store, url, **options))

    mine = nec.commit(store, url, progress=meanwhile, **options)
    assert others[0].new
    assert (mine.new, mine.snapshot) == (False, others[0].snapshot)

    # Another one appends and commits: what is committed last is the store as it is then.
    late = nec.commit(store, url, **options)
    assert not late.new
    nec.seal(store)
    moved: list[str] = []

    def move(*_: int) -> None:
        if not moved:
            moved.append(_foreign_commit(url, storage))

    sealed = nec.commit(store, url, progress=move, **options)
    assert sealed.new
    told = nec.history(url, **options)
    assert [one.id for one in told[:3]] == [sealed.snapshot, moved[0], others[0].snapshot]
    assert nec.open(name, **options).load().equals(nec.open(store).load())
    assert nec.open(name, tag="v1", **options).load().equals(two)
    assert nec.open(name, **options).nec.features().load().sizes["time"] == 3
    assert len(nec.open(name, **options).nec.scenes) == 3
    assert nec.verify(name, **options).ok


def test_ever_new_conflicts_end(open_series: Open, store: Path, storage: dict[str, Any]) -> None:
    url = "s3://repositories/busy"
    before = nec.commit(store, url, storage_options=storage)
    fill(open_series, store, THREE)
    with pytest.raises(StoreError, match="changed 5 times meanwhile"):
        nec.commit(
            store,
            url,
            storage_options=storage,
            progress=lambda *_: _foreign_commit(url, storage),
        )
    now, then = (
        nec.open(name, storage_options=storage) for name in (f"icechunk:{url}", before.name)
    )
    assert now.load().equals(then.load())


def _foreign_commit(url: str, options: dict[str, Any]) -> str:
    """Commit an object as it was, as another program may: the branch has moved all the same."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    storage = icechunk.s3_storage(
        bucket=bucket, prefix=prefix, force_path_style=True, allow_http=True, **options
    )
    session = icechunk.Repository.open(storage).writable_session("main")
    group = zarr.open_group(session.store, mode="r+", use_consolidated=False)
    group["time"][:] = group["time"][:]
    return str(session.commit("another program"))


def test_a_store_that_grows_while_it_is_committed(
    open_series: Open, store: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "archive"
    grown: list[str] = []

    def grow(*_: int) -> None:  # when metadata are written, and chunks are not
        if not grown:
            grown.append("now")
            fill(open_series, store, THREE)

    done = nec.commit(store, repository, progress=grow)
    found = nec.open(f"icechunk:{repository}").load()
    assert found.equals(nec.open(store).load())
    assert found.sizes["time"] == 3
    assert nec.verify(f"icechunk:{repository}").ok
    assert [one.id for one in nec.history(repository)] == [done.snapshot]
