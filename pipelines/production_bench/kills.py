"""Kill the producer, or a worker of a cluster, at random: the store must not tell."""

import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Queue
from typing import Any

import nec
from nec.archive.receipts import FOLDER as RECEIPTS
from nec.archive.temporaries import SUFFIX

# Seconds until a kill, at most, after the run said that it starts.
WINDOW = 4.0
PATIENCE = 300
# Of one command until nothing has failed.
MOST_RUNS = 5


def command(scenes: Path, out: Path, *options: str) -> list[str]:
    """Return the command line that encodes a folder of scenes, a store each unless options say."""
    mode = () if "--series" in options else ("--each",)
    return [sys.executable, "-m", "nec.cli", "encode", *mode, str(scenes), str(out), *options]


def digests(folder: Path) -> dict[str, str]:
    """Return SHA-256 of every file of every store of a folder, by path; logs are left out."""
    files = (f for f in folder.glob("*.zarr/**/*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def run(scenes: Path, out: Path, *options: str) -> None:
    """Encode in one go; an error where that fails."""
    subprocess.run(command(scenes, out, *options), check=True, stdout=subprocess.DEVNULL)


def kill_producer(scenes: Path, work: Path, *, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill ``nec encode`` with SIGKILL at random moments, until it was killed often enough.

    A run that comes to its end before is compared with the uninterrupted one, and the next one
    starts afresh.
    """
    expected = _reference(scenes, work)
    rng = random.Random(seed)
    killed = finished = 0
    moments: list[float] = []
    found: dict[str, Any] = {}
    same = verified = True
    with _reader(work / "killed", expected) as result:
        while killed < kills and same and verified:
            out = work / "killed" / f"round{finished}"
            log = out / "encode.jsonl"
            before = log.stat().st_size if log.exists() else 0
            process = subprocess.Popen(command(scenes, out), stdout=subprocess.DEVNULL)
            _wait_for(lambda: log.exists() and log.stat().st_size > before, process)  # noqa: B023
            wait = rng.uniform(0, WINDOW)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
                moments.append(round(wait, 3))
                if killed < kills:
                    continue
                run(scenes, out)  # after the last kill, to the end
            finished += 1
            same &= digests(out) == expected
            verified &= all(nec.verify(store).ok for store in out.glob("*.zarr"))
        found = result()
    return {
        "kills": killed,
        "rounds": finished,
        "seconds_until_kill": moments,
        "objects": len(expected),
        "same_bytes": same,
        "verified": verified,
        "reader": found,
    }


def kill_series(scenes: Path, work: Path, *, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill runs that append to a series, of half of the days and of all of them in turn.

    Each round starts afresh, appends twice, and is killed until it has come to its end.
    """
    run(scenes, work / "days", "--series")
    expected = digests(work / "days")
    paths = sorted(map(str, scenes.glob("*.tif")))
    lists = [work / "some_days.txt", work / "all_days.txt"]
    for path, some in zip(lists, (paths[: len(paths) // 2], paths), strict=True):
        path.write_text("".join(f"{Path(scene).absolute()}\n" for scene in some))
    rng = random.Random(seed)
    killed = rounds = 0
    same = verified = True
    with _reader(work / "killed_days", expected, growing=True) as result:
        while killed < kills and same and verified:
            out = work / "killed_days" / f"round{rounds}"
            for listed in lists:
                ended = False
                while not ended:
                    log = out / "encode.jsonl"
                    before = log.stat().st_size if log.exists() else 0
                    line = command(listed, out, "--series")
                    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
                    _wait_for(lambda: log.exists() and log.stat().st_size > before, process)  # noqa: B023
                    try:
                        process.wait(None if killed >= kills else rng.uniform(0, WINDOW))
                        ended = True
                    except subprocess.TimeoutExpired:
                        os.kill(process.pid, signal.SIGKILL)
                        process.wait()
                        killed += 1
            rounds += 1
            same &= digests(out) == expected
            verified &= all(nec.verify(store).ok for store in out.glob("*.zarr"))
        found = result()
    return {
        "kills": killed,
        "rounds": rounds,
        "days": len(paths),
        "objects": len(expected),
        "same_bytes": same,
        "verified": verified,
        "reader": found,
    }


def kill_worker(scenes: Path, work: Path, *, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill a worker of a cluster of three processes at random moments of runs of the CLI."""
    expected = _reference(scenes, work)
    rng = random.Random(seed)
    killed = finished = runs = 0
    same = verified = True
    with cluster(workers=2) as (address, workers), _reader(work / "cluster", expected) as result:
        while killed < kills and same and verified:
            out = work / "cluster" / f"round{finished}"
            # A shard whose workers were killed four times in a row is reported as failed: the same
            # command does it.
            for _ in range(MOST_RUNS):
                log = out / "encode.jsonl"
                before = log.read_text().count('"task"') if log.exists() else 0
                process = subprocess.Popen(
                    command(scenes, out, "--scheduler", address), stdout=subprocess.DEVNULL
                )
                _wait_for(
                    lambda: log.exists() and log.read_text().count('"task"') > before,  # noqa: B023
                    process,
                )
                while process.poll() is None and killed < kills:
                    time.sleep(rng.uniform(0, 2 * WINDOW))
                    if process.poll() is None:
                        workers.kill(rng.randrange(2))
                        killed += 1
                status = process.wait(PATIENCE)
                runs += 1
                if status == 0:
                    break
            finished += 1
            same &= status == 0 and digests(out) == expected
            verified &= all(nec.verify(store).ok for store in out.glob("*.zarr"))
        found = result()
    return {
        "kills": killed,
        "rounds": finished,
        "runs": runs,
        "objects": len(expected),
        "same_bytes": same,
        "verified": verified,
        "reader": found,
    }


class Workers:
    """Worker processes; one that is killed is started anew."""

    def __init__(self, address: str, count: int) -> None:
        self._address = address
        self._processes = [self._start() for _ in range(count)]

    def _start(self) -> "subprocess.Popen[bytes]":
        line = [sys.executable, "-m", "distributed.cli.dask_worker", self._address]
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
        return subprocess.Popen([*line, *options], stderr=subprocess.DEVNULL)

    def kill(self, index: int) -> None:
        """Kill a worker with SIGKILL, and start another in its place."""
        self._processes[index].kill()
        self._processes[index].wait()
        self._processes[index] = self._start()

    def end(self) -> None:
        """End all of them."""
        for process in self._processes:
            process.kill()
            process.wait()


@contextmanager
def cluster(workers: int) -> Iterator[tuple[str, Workers]]:
    """Start a scheduler and workers, a process each, on this machine."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    line = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", address]
    scheduler = subprocess.Popen([*line, "--no-dashboard"], stderr=subprocess.DEVNULL)
    started = Workers(address, workers)
    try:
        yield address, started
    finally:
        started.end()
        scheduler.kill()
        scheduler.wait()


def _reference(scenes: Path, work: Path) -> dict[str, str]:
    out = work / "uninterrupted"
    if not out.exists():
        run(scenes, out)
    return digests(out)


def _wait_for(condition: Any, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        if time.monotonic() > until:
            process.kill()
            raise TimeoutError("the run does not start")
        time.sleep(0.02)


@contextmanager
def _reader(folder: Path, expected: dict[str, str], *, growing: bool = False) -> Iterator[Any]:
    """Read every store of every round all the time, in a process of its own.

    Whatever object of an array, coordinate or receipt is seen under its name has to be, at any
    moment, what the uninterrupted run wrote there (or, of a receipt, that it failed), and the root
    has to be one that opens. Of series that are `growing`, what an append replaces is not compared
    as bytes, but read.
    """
    context = multiprocessing.get_context("spawn")
    stop, found = context.Event(), context.Queue()
    process = context.Process(target=_read_on, args=(folder, expected, stop, found, growing))
    process.start()

    def result() -> dict[str, Any]:
        stop.set()
        answer: dict[str, Any] = found.get(timeout=PATIENCE)
        process.join()
        return answer

    try:
        yield result
    finally:
        if process.is_alive():
            process.terminate()
            process.join()


def _read_on(
    folder: Path,
    expected: dict[str, str],
    stop: Event,
    found: "Queue[dict[str, Any]]",
    growing: bool,
) -> None:
    logging.getLogger("nec").setLevel(logging.ERROR)  # stores are unfinished, as they should be
    polls = objects = opened = 0
    partial: list[str] = []
    while not stop.is_set():
        polls += 1
        for store in folder.glob("*/*.zarr"):
            for file in store.rglob("*"):
                if file.name.endswith(SUFFIX) or not file.is_file():
                    continue
                key = str(file.relative_to(store.parent))
                if key == f"{store.name}/zarr.json":
                    continue  # it changes once, when figures are known: opened below
                if growing and (file.name == "zarr.json" or "/time/c/" in key):
                    continue
                objects += 1
                try:
                    data = file.read_bytes()
                except FileNotFoundError:
                    continue
                if f"/{RECEIPTS}/" in key and json.loads(data)["status"] == "failed":
                    continue  # whole, and true
                if hashlib.sha256(data).hexdigest() != expected.get(key):
                    partial.append(key)
            dataset = nec.open(store)
            if growing:  # days ascend, and a day has its own values, or none yet
                days = dataset["time"].values
                if not (days[1:] > days[:-1]).all() or days[0].astype(int) == 0:
                    partial.append(f"{store.name}: days {days}")
                dataset["scene_embedding"].load()
            opened += 1
        time.sleep(0.02)
    found.put({"polls": polls, "stores_opened": opened, "objects": objects, "partial": partial})
