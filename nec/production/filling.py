"""Stores filled task by task, a bounded number of tasks under way at any time."""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nec.archive import StoreWriter, Task
from nec.archive.state import is_sealed
from nec.errors import StoreError
from nec.production.engine import Engine
from nec.production.job import Job
from nec.production.journal import Journal
from nec.production.measures import EncodeReport, report
from nec.production.task import Outcome, reason_of, writing

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Filling:
    """A store that is being filled.

    Attributes
    ----------
    name : str
        Of the scene, for the log.
    job : Job
    writer : StoreWriter
    pending : list of Task
        What is not done yet.
    """

    name: str
    job: Job
    writer: StoreWriter
    pending: list[Task] = field(init=False)
    resumed: int = field(init=False)
    left: int = field(init=False)
    # Scenes that go as one.
    count: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        self.pending = self.writer.pending()
        self.left = len(self.pending)
        self.resumed = len(self.writer.tasks()) - self.left

    def announce(self, journal: Journal) -> None:
        """Tell the journal of the store."""
        sizes = {task: self.job.source.size(task).pixels for task in self.writer.tasks()}
        journal.opened(
            self.name,
            tasks=self.resumed + self.left,
            done=self.resumed,
            pixels=sum(sizes.values()),
            pending=sum(sizes[task] for task in self.pending),
            scenes=self.count,
        )

    def finish(self) -> EncodeReport:
        """Add up the receipts, and write what the store says of itself."""
        outcome = report(self.writer, self.writer.path, self.resumed)
        if finish(self.writer, measured(outcome)) and outcome.vectors == 0 and not outcome.failed:
            log.warning("%s holds no valid vector: the source is all nodata", self.writer.path)
        return outcome


def finish(writer: StoreWriter, own: Mapping[str, Any]) -> bool:
    """Write what a store says of itself; False where another producer of the run finishes it.

    Raises
    ------
    StoreError
        Another run has sealed it.
    """
    try:
        with writing(writer.path):
            return writer.finish({"nec": own})
    except StoreError:
        if not is_sealed(writer.path, writer.fingerprint):
            raise
        log.info("%s was sealed by another producer of this run", writer.path)
        return False


def fill(
    stores: Iterable[Filling],
    engine: Engine,
    journal: Journal,
    *,
    finished: Callable[[Filling, EncodeReport], None],
) -> None:
    """Fill stores, one after the other, each task as soon as a thread is free.

    Parameters
    ----------
    stores : iterable of Filling
        Taken one by one, as the tasks of those before are under way.
    engine : Engine
    journal : Journal
    finished : callable
        Called with a store and its report when its last task is done.

    Raises
    ------
    StoreError
        No task can go on, as on a full disk. What is done stays done.
    """
    under_way: dict[Future[Outcome], tuple[Filling, Task]] = {}

    def settle(*, least: int) -> None:
        """Wait until no more than `least` tasks are under way."""
        while len(under_way) > least:
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                store, task = under_way.pop(future)
                journal.did(store.name, _outcome(future, store, task))
                store.left -= 1
                if not store.left:
                    finished(store, store.finish())

    for store in stores:
        store.announce(journal)
        if not store.left:
            finished(store, store.finish())
        for task in store.pending:
            settle(least=engine.capacity - 1)
            under_way[engine.submit(store.job, store.writer, task)] = (store, task)
    settle(least=0)


def _outcome(future: "Future[Outcome]", store: Filling, task: Task) -> Outcome:
    """Return what became of a task; a worker that is lost too often is a failure like others."""
    try:
        return future.result()
    except StoreError:
        raise
    except (Exception, CancelledError) as error:
        reason = f"lost with its worker: {reason_of(error)}"
        log.warning("task %s of %s: %s", task.name, store.name, reason)
        with writing(store.writer.path):
            store.writer.fail(task, reason)
        return Outcome(task, "failed", reason, 1, store.job.source.size(task))


def write_path(path: str | Path) -> Path:
    """Return a local path; StoreError for a URL, which stores are not written to."""
    if "://" in str(path):
        raise StoreError(f"{path} is not a local path", "write to a local folder and upload it")
    return Path(path)


def measured(outcome: EncodeReport) -> dict[str, Any]:
    """Return what a store says of itself when a run ends, in JSON types."""
    own: dict[str, Any] = {
        "cosine": {
            "mean": outcome.cosine_mean,
            "p01": outcome.cosine_p01,
            "min": outcome.cosine_min,
        },
        "vectors": outcome.vectors,
        "bytes_per_vector": sum(outcome.payload_bytes.values()) / max(outcome.vectors, 1),
    }
    if outcome.seam:
        own["seam"] = outcome.seam
    if outcome.masked_fraction is not None:
        own["masked_fraction"] = outcome.masked_fraction
    return dict(_without_nan(own))


def _without_nan(value: Any) -> Any:
    """Return JSON types with NaN as None and floats rounded to what is significant."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value
