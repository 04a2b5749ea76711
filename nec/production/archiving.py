"""`encode_archive`: many scenes to a folder of stores, a store each."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nec.archive import discard, is_of_earlier_source, is_sealed, seal
from nec.errors import CatalogError, MissingLibraryError, NecError
from nec.model import Model, load_model
from nec.production.encoding import running
from nec.production.filling import Filling, fill, write_path
from nec.production.job import Job, job_of
from nec.production.journal import Journal, Progress
from nec.production.measures import EncodeReport
from nec.production.placement import SeriesSettings
from nec.production.scenes import SceneEntry, find_scenes
from nec.production.series import DayFilling, Unopened, fillings
from nec.production.task import Retries, full, is_full, passing, reason_of

logger = logging.getLogger(__name__)

# Scenes that are opened (their files digested) while tasks of earlier ones are under way.
_AHEAD = 2


@dataclass(frozen=True)
class ArchiveReport:
    """What `encode_archive` did.

    Attributes
    ----------
    folder : Path
        Of the stores.
    stores : dict of str to EncodeReport
        By name of the scene, or of the grid of a series; of those that could be opened and were
        not sealed before.
    sealed : tuple of str
        Scenes that a sealed store held already.
    failures : dict of str to str
        Why, by name of the scene, or of the scene and its shard (``name, shard 0.1``), in a
        series ``grid, day, shard 0.1``; of the catalog, ``catalog``, or with the store that it
        leaves out (``name.zarr, catalog``).
    progress : Progress
        The last state: pixels, bytes and seconds of this run.
    """

    folder: Path
    stores: dict[str, EncodeReport]
    sealed: tuple[str, ...]
    failures: dict[str, str]
    progress: Progress

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def encode_archive(
    source: Any,
    folder: str | Path,
    *,
    model: str | Path | Model = "nec-tiny",
    workers: int | None = None,
    scheduler: str | None = None,
    retries: Retries | None = None,
    log: str | Path | None = None,
    sealing: bool = False,
    catalog: bool = False,
    series: bool = False,
    reuse: str | Path | None = None,
    area: tuple[float, float, float, float] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> ArchiveReport:
    """Encode many scenes to a folder of stores; run again, it does exactly what is missing.

    Either a store a scene; or, as `series`, a store a grid, with scenes along `time`, to which
    later runs append.

    A scene that cannot be read, in whole or in part, is reported, and the others go on. A scene
    whose file has been replaced since a part of it failed is encoded anew; one that was complete
    and has changed since is reported, and its store left as it is.

    Parameters
    ----------
    source : path, sequence of them, or STAC object
        See `find_scenes`.
    folder : path
        Of the stores: ``NAME.zarr`` for each scene.
    model : str, path or Model
    workers, scheduler, retries, progress
        See `nec.encode`.
    log : path, optional
        ``encode.jsonl`` in `folder` by default; see `Journal`.
    sealing : bool
        Seal each store when it is complete.
    catalog : bool
        Write the STAC collection of the folder at the end; see `nec.catalog.build`. What it cannot
        describe counts as a failure; the stores are there all the same.
    series : bool
        Scenes of one grid (one lattice of pixels, and the same whole shards of it) go to one
        store, named by the grid, with a time a day (UTC). Of the scenes of a day, those later by
        name lie on top. A scene without a time of acquisition is reported.
    area : tuple of float, optional
        Left, bottom, right, top in units of the scenes' CRS: the grid of a series is that of the
        whole shards that the area touches, and scenes are cut there, whatever their own size.
    reuse : path, optional
        Folder of stores, not sealed, of an earlier run as series: what is there of the same
        scenes and parameters is taken over, and not computed again.
    **options
        Further ones of `nec.encode`, the same for all scenes; those of a table come first.

    Returns
    -------
    ArchiveReport

    Raises
    ------
    SceneError
        If there is no scene, or two have one name.
    StoreError
        If the disk is full.
    ModelError, SchedulerError
        As `nec.encode`.
    MissingLibraryError
        If STAC is read or written, and pystac is not installed.
    """
    if catalog:
        try:  # before the work
            import nec.catalog  # noqa: F401
        except ModuleNotFoundError as error:
            raise (MissingLibraryError.of(error) or error) from error
    out = write_path(folder)
    scenes = find_scenes(source)
    retries = retries or Retries()
    model = model if isinstance(model, Model) else load_model(model)
    settings = None
    if series:
        used = None if reuse is None else Path(reuse)
        settings = SeriesSettings.of(
            out, model, retries, options, sealing=sealing, reuse=used, area=area
        )
    path = Path(log) if log is not None else out / "encode.jsonl"
    with Journal(len(scenes), progress=progress, log=path) as journal:
        run = _Run(journal, sealing=sealing)
        with running(scheduler, workers, retries) as engine:
            journal.start(engine, model=model.name)
            opened = (
                run.each(_opened_ahead(scenes, out, model, retries, options))
                if settings is None
                else run.series(scenes, settings)
            )
            fill(opened, engine, journal, finished=run.finished)
        last = journal.progress
        journal.write(
            "end",
            scenes=len(scenes),
            stores=len(run.stores) + len(run.sealed),
            failed=last.scenes_failed,
            failures=run.failures,
            pixels=last.pixels,
            bytes_in=last.bytes_in,
            bytes_out=last.bytes_out,
            seconds=round(last.seconds, 3),
        )
    if catalog and (run.stores or run.sealed):
        run.failures |= _undescribed(out, model)
    return ArchiveReport(out, run.stores, tuple(run.sealed), run.failures, last)


class _Run:
    """What a run has come to so far, and what it tells its journal."""

    def __init__(self, journal: Journal, *, sealing: bool) -> None:
        self.journal, self.sealing = journal, sealing
        self.stores: dict[str, EncodeReport] = {}
        self.sealed: list[str] = []
        self.failures: dict[str, str] = {}

    def each(
        self, opened: Iterator[tuple[SceneEntry, "Filling | str | None"]]
    ) -> Iterator[Filling]:
        """Yield the stores of single scenes; note those that there is nothing to do for."""
        for entry, found in opened:
            match found:
                case Filling():
                    yield found
                case str():
                    self.unopened(entry.name, found)
                case None:
                    self.unopened(entry.name, None)

    def series(self, scenes: Sequence[SceneEntry], settings: SeriesSettings) -> Iterator[Filling]:
        """Yield the days of series; note scenes that there is nothing to do for."""
        for found in fillings(scenes, settings, self.stores.__setitem__):
            match found:
                case DayFilling():
                    yield found
                case Unopened(name, reason, counted):
                    self.unopened(name, reason, counted=counted or reason is None)

    def unopened(self, name: str, reason: str | None, *, counted: bool = True) -> None:
        """Note a scene that was not opened: why, or None where a sealed store holds it."""
        told = {"sealed": True} if reason is None else {"reason": reason}
        if reason is None:
            self.sealed.append(name)
        else:
            self.failures[name] = reason
        if counted:
            self.journal.settled(name, bad=reason is not None, opened=False, **told)

    def finished(self, store: Filling, report: EncodeReport) -> None:
        """Note a store, or a day of a series, whose tasks are done."""
        for task, reason in report.failures.items():
            self.failures[f"{store.name}, shard {task}"] = reason
        if not isinstance(store, DayFilling):
            self.stores[store.name] = report
            if self.sealing and not report.failed:
                seal(report.store)
        bad = bool(report.failed)
        self.journal.settled(store.name, bad=bad, scenes=store.count, **report.summary())
        if isinstance(store, DayFilling):
            store.series.settle()


def _undescribed(folder: Path, model: Model) -> dict[str, str]:
    """Write the catalog of a folder; return why what is not in it is not."""
    from nec.catalog import build

    try:
        left_out = build(folder, model=model).left_out
    except CatalogError as error:
        return {"catalog": str(error)}
    return {f"{name}, catalog": reason for name, reason in left_out.items()}


@dataclass(frozen=True)
class _Attempt:
    """A scene that is to be opened, no earlier than `not_before` (monotonic seconds)."""

    entry: SceneEntry
    number: int = 1
    not_before: float = 0.0


def _opened_ahead(
    scenes: Sequence[SceneEntry],
    folder: Path,
    model: Model,
    retries: Retries,
    options: Mapping[str, Any],
) -> Iterator[tuple[SceneEntry, Filling | str | None]]:
    """Open scenes one by one, a few before they are needed.

    One that cannot be read is tried again after the others, so that it holds up none.

    Yields
    ------
    tuple of SceneEntry and Filling, str or None
        What is to be filled; or why the scene cannot be; or None where it is there and sealed.
    """
    queue = deque(_Attempt(entry) for entry in scenes)

    def open_one(attempt: _Attempt) -> Filling | str | _Attempt | None:
        time.sleep(max(0.0, attempt.not_before - time.monotonic()))
        entry = attempt.entry
        try:
            job = job_of(entry.source, model=model, **{**options, **entry.options})
            return _filling(entry, job, folder / f"{entry.name}.zarr")
        except Exception as error:  # whatever a bad scene brings about
            if is_full(error):
                raise full(folder, error) from error
            if not isinstance(error, NecError):
                logger.warning("%s", entry.source, exc_info=True)
            if attempt.number <= retries.count and passing(error):
                later = time.monotonic() + retries.seconds(attempt.number)
                return _Attempt(entry, attempt.number + 1, later)
            return reason_of(error)

    with ThreadPoolExecutor(1, thread_name_prefix="nec-open") as pool:
        waiting: deque[tuple[SceneEntry, Future[Filling | str | _Attempt | None]]] = deque()
        try:
            while queue or waiting:
                while queue and len(waiting) < _AHEAD:
                    attempt = queue.popleft()
                    waiting.append((attempt.entry, pool.submit(open_one, attempt)))
                entry, future = waiting.popleft()
                found = future.result()
                if isinstance(found, _Attempt):
                    queue.append(found)
                else:
                    yield entry, found
        finally:
            pool.shutdown(cancel_futures=True)


def _filling(entry: SceneEntry, job: Job, store: Path) -> Filling | None:
    if is_sealed(store, job.fingerprint_digest):
        seal(store)  # a sealing that was cut short is brought to its end
        return None
    if is_of_earlier_source(store, job.fingerprint_digest, job.attributes):
        logger.warning("%s was replaced after a part of it failed: encoding it anew", entry.source)
        discard(store)
    return Filling(entry.name, job, job.writer(store))
