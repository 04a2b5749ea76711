"""Write the golden stores of format version 1; run once, when the version was frozen.

    python tests/golden/make_golden.py

Refuses to touch what is there: a golden store is never made again, a new version gets new ones.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr

import nec

HERE = Path(__file__).parent / "v1"


def field(height: int, width: int) -> xr.DataArray:
    """Return a small embedding with all that the format has to offer."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width] / 40
    maps = np.stack([np.ones_like(y), y, x, np.sin(9 * x + 4 * y), (x > y) * 1.0], -1)
    values = (maps @ rng.normal(size=(5, 6)) + 0.05 * rng.normal(size=(height, width, 6))).astype(
        np.float32
    )
    values[:4, :5] = np.nan
    values[-3, 3] = np.nan
    values[5, -9] *= -1  # a vector that a guarantee has to patch
    values[30:33, 20:23] = 0
    coords = {"y": 5e6 - 10.0 * np.arange(height) - 5, "x": 4e5 + 10.0 * np.arange(width) + 5}
    array = xr.DataArray(values, dims=("y", "x", "band"), coords=coords)
    return array.rio.write_crs("EPSG:32632")


def main() -> None:
    HERE.mkdir(exist_ok=False)
    for name, size, options in (
        ("plain", (40, 44), {"cosine": 0.995}),
        ("guarded", (40, 44), {"cosine": 0.995, "min_cosine": 0.98, "block": 16}),
        ("tiny", (9, 13), {"cosine": 0.99, "block": 8}),
    ):
        array = field(*size)
        tame = array.where(array != 0)
        if name == "guarded":
            array[12, 12] = 3e30  # a block that only verbatim values hold
        compressor = nec.Compressor.fit(tame, **options)
        groups = (1, 3, compressor.coding.octaves)
        coding = replace(compressor.coding, octave_groups=groups, band_groups=(2, 6))
        store = HERE / f"{name}.zarr"
        nec.encode(array, store, model=replace(compressor, coding=coding))
        nec.seal(store)
        dataset = xr.open_zarr(store)
        # Decoded once, by the writer of the day.
        np.savez_compressed(
            HERE / f"{name}.npz",
            embedding=dataset["embedding"].to_numpy(),
            scene_embedding=dataset["scene_embedding"].to_numpy(),
        )


if __name__ == "__main__":
    main()
