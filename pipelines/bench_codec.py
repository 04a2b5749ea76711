"""Measure the codec: rates, labels, lone vectors, overhead, speed, subsets, seasons.

    python pipelines/bench_codec.py ../shared/data --only rates,points

Writes docs/benchmarks/codec.json, section by section (those that are not run stay as they are),
and draws docs/benchmarks/codec.png from all that are there. Needs the development data. faiss,
compressai and constriction are baselines: without them their rows are left out.
"""

import argparse
import importlib
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from codec_bench.figure import draw
from codec_bench.tables import show
from measured_parts import installed

# Each section is a function of the data's folder in a module of its own.
SECTIONS = {
    "rates": "rates",
    "points": "points",
    "galileo": "galileo",
    "overhead": "overhead",
    "speed": "speed",
    "subset": "subset",
    "time": "seasons",
}
PACKAGES = ("nec", "numpy", "numba", "zarr", "xarray", "dask", "scikit-learn", "numcodecs")
OPTIONAL = {
    "faiss-cpu": "PQ and OPQ",
    "compressai": "its range coder",
    "constriction": "its ANS coder",
    "pyarrow": "Clay",
}


def circumstances() -> dict[str, Any]:
    """Say what a section was measured with."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        cpu = next((v.split(":")[1].strip() for v in lines if v.startswith("model name")), cpu)
    found = {p: installed(p) for p in (*PACKAGES, *OPTIONAL)}
    versions = {"python": platform.python_version()} | {p: v for p, v in found.items() if v}
    left_out = [
        f"{what} ({package} is not installed)"
        for package, what in OPTIONAL.items()
        if found[package] is None
    ]
    return {"versions": versions, "cpu": cpu, "cores": os.cpu_count(), "left_out": left_out}


def chosen(text: str) -> list[str]:
    """Read a list of sections; argparse reports what it does not know."""
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--only", type=chosen, default=list(SECTIONS), metavar="SECTION,...")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/codec"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("nec").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    target = args.out.with_suffix(".json")
    results: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    shown = "DATA" if args.data.is_absolute() else args.data
    results["command"] = f"python pipelines/bench_codec.py {shown}"
    run = {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        module = importlib.import_module(f"codec_bench.{SECTIONS[name]}")
        found = circumstances()
        for line in found["left_out"]:
            logging.warning("left out: %s", line)
        start = time.perf_counter()
        run[name] = getattr(module, f"bench_{SECTIONS[name]}")(args.data)
        found["seconds"] = round(time.perf_counter() - start, 1)
        results[name] = {"measured_with": found} | run[name]
        # After each section: the next may take long.
        ordered = {k: results[k] for k in ("command", *SECTIONS) if k in results}
        target.write_text(json.dumps(ordered, indent=1) + "\n")
    show(run)
    draw(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
