"""Publishing: a sealed store copied to object storage, where nobody sees it half there."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nec.archive.creation import read_root
from nec.archive.manifest import read_manifest
from nec.archive.objects import ADDRESSES
from nec.archive.receipts import StoredObject, checked_object
from nec.archive.seal import root_entry
from nec.errors import MissingLibraryError, StoreError

logger = logging.getLogger(__name__)

ROOT = "zarr.json"
# Objects that are sent at once: a shard holds about 100 KB.
_BATCH = 32


@dataclass(frozen=True)
class Publication:
    """What a publication did.

    Attributes
    ----------
    url : str
        Where the store is now.
    objects : int
        Objects of the store, its metadata and manifest included.
    sent : int
        Those that were sent; the others were there.
    bytes : int
        Sent.
    """

    url: str
    objects: int
    sent: int
    bytes: int


def publish(
    store: str | Path,
    url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Publication:
    """Copy a sealed store to an address that fsspec writes to: ``s3://``, ``gs://``, ``memory://``.

    Each object is checked against the manifest before it is sent. The root ``zarr.json``, without
    which there is no store, is sent last and only where none is: a reader finds all of the store
    or none of it, and of two publishers one wins. A publication that was cut short is brought to
    its end by another one, which leaves out what is there in the same size and, where the storage
    tells MD5 digests, with the same one.

    Parameters
    ----------
    store : str or Path
        A sealed store on this machine.
    url : str
        Where it is to be, its own name included.
    storage_options : mapping, optional
        For fsspec, such as ``{"endpoint_url": "https://s3.example.org"}``.
    progress : callable, optional
        Called with the number of objects that are done, and of all.

    Raises
    ------
    StoreError
        The store is not sealed or damaged, or another one is at the address.
    """
    import fsspec

    path, name = Path(store), url.rstrip("/")
    if "://" not in name or name.startswith(("file://", "local://")):
        raise StoreError(f"{url} is a folder of this machine", "copy the store: it is plain files")
    root = read_root(path)
    if "seal" not in root["attributes"]["nec"]:
        raise StoreError(f"{path} is not sealed", "run nec seal, then publish")
    try:
        files, base = fsspec.core.url_to_fs(name, **dict(storage_options or {}))
    except ImportError as error:
        raise MissingLibraryError(f"{name}: {error}", "pip install 'nec[remote]'") from error
    except ValueError as error:  # "Protocol not known: ..."
        raise StoreError(f"{name} is no address to publish at ({error})", ADDRESSES) from error
    own = (path / ROOT).read_bytes()
    _refuse_others(files, base, own, name)
    there = _listed(files, base)
    objects = _objects(path, root)
    if root_entry(root) != objects.pop(ROOT):
        raise StoreError(f"{ROOT} of {path} is not the one that was sealed", "run nec verify")
    if ROOT not in there and (strange := sorted(there.keys() - objects.keys())):
        raise StoreError(
            f"{name} holds what is not of this store, as {strange[0]}",
            "choose another address, or remove what a publication of another store left there",
        )
    lacking = [k for k in objects if not _is_there(path / k, there.get(k), known=ROOT in there)]
    done, sent = len(objects) - len(lacking), 0
    for at in range(0, len(lacking), _BATCH):
        batch = {k: checked_object(path, k, objects[k]) for k in lacking[at : at + _BATCH]}
        files.pipe({f"{base}/{key}": data for key, data in batch.items()})
        sent += sum(map(len, batch.values()))
        done += len(batch)
        if progress is not None:
            progress(done, len(objects) + 1)
    if ROOT not in there:
        try:
            files.pipe_file(f"{base}/{ROOT}", own, mode="create")
        except FileExistsError:
            _refuse_others(files, base, own, name)
        sent += len(own)
        lacking.append(ROOT)
    if progress is not None:
        progress(len(objects) + 1, len(objects) + 1)
    logger.info("published %s to %s: %d objects sent", path, name, len(lacking))
    return Publication(name, len(objects) + 1, len(lacking), sent)


def _refuse_others(files: Any, base: str, own: bytes, name: str) -> None:
    try:
        other = files.cat_file(f"{base}/{ROOT}")
    except FileNotFoundError:
        return
    if other != own:
        raise StoreError(f"another store is at {name}", "choose another address, or remove it")


def _listed(files: Any, base: str) -> dict[str, dict[str, Any]]:
    """Return what is at the address, by key."""
    files.invalidate_cache()
    found = files.find(base, detail=True)
    return {path.removeprefix(base).lstrip("/"): about for path, about in found.items()}


def _is_there(file: Path, about: dict[str, Any] | None, *, known: bool) -> bool:
    """Say whether an object need not be sent; `known`: the store's own root is there already."""
    if about is None or about.get("size") != file.stat().st_size:
        return False
    tag = str(about.get("ETag", "")).strip('"')
    # Tags of parted or encrypted uploads are no MD5.
    if len(tag) == 32 and "-" not in tag:
        return tag == hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    # Where storage tells no digest, an object of the same size may be of another store.
    return known


def _objects(path: Path, root: Mapping[str, Any]) -> dict[str, StoredObject]:
    """List all objects: arrays and metadata, then the manifest that vouches for them."""
    objects, documents = read_manifest(path, root)
    return objects | {key: StoredObject.of(data) for key, data in documents.items()}
