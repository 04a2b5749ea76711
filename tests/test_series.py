"""Scenes of many days in one store a grid: appended, resumed, merged, read; never half there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import RasterWriter
from typer.testing import CliRunner

import nec
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


def test_scenes_of_a_day_lie_over_each_other_by_name(
    write: Write, model: Model, tmp_path: Path
) -> None:
    low = write("s/20200501_a.tif", 1, hole=slice(0, 16))
    top = write("s/20200501_b.tif", 2, hole=slice(24, 48))
    out = encode([top, low], tmp_path / "both", model)
    assert out.ok
    # What both together are, as one scene: b wherever it has pixels, a below.
    import rasterio

    with rasterio.open(low) as file:
        numbers, profile = file.read(), file.profile
    with rasterio.open(top) as file:
        upper = file.read()
    numbers = np.where(upper > 0, upper, numbers)
    one = tmp_path / "20200501_one.tif"
    with rasterio.open(one, "w", **profile) as file:
        file.write(numbers)
        file.descriptions = BANDS
        file.scales = (1e-4,) * 3
    encode([one], tmp_path / "one", model)
    a, b = (nec.open(the_store(tmp_path / folder)) for folder in ("both", "one"))
    assert a["embedding"].identical(b["embedding"])
    assert a.nec.info["masked_fraction"] == [0.0]
    scenes = a.nec.scenes
    assert scenes["name"].tolist() == ["20200501_a", "20200501_b"]
    assert scenes["shards"].tolist() == [((0, 0), (0, 1))] * 2

    # A second scene of the day comes in later, with and without the first.
    assert encode([low], tmp_path / "late", model).ok
    alone = encode([top], tmp_path / "late", model)
    assert "pass the scenes of a day together" in alone.failures["20200501_b"]
    other = nec.open(the_store(tmp_path / "late"))
    assert other.nec.info["masked_fraction"] == [pytest.approx(1 / 3, abs=1e-4)]
    assert encode([low, top], tmp_path / "late", model).ok
    assert objects(tmp_path / "late") == objects(tmp_path / "both")


def test_a_day_that_comes_too_late_is_refused_and_taken_in_elsewhere(
    write: Write, model: Model, tmp_path: Path
) -> None:
    for day in (1, 3):
        write(f"s/2020050{day}.tif", day)
    encode(tmp_path / "s", tmp_path / "out", model)
    before = objects(tmp_path / "out")
    write("s/20200502.tif", 2)
    report = encode(tmp_path / "s", tmp_path / "out", model)
    assert "2020-05-02 comes before 2020-05-03" in report.failures["20200502"]
    assert list(report.failures) == ["20200502"]
    assert objects(tmp_path / "out") == before
    told: list[Any] = []
    again = encode(
        tmp_path / "s", tmp_path / "new", model, reuse=tmp_path / "out", progress=told.append
    )
    assert again.ok
    assert told[-1].pixels == 40 * 48  # of the one scene that is new
    encode(tmp_path / "s", tmp_path / "straight", model)
    assert objects(tmp_path / "new") == objects(tmp_path / "straight")


def test_a_lost_object_of_a_series_that_is_used_again_is_made_anew(
    write: Write, model: Model, tmp_path: Path
) -> None:
    write("s/20200501.tif", 1, corner=WITHIN)
    encode(tmp_path / "s", tmp_path / "out", model)
    whole = objects(tmp_path / "out")
    next(the_store(tmp_path / "out").glob("embedding/c/*/*/*/*")).unlink()
    assert encode(tmp_path / "s", tmp_path / "new", model, reuse=tmp_path / "out").ok
    assert objects(tmp_path / "new") == whole


def test_a_series_is_not_sealed_without_a_scene_that_may_come(
    write: Write, model: Model, tmp_path: Path
) -> None:
    write("s/20200501.tif", 1, corner=WITHIN)
    late = write("s/20200502.tif", 2, corner=WITHIN)
    whole = late.read_bytes()
    for broken in (whole[:4], whole[:-200]):  # its header, and its pixels
        late.write_bytes(broken)
        report = encode(tmp_path / "s", tmp_path / "out", model, sealing=True)
        assert not report.ok
        assert "seal" not in xr.open_zarr(the_store(tmp_path / "out")).attrs["nec"]
    late.write_bytes(whole)
    assert encode(tmp_path / "s", tmp_path / "out", model, sealing=True).ok
    assert "seal" in xr.open_zarr(the_store(tmp_path / "out")).attrs["nec"]


def test_a_bad_contributor_holds_up_its_own_shards_alone(
    write: Write, model: Model, tmp_path: Path
) -> None:
    left, top = WITHIN
    options = {"area": (left, top - 1000, left + 10 * SHARD * 2.5, top)}
    write("s/20200501_a.tif", 1)  # reaches beyond the area, where it is cut
    corner = (left + 10 * SHARD + 3000, top)
    bad = write("s/20200501_b.tif", 2, corner=corner, shape=(120, 48), compress="deflate")
    far = write("s/20200501_c.tif", 3, corner=(left + 24500, top))
    write("s/20200503.tif", 4)
    whole = bad.read_bytes()
    middle = len(whole) // 2
    bad.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    report = encode(tmp_path / "s", tmp_path / "out", model, **options)
    assert [key.rpartition(" ")[2] for key in report.failures] == ["0.1"]
    assert all("20200501_b.tif" in reason for reason in report.failures.values())
    store = the_store(tmp_path / "out")
    scenes = nec.open(store).nec.scenes
    assert scenes["shards"].tolist() == [((0, 0),), ((0, 1),), ((0, 2),), ((0, 0),)]
    assert nec.verify(store).failed == (f"0.1: {next(iter(report.failures.values()))}",)

    # Not to be opened at all: the shard waits for it. Given up: it is missing.
    bad.write_text("no raster any more")
    report = encode(tmp_path / "s", tmp_path / "out", model, **options)
    assert set(report.failures) == {"20200501_b"}
    bad.unlink()
    assert encode(tmp_path / "s", tmp_path / "out", model, **options).ok
    assert nec.verify(store).ok
    assert "20200501_b" not in nec.open(store).nec.scenes["name"].tolist()
    # Back again: only its own shard is made anew.
    bad.write_bytes(whole)
    kept = (store / "embedding/c/0/0/0/2").stat().st_mtime_ns
    assert encode(tmp_path / "s", tmp_path / "out", model, **options).ok
    assert (store / "embedding/c/0/0/0/2").stat().st_mtime_ns == kept
    encode(tmp_path / "s", tmp_path / "straight", model, **options)
    assert objects(tmp_path / "out") == objects(tmp_path / "straight")
    # A part of a day alone goes in where it shares no shard with what is not brought.
    assert encode([far], tmp_path / "out", model, **options).ok
    assert objects(tmp_path / "out") == objects(tmp_path / "straight")


def test_scenes_that_do_not_fit_are_named(write: Write, model: Model, tmp_path: Path) -> None:
    write("s/20200501.tif", 1)
    write("s/undated.tif", 2)
    report = encode(tmp_path / "s", tmp_path / "out", model)
    assert list(report.failures) == ["undated"]
    assert "tells no time of acquisition" in report.failures["undated"]
    assert "--time" in report.failures["undated"]
    write("s/20200501.tif", 7)
    before = objects(tmp_path / "out")
    report = encode(tmp_path / "s", tmp_path / "out", model)
    assert "has changed since it was encoded" in report.failures["20200501"]
    assert objects(tmp_path / "out") == before
    # The table says when, and of what day it is a scene.
    (tmp_path / "table.csv").write_text("path,time\ns/undated.tif,2020-05-02T10:20:30\n")
    assert encode(tmp_path / "table.csv", tmp_path / "out", model).ok
    dataset = nec.open(the_store(tmp_path / "out"))
    assert dataset["time"].dt.strftime("%F %T").values.tolist() == [
        "2020-05-01 00:00:00",
        "2020-05-02 00:00:00",
    ]
    assert str(dataset.nec.scenes["acquired"].iloc[1]) == "2020-05-02 10:20:30"
    # Another model's rate does not go into the same store.
    report = encode(tmp_path / "table.csv", tmp_path / "out", model, rate="low")
    assert "is of another run" in report.failures["undated"]


def test_clouds_are_masked_and_told_by_time(write: Write, model: Model, tmp_path: Path) -> None:
    import rasterio

    for day, clouds in ((1, 0), (2, 12)):
        path = write(f"202005{day:02}.tif", day)
        with rasterio.open(path) as file:
            profile = file.profile | {"count": 1, "dtype": "uint8", "nodata": None}
        classes = np.full((1, 40, 48), 4, np.uint8)
        classes[:, :, :clouds] = 9
        folder = tmp_path / "s" / f"202005{day:02}"
        folder.mkdir(parents=True)
        with rasterio.open(folder / "T33_SCL_10m.tif", "w", **profile) as file:
            file.write(classes)
        path.rename(folder / path.name)
    line = ["encode", str(tmp_path / "s"), str(tmp_path / "out"), "--series", "--workers", "1"]
    result = CliRunner().invoke(app, [*line, "--mask", "SCL", "--mask-classes", "3,8,9,10"])
    assert result.exit_code == 0, result.output
    assert "2 scenes, 2 complete" in result.output
    dataset = nec.open(the_store(tmp_path / "out"))
    assert dataset.nec.info["masked_fraction"] == [0.0, 0.25]
    valid = dataset["embedding"][:, 0].notnull().sum(("y", "x"))
    assert valid.values.tolist() == [120, 90]
    told = CliRunner().invoke(app, ["info", str(the_store(tmp_path / "out"))]).output
    assert "2 from 2020-05-01 to 2020-05-02" in told
    assert "0.0%, 25.0%" in told
    both = CliRunner().invoke(app, [*line, "--each"])
    assert both.exit_code != 0
