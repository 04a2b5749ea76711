"""Receipts: what a producer says of each task, written last, so that a task is done or not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nec.archive.grid import Task
from nec.archive.metadata import canonical, parse_stamped, sha256, stamp
from nec.archive.temporaries import put
from nec.errors import StoreError

FOLDER = "nec/receipts"
Status = Literal["written", "missing", "failed"]


def read_object(path: Path) -> bytes | None:
    """Read an object of a store on this machine; None where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(frozen=True)
class StoredObject:
    """Size in bytes and SHA-256 of one object."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "StoredObject":
        """Measure an object."""
        return cls(len(data), sha256(data))

    def discrepancy(self, data: bytes | None) -> str | None:
        """Say what is wrong with what was found in its place; None where nothing is."""
        if data is None:
            return "object is missing"
        found = StoredObject.of(data)
        if found.size != self.size:
            return f"object has {found.size:,} bytes instead of {self.size:,}"
        if found.sha256 != self.sha256:
            return f"object has SHA-256 {found.sha256[:12]}... instead of {self.sha256[:12]}..."
        return None


@dataclass(frozen=True)
class Receipt:
    """The outcome of one task.

    Attributes
    ----------
    task : Task
        The task.
    status : {"written", "missing", "failed"}
        `missing`: nothing but missing values, so no object. `failed`: to be tried again.
    fingerprint : str
        Of the run.
    objects : dict of str to StoredObject
        By key in the store.
    reason : str
        Why it failed.
    figures : dict
        The producer's own, in JSON types: a resumed run adds them up again.
    """

    task: Task
    status: Status
    fingerprint: str
    objects: Mapping[str, StoredObject] = field(default_factory=dict)
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Key of the receipt in the store."""
        return receipt_key(self.task)

    def to_bytes(self) -> bytes:
        """Serialise the receipt: canonical JSON with its own digest."""
        document = {
            "task": self.task.name,
            "status": self.status,
            "fingerprint": self.fingerprint,
            "objects": {k: {"bytes": o.size, "sha256": o.sha256} for k, o in self.objects.items()},
            "reason": self.reason,
            "figures": dict(self.figures),
        }
        return canonical(stamp(document))

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> "Receipt":
        """Read a receipt; StoreError where it is damaged."""
        document = parse_stamped(data, what)
        try:
            objects = {
                key: StoredObject(entry["bytes"], entry["sha256"])
                for key, entry in document["objects"].items()
            }
            return cls(
                Task.from_name(document["task"]),
                document["status"],
                document["fingerprint"],
                objects,
                document["reason"],
                document["figures"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{what} is no receipt ({error!r})", "remove it and resume") from error

    def save(self, store: Path) -> None:
        """Write the receipt, atomically."""
        put(store / self.key, self.to_bytes())


def receipt_key(task: Task) -> str:
    """Key of a task's receipt in the store."""
    return f"{FOLDER}/{task.name}.json"


def load_receipt(store: Path, task: Task) -> Receipt | None:
    """Read a task's receipt; None where there is none, StoreError where it is damaged."""
    key = receipt_key(task)
    data = read_object(store / key)
    if data is None:
        return None
    receipt = Receipt.from_bytes(data, f"{key} of {store}")
    if receipt.task != task:
        msg = f"{key} of {store} is the receipt of task {receipt.task.name}"
        raise StoreError(msg, "remove it and resume")
    return receipt


def discrepancies(store: Path, receipt: Receipt) -> Iterator[tuple[str, str]]:
    """Compare a receipt's objects with what is there: key, and what is wrong with it."""
    for key, expected in receipt.objects.items():
        problem = discrepancy(store / key, expected)
        if problem:
            yield key, problem


def discrepancy(path: Path, expected: StoredObject) -> str | None:
    """Say what is wrong with one object: missing, of another size, of other content; or None."""
    return expected.discrepancy(read_object(path))


def checked_object(store: Path, key: str, expected: StoredObject) -> bytes:
    """Read an object; StoreError where it is not as it was written."""
    data = read_object(store / key)
    if data is None or StoredObject.of(data) != expected:
        problem = "is missing" if data is None else "is not the object that was written"
        raise StoreError(f"{key} of {store} {problem}", "run nec verify; restore it from a copy")
    return data
