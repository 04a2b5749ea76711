"""The consumer stays light: no torch, no numba, no GDAL until they are needed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from nec.codec import NecCodec
from nec.compressor import Compressor

HEAVY = (
    *("torch", "numba", "rasterio", "rioxarray", "odc", "sklearn", "matplotlib", "geopandas"),
    *("pystac", "jsonschema", "icechunk"),
)


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_import_brings_nothing_heavy() -> None:
    assert not modules_after("import nec") & set(HEAVY)
    assert not modules_after("import nec.cli") & {"torch", "pystac"}
    assert "pystac" not in modules_after("import nec.production")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    import zarr

    y, x = np.mgrid[:32, :32] / 32
    values = np.stack([np.ones_like(y), y, x, x * y], -1).astype(np.float32)
    compressor = Compressor.fit(values, cosine=0.999)
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(4, 32, 32),
        chunks=(4, 32, 32),
        dtype="float32",
        serializer=NecCodec(compressor.coding),
        compressors=None,
        fill_value=np.nan,
        dimension_names=("band", "y", "x"),
    )
    array[:] = np.moveaxis(values @ compressor.basis, -1, 0)
    code = f"import zarr; zarr.open_array({str(tmp_path / 'a.zarr')!r}, mode='r')[:]"
    assert not modules_after(code) & (set(HEAVY) - {"numba"})
