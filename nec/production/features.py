"""Where the features of a task come from: a scene, an image collection, an array.

Each can be pickled to another process; a model goes along by name, and is loaded once there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nec.archive import Task, TokenGrid
from nec.encoders.tiling import Tiling, embed_image, fill_missing, missing_tokens
from nec.errors import SceneError
from nec.model import Model
from nec.scene import ImageCollection, Mosaic, Scene

CELL = 16  # tokens along the edge of a chip that `scene_embedding` pools


@dataclass(frozen=True)
class Size:
    """What a task takes in: pixels of its source (or vectors), and their bytes uncompressed."""

    pixels: int
    bytes: int


@dataclass(frozen=True)
class Stopwatch:
    """Seconds of wall clock by stage, and pixels that were seen: all, and masked ones."""

    seconds: dict[str, float] = field(default_factory=dict)
    pixels: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add what the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken


class FeatureSource(Protocol):
    """Makes the features of a task, and pools them."""

    def size(self, task: Task) -> Size:
        """Return what of the source falls to a task; nothing is read."""
        ...

    def features(self, task: Task, watch: Stopwatch) -> NDArray[np.float32]:
        """Make features ([sample,] dim, y, x), NaN where missing; stages are read and embed.

        Raises
        ------
        SceneError
            What the task needs cannot be read.
        """
        ...

    def pooled(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pool features to what `scene_embedding` holds of a task."""
        ...


@dataclass(frozen=True, eq=False)
class SceneFeatures:
    """A scene, or scenes over each other, embedded by overlapping chips.

    Attributes
    ----------
    scene : Scene or Mosaic
        With the bands that the model takes.
    model : Model
    grid : TokenGrid
    tiling : Tiling
    versions : tuple
        The scene's files as they were when its digest was taken.
    """

    scene: Scene | Mosaic
    model: Model
    grid: TokenGrid
    tiling: Tiling
    versions: tuple[tuple[str, int, int], ...]

    def size(self, task: Task) -> Size:
        """See `FeatureSource.size`."""
        pixels = self.scene.covered(*self.grid.pixel_window(task))
        per_pixel = sum(layer.source.dtype.itemsize for layer in self.scene.layers)
        return Size(pixels, pixels * per_pixel)

    def features(self, task: Task, watch: Stopwatch) -> NDArray[np.float32]:
        """See `FeatureSource.features`; SceneError where a file is no longer what it was."""
        with watch("read"):
            image = self.scene.read(*self.grid.pixel_window(task, self.tiling.margin))
            if self.scene.versions() != self.versions:
                raise SceneError(
                    f"{self.scene.name} was changed while it was being read",
                    "run again when its files are complete",
                )
            margin, (height, width) = self.tiling.margin, image.shape[1:]
            own = image[0, margin : height - margin, margin : width - margin]
            covered = self.scene.covered(*self.grid.pixel_window(task))
            seen = int(np.count_nonzero(~np.isnan(own)))
            watch.pixels.update(pixels=covered, masked=covered - seen)
        with watch("embed"):
            return embed_image(
                self.model.encoder,
                image,
                bands=self.scene.bands,
                gsd=self.scene.gsd,
                tiling=self.tiling,
                time=self.scene.time,
            )

    def pooled(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean of the valid tokens of each cell."""
        return pool_cells(features)


@dataclass(frozen=True, eq=False)
class CollectionFeatures:
    """An image collection, each image embedded whole.

    Attributes
    ----------
    collection : ImageCollection
    model : Model
    bands : tuple of str
        Those that the model takes.
    shard, batch : int
        Images of a task, and of a forward pass.
    """

    collection: ImageCollection
    model: Model
    bands: tuple[str, ...]
    shard: int
    batch: int

    def _range(self, task: Task) -> tuple[int, int]:
        first = task.row * self.shard
        return first, min(first + self.shard, len(self.collection))

    def size(self, task: Task) -> Size:
        """See `FeatureSource.size`."""
        first, last = self._range(task)
        height, width = self.collection.shape
        pixels = (last - first) * height * width
        return Size(pixels, pixels * len(self.bands) * self.collection.itemsize)

    def features(self, task: Task, watch: Stopwatch) -> NDArray[np.float32]:
        """See `FeatureSource.features`; no more than a batch of images is in memory."""
        import torch

        encoder, patch = self.model.encoder, self.model.encoder.patch_size
        height, width = (size // patch for size in self.collection.shape)
        first, last = self._range(task)
        out = np.empty((last - first, encoder.dim, height, width), np.float32)
        for at in range(first, last, self.batch):
            with watch("read"):
                images = self.collection.read(at, min(at + self.batch, last), self.bands)
            with watch("embed"):
                # An image of nothing but nodata has nothing to be filled with.
                filled = np.nan_to_num(np.stack([fill_missing(image) for image in images]))
                tokens = encoder.embed(
                    torch.from_numpy(filled), bands=self.bands, gsd=self.collection.gsd
                )
                part = tokens.cpu().numpy()
                missing = missing_tokens(images, patch)
                part[np.broadcast_to(missing[:, None], part.shape)] = np.nan
            out[at - first : at - first + len(part)] = part
        return out

    def pooled(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean of the valid tokens of each image."""
        count = (~np.isnan(features)).sum((2, 3))
        mean = np.nansum(features, axis=(2, 3)) / np.maximum(count, 1)
        return np.where(count > 0, mean, np.nan).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ArrayFeatures:
    """Features that are there already: an array (band, y, x), lazy or not."""

    array: xr.DataArray
    grid: TokenGrid

    def _part(self, task: Task) -> tuple[slice, slice, slice, slice]:
        """Return rows and columns of the array that exist, and where in the task they go."""
        inside, place = [], []
        for window, size in zip(self.grid.pixel_window(task), self.grid.scene_shape, strict=True):
            start, stop = max(window.start, 0), min(window.stop, size)
            stop = max(stop, start)
            inside.append(slice(start, stop))
            place.append(slice(start - window.start, stop - window.start))
        return (*inside, *place)  # type: ignore[return-value]

    def size(self, task: Task) -> Size:
        """See `FeatureSource.size`; a vector counts as a pixel."""
        rows, columns, _, _ = self._part(task)
        vectors = (rows.stop - rows.start) * (columns.stop - columns.start)
        return Size(vectors, vectors * self.array.sizes["band"] * self.array.dtype.itemsize)

    def features(self, task: Task, watch: Stopwatch) -> NDArray[np.float32]:
        """See `FeatureSource.features`."""
        window = self.grid.pixel_window(task)
        shape = (self.array.sizes["band"], *(w.stop - w.start for w in window))
        out = np.full(shape, np.nan, np.float32)
        rows, columns, y, x = self._part(task)
        if rows.stop > rows.start and columns.stop > columns.start:
            with watch("read"):
                out[:, y, x] = self.array.isel(y=rows, x=columns).to_numpy()
        return out

    def pooled(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean of the valid vectors of each cell."""
        return pool_cells(features)


@dataclass(frozen=True, eq=False)
class VectorFeatures:
    """Vectors without a place that are there already: an array (sample, band), lazy or not."""

    array: xr.DataArray
    shard: int

    def _part(self, task: Task) -> xr.DataArray:
        return self.array.isel(sample=slice(task.row * self.shard, (task.row + 1) * self.shard))

    def size(self, task: Task) -> Size:
        """See `FeatureSource.size`; a vector counts as a pixel."""
        part = self._part(task)
        return Size(part.sizes["sample"], part.nbytes)

    def features(self, task: Task, watch: Stopwatch) -> NDArray[np.float32]:
        """See `FeatureSource.features`."""
        with watch("read"):
            values: NDArray[np.float32] = self._part(task).to_numpy().astype(np.float32)
        return values[:, :, None, None]

    def pooled(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors: each is a sample."""
        return features[:, :, 0, 0]


def pool_cells(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the valid tokens of each cell, (dim, y / CELL, x / CELL)."""
    dim, h, w = features.shape
    features = np.where(np.isnan(features).any(0), np.nan, features)
    cut = features.reshape(dim, h // CELL, CELL, w // CELL, CELL)
    count = (~np.isnan(cut)).sum((2, 4))
    total = np.nansum(cut, axis=(2, 4))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
