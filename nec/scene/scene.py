"""`Scene`: bands by common name on one grid, read by window."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox

from nec.errors import SceneError
from nec.scene.grids import Placement, ground_sampling_distance
from nec.scene.scaling import Scaling
from nec.scene.sources import RasterSource, Source


@dataclass(frozen=True)
class Layer:
    """One band of a scene: band `index` (from 0) of a source."""

    band: str
    source: Source
    index: int


@dataclass(frozen=True, eq=False)
class Scene:
    """Reflectance of one place at one time, read by window.

    Nothing but headers is read before `read`. A scene can be shared between threads and
    pickled (if its source is not an array that lives in memory, cheaply).

    Attributes
    ----------
    name : str
        File or folder name without suffix, or the array's name.
    bands : tuple of str
        STAC common names, in the order of `read`.
    geobox : odc.geo.geobox.GeoBox
        North-up grid of the finest band, in the scene's own CRS and pixel phase.
    time : numpy.datetime64 or None
        Acquisition, UTC.
    gsd : float
        Edge of a pixel on the ground, metres, at the centre of the scene.
    scaling : Scaling
        How numbers became reflectance.
    sources : tuple of str
        File names.
    layers : tuple of Layer
        Where each band comes from.
    nodata : float or None
        The caller's number for missing, besides the files' own.
    mask : Source or None
        Missing where its band `mask_index` is not 0, or one of `mask_classes`.
    mask_index : int
        From 0.
    mask_classes : tuple of int or None
        Of a classification.
    fill : float or None
        The sensor's number for missing, where files state none: missing is where all bands
        that are read hold it, as one band alone may hold it in dark places.
    """

    name: str
    bands: tuple[str, ...]
    geobox: GeoBox
    time: np.datetime64 | None
    gsd: float
    scaling: Scaling
    sources: tuple[str, ...]
    layers: tuple[Layer, ...] = field(repr=False)
    nodata: float | None = field(default=None, repr=False)
    mask: Source | None = field(default=None, repr=False)
    fill: float | None = field(default=None, repr=False)
    mask_index: int = field(default=0, repr=False)
    mask_classes: tuple[int, ...] | None = field(default=None, repr=False)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a window.

        Parameters
        ----------
        rows, columns : slice
            Half-open, in pixels of `geobox`, north-up. They may reach outside the scene: a
            negative start lies before its first pixel and does not count from the end. None
            stands for the scene's own edge.

        Returns
        -------
        ndarray of float32, shape (band, y, x)
            Reflectance; NaN outside the scene, where masked, and in all bands where any band
            is missing.

        Raises
        ------
        SceneError
            If the window is reversed or has a step, or a file is damaged.
        """
        height, width = self.geobox.shape
        rows, columns = _whole(rows, height), _whole(columns, width)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        values = np.full((len(self.bands), *shape), np.nan, np.float32)
        empty = np.full(shape, self.fill is not None)
        for source, positions in self._by_source():
            indexes = [self.layers[at].index for at in positions]
            cut = self._cut(source, indexes, rows, columns)
            if cut is None:
                continue
            numbers, missing, (fill_y, fill_x) = cut
            reflectance = numbers.astype(np.float32)
            reflectance *= np.float32(self.scaling.scale)
            reflectance += np.float32(self.scaling.offset)
            if missing is not None:
                reflectance[missing] = np.nan
            if self.nodata is not None:
                reflectance[numbers == self.nodata] = np.nan
            if self.fill is not None:
                empty[fill_y, fill_x] &= (numbers == self.fill).all(axis=0)
            values[positions, fill_y, fill_x] = reflectance
        absent = empty | ~np.isfinite(values).all(axis=0)
        if self.mask is not None and (
            cut := self._cut(self.mask, [self.mask_index], rows, columns)
        ):
            numbers, _, (fill_y, fill_x) = cut
            classes = self.mask_classes
            absent[fill_y, fill_x] |= (
                numbers[0] != 0 if classes is None else np.isin(numbers[0], classes)
            )
        # The scene ends where its finest band ends, even where a coarser one reaches further.
        values[:, absent | ~_inside(rows, height)[:, None] | ~_inside(columns, width)] = np.nan
        return values

    def covered(self, rows: slice, columns: slice) -> int:
        """Return how many pixels of a window lie in the scene, whatever they hold."""
        sides = zip((rows, columns), self.geobox.shape, strict=True)
        height, width = (max(min(w.stop, size) - max(w.start, 0), 0) for w, size in sides)
        return int(height * width)

    def select(self, bands: Sequence[str]) -> "Scene":
        """Return the scene with these bands only, in this order, on the finest grid they need.

        Raises
        ------
        SceneError
            If a band is not in the scene.
        """
        by_name = {layer.band: layer for layer in self.layers}
        for band in bands:
            if band not in by_name:
                raise SceneError(
                    f"band {band!r} is not in {self.name} (has: {', '.join(self.bands)})",
                    "pass bands={...} when opening it, or choose a model of other bands",
                )
        layers = tuple(by_name[band] for band in bands)
        if not layers:
            raise SceneError(f"no band of {self.name} is selected", "name at least one")
        geobox = finest_layer(layers).source.geobox
        check_grid(layers, self.mask)
        return replace(
            self,
            bands=tuple(bands),
            geobox=geobox,
            gsd=ground_sampling_distance(geobox),
            sources=tuple(dict.fromkeys(layer.source.label for layer in layers)),
            layers=layers,
        )

    def digest(self) -> str:
        """Return a SHA-256 of all that decides what `read` returns.

        It covers the contents of the files (not their names or dates; side files included)
        or of the array and the mask, and bands, grid, time, scaling and nodata.
        """
        total = hashlib.sha256()
        affine = tuple(self.geobox.affine)[:6]
        wkt = str(self.geobox.crs)
        total.update(repr((self.bands, tuple(self.geobox.shape), affine, wkt)).encode())
        nodata = None if self.nodata is None else float(self.nodata)
        scale, offset = self.scaling.scale, self.scaling.offset
        total.update(repr((str(self.time), scale, offset, nodata, self.fill)).encode())
        for source, positions in self._by_source():
            indexes = [(at, self.layers[at].index) for at in positions]
            total.update(f"{indexes} {source.digest()}".encode())
        if self.mask is not None:
            total.update(f"mask {self.mask.digest()}".encode())
            if self.mask_index or self.mask_classes is not None:
                total.update(repr((self.mask_index, self.mask_classes)).encode())
        return total.hexdigest()

    def versions(self) -> tuple[tuple[str, int, int], ...]:
        """Return path, size in bytes and time of change, ns, of every local file that is read.

        Equal ones before and after a reading say that no file changed meanwhile. Remote files
        and arrays have no version.
        """
        sources: list[Source] = [source for source, _ in self._by_source()]
        if self.mask is not None:
            sources.append(self.mask)
        # Side files and what a VRT is made of as well: the digest covers them.
        paths = [
            Path(name) for item in sources if isinstance(item, RasterSource) for name in item.files
        ]
        states = [(path, path.stat()) for path in paths if path.is_file()]
        return tuple((str(path), state.st_size, state.st_mtime_ns) for path, state in states)

    def _by_source(self) -> list[tuple[Source, list[int]]]:
        """Return sources in order of first use, each with the positions of its bands."""
        groups: dict[int, tuple[Source, list[int]]] = {}
        for position, layer in enumerate(self.layers):
            groups.setdefault(id(layer.source), (layer.source, []))[1].append(position)
        return list(groups.values())

    def _cut(
        self, source: Source, indexes: list[int], rows: slice, columns: slice
    ) -> tuple[np.ndarray, np.ndarray | None, tuple[slice, slice]] | None:
        """Return numbers of a source on the scene's grid, where missing, and the part they fill."""
        place = Placement.of(source.geobox, source.label, self.geobox, self.name)
        fill_y, read_y, keep_y = place.along(0, rows)
        fill_x, read_x, keep_x = place.along(1, columns)
        if fill_y.stop == 0 or fill_x.stop == 0:
            return None
        numbers, missing = source.read(indexes, read_y, read_x)

        def spread(array: np.ndarray) -> np.ndarray:
            if place.factor != (1, 1):
                array = array.repeat(place.factor[0], axis=1).repeat(place.factor[1], axis=2)
            return array[:, keep_y, keep_x]

        absent = None if missing is None else spread(missing)
        return spread(numbers), absent, (fill_y, fill_x)


def finest_layer(layers: Sequence[Layer]) -> Layer:
    """Return the layer of the smallest pixels."""
    return min(layers, key=lambda layer: layer.source.geobox.affine.a)


def check_grid(layers: Sequence[Layer], mask: Source | None) -> None:
    """Check that all layers and the mask nest in the finest layer.

    Raises
    ------
    SceneError
        If they differ in CRS or phase, or the mask covers only a part.
    """
    finest = finest_layer(layers).source
    for layer in layers:
        Placement.of(layer.source.geobox, layer.source.label, finest.geobox, finest.label)
    if mask is not None:
        place = Placement.of(mask.geobox, mask.label, finest.geobox, finest.label)
        ends = [place.offset[axis] + place.factor[axis] * place.shape[axis] for axis in (0, 1)]
        if max(place.offset) > 0 or any(
            end < size for end, size in zip(ends, finest.geobox.shape, strict=True)
        ):
            raise SceneError(f"mask {mask.label} covers only a part of the scene", "extend it")


def _whole(window: slice, size: int) -> slice:
    start = 0 if window.start is None else int(window.start)
    stop = size if window.stop is None else int(window.stop)
    if stop < start or window.step not in {None, 1}:
        raise SceneError(f"{window} is no window", "pass slice(start, stop) with start <= stop")
    return slice(start, stop)


def _inside(window: slice, size: int) -> np.ndarray:
    at = np.arange(window.start, window.stop)
    return (at >= 0) & (at < size)
