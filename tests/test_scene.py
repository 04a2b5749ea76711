"""`nec.scene`: bands, grids, windows, missing pixels and scalings of all kinds of sources."""

import logging
import os
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import xarray as xr
from affine import Affine
from conftest import CORNER, RasterWriter
from odc.geo.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from nec.errors import SceneError
from nec.scene import open_scene

ALL = slice(None)


def numbers(bands: int = 2, height: int = 12, width: int = 15, dtype: str = "uint16") -> np.ndarray:
    """Every pixel different, none zero."""
    count = bands * height * width
    return (np.arange(1, count + 1) * 7).reshape(bands, height, width).astype(dtype)


def test_window_outside_is_nan_and_inside_is_exact(write_raster: RasterWriter) -> None:
    dn = numbers()
    scene = open_scene(write_raster("S2.tif", dn, bands=("red", "nir")))
    expected = dn.astype(np.float32) * np.float32(1e-4)
    assert np.array_equal(scene.read(ALL, ALL), expected)

    window = scene.read(slice(-3, 20), slice(-2, 9))
    assert window.dtype == np.float32
    assert window.shape == (2, 23, 11)
    assert np.array_equal(window[:, 3:15, 2:], expected[:, :, :9])
    assert np.isnan(window).sum() == window.size - 2 * 12 * 9
    assert np.isnan(scene.read(slice(100, 104), slice(-8, -4))).all()
    assert scene.read(slice(4, 4), ALL).shape == (2, 0, 15)
    assert (scene.geobox.affine.c, scene.geobox.affine.f) == CORNER


def test_a_pixel_missing_in_one_band_is_missing_in_all(write_raster: RasterWriter) -> None:
    dn = numbers()
    dn[1, 3, 4] = 0
    tagged = open_scene(write_raster("S2.tif", dn, bands=("red", "nir"), nodata=0))
    read = tagged.read(ALL, ALL)
    assert np.isnan(read[:, 3, 4]).all()
    assert np.isnan(read).sum() == 2

    path = write_raster("S2_untagged.tif", dn, bands=("red", "nir"))
    assert not np.isnan(open_scene(path).read(ALL, ALL)).any()
    assert np.isnan(open_scene(path, nodata=0).read(ALL, ALL)).sum() == 2
    mask = np.zeros((12, 15), bool)
    mask[:2] = True
    masked = open_scene(path, nodata=0, mask=mask)
    assert np.isnan(masked.read(slice(-1, 12), ALL)).sum() == 2 * (15 + 30 + 1)
    assert np.array_equal(
        masked.read(ALL, ALL), open_scene(path, nodata=0, mask=_stored(mask, path)).read(ALL, ALL),
        equal_nan=True,
    )  # fmt: skip
    floats = dn * np.float32(1e-4)
    floats[0, 5, 6] = np.nan
    path = write_raster("floats.tif", floats, bands=("red", "nir"))
    assert np.isnan(open_scene(path).read(ALL, ALL)).sum() == 2


def test_zeros_in_all_bands_are_the_fill_of_known_sensors(
    write_raster: RasterWriter, caplog
) -> None:
    dn = numbers()
    dn[0, 3, 4] = 0  # dark in one band only
    dn[:, 5, 6] = 0
    path = write_raster("S2_untagged.tif", dn, bands=("red", "nir"))
    with caplog.at_level(logging.INFO, "nec.scene"):
        scene = open_scene(path)
    assert "missing where all bands are 0, the fill of Sentinel-2" in caplog.text
    assert np.argwhere(np.isnan(scene.read(slice(0, 12), ALL)[1])).tolist() == [[5, 6]]
    assert np.argwhere(np.isnan(scene.read(slice(5, 9), slice(6, 9))[0])).tolist() == [[0, 0]]
    assert np.isnan(open_scene(path, nodata=int(dn[0, 0, 0])).read(ALL, ALL)[0]).sum() == 2
    other = write_raster("other.tif", dn, bands=("red", "nir"))
    assert not np.isnan(open_scene(other, scale=1e-4).read(ALL, ALL)).any()
    tagged = write_raster("S2_tagged.tif", dn, bands=("red", "nir"), nodata=65535)
    assert not np.isnan(open_scene(tagged).read(ALL, ALL)).any()
    # A negative fill is no reflectance in any band.
    dn = dn.astype(np.int16)
    dn[0, 3, 4] = dn[1, 7, 8] = -9999
    hls = open_scene(write_raster("HLS.S30.T33UUU.tif", dn, bands=("red", "nir")))
    assert np.argwhere(np.isnan(hls.read(ALL, ALL)[1])).tolist() == [[3, 4], [7, 8]]
    # Of bands of two resolutions, all must be empty.
    for band, pixel, factor in (("B02", 10.0, 1), ("B11", 20.0, 2)):
        part = numbers(1, 12 // factor, 16 // factor)
        part[0, : 6 // factor] = 0
        part[0, 0, 0] = 9 if band == "B11" else 0
        folder = write_raster(f"two/S2_{band}.tif", part, pixel=pixel).parent
    absent = np.isnan(open_scene(folder).read(ALL, ALL)[0])
    assert absent.sum() == 6 * 16 - 4
    assert not absent[:2, :2].any()


@pytest.mark.parametrize(
    ("name", "given", "warned"),
    [
        ("T33UUU_20220810T102101.tif", {}, True),
        ("T33UUU_20220124T102101.tif", {}, False),
        ("S2A_MSIL2A_20220810T102101_N0400_R065.tif", {}, False),
        ("S2A_MSIL2A_20220810T102101_N0301_R065.tif", {}, False),
        ("T33UUU_20220810T102101.tif", {"offset": 0}, False),
        ("LC09_L2SP_042024_20220810_x.tif", {}, False),
    ],
)
def test_sentinel2_of_unknown_baseline_is_warned_of(
    write_raster: RasterWriter, caplog, name, given, warned
) -> None:
    open_scene(write_raster(name, numbers(), bands=("red", "nir")), **given)
    assert ("pass offset=-0.1" in caplog.text) == warned


def _stored(mask: np.ndarray, beside: Path) -> Path:
    path = beside.with_name("mask.tif")
    with rasterio.open(beside) as like:
        profile = like.profile | {"count": 1, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(mask.astype(np.uint8), 1)
    return path


def test_south_up_equals_turned(write_raster: RasterWriter) -> None:
    dn = numbers()
    dn[0, 2, 3] = 0
    north = open_scene(write_raster("S2_n.tif", dn, bands=("red", "nir"), nodata=0))
    bottom = Affine(10, 0, CORNER[0], 0, 10, CORNER[1] - 120)
    path = write_raster("S2_s.tif", dn[:, ::-1], bands=("red", "nir"), nodata=0, transform=bottom)
    with rasterio.open(path) as dataset:
        array = xr.DataArray(dataset.read(), dims=("band", "y", "x"), name="S2")
    array = array.assign_coords(
        band=["red", "nir"],
        y=CORNER[1] - 115 + 10.0 * np.arange(12),
        x=CORNER[0] + 5 + 10.0 * np.arange(15),
    )
    turned = open_scene(array.assign_attrs(_FillValue=0), crs="EPSG:32633")
    for south in (open_scene(path), turned):
        assert south.geobox == north.geobox
        for rows in (ALL, slice(-2, 5), slice(7, 30)):
            expected = north.read(rows, slice(1, 9))
            assert np.array_equal(south.read(rows, slice(1, 9)), expected, equal_nan=True)


@pytest.fixture
def granule(write_raster: RasterWriter) -> Path:
    """Return a folder of B02 at 10 m, B11 at 20 m and B01 at 60 m, and a preview."""
    for band, pixel, factor in (("B02", 10, 1), ("B11", 20, 2), ("B01", 60, 6)):
        dn = numbers(1, 24 // factor, 36 // factor)
        path = write_raster(f"granule/T33UUU_20200810T102101_{band}.tif", dn, pixel=float(pixel))
    preview = numbers(3, 24, 36, "uint8")
    write_raster("granule/T33UUU_20200810T102101_TCI.tif", preview, photometric="RGB")
    (path.parent / "notes.gpkg").write_bytes(b"no raster")
    return path.parent


def test_folder_of_resolutions(granule: Path) -> None:
    scene = open_scene(granule)
    assert scene.bands == ("coastal", "blue", "swir16")
    assert tuple(scene.geobox.shape) == (24, 36)
    assert scene.time == np.datetime64("2020-08-10T10:21:01")
    assert "Sentinel-2" in scene.scaling.source
    coastal, blue, swir16 = scene.read(ALL, ALL) * 1e4
    assert np.allclose(blue, numbers(1, 24, 36)[0])
    assert np.allclose(swir16, numbers(1, 12, 18)[0].repeat(2, 0).repeat(2, 1))
    assert np.allclose(coastal, numbers(1, 4, 6)[0].repeat(6, 0).repeat(6, 1))
    # A window that starts and ends inside coarse pixels, and reaches outside.
    part = scene.read(slice(5, 27), slice(-1, 7))
    assert np.array_equal(part[:, :19, 1:], scene.read(ALL, ALL)[:, 5:, :7])
    assert np.isnan(part[:, 19:]).all()

    coarse = scene.select(["swir16", "coastal"])
    assert (coarse.gsd, scene.gsd) == (20, 10)
    assert np.allclose(coarse.read(ALL, ALL)[0] * 1e4, numbers(1, 12, 18)[0])
    files = [granule / f"T33UUU_20200810T102101_{band}.tif" for band in ("B02", "B11")]
    listed = open_scene(files)
    assert (listed.name, listed.bands) == ("T33UUU_20200810T102101", ("blue", "swir16"))
    by_name = open_scene(granule, bands={"red": "B02", "nir": files[1].name})
    assert np.array_equal(by_name.read(ALL, ALL), listed.read(ALL, ALL))


def test_safe_folder_states_its_offset(granule: Path, tmp_path: Path) -> None:
    safe = tmp_path / "S2B_MSIL2A_20220810T102101_N0400_R065_T33UUU_20220810T140000.SAFE"
    for band, resolution in (("B02", 10), ("B11", 20), ("B02", 60)):
        target = safe / f"GRANULE/L2A_T33UUU/IMG_DATA/R{resolution}m"
        target.mkdir(parents=True)
        file = granule / f"T33UUU_20200810T102101_{'B01' if resolution == 60 else band}.tif"
        shutil.copy(file, target / f"T33UUU_20220810T102101_{band}_{resolution}m.tif")
    scene = open_scene(safe)
    assert scene.bands == ("blue", "swir16")
    assert (scene.gsd, scene.scaling.scale, scene.scaling.offset) == (10, 1e-4, -0.1)


# rioxarray 0.22 multiplies transforms in a way that affine 3 will drop.
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_xarray_scene_keeps_phase_and_laziness(write_raster: RasterWriter) -> None:
    import rioxarray

    path = write_raster("S2.tif", numbers(3), bands=("red", "nir", "B11"), nodata=7)
    file = open_scene(path)
    lazy = rioxarray.open_rasterio(path, chunks={"y": 5, "x": 4})
    for array in (lazy, lazy.rename(band="variable")):
        scene = open_scene(array)
        assert scene.bands == ("red", "nir", "swir16")
        assert scene.geobox == file.geobox
        assert np.array_equal(scene.read(ALL, ALL), file.read(ALL, ALL), equal_nan=True)
    sliced = open_scene(lazy[:, 2:9, 3:])
    assert sliced.geobox == file.geobox[2:9, 3:]
    dataset = lazy.assign_coords(band=["red", "nir", "swir16"]).to_dataset("band")
    dataset = dataset.reset_coords("spatial_ref").assign_attrs(platform="Sentinel-2A")
    scene = open_scene(dataset, nodata=7, time="2020-08-10T12:21:01+02:00")
    assert scene.bands == ("red", "nir", "swir16")
    assert scene.time == np.datetime64("2020-08-10T10:21:01")
    assert np.array_equal(
        scene.read(slice(-1, 4), ALL), file.read(slice(-1, 4), ALL), equal_nan=True
    )
    dated = lazy.assign_coords(
        band=["red", "nir", "swir16"], time=np.datetime64("2020-08-10", "ns")
    )
    assert open_scene(dated.expand_dims("time")).time == np.datetime64("2020-08-10")
    with pytest.raises(SceneError, match="select one time"):
        open_scene(xr.concat([dated, dated], "time"))


def test_only_the_chunks_of_a_window_are_computed() -> None:
    import dask.array

    def load(block_info: dict) -> np.ndarray:
        assert block_info[None]["chunk-location"] == (0, 1, 0), "a chunk that nobody asked for"
        return np.ones((2, 4, 4), np.uint16)

    chunks = dask.array.map_blocks(load, chunks=((2,), (4, 4), (4, 4)), dtype=np.uint16)
    array = xr.DataArray(
        chunks,
        dims=("band", "y", "x"),
        coords={"band": ["red", "nir"], "y": 75 - 10.0 * np.arange(8), "x": 10.0 * np.arange(8)},
    )
    scene = open_scene(array, scale=1, crs=32633)
    assert (scene.read(slice(5, 8), slice(0, 4)) == 1).all()


@pytest.mark.parametrize(
    ("name", "dtype", "options", "given", "scale", "offset"),
    [
        ("anything.tif", "uint8", {}, {}, 1 / 255, 0),
        ("anything.tif", "uint16", {"scales": (0.5, 0.5)}, {}, 0.5, 0),
        ("S2A_x.tif", "uint16", {}, {}, 1e-4, 0),
        ("S2A_x.tif", "int16", {}, {"offset": -0.1}, 1e-4, -0.1),
        ("S2A_x.tif", "uint16", {}, {"scale": 2.0}, 2, 0),
        ("landsat8_x.tif", "uint16", {}, {}, 2e-5, -0.1),
        ("LC09_L2SP_042024_20200810_x.tif", "uint16", {}, {}, 2.75e-5, -0.2),
        ("HLS.L30.T33UUU.2020223T102101.v2.0.tif", "int16", {}, {}, 1e-4, 0),
        ("x.tif", "uint16", {"tags": {"SPACECRAFT_NAME": "Sentinel-2B"}}, {}, 1e-4, 0),
    ],
)
def test_scaling(write_raster: RasterWriter, name, dtype, options, given, scale, offset) -> None:
    dn = numbers(dtype=dtype)
    scene = open_scene(write_raster(name, dn, bands=("red", "nir"), **options), **given)
    assert (scene.scaling.scale, scene.scaling.offset) == (scale, offset)
    assert np.allclose(scene.read(ALL, ALL), dn * scale + offset, rtol=1e-6, atol=1e-7)
    if "2020" in name:
        assert scene.time.astype("datetime64[D]") == np.datetime64("2020-08-10")


def test_bands_by_position_name_and_number(write_raster: RasterWriter) -> None:
    dn = numbers(3)
    plain = write_raster("S2.tif", dn)
    assert open_scene(plain, bands=("red", "nir", "swir16")).bands == ("red", "nir", "swir16")
    by_number = open_scene(plain, bands={"nir": 2})
    assert np.allclose(by_number.read(ALL, ALL) * 1e4, dn[1:2])
    # Names that the file carries select and order; they never rename.
    named = write_raster("S2_named.tif", dn, bands=("B4", "B8A", "B11"))
    assert open_scene(named).bands == ("red", "nir08", "swir16")
    chosen = open_scene(named, bands=("swir16", "red", "nir08"))
    assert np.allclose(chosen.read(ALL, ALL) * 1e4, dn[[2, 0, 1]])
    landsat = write_raster("landsat8.tif", dn, bands=("B4", "B5", "SR_B7"))
    assert open_scene(landsat).bands == ("red", "nir08", "swir22")
    rgba = numbers(4, dtype="uint8")
    rgba[3] = 255
    rgba[3, 0] = 0
    scene = open_scene(write_raster("rgba.tif", rgba, photometric="RGB", alpha="YES"))
    assert scene.bands == ("red", "green", "blue")
    assert np.array_equal(np.isnan(scene.read(ALL, ALL)), np.isin(rgba[[3, 3, 3]], 0))


@pytest.mark.parametrize(
    ("crs", "transform", "gsd"),
    [
        ("EPSG:32633", Affine(10, 0, 4e5, 0, -10, 57e5), 10.0),
        ("EPSG:4326", Affine(1e-4, 0, 10, 0, -1e-4, 60), 7.886),  # 5.580 m by 11.141 m
        ("EPSG:3857", Affine(100, 0, 1149600, 0, -100, 6655200), 62.67),  # cos(51.2°)
        ("EPSG:2263", Affine(10, 0, 1e6, 0, -10, 2e5), 3.048),  # feet
    ],
)
def test_gsd_is_on_the_ground(write_raster: RasterWriter, crs, transform, gsd) -> None:
    path = write_raster("S2.tif", numbers(), bands=("red", "nir"), crs=crs, transform=transform)
    scene = open_scene(path)
    assert scene.gsd == pytest.approx(gsd, rel=2e-3)
    assert scene.geobox.crs == CRS(crs)


def test_digest_follows_what_read_returns(write_raster: RasterWriter, tmp_path: Path) -> None:
    dn = numbers()
    path = write_raster("S2.tif", dn, bands=("red", "nir"))
    digest = open_scene(path).digest()
    copy = tmp_path / "S2_renamed.tif"
    shutil.copy(path, copy)
    assert open_scene(copy).digest() == digest
    dn[0, 0, 0] += 1
    others = [
        open_scene(write_raster("S2_changed.tif", dn, bands=("red", "nir"))),
        open_scene(path, nodata=5),
        open_scene(path, offset=-0.1),
        open_scene(path, bands=("nir", "red")),
        open_scene(path, mask=np.eye(12, 15, dtype=bool)),
    ]
    assert len({digest, *(scene.digest() for scene in others)}) == 6


def test_what_a_mosaic_of_files_is_made_of_counts(write_raster: RasterWriter) -> None:
    part = write_raster("part.tif", numbers(1), bands=("red",), scales=(1e-4,))
    vrt = part.with_name("S2.vrt")
    rasterio.shutil.copy(part, vrt, driver="VRT")
    scene = open_scene(vrt)
    before = scene.versions()
    write_raster("part.tif", numbers(1) + 1, bands=("red",), scales=(1e-4,))
    os.utime(part, ns=(1, 1))
    assert scene.versions() != before


def test_threads_and_processes_can_share_a_scene(rendered_scene: Path) -> None:
    scene = pickle.loads(pickle.dumps(open_scene(rendered_scene)))
    whole = scene.read(ALL, ALL)
    windows = [(slice(r, r + 64), slice(c, c + 64)) for r in range(0, 300, 24) for c in (0, 99)]
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda window: scene.read(*window), windows * 4))
    for (rows, columns), part in zip(windows * 4, parts, strict=True):
        height = min(rows.stop, 300) - rows.start
        assert np.array_equal(part[:, :height], whole[:, rows, columns], equal_nan=True)


def test_rendered_scene_is_plausible_and_repeatable(rendered_scene: Path, tmp_path: Path) -> None:
    from nec.rendered import BANDS, render_scene

    scene = open_scene(rendered_scene)
    assert scene.bands == BANDS
    values = scene.read(ALL, ALL)
    assert 0.01 < np.isnan(values[0]).mean() < 0.1
    assert np.nanmin(values) > 0
    assert np.nanmax(values) < 0.8
    _, green, red, nir, swir16, _ = values
    vegetation, water = (nir - red) / (nir + red), (green - swir16) / (green + swir16)
    assert 0.3 < np.nanmean(vegetation > 0.5) < 0.9
    assert 0.01 < np.nanmean(water > 0.3) < 0.3
    again = render_scene(tmp_path / "again.tif", shape=(300, 260))
    other = render_scene(tmp_path / "other.tif", shape=(300, 260), seed=1)
    assert np.array_equal(open_scene(again).read(ALL, ALL), values, equal_nan=True)
    assert not np.array_equal(open_scene(other).read(ALL, ALL), values, equal_nan=True)


def error(match: str, remedy: str):
    return pytest.raises(SceneError, match=rf"(?s){re.escape(match)}.*; .*{re.escape(remedy)}")


def test_errors_of_sources(write_raster: RasterWriter, granule: Path, tmp_path: Path) -> None:
    with error("absent.tif does not exist", "path"):
        open_scene(tmp_path / "absent.tif")
    with error("notes.gpkg is not a raster", "GeoTIFF"):
        open_scene(granule / "notes.gpkg")
    (tmp_path / "empty").mkdir()
    with error("holds no raster", "one scene's files"):
        open_scene(tmp_path / "empty")
    with error("the list of files is empty", "files of one scene"):
        open_scene([])
    with error("cannot be opened from int", "xarray"):
        open_scene(3)
    with error("Dataset has no variable", "bands"):
        open_scene(xr.Dataset())
    with error("no y and x", "rename"):
        open_scene(xr.DataArray(np.zeros((3, 4)), dims=("a", "b")))

    path = write_raster("S2_cut.tif", numbers(2, 200, 300), compress="deflate")
    path.write_bytes(path.read_bytes()[:-3000])
    scene = open_scene(path, bands=("red", "nir"))
    with error("S2_cut.tif cannot be read at rows 0-200, columns 0-300", "damaged"):
        scene.read(ALL, ALL)
    with error("slice(5, 2, None) is no window", "start <= stop"):
        scene.read(slice(5, 2), ALL)


def test_errors_of_grids(write_raster: RasterWriter) -> None:
    bands = ("red", "nir")
    path = write_raster("S2_nocrs.tif", numbers(), bands=bands, crs=None)
    with error("S2_nocrs.tif has no CRS", "crs="):
        open_scene(path)
    assert open_scene(path, crs=32633).geobox.crs == CRS("EPSG:32633")
    with error("crs='nonsense' is not one", "EPSG"):
        open_scene(path, crs="nonsense")
    with error("array has no regular y and x coordinates", "pixel centres"):
        open_scene(xr.DataArray(numbers(), dims=("band", "y", "x")), crs=32633)
    path = write_raster("S2.tif", numbers(), bands=bands)
    with error("S2.tif is in EPSG:32633, not in crs='EPSG:4326'", "never reprojects"):
        open_scene(path, crs="EPSG:4326")
    rotated = Affine(10, 1, CORNER[0], 1, -10, CORNER[1])
    with error("rotated.tif has a rotated", "gdalwarp"):
        open_scene(write_raster("rotated.tif", numbers(), bands=bands, transform=rotated))
    with pytest.warns(NotGeoreferencedWarning):
        path = write_raster("bare.tif", numbers(), bands=bands, transform=Affine.identity())
    with error("bare.tif has no transform", "georeference"):
        open_scene(path)

    blue = write_raster("S2_B02.tif", numbers(1))
    elsewhere = write_raster("S2_B03.tif", numbers(1), crs="EPSG:32632")
    with error("S2_B03.tif is in EPSG:32632 and S2_B02.tif in EPSG:32633", "one CRS"):
        open_scene([blue, elsewhere])
    for corner, pixel in (((CORNER[0] + 4, CORNER[1]), 10.0), (CORNER, 15.0)):
        shifted = write_raster("S2_B04.tif", numbers(1), corner=corner, pixel=pixel)
        with error("S2_B04.tif (pixel", "one grid"):
            open_scene([blue, shifted])
    with error("mask has shape (3, 4) and the scene (12, 15)", "one value for each pixel"):
        open_scene(blue, mask=np.zeros((3, 4)))
    with error("covers only a part", "extend"):
        open_scene(blue, mask=write_raster("mask.tif", numbers(1, 6, 6)))


def test_errors_of_bands_and_scalings(write_raster: RasterWriter) -> None:
    path = write_raster("S2.tif", numbers(), bands=("red", "nir"))
    with error("band 'swir16' is not in S2 (has: red, nir)", "bands={...}"):
        open_scene(path).select(["red", "swir16"])
    with error("no band of S2 is selected", "at least one"):
        open_scene(path).select([])
    with error("band 'swir16' is not in S2 (has: red, nir)", "dict"):
        open_scene(path, bands=("red", "nir", "swir16"))
    with error("band 'B99' is not in S2 (has 2: red, nir)", ""):
        open_scene(path, bands={"swir16": "B99"})
    with error("band 3 is not in S2", ""):
        open_scene(path, bands={"swir16": 3})
    for misspelt in (("red", "nier"), {"nier": 2}):
        with error("'nier' is no common name of a band", "nir08"):
            open_scene(path, bands=misspelt)
    assert open_scene(path, bands={"rededge1": 2}).bands == ("rededge071",)
    with error("names a band twice", "once"):
        open_scene(path, bands=("red", "red"))
    with error("no band of S2_x is recognised (has: VV, unnamed 2)", "bands="):
        open_scene(write_raster("S2_x.tif", numbers(), bands=("VV", "")))
    with error("band 'red' of S2_twice is in both", "bands={...}"):
        open_scene(write_raster("S2_twice.tif", numbers(), bands=("red", "B04")))
    with error("no band is recognised in S2_cloud.tif", "bands="):
        open_scene([path, write_raster("S2_cloud.tif", numbers(1))])
    with error("mask 'SCL' is no band of S2, and no file", "red, nir"):
        open_scene(path, mask="SCL")
    with error("time='yesterday' is not a time", "ISO 8601"):
        open_scene(path, time="yesterday")

    path = write_raster("unknown.tif", numbers(), bands=("red", "nir"))
    with error("unknown holds uint16 numbers, carries no scale tag", "scale=1e-4"):
        open_scene(path)
    path = write_raster("counts.tif", numbers(dtype="float32"), bands=("red", "nir"))
    with error("counts holds floats that are no reflectance", "scale="):
        open_scene(path)
    assert open_scene(path, scale=1e-4).scaling.scale == 1e-4
    with error("scale=nan is no number", "scale="):
        open_scene(path, scale=float("nan"))
    path = write_raster("complex.tif", numbers().astype("complex64"), bands=("red", "nir"))
    with error("complex holds complex64 numbers", "convert"):
        open_scene(path)
    path = write_raster("mixed.tif", numbers(), bands=("red", "nir"), scales=(0.1, 0.2))
    with error("the bands of mixed differ in type or scale tags", "scale="):
        open_scene(path)


@pytest.mark.shared
def test_real_scenes(shared: Path) -> None:
    calgary = open_scene(shared / "scenes/landsat8_calgary.tif")
    with rasterio.open(shared / "scenes/landsat8_calgary.tif") as dataset:
        assert tuple(calgary.geobox.affine) == tuple(dataset.transform)
        dn = dataset.read(4)
    nir = calgary.read(ALL, ALL)[3]
    assert np.array_equal(np.isnan(nir), dn == 0)
    assert np.allclose(nir[dn > 0], dn[dn > 0] * 2e-5 - 0.1, atol=1e-6)

    alberta = open_scene(shared / "scenes/sentinel2_alberta.tif")
    assert alberta.bands == ("blue", "green", "red", "nir", "swir16")
    assert alberta.gsd == pytest.approx(11.96, abs=0.01)
    assert alberta.fill == 0
    assert not np.isnan(alberta.read(ALL, ALL)).any()

    wanted = ["blue", "green", "red", "nir08", "swir16", "swir22"]
    saxony = open_scene(shared / "scenes/sentinel2_saxony_l1c").select(wanted)
    assert tuple(saxony.geobox.shape) == (768, 1536)
    assert saxony.time == np.datetime64("2017-02-16T10:21:01")
    with rasterio.open(
        shared / "scenes/sentinel2_saxony_l1c/T33UUU_20170216T102101_B8A.jp2"
    ) as dataset:
        nir08 = dataset.read(1).repeat(2, 0).repeat(2, 1)
    # One pixel of B8A is 0 and no other band is: dark, not missing.
    assert (nir08 == 0).sum() == 4
    assert not np.isnan(saxony.read(ALL, ALL)).any()
    part = saxony.read(slice(101, 305), slice(77, 400))[3]
    assert np.allclose(part, nir08[101:305, 77:400] * 1e-4)

    path = shared / "biomass/hainich_gedi_100m/predictors.tif"
    hainich = open_scene(path, scale=1e-4)
    with rasterio.open(path) as dataset:
        x, y = dataset.xy(40, 30)
        centre = dataset.read(1)[40, 30]
    column, row = (x - hainich.geobox.affine.c) / 100, (hainich.geobox.affine.f - y) / 100
    value = hainich.read(slice(int(row), int(row) + 1), slice(int(column), int(column) + 1))
    assert value[0, 0, 0] == pytest.approx(centre * 1e-4)
