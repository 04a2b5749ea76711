"""Biomass from GEDI shots.

    python docs/tutorials/biomass.py --data ../shared/data --out tutorial_output/biomass

With the development data the place is the Hainich, Sentinel-2 at 100 m with GEDI L4A shots;
without, a rendered scene with shots made up from its pixels.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rioxarray
import xarray as xr
from scipy.ndimage import zoom

import nec
from nec.evaluate import draw_map, draw_measured_against_predicted
from nec.heads import BiomassRegressor, write_map

UPSAMPLED = 4  # pixels a cell of 100 m: a token of 4 pixels is then one label


def scene_and_shots(
    data: Path | None, out: Path
) -> tuple[Path | xr.DataArray, xr.DataArray, xr.DataArray]:
    """Return a scene, and shots with their standard errors, NaN where there is none."""
    if data is not None:
        folder = data / "biomass" / "hainich_gedi_100m"
        cells = rioxarray.open_rasterio(folder / "predictors.tif").sortby("y", ascending=False)
        names = ["B2", "B3", "B4", "B8", "B11", "B12"]
        order = [cells.attrs["long_name"].index(name) for name in names]
        fine = zoom(
            cells.values[order] / 1e4,
            (1, UPSAMPLED, UPSAMPLED),
            order=1,
            grid_mode=True,
            mode="nearest",
        )
        coords = {
            d: float(cells[d][0]) - s * 50 + s * (np.arange(n) + 0.5) * 100 / UPSAMPLED
            for d, s, n in (("y", -1, fine.shape[1]), ("x", 1, fine.shape[2]))
        }
        bands = ["blue", "green", "red", "nir", "swir16", "swir22"]
        scene = xr.DataArray(
            fine.astype(np.float32), dims=("band", "y", "x"), coords={"band": bands, **coords}
        ).rio.write_crs(cells.rio.crs)
        shots = rioxarray.open_rasterio(folder / "agbd.tif").sortby("y", ascending=False)
        biomass = shots[0].where(shots[0] > 0)  # 0 is no shot
        return scene, biomass, shots[1].where(shots[1] > 0)
    import rasterio

    from nec.rendered import render_scene

    path = render_scene(out / "rendered.tif", shape=(400, 400))
    with rasterio.open(path) as file:
        image = file.read().astype(np.float64)
    raster = rioxarray.open_rasterio(path).isel(band=0, drop=True)
    ratio = (image[3] - image[2]) / np.maximum(image[3] + image[2], 1)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=ratio.shape)
    biomass = np.where(
        rng.random(ratio.shape) < 0.02, np.clip(150 * ratio + 5 * noise, 0, None), np.nan
    )
    truth = raster.astype(float).copy(data=biomass)
    truth.attrs = {}
    truth = truth.rio.write_nodata(np.nan)
    return path, truth, xr.full_like(truth, 5.0)


def main(data: Path | None, out: Path) -> float:
    """Make the map and its plots in a folder; return R2 on the eastern part."""
    out.mkdir(parents=True, exist_ok=True)
    scene, shots, errors = scene_and_shots(data, out)
    nec.encode(scene, out / "scene.zarr", rate="high")  # the rate of maps
    dataset = nec.open(out / "scene.zarr")
    embedding = dataset["embedding"]
    embedding = embedding.isel(time=0) if "time" in embedding.dims else embedding

    # Learn in the west, test in the east, leave a strip between them out.
    span = shots.x.values
    west = shots.where(shots.x < np.quantile(span, 0.65))
    east = shots.where(shots.x > np.quantile(span, 0.70))
    head = BiomassRegressor().fit(embedding, west, standard_error=errors)
    print(
        f"{head.n_labels_} shots, {head.n_parameters_} parameters; error of held-out blocks "
        f"{head.held_out_rmse_:.1f} {head.units}"
    )
    r2 = head.score(embedding, east)
    print(f"R2 in the east: {r2:.2f}")
    head.save(out / "head.safetensors")

    biomass = head.predict(embedding).compute()
    bounds = head.predict_interval(embedding, coverage=0.9).compute()
    write_map(biomass, out / "biomass.tif")
    at = {d: east[d] for d in ("y", "x")}
    near = {"method": "nearest"}
    measured = east.values.ravel()
    predicted = biomass.sel(**at, **near).values.ravel()
    interval = bounds.sel(**at, **near).transpose("y", "x", "bound").values.reshape(-1, 2)
    known = np.isfinite(measured) & np.isfinite(predicted)
    inside = (interval[known, 0] <= measured[known]) & (measured[known] <= interval[known, 1])
    print(f"90 % intervals hold {inside.mean():.0%} of the shots in the east")

    figure, axes = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    there = biomass.dropna("y", how="all").dropna("x", how="all")
    draw_map(there, ax=axes[0])
    width = (bounds[1] - bounds[0]).sel(y=there.y, x=there.x)
    draw_map(width.assign_attrs(long_name="width of the interval", units="Mg/ha"), ax=axes[1])
    draw_measured_against_predicted(measured, predicted, interval=interval, ax=axes[2])
    figure.savefig(out / "biomass.png", dpi=110)
    plt.close(figure)
    return float(r2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tutorial_output/biomass"))
    args = parser.parse_args()
    main(args.data, args.out)
