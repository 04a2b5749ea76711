"""A small box over HTTP, from a real server: few requests, few bytes, none in vain."""

from pathlib import Path

import numpy as np
import pytest
from conftest import RasterWriter

import nec


def test_a_small_box_takes_few_requests_and_bytes(
    write_raster: RasterWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "pipelines")
    from production_bench.ranges import served, traffic_of

    # Across the corner of four shards, which lie at multiples of 1,024 pixels.
    numbers = np.random.default_rng(0).integers(200, 3000, (3, 256, 256)).astype(np.uint16)
    scene = write_raster(
        "four.tif",
        numbers,
        bands=("red", "nir08", "blue"),
        scales=(1e-4,) * 3,
        corner=(10240.0 * 40 - 1280, 10240.0 * 500 + 1280),
    )
    store = tmp_path / "s.zarr"
    model = nec.load_model("nec-tiny", precision="float32")
    assert nec.encode(scene, store, model=model, rate="high").written == 4
    nec.seal(store)
    here = nec.open(store)["embedding"]
    valid = here.isel(band=0).notnull().to_numpy()
    rows, columns = (np.flatnonzero(valid.any(axis)) for axis in (1, 0))
    # 16 x 16 tokens of one shard, the upper left one.
    box = {"y": slice(rows[0], rows[0] + 16), "x": slice(columns[0], columns[0] + 16)}
    shard = store / "embedding" / "c" / "0" / "0" / "0"
    with served(tmp_path) as (url, log, _):
        values, traffic = traffic_of(
            log, lambda: nec.open(f"{url}/s.zarr")["embedding"].isel(box).to_numpy()
        )
        few, part = traffic_of(
            log, lambda: nec.open(f"{url}/s.zarr", bands=4)["embedding"].isel(box).to_numpy()
        )
    assert np.array_equal(values, here.isel(box).to_numpy())
    assert np.array_equal(few, values[:4])
    # zarr.json, the manifest and its part, coordinates of five axes, one shard.
    assert traffic["not_found"] == part["not_found"] == 0
    assert traffic["requests"] <= 9
    metadata = [
        store / "zarr.json",
        *(store / "nec").glob("manifest*"),
        store / "nec/manifest/0.json",
    ]
    fixed = sum(file.stat().st_size for file in metadata if file.is_file())
    axes = sum(
        f.stat().st_size
        for n in ("band", "x", "y", "cell_x", "cell_y")
        for f in (store / n / "c").rglob("*")
        if f.is_file()
    )
    assert traffic["bytes"] <= fixed + axes + shard.stat().st_size
    assert part["requests"] <= traffic["requests"] + 3
    assert part["bytes"] <= traffic["bytes"]
