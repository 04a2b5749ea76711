"""Stores of each format version, written when it was frozen: they read the same forever."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import nec
from nec.errors import StoreError

FOLDER = Path(__file__).parent / "golden"
GOLDEN = FOLDER / "v1"
STORES = ("v1/plain", "v1/guarded", "v1/tiny", "v1/series", "v2/lone", "v2/guarded")


@pytest.mark.parametrize("name", STORES)
def test_golden_stores_decode_to_the_same_bits(name: str) -> None:
    store = FOLDER / f"{name}.zarr"
    assert nec.verify(store).ok
    with np.load(FOLDER / f"{name}.npz") as expected:
        assert expected.files
        for dataset in (xr.open_zarr(store), nec.open(store)):
            assert f"v{dataset.nec.info['format_version']}" == name[:2]
            for array in expected.files:
                decoded = dataset[array].to_numpy()
                assert decoded.dtype == np.float32
                missing = np.isnan(expected[array])
                assert np.array_equal(np.isnan(decoded), missing)
                bits = decoded[~missing].view(np.uint32)
                assert np.array_equal(bits, expected[array][~missing].view(np.uint32))


def test_the_golden_series_holds_its_times_and_scenes() -> None:
    dataset = nec.open(GOLDEN / "series.zarr")
    days = ["2020-05-01", "2020-06-03", "2021-01-03"]
    assert dataset["time"].dt.strftime("%F").values.tolist() == days
    assert dataset["embedding"].dims == ("time", "band", "y", "x")
    assert dataset["embedding"].isel(time=1, x=slice(32, 64)).isnull().all()
    assert dataset.nec.scenes["name"].tolist() == ["scene0", "scene1", "scene2"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_guarded_store_uses_what_a_guarantee_needs(version: str) -> None:
    from nec.archive.creation import read_root, stored_arrays
    from nec.archive.shard import chunks_of
    from nec.codec import Coding
    from nec.codec.container import CODES, PATCHES, REFINEMENTS, VERBATIM, take_apart

    store = FOLDER / version / "guarded.zarr"
    array = stored_arrays(read_root(store))["embedding"]
    document = json.loads((store / "embedding" / "zarr.json").read_bytes())
    inner = document["codecs"][0]["configuration"]["codecs"][0]["configuration"]
    coding = Coding.from_dict(inner)
    found = set()
    for shard in (store / "embedding" / "c").rglob("*"):
        if shard.is_file():
            for _, chunk in chunks_of(array, shard.read_bytes()):
                assert chunk is not None
                found |= set(take_apart(memoryview(chunk), coding))
    assert {REFINEMENTS, VERBATIM, PATCHES} <= found
    assert (CODES in found) == (version == "v2")


@pytest.mark.parametrize("name", ["v1/tiny", "v2/lone"])
def test_flipped_bits_and_truncations_are_named(name: str, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    shutil.copytree(FOLDER / f"{name}.zarr", store)
    rng = np.random.default_rng(0)
    for file in sorted(p for p in store.rglob("*") if p.is_file()):
        key = file.relative_to(store).as_posix()
        data = file.read_bytes()
        damaged = [data[: int(cut)] for cut in rng.integers(0, len(data), 3)]
        for bit in rng.integers(0, 8 * len(data), 5):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            damaged.append(bytes(flipped))
        for broken in damaged:
            file.write_bytes(broken)
            named: set[str] = set()
            try:
                named = {problem.key for problem in nec.verify(store).problems}
            except StoreError:  # no root, or of a version that nobody knows
                named = {"zarr.json"}
            assert key in named
        file.write_bytes(data)
    assert nec.verify(store).ok


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_parts_of_a_guarded_store_are_parts_of_the_whole(version: str) -> None:
    store = FOLDER / version / "guarded.zarr"
    whole = nec.open(store)["embedding"].to_numpy()
    few = nec.open(store, bands=2)["embedding"].to_numpy()
    assert np.array_equal(few, whole[:2], equal_nan=True)
    coarse = nec.open(store, overview=4)["embedding"].to_numpy()
    assert coarse.shape == (6, *(size // 4 for size in whole.shape[1:]))
    assert np.isfinite(coarse).any()
