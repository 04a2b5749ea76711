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
from nec.scene.scaling import Scaling, check_floats
from nec.scene.scene import Scene

#: Images without a place; red, green and blue in this order.
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
DEFAULT_GSD = 10.0
# By how much pixels may differ: those of two zones do a little.
SAME_GSD = 0.01
_DISPLAY = Scaling(1 / 255, 0.0, "8-bit display values / 255")
_AS_GIVEN = Scaling(1.0, 0.0, "reflectance as given")


def is_collection(source: Any) -> bool:
    """Whether a source is an image collection and not a scene.

    An array (sample, band, y, x); a folder that holds pictures, or folders (of classes), and no
    rasters beside them: those are a scene, with previews or not. Hidden entries do not count.
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
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    folders = any(entry.is_dir() for entry in entries)
    kinds = {entry.suffix.lower() for entry in entries if not entry.is_dir()}
    return not kinds & RASTER_SUFFIXES and (folders or bool(kinds & PICTURE_SUFFIXES))


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
    scaling : Scaling
        How numbers became reflectance, the same for all images.
    coordinates : dict of str to ndarray of shape (sample,)
        `name`; `label` where images lie in class folders; of rasters `crs` (``EPSG:32631`` or
        WKT) and `transform` (six numbers in GDAL's order, north-up), as text.
    """

    name: str
    bands: tuple[str, ...]
    shape: tuple[int, int]
    gsd: float
    scaling: Scaling
    coordinates: dict[str, NDArray[Any]]
    _paths: tuple[Path, ...] = ()
    _array: NDArray[np.float32] | None = None
    _scenes: tuple[Scene, ...] = ()
    _options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        source: Any,
        *,
        bands: Sequence[str] | Mapping[str, str | int] | None = None,
        gsd: float | None = None,
        scale: float | None = None,
        offset: float | None = None,
        files: Sequence[str | Path] | None = None,
    ) -> "ImageCollection":
        """Open a collection; images are read when they are asked for, headers of rasters here.

        Parameters
        ----------
        source : path, ndarray or DataArray
            A folder of images, or of class folders of images; or (sample, band, y, x)
            reflectance, NaN where missing (uint8 counts as display values of 0 to 255).
        bands : sequence of str or dict, optional
            Common names: of the array's bands, or those to read from GeoTIFFs (see `open_scene`).
            Pictures are red, green, blue and take none.
        gsd : float, optional
            Metres; that of rasters by default, and 10 of what does not say.
        scale, offset : float, optional
            How the numbers of GeoTIFFs become reflectance; see `open_scene`. Others take none.
        files : sequence of path, optional
            Take these files of the folder only, in this order.

        Raises
        ------
        SceneError
            If there is no image, rasters differ in size, bands or scaling, an array comes without
            band names or is no reflectance, or the source does not take an option.
        """
        if gsd is not None and not 0 < gsd < np.inf:
            raise SceneError(f"gsd={gsd} is no ground sampling distance", "give metres, as gsd=10")
        scales = {"scale": scale, "offset": offset}
        if isinstance(source, ImageCollection):
            _refuse("an open ImageCollection", {"bands": bands, "gsd": gsd, **scales})
            return source
        if isinstance(source, np.ndarray | xr.DataArray):
            _refuse("an array of images", scales)
            return cls._of_array(source, bands, float(gsd or DEFAULT_GSD))
        folder = Path(source)
        known = PICTURE_SUFFIXES | RASTER_SUFFIXES
        if files is None:
            paths = sorted(
                path
                for path in folder.rglob("*")
                if path.suffix.lower() in known
                and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            )
        else:
            paths = [folder / f for f in files]
        if not paths and (folder / "zarr.json").exists():
            raise SceneError(f"{folder} is a store already", "encode what it was made of")
        if not paths:
            raise SceneError(f"folder {folder} holds no image", "pass a folder of images")
        kinds = {p.suffix.lower() in PICTURE_SUFFIXES for p in paths}
        if len(kinds) > 1:
            raise SceneError(
                f"folder {folder} mixes pictures and rasters", "encode them apart, a store each"
            )
        options: dict[str, Any] = {}
        scenes: tuple[Scene, ...] = ()
        coordinates = {"name": np.array([p.stem for p in paths])}
        if any(p.parent != folder for p in paths):
            coordinates["label"] = np.array([p.parent.name for p in paths])
        if kinds == {True}:
            _refuse("a folder of pictures", {"bands": bands, **scales})
            pixels = _read_picture(paths[0])
            names: tuple[str, ...] = ("red", "green", "blue")
            scaling = _DISPLAY
            shape = pixels.shape[1:]
        else:
            options = {"bands": bands, **scales}
            scenes = _open_alike(paths, options)
            names, scaling = scenes[0].bands, scenes[0].scaling
            gsd = gsd or round(scenes[0].gsd, 4)
            shape = tuple(int(s) for s in scenes[0].geobox.shape)
            boxes = [scene.geobox for scene in scenes]
            coordinates["crs"] = np.array([str(box.crs) for box in boxes])
            coordinates["transform"] = np.array(
                [" ".join(str(float(n)) for n in box.affine.to_gdal()) for box in boxes]
            )
        return cls(
            folder.name,
            names,
            (shape[0], shape[1]),
            float(gsd or DEFAULT_GSD),
            scaling,
            coordinates,
            tuple(paths),
            _scenes=scenes,
            _options=options,
        )

    @classmethod
    def _of_array(
        cls,
        source: "np.ndarray[Any, Any] | xr.DataArray",
        bands: Sequence[str] | Mapping[str, str | int] | None,
        gsd: float,
    ) -> "ImageCollection":
        if source.ndim != 4:
            raise SceneError(f"an array of shape {source.shape}", "pass (sample, band, y, x)")
        if bands is None or isinstance(bands, str | Mapping) or len(bands) != source.shape[1]:
            raise SceneError(
                f"{source.shape[1]} bands come with names {bands}",
                "pass bands=(...) with the common name of each",
            )
        name = str(getattr(source, "name", None) or "array")
        values, scaling = np.asarray(source), _AS_GIVEN
        if values.dtype == np.uint8:
            values, scaling = values / np.float32(255), _DISPLAY
        elif values.dtype.kind != "f":
            raise SceneError(
                f"an array of {values.dtype} is of unknown scaling", "pass reflectance as floats"
            )
        else:
            some = values[:: max(len(values) // 100, 1)]
            check_floats(
                name,
                some,
                "pass reflectance (digital numbers of Sentinel-2: array * 1e-4; 0 to 255: "
                "array / 255)",
            )
        _, _, height, width = values.shape
        return cls(
            name, tuple(bands), (height, width), gsd, scaling, {}, _array=values.astype(np.float32)
        )

    @property
    def itemsize(self) -> int:
        """Bytes of a number as it is stored: 1 of pictures, 4 of arrays, that of the rasters."""
        if self._array is not None:
            return 4
        if self._scenes:
            return max(layer.source.dtype.itemsize for layer in self._scenes[0].layers)
        return 1

    def __len__(self) -> int:
        return len(self._paths) if self._array is None else len(self._array)

    def read(
        self, first: int, last: int, bands: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """Read images `first` to `last` (exclusive): (n, band, y, x) float32, NaN is missing.

        Bands are all, or those named, in that order: of rasters a pixel is missing where one of
        those that are read is.

        Raises
        ------
        SceneError
            If a file is damaged or of another size than the first.
        """
        wanted = self.bands if bands is None else tuple(bands)
        which = [self.bands.index(band) for band in wanted]
        if self._array is not None:
            return self._array[first:last][:, which]
        images = []
        for at, path in enumerate(self._paths[first:last], first):
            if self._scenes:
                image = self._scenes[at].select(wanted).read(slice(None), slice(None))
            else:
                image = _read_picture(path)[which]
            if image.shape != (len(wanted), *self.shape):
                raise SceneError(
                    f"{path.name} has shape {image.shape}, the first image "
                    f"{(len(wanted), *self.shape)}",
                    "a store holds images of one size and one set of bands: encode them apart",
                )
            images.append(image)
        return np.stack(images)

    def digest(self) -> str:
        """Return a SHA-256 of all that decides what `read` returns.

        It covers names and contents of all images, bands, scaling and options.
        """
        total = hashlib.sha256()
        options = dict(self._options)
        if isinstance(wanted := options.get("bands"), Mapping):
            options["bands"] = tuple(wanted.items())
        elif wanted is not None:
            options["bands"] = tuple(wanted)
        total.update(repr((self.bands, self.scaling.scale, self.scaling.offset)).encode())
        total.update(repr(sorted(options.items())).encode())
        if self._array is not None:
            total.update(str(self._array.shape).encode())
            total.update(np.ascontiguousarray(self._array, "<f4").tobytes())
        for at, path in enumerate(self._paths):
            total.update(path.name.encode())
            if self._scenes:
                total.update(self._scenes[at].digest().encode())
                continue
            with path.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


def _refuse(what: str, options: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise SceneError(f"{what} takes no {option}= (got {value!r})", "leave it out")


def _open_alike(paths: Sequence[Path], options: Mapping[str, Any]) -> tuple[Scene, ...]:
    """Open rasters that share size, bands and scaling."""
    scenes = tuple(open_scene(path, **options) for path in paths)

    def traits(scene: Scene) -> dict[str, Any]:
        return {
            "shape": tuple(int(size) for size in scene.geobox.shape),
            "bands": scene.bands,
            "scale and offset": (scene.scaling.scale, scene.scaling.offset),
        }

    first = traits(scenes[0])
    for path, scene in zip(paths, scenes, strict=True):
        if abs(scene.gsd / scenes[0].gsd - 1) > SAME_GSD:
            raise SceneError(
                f"{path.name} has pixels of {scene.gsd:g} m, the first image ({paths[0].name}) of "
                f"{scenes[0].gsd:g} m",
                "a store holds images of one resolution: encode them apart",
            )
        for trait, value in traits(scene).items():
            if value != first[trait]:
                raise SceneError(
                    f"{path.name} has {trait} {value}, the first image ({paths[0].name}) "
                    f"{first[trait]}",
                    "a store holds images of one size, one set of bands and one scaling: encode "
                    "them apart",
                )
    return scenes


def _read_picture(path: Path) -> NDArray[np.float32]:
    """Read a picture as (3, y, x) in 0..1; pixels without opacity are NaN."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise SceneError(
                    f"{path} holds numbers of more than 8 bits (mode {picture.mode})",
                    "pictures are of 8 bits: convert it to a GeoTIFF and give scale=",
                )
            pixels = np.asarray(picture.convert("RGBA"), np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise SceneError(
            f"{path} cannot be read as an image ({error})", "fetch it again"
        ) from error
    values: NDArray[np.float32] = pixels[..., :3].transpose(2, 0, 1) / np.float32(255)
    values[:, pixels[..., 3] == 0] = np.nan
    return values
