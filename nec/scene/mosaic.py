"""`Mosaic`: scenes of one lattice of pixels, one over the other."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from nec.scene.scene import Layer, Scene


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Scenes laid over each other without resampling, read by window as one `Scene` is.

    Attributes
    ----------
    name : str
    scenes : tuple of Scene
        Of the same bands, from the lowest to the one on top: a pixel is that of the highest
        scene that has it.
    offsets : tuple of tuple of int
        Row and column of each scene's first pixel in the mosaic.
    gsd : float
        Metres.
    time : numpy.datetime64 or None
    """

    name: str
    scenes: tuple[Scene, ...] = field(repr=False)
    offsets: tuple[tuple[int, int], ...] = field(repr=False)
    gsd: float
    time: np.datetime64 | None

    @property
    def bands(self) -> tuple[str, ...]:
        """Common names, in the order of `read`."""
        return self.scenes[0].bands

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Where the bands of the lowest scene come from."""
        return self.scenes[0].layers

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a window; see `Scene.read`.

        Returns
        -------
        ndarray of float32, shape (band, y, x)
            NaN where no scene has a pixel.
        """
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        values = np.full((len(self.bands), *shape), np.nan, np.float32)
        for scene, inside, place in self._windows(rows, columns):
            part, own = scene.read(*inside), values[:, *place]
            seen = ~np.isnan(part[0])
            own[:, seen] = part[:, seen]
        return values

    def covered(self, rows: slice, columns: slice) -> int:
        """Return how many pixels of a window lie in a scene, whatever they hold."""
        inside = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
        for _, _, place in self._windows(rows, columns):
            inside[place] = True
        return int(inside.sum())

    def versions(self) -> tuple[tuple[str, int, int], ...]:
        """Return path, size and time of change of every local file; see `Scene.versions`."""
        return tuple(version for scene in self.scenes for version in scene.versions())

    def _windows(
        self, rows: slice, columns: slice
    ) -> Iterator[tuple[Scene, tuple[slice, slice], tuple[slice, slice]]]:
        """Yield scenes that a window touches: what of each, in its pixels, and in the window's."""
        for scene, offset in zip(self.scenes, self.offsets, strict=True):
            sides = [
                (window.start, max(window.start, at), min(window.stop, at + int(size)), at)
                for window, at, size in zip(
                    (rows, columns), offset, scene.geobox.shape, strict=True
                )
            ]
            if all(first < last for _, first, last, _ in sides):
                (y, y_place), (x, x_place) = (
                    (slice(first - at, last - at), slice(first - start, last - start))
                    for start, first, last, at in sides
                )
                yield scene, (y, x), (y_place, x_place)
