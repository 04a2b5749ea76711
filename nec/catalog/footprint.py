"""Where a store lies: the hull of what is valid in it, in longitude and latitude."""

from typing import Any

import numpy as np
import pyproj
import shapely
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from nec.archive import open_store
from nec.catalog.facts import StoreFacts
from nec.scene.grids import ground_sampling_distance

WGS84 = "EPSG:4326"
#: Decimals of coordinates, 0.1 m: releases of PROJ agree that far.
DECIMALS = 6
# Edges are bent where they are projected; so many pieces follow them.
_PIECES = 32
_METRES_PER_DEGREE = 111_320

Footprint = tuple[dict[str, Any] | None, list[float] | None]


def token_grid(facts: StoreFacts) -> GeoBox | None:
    """Return the tokens' grid; None of an image collection."""
    attributes = facts.attributes
    if "spatial:transform" not in attributes:
        return None
    crs = attributes.get("proj:code", attributes.get("proj:wkt2"))
    rows, columns = attributes["spatial:shape"]
    return GeoBox((rows, columns), Affine(*attributes["spatial:transform"]), CRS(crs))


def ground_size(facts: StoreFacts) -> float | None:
    """Return the edge of a token on the ground, metres; None where the store does not know."""
    grid = token_grid(facts)
    return None if grid is None else round(ground_sampling_distance(grid), 4)


def footprint(facts: StoreFacts, patch: int | None = None) -> Footprint:
    """Return the geometry of a store as GeoJSON, and its bounding box.

    Of a scene, the convex hull of its valid tokens, over all times, to a tenth of a token; of one
    that is all missing, its grid. Of an image collection whose samples have a place, a box around
    them all; of one without, nothing.

    Parameters
    ----------
    facts : StoreFacts
    patch : int, optional
        Edge of a token of an image collection, pixels, which its store does not hold; without
        it, the box ends at the upper left corners of the outermost images.

    Returns
    -------
    tuple of dict or None, and list of float or None
        In longitude and latitude (WGS 84). What crosses the antimeridian is cut there, and the
        west of its box is greater than its east (RFC 7946).
    """
    grid = token_grid(facts)
    if grid is not None:
        shape = _located(_hull(_valid(facts), grid), grid.crs)
        tenth = ground_sampling_distance(grid) / 10 / _METRES_PER_DEGREE
        return _written(shapely.simplify(shape, tenth))
    dataset = facts.dataset
    if not {"crs", "transform"} <= set(dataset.coords):
        return None, None
    return _written(_around_samples(dataset, patch or 0))


def _valid(facts: StoreFacts) -> NDArray[np.bool_]:
    """Return where a token is valid at any time, (y, x), from the first band, a few bytes."""
    first = open_store(facts.path, bands=1)["embedding"].isel(band=0)
    valid = first.notnull()
    if "time" in valid.dims:
        valid = valid.any("time")
    return np.asarray(valid.to_numpy())


def _hull(valid: NDArray[np.bool_], grid: GeoBox) -> BaseGeometry:
    """Return the convex hull of the valid tokens, whole ones, in the grid's CRS."""
    rows = np.flatnonzero(valid.any(axis=1))
    if not len(rows):
        rows, valid = np.array([0, len(valid) - 1]), np.ones_like(valid)
    first = valid[rows].argmax(axis=1)
    last = valid.shape[1] - valid[rows][:, ::-1].argmax(axis=1)
    columns = np.concatenate([first, last, first, last])
    lines = np.concatenate([rows, rows, rows + 1, rows + 1])
    dx, _, left, _, dy, top = tuple(grid.affine)[:6]
    corners = np.stack([left + columns * dx, top + lines * dy], axis=1)
    return shapely.MultiPoint(corners).convex_hull


def _located(shape: BaseGeometry, crs: Any) -> BaseGeometry:
    """Project a shape to longitude and latitude, cut at the antimeridian."""
    left, bottom, right, top = shape.bounds
    piece = max(right - left, top - bottom) / _PIECES
    return Geometry(shape, crs).to_crs(WGS84, resolution=piece, wrapdateline=True).geom


def _around_samples(dataset: xr.Dataset, patch: int) -> BaseGeometry:
    """Return a box around the images of a collection, in longitude and latitude."""
    references = np.array([str(crs) for crs in dataset["crs"].to_numpy()])
    numbers = np.array([str(text).split() for text in dataset["transform"].to_numpy()], float)
    left, dx, top, dy = numbers[:, 0], numbers[:, 1], numbers[:, 3], numbers[:, 5]
    height, width = (dataset.sizes.get(axis, 0) * patch for axis in ("y", "x"))
    right, bottom = left + width * dx, top + height * dy
    boxes = []
    for reference in np.unique(references):
        here = references == reference
        bounds = left[here].min(), bottom[here].min(), right[here].max(), top[here].max()
        to_wgs84 = pyproj.Transformer.from_crs(str(reference), WGS84, always_xy=True)
        west, south, east, north = to_wgs84.transform_bounds(*bounds)
        crosses = west > east
        boxes.append(shapely.box(-180 if crosses else west, south, 180 if crosses else east, north))
    return shapely.box(*shapely.unary_union(boxes).bounds)


def _written(shape: BaseGeometry) -> Footprint:
    polygons = [
        shapely.geometry.polygon.orient(part)
        for part in shapely.get_parts(shape)
        if part.geom_type == "Polygon" and not part.is_empty
    ]
    outlines = [[_rounded(polygon.exterior.coords)] for polygon in polygons]
    corners = np.array([corner for outline in outlines for corner in outline[0]])
    west, south = corners.min(axis=0).tolist()
    east, north = corners.max(axis=0).tolist()
    if len(outlines) == 1:
        return {"type": "Polygon", "coordinates": outlines[0]}, [west, south, east, north]
    if east > 179 and west < -179:
        west = float(corners[corners[:, 0] > 0, 0].min())
        east = float(corners[corners[:, 0] < 0, 0].max())
    return {"type": "MultiPolygon", "coordinates": outlines}, [west, south, east, north]


def _rounded(coordinates: Any) -> list[list[float]]:
    return [[round(float(x), DECIMALS), round(float(y), DECIMALS)] for x, y in coordinates]
