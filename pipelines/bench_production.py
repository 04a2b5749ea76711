"""Measure production: kills, throughput, memory, requests over HTTP.

    python pipelines/bench_production.py ../shared/data --out docs/benchmarks/production

Writes OUT.json and OUT.png; parts that are not asked for keep what an earlier call found.
``--work`` keeps scenes and stores; ``--size``, ``--middle`` and ``--scenes`` shrink scenes for a
trial.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured_parts import installed
from production_bench.figure import draw
from production_bench.kills import kill_producer, kill_series, kill_worker
from production_bench.memory import bench_memory
from production_bench.ranges import bench_ranges
from production_bench.scenes import TILE, real_numbers, write_small, write_tiled
from production_bench.thousand import bench_thousand, write_days
from production_bench.throughput import bench_throughput

import nec

PARTS = ("kill", "kill_worker", "kill_series", "throughput", "memory", "http", "thousand")
PACKAGES = ("nec", "numpy", "torch", "zarr", "dask", "distributed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/production"))
    parser.add_argument("--work", type=Path, help="folder for scenes and stores; a temporary one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=8, help="small scenes to be killed over")
    parser.add_argument("--size", type=int, default=TILE, help="edge of the large scene, pixels")
    parser.add_argument("--middle", type=int, default=2048, help="edge of the timed scene")
    parser.add_argument("--thousand", type=int, default=1000, help="small scenes, 5 %% broken")
    parser.add_argument("--days", type=int, default=100, help="those of them that make a series")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing")
    args = parser.parse_args()
    logging.getLogger("nec").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        numbers = real_numbers(args.data)
        small = work / "small"
        if not small.exists():
            write_small(small, numbers, args.scenes)

        def tiled(edge: int) -> Path:
            path = work / f"tiled{edge}.tif"
            if not path.exists():
                write_tiled(path, numbers, (edge, edge), corner=(409600.0, 6000640.0))
            return path

        def days() -> Path:
            if not (work / "few_days").exists():
                write_days(work / "few_days", numbers, args.scenes)
            return work / "few_days"

        large = work / f"tiled{args.size}.zarr"

        def sealed() -> Path:
            if not (large / "nec" / "manifest.json").exists():
                nec.encode(tiled(args.size), large)
                nec.seal(large)
            return large

        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "kill": lambda: kill_producer(small, work, kills=args.kills),
            "kill_worker": lambda: kill_worker(small, work, kills=args.kills),
            "kill_series": lambda: kill_series(days(), work, kills=args.kills),
            "throughput": lambda: bench_throughput(tiled(args.middle), work, repeats=args.repeats),
            "memory": lambda: bench_memory(tiled(args.size), large, small, work),
            "thousand": lambda: bench_thousand(numbers, work, count=args.thousand, days=args.days),
            "http": lambda: bench_ranges(sealed(), work, repeats=args.repeats),
        }
        path = args.out.with_suffix(".json")
        results = json.loads(path.read_text()) if path.exists() else {}
        for part in args.parts:
            results[part] = {**parts[part](), "machine": machine()}
            print(part, json.dumps(results[part])[:600], flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
        draw(results, args.out.with_suffix(".png"))


def machine() -> dict[str, Any]:
    """Say what this was measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "packages": {name: installed(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
