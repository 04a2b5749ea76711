"""Measure the main job: scenes to stores, and heads on what the stores hold.

    python pipelines/bench_main_job.py ../shared/data --out docs/benchmarks/main_job

Writes OUT.json and OUT.png and prints tables. Needs the development data and the catalog that
``pipelines/make_eurosat_catalog.py`` made with the same weights.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_bench.encoders import encoder_of
from main_job.figure import draw
from main_job.images import bench_images
from main_job.points import bench_points
from main_job.scenes import SCENES, THREADS, EncodedScene, bench_scene, embed_scene
from main_job.segmentation import bench_segmentation
from main_job.tables import show

from nec.encoders import Encoder
from nec.encoders.tiling import Tiling
from nec.model import Model, load_model

PACKAGES = ("nec", "numpy", "torch", "zarr", "xarray", "scikit-learn", "rasterio", "numba")
PARTS = ("scenes", "segmentation", "points", "images")


def circumstances(model: Model, data: Path, out: Path) -> dict[str, Any]:
    """Say what the figures were made with."""
    shown = "DATA" if data.is_absolute() else data
    target = out.name if out.is_absolute() else out
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        cpu = next((v.split(":")[1].strip() for v in lines if v.startswith("model name")), cpu)
    return {
        "command": f"python pipelines/bench_main_job.py {shown} --out {target}",
        "model": {
            "name": model.name,
            "weights_sha256": model.weights_sha256,
            "steps": model.card["training"]["steps"],
            "precision": model.precision,
            "basis": model.basis_hash,
            "dim": model.encoder.dim,
            "patch": model.encoder.patch_size,
        },
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": THREADS,
        "intervals": "95 %, bootstrap of the test units (2,000 resamples), paired between rows",
    }


def features_of(twin: Encoder, encoded: EncodedScene) -> np.ndarray:
    """Embed a scene with the untrained twin; missing where the model's features are."""
    return embed_scene(twin, encoded.scene, encoded.grid, Tiling())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/main_job"))
    parser.add_argument("--model", default="nec-tiny")
    parser.add_argument("--catalog", type=Path, default=Path("catalogs/eurosat/embeddings.zarr"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--limit", type=int, help="take so many EuroSAT images, to try it out")
    args = parser.parse_args()
    logging.getLogger("nec").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # our own threads share the cores
    model = load_model(args.model)
    twin = encoder_of(None, model.encoder.network.config, precision=model.precision)
    results: dict[str, Any] = circumstances(model, args.data, args.out)
    seconds: dict[str, float] = {}
    folder = args.data / "scenes"
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        encoded = {}
        wanted = {"segmentation": {"alberta"}, "points": {"calgary"}, "scenes": set(SCENES)}
        needed = set().union(*(wanted.get(part, set()) for part in args.parts))
        for name in [n for n in SCENES if n in needed]:
            measured, encoded[name] = bench_scene(args.data / SCENES[name], Path(temporary), model)
            results.setdefault("scenes", {})[name] = measured
        seconds["scenes"] = time.perf_counter() - start
        if "segmentation" in args.parts:
            start = time.perf_counter()
            results["segmentation"] = bench_segmentation(
                encoded["alberta"],
                folder / "sentinel2_alberta_scl.tif",
                model,
                features_of(twin, encoded["alberta"]),
            )
            seconds["segmentation"] = time.perf_counter() - start
        if "points" in args.parts:
            start = time.perf_counter()
            results["points"] = bench_points(
                encoded["calgary"],
                folder / "landsat8_calgary_trainingPoints.shp",
                model,
                features_of(twin, encoded["calgary"]),
            )
            seconds["points"] = time.perf_counter() - start
    if "images" in args.parts:
        start = time.perf_counter()
        results["images"] = bench_images(
            args.catalog, args.data / "eurosat_rgb", model, twin, args.limit
        )
        seconds["images"] = time.perf_counter() - start
    results["seconds"] = {part: round(s, 1) for part, s in seconds.items()}
    show(results)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    if set(args.parts) == set(PARTS):
        draw(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
