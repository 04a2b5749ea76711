"""A series: many times of one grid in one store, which scenes each holds, and how times come in.

The root ``zarr.json`` alone says how many times there are. An append writes what lies beyond
them first, replaces the root in one step, then brings the arrays' own ``zarr.json`` up to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from nec.archive.creation import read_root, write_coordinate
from nec.archive.grid import Task
from nec.archive.layout import TIMES, time_coordinate
from nec.archive.metadata import (
    MEASURED,
    canonical,
    parse_stamped,
    sha256,
    stamp,
    stamp_root,
)
from nec.archive.receipts import read_object
from nec.archive.temporaries import building, locked, put
from nec.errors import StoreError

FOLDER = "nec/scenes"
#: Steps that are kept of a store: tasks of one time come one after the other.
_KEPT = 4

Days = NDArray[np.datetime64]


@dataclass(frozen=True)
class Contributor:
    """One scene of a time of a series.

    Attributes
    ----------
    name : str
        Of the scene; later names lie on top of earlier ones.
    digest : str
        SHA-256 of all that decides its pixels.
    shards : tuple of str
        Those that its pixels have a part in, as ``row.column``.
    details : dict
        What is said of it besides, in JSON types: sources, acquired, scaling.
    """

    name: str
    digest: str
    shards: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TimeStep:
    """A time of a series, and the scenes that it holds.

    Attributes
    ----------
    index : int
        Along `time`.
    day : str
        The day, UTC, ISO 8601.
    scenes : tuple of Contributor
        By name.
    """

    index: int
    day: str
    scenes: tuple[Contributor, ...] = ()

    @property
    def key(self) -> str:
        """Key of this document in the store."""
        return step_key(self.index)

    def to_bytes(self) -> bytes:
        """Serialise the step: canonical JSON with its own digest."""
        scenes = [
            {**scene.details, "name": scene.name, "digest": scene.digest, "shards": scene.shards}
            for scene in self.scenes
        ]
        return canonical(stamp({"time": self.day, "scenes": scenes}))

    @classmethod
    def from_bytes(cls, data: bytes, index: int, what: str) -> Self:
        """Read a step; StoreError where it is damaged."""
        document = parse_stamped(data, what)
        try:
            scenes = tuple(
                Contributor(
                    scene.pop("name"), scene.pop("digest"), tuple(scene.pop("shards")), scene
                )
                for scene in document["scenes"]
            )
            return cls(index, document["time"], scenes)
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"{what} is no list of scenes ({error!r})"
            raise StoreError(msg, "restore it from a copy") from error

    def fingerprint(self, task: Task, run: str) -> str:
        """Name what a task of this time is made of: the run, the day, the scenes it sees."""
        seen = [[s.name, s.digest] for s in self.scenes if task.place in s.shards]
        return sha256(canonical({"fingerprint": run, "time": self.day, "scenes": seen}))


def step_key(index: int) -> str:
    """Key of the scenes of a time."""
    return f"{FOLDER}/{index}.json"


def load_step(store: Path, index: int) -> TimeStep | None:
    """Read the scenes of a time; None where none are known yet, StoreError where damaged."""
    key = step_key(index)
    data = read_object(store / key)
    if data is None:
        return None
    return TimeStep.from_bytes(data, index, f"{key} of {store}")


def is_series(root: Mapping[str, Any]) -> bool:
    """Whether times can be appended to a store."""
    return "series" in root["attributes"]["nec"]


def step_keys(root: Mapping[str, Any]) -> set[str]:
    """Keys of the scenes of all times; none of a store that is no series."""
    if not is_series(root):
        return set()
    return {step_key(index) for index in range(times_of(root))}


def is_step_key(key: str, root: Mapping[str, Any]) -> bool:
    """Whether a key is that of the scenes of a time that the store has."""
    number = key.removeprefix(f"{FOLDER}/").removesuffix(".json")
    known = is_series(root) and number.isdecimal() and int(number) < times_of(root)
    return known and key == step_key(int(number))


class Fingerprints:
    """What fingerprint the receipt of each task of a store has to have.

    Parameters
    ----------
    store : Path
        The store.
    root : mapping
        Its root ``zarr.json``.
    """

    def __init__(self, store: Path, root: Mapping[str, Any]) -> None:
        self._store = store
        self._run = str(root["attributes"]["nec"]["fingerprint"])
        self._series = is_series(root)
        self._steps: dict[int, TimeStep | None] = {}

    def of(self, task: Task) -> str | None:
        """Return the fingerprint; None where the scenes of its time are not known yet."""
        if not self._series:
            return self._run
        if task.time not in self._steps:
            if len(self._steps) >= _KEPT:
                self._steps.clear()
            self._steps[task.time] = load_step(self._store, task.time)
        step = self._steps[task.time]
        return None if step is None else step.fingerprint(task, self._run)


def times_of(root: Mapping[str, Any]) -> int:
    """Return how many times a series has."""
    return int(root["consolidated_metadata"]["metadata"]["time"]["shape"][0])


def stored_days(store: Path) -> Days:
    """Return the days of a series on disk, ascending, datetime64[D]."""
    group = zarr.open_group(store, mode="r", use_consolidated=True)
    seconds = np.asarray(group["time"][...])  # type: ignore[index]
    days: Days = seconds.astype("datetime64[s]").astype("datetime64[D]")
    return days


def unsealed(store: Path) -> dict[str, Any]:
    """Read the root of a store that may still change; StoreError where it is sealed."""
    root = read_root(store)
    if "seal" in root["attributes"]["nec"]:
        remedy = "choose another path"
        if is_series(root):
            remedy = (
                "encode what is new to another folder: xarray.concat joins stores of one grid "
                "along time"
            )
        raise StoreError(f"{store} is sealed: it never changes", remedy)
    return root


def append(store: Path, days: Iterable[np.datetime64]) -> dict[np.datetime64, int]:
    """Append days to a series, those that are later than all it has.

    Readers see the store as it was or with all new days; a kill in between leaves it as it was,
    or is made good by the next append, finish or seal.

    Parameters
    ----------
    store : Path
        The store, unsealed.
    days : iterable of numpy.datetime64
        Those that it has already are left alone. Days before its last that it lacks cannot come
        in any more, for `time` ascends and what is there keeps its index.

    Returns
    -------
    dict of numpy.datetime64 to int
        Index of every day of the store; days that could not come in are not among them.

    Raises
    ------
    StoreError
        The store is sealed, damaged or gone.
    """
    with locked(store):
        root = unsealed(store)
        known = stored_days(store)
        wanted = {day.astype("datetime64[D]") for day in days} - set(known)
        fresh = sorted(day for day in wanted if day > known[-1])
        if fresh:
            every = np.concatenate([known, np.array(fresh, "datetime64[D]")])
            for key, data in _time_chunks(store, every, since=len(known)).items():
                put(store / key, data)
            root = _lengthened(root, len(every))
            put(store / "zarr.json", canonical(root))
            known = every
        settle(store, root)
    return {day: index for index, day in enumerate(known)}


def settle(store: Path, root: Mapping[str, Any]) -> None:
    """Bring the ``zarr.json`` of arrays along `time` up to the root, after it has changed."""
    if not is_series(root):
        return
    for name, document in root["consolidated_metadata"]["metadata"].items():
        if _along_time(document):
            path, data = store / name / "zarr.json", canonical(document)
            if not path.exists() or path.read_bytes() != data:
                put(path, data)


def lags(document: Mapping[str, Any], copy: Mapping[str, Any]) -> bool:
    """Whether an array's metadata are those of before an append, else as consolidated."""
    if not (_along_time(document) and _along_time(copy)):
        return False
    same = {**document, "shape": [copy["shape"][0], *document["shape"][1:]]} == copy
    return same and document["shape"][0] < copy["shape"][0]


def unmeasured(root: Mapping[str, Any]) -> dict[str, Any]:
    """Return a root without what a finished run had measured: there is more to do now."""
    attributes = dict(root["attributes"])
    attributes["nec"] = {k: v for k, v in attributes["nec"].items() if k not in MEASURED}
    return stamp_root({**root, "attributes": attributes})


def _along_time(document: Mapping[str, Any]) -> bool:
    return bool(document.get("dimension_names")) and document["dimension_names"][0] == "time"


def _lengthened(root: Mapping[str, Any], length: int) -> dict[str, Any]:
    consolidated = root["consolidated_metadata"]
    metadata = {
        name: {**document, "shape": [length, *document["shape"][1:]]}
        if _along_time(document)
        else document
        for name, document in consolidated["metadata"].items()
    }
    return unmeasured({**root, "consolidated_metadata": {**consolidated, "metadata": metadata}})


def _time_chunks(store: Path, days: Days, *, since: int) -> dict[str, bytes]:
    """Code those chunks of `time` that hold indexes from `since` on.

    What a chunk held before it holds again, at the same places: readers of the old root are none
    the wiser.
    """
    with building(store) as folder:
        group = zarr.create_group(folder, zarr_format=3)
        write_coordinate(group, time_coordinate(days))
        numbers = range(since // TIMES, -(-len(days) // TIMES))
        return {f"time/c/{n}": (folder / f"time/c/{n}").read_bytes() for n in numbers}
