"""Labels of files, and what of a store they lie over, for the commands that train heads."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nec.errors import HeadError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr


def read_labels(path: Path, band: int) -> "xr.DataArray":
    """Return a band (y, x) of a raster, from 1; its scale and offset tags are attributes.

    What a mask hides is NaN in floats, and in integers their nodata value, or one that is less
    than all of them.
    """
    import rasterio
    import rioxarray
    import xarray as xr
    from rasterio.enums import MaskFlags

    try:
        with warnings.catch_warnings():
            # Tags are read of the band alone.
            warnings.filterwarnings("ignore", message="(Scales|Offsets) differ across bands")
            opened: Any = rioxarray.open_rasterio(path)
        with rasterio.open(path) as raster:
            scales, offsets = raster.scales, raster.offsets
            kinds = raster.mask_flag_enums[band - 1] if 1 <= band <= raster.count else ()
            masked = MaskFlags.per_dataset in kinds or MaskFlags.alpha in kinds
            hidden = raster.read_masks(band) == 0 if masked else None
    except Exception as error:  # rasterio's errors have no common parent
        raise HeadError(f"{path} cannot be read as a raster ({error})", "give a GeoTIFF") from error
    if not 1 <= band <= opened.sizes["band"]:
        raise HeadError(
            f"{path} has {opened.sizes['band']} bands, and band {band} is asked for",
            "give --band or --error-band, from 1",
        )
    plane: xr.DataArray = opened.isel(band=band - 1, drop=True)
    if hidden is not None and hidden.any():
        nothing = plane.rio.nodata
        if nothing is None:
            plane = plane if plane.dtype.kind == "f" else plane.astype("int64")
            nothing = float("nan") if plane.dtype.kind == "f" else int(plane.min()) - 1
        plane = plane.where(xr.DataArray(~hidden, dims=("y", "x")), nothing)
        plane = plane.rio.write_nodata(nothing)
    return plane.assign_attrs(scale_factor=scales[band - 1], add_offset=offsets[band - 1])


def at_time(dataset: "xr.Dataset", time: str | None) -> "xr.Dataset":
    """Return a store at a day, as 2024-07-31 or the beginning of that; all of it for None.

    Raises
    ------
    HeadError
        No day or several begin so, or the store has no times.
    """
    if time is None:
        return dataset
    if "time" not in dataset.dims:
        raise HeadError(f"the store has no times, and --time {time} is given", "leave it out")
    days = days_of(dataset)
    found = [at for at, day in enumerate(days) if day.startswith(time)]
    if len(found) != 1:
        raise HeadError(f"{len(found)} times begin with {time!r}", f"times: {', '.join(days)}")
    return dataset.isel(time=found)


def one_time(dataset: "xr.Dataset", name: str) -> "xr.DataArray":
    """Return an array of a store without its time; HeadError where it has several."""
    array = dataset[name]
    if "time" not in array.dims:
        return array
    if array.sizes["time"] > 1:
        raise HeadError(
            f"the store has {array.sizes['time']} times",
            f"give --time, one of: {', '.join(days_of(dataset))}",
        )
    return array.isel(time=0)


def days_of(dataset: "xr.Dataset") -> list[str]:
    """Return the times of a store, to the second, without what is zero."""
    import numpy as np

    told = np.datetime_as_string(dataset["time"].to_numpy().astype("datetime64[s]"))
    return [day.removesuffix("T00:00:00") for day in told.tolist()]


def sampled(dataset: "xr.Dataset", points: Path, column: str | None) -> Any:
    """Return the vectors under points, with their columns."""
    import geopandas

    from nec.sampling import sample

    if column is None:
        raise HeadError("--points needs --column", "name the column with the labels")
    try:
        places = geopandas.read_file(points)
    except Exception as error:  # drivers' errors have no common parent
        raise HeadError(
            f"{points} cannot be read as a vector file ({error})", "give a GeoPackage"
        ) from error
    if column not in places:
        raise HeadError(f"{points} has no column {column!r}", f"has: {list(places.columns)}")
    return sample(dataset, places)


def chosen(dataset: "xr.Dataset", where: str | None) -> "np.ndarray[Any, Any]":
    """Say which samples of a collection have the value of a coordinate, as set=train."""
    import numpy as np

    if where is None:
        return np.ones(dataset.sizes["sample"], bool)
    name, _, value = where.partition("=")
    if name not in dataset.coords or not value:
        raise HeadError(
            f"--where {where!r} names no coordinate and value",
            f"as set=train; coordinates: {', '.join(map(str, dataset.coords))}",
        )
    # Strings of stores are of a numpy type that does not cast to plain ones.
    values = np.array([str(item) for item in dataset[name].to_numpy().tolist()])
    chosen: np.ndarray[Any, Any] = values == value
    if not chosen.any():
        raise HeadError(
            f"no sample has {where}", f"values: {sorted(set(map(str, dataset[name].values)))[:8]}"
        )
    return chosen


def places_of(
    dataset: "xr.Dataset", table: Any, edge: int, folds: int
) -> "np.ndarray[Any, Any] | None":
    """Return the block of `edge` tokens that each point lies in; smaller ones where these are few.

    None where there are not two even so: each point is a place of its own then.
    """
    import geopandas
    import numpy as np

    from nec.evaluate import spatial_blocks
    from nec.sampling import Lattice

    lattice = Lattice.of(dataset["embedding"])
    where = geopandas.GeoSeries(table["geometry"]).to_crs(lattice.crs.to_wkt())
    size = float(edge * max(map(abs, lattice.step)))
    for _ in range(edge.bit_length()):
        blocks = spatial_blocks(where.x.to_numpy(), where.y.to_numpy(), size=size)
        if len(np.unique(blocks)) >= folds:
            break
        size /= 2
    return blocks if len(np.unique(blocks)) > 1 else None
