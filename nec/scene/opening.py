"""How a scene is opened: its sources, its bands by common name, its scaling and time."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from nec.errors import SceneError
from nec.scene.grids import ground_sampling_distance
from nec.scene.scaling import check_floats, decide_scaling
from nec.scene.scene import Layer, Scene, check_grid, finest_layer
from nec.scene.sensors import Sensor, common_name, known_names, recognise, time_in_file_name
from nec.scene.sources import ArraySource, RasterSource, Source, file_name, scene_name_of
from nec.scene.stac import is_stac, open_item

logger = logging.getLogger(__name__)

#: What counts as a raster in a folder; previews in PNG and JPEG do not.
RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".jp2", ".vrt", ".img"})


def open_scene(
    source: Any,
    *,
    bands: Sequence[str] | Mapping[str, str | int] | None = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    mask: Any = None,
    mask_classes: Sequence[int] | str | None = None,
    time: Any = None,
    crs: Any = None,
) -> Scene:
    """Open a scene; only headers are read.

    Parameters
    ----------
    source : path, URL, list of paths, STAC item, DataArray or Dataset
        A raster of several bands; the files of one scene, or the folder that they lie in (a
        ``.SAFE`` folder too), whose coarser bands are replicated onto the finest grid; an
        xarray object with a CRS, a DataArray of dims (band, y, x) or a Dataset of bands; the
        JSON of a STAC item, or a pystac.Item, whose assets hold bands by common name.
    bands : sequence of str or dict, optional
        Names that the files carry select bands; other names, one for each band, name the
        bands in order. A dict gives for each common name the file's band name or its number
        from 1. Without it, all bands that can be recognised.
    scale, offset : float, optional
        reflectance = number * scale + offset. Without them: the file's tags; 8-bit / 255;
        floats as they are; the fixed scaling of the sensor that file name, tags or band names
        tell. The choice is logged and kept in `Scene.scaling`. What a STAC item says of them, and
        of nodata and time, counts where the files say nothing.
    nodata : float, optional
        A stored number that means missing, besides what the file says. Integers of Sentinel-2
        and Landsat whose files say nothing are missing where all bands that are read are 0, those
        of HLS where one is -9999.
    mask : path, DataArray or ndarray, optional
        True or nonzero where pixels shall be missing. An array has the scene's shape,
        north-up; a raster may be coarser by a whole factor. Or the name of a band of the
        source, or a part of the name of one of its files between underscores: ``"SCL"``.
    mask_classes : sequence of int, optional
        Numbers of the mask where pixels shall be missing, and only there: of Sentinel-2's scene
        classification (SCL) 0, 1, 3, 8, 9, 10 are no data, saturated, cloud shadow, cloud of
        medium and high probability, and cirrus.
    time : str, datetime or datetime64, optional
        Acquisition; else from the file name or the array's ``time`` coordinate.
    crs : str, int or CRS, optional
        For a source without one. It never reprojects.

    Returns
    -------
    Scene

    Raises
    ------
    SceneError
        If the source is no raster, has no CRS, no or a rotated transform, a band that is
        missing, named twice or on another grid, or numbers of unknown scaling.
    """
    tagged_by = "file"
    if is_stac(source):
        item = open_item(source, crs=crs)
        name, opened, listed = item.name, list[Source](item.sources), False
        time = item.time if time is None else time
        nodata = item.nodata if nodata is None else nodata
        tagged_by = "STAC item" if item.scaled else tagged_by
    else:
        name, opened, listed = _open_sources(source, crs)
    own_names = [names[0] for item in opened for names in item.names if names]
    sensor = recognise([hint for item in opened for hint in item.hints], own_names)
    layers = _choose(name, opened, sensor, bands, listed=listed)
    finest = finest_layer(layers)
    masking, mask_index = None, 0
    if mask is not None:
        own = _mask_among(mask, opened)
        if own is None and isinstance(mask, str) and "." not in mask and not Path(mask).exists():
            has = ", ".join(names[0] for item in opened for names in item.names if names)
            raise SceneError(
                f"mask {mask!r} is no band of {name}, and no file",
                f"its bands are {has or 'unnamed'}",
            )
        masking, mask_index = own or (_open_mask(mask, finest.source.geobox, crs), 0)
    elif mask_classes is not None:
        raise SceneError("mask_classes= goes with a mask", "pass mask= too, or leave it out")
    check_grid(layers, masking)

    stated = {(layer.source.dtype, layer.source.scalings[layer.index]) for layer in layers}
    if scale is None and len(stated) > 1:
        raise SceneError(
            f"the bands of {name} differ in type or scale tags ({sorted(map(str, stated))})",
            "pass scale= and offset=, or choose bands that agree",
        )
    dtype, tags = layers[0].source.dtype, layers[0].source.scalings[layers[0].index]
    acquired = _time(time, [layer.source for layer in layers])
    scaling = decide_scaling(
        name, dtype, tags, sensor, scale=scale, offset=offset, time=acquired, tagged_by=tagged_by
    )
    fill = _fill(name, sensor, layers)
    if nodata is None and fill is not None and fill < 0:
        nodata, fill = fill, None  # no reflectance, wherever it stands
    scene = Scene(
        name=name,
        bands=tuple(layer.band for layer in layers),
        geobox=finest.source.geobox,
        time=acquired,
        gsd=ground_sampling_distance(finest.source.geobox),
        scaling=scaling,
        sources=tuple(dict.fromkeys(layer.source.label for layer in layers)),
        layers=layers,
        nodata=nodata,
        mask=masking,
        mask_index=mask_index,
        mask_classes=_classes(mask_classes),
        fill=fill,
    )
    if dtype.kind == "f" and scale is None and tags == (1.0, 0.0):
        check_floats(name, _sample(scene))
    return scene


def _fill(name: str, sensor: Sensor | None, layers: Sequence[Layer]) -> float | None:
    """Return the sensor's fill where the files state no nodata and hold its digital numbers."""
    if sensor is None or sensor.nodata is None:
        return None
    for layer in layers:
        item = layer.source
        stated = item.has_mask if isinstance(item, RasterSource) else item.nodata is not None
        if stated or item.dtype.kind not in "iu" or item.dtype.itemsize < 2:
            return None
    logger.info(
        "%s: no nodata is stated; missing where %s %g, the fill of %s",
        name,
        "a band is" if sensor.nodata < 0 else "all bands are",
        sensor.nodata,
        sensor.name,
    )
    return sensor.nodata


def _open_sources(source: Any, crs: Any) -> tuple[str, list[Source], bool]:
    """Return the scene's name, its sources, and whether the caller named every one of them."""
    if isinstance(source, xr.Dataset):
        # A grid mapping may have come as a variable; only as a coordinate does it go along.
        source = source.set_coords([key for key in source.data_vars if source[key].ndim == 0])
        texts = {key: text for key, text in source.attrs.items() if isinstance(text, str)}
        arrays = [
            array.assign_attrs(texts | array.attrs)
            for array in source.data_vars.values()
            if array.ndim >= 2
        ]
        if not arrays:
            raise SceneError("the Dataset has no variable with y and x", "pass a Dataset of bands")
        name = Path(str(source.encoding.get("source", "scene"))).stem
        return name, [ArraySource.wrap(a, crs=crs) for a in arrays], False
    if isinstance(source, xr.DataArray):
        wrapped = ArraySource.wrap(source, crs=crs)
        return Path(wrapped.label).stem, [wrapped], True
    if isinstance(source, list | tuple):
        if not source:
            raise SceneError("the list of files is empty", "pass the files of one scene")
        stems = [Path(file_name(path)).stem for path in source]
        shared = os.path.commonprefix(stems)  # noqa: RUF071  characters are meant
        name = re.sub(r"[_.\-]*(SR_)?B?[01]?$", "", shared) or stems[0]
        return name, [RasterSource.open(path, crs=crs) for path in source], True
    if not isinstance(source, str | os.PathLike):
        raise SceneError(
            f"a scene cannot be opened from {type(source).__name__}",
            "pass a path, a list of paths, or an xarray DataArray or Dataset with a CRS",
        )
    path = os.fspath(source)
    folder = Path(path)
    if not folder.is_dir():
        return scene_name_of(path), [RasterSource.open(path, crs=crs)], True
    pattern = "GRANULE/*/IMG_DATA/**/*" if folder.suffix == ".SAFE" else "*"
    files = sorted(
        file
        for file in folder.glob(pattern)
        if file.suffix.lower() in RASTER_SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise SceneError(f"folder {folder} holds no raster", "pass a folder of one scene's files")
    return scene_name_of(path), [RasterSource.open(file, crs=crs) for file in files], False


def _choose(
    name: str,
    sources: list[Source],
    sensor: Sensor | None,
    bands: Sequence[str] | Mapping[str, str | int] | None,
    *,
    listed: bool,
) -> tuple[Layer, ...]:
    """Find the layer of every band."""
    everything = [(item, index) for item in sources for index in range(len(item.names))]
    found: dict[str, Layer] = {}
    for item, index in everything:
        names = item.names[index]
        # Colours say something only of a single file: a Sentinel-2 folder has an RGB preview.
        if not names and len(sources) == 1 and isinstance(item, RasterSource):
            names = (item.colours[index],)
        common = next(filter(None, (common_name(own, sensor) for own in names)), None)
        if common is not None:
            _add(found, Layer(common, item, index), name)
        elif listed and len(sources) > 1 and bands is None:
            raise SceneError(f"no band is recognised in {item.label}", "pass bands=")
    if bands is None:
        if not found:
            has = ", ".join("/".join(i.names[n]) or f"unnamed {n + 1}" for i, n in everything)
            raise SceneError(
                f"no band of {name} is recognised (has: {has})",
                "pass bands= with a common name for each band, or a dict of those wanted",
            )
        return tuple(found.values())
    if isinstance(bands, str):
        bands = (bands,)
    wanted = known_names(bands)
    if not wanted or len(set(wanted)) != len(wanted):
        raise SceneError(f"bands={wanted} is empty or names a band twice", "name each band once")
    if isinstance(bands, Mapping):
        return tuple(
            Layer(band, *_look_up(name, everything, found, own))
            for band, own in zip(wanted, bands.values(), strict=True)
        )
    if all(band in found for band in wanted):
        return tuple(found[band] for band in wanted)
    if len(wanted) != len(everything):
        absent = [band for band in wanted if band not in found]
        raise SceneError(
            f"band {absent[0]!r} is not in {name} (has: {', '.join(found) or 'none by name'}), and "
            f"{len(wanted)} names do not fit its {len(everything)} bands",
            "pass a name for each band in order, or a dict from common name to band number",
        )
    return tuple(Layer(band, *at) for band, at in zip(wanted, everything, strict=True))


def _add(found: dict[str, Layer], layer: Layer, name: str) -> None:
    """Keep the finer of two layers of one band, as Sentinel-2 level 2A ships them."""
    known = found.setdefault(layer.band, layer)
    old, new = known.source.geobox.affine.a, layer.source.geobox.affine.a
    if known is not layer and np.isclose(old, new):
        raise SceneError(
            f"band {layer.band!r} of {name} is in both {known.source.label} and "
            f"{layer.source.label}",
            "pass the files of one scene, or say with bands={...} which is meant",
        )
    if new < old:
        found[layer.band] = layer


def _look_up(
    name: str,
    everything: list[tuple[Source, int]],
    found: dict[str, Layer],
    own: str | int,
) -> tuple[Source, int]:
    if isinstance(own, int):
        if 1 <= own <= len(everything):
            return everything[own - 1]
    else:
        for item, index in everything:
            if own in item.names[index] or (own == item.label and len(item.names) == 1):
                return item, index
        if own in found:
            return found[own].source, found[own].index
    has = ", ".join("/".join(item.names[index][:1]) or "unnamed" for item, index in everything)
    raise SceneError(f"band {own!r} is not in {name} (has {len(everything)}: {has})", "correct it")


def _mask_among(mask: Any, opened: list[Source]) -> tuple[Source, int] | None:
    """Find a mask that is a band of the scene itself, by name."""
    if not isinstance(mask, str) or Path(mask).exists():
        return None
    for item in opened:
        for index, names in enumerate(item.names):
            if mask in names or (len(item.names) == 1 and mask in re.split("[_.]", item.label)):
                return item, index
    return None


def _classes(given: Sequence[int] | str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    try:
        parts = re.split("[, ]+", given.strip()) if isinstance(given, str) else given
        classes = tuple(sorted({int(part) for part in parts}))
    except ValueError as error:
        raise SceneError(f"mask_classes={given!r} are no whole numbers", "as 3,8,9,10") from error
    if not classes:
        raise SceneError("mask_classes= names no class", "name some, or leave it out")
    return classes


def _open_mask(mask: Any, grid: GeoBox, crs: Any) -> Source:
    if isinstance(mask, np.ndarray):
        if mask.shape != tuple(grid.shape):
            raise SceneError(
                f"the mask has shape {mask.shape} and the scene {tuple(grid.shape)}",
                "pass one value for each pixel, north-up",
            )
        array = xr.DataArray(mask[None], dims=("band", "y", "x"))
        dtype = array.dtype
        return ArraySource(array, "mask", grid, False, ((),), dtype, ((1.0, 0.0),), (), None)
    if isinstance(mask, xr.DataArray):
        return ArraySource.wrap(mask, crs=crs, label="mask")
    return RasterSource.open(mask, crs=crs)


def _time(given: Any, sources: list[Source]) -> np.datetime64 | None:
    if isinstance(given, np.datetime64):
        return None if np.isnat(given) else given
    if given is not None:
        try:
            stamp = given if isinstance(given, datetime) else datetime.fromisoformat(str(given))
        except ValueError as error:
            raise SceneError(
                f"time={given!r} is not a time", "pass ISO 8601, such as 2019-05-22T18:20:00"
            ) from error
        if stamp.tzinfo is not None:
            stamp = stamp.astimezone(UTC).replace(tzinfo=None)
        return np.datetime64(stamp, "s")
    for source in sources:
        if isinstance(source, ArraySource) and "time" in source.array.coords:
            value = source.array.coords["time"].values
            if value.ndim == 0 and value.dtype.kind == "M" and not np.isnat(value):
                return np.datetime64(value[()], "s")
        for hint in source.hints:
            if (found := time_in_file_name(hint)) is not None:
                return found
    return None


def _sample(scene: Scene, edge: int = 64) -> np.ndarray:
    """Pixels of a few small windows spread over the scene."""
    height, width = scene.geobox.shape
    spots = [(0.5, 0.5), (0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8)]
    parts = []
    for down, right in spots:
        row, column = int(down * max(height - edge, 0)), int(right * max(width - edge, 0))
        part = scene.read(slice(row, row + edge), slice(column, column + edge))
        parts.append(part.ravel())
    return np.concatenate(parts)
