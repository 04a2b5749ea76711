"""The manifest of a sealed store: size and SHA-256 of every object, in parts."""

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nec.archive.metadata import canonical, parse_stamped, sha256, stamp
from nec.archive.receipts import StoredObject, read_object
from nec.archive.temporaries import put
from nec.codec import FORMAT_VERSION
from nec.errors import StoreError

KEY = "nec/manifest.json"
FOLDER = "nec/manifest"
# Objects in a part: a reader of one shard fetches one part, about 100 KB.
_PART = 1024


@dataclass(frozen=True)
class Part:
    """One part of a manifest: its key, first object's key, and SHA-256."""

    key: str
    first: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Index of the manifest; the parts are read as they are needed.

    Attributes
    ----------
    parts : tuple of Part
        In order of their objects' keys.
    count : int
        Number of objects.
    sha256 : str
        Of the index's bytes; the root ``zarr.json`` holds it as the seal.
    """

    parts: tuple[Part, ...]
    count: int
    sha256: str

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> "Manifest":
        """Read the index; StoreError where it is damaged."""
        document = parse_stamped(data, what)
        try:
            parts = tuple(Part(p["key"], p["first"], p["sha256"]) for p in document["parts"])
            return cls(parts, int(document["objects"]), sha256(data))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{what} is no manifest ({error!r})", "restore it") from error

    def part_of(self, key: str) -> Part | None:
        """Find the part that a key is in, if it is in any."""
        position = bisect.bisect_right([part.first for part in self.parts], key) - 1
        return self.parts[position] if position >= 0 else None

    def keys(self) -> set[str]:
        """Keys of the manifest's own files."""
        return {KEY, *(part.key for part in self.parts)}


def read_part(data: bytes | None, part: Part, store: str) -> dict[str, StoredObject]:
    """Read one part: its objects by key; StoreError where it is missing or damaged."""
    if data is None or sha256(data) != part.sha256:
        problem = "is missing" if data is None else "does not match the digest in the manifest"
        raise StoreError(f"{part.key} of {store} {problem}", "restore it from a copy")
    entries = parse_stamped(data, f"{part.key} of {store}")["objects"]
    return {key: StoredObject(size, digest) for key, (size, digest) in entries.items()}


def check_seal(data: bytes | None, root: Mapping[str, Any], store: str) -> Manifest:
    """Read the manifest that a sealed root names.

    Raises
    ------
    StoreError
        It is missing, damaged, or another one than was sealed.
    """
    remedy = "restore it from a copy of the store"
    if data is None:
        raise StoreError(f"{KEY} of {store} is missing though the store is sealed", remedy)
    manifest = Manifest.from_bytes(data, f"{KEY} of {store}")
    if root["attributes"]["nec"]["seal"] != seal_of(manifest):
        msg = f"zarr.json of {store} has a seal that does not match {KEY}, which is intact"
        raise StoreError(msg, "restore zarr.json and the manifest from one copy")
    return manifest


def seal_of(manifest: Manifest) -> dict[str, Any]:
    """Make the seal that the root ``zarr.json`` holds."""
    return {"manifest": KEY, "sha256": manifest.sha256, "objects": manifest.count}


def manifest_documents(
    objects: Mapping[str, StoredObject], notes: Mapping[str, Any]
) -> dict[str, bytes]:
    """Make a manifest: its parts, then the index, by key.

    Parameters
    ----------
    objects : mapping of str to StoredObject
        By key.
    notes : mapping
        JSON to keep in the index: counts of tasks, failures.
    """
    documents, parts = {}, []
    for number, group in enumerate(_groups(sorted(objects))):
        entries = {key: [objects[key].size, objects[key].sha256] for key in group}
        data = canonical(stamp({"objects": entries}))
        key = f"{FOLDER}/{number}.json"
        documents[key] = data
        parts.append({"key": key, "first": group[0], "sha256": sha256(data)})
    index = {
        "format_version": FORMAT_VERSION,
        "objects": len(objects),
        "bytes": sum(stored.size for stored in objects.values()),
        "parts": parts,
        **notes,
    }
    return {**documents, KEY: canonical(stamp(index))}


def write_manifest(
    store: Path, objects: Mapping[str, StoredObject], notes: Mapping[str, Any]
) -> Manifest:
    """Write the parts, then the index; see `manifest_documents`."""
    documents = manifest_documents(objects, notes)
    for key, data in documents.items():
        put(store / key, data)
    return Manifest.from_bytes(documents[KEY], f"{KEY} of {store}")


def read_manifest(
    store: Path, root: Mapping[str, Any]
) -> tuple[dict[str, StoredObject], dict[str, bytes]]:
    """Read the manifest of a sealed store on this machine.

    Returns
    -------
    dict of str to StoredObject
        All objects but the manifest's own.
    dict of str to bytes
        The documents of the manifest itself, the index last.

    Raises
    ------
    StoreError
        A part is missing or damaged.
    """
    index = read_object(store / KEY)
    manifest = check_seal(index, root, str(store))
    objects: dict[str, StoredObject] = {}
    documents: dict[str, bytes] = {}
    for part in manifest.parts:
        data = read_object(store / part.key)
        objects |= read_part(data, part, str(store))
        documents[part.key] = data or b""
    return objects, {**documents, KEY: index or b""}


def _groups(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _PART):
        yield keys[start : start + _PART]
