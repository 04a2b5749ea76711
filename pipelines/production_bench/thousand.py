"""A thousand small scenes, one in twenty broken: what is reported, and how a run goes on."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nec
from production_bench.memory import MEASURE
from production_bench.scenes import write_tiled

# Pixels of a scene each way; every how many-th is broken.
EDGE, EVERY = 32, 20


def bench_thousand(
    numbers: NDArray[np.uint16], work: Path, *, count: int, days: int
) -> dict[str, Any]:
    """Encode many small scenes with broken ones among them; again; and again when they are whole.

    Parameters
    ----------
    numbers : ndarray of shape (6, y, x), uint16
        Real ones, to cut scenes from.
    work : Path
        For scenes and stores.
    count : int
        Scenes.
    days : int
        Scenes of the series.
    """
    days = min(days, count)
    scenes = write_days(work / "thousand", numbers, count)
    listed = _list(work / "hundred.txt", scenes[:days])
    return {
        "edge": EDGE,
        "each": _rounds(scenes, scenes, listed, work / "each", "--each"),
        "series": _rounds(scenes[:days], scenes[: days // 2], listed, work / "series", "--series"),
    }


def _rounds(
    scenes: Sequence[Path], fewer: Sequence[Path], straight: Path, out: Path, mode: str
) -> dict[str, Any]:
    """Run over scenes of which some are broken, twice, then over whole ones.

    `straight` lists scenes for an uninterrupted run over whole ones, to compare bytes with.
    `fewer` are scenes for the peak of a shorter run.
    """
    out.mkdir()
    listed = _list(out / "scenes.txt", scenes)
    whole = {path: path.read_bytes() for path in scenes[EVERY // 2 :: EVERY]}
    for number, path in enumerate(whole):
        path.write_bytes(_broken(whole[path], number))
    stores = out / "stores"
    first = _run(listed, stores, mode)
    again = _run(listed, stores, mode)
    for path, data in whole.items():
        path.write_bytes(data)
    last = _run(listed, stores, mode)
    uninterrupted = _run(straight, out / "straight", mode)
    if mode == "--series":
        # What came back lies before the last day: it goes to another folder, and the rest along.
        moved = _run(listed, out / "moved", mode, "--reuse", str(stores))
        last, stores = {**moved, "refused_before": len(last["failures"])}, out / "moved"
    same = _same_bytes(stores, out / "straight")
    names = {path.stem for path in whole}
    short = (
        uninterrupted
        if mode == "--each"
        else _run(_list(out / "fewer.txt", fewer), out / "fewer", mode)
    )
    return {
        "scenes": len(scenes),
        "broken": len(whole),
        "first": _told(first) | {"names_just_the_broken": _names(first) == names},
        "again": _told(again) | {"names_just_the_broken": _names(again) == names},
        "whole": _told(last),
        "same_bytes_as_uninterrupted": same,
        "verified": all(nec.verify(store).ok for store in stores.glob("*.zarr")),
        "peak_bytes_by_number_of_scenes": {
            short["scenes"]: short["peak_bytes"],
            first["scenes"]: first["peak_bytes"],
        },
    }


def _broken(data: bytes, number: int) -> bytes:
    """Break a file, another way each time: cut short, no raster, nothing, damaged within."""
    middle = len(data) // 2
    return (
        data[:middle],
        b"<html>404 not found</html>",
        b"",
        # Zeros there may decode, and only to what fills up a block of pixels.
        data[:middle] + b"\xff" * 500 + data[middle + 500 :],
    )[number % 4]


def _run(listed: Path, stores: Path, mode: str, *more: str) -> dict[str, Any]:
    """Run the command line in a process of its own; its status, peak, and the log's last line."""
    line = [sys.executable, "-m", "nec.cli", "encode", str(listed), str(stores), mode]
    line += ["--workers", "1", "--retries", "0", *more]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *line], check=False, capture_output=True, text=True
    )
    seconds = time.monotonic() - start
    events = (stores / "encode.jsonl").read_text().splitlines()
    end = json.loads(events[-1])
    if end["event"] != "end":
        raise RuntimeError(f"the run stopped: {done.stderr[-2000:]}")
    return {**end, "status": done.returncode, "peak_bytes": int(done.stdout), "seconds": seconds}


def _names(run: dict[str, Any]) -> set[str]:
    """Return the scenes that a run names as failed, be it a shard of theirs."""
    found = set()
    for key, reason in run["failures"].items():
        name, _, shard = key.partition(", ")
        found.add(reason.partition(".tif")[0].rpartition("/")[2] if shard else name)
    return found


def _told(run: dict[str, Any]) -> dict[str, Any]:
    kept = {key: run[key] for key in ("scenes", "failed", "status", "pixels", "peak_bytes")}
    extra = {key: run[key] for key in ("refused_before",) if key in run}
    return {**kept, **extra, "seconds": round(run["seconds"], 1)}


def _same_bytes(stores: Path, straight: Path) -> bool:
    """Compare what an uninterrupted run wrote with the same of another run, byte for byte."""
    files = [file for file in straight.glob("*.zarr/**/*") if file.is_file()]
    theirs = (stores / file.relative_to(straight) for file in files)
    pairs = zip(files, theirs, strict=True)
    return bool(files) and all(b.is_file() and a.read_bytes() == b.read_bytes() for a, b in pairs)


def write_days(folder: Path, numbers: NDArray[np.uint16], count: int) -> list[Path]:
    """Write small scenes of one place, a day each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        row, column = rng.integers(0, numbers.shape[1] - EDGE, 2)
        part = numbers[:, row : row + EDGE, column : column + EDGE]
        day = np.datetime64("2020-01-01") + index
        path = folder / f"scene_{day}.tif"
        paths.append(write_tiled(path, part, (EDGE, EDGE), corner=(409600.0, 6000640.0)))
    return paths


def _list(path: Path, scenes: Sequence[Path]) -> Path:
    path.write_text("".join(f"{scene.absolute()}\n" for scene in scenes))
    return path
