"""Sealing: receipts become the manifest, and the store never changes again."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nec.archive.creation import (
    child_document,
    consolidated_document,
    read_root,
    stored_arrays,
)
from nec.archive.grid import Task
from nec.archive.layout import ArrayLayout
from nec.archive.manifest import FOLDER, KEY, check_seal, seal_of, write_manifest
from nec.archive.metadata import canonical, root_digest
from nec.archive.receipts import FOLDER as RECEIPTS
from nec.archive.receipts import Receipt, StoredObject, discrepancies, load_receipt, read_object
from nec.archive.series import FOLDER as SCENES
from nec.archive.series import Fingerprints, is_step_key, settle
from nec.archive.shard import damage
from nec.archive.temporaries import locked, put, tidy
from nec.errors import StoreError

logger = logging.getLogger(__name__)

_REMEDY = "resume the run, then run this again"
_CHUNK_KEY = re.compile(r"(?P<array>.+)/c(/[0-9]+)*")


def filled_arrays(root: dict[str, Any]) -> list[ArrayLayout]:
    """List the arrays that tasks fill, as the root's metadata have them."""
    stored = stored_arrays(root)
    return [stored[name] for name in ("embedding", "scene_embedding") if name in stored]


def store_keys(path: Path) -> set[str]:
    """Keys of all files of a store, whatever they are."""
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def is_fixed(key: str, root: dict[str, Any]) -> bool:
    """Whether a key is metadata, a coordinate, a time's scenes or in the subgroup: no task's."""
    folder, _, name = key.rpartition("/")
    if name == "zarr.json":
        return not folder or folder in root["consolidated_metadata"]["metadata"]
    if folder == SCENES:
        return is_step_key(key, root)
    match = _CHUNK_KEY.fullmatch(key)
    filled = {array.name for array in filled_arrays(root)}
    return match is not None and match["array"] in set(stored_arrays(root)) - filled


def root_entry(root: dict[str, Any]) -> StoredObject:
    """Make the manifest's entry for the root: over its canonical JSON without the seal."""
    own = {key: value for key, value in root["attributes"]["nec"].items() if key != "seal"}
    size = len(canonical({**root, "attributes": {**root["attributes"], "nec": own}}))
    return StoredObject(size, root_digest(root, outside=("seal",)))


def seal(store: str | Path, *, allow_failed: bool = False) -> None:
    """Seal a store for publication: it never changes afterwards.

    Every object gets its SHA-256 into a manifest, whose own digest goes into ``zarr.json``.
    Sealing again is harmless; a sealing that was cut short is brought to its end.

    Parameters
    ----------
    store : str or Path
        A store on this machine, all of whose tasks are done.
    allow_failed : bool, default: False
        Seal though tasks failed; they read as missing, and the manifest lists them with the
        reasons.

    Raises
    ------
    StoreError
        Tasks are pending or failed, an object is damaged, or a file does not belong there.
    """
    path = Path(store)
    read_root(path)
    with locked(path):
        _seal(path, allow_failed=allow_failed)


def _seal(path: Path, *, allow_failed: bool) -> None:
    root = read_root(path)
    if "seal" in root["attributes"]["nec"]:
        check_seal(read_object(path / KEY), root, str(path))
        shutil.rmtree(path / RECEIPTS, ignore_errors=True)
        logger.info("%s is sealed already", path)
        return
    tidy(path)
    settle(path, root)
    sweep_manifest(path)
    objects, notes = settled_objects(path, root, allow_failed=allow_failed)
    manifest = write_manifest(path, objects, notes)
    own = {**root["attributes"]["nec"], "seal": seal_of(manifest)}
    root = {**root, "attributes": {**root["attributes"], "nec": own}}
    put(path / "zarr.json", canonical(root))
    shutil.rmtree(path / RECEIPTS)
    logger.info("sealed %s: %d objects, manifest %s", path, len(objects), manifest.sha256)


def sweep_manifest(path: Path) -> None:
    """Remove the manifest that a sealing which was cut short has left."""
    shutil.rmtree(path / FOLDER, ignore_errors=True)
    (path / KEY).unlink(missing_ok=True)


def settled_objects(
    path: Path, root: dict[str, Any], *, allow_failed: bool, read: bool = True
) -> tuple[dict[str, StoredObject], dict[str, Any]]:
    """List every object of an unsealed store all of whose tasks are done; hold its lock.

    Parameters
    ----------
    path : Path
        The store.
    root : dict
        Its root ``zarr.json``.
    allow_failed : bool
        Whether tasks may have failed.
    read : bool, default: True
        Hold the objects of tasks against their receipts; else the receipts are believed.

    Returns
    -------
    dict of str to StoredObject
        By key, metadata included, receipts left out.
    dict
        Notes for the manifest: counts of tasks, and which failed why.

    Raises
    ------
    StoreError
        Tasks are pending or failed, an object is damaged, or a file does not belong there.
    """
    _check_fixed(path, root)
    vouched = Fingerprints(path, root)
    receipts = [_settled(path, task, vouched, allow_failed=allow_failed) for task in _tasks(root)]
    for receipt in receipts if read else ():
        for key, problem in discrepancies(path, receipt):
            raise StoreError(f"{key} of {path}: {problem}", _REMEDY)
    objects = {key: stored for receipt in receipts for key, stored in receipt.objects.items()}
    ours = {receipt.key for receipt in receipts}
    for key in sorted(store_keys(path) - objects.keys() - ours):
        if not is_fixed(key, root):
            raise StoreError(f"{key} does not belong to {path}", "remove it, then run this again")
        objects[key] = StoredObject.of((path / key).read_bytes())
    objects["zarr.json"] = root_entry(root)
    failed = {r.task.name: r.reason for r in receipts if r.status == "failed"}
    statuses = [receipt.status for receipt in receipts]
    counts = {status: statuses.count(status) for status in ("written", "missing", "failed")}
    return objects, {"tasks": counts, "failed": failed}


def _check_fixed(path: Path, root: dict[str, Any]) -> None:
    """Refuse a store of which metadata, a coordinate, the basis or a test vector is damaged."""
    remedy = "restore it from a copy, or encode again"
    for name in root["consolidated_metadata"]["metadata"]:
        try:
            own = child_document(path, name)
        except FileNotFoundError:
            raise StoreError(f"{name}/zarr.json of {path} is missing", remedy) from None
        if own != consolidated_document(root, name):
            raise StoreError(f"{name}/zarr.json of {path} differs from its copy", remedy)
    for key, problem in fixed_damage(path, root):
        raise StoreError(f"{key} of {path} is {problem}", remedy)


def fixed_damage(path: Path, root: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name each object of a coordinate, the basis or a test vector that is not as it was written.

    Yields
    ------
    tuple of str
        Its key, and what it is: missing, or damaged and how.
    """
    filled = {array.name for array in filled_arrays(root)}
    for name, array in stored_arrays(root).items():
        # A scalar is all fill value: it has no object.
        for index in np.ndindex(array.objects) if name not in filled and array.shape else ():
            key = array.key_at(index)
            data = read_object(path / key)
            if data is None:
                yield key, "missing"
            elif problems := damage(array, data):
                yield key, f"damaged: {'; '.join(problems)}"


def _tasks(root: dict[str, Any]) -> list[Task]:
    return filled_arrays(root)[0].tasks()


def _settled(path: Path, task: Task, vouched: Fingerprints, *, allow_failed: bool) -> Receipt:
    receipt = load_receipt(path, task)
    if receipt is None or receipt.fingerprint != vouched.of(task):
        raise StoreError(f"task {task.name} of {path} is not done", _REMEDY)
    if receipt.status == "failed" and not allow_failed:
        msg = f"task {task.name} of {path} failed ({receipt.reason})"
        raise StoreError(msg, "resume the run, or allow failed tasks (allow_failed=True)")
    return receipt
