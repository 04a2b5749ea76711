"""`ImageCollection`: many small images of one size, each a sample of its own."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.errors import SceneError
from nec.scene.opening import RASTER_SUFFIXES, open_scene

#: Images without a place; red, green and blue in this order.
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
DEFAULT_GSD = 10.0


def is_collection(source: Any) -> bool:
    """Whether a source is an image collection and not a scene.

    An array (sample, band, y, x); a folder that holds pictures, or folders (of classes).
    """
    if isinstance(source, ImageCollection):
        return True
    if isinstance(source, np.ndarray | xr.DataArray):
        return source.ndim == 4 and "time" not in getattr(source, "dims", ())
    if not isinstance(source, str | os.PathLike) or not Path(source).is_dir():
        return False
    folder = Path(source)
    if folder.suffix == ".SAFE":
        return False
    return any(p.is_dir() or p.suffix.lower() in PICTURE_SUFFIXES for p in folder.iterdir())


@dataclass(frozen=True, eq=False)
class ImageCollection:
    """Images of one size and one set of bands.

    Attributes
    ----------
    name : str
        Folder or array name.
    bands : tuple of str
        STAC common names.
    shape : tuple of int
        Height and width, pixels.
    gsd : float
        Metres.
    scaling : str
        How numbers became reflectance.
    coordinates : dict of str to ndarray of shape (sample,)
        `name`, and `label` where images lie in class folders.
    """

    name: str
    bands: tuple[str, ...]
    shape: tuple[int, int]
    gsd: float
    scaling: str
    coordinates: dict[str, NDArray[Any]]
    _paths: tuple[Path, ...] = ()
    _array: NDArray[np.float32] | None = None
    _options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        source: Any,
        *,
        bands: Sequence[str] | None = None,
        gsd: float | None = None,
        scale: float | None = None,
        offset: float | None = None,
        files: Sequence[str | Path] | None = None,
    ) -> "ImageCollection":
        """Open a collection; images are read when they are asked for.

        Parameters
        ----------
        source : path, ndarray or DataArray
            A folder of images, or of class folders of images; or (sample, band, y, x)
            reflectance, NaN where missing (uint8 counts as display values of 0 to 255).
        bands : sequence of str, optional
            Common names: of the array's bands, or those to read from GeoTIFFs. Pictures are
            red, green, blue.
        gsd : float, optional
            Metres; 10 by default.
        scale, offset : float, optional
            How the numbers of GeoTIFFs become reflectance; see `open_scene`.
        files : sequence of path, optional
            Take these files of the folder only, in this order.

        Raises
        ------
        SceneError
            If there is no image, sizes differ, or an array comes without band names.
        """
        gsd = float(gsd or DEFAULT_GSD)
        if isinstance(source, ImageCollection):
            return source
        if isinstance(source, np.ndarray | xr.DataArray):
            return cls._of_array(source, bands, gsd)
        folder = Path(source)
        known = PICTURE_SUFFIXES | RASTER_SUFFIXES
        if files is None:
            paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in known)
        else:
            paths = [folder / f for f in files]
        if not paths:
            raise SceneError(f"folder {folder} holds no image", "pass a folder of images")
        kinds = {p.suffix.lower() in PICTURE_SUFFIXES for p in paths}
        if len(kinds) > 1:
            raise SceneError(
                f"folder {folder} mixes pictures and rasters", "encode them apart, a store each"
            )
        options: dict[str, Any] = {}
        coordinates = {"name": np.array([p.stem for p in paths])}
        if any(p.parent != folder for p in paths):
            coordinates["label"] = np.array([p.parent.name for p in paths])
        if kinds == {True}:
            pixels = _read_picture(paths[0])
            names: tuple[str, ...] = ("red", "green", "blue")
            scaling = "8-bit display values / 255"
            shape = pixels.shape[1:]
        else:
            options = {"bands": bands, "scale": scale, "offset": offset}
            scene = open_scene(paths[0], **options)
            names, scaling = scene.bands, scene.scaling.source
            shape = tuple(int(s) for s in scene.geobox.shape)
        return cls(
            folder.name,
            names,
            (shape[0], shape[1]),
            gsd,
            scaling,
            coordinates,
            tuple(paths),
            _options=options,
        )

    @classmethod
    def _of_array(
        cls, source: "np.ndarray[Any, Any] | xr.DataArray", bands: Sequence[str] | None, gsd: float
    ) -> "ImageCollection":
        if source.ndim != 4:
            raise SceneError(f"an array of shape {source.shape}", "pass (sample, band, y, x)")
        if bands is None or len(bands) != source.shape[1]:
            raise SceneError(
                f"{source.shape[1]} bands come with names {bands}",
                "pass bands=(...) with the common name of each",
            )
        values = np.asarray(source)
        scaling = "reflectance as given"
        if values.dtype == np.uint8:
            values, scaling = values / np.float32(255), "8-bit display values / 255"
        elif values.dtype.kind != "f":
            raise SceneError(
                f"an array of {values.dtype} is of unknown scaling", "pass reflectance as floats"
            )
        name = str(getattr(source, "name", None) or "array")
        _, _, height, width = values.shape
        return cls(
            name, tuple(bands), (height, width), gsd, scaling, {}, _array=values.astype(np.float32)
        )

    def __len__(self) -> int:
        return len(self._paths) if self._array is None else len(self._array)

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Read images `first` to `last` (exclusive): (n, band, y, x) float32, NaN is missing.

        Raises
        ------
        SceneError
            If a file is damaged or of another size than the first.
        """
        if self._array is not None:
            return self._array[first:last]
        images = []
        for path in self._paths[first:last]:
            if path.suffix.lower() in PICTURE_SUFFIXES:
                image = _read_picture(path)
            else:
                image = open_scene(path, **self._options).read(slice(None), slice(None))
            if image.shape != (len(self.bands), *self.shape):
                raise SceneError(
                    f"{path.name} has shape {image.shape}, the first image "
                    f"{(len(self.bands), *self.shape)}",
                    "a store holds images of one size and one set of bands: encode them apart",
                )
            images.append(image)
        return np.stack(images)

    def digest(self) -> str:
        """Return the SHA-256 over names and contents of all images."""
        total = hashlib.sha256()
        if self._array is not None:
            total.update(str(self._array.shape).encode())
            total.update(np.ascontiguousarray(self._array, "<f4").tobytes())
        for path in self._paths:
            with path.open("rb") as stream:
                total.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


def _read_picture(path: Path) -> NDArray[np.float32]:
    """Read a picture as (3, y, x) in 0..1; pixels without opacity are NaN."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGBA"), np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise SceneError(
            f"{path} cannot be read as an image ({error})", "fetch it again"
        ) from error
    values: NDArray[np.float32] = pixels[..., :3].transpose(2, 0, 1) / np.float32(255)
    values[:, pixels[..., 3] == 0] = np.nan
    return values
