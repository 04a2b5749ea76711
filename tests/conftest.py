"""What tests share: the development data where it is there, and small scenes made on the spot."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from toy_series import BANDS, DAYS, GRID, Open, Task, values

if TYPE_CHECKING:
    from nec.archive import StoreWriter
    from nec.codec import NecCodec

#: Upper left corner of the small scenes, in EPSG:32633; no round number, to test the phase.
CORNER = (399_963.25, 5_700_007.5)

RasterWriter = Callable[..., Path]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of development data beside the checkout, or $NEC_SHARED."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NEC_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder} (set NEC_SHARED)")
    return folder


@pytest.fixture
def write_raster(tmp_path: Path) -> RasterWriter:
    """Return a function that writes (band, y, x) numbers to a GeoTIFF in the test's folder."""
    import rasterio
    from affine import Affine

    def write(
        name: str,
        numbers: np.ndarray,
        *,
        bands: tuple[str, ...] = (),
        pixel: float = 10.0,
        corner: tuple[float, float] = CORNER,
        **profile: Any,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.setdefault("crs", "EPSG:32633")
        profile.setdefault("transform", Affine(pixel, 0, corner[0], 0, -pixel, corner[1]))
        tags = profile.pop("tags", {})
        scales = profile.pop("scales", None)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=numbers.shape[0],
            height=numbers.shape[1],
            width=numbers.shape[2],
            dtype=numbers.dtype,
            **profile,
        ) as dataset:
            dataset.write(numbers)
            if bands:
                dataset.descriptions = bands
            if scales:
                dataset.scales = scales
            if tags:
                dataset.update_tags(**tags)
        return path

    return write


@pytest.fixture(scope="session")
def rendered_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered six-band scene of 300 by 260 pixels with a nodata wedge."""
    from nec.rendered import render_scene

    return render_scene(tmp_path_factory.mktemp("rendered") / "rendered.tif", shape=(300, 260))


@pytest.fixture(scope="session")
def codecs() -> "tuple[NecCodec, NecCodec]":
    """Return codecs fitted to the toy series."""
    from nec.codec import NecCodec
    from nec.compressor import Compressor

    sample = np.concatenate([values(DAYS[0], Task(0, c))[0] for c in range(2)], axis=2)
    fitted = Compressor.fit(
        sample.transpose(1, 2, 0), cosine=0.999, basis=np.eye(BANDS, dtype="f4")
    )
    return NecCodec(fitted.coding), NecCodec(fitted.scene_coding)


@pytest.fixture(scope="session")
def open_series(codecs: "tuple[NecCodec, NecCodec]") -> Open:
    """Return a function that opens or makes a store of the toy series for writing."""
    from nec.archive import Layout, StoreWriter

    def start(
        path: Path, days: list[np.datetime64]
    ) -> "tuple[StoreWriter, dict[np.datetime64, int]]":
        times = np.array(days, "datetime64[D]")
        return StoreWriter.of_series(
            path,
            Layout.of_scene(GRID, bands=BANDS, time=times),
            days=times,
            codec=codecs[0],
            scene_codec=codecs[1],
            attributes={"nec": {"model": "toy", "series": {"grid": GRID.name, "step": "day"}}},
            basis=np.eye(BANDS, dtype=np.float32),
            fingerprint="f" * 64,
        )

    return start
