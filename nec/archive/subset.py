"""A store's first bands, and overviews of it: only the segments that hold them are fetched."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.core.sync import sync

from nec.archive.creation import stored_codec
from nec.archive.layout import ArrayLayout
from nec.archive.objects import CheckedStore
from nec.archive.ranges import Index, PartReader
from nec.codec import Coding
from nec.codec.container import CODES, MASK, PART_NAMES, PATCHES, REFINEMENTS, VERBATIM
from nec.errors import ChunkError, StoreError

OVERVIEWS = (1, 2, 4, 8, 16, 32, 64)

Box = tuple[slice, ...]


def octaves_for(coding: Coding, overview: int) -> int:
    """Return how many octaves an overview is made from: those with 2**g <= block / overview."""
    return max(coding.block // overview, 1).bit_length()


def segments_for(coding: Coding, bands: int, overview: int) -> set[int]:
    """Return the numbers of the segments that hold the first bands of an overview."""
    octaves = octaves_for(coding, overview)
    planes = next(end for end in coding.band_groups if end >= bands)
    return {
        number
        for number, segment in enumerate(coding.segments)
        if segment.first_octave < octaves and segment.first_plane < planes
    }


def parts_for(coding: Coding, bands: int, overview: int) -> set[int]:
    """Return the numbers of the parts that hold the first bands of an overview."""
    # Patches mend single tokens: an overview does without.
    whole = {MASK, REFINEMENTS, VERBATIM, CODES} | ({PATCHES} if overview == 1 else set())
    return whole | {len(PART_NAMES) + n for n in segments_for(coding, bands, overview)}


class SubsetArray:
    """`embedding` at its first bands and as an overview, read when it is indexed by slices.

    Parameters
    ----------
    store : CheckedStore
        The store.
    layout : ArrayLayout
        Of `embedding`, with dimensions (..., band, y, x).
    coding : Coding
        Of `embedding`.
    bands : int
        How many of its first bands.
    overview : int
        Edge of a cell, tokens.

    Attributes
    ----------
    shape, chunks : tuple of int
        Of the subset; a chunk holds whole shards and whole cells.
    dtype : numpy.dtype
        float32; NaN where a cell has no valid token.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, store: CheckedStore, layout: ArrayLayout, coding: Coding, *, bands: int, overview: int
    ) -> None:
        self._layout = layout
        self._coding = coding
        self._overview = overview
        self._reader = PartReader(store, layout, coding, parts_for(coding, bands, overview))
        *lead, _, height, width = layout.shape
        self.shape = (*lead, bands, *(-(-size // overview) for size in (height, width)))
        *lead, _, height, width = layout.object_shape
        edges = (math.lcm(size, overview) // overview for size in (height, width))
        self.chunks = tuple(map(min, (*lead, bands, *edges), self.shape))
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """Read a part, by slices and integers."""
        key = key if isinstance(key, tuple) else (key,)
        key += (slice(None),) * (self.ndim - len(key))
        box: list[slice] = []
        inside: list[slice | int] = []
        for item, size in zip(key, self.shape, strict=True):
            taken = range(size)[item]
            if isinstance(taken, int):
                box.append(slice(taken, taken + 1))
                inside.append(0)
            else:
                box.append(slice(min(taken), max(taken) + 1) if taken else slice(0, 0))
                inside.append(slice(None, None, taken.step))
        values = self._mean(tuple(box)) if self._overview > 1 else self._tokens(tuple(box))
        return values[tuple(inside)]

    def _tokens(self, box: Box) -> NDArray[np.float32]:
        """Read a box of tokens."""
        values = np.full([s.stop - s.start for s in box], np.nan, np.float32)
        for here, part in self._chunks(box):
            values[_relative(here, box)] = part
        return values

    def _mean(self, box: Box) -> NDArray[np.float32]:
        """Read a box of cells: means of their valid tokens."""
        edge, corner = self._overview, [s.start for s in box[-2:]]
        ends = self._layout.shape[-2:]
        tokens = (
            slice(s.start * edge, min(s.stop * edge, n))
            for s, n in zip(box[-2:], ends, strict=True)
        )
        whole = (*box[:-2], *tokens)
        shape = [s.stop - s.start for s in box]
        total = np.zeros(shape, np.float64)
        count = np.zeros((*shape[:-3], 1, *shape[-2:]), np.int64)
        for here, part in self._chunks(whole):
            # A vector is missing as a whole, so its first band tells.
            valid = ~np.isnan(part[..., :1, :, :])
            lead = _relative(here, whole)[:-3]
            _add(np.where(valid, part, 0), here, edge, corner, total[lead])
            _add(valid, here, edge, corner, count[lead])
        mean: NDArray[np.float32] = (total / np.where(count > 0, count, np.nan)).astype(np.float32)
        return mean

    def _chunks(self, box: Box) -> Iterator[tuple[Box, NDArray[np.float32]]]:
        """Read the chunks that a box of tokens cuts.

        Yields
        ------
        tuple of slice
            Where the values lie in the array: a chunk, cut at the box.
        ndarray of shape (..., band, y, x), float32
            The values.
        """
        chunk, per_object = self._layout.chunk, self._layout.chunks_per_object
        touched = [range(b.start // c, -(-b.stop // c)) for b, c in zip(box, chunk, strict=True)]
        objects: dict[Index, set[Index]] = {}
        for number in itertools.product(*touched) if all(b.start < b.stop for b in box) else ():
            pairs = [divmod(i, n) for i, n in zip(number, per_object, strict=True)]
            objects.setdefault(tuple(a for a, _ in pairs), set()).add(tuple(b for _, b in pairs))
        for outer, inner in objects.items():
            key = self._layout.key_at(outer)
            for at, parts in sync(self._reader.read(key, inner)).items():
                places = zip(outer, per_object, at, chunk, strict=True)
                corner = [(i * n + a) * c for i, n, a, c in places]
                span = tuple(slice(k, k + c) for k, c in zip(corner, chunk, strict=True))
                here = tuple(
                    slice(max(s.start, b.start), min(s.stop, b.stop))
                    for s, b in zip(span, box, strict=True)
                )
                yield here, self._decode(key, at, parts, here[-3].stop)[_relative(here, span)]

    def _decode(
        self, key: str, at: Index, parts: dict[int, bytes], bands: int
    ) -> NDArray[np.float32]:
        from nec.codec.chunk import decode_parts

        *lead, _, height, width = self._layout.chunk
        try:
            values = decode_parts(parts, self._coding, (math.prod(lead), bands, height, width))
        except ChunkError as error:
            raise self._reader.damaged(key, at, error.what) from error
        return values.reshape((*lead, bands, height, width))


def _relative(inner: Box, outer: Box) -> Box:
    """Return where a box lies in one that holds it."""
    return tuple(
        slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True)
    )


def _add(
    values: NDArray[Any], here: Box, edge: int, corner: list[int], total: NDArray[Any]
) -> None:
    """Add tokens (..., y, x) that lie at `here` to the cells that they fall into.

    Cells are counted from the array's origin, `total` begins at the cell of `corner`.
    """
    target: list[slice] = []
    for axis in (-2, -1):
        tokens = np.arange(here[axis].start, here[axis].stop)
        starts = np.flatnonzero(np.diff(tokens // edge, prepend=-1))
        values = np.add.reduceat(values, starts, axis, dtype=total.dtype)
        first = int(tokens[0]) // edge - corner[axis]
        target.append(slice(first, first + len(starts)))
    total[..., target[0], target[1]] += values


def subset(
    store: CheckedStore, dataset: xr.Dataset, *, bands: int | None, overview: int | None
) -> xr.Dataset:
    """Return a store's first bands, or an overview of it.

    Parameters
    ----------
    store : CheckedStore
        The store.
    dataset : xarray.Dataset
        All of it, as opened.
    bands : int, optional
        How many of the first bands; all by default.
    overview : int, optional
        Edge of a cell, tokens; 1 by default.

    Returns
    -------
    xarray.Dataset
        See `nec.archive.open_store`.

    Raises
    ------
    StoreError
        The store has not as many bands, or the overview is none of `OVERVIEWS`.
    """
    edge = 1 if overview is None else overview
    if not _is_whole(edge) or edge not in OVERVIEWS:
        known = ", ".join(map(str, OVERVIEWS))
        raise StoreError(f"there is no overview={overview!r}", f"choose one of {known}")
    most = dataset.sizes["band"]
    kept = most if bands is None else bands
    if not _is_whole(kept) or not 1 <= kept <= most:
        msg = f"bands={bands!r} is not a number of the {most} bands of {store.name}"
        raise StoreError(msg, f"give 1 to {most}: so many of the first are read")
    edge, kept = int(edge), int(kept)
    result = dataset.isel(band=slice(0, kept))
    for thing in (result, *result.data_vars.values()):
        thing.attrs = {**thing.attrs, "geoemb:dimensions": kept}
    if "embedding" not in dataset:
        if edge > 1:
            msg = f"{store.name} has no `embedding` that overview={edge} could be made of"
            raise StoreError(msg, "open it without: scene_embedding is coarse already")
        return result
    if kept == most and edge == 1:
        return result
    layout, coding = store.arrays["embedding"], stored_codec(store.root, "embedding").coding
    array = SubsetArray(store, layout, coding, bands=kept, overview=edge)
    values = dask.array.from_array(
        array,
        chunks=array.chunks,
        name=False,
        meta=np.empty((0,) * array.ndim, np.float32),
    )
    whole = result["embedding"].variable
    attrs = {**whole.attrs, "cell_methods": "y: x: mean"} if edge > 1 else whole.attrs
    result = result.drop_vars(["embedding", *({"y", "x"} & set(result.coords) if edge > 1 else ())])
    result["embedding"] = xr.Variable(whole.dims, values, attrs, whole.encoding)
    result = result[list(dataset.data_vars)]
    return _on_coarser_grid(result, dataset, edge) if edge > 1 else result


def shares(store: CheckedStore) -> dict[int, dict[int, float]]:
    """Return which share of the bytes of `embedding` a subset needs, by bands and by overview.

    Told by the first shard that is stored, at the bands where segments end; empty where no
    shard is.
    """
    if "embedding" not in store.arrays:
        return {}
    layout, coding = store.arrays["embedding"], stored_codec(store.root, "embedding").coding
    reader = PartReader(store, layout, coding, set())
    for index in np.ndindex(layout.objects):
        heads = sync(reader.heads(layout.key_at(index))).values()
        if heads:
            break
    else:
        return {}
    sizes: Counter[int] = Counter()
    for head in heads:
        sizes.update({part: last - first for part, (first, last) in head.spans.items()})
    total = sum(head.size for head in heads)

    def share(bands: int, overview: int) -> float:
        parts = parts_for(coding, bands, overview)
        return 1 - sum(size for part, size in sizes.items() if part not in parts) / total

    return {bands: {edge: share(bands, edge) for edge in OVERVIEWS} for bands in coding.band_groups}


def _is_whole(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _on_coarser_grid(result: xr.Dataset, dataset: xr.Dataset, edge: int) -> xr.Dataset:
    """Give an overview the coordinates and the transform of its cells."""
    if "spatial:transform" not in dataset.attrs or "spatial_ref" not in dataset.coords:
        return result
    dx, _, left, _, dy, top = dataset.attrs["spatial:transform"]
    dx, dy = dx * edge, dy * edge
    height, width = result.sizes["y"], result.sizes["x"]
    for name, start, step, count in (("y", top, dy, height), ("x", left, dx, width)):
        # Cells at the far edges may be partial: they are as large as the others.
        centres = start + (np.arange(count) + 0.5) * step
        attrs = dict(dataset[name].attrs)
        attrs["long_name"] = f"{attrs['standard_name']} of centres of {edge} x {edge} tokens"
        result = result.assign_coords({name: (name, centres, attrs)})
    reference = dataset["spatial_ref"].copy()
    # A side may be a single cell, whose size no coordinate tells.
    reference.attrs["GeoTransform"] = " ".join(repr(float(v)) for v in (left, dx, 0, top, 0, dy))
    result = result.assign_coords(spatial_ref=reference)
    return result.assign_attrs(
        {
            "spatial:transform": [dx, 0.0, left, 0.0, dy, top],
            "spatial:shape": [height, width],
            "spatial:bbox": [left, top + dy * height, left + dx * width, top],
        }
    )
