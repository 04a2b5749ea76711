"""Open a store, checked: versions, seal, and every object against its digest as it is read."""

import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from nec.archive.objects import checked_store
from nec.archive.repository import PREFIX, Revision, is_revision
from nec.archive.series import TimeStep, is_series
from nec.errors import ChunkError, StoreError

logger = logging.getLogger(__name__)

_CODED = ("chunks", "shards", "serializer", "compressors", "filters", "preferred_chunks")


def open_store(
    store: str | Path,
    *,
    bands: int | None = None,
    overview: int | None = None,
    branch: str | None = None,
    tag: str | None = None,
    snapshot: str | None = None,
    as_of: str | datetime | None = None,
    storage_options: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Open a store as `xarray.open_zarr` does, with checks and errors that name what is damaged.

    With `bands` or `overview`, only the segments of `embedding` that hold them are fetched, by
    byte ranges, and only what is fetched is checked: shard indexes and segments by their own
    checksums, objects by their presence and size.

    Parameters
    ----------
    store : str or Path
        A folder, a URL that fsspec reads, or ``icechunk:LOCATION``, an Icechunk repository that
        `nec.commit` wrote; ``icechunk:LOCATION#tag=NAME`` is a state of it.
    bands : int, optional
        Read the first, most important bands alone: the same values as in the whole store.
    overview : {1, 2, 4, 8, 16, 32, 64}, optional
        Read means over cells of as many tokens along y and x, counted from the array's origin,
        of the embedding decoded from its low spatial frequencies: those with a period of two
        cells or more, and what lies in one segment with them. They come near to the means of
        the whole embedding, and cost a fraction of its bytes. Images of a collection are
        averaged each by itself.
    branch, tag, snapshot : str, optional
        State of a repository: the last of a branch, by default of ``main``, or what a tag or a
        snapshot holds.
    as_of : str or datetime, optional
        The last state of the branch that was committed then or before; ISO 8601, UTC where
        nothing else is said.
    storage_options : dict, optional
        For fsspec, or for Icechunk (see `nec.commit`).

    Returns
    -------
    xarray.Dataset
        Lazy; `embedding` and `scene_embedding` in float32, NaN where missing: in an overview,
        where no token of a cell is valid. An overview has coordinates and a transform of its
        own; cells at the far edges may be partial. `scene_embedding` stays as it is, at the
        wanted bands. ``ds.nec.traffic`` counts requests and bytes.

    Raises
    ------
    StoreError
        At once: no store, an unknown version, damaged metadata, a lost or foreign manifest;
        more bands than there are, or an overview that there is not.
        On reading values: a missing, swapped, stale or damaged object, by its name; with `bands`
        or `overview`, damage of what is needed.
    """
    choices = {"branch": branch, "tag": tag, "snapshot": snapshot, "as_of": as_of}
    if is_revision(str(store)):
        store = str(Revision.parse(str(store)).at(**choices))
    elif said := [key for key, value in choices.items() if value is not None]:
        msg = f"{store} is no repository, so it has no {said[0]}"
        raise StoreError(msg, f"open an Icechunk repository as {PREFIX}LOCATION")
    checked = checked_store(store, storage_options=storage_options)
    try:
        dataset: xr.Dataset = xr.open_zarr(checked, zarr_format=3)
    except ChunkError as error:
        raise StoreError(f"{store} cannot be decoded: {error.what}", error.remedy) from error
    for variable in dataset.variables.values():
        # What is written elsewhere is decoded values, not to be quantised a second time.
        for key in _CODED:
            variable.encoding.pop(key, None)
    own = dataset.attrs["nec"]
    if "seal" not in own and ("tasks" not in own or own["tasks"].get("failed")):
        logger.warning(
            "%s is %s: what it lacks reads as missing; run the same encode again",
            store,
            "unfinished" if "tasks" not in own else f"without {own['tasks']['failed']} shards",
        )
    if bands is not None or overview is not None:
        from nec.archive.subset import subset

        dataset = subset(checked, dataset, bands=bands, overview=overview)
    # Of a repository the snapshot that was read, whatever is committed from now on.
    dataset.encoding |= {"source": checked.name, "traffic": checked.traffic}
    if storage_options:  # for what the accessor reads later
        dataset.encoding["storage_options"] = storage_options
    return dataset


def read_steps(
    store: str | Path, *, storage_options: dict[str, Any] | None = None
) -> list[TimeStep]:
    """Read which scenes the times of a series hold, a request a time.

    Parameters
    ----------
    store : str or Path
        A folder, or a URL that fsspec reads.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    list of TimeStep
        In order of time; a time whose scenes are not known yet holds none.

    Raises
    ------
    StoreError
        There is no store, it is no series, or what it says of its scenes is damaged.
    """
    checked = checked_store(store, storage_options=storage_options)
    if not is_series(checked.root):
        raise StoreError(f"{store} is no series", "its metadata (ds.nec.info) name its sources")
    return sync(checked.steps())


def read_basis(
    store: str | Path, *, storage_options: dict[str, Any] | None = None
) -> NDArray[np.float32]:
    """Read the rotation that a store's vectors are in.

    Parameters
    ----------
    store : str or Path
        A folder, or a URL that fsspec reads.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    ndarray of shape (component, feature), float32
        As it was given to the writer.

    Raises
    ------
    StoreError
        There is no store, it has no basis, or the basis is damaged.
    """
    checked = checked_store(store, storage_options=storage_options)
    if "nec/basis" not in checked.arrays:
        raise StoreError(f"{store} holds no basis", "write it again, with one")
    return np.asarray(zarr.open_array(checked, path="nec/basis", mode="r")[...], np.float32)
