"""Write the computed part of docs/scale.md.

    python pipelines/write_scale_page.py

Reads ``docs/benchmarks/main_job.json`` (bytes of stores of real scenes) and, where it is there,
the throughput in ``docs/benchmarks/production.json`` (see ``bench_production.py``).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from write_codec_page import table
from write_readme import replace_block

# Pixels of a Sentinel-2 tile each way; days between passes of two satellites; land, km².
TILE, REVISIT, LAND = 10980, 5, 149e6
PATCH, SHARD = 4, 256
# Bytes a pixel of the products that are compared with.
OTHERS = {"int8, 64 dimensions a pixel": 64, "int8, 128 dimensions a pixel": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--benchmarks", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--page", type=Path, default=Path("docs/scale.md"))
    args = parser.parse_args()
    main_job = json.loads((args.benchmarks / "main_job.json").read_text())
    production = args.benchmarks / "production.json"
    measured = json.loads(production.read_text()) if production.exists() else {}
    text = replace_block(args.page.read_text(), "cost", cost(main_job, measured))
    args.page.write_text(text)


def cost(main_job: dict[str, Any], production: dict[str, Any]) -> str:
    """Return the table of bytes, core-hours and objects."""
    scene = main_job["scenes"]["alberta"]
    scenes = -(-365 // REVISIT)
    shards = (-(-TILE // (PATCH * SHARD)) + 1) ** 2
    pixels = {
        f"a tile's year ({scenes} scenes)": (scenes * TILE**2, scenes),
        "land, one scene of each place": (LAND * 1e4, LAND * 1e4 / TILE**2),
    }
    hours, source = core_hours_per_pixel(main_job, production)
    rows = [("", *pixels)]
    rows.append(("pixels of 10 m", *(f"{count:.3g}" for count, _ in pixels.values())))
    for rate, found in scene["rates"].items():
        payload = sum(found["payload"].values()) / scene["tokens_valid"] / PATCH**2
        cells = []
        for count, stores in pixels.values():
            fixed = stores * found["fixed_bytes"]
            total = count * payload + fixed
            cells.append(f"{size(total)} ({fixed / total:.1%} fixed)")
        rows.append((f"`{rate}`, {payload * PATCH**2:.3f} B a token", *cells))
    for name, each in OTHERS.items():
        rows.append((name, *(size(count * each) for count, _ in pixels.values())))
    rows.append(("core-hours", *(f"{count * hours:,.0f}" for count, _ in pixels.values())))
    rows.append(("objects of arrays", *(f"{2 * shards * n:,.0f}" for _, n in pixels.values())))
    return (
        f"{table(*rows)}\n\nBytes a token are those of the Alberta scene, of one date, with every "
        f"pixel valid; core-hours are from {source}; objects at most, {shards} shards a tile."
    )


def core_hours_per_pixel(main_job: dict[str, Any], production: dict[str, Any]) -> tuple[float, str]:
    """Return core-hours a pixel, and where they come from."""
    if found := production.get("throughput"):
        seconds = sorted(found["cpu_seconds"]["one worker"])
        middle = seconds[len(seconds) // 2]
        return middle / found["pixels"] / 3600, "the end-to-end throughput of one worker"
    scene = main_job["scenes"]["alberta"]
    # Threads of the embedding, taken as busy all the time: at most so many.
    seconds = scene["embedding_seconds"] * main_job["threads"]
    pixels = scene["tokens_valid"] * PATCH**2
    return seconds / pixels / 3600, "embedding the Alberta scene, threads taken as always busy"


def size(count: float) -> str:
    """Say bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


if __name__ == "__main__":
    main()
