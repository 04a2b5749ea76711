"""Fill a store task by task: one put for each object, the receipt last."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.archive.creation import create, serializer_of, stored_arrays
from nec.archive.grid import Task
from nec.archive.layout import ArrayLayout, Layout
from nec.archive.metadata import canonical, merge, stamp_root
from nec.archive.receipts import Receipt, StoredObject, discrepancies, load_receipt
from nec.archive.series import (
    Fingerprints,
    TimeStep,
    append,
    is_series,
    load_step,
    settle,
    unmeasured,
    unsealed,
)
from nec.archive.shard import decode_object, encode_object
from nec.archive.temporaries import locked, put, tidy
from nec.codec import NecCodec
from nec.errors import StoreError

logger = logging.getLogger(__name__)

# Of the root's attributes, what tells people one run from another.
_TOLD = ("model", "rate", "sources", "bands", "scaling", "backend", "precision")
_RESERVED = ("format_version", "fingerprint", "digest", "seal")


class _Own:
    """Fingerprints of the tasks of one time, as this run has it."""

    def __init__(self, step: TimeStep, run: str) -> None:
        self._step = step
        self._run = run

    def of(self, task: Task) -> str:
        return self._step.fingerprint(task, self._run)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say what two runs differ in, of what people set; empty where that is the same."""
    names = [name for name in _TOLD if name in ours and theirs.get(name) != ours[name]]
    return "; ".join(
        f"its {name} is {str(theirs.get(name))[:80]}, this run's {str(ours[name])[:80]}"
        for name in names
    )


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
        step: TimeStep | None = None,
    ) -> None:
        self.path = path
        self.layout = layout
        self.fingerprint = fingerprint
        self.step = step
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
            writer._check_same_run(attributes)
            logger.info("resuming %s", path)
        return writer

    @classmethod
    def of_series(
        cls,
        path: str | Path,
        layout: Layout,
        *,
        days: NDArray[np.datetime64],
        **options: Any,
    ) -> tuple["StoreWriter", dict[np.datetime64, int]]:
        """Open a series for writing: a new one, or an unsealed one that days are appended to.

        Parameters
        ----------
        path : str or Path
            See `create_or_resume`.
        layout : Layout
            Of the series at `days`, see `Layout.of_scene`.
        days : ndarray of datetime64[D]
            Ascending, those of the layout.
        **options
            Further ones of `create_or_resume`; `fingerprint` is that of everything but scenes.

        Returns
        -------
        StoreWriter
            To be bound to one time after the other, with `at`.
        dict of numpy.datetime64 to int
            Index of each day of the store; days before its last that it lacked are not among
            them, see `append`.
        """
        writer = cls.create_or_resume(path, layout, **options)
        index = append(writer.path, days)
        writer.refresh()
        return writer, index

    def refresh(self) -> None:
        """Take the number of times of a series from its store, others may have appended to."""
        arrays = stored_arrays(self._root())
        self.layout = replace(
            self.layout,
            embedding=arrays.get("embedding"),
            scene_embedding=arrays.get("scene_embedding"),
        )

    def at(self, step: TimeStep) -> "StoreWriter":
        """Return the writer of one time of a series alone."""
        return StoreWriter(
            self.path, self.layout, codecs=self._codecs, fingerprint=self.fingerprint, step=step
        )

    def hold(self, step: TimeStep, before: TimeStep | None) -> bool:
        """Say which scenes a time holds; its tasks that see others than before are pending.

        Parameters
        ----------
        step : TimeStep
            As it shall be.
        before : TimeStep or None
            As it was found.

        Returns
        -------
        bool
            False where another producer has changed it since it was found; nothing is done.
        """
        with locked(self.path):
            root = self._root()
            if load_step(self.path, step.index) != before:
                return False
            if step != before:
                if "tasks" in root["attributes"]["nec"]:
                    put(self.path / "zarr.json", canonical(unmeasured(root)))
                put(self.path / step.key, step.to_bytes())
        return True

    def tasks(self) -> list[Task]:
        """List the tasks of this writer: of all times, or of the one that it is bound to."""
        tasks = self.layout.tasks()
        return tasks if self.step is None else [t for t in tasks if t.time == self.step.index]

    def _check_same_run(self, attributes: Mapping[str, Any]) -> None:
        if not (self.path / "zarr.json").exists():
            msg = f"{self.path} is there and is not a nec store"
            raise StoreError(msg, "choose another path")
        root = self._root()
        theirs = root["attributes"]["nec"]["fingerprint"]
        if theirs != self.fingerprint:
            told = _differences(root["attributes"]["nec"], attributes.get("nec", {})) or (
                f"its fingerprint is {str(theirs)[:16]}, this run's {self.fingerprint[:16]}"
            )
            msg = f"{self.path} is of another run: {told}"
            raise StoreError(msg, "choose another path, or remove the store")
        stored = stored_arrays(root)
        metadata = root["consolidated_metadata"]["metadata"]
        for array in self.layout.arrays():
            there = stored.get(array.name)
            if there is not None and is_series(root):
                there = replace(there, shape=(array.shape[0], *there.shape[1:]))
            same = there == array and canonical(self._codecs[array.name].to_dict()) == canonical(
                serializer_of(array, metadata[array.name])
            )
            if not same:
                msg = f"{array.name} of {self.path} has another layout or coding than this run"
                raise StoreError(msg, "choose another path, or remove the store")

    def _root(self) -> dict[str, Any]:
        return unsealed(self.path)

    def _fingerprints(self, root: Mapping[str, Any] | None = None) -> "_Own | Fingerprints":
        if self.step is not None:
            return _Own(self.step, self.fingerprint)
        return Fingerprints(self.path, self._root() if root is None else root)

    def receipts(self) -> dict[Task, Receipt]:
        """Receipts of this run, by task; damaged ones and those of other runs are left out."""
        return self._receipts(self._fingerprints())

    def _receipts(self, fingerprints: "_Own | Fingerprints") -> dict[Task, Receipt]:
        found: dict[Task, Receipt] = {}
        for task in self.tasks():
            try:
                receipt = load_receipt(self.path, task)
            except StoreError as error:
                logger.warning("%s; the task is done again", error.what)
                continue
            if receipt is not None and receipt.fingerprint == fingerprints.of(task):
                found[task] = receipt
        return found

    def pending(self) -> list[Task]:
        """Tasks still to do: without a receipt, failed, or whose objects are not as receipted."""
        receipts = self.receipts()
        todo = []
        for task in self.tasks():
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
        """Decode a task's vectors, of the store's first array, from its coded objects.

        NaN is missing.
        """
        array = next(iter(self.layout.arrays()))
        if array.key(task) not in objects:
            raise StoreError(f"task {task.name} has no {array.name}", "encode one first")
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
            self.fingerprint_of(task),
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
        receipt = Receipt(task, "failed", self.fingerprint_of(task), reason=reason)
        return self._commit(receipt, {})

    def fingerprint_of(self, task: Task) -> str:
        """Return what the receipt of a task has to name: of a series, the scenes that it sees."""
        fingerprint = self._fingerprints().of(task)
        if fingerprint is None:
            msg = f"the scenes of task {task.name} of {self.path} are not known"
            raise StoreError(msg, "say with `hold` which scenes its time holds")
        return fingerprint

    def _commit(self, receipt: Receipt, objects: Mapping[str, bytes]) -> Receipt:
        # Metadata, the scenes of a time and the seal change under the lock alone.
        with locked(self.path, shared=True):
            return self._put(receipt, objects)

    def _put(self, receipt: Receipt, objects: Mapping[str, bytes]) -> Receipt:
        task = receipt.task
        root = self._root()  # sealed or replaced under our hands: refuse
        if Fingerprints(self.path, root).of(task) != receipt.fingerprint:
            msg = f"another run changed the scenes of task {task.name} of {self.path}"
            raise StoreError(msg, "run again: it does what is still to be done")
        try:
            before = load_receipt(self.path, task)
        except StoreError:
            before = None
        if before is not None and before.fingerprint != receipt.fingerprint:
            # It vouches for what is about to go.
            (self.path / before.key).unlink(missing_ok=True)
        elif before is not None:
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
        return self._summary(self.receipts())

    def _summary(self, found: Mapping[Task, Receipt]) -> dict[str, Any]:
        receipts = found.values()
        counts = Counter(receipt.status for receipt in receipts)
        sizes: Counter[str] = Counter({array.name: 0 for array in self.layout.arrays()})
        for receipt in receipts:
            for key, stored in receipt.objects.items():
                sizes[key.split("/", 1)[0]] += stored.size
        tasks = {status: counts[status] for status in ("written", "missing", "failed")}
        return {"tasks": tasks, "payload_bytes": dict(sizes)}

    def finish(self, extra_attributes: Mapping[str, Any] | None = None) -> bool:
        """Write what is known only now into the root's attributes, in one step.

        Counts of tasks and bytes (`summary`) go to the `nec` block by themselves.

        Parameters
        ----------
        extra_attributes : mapping, optional
            Merged into the root attributes, nested mappings too.

        Returns
        -------
        bool
            False of a series that has more times now than this writer knows, or tasks without
            a receipt: another producer is at work on it, who will finish it.
        """
        with locked(self.path):
            root = self._root()
            receipts = self._receipts(self._fingerprints(root))
            if is_series(root):
                settle(self.path, root)
                now = {name: stored_arrays(root).get(name) for name in self._codecs}
                if len(receipts) < len(self.tasks()) or now != {
                    array.name: array for array in self.layout.arrays()
                }:
                    return False
            extra = merge({"nec": self._summary(receipts)}, extra_attributes or {})
            own = {key: value for key, value in extra["nec"].items() if key not in _RESERVED}
            attributes = merge(root["attributes"], {**extra, "nec": own})
            put(self.path / "zarr.json", canonical(stamp_root({**root, "attributes": attributes})))
        tidy(self.path)
        return True
