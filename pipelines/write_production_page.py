"""Write the measured parts of docs/production.md, and the computed part of docs/scale.md.

    python pipelines/write_production_page.py

Reads ``docs/benchmarks/production.json`` (see ``bench_production.py``; parts that it lacks are
named), ``backends.json`` (see ``bench_backends.py``) and ``main_job.json`` (bytes of stores of real
scenes).
"""

import argparse
import json
import statistics
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
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    main_job = json.loads((args.benchmarks / "main_job.json").read_text())
    production = args.benchmarks / "production.json"
    measured = json.loads(production.read_text()) if production.exists() else {}
    blocks = {"faults": faults, "speed": speed, "memory": memory, "ranges": ranges}
    page = args.docs / "production.md"
    text = page.read_text()
    for name, write in blocks.items():
        text = replace_block(text, name, write(measured))
    found = json.loads((args.benchmarks / "backends.json").read_text())
    page.write_text(replace_block(text, "backends", backends(found)))
    page = args.docs / "scale.md"
    page.write_text(replace_block(page.read_text(), "cost", cost(main_job, measured)))


def backends(found: dict[str, Any]) -> str:
    """Return what could run the encoder, how fast and how near to float32."""
    rows = [
        ("", "CPU seconds a batch, median", "times as fast as torch bfloat16", "1 - cosine, mean")
    ]
    for name, row in found["rows"].items():
        rows.append(
            (
                name,
                f"{row['median_cpu_seconds']:.2f}",
                f"{row['times_as_fast_as_producer']:.2f}",
                f"{max(row['one_minus_cosine']['mean'], 0):.1e}",
            )
        )
    machine = found["machine"]
    features = ", ".join(name for name, there in machine["features"].items() if there)
    return (
        f"{table(*rows)}\n\n{machine['processor']} ({features}), one core, batches of "
        f"{found['batch']} chips of {found['chip_pixels']} pixels; cosines over {found['chips']} "
        f"chips. Not run: {', '.join(found['refused'])}."
    )


def faults(measured: dict[str, Any]) -> str:
    """Return what kills and broken scenes did."""
    rows = [("killed", "kills", "objects", "same bytes, verified", "reads meanwhile", "partial")]
    for part, name in (
        ("kill", "the producer of stores"),
        ("kill_series", "the producer that appends to a series"),
        ("kill_worker", "a worker of a cluster"),
    ):
        if found := measured.get(part):
            right = "yes" if found["same_bytes"] and found["verified"] else "no"
            reader = found["reader"]
            counts = [f"{found['kills']}", f"{found['objects']:,}", right]
            rows.append((name, *counts, f"{reader['objects']:,}", str(len(reader["partial"]))))
    text = table(*rows) if len(rows) > 1 else lacking("kill kill_series kill_worker")
    if not (found := measured.get("thousand")):
        return f"{text}\n\n{lacking('thousand')}"
    rows = [("small scenes", "run", "failed", "status", "seconds", "peak memory")]
    for kind, name in (("each", "a store each"), ("series", "a series")):
        case = found[kind]
        for key, run in (
            ("first", f"{case['broken']} broken"),
            ("again", "the same again"),
            ("whole", "all repaired"),
        ):
            run_ = case[key]
            rows.append(
                (
                    f"{case['scenes']:,}, {name}",
                    run,
                    str(run_["failed"]),
                    str(run_["status"]),
                    f"{run_['seconds']:.0f}",
                    f"{run_['peak_bytes'] / 2**20:.0f} MiB",
                )
            )
    return f"{text}\n\n{table(*rows)}"


def speed(measured: dict[str, Any]) -> str:
    """Return what encoding takes beside bare forwards, and what a second worker brings."""
    if not (found := measured.get("throughput")):
        return lacking("throughput")
    rows = [("", "seconds, median", "Mpx/s", "CPU seconds")]
    for name, rate in found["megapixels_per_second"].items():
        seconds, cpu = (statistics.median(found[kind][name]) for kind in ("seconds", "cpu_seconds"))
        rows.append((name, f"{seconds:.1f}", f"{rate:.3f}", f"{cpu:.1f}"))
    stages = found["stages_of_one_worker"]
    taken = ", ".join(f"{name} {value:.2f} s" for name, value in stages.items())
    return (
        f"{table(*rows)}\n\nBare forwards over one worker, from file to store: "
        f"**{found['end_to_end_over_forwards']:.3f}**; one worker over two: "
        f"**{found['two_workers_over_one']:.2f}**; beside the forward: "
        f"**{found['share_beside_the_forward']:.1%}** of the time ({taken}). "
        f"{found['pixels'] / 1e6:.2f} Mpx, chips of {found['chip_pixels']} pixels, "
        f"{found['precision']}, {len(found['seconds']['forwards'])} interleaved runs."
    )


def memory(measured: dict[str, Any]) -> str:
    """Return the peaks of one large scene and of ever more small ones."""
    if not (found := measured.get("memory")):
        return lacking("memory")
    counts = found["peak_bytes_by_number_of_small_scenes"]
    rows = [("scenes", "peak of the process")]
    rows.append(("one of a tile's size", f"{found['peak_gib_large_scene']:.2f} GiB"))
    rows += [(f"{n} small", f"{peak / 2**30:.2f} GiB") for n, peak in counts.items()]
    return table(*rows)


def ranges(measured: dict[str, Any]) -> str:
    """Return requests and bytes of a small box over HTTP."""
    if not (found := measured.get("http")):
        return lacking("http")
    rows = [("reader", "requests", "not found", "bytes", "seconds, median")]
    for name, row in found["rows"].items():
        counts = (str(row["requests"]), str(row["not_found"]), size(row["bytes"]))
        rows.append((name, *counts, f"{row['seconds']:.2f}"))
    return (
        f"{table(*rows)}\n\nServed by {found['server']}: a store of {size(found['store_bytes'])}, "
        f"a COG of {size(found['cog_bytes'])}; {found['box_tokens']} x {found['box_tokens']} "
        "tokens, opening included."
    )


def lacking(parts: str) -> str:
    """Say which parts were not measured."""
    return f"Not measured yet: `bench_production.py --parts {parts}`."


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
        middle = statistics.median(found["cpu_seconds"]["one worker"])
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
