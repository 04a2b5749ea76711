"""Write the golden series of format version 1, a store with several times; run once.

    python tests/golden/make_golden_series.py

Refuses to touch what is there. The version is that of the first golden stores: releases from
before series were written read this one too.
"""

from pathlib import Path

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import nec
from nec.archive import Contributor, Layout, StoreWriter, TimeStep, TokenGrid
from nec.codec import NecCodec

STORE = Path(__file__).parent / "v1" / "series.zarr"
BOX = GeoBox((30, 40), Affine(10, 0, 4e5, 0, -10, 5e6), "EPSG:32632")
GRID = TokenGrid.around(BOX, patch=1, chunk=16, shard=32, cell=16, whole=True)
DAYS = np.array(["2020-05-01", "2020-06-03", "2021-01-03"], "datetime64[D]")


def field(seed: int) -> np.ndarray:
    """Return a small embedding (band, y, x), another one for each time."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: GRID.shape[0], : GRID.shape[1]] / 40
    maps = np.stack([np.ones_like(y), y, x, np.sin(9 * x + 4 * y), (x > y) * 1.0])
    values = np.einsum("bm,myx->byx", rng.normal(size=(4, 5)), maps)
    values += 0.05 * rng.normal(size=values.shape)
    values[:, :4, :5] = np.nan
    return values.astype(np.float32)


def main() -> None:
    if STORE.exists():
        raise SystemExit(f"{STORE} is there already: it is never made again")
    fitted = nec.Compressor.fit(
        field(0).transpose(1, 2, 0), cosine=0.99, basis=np.eye(4, dtype="f4")
    )
    own = {"model": "golden", "basis": fitted.basis_hash, "space": "klt"}
    writer, index = StoreWriter.of_series(
        STORE,
        Layout.of_scene(GRID, bands=4, time=DAYS[:2]),
        days=DAYS[:2],
        codec=NecCodec(fitted.coding),
        scene_codec=NecCodec(fitted.scene_coding),
        attributes={"nec": own | {"series": {"grid": GRID.name, "step": "day"}}},
        basis=np.eye(4, dtype=np.float32),
        fingerprint="golden",
    )
    index = nec.archive.series.append(STORE, DAYS)
    writer.refresh()
    for day in DAYS:
        at = index[day]
        scene = Contributor(f"scene{at}", "0" * 64, ("0.0",), {"acquired": f"{day}T10:20:30"})
        step = TimeStep(at, str(day), (scene,))
        writer.hold(step, None)
        for task in writer.at(step).pending():
            rows, columns = GRID.task_rows(task), GRID.task_columns(task)
            tokens = field(at)[:, rows, columns]
            if task.column == 1 and at == 1:
                tokens[:] = np.nan  # a shard that is not there
            cells = tokens.reshape(4, 2, 16, 2, 16)
            count = (~np.isnan(cells)).sum((2, 4))
            pooled = np.nansum(cells, axis=(2, 4)) / np.where(count, count, np.nan)
            writer.at(step).write(task, tokens, pooled.astype(np.float32))
    writer.finish()
    nec.seal(STORE)
    dataset = xr.open_zarr(STORE)
    np.savez_compressed(
        STORE.with_suffix(".npz"),
        embedding=dataset["embedding"].to_numpy(),
        scene_embedding=dataset["scene_embedding"].to_numpy(),
    )


if __name__ == "__main__":
    main()
