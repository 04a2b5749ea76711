"""Accuracy against bytes: our streams, codecs on pixels, and simpler codings of embeddings.

    python pipelines/bench_rate_accuracy.py ../shared/data
    python pipelines/bench_rate_accuracy.py ../shared/data --models runs/bottleneck/model
    python pipelines/bench_rate_accuracy.py ../shared/data --train 300 --test 300 --ucmerced 84

Every row codes the images of a task in its own way, and a linear probe is fitted to what is
decoded of the training images: pixels that were coded go through the same encoder and get a head
of their own. Whatever is fitted is fitted to training images. Rows are paired with the encoder's
float32 tokens of the raw pixels, pooled alike. Tasks of maps code whole scenes, and a linear head
labels their tokens; they are measured with Galileo-nano too. Vectors of each row are kept in
--work, so a run that was stopped goes on where it was. Rows whose library is missing
(``pip install nec[bench]``) are left out, and named. Writes OUT.json, OUT.png and OUT_maps.png;
write_rates_page.py makes the page.
"""

import argparse
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from main_job.statistics import pixel_statistics
from measured_parts import installed
from rate_bench.coders import STREAM, Coder, plain
from rate_bench.embeddings import (
    FALLOFFS,
    Embeddings,
    Ladder,
    code_pooled,
    ladder_of,
    principal_of,
    product_of,
    stream_of,
    uniform_of,
)
from rate_bench.eyes import Eye, galileo_eye, our_eye
from rate_bench.figure import draw
from rate_bench.maps import MAP_TASKS, bench_maps
from rate_bench.memory import bench_memory
from rate_bench.pixels import LADDERS, code_pixels
from rate_bench.rows import REFERENCE, Rows
from rate_bench.tasks import (
    MEAN,
    ROUGH,
    Coded,
    Fold,
    Progress,
    Task,
    eurosat,
    folder_of,
    pooled_both,
    tokens_of,
    ucmerced_folds,
)
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from nec.compressor import Compressor
from nec.evaluate import compare_rates
from nec.model import Model, load_model

MARGIN = 0.01
IMAGE_TASKS = ("eurosat_rgb", "ucmerced")
TASKS = (*IMAGE_TASKS, *MAP_TASKS)
ENCODERS = ("ours", "galileo")
PACKAGES = ("numpy", "torch", "scikit-learn", "pillow", "imagecodecs", "faiss-cpu", "constriction")
POOLED = (("PCA-k int8", (4, 8, 16, 32, 64)), ("PCA-k int8, zstd", (8, 16, 32, 64)))
PRINCIPAL, PARTS = (1, 2, 4, 8, 16, 32), ((1, 4), (1, 8), (2, 8), (4, 8))
STEPS = (4.0, 2.0, 1.0, 0.5, 0.25)


def learned_name(path: Path) -> str:
    """Name the row of a learned model's folder RUN/model."""
    return f"learned: {path.parent.name}"


def add_embeddings(rows: Rows, model: Model, models: list[Path]) -> float:
    """Add what codes tokens; return the encoder's milliseconds an image."""
    task, folder = rows.task, rows.folder
    tokens, ms = tokens_of(
        model.encoder, task, folder / "tokens.npy", rows.progress("raw pixels: encoder")
    )

    def of(fold: int, own: Any = tokens) -> Embeddings:
        return Embeddings(task, task.folds[fold], own)

    def add(
        method: str,
        setting: str,
        make: Callable[[Embeddings], Coder],
        own: Any = tokens,
        key: str = "",
    ) -> None:
        def coded(fold: int, progress: Progress) -> Coded:
            data = of(fold, own)
            return data.coded(make(data), progress)

        rows.add(method, setting, coded, key=key)

    add(REFERENCE, "", lambda _: plain("float32"))
    add("tokens, float16", "", lambda _: plain("float16"))
    add_ladder(rows, of, 1.0, STREAM)
    for falloff in FALLOFFS:
        add_ladder(rows, of, falloff, f"{STREAM}, falloff {falloff:g}")
    for rate, compressor in model.compressors.items():
        add("as shipped", rate, lambda e, c=compressor: stream_of(e, c), key=compressor.digest)
    for path in models:
        own = load_model(path)
        name = learned_name(path)
        theirs, _ = tokens_of(
            own.encoder,
            task,
            folder / f"tokens-{own.weights_sha256[:12]}.npy",
            rows.progress(f"{name}: encoder"),
        )
        ladder = {p.stem: Compressor.load(p) for p in ladder_of(path)} or own.compressors
        weights = own.weights_sha256[:8]
        add(f"{name}, float32", "", lambda _: plain("float32"), theirs, weights)
        for rate, c in ladder.items():
            key = f"{c.digest[:8]}{weights}"
            add(name, rate, lambda e, c=c: stream_of(e, c), theirs, key)
    for step in STEPS:
        add("KLT, uniform steps, order-0", f"{step:g}", lambda e, s=step: uniform_of(e, s))
    for packed, name in ((False, "tokens, PCA-k int8"), (True, "tokens, PCA-k int8, zstd")):
        for k in PRINCIPAL:
            add(name, str(k), lambda e, k=k, z=packed: principal_of(e, k, z))
    for parts, bits in PARTS:
        add("tokens, PQ", f"{parts} x {bits}", lambda e, m=parts, b=bits: product_of(e, m, b))
    both = pooled_both(np.asarray(tokens))
    for pooling, vectors in both.items():
        add_pooled(rows, f"pooled, {pooling}", vectors, pooling)
    return ms


def chunk_of(rows: Rows) -> np.ndarray:
    """Return the tokens (n, y, x, dim) of a task's first chunk."""
    task = rows.task
    tokens = np.load(rows.folder / "tokens.npy", mmap_mode="r")
    return np.moveaxis(tokens[np.sort(next(task.chunks(task.folds[0])))], 1, -1)


def add_ladder(rows: Rows, of: Callable[[int], Embeddings], falloff: float, name: str) -> None:
    """Add the transform codec at each size of the ladder; a fold's rates share a basis."""
    task = rows.task
    ladders: dict[int, Ladder] = {}

    def make(fold: int, size: float, progress: Progress) -> Coded:
        if fold not in ladders:
            ladders[fold] = Ladder(of(fold), falloff)
        return of(fold).coded(stream_of(of(fold), ladders[fold].fit(size)), progress)

    for size in task.sizes:
        rows.add(name, f"{size:g} B", lambda f, p, s=size: make(f, s, p))


def add_pooled(rows: Rows, name: str, vectors: np.ndarray, pooling: str) -> None:
    """Add codings of one vector an image."""

    def make(fold: int, kind: str, k: int) -> Coded | None:
        return code_pooled(vectors, rows.task, rows.task.folds[fold], kind, k, pooling)

    for kind in ("float32", "float16"):
        rows.add(f"{name}, {kind}", "", lambda f, _, k=kind: make(f, k, 0))
    for kind, components in POOLED:
        for k in components:
            if k > vectors.shape[1] or (kind.endswith("zstd") and rows.task.chunk == 1):
                continue
            rows.add(f"{name}, {kind}", str(k), lambda f, _, n=kind, k=k: make(f, n, k))
    for parts in (4, 8, 16):
        rows.add(f"{name}, PQ", str(parts), lambda f, _, m=parts: make(f, "PQ", m))


def add_pixels(rows: Rows, model: Model) -> None:
    """Add codecs on pixels, and the statistics of pixels, which no encoder sees."""
    task = rows.task

    def make(fold: int, name: str, setting: float, progress: Progress) -> Coded | None:
        return code_pixels(task, task.folds[fold], name, setting, model.encoder, progress)

    for name, ladder in LADDERS[task.name].items():
        for setting in ladder:
            # Streams of single images do not hang on the fold.
            rows.add(
                name,
                f"{setting:g}",
                lambda f, p, n=name, s=setting: make(f, n, s, p),
                every_fold="mosaic" in name,
            )
    statistics = pixel_statistics(task.images.images)

    def described(fold: Fold, kind: str, k: int) -> Coded | None:
        known = statistics[fold[0]]
        scaled = (statistics - known.mean(0)) / np.maximum(known.std(0), 1e-6)
        parts = [code_pooled(scaled, task, fold, kind, k, p) for p in (MEAN, ROUGH)]
        if parts[0] is None or parts[1] is None:
            return None
        return Coded(parts[0].vectors | parts[1].vectors, parts[0].size)

    rows.add("pixel statistics, float32", "", lambda f, _: described(task.folds[f], "float32", 0))
    for k in (8, 16, 32, 64):
        rows.add(
            "pixel statistics, PCA-k int8",
            str(k),
            lambda f, _, k=k: described(task.folds[f], "PCA-k int8", k),
        )


def compared(table: dict[str, Any], task: Task) -> dict[str, Any]:
    """Compare methods over the cheapest codec of pixels, and over the transform codec."""
    methods = {
        m: r
        for m, r in table["rows"].items()
        if m != REFERENCE and "difference" in r[0]["accuracy"]
    }
    of_pixels = [m for m in LADDERS[task.name] if m in methods and "mosaic" not in m]
    bases = {"transform codec": STREAM}
    if of_pixels:
        found = compare_rates(methods, base=of_pixels[0], margin=MARGIN)
        sizes = {m: found[m]["bytes_at_margin"] for m in of_pixels}
        reached = {m: s for m, s in sizes.items() if s is not None}
        best = min(reached, key=reached.__getitem__) if reached else of_pixels[0]
        bases["cheapest codec of pixels"] = best
    if "JPEG 2000, mosaic of 100" in methods:
        bases["mosaic"] = "JPEG 2000, mosaic of 100"
    return {
        kind: {"base": base, "methods": compare_rates(methods, base=base, margin=MARGIN)}
        for kind, base in bases.items()
    }


def learned_ladders(models: list[Path]) -> dict[str, tuple[Any, dict[str, Compressor]]]:
    """Return encoder and rates of each learned model, by row."""
    found = {}
    for path in models:
        model = load_model(path)
        ladder = {p.stem: Compressor.load(p) for p in ladder_of(path)}
        found[learned_name(path)] = (model.encoder, ladder or dict(model.compressors))
    return found


def eyes_of(args: argparse.Namespace, model: Model) -> Iterator[Eye]:
    """Give the encoders that maps are measured with."""
    if "ours" in args.encoders:
        yield our_eye(model, args.data, learned_ladders(args.models))
    if "galileo" in args.encoders:
        yield galileo_eye(args.data)


def in_order(results: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of all tasks, then the tasks as TASKS has them, encoders beside."""
    places = {name: at for at, name in enumerate(TASKS)}
    return dict(sorted(results.items(), key=lambda kept: places.get(kept[0].split(", ")[0], -1)))


def versions() -> dict[str, str]:
    """Return the releases of what is installed."""
    found = {package: installed(package) for package in PACKAGES}
    return {"python": platform.python_version()} | {p: v for p, v in found.items() if v}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--model", default="nec-tiny", help="encoder of all rows but --models")
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], help="folders RUN/model of learned models"
    )
    parser.add_argument(
        "--encoders", nargs="+", choices=ENCODERS, default=ENCODERS, help="of the maps"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--train", type=int, default=2400, help="training images of EuroSAT")
    parser.add_argument("--test", type=int, help="images of EuroSAT's test pool; all by default")
    parser.add_argument("--ucmerced", type=int, help="about so many images of UC Merced only")
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--work", type=Path, default=Path("runs/rates"), help="kept vectors")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/rate_accuracy"))
    args = parser.parse_args()
    logging.getLogger("nec").setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    model = load_model(args.model)
    target = args.out.with_suffix(".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    if results.get("weights_sha256") != model.weights_sha256:
        results = {}
    results |= {
        "weights_sha256": model.weights_sha256,
        "versions": versions(),
        "intervals": "95 %, bootstrap of the test images (2,000 draws), paired between rows",
        "margin": MARGIN,
        "times": "CPU milliseconds an image, all threads, of the coding alone",
    }
    if args.models:
        results["learned"] = {
            learned_name(path): load_model(path).card["bottleneck"] for path in args.models
        }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    eyes: list[Eye] = []
    for name in args.tasks:
        start = time.perf_counter()
        if name in MAP_TASKS:
            eyes = eyes or [*eyes_of(args, model)]
            for eye in eyes:
                found = bench_maps(MAP_TASKS[name](args.data, eye), eye, args.work)
                results[f"{name}, {eye.name}"] = found
                target.write_text(json.dumps(in_order(results), indent=1) + "\n")
            print(f"{name}: {time.perf_counter() - start:.0f} s")
            continue
        if name == "eurosat_rgb":
            task = eurosat(args.data, args.split, args.train, args.test)
        else:
            task = ucmerced_folds(args.data, args.ucmerced)
        with Bars(*columns, TimeElapsedColumn()) as bars:
            rows = Rows(task, folder_of(args.work, task, model.weights_sha256), bars)
            encoder_ms = add_embeddings(rows, model, args.models)
            add_pixels(rows, model)
            tables = rows.probed()
        for table in tables.values():
            table["comparisons"] = compared(table, task)
        results[name] = {
            "title": task.title,
            "images": {
                "train": len(task.folds[0][0]),
                "test": len(np.unique(np.concatenate([test for _, test in task.folds]))),
            },
            "raw_bytes": task.raw_bytes,
            "encoder_ms": round(encoder_ms, 2),
            "reference": REFERENCE,
            "views": tables,
            "memory": bench_memory(task, args.model, chunk_of(rows)),
            "left_out": rows.missing,
            "seconds": round(time.perf_counter() - start, 1),
        }
        target.write_text(json.dumps(in_order(results), indent=1) + "\n")
        print(f"{name}: {results[name]['seconds']} s; left out: {rows.missing or 'nothing'}")
    draw({t: results[t] for t in IMAGE_TASKS if t in results}, args.out.with_suffix(".png"))
    maps = {t: found for t, found in in_order(results).items() if t.split(", ")[0] in MAP_TASKS}
    if maps:
        draw(maps, args.out.with_name(args.out.name + "_maps.png"))


if __name__ == "__main__":
    main()
