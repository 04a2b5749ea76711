"""What lies in a store: arrays, their chunks and shards, coordinates; however it came about."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.archive.grid import Task, TokenGrid
from nec.errors import StoreError

# Which index of a task counts along a dimension; every other dimension is whole in an object.
_ALONG = {
    "time": "time",
    "y": "row",
    "cell_y": "row",
    "sample": "row",
    "x": "column",
    "cell_x": "column",
}
# Times in a chunk of the coordinate of a series: it stays as it is while times are appended.
TIMES = 1024


@dataclass(frozen=True)
class ArrayLayout:
    """Dimensions and chunking of one array.

    Attributes
    ----------
    name : str
        Path of the array inside the store.
    dims : tuple of str
        Names of the dimensions.
    shape : tuple of int
        Size along each.
    chunk : tuple of int
        Shape of a chunk (of an inner one, where the array is sharded).
    shard : tuple of int or None
        Shape of a shard; None where each chunk is an object of its own.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None = None

    @classmethod
    def from_metadata(cls, name: str, document: Mapping[str, Any]) -> "ArrayLayout":
        """Read the layout from an array's ``zarr.json``.

        Raises
        ------
        StoreError
            The document is not that of a regularly chunked Zarr v3 array.
        """
        try:
            outer = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
            serializer = document["codecs"][0]
            sharded = serializer["name"] == "sharding_indexed"
            inner = tuple(serializer["configuration"]["chunk_shape"]) if sharded else outer
            dims = tuple(document.get("dimension_names") or ("",) * len(document["shape"]))
            return cls(name, dims, tuple(document["shape"]), inner, outer if sharded else None)
        except (KeyError, TypeError, IndexError) as error:
            msg = f"{name}/zarr.json is not the metadata of a Zarr v3 array ({error!r})"
            raise StoreError(msg, "restore it from a copy, or write the store again") from error

    @property
    def object_shape(self) -> tuple[int, ...]:
        """Shape that one stored object covers: a shard, or a chunk."""
        return self.shard or self.chunk

    @property
    def chunks_per_object(self) -> tuple[int, ...]:
        """Number of (inner) chunks along each dimension of an object."""
        return tuple(o // c for o, c in zip(self.object_shape, self.chunk, strict=True))

    @property
    def objects(self) -> tuple[int, ...]:
        """Number of objects along each dimension."""
        return tuple(-(-s // o) for s, o in zip(self.shape, self.object_shape, strict=True))

    def _index(self, task: Task) -> tuple[int, ...]:
        split = {"sample"} if "sample" in self.dims else set(_ALONG)
        return tuple(getattr(task, _ALONG[d]) if d in split else 0 for d in self.dims)

    def tasks(self) -> list[Task]:
        """List the tasks that fill this array, time by time, row by row."""
        size = dict(zip(self.dims, self.objects, strict=True))
        if "sample" in size:
            return [Task(row) for row in range(size["sample"])]
        rows = size.get("y", size.get("cell_y", 1))
        columns = size.get("x", size.get("cell_x", 1))
        return [
            Task(row, column, time)
            for time in range(size.get("time", 1))
            for row in range(rows)
            for column in range(columns)
        ]

    def task(self, key: str) -> Task | None:
        """Return the task whose object has a key; None of any other key."""
        name, _, index = key.partition("/c/")
        at = index.split("/")
        if name != self.name or len(at) != len(self.dims) or not all(map(str.isdecimal, at)):
            return None
        split = {"sample"} if "sample" in self.dims else set(_ALONG)
        where = {_ALONG[d]: int(i) for d, i in zip(self.dims, at, strict=True) if d in split}
        task = Task(where.get("row", 0), where.get("column", 0), where.get("time", 0))
        inside = all(int(i) < n for i, n in zip(at, self.objects, strict=True))
        return task if inside and self.key(task) == key else None

    def key(self, task: Task) -> str:
        """Key of a task's object in the store."""
        return self.key_at(self._index(task))

    def key_at(self, index: tuple[int, ...]) -> str:
        """Key of the object that comes `index`-th along each dimension."""
        return "/".join([self.name, "c", *map(str, index)])

    def region(self, task: Task) -> tuple[int, ...]:
        """Shape of a task's part of the array, cut at the array's end."""
        parts = zip(self._index(task), self.object_shape, self.shape, strict=True)
        return tuple(min(step, size - index * step) for index, step, size in parts)


@dataclass(frozen=True, eq=False)
class Coordinate:
    """A coordinate array.

    Attributes
    ----------
    name : str
        Name of the coordinate.
    dims : tuple of str
        Its dimensions; none for a scalar.
    values : ndarray
        Numbers or strings.
    attributes : dict
        CF attributes.
    chunk : int, optional
        Length of a chunk, of a coordinate that may grow; the whole by default.
    """

    name: str
    dims: tuple[str, ...]
    values: NDArray[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    chunk: int | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything that is known of a store before its first vector is.

    Attributes
    ----------
    embedding, scene_embedding : ArrayLayout or None
        The two arrays; at least one.
    coordinates : tuple of Coordinate
        Coordinates without `spatial_ref`.
    grid : TokenGrid or None
        None for image collections without a place.
    """

    embedding: ArrayLayout | None
    scene_embedding: ArrayLayout | None
    coordinates: tuple[Coordinate, ...]
    grid: TokenGrid | None = None

    @classmethod
    def of_scene(
        cls,
        grid: TokenGrid,
        *,
        bands: int,
        time: np.datetime64 | NDArray[np.datetime64] | None = None,
    ) -> "Layout":
        """Lay out the store of a scene, or of a series of scenes of one grid.

        Parameters
        ----------
        grid : TokenGrid
            Its tokens.
        bands : int
            Components kept of each vector.
        time : numpy.datetime64 or array of them, optional
            Acquisition; adds a leading dimension `time` of length 1. An array, ascending: the
            times of a series, to which more may be appended. None for an undated scene.
        """
        lead, one = (("time",), (1,)) if time is not None else ((), ())
        times = () if time is None else (np.size(time),)
        embedding = ArrayLayout(
            "embedding",
            (*lead, "band", "y", "x"),
            (*times, bands, *grid.shape),
            (*one, bands, grid.chunk, grid.chunk),
            (*one, bands, grid.shard, grid.shard),
        )
        cells = grid.shard // grid.cell
        scene_embedding = ArrayLayout(
            "scene_embedding",
            (*lead, "band", "cell_y", "cell_x"),
            (*times, bands, *(size // grid.cell for size in grid.shape)),
            (*one, bands, cells, cells),
        )
        axes = [
            _axis(grid, "y", grid.y()),
            _axis(grid, "x", grid.x()),
            _axis(grid, "cell_y", grid.cell_y()),
            _axis(grid, "cell_x", grid.cell_x()),
        ]
        if time is not None:
            axes.insert(0, time_coordinate(time))
        return cls(embedding, scene_embedding, (*axes, _bands(bands)), grid)

    @classmethod
    def of_collection(
        cls,
        samples: int,
        *,
        bands: int,
        size: tuple[int, int] | None = None,
        chunk: int = 100,
        shard: int = 1000,
        coordinates: Mapping[str, NDArray[Any]] | None = None,
    ) -> "Layout":
        """Lay out the store of an image collection without a place.

        Parameters
        ----------
        samples : int
            Number of images.
        bands : int
            Components kept of each vector.
        size : tuple of int, optional
            Tokens of an image along y and x; None keeps `scene_embedding` alone.
        chunk, shard : int
            Samples in an inner chunk of `embedding`, and in a task.
        coordinates : mapping of str to ndarray of shape (sample,), optional
            Labels, file names and the like: numbers or strings, one for each sample.

        Raises
        ------
        StoreError
            A coordinate has not one value for each sample, or no sample is there.
        """
        if samples < 1 or shard % chunk:
            msg = f"a collection of {samples} samples in shards of {shard} and chunks of {chunk}"
            raise StoreError(msg, "give at least one sample, and a shard of whole chunks")
        extra = {name: np.asarray(values) for name, values in (coordinates or {}).items()}
        for name, values in extra.items():
            if values.shape != (samples,):
                msg = f"coordinate {name!r} has shape {values.shape}, not ({samples},)"
                raise StoreError(msg, "give one value for each sample")
        embedding = None
        if size is not None:
            embedding = ArrayLayout(
                "embedding",
                ("sample", "band", "y", "x"),
                (samples, bands, *size),
                (chunk, bands, *size),
                (shard, bands, *size),
            )
        scene_embedding = ArrayLayout(
            "scene_embedding", ("sample", "band"), (samples, bands), (shard, bands)
        )
        extra.setdefault("sample", np.arange(samples, dtype=np.int32))
        axes = [Coordinate(name, ("sample",), values) for name, values in sorted(extra.items())]
        return cls(embedding, scene_embedding, (*axes, _bands(bands)))

    def arrays(self) -> Iterable[ArrayLayout]:
        """List the arrays of vectors that this store has."""
        return [array for array in (self.embedding, self.scene_embedding) if array is not None]

    def tasks(self) -> list[Task]:
        """List all tasks, row by row."""
        return next(iter(self.arrays())).tasks()


def _bands(count: int) -> Coordinate:
    attributes = {"long_name": "component of the embedding, by importance", "units": "1"}
    return Coordinate("band", ("band",), np.arange(count, dtype=np.int16), attributes)


def time_coordinate(time: np.datetime64 | NDArray[np.datetime64]) -> Coordinate:
    """Make the coordinate `time`: of one scene, or of a series, to which more may be appended."""
    seconds = np.atleast_1d(np.asarray(time)).astype("datetime64[s]").astype(np.int64)
    attributes = {
        "standard_name": "time",
        "long_name": "time of acquisition",
        "axis": "T",
        "units": "seconds since 1970-01-01T00:00:00",
        "calendar": "proleptic_gregorian",
    }
    return Coordinate("time", ("time",), seconds, attributes, TIMES if np.ndim(time) else None)


def _axis(grid: TokenGrid, name: str, values: NDArray[np.float64]) -> Coordinate:
    direction = name[-1]
    what = "cell" if name.startswith("cell") else "token"
    if grid.geographic:
        noun, units = (
            ("latitude", "degrees_north") if direction == "y" else ("longitude", "degrees_east")
        )
    else:
        noun, units = f"projection_{direction}_coordinate", grid.units
    attributes = {"standard_name": noun, "units": units, "long_name": f"{noun} of {what} centres"}
    if what == "token":
        attributes["axis"] = direction.upper()
    return Coordinate(name, (name,), values, attributes)
