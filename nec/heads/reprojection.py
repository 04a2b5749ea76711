"""Labels in another CRS than the tokens that they lie over."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import HeadError
from nec.sampling import Lattice, crs_of

logger = logging.getLogger(__name__)

HALF = 0.5  # of a token: label pixels of another CRS from which on tokens look them up


@dataclass(frozen=True)
class Centres:
    """The centres of tokens, in the CRS of labels.

    Parameters
    ----------
    y, x : numpy.ndarray
        Of token rows and columns, in the CRS of the tokens.
    turn : callable
        Takes x and y there, gives them in the CRS of the labels; infinite where it has none.
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    turn: Callable[[Any, Any], tuple[NDArray[np.float64], NDArray[np.float64]]]

    @classmethod
    def of(cls, embedding: xr.DataArray, theirs: Any) -> "Centres":
        """Return those of an embedding, in another CRS."""
        from pyproj import Transformer

        ours = crs_of(embedding)
        turn = Transformer.from_crs(ours.to_wkt(), theirs.to_wkt(), always_xy=True).transform
        y, x = (np.asarray(embedding[dim].values, dtype=np.float64) for dim in ("y", "x"))
        return cls(y, x, turn)

    def index(
        self, pixels: Lattice, rows: slice, columns: slice
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the label row and column that each token of a window has its centre in."""
        x, y = self.turn(*np.meshgrid(self.x[columns], self.y[rows]))
        return pixels.rows(y), pixels.columns(x)

    def pixel_size(self, pixels: Lattice, step: tuple[float, float]) -> tuple[float, float]:
        """Return how many token rows and columns a label pixel spans in the middle of the tokens.

        `step` is from one token to the next.
        """
        y, x = self.y[self.y.size // 2], self.x[self.x.size // 2]
        beside = self.turn(np.array([x, x, x + step[1]]), np.array([y, y + step[0], y]))
        in_pixels = [np.diff(part[[0, 1, 0, 2]])[::2] for part in beside]
        reach = np.hypot(in_pixels[0] / pixels.step[1], in_pixels[1] / pixels.step[0])
        return float(1 / reach[0]), float(1 / reach[1])


def _ends(lattice: Lattice) -> tuple[float, float, float, float]:
    """Return left, bottom, right, top."""
    (bottom, top), (left, right) = (
        sorted((corner, corner + step * count))
        for corner, step, count in zip(lattice.corner, lattice.step, lattice.shape, strict=True)
    )
    return left, bottom, right, top


def box_of(tokens: Lattice, pixels: Lattice) -> tuple[float, float, float, float]:
    """Return where tokens lie in the CRS of labels; HeadError where there are none of those."""
    from rasterio.warp import transform_bounds

    box = transform_bounds(tokens.crs, pixels.crs, *_ends(tokens))
    left, bottom, right, top = _ends(pixels)
    apart = box[0] >= right or box[2] <= left or box[1] >= top or box[3] <= bottom
    # Not finite so far away that their CRS does not reach here.
    if apart or not np.isfinite(box).all():
        raise HeadError(
            f"labels in {short_name(pixels.crs)} and an embedding in {short_name(tokens.crs)} "
            "do not overlap",
            "check their coordinates and CRS",
        )
    return box  # type: ignore[no-any-return]


def reprojected(
    labels: xr.DataArray, tokens: Lattice, pixels: Lattice, ignored: tuple[Any, ...]
) -> xr.DataArray:
    """Bring the part of labels that lies under tokens to their CRS, by the nearest neighbour."""
    import rioxarray  # noqa: F401 - registers .rio
    from rasterio.enums import Resampling
    from rioxarray.exceptions import RioXarrayError

    theirs, ours = pixels.crs, tokens.crs
    if labels.dtype.kind not in "iuf":
        raise HeadError(
            f"the labels are in {short_name(theirs)}, the embedding in {short_name(ours)}, and "
            f"labels of dtype {labels.dtype} cannot be brought over",
            "give numbers, or labels in the CRS of the embedding",
        )
    try:
        near = labels.rio.clip_box(*box_of(tokens, pixels))
    except RioXarrayError as error:  # nothing inside, or a single row
        raise HeadError(
            f"labels in {short_name(theirs)} and an embedding in {short_name(ours)} do not overlap",
            "check their coordinates and CRS",
        ) from error
    nodata = labels.rio.nodata
    if nodata is None and labels.dtype.kind == "f":
        nodata = np.nan
    if nodata is None:
        info = np.iinfo(labels.dtype)
        fits = [v for v in ignored if not isinstance(v, str) and info.min <= v <= info.max]
        # Unlabelled pixels come in at the edges of what is turned: a value that no label has.
        if not fits and labels.dtype.itemsize < 4:
            near, info = near.astype(np.int32), np.iinfo(np.int32)
        nodata = fits[0] if fits else int(info.max)
    found = near.rio.reproject(ours, resampling=Resampling.nearest, nodata=nodata)
    logger.warning(
        "the labels are in %s: reprojected to %s by the nearest neighbour",
        short_name(theirs),
        short_name(ours),
    )
    brought: xr.DataArray = found.rio.write_nodata(nodata)
    return brought


def same_crs(one: Any, other: Any) -> bool:
    """Say whether two CRS are one, however they are written."""
    if one == other:
        return True
    code = one.to_epsg()
    return code is not None and code == other.to_epsg()


def short_name(crs: Any) -> str:
    """Return the EPSG code, or the beginning of what there is."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs)[:60]
