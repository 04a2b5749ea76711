"""Where pixels come from: raster files and xarray arrays, read by window and turned north-up."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from nec.errors import SceneError, SceneReadError
from nec.scene.grids import exact_transform, north_up
from nec.scene.sensors import band_in_file_name

_STRIP = 512


def file_name(path: str | Path) -> str:
    """Return the last part of a path or address; a signature of the address is no name."""
    path = str(path)
    return Path(unquote(urlsplit(path).path) if "://" in path else path).name


def scene_name_of(path: str | Path) -> str:
    """Return the name of a scene by where it lies: of a folder whole, dots and all."""
    name = file_name(path)
    return name.removesuffix(".SAFE") if Path(path).is_dir() else Path(name).stem


@dataclass(frozen=True, eq=False)
class RasterSource:
    """A raster file. It is opened anew for every read: GDAL's handles are not thread-safe.

    Attributes
    ----------
    path : str
        Path or URL.
    label : str
        File name, for messages.
    geobox : GeoBox
        The grid, north-up whatever the file's orientation, which `south_up` tells.
    names : tuple of tuple of str
        For each band, the names that the file gives it, best first; may be empty.
    colours : tuple of str
        For each band, red, green, blue or nothing.
    dtype : dtype
        Of the stored numbers.
    scalings : tuple of tuple of float
        For each band, the file's scale and offset; (1, 0) where it states none.
    hints : tuple of str
        Texts that may name the sensor.
    has_mask : bool
        Whether any pixel can be missing.
    files : tuple of str
        The file with its side files, or those that it is made of.
    """

    path: str
    label: str
    geobox: GeoBox
    south_up: bool
    names: tuple[tuple[str, ...], ...]
    colours: tuple[str, ...]
    dtype: np.dtype[np.generic]
    scalings: tuple[tuple[float, float], ...]
    hints: tuple[str, ...]
    has_mask: bool
    files: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path, *, crs: object = None) -> "RasterSource":
        """Read the header of a raster.

        Raises
        ------
        SceneError
            If the file is absent, no raster, without CRS or transform, or rotated.
        """
        path = str(path)
        local = "://" not in path and not path.startswith("/vsi")
        if local and not Path(path).exists():
            raise SceneReadError(f"{path} does not exist", "check the path")
        if local:
            path = str(Path(path).absolute())  # a worker may run in another folder
        label = file_name(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # refused below
                dataset = rasterio.open(path)
        except (RasterioError, CRSError) as error:
            raise SceneReadError(
                f"{label} is not a raster that GDAL can open ({error})",
                "pass a GeoTIFF, JPEG 2000 or another raster; fetch it again if it is damaged",
            ) from error
        with dataset:
            grid = dataset.crs.to_wkt() if dataset.crs else None
            if dataset.transform == Affine.identity():
                lacking = "no transform" if grid else "no CRS and no transform"
                raise SceneError(
                    f"{label} has {lacking}: nothing says where its pixels lie",
                    "georeference it (gdal_edit.py -a_srs EPSG:... -a_ullr ...)",
                )
            geobox, south_up = north_up(dataset.transform, dataset.shape, grid, crs, label)
            tail = band_in_file_name(Path(label).stem) if dataset.count == 1 else None
            stem = Path(label).stem if dataset.count == 1 else None
            safe = [part for part in Path(path).parts[:-1] if part.endswith(".SAFE")]
            flags = dataset.mask_flag_enums
            return cls(
                path=path,
                label=label,
                geobox=geobox,
                south_up=south_up,
                names=tuple(
                    tuple(name for name in (described, tail, stem) if name)
                    for described in dataset.descriptions
                ),
                colours=tuple(
                    colour.name if colour in _DISPLAY else "" for colour in dataset.colorinterp
                ),
                dtype=np.result_type(*dataset.dtypes),
                scalings=tuple(
                    zip(map(float, dataset.scales), map(float, dataset.offsets), strict=True)
                ),
                hints=(*safe, label, " ".join(dataset.tags().values())),
                has_mask=any(MaskFlags.all_valid not in of_band for of_band in flags),
                files=tuple(sorted(dataset.files)),
            )

    def read(
        self, indexes: Sequence[int], rows: slice, columns: slice
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return numbers (band, y, x) and where they are missing; the window lies inside."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        top = self.geobox.shape[0] - rows.stop if self.south_up else rows.start
        window = Window(columns.start, top, width, height)
        bands = [index + 1 for index in indexes]
        try:
            with rasterio.open(self.path) as dataset:
                numbers = dataset.read(bands, window=window)
                missing = dataset.read_masks(bands, window=window) == 0 if self.has_mask else None
        except RasterioError as error:
            raise SceneReadError(
                f"{self.label} cannot be read at rows {rows.start}-{rows.stop}, columns "
                f"{columns.start}-{columns.stop} ({error.__cause__ or error})",
                "the file is damaged or no longer there: fetch it again",
            ) from error
        if self.south_up:
            numbers = numbers[:, ::-1]
            missing = None if missing is None else missing[:, ::-1]
        return numbers, missing

    def digest(self) -> str:
        """Return a SHA-256 of the file with its side files, or of the pixels of a remote one."""
        with rasterio.open(self.path) as dataset:
            files = [Path(name) for name in sorted(dataset.files)]
        if not files or not all(file.is_file() for file in files):
            return _digest_of_pixels(self)
        total = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


_DISPLAY = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A lazy or loaded array with dims (band, y, x).

    Attributes are those of `RasterSource`; `nodata` is the number that means missing.
    """

    array: xr.DataArray
    label: str
    geobox: GeoBox
    south_up: bool
    names: tuple[tuple[str, ...], ...]
    dtype: np.dtype[np.generic]
    scalings: tuple[tuple[float, float], ...]
    hints: tuple[str, ...]
    nodata: float | None

    @classmethod
    def wrap(cls, array: xr.DataArray, *, crs: object = None, label: str = "") -> "ArraySource":
        """Take an array of dims y and x, or a band dim and y and x, whatever their names.

        Raises
        ------
        SceneError
            If it has other dims, no CRS, or no regular coordinates.
        """
        import odc.geo.xr  # noqa: F401  registers the accessor

        file = str(array.encoding.get("source", ""))
        label = label or str(array.name or "") or Path(file).name or "array"
        spatial = array.odc.spatial_dims
        if spatial is None:
            raise SceneError(f"{label} has dims {array.dims} and no y and x", "rename its dims")
        y, x = spatial
        array = array.squeeze([d for d in array.dims if d not in spatial and array.sizes[d] == 1])
        others = [d for d in array.dims if d not in spatial]
        if len(others) > 1:
            raise SceneError(
                f"{label} has dims {array.dims}, more than one besides {y} and {x}",
                "select one time, so that dims are (band, y, x)",
            )
        if not others:
            array = array.expand_dims("band" if "band" not in array.coords else "layer")
            others = [array.dims[0]]
        array = array.transpose(others[0], y, x)
        known = array.odc.crs
        if known is None and crs is not None:
            array = array.odc.assign_crs(CRS(crs))
        box = array.odc.geobox
        located = box is not None and y in array.coords and x in array.coords
        if not located and (known is not None or crs is not None):
            raise SceneError(
                f"{label} has no regular {y} and {x} coordinates",
                "give it coordinates of pixel centres on a regular grid",
            )
        grid = None if known is None else known.to_wkt()
        affine = Affine.identity() if box is None else exact_transform(box.affine, array)
        geobox, south_up = north_up(affine, array.shape[1:], grid, crs, label)
        return cls(
            array=array,
            label=label,
            geobox=geobox,
            south_up=south_up,
            names=_names_of(array, str(others[0])),
            dtype=array.dtype,
            scalings=(
                (
                    float(array.attrs.get("scale_factor", 1.0)),
                    float(array.attrs.get("add_offset", 0.0)),
                ),
            )
            * array.shape[0],
            hints=(
                Path(file).name,
                label,
                *(text for text in array.attrs.values() if isinstance(text, str)),
            ),
            nodata=array.attrs.get("_FillValue", array.attrs.get("nodata")),
        )

    def read(
        self, indexes: Sequence[int], rows: slice, columns: slice
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return numbers (band, y, x) and where they are missing; the window lies inside."""
        if self.south_up:
            height = self.geobox.shape[0]
            rows = slice(height - rows.stop, height - rows.start)
        # A plain slice where all bands are wanted: fancy indexing would copy.
        every = list(indexes) == list(range(self.array.shape[0]))
        bands = slice(None) if every else list(indexes)
        numbers = np.asarray(self.array[bands, rows, columns].values)
        if self.south_up:
            numbers = numbers[:, ::-1]
        return numbers, None if self.nodata is None else numbers == self.nodata

    def digest(self) -> str:
        """Return a SHA-256 of the pixels."""
        return _digest_of_pixels(self)


def _names_of(array: xr.DataArray, dim: str) -> tuple[tuple[str, ...], ...]:
    """Band names: the coordinate where it holds text, else rioxarray's list of descriptions."""
    count = array.sizes[dim]
    if dim in array.coords and array[dim].dtype.kind in "OUTS":
        return tuple((str(name),) for name in array[dim].values)
    described = array.attrs.get("long_name", ())
    if count == 1:
        own = described if isinstance(described, str) else next(iter(described), None)
        return (tuple(str(name) for name in (array.name, own) if name),)
    if isinstance(described, str) or len(described) != count:
        return ((),) * count
    return tuple((str(name),) for name in described)


Source: TypeAlias = RasterSource | ArraySource


def _digest_of_pixels(source: Source) -> str:
    height, width = source.geobox.shape
    indexes = range(len(source.names))
    total = hashlib.sha256(str((indexes.stop, height, width, source.dtype)).encode())
    for top in range(0, height, _STRIP):
        rows = slice(top, min(top + _STRIP, height))
        for part in source.read(indexes, rows, slice(0, width)):
            total.update(b"" if part is None else np.ascontiguousarray(part).tobytes())
    return total.hexdigest()
