"""Scenes of many days to series: a store a grid, along `time`; days appended, one after another."""

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from nec.archive import (
    Contributor,
    Layout,
    Receipt,
    StoreWriter,
    TimeStep,
    TokenGrid,
    is_sealed,
    seal,
)
from nec.archive.adoption import adopt
from nec.archive.creation import read_root
from nec.archive.series import FOLDER as SCENES
from nec.archive.series import load_step, stored_days
from nec.codec import NecCodec
from nec.errors import NecError, StoreError
from nec.production.contributors import merged
from nec.production.features import SceneFeatures
from nec.production.filling import Filling, finish, measured
from nec.production.job import Job, own_attributes
from nec.production.measures import EncodeReport, masked_fraction, report
from nec.production.placement import PlacedScene, SeriesSettings, place_scenes
from nec.production.scenes import SceneEntry
from nec.production.task import full, is_full, passing, reason_of
from nec.scene import Mosaic, Scene
from nec.scene.grids import ground_sampling_distance

logger = logging.getLogger(__name__)

# Days that are opened (their files digested) while tasks of earlier ones are under way.
_AHEAD = 2
# How often the scenes of a day are merged anew because another producer came between.
_TURNS = 5


@dataclass(frozen=True)
class Unopened:
    """A scene that is not encoded: why, or None where a sealed store holds just that already.

    `counted` is False of a scene that the run was not asked for.
    """

    scene: str
    reason: str | None
    counted: bool = True


@dataclass(frozen=True, eq=False)
class _Opened:
    """A scene that is ready to be read, at an offset in its grid, with its files' versions."""

    scene: Scene
    contributor: Contributor
    offset: tuple[int, int]
    versions: tuple[tuple[str, int, int], ...]


@dataclass(eq=False)
class Series:
    """One store of a run: a grid, and the scenes of its days.

    Attributes
    ----------
    grid : TokenGrid
    days : dict of numpy.datetime64 to list of PlacedScene
        In order of time; scenes by name.
    whole : bool
        Whether no scene that may be of it was left out so far: else it stays open for these.
    """

    grid: TokenGrid
    days: dict[np.datetime64, list[PlacedScene]]
    settings: SeriesSettings
    closed: Callable[[str, EncodeReport], None]
    whole: bool = True
    writer: StoreWriter | None = field(default=None, init=False)
    index: dict[np.datetime64, int] = field(default_factory=dict, init=False)
    left: int = field(init=False)
    resumed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.left = len(self.days)

    @property
    def name(self) -> str:
        """Name of the store, without suffix."""
        return self.grid.name

    @property
    def path(self) -> Path:
        """Path of the store."""
        return self.settings.folder / f"{self.name}.zarr"

    @cached_property
    def gsd(self) -> float:
        """Ground sampling distance at the centre of the grid, metres: the same for all scenes."""
        grid = self.grid
        shape = (grid.shape[0] * grid.patch, grid.shape[1] * grid.patch)
        affine = Affine(grid.pixel[0], 0, grid.origin[0], 0, -grid.pixel[1], grid.origin[1])
        return round(ground_sampling_distance(GeoBox(shape, affine, grid.crs_wkt)), 4)

    def settle(self) -> None:
        """Say that a day is at its end; after the last one the store is finished."""
        self.left -= 1
        if self.left or self.writer is None:
            return
        writer = self.writer
        writer.refresh()  # others may have appended meanwhile
        outcome = report(writer, self.path, self.resumed)
        by_time: dict[int, list[Receipt]] = {task.time: [] for task in writer.tasks()}
        for task, receipt in writer.receipts().items():
            by_time[task.time].append(receipt)
        own = measured(outcome)
        own["masked_fraction"] = [masked_fraction(by_time[at]) for at in sorted(by_time)]
        finished = finish(writer, own)
        self.closed(self.name, outcome)
        if finished and self.settings.sealing and not outcome.failed:
            if self.whole:
                seal(self.path)
            else:
                logger.warning(
                    "%s is not sealed: scenes of this run are not in it; run again when they can "
                    "be read, or seal it as it is with nec seal",
                    self.path,
                )


class DayFilling(Filling):
    """A day of a series that is being filled."""

    def __init__(
        self, series: Series, job: Job, writer: StoreWriter, scenes: tuple[str, ...]
    ) -> None:
        assert writer.step is not None
        self.series = series
        self.scenes = scenes
        super().__init__(f"{series.name}, {writer.step.day}", job, writer)
        self.count = len(scenes)
        self.waits = self._leave_to_others(writer.step)

    def _leave_to_others(self, step: TimeStep) -> set[str]:
        """Drop tasks that need a scene which this run does not bring; return these scenes."""
        waits: set[str] = set()
        for task in list(self.pending):
            needed = {scene.name for scene in step.scenes if task.place in scene.shards}
            if absent := needed - set(self.scenes):
                waits |= absent
                self.pending.remove(task)
        self.left = len(self.pending)
        return waits

    def finish(self) -> EncodeReport:
        """Add up the receipts of the day; the store is finished after its last day."""
        self.series.resumed += self.resumed
        return report(self.writer, self.writer.path, self.resumed)


def fillings(
    scenes: Sequence[SceneEntry],
    settings: SeriesSettings,
    closed: Callable[[str, EncodeReport], None],
) -> Iterator[DayFilling | Unopened]:
    """Open series by series, day by day, a few days before they are needed.

    Parameters
    ----------
    scenes : sequence of SceneEntry
    settings : SeriesSettings
    closed : callable
        Called with the name of a store and its report when its last day is done.
    """
    placed, failures = place_scenes(scenes, settings)
    for name, reason in failures.items():
        yield Unopened(name, reason)
    queue: deque[tuple[Series, np.datetime64]] = deque()
    for grid, members in placed.values():
        days: dict[np.datetime64, list[PlacedScene]] = {}
        for scene in sorted(members, key=lambda scene: (scene.day, scene.entry.name)):
            days.setdefault(scene.day, []).append(scene)
        # A scene that could not be placed may be of any of them.
        series = Series(grid, days, settings, closed, whole=not failures)
        queue.extend((series, day) for day in days)
    with ThreadPoolExecutor(1, thread_name_prefix="nec-open") as pool:
        waiting: deque[tuple[Series, Future[list[DayFilling | Unopened]]]] = deque()
        try:
            while queue or waiting:
                while queue and len(waiting) < _AHEAD:
                    series, day = queue.popleft()
                    waiting.append((series, pool.submit(_open_day, series, day)))
                series, future = waiting.popleft()
                found = future.result()
                yield from found
                left_out = (i for i in found if isinstance(i, Unopened) and i.counted and i.reason)
                series.whole = series.whole and not any(left_out)
                if not any(isinstance(item, DayFilling) for item in found):
                    series.settle()
        finally:
            pool.shutdown(cancel_futures=True)


def _open_day(series: Series, day: np.datetime64) -> list[DayFilling | Unopened]:
    members = series.days[day]
    names = tuple(scene.entry.name for scene in members)
    try:
        if is_sealed(series.path):
            return _compare_sealed(series, day)
        return _open_unsealed(series, day)
    except Exception as error:  # whatever is wrong with this store, or this day of it
        if is_full(error):
            raise full(series.path, error) from error
        if not isinstance(error, NecError):
            logger.warning("%s of %s", day, series.name, exc_info=True)
        return [Unopened(name, reason_of(error)) for name in names]


def _compare_sealed(series: Series, day: np.datetime64) -> list[DayFilling | Unopened]:
    """Say of each scene of a day whether a sealed store holds just that."""
    own = read_root(series.path)["attributes"]["nec"]
    bands = own["bands"]
    index = {known: at for at, known in enumerate(stored_days(series.path))}
    step = load_step(series.path, index[day]) if day in index else None
    held = {} if step is None else {scene.name: scene.digest for scene in step.scenes}
    same = own["fingerprint"] == _fingerprint(series, bands)
    found: list[DayFilling | Unopened] = []
    for placed in series.days[day]:
        name = placed.entry.name
        opened = _opened(series, placed, bands)
        if isinstance(opened, str):
            reason: str | None = opened
        elif same and held.get(name) == opened.contributor.digest:
            reason = None
        else:
            reason = (
                f"{series.path} is sealed and holds other scenes or another coding of {day}; "
                "encode what is new to another folder: xarray.concat joins stores of one grid "
                "along time"
            )
        found.append(Unopened(name, reason))
    return found


def _open_unsealed(series: Series, day: np.datetime64) -> list[DayFilling | Unopened]:
    bands = _bands(series)
    if series.writer is None:
        series.writer, series.index = _writer(series, bands)
    writer, members = series.writer, series.days[day]
    if day not in series.index:
        reason = (
            f"{day} comes before {max(series.index)}, the last day of {series.path}, which keeps "
            "its order; encode all scenes to another folder with --reuse (reuse=): nothing that "
            "is there is computed again"
        )
        return [Unopened(scene.entry.name, reason) for scene in members]
    found: list[DayFilling | Unopened] = []
    opened: dict[str, _Opened] = {}
    for placed in members:
        result = _opened(series, placed, bands)
        if isinstance(result, str):
            found.append(Unopened(placed.entry.name, result))
        else:
            opened[placed.entry.name] = result
    step, refused = _hold(writer, series.index[day], day, opened)
    found += [Unopened(name, reason) for name, reason in refused.items()]
    digests = {scene.name: scene.digest for scene in step.scenes}
    here = {
        name: one
        for name, one in sorted(opened.items())
        if digests.get(name) == one.contributor.digest
    }
    bound = writer.at(step)
    if not here:
        if not step.scenes:  # so that the store says it, and can be sealed without this day
            for task in bound.pending():
                bound.fail(task, f"no scene of {day} can be read")
        return found
    if series.settings.reuse is not None:
        adopt(bound, series.settings.reuse / series.path.name, day)
    filling = DayFilling(series, _job(series, bound, day, here), bound, tuple(here))
    reason = f"its part of {day} in {series.path} is not done, and this run does not bring it"
    return [*found, *(Unopened(n, reason, counted=False) for n in filling.waits), filling]


def _bands(series: Series) -> tuple[str, ...]:
    """Return the bands of a series: its store's, or those of its first scene."""
    if (series.path / "zarr.json").exists():
        return tuple(read_root(series.path)["attributes"]["nec"]["bands"])
    return next(iter(series.days.values()))[0].bands


def _attributes(series: Series, bands: Sequence[str]) -> dict[str, Any]:
    settings = series.settings
    tiling = {"core": settings.tiling.core, "halo": settings.tiling.halo}
    return own_attributes(settings.model, settings.compressor, settings.rate, bands) | {
        "gsd": series.gsd,
        "tiling": tiling,
        "series": {"grid": series.name, "step": "day"},
        "sources": [SCENES],
    }


def _fingerprint(series: Series, bands: Sequence[str]) -> str:
    """Name everything that decides what is stored, but for the scenes."""
    settings = series.settings
    text = json.dumps(
        _attributes(series, bands)
        | {"compressor": settings.compressor.digest, "batch": settings.tiling.batch},
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _writer(series: Series, bands: Sequence[str]) -> tuple[StoreWriter, dict[np.datetime64, int]]:
    compressor = series.settings.compressor
    days = np.array(list(series.days), "datetime64[D]")
    return StoreWriter.of_series(
        series.path,
        Layout.of_scene(series.grid, bands=compressor.basis.shape[1], time=days),
        days=days,
        codec=NecCodec(compressor.coding),
        scene_codec=NecCodec(compressor.scene_coding),
        attributes={"nec": _attributes(series, bands)},
        basis=np.ascontiguousarray(compressor.basis.T),
        fingerprint=_fingerprint(series, bands),
    )


def _opened(series: Series, placed: PlacedScene, bands: Sequence[str]) -> _Opened | str:
    """Open a scene and take its digest; say why where it cannot be."""
    settings, entry = series.settings, placed.entry
    if set(placed.bands) != set(bands):
        return (
            f"it has bands {', '.join(placed.bands)}, and {series.name} is of "
            f"{', '.join(bands)}; choose common ones with --bands (bands=)"
        )
    for attempt in range(1, settings.retries.count + 2):
        try:
            scene = settings.open(entry, bands)
            versions = scene.versions()  # before the digest: a change after it is noticed
            contributor = Contributor(
                entry.name,
                scene.digest(),
                placed.shards(series.grid, settings.tiling.margin),
                {
                    "sources": list(scene.sources),
                    "acquired": str(scene.time),
                    "scaling": asdict(scene.scaling),
                },
            )
        except Exception as error:  # whatever a bad scene brings about
            if not isinstance(error, NecError):
                logger.warning("%s", entry.source, exc_info=True)
            if attempt > settings.retries.count or not passing(error):
                return reason_of(error)
            time.sleep(settings.retries.seconds(attempt))
        else:
            return _Opened(scene, contributor, placed.offset, versions)
    raise AssertionError("the last attempt returns")


def _hold(
    writer: StoreWriter, index: int, day: np.datetime64, opened: Mapping[str, _Opened]
) -> tuple[TimeStep, dict[str, str]]:
    """Say in the store which scenes a day holds; return them, and why others were left out."""
    offered = {name: one.contributor for name, one in opened.items()}
    for _ in range(_TURNS):
        before = load_step(writer.path, index)
        held = () if before is None else before.scenes
        receipts = {} if before is None else writer.at(before).receipts()
        failed = {task.place for task, r in receipts.items() if r.status == "failed"}
        done = {task.place for task in receipts} - failed
        scenes, refused = merged(held, offered, done=done, failed=failed)
        step = TimeStep(index, str(day), scenes)
        if writer.hold(step, before):
            return step, refused
    msg = f"other runs keep changing the scenes of {day} in {writer.path}"
    raise StoreError(msg, "run again when they are done")


def _job(series: Series, bound: StoreWriter, day: np.datetime64, here: dict[str, _Opened]) -> Job:
    settings = series.settings
    mosaic = Mosaic(
        f"{series.name} of {day}",
        tuple(one.scene for one in here.values()),
        tuple(one.offset for one in here.values()),
        gsd=series.gsd,
        time=day,
    )
    versions = tuple(version for one in here.values() for version in one.versions)
    # The mosaic's pixels are counted from the grid's corner.
    grid = replace(series.grid, scene_offset=(0, 0))
    return Job(
        layout=bound.layout,
        compressor=settings.compressor,
        attributes={},
        fingerprint={"series": bound.fingerprint, "day": str(day)},
        source=SceneFeatures(mosaic, settings.model, grid, settings.tiling, versions),
        tokens_per_chip=settings.tiling.core // grid.patch,
    )
