"""Open a store, checked: versions, seal, and every object against its digest as it is read."""

import asyncio
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from nec.archive.creation import stored_arrays
from nec.archive.grid import Task
from nec.archive.manifest import KEY, Manifest, check_seal, read_part
from nec.archive.metadata import parse_root
from nec.archive.receipts import Receipt, StoredObject, receipt_key
from nec.archive.seal import filled_arrays
from nec.archive.shard import damage
from nec.errors import StoreError

logger = logging.getLogger(__name__)

# Shards kept for the ranges that are asked of them: index and chunks come one by one.
_KEPT = 8
_CODED = ("chunks", "shards", "serializer", "compressors", "filters", "preferred_chunks")


class CheckedStore(WrapperStore[Store]):
    """A read-only Zarr store that checks each object against the manifest or its receipt.

    Objects are fetched whole (a shard holds about 100 KB), so one request serves the index and
    all chunks. Of a store that is not sealed, an object without a receipt is checked by its own
    checksums alone.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The store itself, read-only.
    root : dict
        Its root ``zarr.json``.
    manifest : Manifest or None
        None where the store is not sealed.
    name : str
        Path or URL, for messages.
    """

    def __init__(
        self, store: Store, root: dict[str, Any], manifest: Manifest | None, name: str
    ) -> None:
        super().__init__(store)
        self._root = root
        self._manifest = manifest
        self._name = name
        self.arrays = stored_arrays(root)
        self._tasks = {a.key(task): task for a in filled_arrays(root) for task in a.tasks()}
        self._parts: dict[str, dict[str, StoredObject]] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    def _with_store(self, store: Store) -> "CheckedStore":
        return type(self)(store, self._root, self._manifest, self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._store, self._root, self._manifest, self._name)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Fetch an object; StoreError naming store, array and chunk where it is damaged."""
        if key.partition("/c/")[0] not in self.arrays or "/c/" not in key:
            return await self._store.get(key, prototype, byte_range)
        if byte_range is None:
            data = await self._checked(key)
        else:
            # Chunks of one shard are asked for at once: the first to come fetches for all.
            async with self._locks.setdefault(key, asyncio.Lock()):
                data = self._kept.get(key) or await self._checked(key)
                if data is not None:
                    self._keep(key, data)
            self._locks.pop(key, None)
        return None if data is None else prototype.buffer.from_bytes(_part(data, byte_range))

    def _keep(self, key: str, data: bytes) -> None:
        self._kept[key] = data
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Any
    ) -> list[Buffer | None]:
        """Fetch several ranges, each checked as in `get`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def _checked(self, key: str) -> bytes | None:
        data = await _bytes(self._store, key)
        expected = await self._expected(key)
        array = self.arrays[key.partition("/c/")[0]]
        remedy = "run nec verify; fetch the object again, or encode the scene again"
        where = f"{key} ({'shard' if array.shard else 'chunk'} of {array.name}) of {self._name}"
        if data is None:
            if expected is not None:
                raise StoreError(f"{where} is missing", remedy)
            return None
        if expected is None and self._manifest is not None:
            raise StoreError(f"{where} is not in the manifest", remedy)
        problems = damage(array, data)
        if not problems and expected is not None and StoredObject.of(data) != expected:
            problems = ["object is not the one that was written here: swapped, stale or changed"]
        if problems:
            raise StoreError(f"{where} is damaged: {'; '.join(problems)}", remedy)
        return data

    async def _expected(self, key: str) -> StoredObject | None:
        if self._manifest is not None:
            part = self._manifest.part_of(key)
            if part is None:
                return None
            if part.key not in self._parts:
                data = await _bytes(self._store, part.key)
                self._parts[part.key] = read_part(data, part, self._name)
            return self._parts[part.key].get(key)
        task: Task | None = self._tasks.get(key)
        data = await _bytes(self._store, receipt_key(task)) if task is not None else None
        if data is None or task is None:
            return None
        receipt = Receipt.from_bytes(data, f"{receipt_key(task)} of {self._name}")
        return receipt.objects.get(key)


async def _bytes(store: Store, key: str) -> bytes | None:
    buffer = await store.get(key, default_buffer_prototype())
    return None if buffer is None else buffer.to_bytes()


def _part(data: bytes, byte_range: ByteRequest | None) -> bytes:
    match byte_range:
        case RangeByteRequest():
            return data[byte_range.start : byte_range.end]
        case OffsetByteRequest():
            return data[byte_range.offset :]
        case SuffixByteRequest():
            return data[max(0, len(data) - byte_range.suffix) :]
        case _:
            return data


def checked_store(
    store: str | Path, *, storage_options: dict[str, Any] | None = None
) -> CheckedStore:
    """Open a store's objects for checked reading; see `open_store`."""
    name = str(store)
    bare: Store
    if "://" in name:
        bare = FsspecStore.from_url(name, storage_options=storage_options, read_only=True)
    else:
        bare = LocalStore(Path(name), read_only=True)
    remote = not isinstance(bare, LocalStore)
    data = sync(_bytes(bare, "zarr.json")) if remote or Path(name).is_dir() else None
    if data is None:
        raise StoreError(f"no store at {name}: it has no zarr.json", "check the path")
    root = parse_root(data, name)
    manifest = None
    if "seal" in root["attributes"]["nec"]:
        manifest = check_seal(sync(_bytes(bare, KEY)), root, name)
    return CheckedStore(bare, root, manifest, name)


def open_store(store: str | Path, *, storage_options: dict[str, Any] | None = None) -> xr.Dataset:
    """Open a store as `xarray.open_zarr` does, with checks and errors that name what is damaged.

    Parameters
    ----------
    store : str or Path
        A folder, or a URL that fsspec reads.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    xarray.Dataset
        Lazy; `embedding` and `scene_embedding` in float32, NaN where missing.

    Raises
    ------
    StoreError
        At once: no store, an unknown version, damaged metadata, a lost or foreign manifest.
        On reading values: a missing, swapped, stale or damaged object, by its name.
    """
    dataset: xr.Dataset = xr.open_zarr(checked_store(store, storage_options=storage_options))
    for variable in dataset.variables.values():
        # What is written elsewhere is decoded values, not to be quantised a second time.
        for key in _CODED:
            variable.encoding.pop(key, None)
    dataset.encoding["source"] = str(store)
    own = dataset.attrs["nec"]
    if "seal" not in own and ("tasks" not in own or own["tasks"].get("failed")):
        logger.warning(
            "%s is %s: what it lacks reads as missing; run the same encode again",
            store,
            "unfinished" if "tasks" not in own else f"without {own['tasks']['failed']} shards",
        )
    return dataset


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
