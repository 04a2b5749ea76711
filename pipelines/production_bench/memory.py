"""Peak memory of the producer: one scene of a Sentinel-2 tile's size, and ever more scenes."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# Runs a command and prints the largest resident size of it, bytes: that of its children on Linux.
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(status)
"""


def peak_of(*arguments: str) -> int:
    """Return the peak resident size, bytes, of ``nec encode`` with these arguments."""
    line = [sys.executable, "-m", "nec.cli", "encode", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *line], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def bench_memory(
    large: Path, store: Path, small: Path, work: Path, *, workers: int = 2
) -> dict[str, Any]:
    """Measure the peak over a large scene, and over 1, 2, 4, ... of the small ones.

    Peaks of the whole process, torch and compiled kernels included. The large scene's store stays.
    """
    # A store that is there already would leave nothing to do.
    for before in (store, work / "one.zarr", *work.glob("first*")):
        shutil.rmtree(before, ignore_errors=True)
    threads = ["--workers", str(workers)]
    idle = peak_of(str(_first(small)), str(work / "one.zarr"), *threads)
    peak = peak_of(str(large), str(store), *threads)
    scenes = sorted(small.glob("*.tif"))
    by_count, count = {}, 1
    while count <= len(scenes):
        listed = work / f"first{count}.txt"
        listed.write_text("".join(f"{scene.absolute()}\n" for scene in scenes[:count]))
        by_count[count] = peak_of(str(listed), str(work / f"first{count}"), "--each", *threads)
        count *= 2
    return {
        "workers": workers,
        "large_scene_bytes": large.stat().st_size,
        "peak_bytes_large_scene": peak,
        "peak_gib_large_scene": round(peak / 2**30, 3),
        "peak_bytes_one_small_scene": idle,
        "peak_bytes_by_number_of_small_scenes": by_count,
    }


def _first(folder: Path) -> Path:
    return sorted(folder.glob("*.tif"))[0]
