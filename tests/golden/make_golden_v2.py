"""Write the golden stores of format version 2; run once, when the version was frozen.

    python tests/golden/make_golden_v2.py

Refuses to touch what is there: a golden store is never made again, a new version gets new ones.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr

import nec

HERE = Path(__file__).parent / "v2"


def kinds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return vectors (n, 6) of nine kinds."""
    centres = np.random.default_rng(9).normal(size=(9, 6))
    near = centres[rng.integers(9, size=count)] + 0.1 * rng.normal(size=(count, 6))
    return near.astype(np.float32)


def main() -> None:
    HERE.mkdir(exist_ok=False)
    rng = np.random.default_rng(2)
    sample = kinds(rng, 600)
    vectors = kinds(rng, 150)
    vectors[[0, 40, 41, 42]] = np.nan
    vectors[90] = 0
    lone = xr.DataArray(vectors, dims=("sample", "band"))
    field = kinds(rng, 22 * 25).reshape(22, 25, 6)
    field[:3, :5] = np.nan
    field[5, 9] *= -3  # a vector that a guarantee has to patch
    field[12, 12] = 3e30  # a block that only verbatim values hold
    coords = {"y": 5e6 - 10.0 * np.arange(22) - 5, "x": 4e5 + 10.0 * np.arange(25) + 5}
    grid = xr.DataArray(field, dims=("y", "x", "band"), coords=coords).rio.write_crs("EPSG:32632")
    compressor = nec.Compressor.fit(sample, cosine=0.99, codebook=12)
    coding = replace(compressor.coding, band_groups=(2, 6))
    for name, array, least in (("lone", lone, 0.0), ("guarded", grid, 0.97)):
        store = HERE / f"{name}.zarr"
        nec.encode(array, store, model=replace(compressor, coding=coding), min_cosine=least)
        nec.seal(store)
        dataset = xr.open_zarr(store)
        # Decoded once, by the writer of the day.
        decoded = {str(k): v.to_numpy() for k, v in dataset.data_vars.items()}
        np.savez_compressed(HERE / f"{name}.npz", **decoded)


if __name__ == "__main__":
    main()
