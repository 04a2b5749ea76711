"""Heads on a store larger than memory: fit and map within a limit that the kernel enforces.

    python pipelines/bench_out_of_core.py ../shared/data
    python pipelines/bench_out_of_core.py ../shared/data --rows 25008 --steps points

The store holds the embeddings of 100,000 x 100,000 pixels: 25,008 x 25,008 tokens, 149 GiB as
float32. It is one coded shard of a real scene, linked to everywhere, so that every read fetches,
checks and decodes as it would of a store that repeats nothing. Each head is fitted to labels all
over the store, then maps the first ``--rows`` of its 25,008 rows in their full width; all of them
take a core about half an hour a head, and the network many hours. Every step is a process of its
own, within ``--limit`` MiB of writable memory. Writes OUT.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from numpy.typing import NDArray
from out_of_core.store import repeat_store, write_labels
from production_bench.scenes import BANDS, SHARD, real_numbers, write_tiled
from rich.progress import Progress

import nec
from nec.archive import open_store
from nec.sampling import without_time

PATCH = 4
# A place where the lattice of shards in EPSG:32633 has a corner, metres.
CORNER = (409_600.0, 6_000_640.0)
STEPS = ("points", "linear", "biomass", "fpn")
PACKAGES = ("nec", "numpy", "dask", "zarr", "scikit-learn", "torch")
WORK = Path(__file__).parent / "out_of_core" / "work.py"


def token_means(scene: Path) -> dict[str, NDArray[np.float32]]:
    """Return reflectance of each token, its mean, by band."""
    with rasterio.open(scene) as dataset:
        numbers = dataset.read().astype(np.float32) * dataset.scales[0] + dataset.offsets[0]
    bands, height, width = numbers.shape
    cut = numbers.reshape(bands, height // PATCH, PATCH, width // PATCH, PATCH)
    return dict(zip(BANDS, cut.mean((2, 4)), strict=True))


def prepare(data: Path, work: Path, tokens: int, labelled: int) -> dict[str, Path]:
    """Encode a shard, repeat it, and write labels of three kinds all over the store."""
    scene, small = work / "shard.tif", work / "shard.zarr"
    if not scene.exists():
        write_tiled(scene, real_numbers(data), (SHARD, SHARD), corner=CORNER)
    nec.encode(scene, small)
    store = repeat_store(small, work / f"repeated{tokens}.zarr", tokens)
    means = token_means(scene)
    index = (means["nir08"] - means["red"]) / (means["nir08"] + means["red"])
    classes = np.digitize(index, np.quantile(index, [1 / 3, 2 / 3])).astype(np.uint8)
    quantity = (100 * means["nir08"]).astype(np.float32)
    paths = {"store": store}
    for name, tile, nodata in (("classes", classes, 255.0), ("quantity", quantity, -1.0)):
        paths[name] = work / f"{name}{tokens}.tif"
        write_labels(paths[name], store, tile, tiles=labelled, share=0.002, nodata=nodata)
    paths["points"] = work / f"points{tokens}.gpkg"
    write_points(paths["points"], store, classes, count=4 * labelled)
    return paths


def write_points(path: Path, store: Path, tile: NDArray[np.uint8], *, count: int) -> None:
    """Write points with the class of the token beneath them."""
    array = without_time(open_store(store)["embedding"])
    rng = np.random.default_rng(1)
    y, x = (rng.integers(array.sizes[d], size=count) for d in ("y", "x"))
    where = geopandas.points_from_xy(array["x"].values[x], array["y"].values[y])
    classes = tile[y % len(tile), x % len(tile)]
    table = geopandas.GeoDataFrame({"class": classes}, geometry=where, crs=array.rio.crs)
    table.to_file(path, driver="GPKG")


def run_step(step: str, paths: dict[str, Path], out: Path, **settings: Any) -> dict[str, Any]:
    """Run a step in a process of its own; RuntimeError where it does not come to its end."""
    labels = paths["quantity" if step == "biomass" else "classes"]
    told = {
        "step": step,
        "store": str(paths["store"]),
        "labels": str(labels),
        "points": str(paths["points"]),
        "out": str(out),
        **settings,
    }
    # GDAL's cache of blocks takes 5 % of the machine's memory, here that of the limit.
    cache = {"GDAL_CACHEMAX": str(settings["limit"] // 20)}
    done = subprocess.run(
        [sys.executable, str(WORK), json.dumps(told)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | cache,
    )
    if done.returncode:
        raise RuntimeError(f"{step} failed: {done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/out_of_core"))
    parser.add_argument("--work", type=Path, help="folder for the store; a temporary one")
    parser.add_argument("--tokens", type=int, default=25_008, help="edge of the store")
    parser.add_argument("--rows", type=int, default=1024, help="rows of tokens that are mapped")
    parser.add_argument("--fpn-rows", type=int, default=128, help="of the network, which is slow")
    parser.add_argument("--labelled", type=int, default=500, help="shards that hold labels")
    parser.add_argument("--fpn-steps", type=int, default=20, help="training steps of the network")
    parser.add_argument("--limit", type=int, default=2048, help="MiB of writable memory")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    args = parser.parse_args()
    target = args.out.with_suffix(".json")
    results: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as temporary, Progress(transient=True) as bar:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        steps = bar.add_task("store", total=len(args.steps) + 1)
        paths = prepare(args.data, work, args.tokens, args.labelled)
        for step in args.steps:
            bar.update(steps, advance=1, description=step)
            suffix = ".zarr" if step == "biomass" else ".tif"
            found = run_step(
                step,
                paths,
                work / f"{step}{suffix}",
                rows=args.fpn_rows if step == "fpn" else args.rows,
                steps=args.fpn_steps,
                limit=args.limit * 2**20,
                workers=args.workers,
            )
            results.setdefault("steps", {})[step] = {**found, "tokens": args.tokens}
            results |= {
                "task": "heads on embeddings of a scene of 100,000 x 100,000 pixels",
                "versions": {"python": platform.python_version()}
                | {package: version(package) for package in PACKAGES},
                "cores": os.cpu_count(),
            }
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(results, indent=1) + "\n")
            bar.console.print(step, json.dumps(found))


if __name__ == "__main__":
    main()
