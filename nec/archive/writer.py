"""Fill a store task by task: one put for each object, the receipt last."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.archive.creation import create, read_root, serializer_of, stored_arrays
from nec.archive.grid import Task
from nec.archive.layout import ArrayLayout, Layout
from nec.archive.metadata import canonical, merge, stamp_root
from nec.archive.receipts import Receipt, StoredObject, discrepancies, load_receipt
from nec.archive.shard import decode_object, encode_object
from nec.archive.temporaries import put, tidy
from nec.codec import NecCodec
from nec.errors import StoreError

logger = logging.getLogger(__name__)

_RESERVED = ("format_version", "fingerprint", "digest", "seal")


class StoreWriter:
    """Writer of one store; safe to share between threads, and to pickle to other processes.

    Made by `create_or_resume`. Two writers of the same fingerprint may fill one store at once:
    they write the same bytes.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        *,
        codecs: Mapping[str, NecCodec],
        fingerprint: str,
    ) -> None:
        self.path = path
        self.layout = layout
        self.fingerprint = fingerprint
        self._codecs = dict(codecs)

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        layout: Layout,
        *,
        codec: NecCodec | None,
        scene_codec: NecCodec | None,
        attributes: Mapping[str, Any],
        basis: NDArray[np.float32] | None,
        fingerprint: str,
    ) -> "StoreWriter":
        """Open a store for writing: a new one, or an unsealed one of the same run.

        Parameters
        ----------
        path : str or Path
            Folder on this machine. A new store appears there at once and complete in its
            metadata.
        layout : Layout
            What lies in the store.
        codec, scene_codec : NecCodec
            Of `embedding` and of `scene_embedding`; None where the layout lacks the array.
        attributes : mapping
            Root attributes, with a block `nec` (`model`, `basis` hash, ...).
        basis : ndarray of shape (component, feature), float32, or None
            The rotation that `embedding` is in.
        fingerprint : str
            Names the run: sources, weights, parameters, precision. Equal ones resume.

        Raises
        ------
        StoreError
            The folder is no nec store, sealed, damaged, or of another fingerprint or layout.
        """
        if "://" in str(path):
            raise StoreError(f"{path} is not a local path", "write to a local folder and upload it")
        path = Path(path)
        pairs = {"embedding": codec, "scene_embedding": scene_codec}
        codecs = {a.name: c for a in layout.arrays() if (c := pairs[a.name]) is not None}
        for array in layout.arrays():
            if array.name not in codecs:
                raise StoreError(f"{path}: no codec for {array.name}", "pass one")
        writer = cls(path, layout, codecs=codecs, fingerprint=fingerprint)
        vacant = not path.exists() or (path.is_dir() and next(path.iterdir(), None) is None)
        made = vacant and create(
            path,
            layout,
            codecs=codecs,
            attributes=attributes,
            basis=basis,
            fingerprint=fingerprint,
        )
        if not made:
            writer._check_same_run()
            logger.info("resuming %s", path)
        return writer

    def _check_same_run(self) -> None:
        if not (self.path / "zarr.json").exists():
            msg = f"{self.path} is there and is not a nec store"
            raise StoreError(msg, "choose another path")
        root = self._root()
        theirs = root["attributes"]["nec"]["fingerprint"]
        if theirs != self.fingerprint:
            msg = (
                f"{self.path} is of another run: its fingerprint is {str(theirs)[:16]}, "
                f"this run's {self.fingerprint[:16]}"
            )
            raise StoreError(msg, "choose another path, or remove the store")
        stored = stored_arrays(root)
        metadata = root["consolidated_metadata"]["metadata"]
        for array in self.layout.arrays():
            same = stored.get(array.name) == array and canonical(
                self._codecs[array.name].to_dict()
            ) == canonical(serializer_of(array, metadata[array.name]))
            if not same:
                msg = f"{array.name} of {self.path} has another layout or coding than this run"
                raise StoreError(msg, "choose another path, or remove the store")

    def _root(self) -> dict[str, Any]:
        root = read_root(self.path)
        if "seal" in root["attributes"]["nec"]:
            raise StoreError(f"{self.path} is sealed: it never changes", "choose another path")
        return root

    def receipts(self) -> dict[Task, Receipt]:
        """Receipts of this run, by task; damaged ones and those of other runs are left out."""
        found: dict[Task, Receipt] = {}
        for task in self.layout.tasks():
            try:
                receipt = load_receipt(self.path, task)
            except StoreError as error:
                logger.warning("%s; the task is done again", error.what)
                continue
            if receipt is not None and receipt.fingerprint == self.fingerprint:
                found[task] = receipt
        return found

    def pending(self) -> list[Task]:
        """Tasks still to do: without a receipt, failed, or whose objects are not as receipted."""
        receipts = self.receipts()
        todo = []
        for task in self.layout.tasks():
            receipt = receipts.get(task)
            if receipt is None or receipt.status == "failed":
                todo.append(task)
                continue
            for key, problem in discrepancies(self.path, receipt):
                logger.warning("%s of %s: %s; the task is done again", key, self.path, problem)
                todo.append(task)
                break
        return todo

    def write(
        self,
        task: Task,
        embedding: NDArray[np.float32] | None,
        scene_embedding: NDArray[np.float32] | None,
        *,
        figures: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Code and commit a task.

        Parameters
        ----------
        task : Task
            The task.
        embedding, scene_embedding : ndarray of float32, or None
            The task's part of each array, cut at the array's end, NaN where missing; the
            leading `time` may be left out. None, or nothing but NaN: nothing is stored.
        figures : mapping, optional
            JSON values to keep in the receipt, to be added up when all tasks are done.

        Returns
        -------
        Receipt
            Its status is `missing` where nothing was stored.

        Raises
        ------
        StoreError
            The shape does not fit, or the store already holds other bytes for this task.
        """
        return self.commit(task, self.encode(task, embedding, scene_embedding), figures=figures)

    def encode(
        self,
        task: Task,
        embedding: NDArray[np.float32] | None,
        scene_embedding: NDArray[np.float32] | None,
    ) -> dict[str, bytes]:
        """Code a task to the bytes of its objects, by key; see `write`."""
        parts = {"embedding": embedding, "scene_embedding": scene_embedding}
        objects: dict[str, bytes] = {}
        for array in self.layout.arrays():
            data = self._encode(array, task, parts.pop(array.name))
            if data is not None:
                objects[array.key(task)] = data
        if left := [name for name, values in parts.items() if values is not None]:
            raise StoreError(f"{self.path} has no {left[0]}", "pass None for it")
        return objects

    def decode(self, task: Task, objects: Mapping[str, bytes]) -> NDArray[np.float32]:
        """Decode a task's `embedding` from its coded objects, NaN where missing."""
        array = self.layout.embedding
        if array is None or array.key(task) not in objects:
            raise StoreError(f"task {task.name} has no embedding", "encode one first")
        decode = self._codecs[array.name].decode_array
        return decode_object(array, objects[array.key(task)], array.region(task), decode)

    def commit(
        self,
        task: Task,
        objects: Mapping[str, bytes],
        *,
        figures: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Put a task's coded objects, and its receipt last; see `write`."""
        receipt = Receipt(
            task,
            "written" if objects else "missing",
            self.fingerprint,
            {key: StoredObject.of(data) for key, data in objects.items()},
            figures=figures or {},
        )
        return self._commit(receipt, objects)

    def _encode(
        self, array: ArrayLayout, task: Task, values: NDArray[np.float32] | None
    ) -> bytes | None:
        if values is None:
            return None
        region = array.region(task)
        if array.dims[0] == "time" and values.ndim == len(region) - 1:
            values = values[np.newaxis]
        if values.shape != region:
            msg = f"task {task.name} of {array.name} has shape {values.shape}, not {region}"
            raise StoreError(msg, "pass the task's part of the array")
        return encode_object(array, values, self._codecs[array.name].encode_array)

    def fail(self, task: Task, reason: str) -> Receipt:
        """Record that a task failed; it is pending again in the next run."""
        receipt = Receipt(task, "failed", self.fingerprint, reason=reason)
        return self._commit(receipt, {})

    def _commit(self, receipt: Receipt, objects: Mapping[str, bytes]) -> Receipt:
        task = receipt.task
        self._root()  # sealed or replaced under our hands: refuse
        try:
            before = load_receipt(self.path, task)
        except StoreError:
            before = None
        if before is not None and before.fingerprint == self.fingerprint:
            intact = before.status != "failed" and not any(discrepancies(self.path, before))
            if intact and (receipt.status == "failed" or before.objects == receipt.objects):
                return before  # another producer was there first
            if intact:
                msg = f"task {task.name} of {self.path} is already there with other content"
                raise StoreError(
                    msg, "same fingerprint, different bytes: is the run deterministic?"
                )
        for array in self.layout.arrays():
            if (key := array.key(task)) not in objects:
                (self.path / key).unlink(missing_ok=True)
        for key, data in objects.items():
            put(self.path / key, data)
        receipt.save(self.path)
        return receipt

    def summary(self) -> dict[str, Any]:
        """Count tasks by status, and the bytes of objects by array."""
        receipts = self.receipts().values()
        counts = Counter(receipt.status for receipt in receipts)
        sizes: Counter[str] = Counter({array.name: 0 for array in self.layout.arrays()})
        for receipt in receipts:
            for key, stored in receipt.objects.items():
                sizes[key.split("/", 1)[0]] += stored.size
        tasks = {status: counts[status] for status in ("written", "missing", "failed")}
        return {"tasks": tasks, "payload_bytes": dict(sizes)}

    def finish(self, extra_attributes: Mapping[str, Any] | None = None) -> None:
        """Write what is known only now into the root's attributes, in one step.

        Counts of tasks and bytes (`summary`) go to the `nec` block by themselves.

        Parameters
        ----------
        extra_attributes : mapping, optional
            Merged into the root attributes, nested mappings too.
        """
        extra = merge({"nec": self.summary()}, extra_attributes or {})
        own = {key: value for key, value in extra["nec"].items() if key not in _RESERVED}
        root = self._root()
        attributes = merge(root["attributes"], {**extra, "nec": own})
        put(self.path / "zarr.json", canonical(stamp_root({**root, "attributes": attributes})))
        tidy(self.path)
