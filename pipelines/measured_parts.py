"""Run the parts of a benchmark, and keep with each what it was measured on."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

INTERVALS = "95 %, bootstrap of the test units (2,000 draws), paired between rows"


def installed(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_parts(
    target: Path,
    jobs: Mapping[str, Callable[[], dict[str, Any]]],
    wanted: Iterable[str],
    show: Callable[[str, dict[str, Any]], None],
    *,
    weights: Any,
    packages: Iterable[str],
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run parts, writing what is there after each; others stay as found with the same weights.

    Calls for different parts may run side by side.

    Parameters
    ----------
    target : Path
        JSON that holds the results.
    jobs : mapping of str to callable
        All parts, in their order.
    wanted : iterable of str
        Those that are run.
    show : callable
        Prints a part by its name and what it found.
    weights : str, or JSON of several
        SHA-256 of the weights; results of others are dropped.
    packages : iterable of str
        Whose versions are kept.
    about : mapping, optional
        What else stands before the parts.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    about_all: dict[str, Any] = {
        "weights_sha256": weights,
        **(about or {}),
        "intervals": INTERVALS,
    }
    here = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "cores": os.cpu_count(),
    }
    measured: dict[str, dict[str, Any]] = {}
    for part in wanted:
        start = time.perf_counter()
        found = jobs[part]()
        measured[part] = found | {"seconds": round(time.perf_counter() - start, 1)} | here
        # Another call may have written parts of its own meanwhile.
        results = about_all | _kept(target, jobs, weights) | measured
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(results, indent=1) + "\n")
        unfinished.replace(target)
        show(part, measured[part])
    return about_all | _kept(target, jobs, weights) | measured


def _kept(target: Path, jobs: Iterable[str], weights: Any) -> dict[str, Any]:
    """Return the parts that are there with the same weights."""
    before = json.loads(target.read_text()) if target.exists() else {}
    if before.get("weights_sha256") != weights:
        return {}
    # Files of before had one account of where all parts were measured.
    there = {key: before[key] for key in ("versions", "cores") if key in before}
    return {part: there | before[part] for part in jobs if part in before}
