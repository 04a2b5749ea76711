"""One task from pixels to receipt, with retries; on any thread of any process."""

import logging
import pickle
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from nec.archive import StoreWriter, Task
from nec.archive.temporaries import FATAL
from nec.errors import NecError, SceneReadError, StoreError
from nec.production.features import Size, Stopwatch
from nec.production.job import Job
from nec.production.measures import task_figures
from nec.rotation import rotate

log = logging.getLogger(__name__)

# Jobs that a process keeps unpickled: tasks of one store come one after the other.
_KEPT = 4


@dataclass(frozen=True)
class Retries:
    """How often, and after how long, a reading or writing that failed is tried again.

    Attributes
    ----------
    count : int
        Attempts after the first.
    delay : float
        Seconds before the second attempt; each further one waits four times as long.
    """

    count: int = 2
    delay: float = 0.5

    def seconds(self, attempt: int) -> float:
        """How long to wait after attempt number `attempt`, from 1."""
        return float(self.delay * 4 ** (attempt - 1))


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes
    ----------
    task : Task
    status : {"written", "missing", "failed"}
    reason : str
        Why it failed.
    attempts : int
    size : Size
        What it took in.
    bytes_out : int
        Bytes of its objects.
    seconds : dict of str to float
        Wall clock by stage: read, embed, compress (coding and measuring), write.
    """

    task: Task
    status: str
    reason: str
    attempts: int
    size: Size
    bytes_out: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def passing(error: Exception) -> bool:
    """Whether another attempt may succeed: of reading or writing, not of what was asked for."""
    if is_full(error):
        return False
    return isinstance(error, SceneReadError) or (
        isinstance(error, OSError) and not isinstance(error, NecError)
    )


def is_full(error: BaseException) -> bool:
    """Whether nothing more can be written: no room, or a read-only disk."""
    return isinstance(error, OSError) and error.errno in FATAL


def full(path: Path, error: BaseException) -> StoreError:
    """Return what to raise where nothing more can be written."""
    return StoreError(
        f"{path} cannot be written ({error})",
        "make room, then run again: it goes on where it stopped",
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise StoreError, with the remedy, where the store cannot be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NecError):
            raise
        if is_full(error):
            raise full(path, error) from error
        raise StoreError(
            f"{path} cannot be written ({error})", "choose a folder that may be written to"
        ) from error


def reason_of(error: BaseException) -> str:
    """Say why something failed; an error that nec did not raise goes by its type's name."""
    return str(error) if isinstance(error, NecError) else f"{type(error).__name__}: {error}"


def do_task(job: Job, writer: StoreWriter, task: Task, retries: Retries) -> Outcome:
    """Do a task; what goes wrong is recorded in its receipt, so that others go on.

    Raises
    ------
    StoreError
        The disk is full or read-only: no task can go on.
    """
    size, watch = job.source.size(task), Stopwatch()
    for attempt in range(1, retries.count + 2):
        try:
            status, bytes_out = _encode(job, writer, task, watch)
        except Exception as error:  # whatever a bad scene brings about
            if is_full(error):
                raise full(writer.path, error) from error
            reason = reason_of(error)
            log.warning("task %s of %s failed: %s", task.name, writer.path.name, reason)
            if attempt <= retries.count and passing(error):
                time.sleep(retries.seconds(attempt))
                continue
            _record(writer, task, reason)
            return Outcome(task, "failed", reason, attempt, size, seconds=watch.seconds)
        else:
            return Outcome(task, status, "", attempt, size, bytes_out, watch.seconds)
    raise AssertionError("the last attempt returns")


def _encode(job: Job, writer: StoreWriter, task: Task, watch: Stopwatch) -> tuple[str, int]:
    features = job.source.features(task, watch)
    with watch("compress"):
        embedding = rotate(features, job.compressor.basis)
        if np.isnan(embedding).any(-3).all():
            objects: dict[str, bytes] = {}
            figures: dict[str, Any] = {}
        else:
            pooled = rotate(job.source.pooled(features), job.compressor.basis)
            lone = job.layout.embedding is None
            objects = writer.encode(task, None if lone else embedding, pooled)
            # What is measured is what a reader will get: the coded bytes, decoded.
            decoded = writer.decode(task, objects).reshape(embedding.shape)
            figures = task_figures(features, embedding, decoded, job.tokens_per_chip)
    with watch("write"):
        receipt = writer.commit(task, objects, figures=figures | watch.pixels)
    return receipt.status, sum(map(len, objects.values()))


def _record(writer: StoreWriter, task: Task, reason: str) -> None:
    try:
        writer.fail(task, reason)
    except OSError as error:
        if is_full(error):
            raise full(writer.path, error) from error
        # Without a receipt the task is pending, which is as true.
        log.warning("task %s: its failure cannot be recorded: %s", task.name, error)


class _Jobs:
    """Jobs of this process by their pickled bytes, a few of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[Job, StoreWriter]] = OrderedDict()
        self._lock = Lock()

    def get(self, data: bytes) -> tuple[Job, StoreWriter]:
        with self._lock:
            found = self._kept[data] if data in self._kept else pickle.loads(data)
            self._kept[data] = found
            self._kept.move_to_end(data)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return found


_jobs = _Jobs()


def do_task_elsewhere(data: bytes, task: Task, retries: Retries) -> Outcome:
    """Do a task in a worker's process; `data` is the pickled job and writer, as `packed` makes."""
    job, writer = _jobs.get(data)
    if job.encodes:
        import torch

        torch.set_num_threads(1)  # the worker's threads share the cores: 2 x 1 beats 1 x 2
    return do_task(job, writer, task, retries)


def packed(job: Job, writer: StoreWriter) -> bytes:
    """Pickle a job and its writer for `do_task_elsewhere`; a model goes by its name."""
    return pickle.dumps((job, writer), protocol=pickle.HIGHEST_PROTOCOL)
