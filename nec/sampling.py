"""Vectors at points: the tokens of a store under the points of a table."""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import HeadError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

SPATIAL_DIMS = (("y", "x"), ("cell_y", "cell_x"))


@dataclass(frozen=True)
class Lattice:
    """Where the rows and columns of an array lie in its CRS, read from its coordinates.

    Parameters
    ----------
    dims : tuple of str
        The names of the row and the column dimension.
    shape : tuple of int
        Rows, columns.
    corner : tuple of float
        y and x of the outer corner of the first row and column, in CRS units.
    step : tuple of float
        From one row, and from one column, to the next; negative rows run southwards.
    crs : object or None
        A ``rasterio.crs.CRS``; None where the array has none.
    """

    dims: tuple[str, str]
    shape: tuple[int, int]
    corner: tuple[float, float]
    step: tuple[float, float]
    crs: Any

    @classmethod
    def of(cls, array: xr.DataArray) -> "Lattice":
        """Read the lattice of a georeferenced array.

        Coordinates decide, not the ``GeoTransform`` of ``spatial_ref``, which slicing leaves
        stale and which tokens and cells share; it only helps where a side has one element.

        Parameters
        ----------
        array : xarray.DataArray
            With dims ``y, x`` or ``cell_y, cell_x`` and coordinates of cell centres.

        Raises
        ------
        HeadError
            The coordinates are missing, are not evenly spaced, or tell no spacing.
        """
        dims = spatial_dims(array)
        if any(dim not in array.coords for dim in dims):
            raise HeadError(
                f"{_name(array)} has no coordinates along {', '.join(dims)}",
                "assign cell centres, or take the array from an opened store",
            )
        centres = [np.asarray(array[dim].values, dtype=np.float64) for dim in dims]
        steps = [_step(values, dim) for values, dim in zip(centres, dims, strict=True)]
        if None in steps:
            steps = _steps_from_transform(array, dims, steps)
        y, x = (float(values[0]) for values in centres)
        step_y, step_x = (float(step) for step in steps if step is not None)
        return cls(
            dims=dims,
            shape=(centres[0].size, centres[1].size),
            corner=(y - step_y / 2, x - step_x / 2),
            step=(step_y, step_x),
            crs=crs_of(array),
        )

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Six numbers in GDAL's order: x corner, x step, 0, y corner, 0, y step."""
        return (self.corner[1], self.step[1], 0.0, self.corner[0], 0.0, self.step[0])

    def rows(self, y: NDArray[np.float64]) -> NDArray[np.int64]:
        """Row that holds each y; -1 where none does."""
        return self._index(y, 0)

    def columns(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        """Column that holds each x; -1 where none does."""
        return self._index(x, 1)

    def _index(self, values: NDArray[np.float64], axis: int) -> NDArray[np.int64]:
        place = np.floor((values - self.corner[axis]) / self.step[axis])
        inside = (place >= 0) & (place < self.shape[axis])  # False for NaN and infinities
        return np.where(inside, place, -1.0).astype(np.int64)


def spatial_dims(array: xr.DataArray) -> tuple[str, str]:
    """Names of the row and column dimension of an array: tokens (y, x) or cells.

    Raises
    ------
    HeadError
        It has neither pair.
    """
    for dims in SPATIAL_DIMS:
        if all(dim in array.dims for dim in dims):
            return dims
    raise HeadError(
        f"{_name(array)} has dimensions {tuple(map(str, array.dims))}, none of them a place",
        "pass `embedding` (band, y, x) or `scene_embedding` (band, cell_y, cell_x)",
    )


def crs_of(array: xr.DataArray) -> Any:
    """Return the CRS of an array as rioxarray reads it; None where it has none."""
    import rioxarray  # noqa: F401  (registers the accessor)

    return array.rio.crs


def without_time(array: xr.DataArray) -> xr.DataArray:
    """Drop a time dimension of length one.

    Raises
    ------
    HeadError
        The array has several times.
    """
    if "time" not in array.dims:
        return array
    if array.sizes["time"] != 1:
        raise HeadError(
            f"{_name(array)} has {array.sizes['time']} times, and one is needed",
            "select it: embedding.isel(time=0)",
        )
    return array.isel(time=0)


def sample(
    source: str | Path | xr.Dataset | xr.DataArray,
    points: Any,
    *,
    variable: str = "embedding",
) -> "pd.DataFrame":
    """Take the vector of the token under each point.

    Parameters
    ----------
    source : path, xarray.Dataset or xarray.DataArray
        A store, an opened store, or one of its arrays, with a CRS. Only the chunks that hold
        points are read.
    points : geopandas.GeoDataFrame
        Points in any CRS; they are brought into that of the store. Of several times, each point
        is taken at each.
    variable : str, default "embedding"
        The array to sample: ``embedding`` or ``scene_embedding``.

    Returns
    -------
    pandas.DataFrame
        The points that have a vector, with the index, the columns and the geometry they came
        with, after the columns ``band_0`` ... ``band_{d-1}`` (float32) and, of several times,
        ``time`` (datetime64). ``attrs`` carry ``nec_basis``, ``nec_model`` and ``nec_bands``, so
        a head fitted on the table knows its basis and which bands these are, and, of arrays in
        chunks, ``nec_chunks_read`` and ``nec_chunks`` (in the plane). Points outside the grid
        or on missing tokens are left out, and their number is logged.

    Raises
    ------
    HeadError
        The variable is not there, a CRS is missing, a geometry is not a point, a column is
        called like a band, or no point has a vector.
    """
    import pandas as pd

    array = _array(source, variable)
    if not hasattr(points, "columns"):
        raise HeadError(f"points are a {type(points).__name__}", "pass a geopandas.GeoDataFrame")
    if array.sizes.get("time", 1) == 1:
        return _sample(without_time(array), points)
    if not array.sizes["time"]:
        raise HeadError(f"{_name(array)} is of no time", "select one that it holds")
    if "time" in points.columns:
        raise HeadError("the points already have a column 'time'", "rename it")
    tables = []
    for time, part in zip(array["time"].values, array.transpose("time", ...), strict=True):
        table = _sample(part, points, some=False)
        table.insert(array.sizes["band"], "time", time)
        tables.append(table)
    result = pd.concat(tables)
    if result.empty:
        raise HeadError(
            f"no point lies on a token of {_name(array)} at any time",
            "choose points on the valid area of the scenes",
        )
    counts = ("nec_chunks_read", "nec_chunks")
    sums = {k: sum(t.attrs[k] for t in tables) for k in counts if k in tables[0].attrs}
    result.attrs = {**tables[0].attrs, **sums}
    return result


def _sample(array: xr.DataArray, points: Any, *, some: bool = True) -> "pd.DataFrame":
    """Take the vectors under points at one time; with `some`, at least one."""
    import pandas as pd

    lattice = Lattice.of(array)
    if lattice.crs is None:
        raise HeadError(f"{_name(array)} has no CRS", "write it: array.rio.write_crs(...)")
    y, x = _coordinates(points, lattice.crs)
    rows, columns = lattice.rows(y), lattice.columns(x)
    inside = np.flatnonzero((rows >= 0) & (columns >= 0))
    if not inside.size:
        raise HeadError(
            f"none of the {len(points)} points lies inside {_name(array)}",
            f"check the CRS of the points ({points.crs}) and the extent of the store",
        )
    pick = {
        dim: xr.DataArray(index[inside], dims="point")
        for dim, index in zip(lattice.dims, (rows, columns), strict=True)
    }
    vectors = array.isel(pick).transpose("point", "band").values
    present = ~np.isnan(vectors).any(axis=1)
    _log_losses(len(points), inside.size, int(present.sum()))
    if some and not present.any():
        raise HeadError(
            f"all {inside.size} points inside {_name(array)} lie on missing tokens",
            "choose points on the valid area of the scene",
        )
    kept = points.iloc[inside[present]]
    bands = [f"band_{i}" for i in range(vectors.shape[1])]
    if clash := sorted(set(bands) & set(map(str, kept.columns))):
        raise HeadError(f"the points already have a column {clash[0]!r}", "rename it")
    table = pd.concat([pd.DataFrame(vectors[present], kept.index, bands), kept], axis=1)
    table.attrs = {
        key: array.attrs[key] for key in ("nec_basis", "nec_model") if key in array.attrs
    }
    if "band" in array.indexes:
        table.attrs["nec_bands"] = array["band"].values.tolist()
    table.attrs |= _chunks_read(array, lattice, rows[inside], columns[inside])
    return table


def _chunks_read(
    array: xr.DataArray, lattice: Lattice, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> dict[str, int]:
    """Count the chunks of the plane that hold these tokens, and all; nothing without chunks."""
    sizes = []
    for dim, length in zip(lattice.dims, lattice.shape, strict=True):
        chunks = array.chunksizes.get(dim)
        if chunks is None:
            edge = array.encoding.get("preferred_chunks", {}).get(dim)
            if edge is None:
                return {}
            chunks = (int(edge),) * -(-length // int(edge))
        sizes.append(chunks)
    place = [
        np.searchsorted(np.cumsum(chunks), index, side="right")
        for chunks, index in zip(sizes, (rows, columns), strict=True)
    ]
    read = len(np.unique(np.stack(place, axis=1), axis=0))
    total = len(sizes[0]) * len(sizes[1])
    logger.info("%d of %d chunks of %s hold points and are read", read, total, _name(array))
    return {"nec_chunks_read": read, "nec_chunks": total}


def _array(source: str | Path | xr.Dataset | xr.DataArray, variable: str) -> xr.DataArray:
    if isinstance(source, xr.DataArray):
        return source
    if isinstance(source, xr.Dataset):
        dataset = source
    else:
        from nec.archive import open_store

        dataset = open_store(source)
    if variable not in dataset:
        has = ", ".join(map(str, dataset.data_vars)) or "none"
        raise HeadError(f"variable {variable!r} is not in the store (has: {has})", "pass variable=")
    return dataset[variable]


def _coordinates(points: Any, crs: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if getattr(points, "crs", None) is None:
        raise HeadError(
            "the points have no CRS", "pass a GeoDataFrame and name it: points.set_crs(...)"
        )
    geometry = points.geometry
    there = ~(geometry.isna() | geometry.is_empty)
    if other := sorted(set(geometry[there].geom_type) - {"Point"}):
        raise HeadError(
            f"the geometries are {', '.join(other)}, and points are needed",
            "take points.representative_point() first",
        )
    geometry = geometry.to_crs(crs.to_wkt())
    y, x = np.full(len(points), np.nan), np.full(len(points), np.nan)
    y[there], x[there] = geometry[there].y.to_numpy(), geometry[there].x.to_numpy()
    return y, x


def _log_losses(given: int, inside: int, present: int) -> None:
    if given > inside:
        logger.warning(
            "%d of %d points lie outside the grid and are left out", given - inside, given
        )
    if inside > present:
        logger.warning(
            "%d of %d points lie on missing tokens and are left out", inside - present, given
        )


def _step(values: NDArray[np.float64], dim: str) -> float | None:
    if values.size < 2:
        return None
    step = float(values[-1] - values[0]) / (values.size - 1)
    regular = values[0] + step * np.arange(values.size)
    if step == 0 or not np.allclose(values, regular, rtol=0, atol=abs(step) * 0.01):
        raise HeadError(
            f"coordinate {dim!r} is not evenly spaced", "pass an array on a regular grid"
        )
    return step


def _steps_from_transform(
    array: xr.DataArray, dims: tuple[str, str], steps: list[float | None]
) -> list[float | None]:
    """Fill in the step of a side of one element, at the scale that the other side shows."""
    mapping = array.coords.get(grid_mapping_name(array))
    numbers = str(mapping.attrs.get("GeoTransform", "")).split() if mapping is not None else []
    tokens = dims == SPATIAL_DIMS[0]
    if len(numbers) != 6 or (steps == [None, None] and not tokens):
        raise HeadError(
            f"{_name(array)} has a side of one element, which tells no spacing",
            "keep two rows and columns at least, or write its GeoTransform",
        )
    whole = [float(numbers[5]), float(numbers[1])]
    ratios = [abs(step / unit) for step, unit in zip(steps, whole, strict=True) if step is not None]
    ratio = ratios[0] if ratios else 1.0
    return [unit * ratio if step is None else step for step, unit in zip(steps, whole, strict=True)]


def grid_mapping_name(array: xr.DataArray) -> Hashable:
    """Name of the coordinate that holds the CRS of an array."""
    name: Hashable = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping"))
    return name or "spatial_ref"


def _name(array: xr.DataArray) -> str:
    return f"array {str(array.name)!r}" if array.name is not None else "the array"
