"""Scenes of many days to series: a store a grid, along `time`; days appended, one after another."""

import hashlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from nec.archive import (
    Contributor,
    Layout,
    Receipt,
    StoreWriter,
    Task,
    TimeStep,
    TokenGrid,
    seal,
)
from nec.archive.creation import read_root
from nec.archive.receipts import StoredObject, load_receipt
from nec.archive.series import FOLDER as SCENES
from nec.archive.series import Fingerprints, load_step, stored_days, unsealed
from nec.codec import NecCodec
from nec.compressor import Compressor
from nec.encoders.tiling import Tiling
from nec.errors import NecError, SceneError, StoreError
from nec.model import Model
from nec.production.contributors import merged
from nec.production.features import CELL, SceneFeatures
from nec.production.filling import Filling, measured
from nec.production.job import SCENE_OPTIONS, Job, check_tiling, own_attributes, usable_bands
from nec.production.measures import EncodeReport, masked_fraction, report
from nec.production.scenes import SceneEntry
from nec.production.task import Retries, full, is_full, passing, reason_of
from nec.scene import Mosaic, Scene, open_scene
from nec.scene.grids import ground_sampling_distance
from nec.scene.sensors import date_in_name

logger = logging.getLogger(__name__)

#: Left, bottom, right, top, in units of the scenes' CRS.
Area: TypeAlias = tuple[float, float, float, float]

# Days that are opened (their files digested) while tasks of earlier ones are under way.
_AHEAD = 2
# Headers that are read at once, to find out what is where.
_READERS = 4
# How often the scenes of a day are merged anew because another producer came between.
_TURNS = 5


@dataclass(frozen=True)
class PlacedScene:
    """A scene whose header has been read: when it is of, and where it lies in its grid.

    Attributes
    ----------
    entry : SceneEntry
    day : numpy.datetime64
        UTC.
    bands : tuple of str
        Those that the model takes.
    offset, shape : tuple of int
        Row and column of its first pixel in the grid; rows and columns.
    """

    entry: SceneEntry
    day: np.datetime64
    bands: tuple[str, ...]
    offset: tuple[int, int]
    shape: tuple[int, int]

    def shards(self, grid: TokenGrid, margin: int) -> tuple[str, ...]:
        """Name the shards that its pixels have a part in, those in the margin too."""
        span = grid.patch * grid.shard
        rows, columns = (
            range(max((start - margin) // span, 0), min(-(-(start + size + margin) // span), n))
            for start, size, n in zip(
                self.offset,
                self.shape,
                (-(-side // grid.shard) for side in grid.shape),
                strict=True,
            )
        )
        return tuple(Task(row, column).place for row in rows for column in columns)


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


@dataclass(frozen=True)
class SeriesSettings:
    """What is the same for all series of a run."""

    folder: Path
    model: Model
    compressor: Compressor
    rate: str | float
    tiling: Tiling
    retries: Retries
    options: Mapping[str, Any]
    sealing: bool
    reuse: Path | None
    area: Area | None

    @classmethod
    def of(
        cls,
        folder: Path,
        model: Model,
        retries: Retries,
        options: Mapping[str, Any],
        *,
        sealing: bool,
        reuse: Path | None,
        area: Area | None,
    ) -> "SeriesSettings":
        """Sort out the options of `encode_archive`; SceneError for one that does not go here."""
        given = {name: value for name, value in options.items() if value is not None}
        rate, tiling = given.pop("rate", "medium"), given.pop("tiling", model.tiling)
        compressor = model.compressor(rate).guarded(given.pop("min_cosine", None))
        if others := [name for name in given if name not in SCENE_OPTIONS]:
            raise SceneError(f"a series takes no {others[0]}=", "leave it out")
        check_tiling(model, tiling)
        if area is not None and not (area[0] < area[2] and area[1] < area[3]):
            msg = f"area {area} is not left, bottom, right, top"
            raise SceneError(msg, "give the corners in units of the scenes' CRS")
        return cls(folder, model, compressor, rate, tiling, retries, given, sealing, reuse, area)

    def grid(self, scene: Scene) -> tuple[TokenGrid, tuple[int, int]]:
        """Return the grid that a scene goes to, and row and column of its first pixel there.

        It is made of the whole shards, of the lattice of the scene's pixels, that the scene
        touches, or the area where one is given.

        Raises
        ------
        SceneError
            The scene lies outside of the area.
        """
        patch, affine = self.model.encoder.patch_size, scene.geobox.affine
        box, (row, column) = scene.geobox, (0, 0)
        if self.area is not None:
            left, bottom, right, top = self.area
            # A thousandth of a pixel beyond an edge is rounding.
            first = [
                math.floor((a - c) / e + 1e-3)
                for a, c, e in ((top, affine.f, affine.e), (left, affine.c, affine.a))
            ]
            last = [
                math.ceil((a - c) / e - 1e-3)
                for a, c, e in ((bottom, affine.f, affine.e), (right, affine.c, affine.a))
            ]
            if any(
                b <= 0 or a >= n for a, b, n in zip(first, last, scene.geobox.shape, strict=True)
            ):
                raise SceneError(
                    f"{scene.name} lies outside of the area {self.area}",
                    "correct the area, or leave the scene out",
                )
            row, column = first
            shape = (last[0] - row, last[1] - column)
            box = GeoBox(shape, affine * Affine.translation(column, row), scene.geobox.crs)
        grid = TokenGrid.around(box, patch=patch, cell=CELL, whole=True)
        offset = (grid.scene_offset[0] - row, grid.scene_offset[1] - column)
        return grid, offset

    def open(self, entry: SceneEntry, bands: Sequence[str] | None = None) -> Scene:
        """Open a scene with the bands that the model takes, or with these."""
        options = {**self.options, **entry.options}
        scene = open_scene(entry.source, **options)
        if scene.time is None and (day := date_in_name(entry.name)) is not None:
            scene = open_scene(entry.source, **{**options, "time": day})
        return scene.select(bands or usable_bands(scene.name, scene.bands, self.model))


@dataclass(eq=False)
class Series:
    """One store of a run: a grid, and the scenes of its days.

    Attributes
    ----------
    grid : TokenGrid
    days : dict of numpy.datetime64 to list of PlacedScene
        In order of time; scenes by name.
    """

    grid: TokenGrid
    days: dict[np.datetime64, list[PlacedScene]]
    settings: SeriesSettings
    closed: Callable[[str, EncodeReport], None]
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
        finished = writer.finish({"nec": own})
        self.closed(self.name, outcome)
        if finished and self.settings.sealing and not outcome.failed:
            seal(self.path)


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


def place_scenes(
    scenes: Sequence[SceneEntry], settings: SeriesSettings
) -> tuple[dict[str, tuple[TokenGrid, list[PlacedScene]]], dict[str, str]]:
    """Read the headers of all scenes: which grid each is of, and which day.

    Returns
    -------
    dict of str to tuple of TokenGrid and list of PlacedScene
        By name of the grid, in order of names.
    dict of str to str
        Why, by name of the scenes whose header cannot be read, or tells no day.
    """
    grids: dict[str, tuple[TokenGrid, list[PlacedScene]]] = {}
    failures: dict[str, str] = {}

    def place(entry: SceneEntry) -> tuple[TokenGrid, PlacedScene]:
        scene = settings.open(entry)
        if scene.time is None:
            raise SceneError(
                f"{entry.name} tells no time of acquisition: neither file name nor tags hold one",
                "give it in a table's column `time`, or with --time (time=)",
            )
        grid, offset = settings.grid(scene)
        day = scene.time.astype("datetime64[D]")
        height, width = scene.geobox.shape
        return grid, PlacedScene(entry, day, scene.bands, offset, (height, width))

    left, attempt = list(scenes), 0
    with ThreadPoolExecutor(_READERS, thread_name_prefix="nec-place") as pool:
        while left:
            attempt += 1
            again = []
            for entry, future in [(entry, pool.submit(place, entry)) for entry in left]:
                try:
                    grid, placed = future.result()
                except Exception as error:  # whatever a bad scene brings about
                    if attempt <= settings.retries.count and passing(error):
                        again.append(entry)
                    else:
                        failures[entry.name] = reason_of(error)
                    continue
                grids.setdefault(grid.name, (grid, []))[1].append(placed)
            left = again
            if left:
                time.sleep(settings.retries.seconds(attempt))
    return {name: grids[name] for name in sorted(grids)}, failures


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
        series = Series(grid, days, settings, closed)
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
                if not any(isinstance(item, DayFilling) for item in found):
                    series.settle()
        finally:
            pool.shutdown(cancel_futures=True)


def _open_day(series: Series, day: np.datetime64) -> list[DayFilling | Unopened]:
    members = series.days[day]
    names = tuple(scene.entry.name for scene in members)
    try:
        if _is_sealed(series.path):
            return _compare_sealed(series, day)
        return _open_unsealed(series, day)
    except Exception as error:  # whatever is wrong with this store, or this day of it
        if is_full(error):
            raise full(series.path, error) from error
        if not isinstance(error, NecError):
            logger.warning("%s of %s", day, series.name, exc_info=True)
        return [Unopened(name, reason_of(error)) for name in names]


def _is_sealed(path: Path) -> bool:
    try:
        return "seal" in read_root(path)["attributes"]["nec"]
    except StoreError:
        return False


def _compare_sealed(series: Series, day: np.datetime64) -> list[DayFilling | Unopened]:
    """Say of each scene of a day whether a sealed store holds just that."""
    root = read_root(series.path)
    bands = root["attributes"]["nec"]["bands"]
    index = {known: at for at, known in enumerate(stored_days(series.path))}
    step = load_step(series.path, index[day]) if day in index else None
    held = {} if step is None else {scene.name: scene.digest for scene in step.scenes}
    same = root["attributes"]["nec"]["fingerprint"] == _fingerprint(series, bands)
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
        _adopt(bound, series.settings.reuse / series.path.name, day)
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


def _adopt(writer: StoreWriter, store: Path, day: np.datetime64) -> None:
    """Take what another store of the same grid holds of a day, where it is made of the same."""
    if store.resolve() == writer.path.resolve() or not (store / "zarr.json").exists():
        return
    root = unsealed(store)
    index = dict(zip(stored_days(store), range(len(stored_days(store))), strict=True)).get(day)
    if index is None:
        return
    theirs, own = Fingerprints(store, root), writer.receipts()
    for task in writer.tasks():
        if task in own and own[task].status != "failed":
            continue
        other = replace(task, time=index)
        receipt = load_receipt(store, other)
        wanted = writer.fingerprint_of(task)
        if receipt is None or receipt.status == "failed" or receipt.fingerprint != wanted:
            continue
        if theirs.of(other) != wanted:
            continue
        keys = {array.key(other): array.key(task) for array in writer.layout.arrays()}
        objects = {key: (store / key).read_bytes() for key in receipt.objects}
        if all(StoredObject.of(data) == receipt.objects[key] for key, data in objects.items()):
            renamed = {keys[key]: data for key, data in objects.items()}
            writer.commit(task, renamed, figures=receipt.figures)
