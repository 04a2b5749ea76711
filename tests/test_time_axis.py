"""Times of a store: appended in one step, resumed, never half there, each read by itself."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_series import BANDS, DAYS, Open, fill

import nec
from nec.errors import StoreError

OLD, FRESH = slice(0, 2), slice(2, 4)


class KilledError(Exception):
    """Stands for a kill: nothing more is put after it."""


def tree(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(open_series: Open, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one run over all days."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    fill(open_series, path, DAYS)
    return path


@contextmanager
def killed_after(puts: int) -> Iterator[None]:
    """Let so many files come to their final name, and no more."""
    replace, left = Path.replace, [puts]

    def counted(self: Path, target: Path) -> Path:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        yield


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cuts=st.lists(st.integers(1, len(DAYS)), unique=True, max_size=2).map(sorted),
    kills=st.lists(st.integers(0, 40), max_size=3),
)
def test_runs_and_kills_leave_no_trace(
    open_series: Open,
    whole: Path,
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    kills: list[int],
) -> None:
    path = tmp_path_factory.mktemp("parts") / "s.zarr"
    for end in [*cuts, len(DAYS)]:
        for kill in kills:
            with killed_after(kill):
                try:
                    fill(open_series, path, DAYS[:end])
                except KilledError:
                    assert nec.verify(path).ok if path.exists() else True
        fill(open_series, path, DAYS[:end])
    assert tree(path) == tree(whole)


def test_readers_see_the_store_as_it_was_or_as_it_is(
    open_series: Open, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.zarr"
    fill(open_series, path, DAYS[OLD])
    before = xr.open_zarr(path)  # opened before the append, read after it
    expected = xr.open_zarr(whole).load()
    first = before.load().copy()
    seen = set()
    for puts in range(60):
        with killed_after(puts):
            try:
                fill(open_series, path, DAYS)
            except KilledError:
                stopped = True
            else:
                stopped = False
        # Plain, checked, and by byte range.
        for dataset in (xr.open_zarr(path), nec.open(path), nec.open(path, bands=2)):
            count = dataset.sizes["time"]
            seen.add(count)
            assert dataset.sizes["time"] in {2, 4}
            assert dataset["time"].equals(expected["time"][:count])
            held = dataset["embedding"].load()
            reference = expected["embedding"][:count, : dataset.sizes["band"]]
            # What is there is right; what is not yet is missing.
            assert bool(((held == reference) | held.isnull()).all())
            assert held[OLD].equals(reference[OLD])
        assert nec.verify(path).ok
        if not stopped:
            break
    assert seen == {2, 4}
    assert first.equals(before.load())
    assert tree(path) == tree(whole)


def test_two_producers_append_and_fill_at_once(
    open_series: Open, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.zarr"
    fill(open_series, path, DAYS[:1])

    def produce(days: list[np.datetime64]) -> None:
        fill(open_series, path, days)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(produce, DAYS[:n]) for n in (3, 4, 3, 4)]:
            done.result()
    assert tree(path) == tree(whole)


def test_days_before_the_last_one_stay_out(open_series: Open, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    fill(open_series, path, DAYS[1:2])
    before = tree(path)
    _, index = open_series(path, DAYS[:2])
    assert index == {DAYS[1]: 0}
    assert tree(path) == before


def test_every_time_is_read_by_itself(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    shutil.copytree(whole, path)
    nec.seal(path)
    assert nec.verify(path).ok
    plain = xr.open_zarr(path)
    assert plain["embedding"].rio.crs.to_epsg() == 32632
    assert plain["embedding"].dims == ("time", "band", "y", "x")
    assert plain["embedding"].chunks[0] == (1, 1, 1, 1)
    dataset = nec.open(path)
    before = dataset.nec.traffic.requests
    dataset["embedding"].isel(time=2, y=slice(0, 8), x=slice(0, 8)).load()
    # One shard of one time, and the part of the manifest that vouches for it.
    assert dataset.nec.traffic.requests - before <= 2
    two = nec.open(path, bands=2)["embedding"]
    assert two.isel(time=3).equals(plain["embedding"].isel(time=3, band=slice(0, 2)))
    coarse = nec.open(path, overview=4)["embedding"]
    assert coarse.sizes == {"time": 4, "band": BANDS, "y": 16, "x": 16}
    assert not coarse.isel(time=0).equals(coarse.isel(time=1))
    alone = nec.open(path, overview=4)["embedding"].isel(time=1, y=slice(0, 8)).load()
    assert alone.equals(coarse.isel(time=1, y=slice(0, 8)).load())
    features = dataset.nec.features()
    assert features.dims == ("time", "feature", "y", "x")
    assert features.isel(time=1).equals(dataset.isel(time=1).nec.features())
    assert dataset.nec.scenes["name"].tolist() == [f"scene of {day}" for day in DAYS]
    late = tmp_path / "late.png"
    dataset.nec.quicklook(tmp_path / "first.png")
    dataset.nec.quicklook(late, time=3)
    assert late.read_bytes() != (tmp_path / "first.png").read_bytes()

    # Shards of two times that are swapped hold right checksums, and are noticed.
    a, b = (path / f"embedding/c/{time}/0/0/0" for time in (0, 1))
    data = a.read_bytes(), b.read_bytes()
    a.write_bytes(data[1])
    b.write_bytes(data[0])
    keys = {problem.key for problem in nec.verify(path).problems}
    assert keys == {"embedding/c/0/0/0/0", "embedding/c/1/0/0/0"}
    with pytest.raises(StoreError, match="embedding/c/1/0/0/0"):
        nec.open(path)["embedding"].isel(time=1).load()


def test_points_are_taken_at_every_time(whole: Path) -> None:
    geopandas = pytest.importorskip("geopandas", reason="needs nec[heads]")
    x, y = [400_020.0, 400_500.0, 400_100.0], [4_999_500.0, 4_999_500.0, 4_999_999.0]
    points = geopandas.GeoDataFrame(
        {"label": [1, 2, 3]}, geometry=geopandas.points_from_xy(x, y), crs="EPSG:32632"
    )
    table = nec.sample(whole, points)
    dataset = nec.open(whole)
    one = nec.sample(dataset["embedding"].isel(time=1), points)
    same = table[table["time"] == DAYS[1]].drop(columns="time")
    assert same.equals(one)
    assert table["time"].nunique() == len(DAYS)
    with pytest.raises(nec.errors.HeadError, match="already have a column 'time'"):
        nec.sample(whole, points.assign(time=0))


def test_more_times_than_a_chunk_of_the_coordinate_holds(
    open_series: Open, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (nec.archive.layout, nec.archive.series):
        monkeypatch.setattr(module, "TIMES", 3)
    path = tmp_path / "s.zarr"
    for end in (1, 2, 4):
        fill(open_series, path, DAYS[:end])
    assert {file.name for file in (path / "time/c").iterdir()} == {"0", "1"}
    assert xr.open_zarr(path)["embedding"].equals(xr.open_zarr(whole)["embedding"])
    assert nec.verify(path).ok
    (path / "time/c/1").unlink()
    assert "time/c/1" in {problem.key for problem in nec.verify(path).problems}
