"""What a store consists of at one moment: its objects by their digests, and its documents."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from zarr.core.sync import sync

from nec.archive.creation import read_root, stored_arrays
from nec.archive.layout import ArrayLayout
from nec.archive.manifest import KEY, manifest_documents, read_manifest
from nec.archive.metadata import sha256
from nec.archive.objects import CheckedStore
from nec.archive.receipts import StoredObject
from nec.archive.seal import root_entry, settled_objects, sweep_manifest
from nec.archive.series import TimeStep, is_series, load_step, settle, times_of
from nec.archive.temporaries import locked, tidy
from nec.errors import StoreError

ROOT = "zarr.json"


@dataclass(frozen=True)
class Contents:
    """What a store consists of at one moment.

    Attributes
    ----------
    root : dict
        Its root ``zarr.json``.
    objects : dict of str to StoredObject
        All but the manifest's own, by key.
    documents : dict of str to bytes
        Those of the manifest, its index last.
    steps : tuple of TimeStep
        Times of a series, with their scenes.
    """

    root: dict[str, Any]
    objects: dict[str, StoredObject]
    documents: dict[str, bytes]
    steps: tuple[TimeStep, ...]

    @classmethod
    def of(cls, path: Path, *, allow_failed: bool) -> Self:
        """Take down the finished state of a store on this machine.

        Objects of tasks are not read: their receipts, or the manifest, are believed.

        Raises
        ------
        StoreError
            The store is unfinished, or its metadata or receipts are damaged.
        """
        root = read_root(path)
        if "seal" in root["attributes"]["nec"]:
            return cls._sealed(path, root)
        with locked(path):
            root = read_root(path)
            if "seal" in root["attributes"]["nec"]:
                return cls._sealed(path, root)
            if "tasks" not in root["attributes"]["nec"]:
                raise StoreError(f"{path} is unfinished", "run the same encode again, then commit")
            tidy(path)
            settle(path, root)
            sweep_manifest(path)
            objects, notes = settled_objects(path, root, allow_failed=allow_failed, read=False)
            return cls(root, objects, manifest_documents(objects, notes), _steps(path, root))

    @classmethod
    def _sealed(cls, path: Path, root: dict[str, Any]) -> Self:
        objects, documents = read_manifest(path, root)
        if root_entry(root) != objects[ROOT]:
            raise StoreError(f"{ROOT} of {path} is not the one that was sealed", "run nec verify")
        return cls(root, objects, documents, _steps(path, root))

    @classmethod
    def committed(cls, tip: CheckedStore) -> Self:
        """Take down what a branch holds."""
        objects, documents = sync(tip.manifest())
        steps = sync(tip.steps()) if is_series(tip.root) else []
        return cls(tip.root, objects, documents, tuple(steps))

    @cached_property
    def arrays(self) -> dict[str, ArrayLayout]:
        """Arrays of the store, by name."""
        return stored_arrays(self.root)

    @property
    def scenes(self) -> set[tuple[str, str]]:
        """Days and names of all scenes of a series."""
        return {(step.day, scene.name) for step in self.steps for scene in step.scenes}

    def changed(self, before: "Contents | None") -> set[str]:
        """Keys of what is new, or another than before."""
        if before is None:
            return set(self.objects)
        keys = {k for k, stored in self.objects.items() if before.objects.get(k) != stored}
        # The manifest's entry for the root leaves the seal out.
        return keys | ({ROOT} if before.root != self.root else set())

    def describe(self) -> dict[str, Any]:
        """Say in JSON types what a history shall tell of it."""
        own = self.root["attributes"]["nec"]
        days = [step.day for step in self.steps]
        return {
            "fingerprint": own["fingerprint"],
            "model": own.get("model"),
            "rate": own.get("rate"),
            "sealed": "seal" in own,
            "objects": len(self.objects),
            "manifest": sha256(self.documents[KEY]),
            **({"times": len(days), "last": days[-1]} if days else {}),
        }


def _steps(path: Path, root: dict[str, Any]) -> tuple[TimeStep, ...]:
    if not is_series(root):
        return ()
    steps = (load_step(path, index) for index in range(times_of(root)))
    return tuple(step for step in steps if step is not None)
