"""Where tasks run: threads of this process, or the workers of a Dask cluster."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from nec.archive import StoreWriter, Task
from nec.errors import SchedulerError
from nec.production.job import Job
from nec.production.task import Outcome, Retries, do_task, do_task_elsewhere, packed

# Tasks that wait for each thread that works: enough that none idles, few enough that memory
# stays flat however many there are.
_WAITING = 1
# Seconds to look for a scheduler, and after which to ask it again for its workers.
_PATIENCE = 20
_NEWS = 2


class Engine(Protocol):
    """Runs tasks; at most `capacity` of them should be under way."""

    @property
    def capacity(self) -> int: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def dashboard(self) -> str | None: ...  # noqa: D102

    def submit(self, job: Job, writer: StoreWriter, task: Task) -> "Future[Outcome]":
        """Start a task."""
        ...


@dataclass(frozen=True)
class Threads:
    """Threads of this process, which share the model; each uses one torch thread."""

    executor: Executor
    workers: int
    retries: Retries
    dashboard: str | None = None

    @property
    def capacity(self) -> int:
        """See `Engine`."""
        return self.workers * (1 + _WAITING)

    @property
    def description(self) -> str:
        """What it is, for logs."""
        return f"{self.workers} threads"

    def submit(self, job: Job, writer: StoreWriter, task: Task) -> "Future[Outcome]":
        """See `Engine`."""
        return self.executor.submit(do_task, job, writer, task, self.retries)


class Cluster:
    """Workers of a Dask cluster; they come and go while tasks run.

    Each process loads the model once. A worker that is lost takes nothing with it: the scheduler
    gives its tasks to others, and a task that it had half done left no trace.
    """

    def __init__(self, client: Any, executor: Executor, retries: Retries) -> None:
        self._client = client
        self._executor = executor
        self._retries = retries
        self._last: tuple[StoreWriter, bytes] | None = None
        self._seen: tuple[float, dict[str, Any]] = (-_NEWS, {})

    @property
    def capacity(self) -> int:
        """See `Engine`."""
        threads: int = sum(w["nthreads"] for w in self._workers().values())
        return max(threads, 1) * (1 + _WAITING)

    @property
    def description(self) -> str:
        """What it is, for logs."""
        workers = self._workers()
        threads = sum(w["nthreads"] for w in workers.values())
        address = self._client.scheduler.address
        return f"{len(workers)} workers with {threads} threads at {address}"

    @property
    def dashboard(self) -> str | None:
        """Where the cluster's dashboard is."""
        return str(self._client.dashboard_link) or None

    def _workers(self) -> dict[str, Any]:
        now = time.monotonic()
        if now - self._seen[0] > _NEWS:
            try:
                told = self._client.scheduler_info(n_workers=-1)
            except OSError as error:
                raise SchedulerError(
                    f"the scheduler at {self._client.scheduler.address} is gone ({error})",
                    "start it again, then run again: it goes on where it stopped",
                ) from error
            self._seen = now, dict(told["workers"])
        return self._seen[1]

    def submit(self, job: Job, writer: StoreWriter, task: Task) -> "Future[Outcome]":
        """See `Engine`."""
        if self._last is None or self._last[0] is not writer:
            self._last = (writer, packed(job, writer))
        return self._executor.submit(do_task_elsewhere, self._last[1], task, self._retries)


@contextmanager
def threads(workers: int | None, retries: Retries) -> Iterator[Threads]:
    """Threads until the end of the block; on an error, what has not begun is dropped."""
    if workers is not None and workers < 1:
        raise SchedulerError(f"{workers} workers can do nothing", "give 1 or more, or leave it out")
    count = workers or os.cpu_count() or 1
    executor = ThreadPoolExecutor(count, thread_name_prefix="nec")
    try:
        yield Threads(executor, count, retries)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_torch_thread(*, active: bool) -> Iterator[None]:
    """Give torch one thread while ours share the cores: 2 x 1 beats 1 x 2."""
    if not active:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def cluster(address: str, retries: Retries) -> Iterator[Cluster]:
    """Use a running cluster until the end of the block.

    Raises
    ------
    SchedulerError
        If there is no scheduler at the address.
    """
    import distributed

    connect: Any = distributed.Client  # it has no types
    try:
        client = connect(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SchedulerError(
            f"no Dask scheduler answers at {address} ({error})",
            "start one (dask scheduler) and workers (dask worker ADDRESS)",
        ) from error
    with client:
        # Every call is a task of its own, even where another one has the same arguments.
        executor = client.get_executor(pure=False)
        try:
            yield Cluster(client, executor, retries)
        finally:
            executor.shutdown(wait=False)
