"""The grids of scenes: turned north-up, nested by whole factors, measured on the ground."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from nec.errors import SceneError

#: Largest distance of a pixel edge from where it should be, pixels.
_TOLERANCE = 0.01


def north_up(
    affine: Affine, shape: tuple[int, ...], grid: str | None, crs: Any, label: str
) -> tuple[GeoBox, bool]:
    """Return the north-up geobox, and whether the rows run from south to north."""
    if grid is None and crs is None:
        raise SceneError(f"{label} has no CRS", "pass crs= (such as crs='EPSG:32633')")
    try:
        known = _by_code(CRS(grid if grid is not None else crs))
        other = crs is not None and CRS(crs) != known
    except Exception as error:  # odc and pyproj each raise their own
        what = f"the CRS of {label}" if crs is None else f"crs={crs!r}"
        raise SceneError(
            f"{what} is not one that PROJ knows ({error})", "use an EPSG code"
        ) from error
    if other:
        raise SceneError(
            f"{label} is in {_short(known)}, not in crs={crs!r}",
            "leave crs= out; nec keeps the scene's own grid and never reprojects",
        )
    if affine.b or affine.d or affine.a <= 0 or not affine.e:
        raise SceneError(
            f"{label} has a rotated or mirrored transform {tuple(affine)[:6]}",
            "warp it to a north-up grid first (gdalwarp)",
        )
    south_up = affine.e > 0
    if south_up:
        affine = Affine(affine.a, 0, affine.c, 0, -affine.e, affine.f + shape[0] * affine.e)
    return GeoBox((int(shape[0]), int(shape[1])), affine, known), south_up


def _by_code(crs: CRS) -> CRS:
    """Return the same CRS by its EPSG code where it is exactly that: files differ in WKT."""
    coded = CRS(f"EPSG:{crs.epsg}") if crs.epsg else crs
    return coded if coded == crs else crs


def _short(crs: CRS | None) -> str:
    return f"EPSG:{crs.epsg}" if crs is not None and crs.epsg else "a CRS of its own"


def exact_transform(affine: Affine, array: xr.DataArray) -> Affine:
    """Undo the rounding of coordinates where the grid mapping still holds the transform."""
    text = next(
        (c.attrs["GeoTransform"] for c in array.coords.values() if "GeoTransform" in c.attrs), None
    )
    if text is None:
        return affine
    stated = Affine.from_gdal(*(float(number) for number in str(text).split()))
    if stated.b or stated.d or not stated.a or not stated.e:
        return affine
    # A slice of the file's array keeps its transform: ours is whole pixels away, or unrelated.
    column, row = (affine.c - stated.c) / stated.a, (affine.f - stated.f) / stated.e
    shift = max(abs(column - round(column)), abs(row - round(row)))
    height, width = array.shape[-2:]
    stretch = max(abs(affine.a / stated.a - 1) * width, abs(affine.e / stated.e - 1) * height)
    if max(shift, stretch) > _TOLERANCE:
        return affine
    left, top = stated.c + round(column) * stated.a, stated.f + round(row) * stated.e
    return Affine(stated.a, 0, left, 0, stated.e, top)


def ground_sampling_distance(geobox: GeoBox) -> float:
    """Return the edge of a pixel on the ground at the centre of a grid, metres.

    Degrees and the stretched metres of Web Mercator are measured on the ellipsoid; where the
    projection is true to within a hundredth, the nominal size stays (10 m are 10 m).
    """
    height, width = geobox.shape
    affine, crs = geobox.affine, pyproj.CRS(str(geobox.crs))
    unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    nominal = float(np.sqrt(abs(affine.a * affine.e))) * unit
    if crs.geodetic_crs is None:
        return nominal
    corners = [(width / 2 + right, height / 2 + down) for right, down in ((0, 0), (1, 0), (0, 1))]
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    (x0, y0), *others = [
        to_degrees.transform(affine.a * column + affine.c, affine.e * row + affine.f)
        for column, row in corners
    ]
    geod = crs.get_geod() or pyproj.Geod(ellps="WGS84")
    across, down = (geod.inv(x0, y0, x, y)[2] for x, y in others)
    measured = float(np.sqrt(across * down))
    true = not crs.is_geographic and abs(measured / nominal - 1) < 0.01
    return nominal if true else measured


@dataclass(frozen=True)
class Placement:
    """Where a source lies in a finer or equal grid: fine = coarse * factor + offset, (y, x)."""

    factor: tuple[int, int]
    offset: tuple[int, int]
    shape: tuple[int, int]

    @classmethod
    def of(cls, box: GeoBox, label: str, grid: GeoBox, grid_label: str) -> "Placement":
        """Place the grid `box` of what `label` names in `grid`.

        Raises
        ------
        SceneError
            If the two differ in CRS or phase, or in resolution by no whole factor.
        """
        if box.crs != grid.crs:
            raise SceneError(
                f"{label} is in {_short(box.crs)} and {grid_label} in {_short(grid.crs)}",
                "warp them to one CRS, or open them as scenes of their own",
            )
        shape = (int(box.shape[0]), int(box.shape[1]))
        sizes = (box.affine.e / grid.affine.e, box.affine.a / grid.affine.a)
        starts = (
            (box.affine.f - grid.affine.f) / grid.affine.e,
            (box.affine.c - grid.affine.c) / grid.affine.a,
        )
        factor = (round(sizes[0]), round(sizes[1]))
        offset = (round(starts[0]), round(starts[1]))
        # Resolutions that drift apart show at the last edge.
        first = max(abs(starts[axis] - offset[axis]) for axis in (0, 1))
        drift = max(abs(sizes[axis] - factor[axis]) * shape[axis] for axis in (0, 1))
        if min(factor) < 1 or max(first, drift) > _TOLERANCE:
            raise SceneError(
                f"{label} (pixel {box.affine.a:g} by {-box.affine.e:g}, upper left "
                f"{box.affine.c:g}, {box.affine.f:g}) does not nest in the pixels of {grid_label} "
                f"(pixel {grid.affine.a:g} by {-grid.affine.e:g}, upper left {grid.affine.c:g}, "
                f"{grid.affine.f:g})",
                "leave it out with bands=, or warp it to one grid",
            )
        return cls(factor, offset, shape)

    def along(self, axis: int, wanted: slice) -> tuple[slice, slice, slice]:
        """Return, along an axis, what can be filled of `wanted`, what to read, what to keep.

        The first counts from the start of `wanted`; the second is in the source's pixels; the
        third cuts the replicated pixels. All are empty where source and window do not meet.
        """
        factor, offset = self.factor[axis], self.offset[axis]
        start = max(wanted.start, offset)
        stop = min(wanted.stop, offset + factor * self.shape[axis])
        if stop <= start:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        first, last = (start - offset) // factor, -((offset - stop) // factor)
        cut = start - offset - first * factor
        fill = slice(start - wanted.start, stop - wanted.start)
        return fill, slice(first, last), slice(cut, cut + stop - start)
