"""Scenes of many days in one store a grid: appended, resumed, merged, read; never half there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import RasterWriter
from typer.testing import CliRunner

import nec
from nec.archive import StoreWriter
from nec.cli import app
from nec.model import Model
from nec.production import Retries

BANDS = ("blue", "red", "nir08")
SHARD = 1024
ONCE = Retries(count=0)
# Across the corner of two shards, and one pixel inside of one.
ACROSS = (10 * (SHARD * 40 - 24), 10 * SHARD * 570.0)
WITHIN = (10 * SHARD * 40.0, 10 * SHARD * 570.0)

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Model:
    return nec.load_model("nec-tiny", precision="float32")


@pytest.fixture
def write(write_raster: RasterWriter) -> Write:
    """Return a function that writes a scene of noise, another one for every seed."""

    def make(
        name: str,
        seed: int = 0,
        *,
        corner: tuple[float, float] = ACROSS,
        hole: slice | None = None,
        shape: tuple[int, int] = (40, 48),
        **options: Any,
    ) -> Path:
        numbers = np.random.default_rng(seed).integers(200, 3000, (3, *shape)).astype(np.uint16)
        if hole is not None:
            numbers[:, :, hole] = 0
        options = {"blockysize": 8, "nodata": 0, **options}
        return write_raster(
            name, numbers, bands=BANDS, scales=(1e-4,) * 3, corner=corner, **options
        )

    return make


def objects(folder: Path) -> dict[str, bytes]:
    files = (f for f in folder.glob("*.zarr/**/*") if f.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def encode(source: Any, folder: Path, model: Model, **options: Any) -> Any:
    options = {"workers": 1, "retries": ONCE, **options}
    return nec.encode_archive(source, folder, model=model, series=True, **options)


def the_store(folder: Path) -> Path:
    (store,) = folder.glob("*.zarr")
    return store


def test_days_append_to_the_same_bytes_as_in_one_run(
    write: Write, model: Model, tmp_path: Path
) -> None:
    a = write("s/f_2020-05-01.tif", 1)
    b = write("s/f_2020-06-03.tif", 2, corner=WITHIN)
    c = write("s/f_20210103.tif", 3)
    north = write("s/g_2020-05-01.tif", 4, corner=(WITHIN[0], WITHIN[1] + 10 * SHARD))
    whole = encode(tmp_path / "s", tmp_path / "whole", model)
    assert whole.ok
    assert len(whole.stores) == 3  # b lies in one shard of the two that a and c lie in
    assert len(list((tmp_path / "whole").glob("*.zarr"))) == 3

    for scenes in ([a], [b, north], [a, c]):
        assert encode(scenes, tmp_path / "parts", model).ok
    assert objects(tmp_path / "whole") == objects(tmp_path / "parts")
    (name,) = [n for n, report in whole.stores.items() if report.written == 4]
    store = tmp_path / "whole" / f"{name}.zarr"
    assert nec.verify(store).ok
    plain = xr.open_zarr(store)
    assert plain["embedding"].dims == ("time", "band", "y", "x")
    assert plain["scene_embedding"].dims == ("time", "band", "cell_y", "cell_x")
    assert plain["time"].dt.strftime("%F").values.tolist() == ["2020-05-01", "2021-01-03"]
    assert plain["embedding"].encoding["chunks"][:1] == (1,)

    nec.seal(store)
    sealed = objects(tmp_path / "whole")
    again = encode([a, c], tmp_path / "whole", model)
    assert again.ok
    assert again.sealed == ("f_2020-05-01", "f_20210103")
    late = encode([write("s/f_2022-01-01.tif", 5)], tmp_path / "whole", model)
    assert "is sealed" in late.failures["f_2022-01-01"]
    assert "another folder" in late.failures["f_2022-01-01"]
    assert objects(tmp_path / "whole") == sealed
    assert nec.verify(store).ok
