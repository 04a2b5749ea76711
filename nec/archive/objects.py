"""The objects of a store, each checked against its digests as it is fetched, and counted."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from nec.archive.creation import consolidated_document, stored_arrays
from nec.archive.grid import Task
from nec.archive.manifest import KEY, Manifest, check_seal, read_part
from nec.archive.metadata import canonical, parse_root
from nec.archive.receipts import Receipt, StoredObject, receipt_key
from nec.archive.repository import (
    PREFIX,
    Revision,
    RevisionStore,
    is_repository,
    is_revision,
    open_revision,
)
from nec.archive.seal import filled_arrays
from nec.archive.series import TimeStep, step_key, times_of
from nec.archive.shard import damage
from nec.errors import MissingLibraryError, NecError, StoreError

# What stores are addressed by.
ADDRESSES = "give a path, or an address as s3://bucket/store.zarr or https://host/store.zarr"

# Shards kept for the ranges that are asked of them: index and chunks come one by one.
_KEPT = 8
REMEDY = "run nec verify; fetch the object again, or encode the scene again"


@dataclass
class Traffic:
    """What was fetched of a store by this process since it was opened.

    Attributes
    ----------
    requests : int
        Reads of files, or HTTP requests: of whole objects and of ranges alike.
    bytes : int
        What they returned.
    """

    # Only zarr's one event loop counts, so no lock is needed.
    requests: int = 0
    bytes: int = 0


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
    traffic : Traffic, optional
        Where to count; a new one by default, as in every process that the store is sent to.
    """

    def __init__(
        self,
        store: Store,
        root: dict[str, Any],
        manifest: Manifest | None,
        name: str,
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__(store)
        self.root = root
        self._manifest = manifest
        self.name = name
        self.traffic = traffic or Traffic()
        self.arrays = stored_arrays(root)
        self._filled = {array.name: array for array in filled_arrays(root)}
        self._parts: dict[str, dict[str, StoredObject]] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    def _with_store(self, store: Store) -> "CheckedStore":
        return type(self)(store, self.root, self._manifest, self.name, self.traffic)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._store, self.root, self._manifest, self.name)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Fetch an object; StoreError naming store, array and chunk where it is damaged."""
        if key == "zarr.json":  # fetched and checked when the store was opened
            return prototype.buffer.from_bytes(_part(canonical(self.root), byte_range))
        if (document := self._document(key)) is not None:
            return prototype.buffer.from_bytes(_part(canonical(document), byte_range))
        if key.partition("/c/")[0] not in self.arrays or "/c/" not in key:
            data = await self._fetch(key, byte_range)
            return None if data is None else prototype.buffer.from_bytes(data)
        if byte_range is None:
            data = await self.whole(key)
        else:
            # Chunks of one shard are asked for at once: the first to come fetches for all.
            async with self._locks.setdefault(key, asyncio.Lock()):
                data = self._kept.get(key) or await self.whole(key)
                if data is not None:
                    self._keep(key, data)
            self._locks.pop(key, None)
        return None if data is None else prototype.buffer.from_bytes(_part(data, byte_range))

    def _document(self, key: str) -> dict[str, Any] | None:
        """Return an array's or a group's ``zarr.json`` as the checked root has it."""
        name, _, file = key.rpartition("/")
        if file != "zarr.json" or name not in self.root["consolidated_metadata"]["metadata"]:
            return None
        return consolidated_document(self.root, name)

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

    async def whole(self, key: str) -> bytes | None:
        """Fetch an object of an array whole, and check it; None where there is none.

        Raises
        ------
        StoreError
            It is missing, damaged, or another one than was written.
        """
        data = await self._fetch(key)
        expected = await self.expected(key)
        array = self.arrays[key.partition("/c/")[0]]
        where = self.where(key)
        if data is None:
            # Coordinates, the basis and test vectors are there whole from the beginning.
            if expected is not None or (array.name not in self._filled and array.shape):
                raise StoreError(f"{where} is missing", REMEDY)
            return None
        if expected is None and self.sealed:
            raise StoreError(f"{where} is not in the manifest", REMEDY)
        problems = damage(array, data)
        if not problems and expected is not None and StoredObject.of(data) != expected:
            problems = ["object is not the one that was written here: swapped, stale or changed"]
        if problems:
            raise StoreError(f"{where} is damaged: {'; '.join(problems)}", REMEDY)
        return data

    async def raw(self, key: str) -> bytes | None:
        """Fetch an object whole, unchecked; None where there is none."""
        return await self._fetch(key)

    async def keys(self) -> set[str]:
        """List the keys of all objects, those of documents as in a store's folder."""
        return {key async for key in self._store.list()}

    async def span(self, key: str, start: int, stop: int) -> bytes | None:
        """Fetch bytes `start` to `stop` of an object, unchecked; None where there is no object.

        Fewer come where it ends before, and all of it from a server that knows no ranges.
        """
        try:
            return await self._fetch(key, RangeByteRequest(start, stop))
        except Exception as error:
            # HTTP's "range not satisfiable": the object ends before.
            if getattr(error, "status", None) == 416:
                return b""
            raise

    @property
    def sealed(self) -> bool:
        """Whether a manifest vouches for every object: the store is sealed, or a commit."""
        return self._manifest is not None

    async def manifest(self) -> tuple[dict[str, StoredObject], dict[str, bytes]]:
        """Fetch the whole manifest: objects by key, and its own documents, the index last.

        Both are empty where the store has none.
        """
        if self._manifest is None:
            return {}, {}
        keys = [part.key for part in self._manifest.parts]
        found = await asyncio.gather(*map(self._fetch, [*keys, KEY]))
        objects: dict[str, StoredObject] = {}
        for part, data in zip(self._manifest.parts, found, strict=False):
            objects |= read_part(data, part, self.name)
        return objects, {key: data or b"" for key, data in zip([*keys, KEY], found, strict=True)}

    def where(self, key: str) -> str:
        """Name an object of an array in messages."""
        array = self.arrays[key.partition("/c/")[0]]
        return f"{key} ({'shard' if array.shard else 'chunk'} of {array.name}) of {self.name}"

    async def expected(self, key: str) -> StoredObject | None:
        """Say what an object was when it was written; None where nothing vouches for it."""
        if self._manifest is not None:
            part = self._manifest.part_of(key)
            if part is None:
                return None
            # Many shards are in one part: the first to come fetches it for all.
            async with self._locks.setdefault(part.key, asyncio.Lock()):
                if part.key not in self._parts:
                    data = await self._fetch(part.key)
                    self._parts[part.key] = read_part(data, part, self.name)
            return self._parts[part.key].get(key)
        array = self._filled.get(key.partition("/c/")[0])
        task: Task | None = None if array is None else array.task(key)
        data = await self._fetch(receipt_key(task)) if task is not None else None
        if data is None or task is None:
            return None
        receipt = Receipt.from_bytes(data, f"{receipt_key(task)} of {self.name}")
        return receipt.objects.get(key)

    async def steps(self) -> list[TimeStep]:
        """Fetch which scenes each time of a series holds, checked; see `read_steps`."""
        return list(await asyncio.gather(*map(self._step, range(times_of(self.root)))))

    async def _step(self, index: int) -> TimeStep:
        key = step_key(index)
        data = await self._fetch(key)
        if self.sealed:
            expected = await self.expected(key)
            found = None if data is None else StoredObject.of(data)
            if found != expected:
                raise StoreError(f"{key} of {self.name} is not what was sealed", REMEDY)
        return TimeStep(index, "") if data is None else TimeStep.from_bytes(data, index, key)

    async def _fetch(self, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
        return await _fetch(self._store, key, self.traffic, byte_range)


async def _fetch(
    store: Store, key: str, traffic: Traffic, byte_range: ByteRequest | None = None
) -> bytes | None:
    traffic.requests += 1
    buffer = await store.get(key, default_buffer_prototype(), byte_range)
    if buffer is None:
        return None
    traffic.bytes += len(buffer)
    return buffer.to_bytes()


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
    """Open a store's objects for checked reading; see `nec.archive.open_store`."""
    name = str(store)
    bare: Store
    if is_revision(name):
        bare, name = open_revision(Revision.parse(name), storage_options)
    elif "://" in name:
        try:
            bare = FsspecStore.from_url(name, storage_options=storage_options, read_only=True)
        except ImportError as error:  # fsspec's own: "Install s3fs to access S3"
            raise MissingLibraryError(f"{name}: {error}", "pip install 'nec[remote]'") from error
        except ValueError as error:  # "Protocol not known: ..."
            raise StoreError(f"{name} is no address of a store ({error})", ADDRESSES) from error
    else:
        bare = LocalStore(Path(name), read_only=True)
    if isinstance(bare, LocalStore) and not Path(name).is_dir():
        raise StoreError(f"no store at {name}: it has no zarr.json", "check the path")
    return checked(bare, name)


def checked(bare: Store, name: str) -> CheckedStore:
    """Begin to read the objects of a store: its root and the index of its manifest."""
    traffic = Traffic()
    try:
        data = sync(_fetch(bare, "zarr.json", traffic))
    except NecError:
        raise
    except Exception as error:  # clients' errors have no common parent
        raise StoreError(
            f"{name} cannot be reached ({type(error).__name__}: {error})",
            "check the address, --option or storage_options=, and the keys in the environment",
        ) from error
    if data is None:
        remedy = "check the path"
        if isinstance(bare, LocalStore) and is_repository(Path(name)):
            remedy = f"it is an Icechunk repository: open {PREFIX}{name}"
        raise StoreError(f"no store at {name}: it has no zarr.json", remedy)
    root = parse_root(data, name)
    manifest = None
    if "seal" in root["attributes"]["nec"]:
        manifest = check_seal(sync(_fetch(bare, KEY, traffic)), root, name)
    elif isinstance(bare, RevisionStore):
        # A commit never changes, so it has a manifest whether or not the store was sealed.
        index = sync(_fetch(bare, KEY, traffic))
        manifest = None if index is None else Manifest.from_bytes(index, f"{KEY} of {name}")
    return CheckedStore(bare, root, manifest, name, traffic)
