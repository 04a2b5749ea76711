"""Catalogs of stores, built and checked without a network; STAC items as scenes."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import odc.geo.xr
import odc.stac
import pyproj
import pystac
import pytest
import shapely
import xarray as xr
from conftest import CORNER, RasterWriter
from typer.testing import CliRunner

import nec
from nec.catalog import Description, build, check
from nec.catalog.building import longitudes, parse_interval
from nec.catalog.facts import StoreFacts
from nec.catalog.items import item_of
from nec.cli import app
from nec.errors import CatalogError, SceneError
from nec.model import Model
from nec.production import find_scenes
from nec.scene import open_scene

BANDS = {"B02": "blue", "B04": "red", "B8A": "nir08"}
WHEN = datetime(2021, 6, 5, 10, 11, 12, tzinfo=UTC)
SHAPE = (40, 48)


@pytest.fixture(scope="module")
def model() -> Model:
    return nec.load_model("nec-tiny", precision="float32")


def numbers(seed: int = 0, bands: int = 1, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(1200, 4000, (bands, *shape)).astype(np.uint16)


def item(
    name: str, assets: dict[str, dict[str, Any]], *, when: datetime = WHEN, **properties: Any
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "geometry": {"type": "Point", "coordinates": [13.5, 51.4]},
        "bbox": [13.5, 51.4, 13.5, 51.4],
        "properties": {"datetime": when.isoformat(), **properties},
        "links": [],
        "assets": assets,
    }


def band_asset(href: str, own: str, **fields: Any) -> dict[str, Any]:
    return {
        "href": href,
        "type": pystac.MediaType.COG,
        "roles": ["data"],
        "bands": [{"name": own, "eo:common_name": BANDS[own]}],
        "raster:scale": 0.0001,
        "raster:offset": -0.1,
        "nodata": 0,
        **fields,
    }


def write_items(path: Path, *items: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    return path


@pytest.fixture
def items(write_raster: RasterWriter, tmp_path: Path) -> Path:
    """Two items with one file a band, the second of STAC 1.0, beside a picture."""
    made = []
    for seed, name in enumerate(("first", "second")):
        assets = {}
        for at, own in enumerate(BANDS):
            corner = (CORNER[0] + 5000 * seed, CORNER[1])
            pixels = numbers(10 * seed + at)
            pixels[:, :, :8] = 0
            write_raster(f"{name}_{at}.tif", pixels, corner=corner)
            assets[own] = band_asset(f"./{name}_{at}.tif", own)
        write_raster(f"{name}_tci.tif", numbers(9, 3).astype(np.uint8), corner=corner)
        assets["visual"] = {
            "href": f"./{name}_tci.tif",
            "roles": ["visual"],
            "bands": [{"name": own, "eo:common_name": BANDS[own]} for own in BANDS],
        }
        made.append(item(name, assets, when=WHEN.replace(day=5 + seed)))
    old = made[1]
    old["stac_version"] = "1.0.0"
    for key, name in BANDS.items():
        asset = old["assets"][key]
        asset["eo:bands"] = [{"name": key, "common_name": name}]
        asset["raster:bands"] = [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]
        for field in ("bands", "raster:scale", "raster:offset", "nodata"):
            del asset[field]
    return write_items(tmp_path / "items.json", *made)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("archive") / "stores"}


@pytest.fixture
def archive(items: Path, model: Model, kept: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of the stores and the catalog that one run makes of the items."""
    if not kept["folder"].exists():
        report = nec.encode_archive(items, kept["folder"], model=model, sealing=True, catalog=True)
        assert report.ok, report.failures
    copy = tmp_path / "stores"
    shutil.copytree(kept["folder"], copy)
    return copy


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_a_run_over_items_writes_stores_and_their_catalog(archive: Path, items: Path) -> None:
    assert check(archive) == ()
    with xr.open_zarr(archive / "second.zarr") as store:
        assert store.time.values[0] == np.datetime64("2021-06-06T10:11:12")
        assert store.nec.info["bands"] == ["blue", "red", "nir08"]
        scaling = store.nec.info["scaling"]
        assert (scaling["scale"], scaling["offset"]) == (0.0001, -0.1)
        assert "STAC item" in scaling["source"]
        valid = store.embedding.isel(time=0, band=0).notnull().compute()
        placed = valid.where(valid, drop=True)
        assert store.odc.crs == "EPSG:32633"

    collection = pystac.Collection.from_file(str(archive / "collection.json"))
    found = {one.id: one for one in collection.get_items()}
    assert set(found) == {"first", "second"}
    second = found["second"]
    assert second.datetime == WHEN.replace(day=6)
    asset = second.get_assets()["embeddings"]
    assert Path(asset.get_absolute_href() or "") == archive / "second.zarr"
    on_disk = [f for f in (archive / "second.zarr").rglob("*") if f.is_file()]
    assert asset.extra_fields["file:size"] == sum(f.stat().st_size for f in on_disk)
    digest = hashlib.sha256((archive / "second.zarr/nec/manifest.json").read_bytes())
    manifest = second.assets["manifest"].extra_fields
    assert manifest["file:checksum"] == "1220" + digest.hexdigest()
    assert second.properties["nec:manifest_sha256"] == digest.hexdigest()

    # The grid is the array's; the footprint is where tokens are valid, and no more.
    a, b, c, d, e, f = second.properties["proj:transform"]
    assert (b, d) == (0, 0)
    assert (c + a / 2, f + e / 2) == (store.x.values[0], store.y.values[0])
    assert second.properties["proj:shape"] == [store.sizes["y"], store.sizes["x"]]
    assert second.properties["proj:code"] == "EPSG:32633"
    left, right = placed.x.values[[0, -1]] + (-20, 20)
    top, bottom = placed.y.values[[0, -1]] + (20, -20)
    to_wgs84 = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    corners = np.transpose(
        to_wgs84.transform([left, right, right, left], [top, top, bottom, bottom])
    )
    shape = shapely.geometry.shape(second.geometry)
    assert shape.symmetric_difference(shapely.Polygon(corners)).area < 0.05 * shape.area
    assert second.bbox == pytest.approx([*corners.min(axis=0), *corners.max(axis=0)], abs=4e-5)
    (extent,) = collection.extent.spatial.bboxes
    boxes = [one.bbox for one in found.values() if one.bbox is not None]
    assert extent[0] == min(box[0] for box in boxes)
    assert extent[2] == max(box[2] for box in boxes)

    # All that a reader needs lies in the folder: nothing is absolute.
    (link,) = collection.get_links("emb:model")
    described = pystac.Item.from_file(link.get_absolute_href() or "")
    assert described.properties["mlm:output"][0]["result"]["shape"][1] == store.sizes["band"]
    for file in archive.rglob("*.json"):
        if "zarr" not in str(file.relative_to(archive)):
            assert str(items.parent) not in file.read_text()


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = read(path)
    change(document)
    path.write_text(json.dumps(document))


def property_of(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit(
        folder / "first.json", lambda d: d["properties"].__setitem__(name, value)
    )


def embeddings_of(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit(
        folder / "first.json", lambda d: d["assets"]["embeddings"].__setitem__(name, value)
    )


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (property_of("proj:shape", [1, 2]), "proj:shape is [1, 2], the store says"),
        (property_of("proj:code", "EPSG:32634"), "proj:code is EPSG:32634"),
        (property_of("proj:transform", [40.0, 0.0, 1.0, 0.0, -40.0, 2.0]), "proj:transform"),
        (property_of("proj:transform", [40.0, 0.0]), "properties/proj:transform"),
        (property_of("datetime", "2021-06-05T10:11:13Z"), "datetime"),
        (property_of("datetime", None), "(core)"),
        (property_of("nec:weights_sha256", "0" * 64), "nec:weights_sha256"),
        (property_of("nec:manifest_sha256", "0" * 64), "nec:manifest_sha256"),
        (property_of("emb:kind", "x"), "'emb:kind' does not match"),
        (property_of("emb:quantization", {"method": "nec"}), "original_dtype"),
        (embeddings_of("file:size", 12), "file:size of asset embeddings is 12"),
        (embeddings_of("href", "./none.zarr"), "its store ./none.zarr is not there"),
        (embeddings_of("zarr:zarr_format", 4), "assets/embeddings/zarr:zarr_format"),
        (
            lambda f: edit(f / "first.json", lambda d: d["bbox"].__setitem__(0, 3.0)),
            "bbox is [3.0",
        ),
        (
            lambda f: edit(f / "first.json", lambda d: d.__setitem__("assets", {})),
            "'embeddings' is a required property",
        ),
        (lambda f: edit(f / "first.json", lambda d: d.pop("geometry")), "'geometry' is a required"),
        (lambda f: (f / "first.json").unlink(), "link item leads nowhere"),
        (lambda f: (f / "first.json").write_text("{"), "first.json is no STAC object"),
        (
            lambda f: edit(f / "collection.json", lambda d: d.__setitem__("emb:type", "patch")),
            "'patch' is not one of",
        ),
        (
            lambda f: edit(f / "collection.json", lambda d: d.__setitem__("emb:dimensions", 3)),
            "emb:dimensions 64",
        ),
        (
            lambda f: edit(f / "collection.json", lambda d: d.pop("emb:dimensions")),
            "emb:dimensions 64",
        ),
        (
            lambda f: edit(
                f / "collection.json",
                lambda d: d["extent"]["spatial"].__setitem__("bbox", [[179, -90, -179, 90]]),
            ),
            "leaves out item first",
        ),
        (
            lambda f: edit(
                f / "collection.json",
                lambda d: d.update(links=[k for k in d["links"] if k["rel"] != "emb:model"]),
            ),
            "links",
        ),
        (
            lambda f: edit(
                f / "collection.json",
                lambda d: d["extent"]["spatial"].__setitem__("bbox", [[0, 0, 1, 1]]),
            ),
            "leaves out item first",
        ),
        (
            lambda f: edit(
                f / "first.json", lambda d: d["links"][0].__setitem__("href", "/collection.json")
            ),
            "link root is absolute",
        ),
        (
            lambda f: edit(
                f / "models/nec-tiny.json",
                lambda d: d["assets"]["weights"].__setitem__("file:checksum", "1220" + "0" * 64),
            ),
            "weights are",
        ),
        (
            lambda f: edit(
                f / "models/nec-tiny.json", lambda d: d["properties"].pop("mlm:architecture")
            ),
            "'mlm:architecture' is a required property",
        ),
        (
            lambda f: shutil.copytree(f / "first.zarr", f / "sub/third.zarr"),
            "sub/third.zarr is not",
        ),
        (lambda f: (f / "first.zarr/nec/manifest.json").unlink(), "nec/manifest.json"),
        (lambda f: (f / "first.zarr/nec/manifest/0.json").unlink(), "nec/manifest/0.json"),
    ],
)
def test_what_is_wrong_with_a_catalog_is_named(
    archive: Path, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(archive)
    problems = check(archive)
    assert any(told in problem for problem in problems), problems


def test_the_command_line_builds_keeps_what_it_was_told_and_checks(archive: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["catalog", *map(str, arguments)])

    before = {f: f.read_bytes() for f in archive.glob("*.json")}
    assert run("build", archive).exit_code == 0
    assert {f: f.read_bytes() for f in archive.glob("*.json")} == before
    assert run("check", archive / "first.zarr").exit_code == 0

    told = run("build", archive, "--title", "A title", "--licence", "CC-BY-4.0", "--id", "other")
    assert told.exit_code == 0
    # A store that was removed goes with its item; what cannot be described is named.
    shutil.rmtree(archive / "first.zarr")
    bystander = archive.parent / "bystander.json"
    bystander.write_text((archive / "first.json").read_text())
    link = {"rel": "item", "href": "../bystander.json"}
    edit(archive / "collection.json", lambda d: d["links"].append(link))
    (archive / "foreign.zarr").mkdir()
    (archive / "foreign.zarr/zarr.json").write_text("{}")
    result = run("build", archive)
    assert result.exit_code == 1
    assert "foreign.zarr left out" in result.output
    collection = read(archive / "collection.json")
    assert (collection["title"], collection["license"]) == ("A title", "CC-BY-4.0")
    assert not (archive / "first.json").exists()
    assert bystander.exists()
    failed = run("check", archive)
    assert failed.exit_code == 1
    assert failed.output.strip() == "foreign.zarr is not in the catalog: build it again"


def test_files_of_others_are_not_overwritten(archive: Path) -> None:
    (archive / "first.json").write_text("{}")
    edit(archive / "collection.json", lambda d: d.update(links=[]))
    with pytest.raises(CatalogError, match=r"first\.json is in the way"):
        build(archive)
    (archive / "collection.json").write_text('{"type": "Collection", "links": []}')
    with pytest.raises(CatalogError, match="not one that nec catalog wrote"):
        build(archive)
    with pytest.raises(CatalogError, match="holds no store"):
        build(archive / "models")
    with pytest.raises(CatalogError, match=r"has no collection\.json"):
        check(archive / "models")


def test_times_of_a_store_are_an_interval(archive: Path) -> None:
    facts = StoreFacts.read(archive / "first.zarr", archive)
    several = (WHEN, WHEN.replace(month=7), WHEN.replace(year=2022))
    facts.__dict__["times"] = several
    described = item_of(facts).to_dict()["properties"]
    assert described["datetime"] is None
    assert described["start_datetime"] == "2021-06-05T10:11:12Z"
    assert described["end_datetime"] == "2022-06-05T10:11:12Z"


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2019-05-01", "2019-05-01T00:00:00Z", "2019-05-01T23:59:59Z"),
        ("2019-05-01/2019-06-30", "2019-05-01T00:00:00Z", "2019-06-30T23:59:59Z"),
        ("2019-05-01T10:00:00+02:00", "2019-05-01T08:00:00Z", "2019-05-01T08:00:00Z"),
    ],
)
def test_intervals_are_read(text: str, start: str, end: str) -> None:
    assert Description(time=parse_interval(text)).to_dict()["time"] == f"{start}/{end}"


@pytest.mark.parametrize("text", ["2019-05", "soon", "2019-05-01/2019-04-01"])
def test_no_intervals(text: str) -> None:
    with pytest.raises(CatalogError, match=re.escape(text)):
        parse_interval(text)


def test_what_knows_no_time_and_no_place(model: Model, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
    bands = ("blue", "green", "red")
    nec.encode(images, tmp_path / "a.zarr", model=model, bands=bands)
    with pytest.raises(CatalogError, match="knows no time"):
        build(tmp_path)
    span = (WHEN, WHEN.replace(year=2023))
    build(tmp_path, description=Description(time=span, bbox=(5.0, 40.0, 20.0, 60.0)))
    found = read(tmp_path / "a.json")
    assert found["geometry"] is None
    assert "bbox" not in found
    assert found["properties"]["end_datetime"] == "2023-06-05T10:11:12Z"
    assert found["properties"]["gsd"] == 40.0
    assert read(tmp_path / "collection.json")["extent"]["spatial"]["bbox"] == [[5, 40, 20, 60]]
    assert check(tmp_path) == ()
    build(tmp_path)  # the time that it was told holds
    assert check(tmp_path) == ()


def test_samples_with_a_place_lie_in_the_box(
    write_raster: RasterWriter, model: Model, tmp_path: Path
) -> None:
    for number, label in enumerate(("x", "y")):
        write_raster(
            f"images/{label}/{number}.tif",
            numbers(number, 3, (16, 16)),
            bands=("blue", "green", "red"),
            scales=(1e-4,) * 3,
            corner=(CORNER[0] + 70_000 * number, CORNER[1]),
        )
    nec.encode(tmp_path / "images", tmp_path / "out/a.zarr", model=model)
    build(tmp_path / "out", description=Description(time=(WHEN, WHEN)))
    to_wgs84 = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    bounds = (CORNER[0], CORNER[1] - 160, CORNER[0] + 70_160, CORNER[1])
    assert read(tmp_path / "out/a.json")["bbox"] == pytest.approx(
        to_wgs84.transform_bounds(*bounds), abs=1e-6
    )
    assert check(tmp_path / "out") == ()


def test_a_footprint_is_cut_at_the_antimeridian(
    write_raster: RasterWriter, model: Model, tmp_path: Path
) -> None:
    to_zone = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32760", always_xy=True)
    x, y = to_zone.transform(180.0, -17.0)
    scene = write_raster(
        "fiji.tif",
        numbers(0, 3),
        bands=tuple(BANDS.values()),
        scales=(1e-4,) * 3,
        crs="EPSG:32760",
        corner=(x - 240, y),
    )
    nec.encode(scene, tmp_path / "out/fiji.zarr", model=model, time="2020-01-01")
    build(tmp_path / "out")
    found = read(tmp_path / "out/fiji.json")
    assert found["geometry"]["type"] == "MultiPolygon"
    west, _, east, _ = found["bbox"]
    assert west == pytest.approx(180, abs=0.01)
    assert east == pytest.approx(-180, abs=0.01)
    assert west > 179 > -179 > east
    assert read(tmp_path / "out/collection.json")["extent"]["spatial"]["bbox"] == [found["bbox"]]
    assert check(tmp_path / "out") == ()


@pytest.mark.parametrize(
    ("spans", "hull"),
    [
        ([(1, 2), (-5, -4)], (-5, 2)),
        ([(-170, -160), (170, 175)], (-170, 175)),
        ([(179, -179), (178, 180)], (178, -179)),
        ([(179, -179), (-1, 2)], (-1, -179)),
        ([(179, -179), (-170, 160)], (179, 160)),
        ([(179, -179), (-179, 179)], (-180, 180)),
    ],
)
def test_longitudes_leave_out_the_widest_gap(spans: Any, hull: Any) -> None:
    assert longitudes(spans) == hull


def test_a_grid_without_a_code_is_told_by_wkt(
    write_raster: RasterWriter, model: Model, tmp_path: Path
) -> None:
    crs = "+proj=laea +lat_0=50 +lon_0=10 +datum=WGS84 +units=m"
    pixels = np.full((3, *SHAPE), 0, np.uint16)  # and all missing: the footprint is the grid
    scene = write_raster(
        "a.tif",
        pixels,
        bands=tuple(BANDS.values()),
        scales=(1e-4,) * 3,
        nodata=0,
        crs=crs,
        corner=(0.0, 0.0),
    )
    nec.encode(scene, tmp_path / "out/a.zarr", model=model, time="2020-01-01")
    build(tmp_path / "out")
    found = read(tmp_path / "out/a.json")
    assert found["properties"]["proj:code"] is None
    method = pyproj.CRS(found["properties"]["proj:wkt2"]).coordinate_operation.method_name
    assert method == "Lambert Azimuthal Equal Area"
    rows, columns = found["properties"]["proj:shape"]
    to_wgs84 = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    east, south = to_wgs84.transform(40 * columns, -40 * rows)
    assert found["bbox"] == pytest.approx([10, south, east, 50], abs=2e-5)
    assert check(tmp_path / "out") == ()


def test_one_collection_describes_one_model(archive: Path, tmp_path: Path) -> None:
    y, x = np.mgrid[:48, :48] / 48
    values = np.stack([np.ones_like(y), y, x, x * y], -1).astype(np.float32)
    array = xr.DataArray(
        values,
        dims=("y", "x", "band"),
        coords={"y": 5_700_000 - 10.0 * np.arange(48), "x": 400_000 + 10.0 * np.arange(48)},
    ).odc.assign_crs("EPSG:32633")
    compressor = nec.Compressor.fit(values, cosine=0.999)
    nec.encode(array, tmp_path / "alone/other.zarr", model=compressor)
    build(tmp_path / "alone", description=Description(time=(WHEN, WHEN)))
    assert check(tmp_path / "alone") == ()
    shutil.copytree(tmp_path / "alone/other.zarr", archive / "other.zarr")
    with pytest.raises(CatalogError, match=r"other\.zarr has model unknown"):
        build(archive)


def test_the_catalog_that_ships_is_right() -> None:
    assert check(Path(__file__).parents[1] / "catalogs/eurosat") == ()


def test_assets_of_an_item_are_chosen(write_raster: RasterWriter, tmp_path: Path) -> None:
    fine = write_raster("fine.tif", numbers(0))
    coarse = write_raster("coarse.tif", numbers(1, 1, (20, 24)), pixel=20.0)
    write_raster("three.tif", numbers(2, 3))
    three = {
        "href": "./three.tif",
        "type": pystac.MediaType.COG,
        "bands": [{"name": n, "eo:common_name": n} for n in ("red", "green", "blue")],
    }
    described = item(
        "S2B_MSIL2A_20230101T101010_R022_T33UUU",
        {
            "copy": band_asset("./copy.jp2", "B04", type="image/jp2", gsd=10),
            "red_20m": band_asset("./coarse.tif", "B04", gsd=20),
            "all": three,
            "red": band_asset("./fine.tif", "B04", gsd=10),
            # Three bands had this one name in STAC 1.0: the sensor's own tell them apart.
            "B05": {"href": str(coarse), "eo:bands": [{"name": "B05", "common_name": "rededge"}]},
            "B06": {"href": f"file://{coarse}", "eo:bands": [{"name": "B06"}]},
            "scl": {"href": "./none.tif", "type": pystac.MediaType.COG},
            "text": {"href": "./a.xml", "type": "text/xml"},
        },
        **{"constellation": "sentinel-2", "s2:processing_baseline": "05.09"},
    )
    for key in ("red", "red_20m", "copy"):
        for field in ("raster:scale", "raster:offset"):
            del described["assets"][key][field]
    path = tmp_path / "item.json"
    path.write_text(json.dumps(described))
    scene = open_scene(path)
    assert scene.bands == ("green", "blue", "red", "rededge071", "rededge075")
    sources = {layer.band: layer.source.label for layer in scene.layers}
    assert sources["red"] == fine.name
    assert sources["green"] == "three.tif"
    assert sources["rededge071"] == "coarse.tif"
    assert scene.time == np.datetime64("2021-06-05T10:11:12")
    # No scale is stated: that of Sentinel-2, its baseline from the item.
    assert (scene.scaling.scale, scene.scaling.offset) == (1e-4, -0.1)
    assert scene.nodata == 0
    chosen = open_scene(pystac.Item.from_file(str(path)), bands=("red",), time="2020-01-01")
    assert chosen.bands == ("red",)
    assert chosen.time == np.datetime64("2020-01-01")
    assert np.allclose(
        chosen.read(slice(None), slice(None)), numbers(0).astype(np.float32) * 1e-4 - 0.1
    )


def test_an_offset_that_is_taken_off_already_is_not_taken_twice(
    write_raster: RasterWriter, tmp_path: Path
) -> None:
    write_raster("a.tif", numbers())
    described = item(
        "S2B_33UUU_20230101_0_L2A",
        {"red": band_asset("./a.tif", "B04")},
        **{"earthsearch:boa_offset_applied": True},
    )
    path = tmp_path / "item.json"
    path.write_text(json.dumps(described))
    assert open_scene(path).scaling.offset == 0.0


def test_a_file_of_many_bands_names_them_itself(write_raster: RasterWriter, tmp_path: Path) -> None:
    write_raster("a.tif", numbers(0, 3), bands=tuple(BANDS.values()), scales=(1e-4,) * 3)
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item("a", {"data": {"href": "./a.tif"}})))
    assert open_scene(path).bands == ("blue", "red", "nir08")


def test_items_that_are_no_scene(items: Path, write_raster: RasterWriter, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="holds 2 items"):
        open_scene(items)
    with pytest.raises(SceneError, match="cannot be read as STAC"):
        find_scenes(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(SceneError, match="cannot be read as STAC"):
        find_scenes(tmp_path / "other.json")
    with pytest.raises(SceneError, match="no asset with a band of a known name"):
        open_scene(pystac.Item.from_dict(item("a", {})))
    with pytest.raises(SceneError, match="holds no item"):
        find_scenes(write_items(tmp_path / "none.json"))
    same = item("a", {}), item("a", {"x": {"href": "./x.tif"}})
    with pytest.raises(SceneError, match=r"both be stored as a\.zarr"):
        find_scenes(write_items(tmp_path / "same.json", *same))
    raster = write_raster("a.tif", numbers(0, 2))
    wrong = item("a", {"red": band_asset(str(raster), "B04")})
    with pytest.raises(SceneError, match="has 1 bands, its file"):
        open_scene(pystac.Item.from_dict(wrong))


def test_catalogs_are_walked_down_to_their_items(items: Path, tmp_path: Path) -> None:
    loose = pystac.ItemCollection.from_file(str(items))
    assert [entry.name for entry in find_scenes(loose)] == ["first", "second"]
    top, below = pystac.Catalog("top", "of all"), pystac.Catalog("below", "of some")
    top.add_child(below)
    for one in find_scenes(items):
        below.add_item(one.source)
    top.normalize_hrefs(str(tmp_path / "static"))
    top.make_all_asset_hrefs_relative()
    top.save(pystac.CatalogType.SELF_CONTAINED)
    found = find_scenes(tmp_path / "static/catalog.json")
    assert [entry.name for entry in found] == ["first", "second"]
    assert open_scene(found[1].source).bands == ("blue", "red", "nir08")


def test_a_catalog_that_cannot_be_is_told_of(
    write_raster: RasterWriter, model: Model, tmp_path: Path
) -> None:
    write_raster("scenes/a.tif", numbers(0, 3), bands=tuple(BANDS.values()), scales=(1e-4,) * 3)
    report = nec.encode_archive(tmp_path / "scenes", tmp_path / "out", model=model, catalog=True)
    assert report.stores["a"].written
    assert list(report.failures) == ["catalog"]
    assert "a.zarr knows no time" in report.failures["catalog"]


def test_assets_are_read_over_http(
    write_raster: RasterWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "pipelines")
    from production_bench.ranges import served

    write_raster("remote.tif", numbers(3))
    with served(tmp_path) as (url, _, _):
        asset = band_asset(f"{url}/remote.tif?sig=secret", "B04")
        described = item("remote", {"red": asset})
        scene = open_scene(pystac.Item.from_dict(described))
        values = scene.read(slice(None), slice(None))
    assert scene.sources == ("remote.tif",)
    assert np.allclose(values, numbers(3).astype(np.float32) * 1e-4 - 0.1)


def test_a_mosaic_by_odc_stac_is_a_scene(write_raster: RasterWriter, tmp_path: Path) -> None:
    width = SHAPE[1] * 10
    left = 40_000.0
    made = []
    for number in range(2):
        assets = {}
        for at, own in enumerate(("B02", "B04")):
            file = write_raster(
                f"{number}_{at}.tif",
                numbers(2 * number + at),
                corner=(left + width * number, 5_700_000.0),
            )
            assets[BANDS[own]] = band_asset(str(file), own)
        made.append(pystac.Item.from_dict(item(str(number), assets)))
        made[-1].geometry = shapely.geometry.mapping(shapely.box(5, 45, 15, 55))
    mosaic = odc.stac.load(
        made,
        bands=["blue", "red"],
        crs="EPSG:32633",
        resolution=10,
        x=(left, left + 2 * width),
        y=(5_700_000.0 - SHAPE[0] * 10, 5_700_000.0),
        groupby="solar_day",
        chunks={"y": 32, "x": 32},
    )
    scene = open_scene(mosaic.isel(time=0), scale=1e-4, offset=-0.1)
    expected = np.concatenate(
        [np.concatenate([numbers(0), numbers(1)]), np.concatenate([numbers(2), numbers(3)])], axis=2
    )
    assert tuple(scene.geobox.shape) == (SHAPE[0], 2 * SHAPE[1])
    assert scene.time == np.datetime64("2021-06-05T10:11:12")
    values = scene.read(slice(None), slice(None))
    assert np.allclose(values, expected.astype(np.float32) * 1e-4 - 0.1)
