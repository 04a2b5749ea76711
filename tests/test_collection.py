"""`nec.scene.ImageCollection`: pictures, rasters and arrays as samples of one size and scaling."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import CORNER, RasterWriter

from nec.errors import SceneError
from nec.scene import ImageCollection, Scaling, is_collection

BANDS = ("red", "nir")


@pytest.fixture
def dn() -> np.ndarray:
    return (np.arange(1, 2 * 8 * 8 + 1) * 7).reshape(2, 8, 8).astype("uint16")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 51 * i, np.uint8)).save(folder / f"p{i}.png")
    return folder


def test_scaling_is_numbers(pictures: Path, write_raster: RasterWriter, dn: np.ndarray) -> None:
    display = Scaling(1 / 255, 0.0, "8-bit display values / 255")
    collection = ImageCollection.open(pictures)
    assert collection.scaling == display
    assert set(collection.coordinates) == {"name"}
    assert np.allclose(collection.read(1, 2), 0.2)
    floats = np.full((3, 2, 8, 8), 0.2, np.float32)
    assert ImageCollection.open(floats, bands=BANDS).scaling == Scaling(
        1.0, 0.0, "reflectance as given"
    )
    bytes_ = np.zeros((3, 2, 8, 8), np.uint8)
    assert ImageCollection.open(bytes_, bands=BANDS).scaling == display
    folder = write_raster("rasters/S2_a.tif", dn, bands=BANDS).parent
    scaling = ImageCollection.open(folder).scaling
    assert (scaling.scale, scaling.offset) == (1e-4, 0.0)


def test_digest_follows_what_read_returns(write_raster: RasterWriter, dn: np.ndarray) -> None:
    folder = write_raster("rasters/S2_a.tif", dn, bands=BANDS).parent
    digests = [
        ImageCollection.open(folder, **options).digest()
        for options in (
            {},
            {"scale": 1e-3},
            {"offset": -0.1},
            {"bands": ("nir", "red")},
            {"bands": {"red": 1, "nir": 2}},
            {"bands": {"red": 2, "nir": 1}},
        )
    ]
    assert len(set(digests)) == 6
    assert ImageCollection.open(folder, bands=["nir", "red"]).digest() == digests[3]
    images = np.full((3, 2, 8, 8), 0.2, np.float32)
    assert (
        ImageCollection.open(images, bands=BANDS).digest()
        != ImageCollection.open(images, bands=BANDS[::-1]).digest()
    )
    write_raster("rasters/S2_a.tif", dn + 1, bands=BANDS)
    assert ImageCollection.open(folder).digest() != digests[0]


@pytest.mark.parametrize(
    ("odd", "options", "match"),
    [
        ("S2_b.tif", {"bands": BANDS[::-1]}, r"S2_b.tif has bands \('nir', 'red'\)"),
        ("landsat8_b.tif", {"bands": BANDS}, "landsat8_b.tif has scale and offset"),
        ("S2_b.tif", {"bands": BANDS, "rows": 6}, "S2_b.tif has shape"),
    ],
)
def test_rasters_are_alike(
    write_raster: RasterWriter, dn: np.ndarray, odd: str, options: dict, match: str
) -> None:
    folder = write_raster("rasters/S2_a.tif", dn, bands=BANDS).parent
    rows = options.pop("rows", 8)
    write_raster(f"rasters/{odd}", dn[:, :rows], **options)
    with pytest.raises(SceneError, match=match):
        ImageCollection.open(folder)


def test_rasters_say_how_large_their_pixels_are(write_raster: RasterWriter, dn: np.ndarray) -> None:
    folder = write_raster("rasters/S2_a.tif", dn, bands=BANDS, pixel=30.0).parent
    assert ImageCollection.open(folder).gsd == 30.0
    assert ImageCollection.open(folder, gsd=20.0).gsd == 20.0
    write_raster("rasters/S2_b.tif", dn, bands=BANDS)
    with pytest.raises(SceneError, match=r"S2_b.tif has pixels of 10 m, .* of 30 m"):
        ImageCollection.open(folder)


def test_a_sampling_distance_is_a_length(pictures: Path) -> None:
    for gsd in (0, -10, float("nan")):
        with pytest.raises(SceneError, match=f"gsd={gsd} is no ground sampling distance"):
            ImageCollection.open(pictures, gsd=gsd)


def test_pictures_of_16_bits_are_refused(pictures: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(pictures / "p9.png")
    with pytest.raises(SceneError, match="more than 8 bits"):
        ImageCollection.open(pictures).read(3, 4)


def test_rasters_keep_their_place(write_raster: RasterWriter, dn: np.ndarray) -> None:
    write_raster("rasters/river/S2_a.tif", dn, bands=BANDS)
    bottom = Affine(10, 0, 500_000, 0, 10, 4_000_000)  # south-up
    last = write_raster(
        "rasters/town/S2_b.tif", dn, bands=BANDS, crs="EPSG:32631", transform=bottom
    )
    collection = ImageCollection.open(last.parents[1])
    assert collection.coordinates["label"].tolist() == ["river", "town"]
    assert collection.coordinates["crs"].tolist() == ["EPSG:32633", "EPSG:32631"]
    first, second = (
        tuple(map(float, text.split())) for text in collection.coordinates["transform"]
    )
    assert first == (CORNER[0], 10, 0, CORNER[1], 0, -10)
    assert second == (500_000, 10, 0, 4_000_080, 0, -10)
    assert np.allclose(collection.read(1, 2)[0], dn[:, ::-1] * 1e-4)


def test_which_folders_are_collections(
    write_raster: RasterWriter, dn: np.ndarray, pictures: Path, tmp_path: Path
) -> None:
    assert is_collection(pictures)
    assert is_collection(tmp_path)  # folders only
    scene = write_raster("scene/S2_B02.tif", dn[:1]).parent
    assert not is_collection(scene)
    (scene / "preview.jpg").touch()
    (scene / "aux").mkdir()
    assert not is_collection(scene)
    (tmp_path / "bare/.cache").mkdir(parents=True)
    (tmp_path / "bare/.thumbnail.png").touch()
    assert not is_collection(tmp_path / "bare")
    (pictures / "._p0.png").write_bytes(b"no picture")
    assert len(ImageCollection.open(pictures)) == 3


def test_options_that_a_source_does_not_take(
    pictures: Path, write_raster: RasterWriter, dn: np.ndarray
) -> None:
    images = np.full((3, 2, 8, 8), 0.2, np.float32)
    collection = ImageCollection.open(images, bands=BANDS)
    assert ImageCollection.open(collection) is collection
    options = {"bands": BANDS, "gsd": 20.0, "scale": 1e-4, "offset": 0.0}
    refusals = [(collection, option, {}) for option in options]
    refusals += [(pictures, option, {}) for option in ("bands", "scale", "offset")]
    refusals += [(images, option, {"bands": BANDS}) for option in ("scale", "offset")]
    for source, option, others in refusals:
        with pytest.raises(SceneError, match=f"takes no {option}="):
            ImageCollection.open(source, **others, **{option: options[option]})


def test_digital_numbers_as_floats_are_refused(dn: np.ndarray) -> None:
    with pytest.raises(SceneError, match=r"no reflectance .*; .*array \* 1e-4"):
        ImageCollection.open(np.stack([dn, dn]).astype("float32"), bands=BANDS)
