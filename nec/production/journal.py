"""What a run tells while it goes: rates for a terminal, and a log of JSON lines."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from nec.errors import StoreError
from nec.production.engine import Engine
from nec.production.task import Outcome, full, reason_of


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    scenes, scenes_done, scenes_failed : int
        In all; settled (the failed ones too); with something that failed.
    tasks, tasks_done : int
        Of the scenes opened so far, those that earlier runs did included.
    pixels, bytes_in, bytes_out : int
        Done by this run: pixels of scenes, their bytes uncompressed, bytes of objects.
    pixels_known, pixels_pending : int
        Of the scenes opened so far: in all, and still to do.
    scenes_opened : int
    seconds : float
        Since the run began.
    engine : str
        Where tasks run.
    dashboard : str or None
        Of the cluster.
    """

    scenes: int
    scenes_done: int = 0
    scenes_failed: int = 0
    tasks: int = 0
    tasks_done: int = 0
    pixels: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    pixels_known: int = 0
    pixels_pending: int = 0
    scenes_opened: int = 0
    seconds: float = 0.0
    engine: str = ""
    dashboard: str | None = None

    @property
    def pixels_per_second(self) -> float:
        """Rate of this run so far; 0 before anything is done."""
        return self.pixels / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds that are left; None where nothing is known.

        Scenes that are not opened yet count as large as those that are.
        """
        if not self.pixels or not self.scenes_opened:
            return None
        unopened = self.scenes - self.scenes_opened
        to_come = self.pixels_pending + self.pixels_known / self.scenes_opened * unopened
        return to_come / self.pixels_per_second


class Journal:
    """Counts what is done, tells a callback, and writes the log.

    Parameters
    ----------
    scenes : int
        Number of scenes of the run.
    progress : callable, optional
        Called with a `Progress` whenever something is done.
    log : Path, optional
        File that lines of JSON are appended to, each an event with its time: `start`, `scene`
        (opened), `task`, `store` (a store's end), `failure`, `end`.
    """

    def __init__(
        self, scenes: int, *, progress: Callable[[Progress], None] | None, log: Path | None
    ) -> None:
        self._state = Progress(scenes)
        self._progress = progress
        self._began = time.monotonic()
        self._file = None
        if log is not None:
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                self._file = log.open("a", encoding="utf-8")
            except OSError as error:
                raise StoreError(
                    f"log {log} cannot be written ({error.strerror})", "choose another path"
                ) from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(StoreError):  # a full disk: the error on its way says so already
            if error is not None:
                self.write("stopped", reason=reason_of(error))
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    @property
    def progress(self) -> Progress:
        """The present state."""
        return replace(self._state, seconds=time.monotonic() - self._began)

    def write(self, event: str, **details: Any) -> None:
        """Append an event to the log: one line, whole."""
        if self._file is None:
            return
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": stamp, "event": event, **details}
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise full(Path(self._file.name), error) from error

    def start(self, engine: Engine, **details: Any) -> None:
        """Say that the run begins on an engine."""
        own = {"engine": engine.description, "dashboard": engine.dashboard}
        self.write("start", scenes=self._state.scenes, **own, **details)
        self._state = replace(self._state, **own)  # type: ignore[arg-type]
        self._add()

    def _add(self, **changes: int) -> None:
        own = {name: getattr(self._state, name) + value for name, value in changes.items()}
        self._state = replace(self._state, **own)
        if self._progress is not None:
            self._progress(self.progress)

    def opened(
        self, scene: str, *, tasks: int, done: int, pixels: int, pending: int, scenes: int = 1
    ) -> None:
        """Say that a scene, or several as one, is open: its tasks, those of earlier runs too."""
        self.write("scene", scene=scene, tasks=tasks, done=done, pixels=pixels)
        self._add(
            tasks=tasks,
            tasks_done=done,
            pixels_known=pixels,
            pixels_pending=pending,
            scenes_opened=scenes,
        )

    def did(self, scene: str, outcome: Outcome) -> None:
        """Say that a task is done, or failed for good."""
        self.write(
            "task",
            scene=scene,
            task=outcome.task.name,
            status=outcome.status,
            attempts=outcome.attempts,
            pixels=outcome.size.pixels,
            bytes_in=outcome.size.bytes,
            bytes_out=outcome.bytes_out,
            seconds={stage: round(taken, 4) for stage, taken in outcome.seconds.items()},
            **({"reason": outcome.reason} if outcome.reason else {}),
        )
        self._add(
            tasks_done=1,
            pixels=outcome.size.pixels,
            pixels_pending=-outcome.size.pixels,
            bytes_in=outcome.size.bytes,
            bytes_out=outcome.bytes_out,
        )

    def settled(
        self, scene: str, *, bad: bool, opened: bool = True, scenes: int = 1, **details: Any
    ) -> None:
        """Say that a scene is at its end, well or not; `opened` is False where it never began.

        `scenes` is how many went as one.
        """
        self.write("failure" if bad else "store", scene=scene, **details)
        self._add(
            scenes_done=scenes,
            scenes_failed=scenes if bad else 0,
            scenes_opened=0 if opened else scenes,
        )
