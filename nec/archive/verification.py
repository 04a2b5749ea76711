"""Verification: every byte of a store against its digests, and whatever is wrong by its name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from zarr.core.sync import sync

from nec.archive.creation import (
    child_document,
    consolidated_document,
    read_root,
    stored_arrays,
    stored_codec,
)
from nec.archive.grid import Task
from nec.archive.layout import ArrayLayout
from nec.archive.manifest import KEY, check_seal, read_part
from nec.archive.objects import checked_store
from nec.archive.receipts import FOLDER as RECEIPTS
from nec.archive.receipts import StoredObject, discrepancy, load_receipt, read_object
from nec.archive.repository import is_revision
from nec.archive.seal import filled_arrays, fixed_damage, is_fixed, root_entry, store_keys
from nec.archive.series import Fingerprints, lags, load_step, step_keys
from nec.archive.shard import chunks_of, damage
from nec.archive.temporaries import SUFFIX
from nec.archive.vectors import FOLDER, check_vector
from nec.codec import NecCodec
from nec.errors import ChunkError, NecError, StoreError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store.

    Attributes
    ----------
    store : str
        Path of the store.
    key : str
        The object, as its key in the store: ``embedding/c/0/0/1`` is a shard of `embedding`.
    what : str
        What is wrong, with the chunk where one can be named.
    """

    store: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.store}: {self.key}: {self.what}"


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes
    ----------
    store : str
        Path of the store.
    sealed : bool
        Whether it is sealed.
    objects : int
        Objects that were checked.
    problems : tuple of Problem
        Empty where all is well.
    pending : tuple of str
        Names of tasks that are not done yet (of a store that is not sealed).
    failed : tuple of str
        Names of tasks that failed, with the reason.
    """

    store: str
    sealed: bool
    objects: int
    problems: tuple[Problem, ...]
    pending: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; pending tasks are not wrong."""
        return not self.problems

    def __str__(self) -> str:
        state = "sealed" if self.sealed else f"not sealed, {len(self.pending)} tasks pending"
        lines = [f"{self.store}: {state}, {self.objects} objects, {len(self.problems)} problems"]
        return "\n".join([*lines, *map(str, self.problems)])


class _Check:
    """State of one verification."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path(name)
        self.problems: list[Problem] = []
        self.pending: list[str] = []
        self.failed: list[str] = []
        self.settled: set[Task] = set()

    def blame(self, key: str, what: str) -> None:
        self.problems.append(Problem(self.name, key, what))

    def report(self, sealed: bool, objects: int) -> Report:
        return Report(
            self.name,
            sealed,
            objects,
            tuple(sorted(set(self.problems), key=lambda problem: (problem.key, problem.what))),
            tuple(self.pending),
            tuple(self.failed),
        )


def verify(
    store: str | Path,
    *,
    decode: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Check a store on this machine, or a state of an Icechunk repository, object by object.

    Sealed: each object against the manifest, the manifest against the seal. Not sealed: against
    the receipts, and the metadata against their consolidated copy. Then checksums inside of
    objects, whether each chunk decodes, and whether the test vectors do to their values. Of a
    repository, each object that Icechunk gives against the manifest that was committed with it.

    Parameters
    ----------
    store : str or Path
        The store; or ``icechunk:LOCATION``, with ``#tag=`` and the like where wanted.
    decode : bool, default: True
        Decode every chunk too, and (of a store on this machine) the test vectors.
    storage_options : mapping, optional
        Of a repository, for Icechunk.

    Returns
    -------
    Report
        Nothing is raised for damage: it is listed.

    Raises
    ------
    StoreError
        There is no store at `store`, or it is of a format version that is not known.
    """
    if is_revision(str(store)):
        return _verify_revision(str(store), decode=decode, storage_options=storage_options)
    path = Path(store)
    check = _Check(str(path))
    try:
        root = read_root(path)
    except StoreError as error:
        if not (path / "zarr.json").exists() or "format version" in error.what:
            raise
        check.blame("zarr.json", error.what)
        return Report(str(path), sealed=False, objects=1, problems=tuple(check.problems))
    present = {key for key in store_keys(path) if not key.endswith(SUFFIX)}
    sealed = "seal" in root["attributes"]["nec"]
    expected = _by_manifest(check, root) if sealed else _by_receipts(check, root, present)
    _compare(check, root, expected)
    _metadata(check, root, sealed=sealed)
    _foreign(check, root, expected, present, sealed=sealed)
    if decode:
        _decode(check, root, expected)
    return check.report(sealed, len(present))


def _verify_revision(
    name: str, *, decode: bool, storage_options: Mapping[str, Any] | None
) -> Report:
    options = None if storage_options is None else dict(storage_options)
    try:
        store = checked_store(name, storage_options=options)
    except StoreError as error:
        damaged = [key for key in ("zarr.json", KEY) if error.what.startswith(key)]
        if not damaged:
            raise
        check = _Check(name)
        check.blame(damaged[0], error.what)
        return check.report(False, 1)
    if not store.sealed:
        raise StoreError(f"{store.name} holds no manifest", "commit the store with nec commit")
    check, root = _Check(store.name), store.root
    sealed = "seal" in root["attributes"]["nec"]
    try:
        expected, own = sync(store.manifest())
    except StoreError as error:
        check.blame(KEY, error.what)
        return check.report(sealed, 1)
    arrays, codecs = {a.name: a for a in filled_arrays(root)}, dict(_codecs(check, root))
    for key, stored in expected.items():
        if key == "zarr.json":
            if root_entry(root) != stored:
                check.blame(key, "does not match the manifest")
            continue
        try:
            data = sync(store.raw(key))
        except StoreError as error:
            check.blame(key, error.what)
            continue
        array = arrays.get(key.partition("/c/")[0])
        problem = stored.discrepancy(data)
        if problem:
            inner = damage(array, data) if array is not None and data is not None else []
            check.blame(key, "; ".join([problem, *inner]))
        elif decode and array is not None and data is not None and array.name in codecs:
            for what in _undecodable(array, data, codecs[array.name]):
                check.blame(key, what)
    for key in sync(store.keys()) - expected.keys() - own.keys():
        check.blame(key, "does not belong to the store")
    return check.report(sealed, len(expected) + len(own))


def _by_manifest(check: _Check, root: dict[str, Any]) -> dict[str, StoredObject]:
    try:
        manifest = check_seal(read_object(check.path / KEY), root, str(check.path))
    except StoreError as error:
        check.blame(KEY if error.what.startswith(KEY) else "zarr.json", error.what)
        # Nothing vouches for the objects any more, so their own checksums have to do.
        return {}
    expected: dict[str, StoredObject] = {}
    for part in manifest.parts:
        try:
            expected |= read_part(read_object(check.path / part.key), part, str(check.path))
        except StoreError as error:
            check.blame(part.key, error.what)
    return expected


def _by_receipts(check: _Check, root: dict[str, Any], present: set[str]) -> dict[str, StoredObject]:
    expected: dict[str, StoredObject] = {}
    for key in step_keys(root):
        try:
            load_step(check.path, int(Path(key).stem))
        except StoreError as error:
            check.blame(key, error.what)
    fingerprints = Fingerprints(check.path, root)
    for task in filled_arrays(root)[0].tasks():
        try:
            receipt = load_receipt(check.path, task)
        except StoreError as error:
            check.blame(f"{RECEIPTS}/{task.name}.json", error.what)
            continue
        try:
            fingerprint = fingerprints.of(task)
        except StoreError:  # blamed above
            fingerprint = None
        if receipt is None or receipt.fingerprint != fingerprint:
            check.pending.append(task.name)
        elif receipt.status == "failed":
            check.failed.append(f"{task.name}: {receipt.reason}")
        else:
            check.settled.add(task)
            expected |= receipt.objects
    if KEY in present:
        check.blame(KEY, "is there though the store is not sealed; seal it again")
    return expected


def _compare(check: _Check, root: dict[str, Any], expected: Mapping[str, StoredObject]) -> None:
    arrays = stored_arrays(root)
    for key, stored in expected.items():
        if key == "zarr.json":
            if root_entry(root) != stored:
                check.blame(key, "does not match the manifest")
            continue
        problem = discrepancy(check.path / key, stored)
        if problem:
            array = arrays.get(key.partition("/c/")[0])
            data = read_object(check.path / key)
            inner = damage(array, data) if array is not None and data is not None else []
            check.blame(key, "; ".join([problem, *inner]))


def _metadata(check: _Check, root: dict[str, Any], *, sealed: bool) -> None:
    for name in root["consolidated_metadata"]["metadata"]:
        key, copy = f"{name}/zarr.json", consolidated_document(root, name)
        try:
            own = child_document(check.path, name)
            # An append changes the root first; the next one, or sealing, makes up for it.
            if own != copy and (sealed or not lags(own, copy)):
                check.blame(key, "differs from its consolidated copy in zarr.json")
        except FileNotFoundError:
            check.blame(key, "is missing")
        except StoreError as error:
            check.blame(key, error.what)


def _foreign(
    check: _Check,
    root: dict[str, Any],
    expected: Mapping[str, StoredObject],
    present: set[str],
    *,
    sealed: bool,
) -> None:
    own = {key for key in present if key == KEY or key.startswith("nec/manifest/")}
    if sealed and expected:
        strangers = present - expected.keys() - own
    else:
        # Objects of tasks without a receipt are not committed yet: not wrong, not vouched for.
        tasks = filled_arrays(root)[0].tasks()
        open_tasks = [task for task in tasks if task not in check.settled]
        keys = {array.key(task) for array in filled_arrays(root) for task in open_tasks}
        keys |= expected.keys()
        keys |= {f"{RECEIPTS}/{task.name}.json" for task in tasks}
        strangers = {k for k in present - keys - own if not is_fixed(k, root)}
    for key in strangers:
        check.blame(key, "does not belong to the store")


def _decode(check: _Check, root: dict[str, Any], expected: Mapping[str, StoredObject]) -> None:
    blamed = {problem.key for problem in check.problems}
    filled = filled_arrays(root)
    codecs = dict(_codecs(check, root))
    for array in filled:
        for task in array.tasks() if array.name in codecs else ():
            key = array.key(task)
            data = read_object(check.path / key)
            if data is None or key in blamed:
                continue
            for what in _undecodable(array, data, codecs[array.name]):
                check.blame(key, what)
    for key, problem in fixed_damage(check.path, root):
        if key not in expected:  # a manifest's digests tell already
            check.blame(key, problem)
    _vectors(check, root, codecs)


def _codecs(check: _Check, root: dict[str, Any]) -> Iterator[tuple[str, NecCodec]]:
    for array in filled_arrays(root):
        try:
            yield array.name, stored_codec(root, array.name)
        except ChunkError as error:
            check.blame(f"{array.name}/zarr.json", error.what)


def _vectors(check: _Check, root: dict[str, Any], codecs: Mapping[str, NecCodec]) -> None:
    blamed = {problem.key for problem in check.problems}
    for name, codec in codecs.items():
        folder = f"{FOLDER}/{name}"
        if not {f"{folder}/chunk", f"{folder}/values"} <= stored_arrays(root).keys():
            check.blame(folder, f"the store holds no test vector of {name}")
        elif not any(key.startswith(f"{folder}/") for key in blamed):
            problem = check_vector(check.path, name, codec)
            if problem:
                check.blame(folder, problem)


def _undecodable(array: ArrayLayout, data: bytes, codec: NecCodec) -> Iterator[str]:
    try:
        for index, chunk in chunks_of(array, data):
            where = f"chunk {index} of the shard" if array.shard is not None else "chunk"
            if chunk is None:
                yield f"{where} does not match its checksum"
                continue
            try:
                values = codec.decode_array(chunk, array.chunk)
            except NecError as error:
                yield f"{where} cannot be decoded: {error.what}"
                continue
            if np.shape(values) != array.chunk:
                yield f"{where} decodes to shape {np.shape(values)}"
    except StoreError as error:
        yield error.what
