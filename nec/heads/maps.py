"""Maps: a decision rule applied to every token of a scene, lazily, and written as a raster."""

import colorsys
import json
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import HeadError
from nec.heads.rules import Rows, Rule
from nec.sampling import Lattice, crs_of, grid_mapping_name, spatial_dims, without_time

MISSING = -1
# Dimensions of maps of several planes.
PLANES = ("bound", "class")
MAP_SUFFIXES = (".tif", ".tiff", ".zarr")
BATCH = 1 << 14  # rows at a time: bounds the memory beside the chunk itself


def class_map(rule: Rule, classes: NDArray[Any], embedding: xr.DataArray) -> xr.DataArray:
    """Class of every vector of a scene.

    Parameters
    ----------
    rule : Rule
        Gives probabilities to rows.
    classes : numpy.ndarray
        The labels; the map holds indices into them.
    embedding : xarray.DataArray
        With a ``band`` dimension among others; lazy where it is lazy, with its chunks.

    Returns
    -------
    xarray.DataArray
        int16, the dimensions of `embedding` without ``band``, -1 where a band is NaN.
    """
    if classes.size > np.iinfo(np.int16).max:
        raise HeadError(f"{classes.size} classes do not fit an int16 map", "merge classes")
    mapped = _applied(
        embedding, _indices, options={"rule": rule}, core=[], dtype=np.int16, sizes={}
    )
    return georeferenced(described(mapped, classes, embedding, shares=False), embedding)


def probability_map(rule: Rule, classes: NDArray[Any], embedding: xr.DataArray) -> xr.DataArray:
    """Probability of every class for every vector of a scene.

    Parameters
    ----------
    rule, classes, embedding
        As in :func:`class_map`.

    Returns
    -------
    xarray.DataArray
        float32, with ``class`` (the labels) in the place of ``band``; NaN where missing.
    """
    sizes = {"class": classes.size}
    options = {"rule": rule, "count": classes.size}
    mapped = _applied(
        embedding, _shares, options=options, core=["class"], dtype=np.float32, sizes=sizes
    )
    mapped = mapped.transpose(*("class" if dim == "band" else dim for dim in embedding.dims))
    return georeferenced(described(mapped, classes, embedding, shares=True), embedding)


def described(
    mapped: xr.DataArray, classes: NDArray[Any], embedding: xr.DataArray, *, shares: bool
) -> xr.DataArray:
    """Give a map its name and CF attributes: of class indices, or of probabilities."""
    if shares:
        # Object arrays of strings would not be written by zarr.
        names = classes.astype(str) if classes.dtype.kind == "O" else classes
        mapped = mapped.assign_coords({"class": names})
        mapped.attrs = {"long_name": "probability of the class", "units": "1"}
    else:
        mapped.attrs = {
            "long_name": "class",
            "flag_values": np.arange(classes.size, dtype=np.int16),
            "flag_meanings": " ".join(_words(classes.tolist())),
        }
    mapped.attrs |= _origin(embedding)
    return mapped.rename("probability" if shares else "class_index")


def _words(names: list[Any]) -> list[str]:
    """Name classes by a word each, as CF wants it; no two alike."""
    words: list[str] = []
    for name in names:
        word = base = "_".join(str(name).split()) or "unnamed"
        again = 2
        while word in words:
            word, again = f"{base}_{again}", again + 1
        words.append(word)
    return words


def _applied(
    embedding: xr.DataArray,
    function: Any,
    *,
    options: dict[str, Any],
    core: list[str],
    dtype: type,
    sizes: dict[str, int],
) -> xr.DataArray:
    whole = embedding.chunk({"band": -1}) if embedding.chunks is not None else embedding
    result: xr.DataArray = xr.apply_ufunc(
        function,
        whole,
        kwargs=options,
        input_core_dims=[["band"]],
        output_core_dims=[core],
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": sizes} if sizes else None,
        keep_attrs=True,
    )
    return result


def _indices(block: Rows, *, rule: Rule) -> NDArray[np.int16]:
    def classify(rows: Rows) -> NDArray[np.int16]:
        return np.asarray(rule.probabilities(rows).argmax(axis=1), dtype=np.int16)

    result = np.full(block.shape[:-1], MISSING, np.int16)
    _fill(block, result.reshape(-1), classify)
    return result


def _shares(block: Rows, *, rule: Rule, count: int) -> NDArray[np.float32]:
    result = np.full((*block.shape[:-1], count), np.nan, np.float32)
    _fill(block, result.reshape(-1, count), rule.probabilities)
    return result


def _fill(block: Rows, result: NDArray[Any], function: Any) -> None:
    """Put `function` of the complete vectors of (..., band) `block` into their rows of `result`."""
    # Stores are band-first: gathering along that layout is four times as fast as by row.
    bands = np.moveaxis(block, -1, 0).reshape(block.shape[-1], -1)
    present = np.flatnonzero(np.isfinite(bands).all(axis=0))
    for start in range(0, present.size, BATCH):
        part = present[start : start + BATCH]
        result[part] = function(np.take(bands, part, axis=1).T)


def _origin(embedding: xr.DataArray) -> dict[str, Any]:
    return {key: embedding.attrs[key] for key in ("nec_model",) if key in embedding.attrs}


def georeferenced(mapped: xr.DataArray, embedding: xr.DataArray) -> xr.DataArray:
    """Keep the grid mapping, with the transform of this very grid (tokens, cells or a slice)."""
    name = grid_mapping_name(embedding)
    if name not in mapped.coords:
        return mapped
    mapped.encoding["grid_mapping"] = name
    mapping = mapped.coords[name].copy()
    if "GeoTransform" in mapping.attrs:
        mapping.attrs = dict(mapping.attrs)
        try:
            transform = Lattice.of(mapped).transform
        except HeadError:  # no coordinates: better no transform than one that may be stale
            del mapping.attrs["GeoTransform"]
        else:
            mapping.attrs["GeoTransform"] = " ".join(map(repr, transform))
    return mapped.assign_coords({name: mapping})


def write_map(
    labels: xr.DataArray,
    path: str | Path,
    *,
    colours: Sequence[tuple[int, int, int]] | None = None,
    block: int = 8,
) -> Path:
    """Write a map as a cloud-optimised GeoTIFF (classes with a colour table), or as Zarr.

    A lazy map is computed and written block by block: memory does not grow with the scene.
    ``labels.to_zarr`` writes the same values, but where a head looks at neighbours it may hold
    much of the scene at once.

    Parameters
    ----------
    labels : xarray.DataArray
        Class indices (y, x) or (cell_y, cell_x) as a head's `predict` gives them; -1 is missing.
        Or numbers of a regressor, NaN where missing; of its `predict_interval` (bound, y, x), or
        probabilities (class, y, x) of `predict_proba`, a plane each.
    path : str or path
        What to write: a Zarr group (``.zarr``), or a GeoTIFF (``.tif``, ``.tiff``). It appears
        when it is complete, and replaces one that is there.
    colours : sequence of (red, green, blue), optional
        One for each class, 0 to 255. Chosen when not given; Zarr has none.
    block : int, default 8
        Chunks along each side of a block; so many, and a ring of chunks around them where a head
        looks at neighbours, are in memory at once. Less needs less memory and reads more chunks
        twice.

    Returns
    -------
    pathlib.Path
        What was written. Zarr: the array as it is, that plain xarray opens. GeoTIFF: uint8 with
        nodata 255 (uint16 with 65535 above 255 classes), and the class names in the tags
        ``flag_values`` and ``flag_meanings`` of the band. Of numbers float32 with nodata NaN,
        the units in the band's; of several planes a band each, described by its bound or class.

    Raises
    ------
    HeadError
        No map, no CRS, a name of another format, or not as many colours as classes; there is no
        folder to write to; a folder that is no Zarr group, or an embedding store, is where a map
        shall be written.
    """
    path = Path(path)
    if path.suffix.lower() not in MAP_SUFFIXES:
        raise HeadError(f"{path} is no name of a map", f"end it in {', '.join(MAP_SUFFIXES)}")
    if not path.parent.is_dir():
        raise HeadError(f"there is no folder {path.parent}", "make it")
    labels = without_time(labels)
    names = str(labels.attrs.get("flag_meanings", "")).split()
    numbers = labels.dtype.kind == "f" and "band" not in labels.dims
    if not numbers and (not names or labels.dtype.kind not in "iu"):
        raise HeadError(
            f"array {str(labels.name)!r} ({labels.dtype}) is no class map",
            "pass what a head's predict() gives for a scene",
        )
    planes = [dim for dim in labels.dims if dim not in spatial_dims(labels)]
    if planes and (planes[0] not in PLANES or len(planes) > 1):
        raise HeadError(
            f"the map has dimensions {labels.dims}", f"select one plane of {spatial_dims(labels)}"
        )
    names = [] if numbers else names
    table = class_colours(len(names)) if colours is None else list(colours)
    if len(table) != len(names):
        raise HeadError(f"{len(table)} colours for {len(names)} classes", "give one for each")
    if crs_of(labels) is None:
        raise HeadError("the map has no CRS", "write it: labels.rio.write_crs(...)")
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        if path.suffix.lower() == ".zarr":
            return _write_zarr(labels, Path(folder) / "map.zarr", path, block)
        from rasterio.shutil import copy

        plain, finished = Path(folder) / "plain.tif", Path(folder) / "cog.tif"
        _write_plain(labels, plain, names, table, block)
        resampling = "average" if numbers else "mode"
        copy(
            plain,
            finished,
            driver="COG",
            compress="deflate",
            overview_resampling=resampling,
            bigtiff="IF_SAFER",
        )
        finished.replace(path)
    return path


def _blocks(labels: xr.DataArray, count: int) -> Iterator[tuple[slice, slice]]:
    """Cut a lazy map into blocks of `count` x `count` chunks that are computed one by one."""
    cuts = []
    for sizes in (labels.chunksizes[dim] for dim in spatial_dims(labels)):
        ends = [0, *np.cumsum(sizes).tolist()]
        kept = [*ends[:-1:count], ends[-1]]
        cuts.append([slice(start, stop) for start, stop in pairwise(kept)])
    rows, columns = cuts
    yield from product(rows, columns)


def _write_zarr(labels: xr.DataArray, aside: Path, path: Path, block: int) -> Path:
    """Write a map to a Zarr group aside, and put it in the place of a map that is there."""
    _check_replaceable(path)
    dims = spatial_dims(labels)
    labels = labels.transpose(..., *dims)
    if labels.chunks is not None:
        # Those of Zarr are of one size, and no two blocks may share one.
        labels = labels.chunk({dim: max(sizes) for dim, sizes in labels.chunksizes.items()})
    # Strings of a fixed length have no specification in Zarr.
    texts = {k: v.astype(object) for k, v in labels.coords.items() if v.dtype.kind == "U"}
    name = str(labels.name or "map")
    dataset = labels.assign_coords(texts).to_dataset(name=name)
    # Named as a coordinate, so that plain xarray finds the CRS.
    told = " ".join(str(key) for key in labels.coords if key not in labels.dims)
    if told:
        dataset[name].encoding["coordinates"] = told
    with warnings.catch_warnings():
        # Without consolidated metadata plain xarray warns at every opening.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        dataset.to_zarr(aside, compute=False, zarr_format=3, consolidated=True)
    if labels.chunks is not None:
        small = [k for k, v in dataset.variables.items() if not set(dims) <= set(v.dims)]
        plane = dataset.drop_vars(small)
        for window in _blocks(labels, block):
            region = dict(zip(dims, window, strict=True))
            plane.isel(region).to_zarr(aside, region=region)
    if path.exists():
        # The old one goes last, with the folder beside: a kill before leaves one of them.
        path.rename(aside.with_name("replaced.zarr"))
    aside.rename(path)
    return path


def _check_replaceable(path: Path) -> None:
    """Refuse to put a map in the place of what is no map; of an embedding store above all."""
    if not path.exists():
        return
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        raise HeadError(f"{path} is there and is no Zarr group", "choose another name") from None
    stored = {name for name in ("embedding", "scene_embedding") if (path / name).exists()}
    if "nec" in attributes or stored:
        raise HeadError(f"{path} is an embedding store", "choose another name for the map")


class _Bands:
    """The bands of an open raster, as something to assign windows to."""

    def __init__(self, raster: Any, nodata: float, corner: tuple[int, int] = (0, 0)) -> None:
        self.raster, self.nodata, self.corner = raster, nodata, corner

    def __setitem__(self, window: tuple[slice, slice, slice], values: NDArray[Any]) -> None:
        from rasterio.windows import Window

        missing = np.isnan(values) if values.dtype.kind == "f" else values < 0
        codes = np.where(missing, self.nodata, values).astype(self.raster.dtypes[0])
        rows, columns = (
            slice(w.start + c, w.stop + c) for w, c in zip(window[1:], self.corner, strict=True)
        )
        bands = list(range(window[0].start + 1, window[0].stop + 1))
        self.raster.write(codes, bands, window=Window.from_slices(rows, columns))


def _write_plain(
    labels: xr.DataArray,
    path: Path,
    names: list[str],
    table: list[tuple[int, int, int]],
    block: int,
) -> None:
    """Write the tiled GeoTIFF that the cloud-optimised one is copied from."""
    import rasterio
    from affine import Affine

    dims = spatial_dims(labels)
    crs = crs_of(labels)
    if len(labels.dims) == 2:
        labels = labels.expand_dims("plane")
    labels = labels.transpose(..., *dims)
    data = labels.data
    dtype, nodata = ("uint8", 255.0) if len(names) <= 255 else ("uint16", 65535.0)
    if not names:
        dtype, nodata = "float32", np.nan
    profile = {
        "driver": "GTiff",
        "height": data.shape[1],
        "width": data.shape[2],
        "count": data.shape[0],
        "dtype": dtype,
        "nodata": nodata,
        "crs": crs,
        "transform": Affine.from_gdal(*Lattice.of(labels).transform),
        "tiled": True,
        "compress": "deflate",
        # How much compression leaves is not known beforehand.
        "BIGTIFF": "IF_SAFER",
    }
    with rasterio.open(path, "w", **profile) as raster:
        if names:
            raster.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(table)})
            values = " ".join(map(str, range(len(names))))
            raster.update_tags(1, flag_values=values, flag_meanings=" ".join(names))
        else:
            name, unit = labels.attrs.get("long_name", labels.name), labels.attrs.get("units", "")
            told = labels[labels.dims[0]].values.tolist() if labels.dims[0] in PLANES else [""]
            for band, what in enumerate(told, 1):
                raster.set_band_description(band, f"{name} {what}".strip())
                raster.set_band_unit(band, str(unit))
        if labels.chunks is None:
            whole: Any = tuple(slice(0, size) for size in data.shape)
            _Bands(raster, nodata)[whole] = data
            return
        from dask.array import store

        for rows, columns in _blocks(labels, block):
            bands: Any = _Bands(raster, nodata, (rows.start, columns.start))
            store(data[:, rows, columns], bands, lock=threading.Lock())


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours that differ: steps of the golden angle around the hue, in three lightnesses."""
    table = []
    for i in range(count):
        hue, light = (i * 0.381966) % 1.0, (0.5, 0.68, 0.36)[i % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, light, 0.6)
        table.append((round(red * 255), round(green * 255), round(blue * 255)))
    return table
