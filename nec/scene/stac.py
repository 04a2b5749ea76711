"""STAC items as scenes: assets that hold bands, what the item says of them, and its time."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from nec.errors import MissingLibraryError, SceneError
from nec.scene.sensors import Sensor, common_name, recognise
from nec.scene.sources import RasterSource, file_name

if TYPE_CHECKING:
    import pystac

logger = logging.getLogger(__name__)

SUFFIXES = (".json", ".geojson")
# Pictures for people, and what is no measurement.
_NOT_DATA = frozenset({"thumbnail", "overview", "visual", "metadata"})
_RASTERS = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")
_RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt")
_UNSCALED = (1.0, 0.0)


@dataclass(frozen=True)
class _Band:
    """What an item says of a band of an asset."""

    names: tuple[str, ...]
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    gsd: float = float("inf")


@dataclass(frozen=True)
class _Asset:
    """An asset that may hold bands."""

    key: str
    href: str
    bands: tuple[_Band, ...]
    geotiff: bool
    # Whether the item says which bands it holds; else its key may, or its file.
    described: bool

    @property
    def rank(self) -> tuple[int, float, bool]:
        """Order in which assets are asked for a band: a band by itself, finer, GeoTIFF first."""
        gsd = min((band.gsd for band in self.bands), default=float("inf"))
        return len(self.bands), gsd, not self.geotiff


@dataclass(frozen=True)
class ItemSources:
    """A STAC item, its assets opened.

    Attributes
    ----------
    name : str
        The item's id.
    sources : list of RasterSource
        Assets that hold bands, each band by the names that the item and the file give it.
    time : datetime or None
        The item's; the start of its interval where it has no single one.
    nodata : float or None
        What the item states for bands whose files do not.
    scaled : bool
        Whether a scale or offset is the item's, and not the files' own.
    """

    name: str
    sources: list[RasterSource]
    time: datetime | None
    nodata: float | None
    scaled: bool


def is_stac(source: Any) -> bool:
    """Whether a source is a STAC item or a collection of them, or the path or URL of its JSON."""
    if isinstance(source, str | os.PathLike):
        return urlsplit(os.fspath(source)).path.lower().endswith(SUFFIXES)
    return type(source).__module__.partition(".")[0] == "pystac"


def read_items(source: Any) -> "list[pystac.Item]":
    """Read items: of an Item, an ItemCollection, or a Collection or Catalog with all below it.

    Parameters
    ----------
    source : path, URL, pystac.Item, pystac.ItemCollection or pystac.Catalog

    Returns
    -------
    list of pystac.Item
        Relative addresses of their assets start from the file where an item says nothing else.

    Raises
    ------
    SceneError
        If it cannot be read, is no such thing, or holds no item.
    MissingLibraryError
        If pystac is not installed.
    """
    try:
        import pystac
    except ModuleNotFoundError as error:
        raise (MissingLibraryError.of(error) or error) from error

    opened: Any = source
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        href = path if "://" in path else str(Path(path).absolute())
        try:
            document = pystac.StacIO.default().read_json(href)
            if document.get("type") == "FeatureCollection":
                opened = pystac.ItemCollection.from_dict(document)
            else:
                opened = pystac.read_dict(document, href=href)
            for item in opened if isinstance(opened, pystac.ItemCollection) else [opened]:
                if item.get_self_href() is None:
                    item.set_self_href(href)
        except Exception as error:  # pystac's errors have no common parent
            raise SceneError(
                f"{source} cannot be read as STAC ({error})",
                "pass the JSON of an Item, an ItemCollection, a Collection or a Catalog",
            ) from error
    if isinstance(opened, pystac.Item):
        return [opened]
    if isinstance(opened, pystac.Catalog):
        items = _all_items(opened, source)
    elif isinstance(opened, pystac.ItemCollection):
        items = list(opened)
    else:
        raise SceneError(f"{type(opened).__name__} holds no items", "pass a STAC item")
    if not items:
        raise SceneError(f"{source} holds no item", "widen the search that it comes from")
    return items


def _all_items(catalog: "pystac.Catalog", source: Any) -> "list[pystac.Item]":
    try:
        return list(catalog.get_items(recursive=True))
    except Exception as error:  # pystac's errors have no common parent
        raise SceneError(
            f"an item of {source} cannot be read ({error})", "check the links of the catalog"
        ) from error


def scene_name(item: "pystac.Item") -> str:
    """Return an item's id as the name of a scene and of a file.

    Raises
    ------
    SceneError
        If nothing of it can be one.
    """
    name = item.id.replace("/", "_").replace("\\", "_").lstrip(".")
    if not name:
        raise SceneError(f"item id {item.id!r} cannot name a scene", "give it another id")
    return name


def open_item(source: Any, *, crs: Any = None) -> ItemSources:
    """Open the assets of an item that hold bands; headers are read, no pixels.

    A band that several assets hold is taken from the one that has it alone, then from the finest,
    then from a GeoTIFF. Scale, offset and nodata of the item count where the file states none.

    Parameters
    ----------
    source : path, URL or pystac.Item
    crs : optional
        See `open_scene`.

    Raises
    ------
    SceneError
        If it holds several items, or none of its assets holds a band, or a file does not have the
        bands that the item says.
    """
    items = read_items(source)
    if len(items) > 1:
        raise SceneError(
            f"{source} holds {len(items)} items", "encode them each to a store: nec encode --each"
        )
    item = items[0]
    hints = _hints(item)
    assets = list(_assets(item))
    sensor = recognise(
        hints, [name for asset in assets for band in asset.bands for name in band.names]
    )
    chosen = _choose(assets, sensor) or [asset for asset in assets if not asset.described]
    if not chosen:
        raise SceneError(
            f"item {item.id} has no asset with a band of a known name (assets: "
            f"{', '.join(item.assets) or 'none'})",
            "its assets need bands (or eo:bands) with common names",
        )
    logger.info("%s: assets %s", item.id, ", ".join(asset.key for asset in chosen))
    opened = [(asset, _open(item, asset, hints, crs)) for asset in chosen]
    stated = {
        band.nodata
        for asset, file in opened
        if not file.has_mask
        for band in asset.bands
        if band.nodata is not None and not math.isnan(band.nodata)
    }
    if len(stated) > 1:
        raise SceneError(
            f"assets of item {item.id} have several nodata values ({sorted(stated)})",
            "pass nodata= for all of them, or encode the files with their own tags",
        )
    time = item.datetime or item.common_metadata.start_datetime
    return ItemSources(
        scene_name(item),
        [file for _, file in opened],
        time,
        next(iter(stated), None),
        any(_scaled(asset, file) for asset, file in opened),
    )


def _hints(item: "pystac.Item") -> tuple[str, ...]:
    """Return texts that name the sensor: id, platform, and Sentinel-2's processing baseline."""
    properties = item.properties
    words = [item.id, *(str(properties.get(k, "")) for k in ("constellation", "platform"))]
    baseline = properties.get("s2:processing_baseline", properties.get("processing:version"))
    if baseline and _applied(item):
        baseline = None
    if baseline:
        words.append(f"_N{str(baseline).replace('.', ''):0>4}_")
    return (" ".join(filter(None, words)),)


def _applied(item: "pystac.Item") -> bool:
    """Whether Earth Search has taken the offset of newer Sentinel-2 off the numbers already.

    Its items state the offset all the same.
    """
    return item.properties.get("earthsearch:boa_offset_applied") is True


def _assets(item: "pystac.Item") -> Iterator[_Asset]:
    for key, asset in item.assets.items():
        href = asset.get_absolute_href() or asset.href
        kind = (asset.media_type or "").lower()
        path = urlsplit(href).path.lower()
        raster = kind.startswith(_RASTERS) if kind else path.endswith(_RASTER_SUFFIXES)
        if not raster or _NOT_DATA & set(asset.roles or ()):
            continue
        if href.startswith("file://"):
            href = unquote(urlsplit(href).path)
        bands = tuple(_bands(key, asset.extra_fields, shifted=not _applied(item)))
        geotiff = "tif" in kind or path.endswith((".tif", ".tiff"))
        described = bool(asset.extra_fields.keys() & {"bands", "eo:bands"})
        yield _Asset(key, href, bands, geotiff, described)


def _bands(key: str, fields: dict[str, Any], *, shifted: bool) -> Iterator[_Band]:
    """Read `bands` (STAC 1.1) or `eo:bands` beside `raster:bands` (STAC 1.0)."""
    named = fields.get("bands") or fields.get("eo:bands") or [{}]
    rasters = fields.get("raster:bands") or [{}] * len(named)
    grid = fields.get("proj:transform")
    for at, band in enumerate(named):
        raster = rasters[at] if at < len(rasters) else {}

        def first(*names: str, band: dict[str, Any] = band, raster: Any = raster) -> Any:
            found = (place.get(n) for place in (band, raster, fields) for n in names)
            return next((value for value in found if value is not None), None)

        own = band.get("name"), band.get("eo:common_name"), band.get("common_name")
        names = dict.fromkeys(str(name) for name in own if name)
        if len(named) == 1:
            names[key] = None
        gsd = first("gsd", "raster:spatial_resolution", "spatial_resolution")
        scale, offset = first("raster:scale", "scale"), first("raster:offset", "offset")
        nodata = first("nodata")
        yield _Band(
            tuple(names),
            1.0 if scale is None else float(scale),
            float(offset) if offset is not None and shifted else 0.0,
            None if nodata is None else float(nodata),
            float(gsd) if gsd is not None else abs(float(grid[0])) if grid else float("inf"),
        )


def _choose(assets: Sequence[_Asset], sensor: Sensor | None) -> list[_Asset]:
    """Choose the assets that give all known bands; a band's names are kept once."""
    taken: set[str] = set()
    chosen: dict[str, _Asset] = {}
    for asset in sorted(assets, key=lambda one: one.rank):
        bands = []
        for band in asset.bands:
            known = (common_name(name, sensor) for name in band.names)
            name = next((common for common in known if common is not None), None)
            new = name is not None and name not in taken
            bands.append(band if new else replace(band, names=()))
            taken |= {name} if name is not None else set()
        if any(band.names for band in bands):
            chosen[asset.key] = replace(asset, bands=tuple(bands))
    return [chosen[asset.key] for asset in assets if asset.key in chosen]


def _open(item: "pystac.Item", asset: _Asset, hints: tuple[str, ...], crs: Any) -> RasterSource:
    file = RasterSource.open(asset.href, crs=crs)
    label = file_name(asset.href)
    file = replace(file, label=label, hints=(*hints, label, *file.hints[1:]))
    if not asset.described and len(file.names) > 1:
        return file
    if len(file.names) != len(asset.bands):
        raise SceneError(
            f"asset {asset.key} of item {item.id} has {len(asset.bands)} bands, its file "
            f"{file.label} {len(file.names)}",
            "correct the item's bands",
        )
    stated = [(band.scale, band.offset) for band in asset.bands]
    pairs = zip(file.scalings, stated, strict=True)
    return replace(
        file,
        names=tuple(band.names for band in asset.bands),
        colours=("",) * len(asset.bands),
        scalings=tuple(own if own != _UNSCALED else said for own, said in pairs),
    )


def _scaled(asset: _Asset, file: RasterSource) -> bool:
    stated = [(band.scale, band.offset) for band in asset.bands]
    return any(said != _UNSCALED and said in file.scalings for said in stated)
