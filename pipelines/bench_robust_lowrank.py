"""Low rank and a spectral penalty: what they save, and what they do to accuracy under attack.

    python pipelines/bench_robust_lowrank.py ../shared/data --runs runs/robust --seeds 5

Rows: a dense network, the same with the spectral penalty, low rank, low rank with the penalty,
and a natively small dense network of as many parameters as the latter has. Trained on EuroSAT
RGB's training side, reduced to 32 × 32 pixels, tested on its pool. Networks and what they answer
are kept as soon as they are there, seed by seed; a later call adds seeds, networks or attacked
images, and the command may be stopped and started. About an hour a seed on one core for
both networks. Writes ``docs/benchmarks/robust_lowrank.{json,png}``.

Epochs, rates, ranks and weights of the penalty were chosen on validation images of the training
side, budgets by what the dense row keeps.
"""

import argparse
import dataclasses
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from robust_bench.attacked import Threat
from robust_bench.figure import draw
from robust_bench.images import Parts, load_parts
from robust_bench.networks import make, width_of
from robust_bench.runs import Run
from robust_bench.speed import bench_speed
from robust_bench.summary import REFERENCE, average, costs, right, row_tables
from robust_bench.training import Recipe

from nec.evaluate.intervals import MARGIN

WIDTHS = {"vgg": 0.5, "vit": 0.125}
PLAIN = {
    "vgg": Recipe(epochs=30, bfloat16=True),
    "vit": Recipe(epochs=12, bfloat16=False),
}
LOW_RANK: dict[str, dict[str, Any]] = {
    "vgg": {"low_rank": True, "cap": 30, "peak": 4e-3},
    "vit": {"low_rank": True, "cap": 8, "core_steps": 200},
}
# The penalty grows with the number of layers and with their weights.
BETA = {"vgg": 0.05, "vit": 0.0005}
MATCHED, SMALL = "low rank, penalty", "small dense"
# What is varied around the low-rank row of the first network; truncation without a cap.
TAUS, CAPS, BETAS = (0.1, 0.2, 0.3), (16, 30, 42, 60), (0.01, 0.05)


def recipes(network: str) -> dict[str, Recipe]:
    """Return how each row is trained; what is matched comes before what it is matched to."""
    plain, low = PLAIN[network], dataclasses.replace(PLAIN[network], **LOW_RANK[network])
    return {
        REFERENCE: plain,
        "dense, penalty": dataclasses.replace(plain, beta=BETA[network]),
        "low rank": low,
        MATCHED: dataclasses.replace(low, beta=BETA[network]),
        SMALL: dataclasses.replace(plain, peak=low.peak),
    }


def run_of(network: str, folder: Path, row: str, seed: int, parts: Parts) -> Run:
    """Return a run of the table; the small network takes its width from one that is trained."""
    width = WIDTHS[network]
    if row == SMALL:
        matched = read(run_of(network, folder, MATCHED, seed, parts), parts)
        classes = int(parts.training.labels.max()) + 1
        width = width_of(lambda w: make(network, w, classes, parts.moments), matched["parameters"])
    return Run(folder, row, seed, network, width, recipes(network)[row])


def read(run: Run, parts: Parts) -> dict[str, Any]:
    """Return the record of a run that an earlier row or call made."""
    record = run.read(parts)
    if record is None:
        raise SystemExit(f"{run.row!r} of {run.network} is not trained yet: it comes first")
    return record


def answers(run: Run, parts: Parts, threat: Threat, count: int) -> dict[str, Any]:
    """Train and attack a network, or read what earlier calls found; say what came of it."""
    before = run.path.stat().st_mtime if run.path.exists() else 0
    record = run.answer(parts, threat, count)
    if run.path.stat().st_mtime > before:
        keys = ["clean", *(k for k in record["right"] if k.startswith("PGD"))]
        shown = ", ".join(f"{k} {100 * right(record, k, count).mean():.1f}" for k in keys)
        saved = record.get("compression", {}).get("layers")
        print(
            f"{run.network}, {run.row}, seed {run.seed}: {record['parameters']:,} parameters"
            + ("" if saved is None else f", {100 * saved:.1f} % of layers saved")
            + f", training {record['train_cpu_seconds']:.0f} s, "
            f"attacks {record['attack_cpu_seconds']:.0f} s; {shown}",
            flush=True,
        )
    return record


def bench_network(
    network: str, folder: Path, parts: Parts, threat: Threat, seeds: int, count: int
) -> dict[str, Any]:
    """Return the table of a network over the first `seeds`."""
    runs: dict[str, list[dict[str, Any]]] = {row: [] for row in recipes(network)}
    for seed in range(seeds):
        for row, found in runs.items():
            run = run_of(network, folder, row, seed, parts)
            found.append(answers(run, parts, threat, count))
    return circumstances(network, count) | {"seeds": seeds, "rows": row_tables(runs, count)}


def circumstances(network: str, count: int) -> dict[str, Any]:
    """Return what holds of all rows of a network: another may have been run otherwise."""
    return {
        "width": WIDTHS[network],
        "attacked_images": count,
        "recipes": {row: dataclasses.asdict(r) for row, r in recipes(network).items()},
    }


def bench_curve(
    network: str, folder: Path, parts: Parts, threat: Threat, count: int
) -> dict[str, Any]:
    """Vary truncation, cap and penalty of a network, one seed, and attack with PGD."""
    of_table = {recipe: row for row, recipe in recipes(network).items() if recipe.low_rank}
    low = recipes(network)["low rank"]
    cases = [
        ("tau", dataclasses.replace(low, cap=None, beta=beta, tau=tau))
        for beta in (0.0, BETA[network])
        for tau in TAUS
    ]
    cases += [("cap", dataclasses.replace(low, cap=cap)) for cap in CAPS]
    cases += [("beta", dataclasses.replace(low, beta=beta)) for beta in BETAS]
    # What a cap does that does not fall gradually.
    cases.append(("falling", dataclasses.replace(low, falling=0.0)))
    threat = dataclasses.replace(threat, only=("PGD",))
    keys = ["clean", *(f"PGD {budget:g}" for budget in threat.budgets)]
    points = []
    for varied, recipe in cases:
        if recipe in of_table:
            record = read(run_of(network, folder, of_table[recipe], 0, parts), parts)
        else:
            name = f"beta {recipe.beta:g}, {varied} {getattr(recipe, varied):g}"
            run = Run(folder / "curve", name, 0, network, WIDTHS[network], recipe)
            record = answers(run, parts, threat, count)
        point = {"varied": varied} | {
            k: getattr(recipe, k) for k in ("beta", "tau", "cap", "falling")
        }
        points.append(point | {"accuracy": _accuracies(record, keys, count)} | costs([record]))
    record = read(run_of(network, folder, REFERENCE, 0, parts), parts)
    return circumstances(network, count) | {
        "network": network,
        "seeds": 1,
        "keys": keys,
        "points": points,
        "dense": _accuracies(record, keys, count),
    }


def _accuracies(record: dict[str, Any], keys: list[str], count: int) -> dict[str, Any]:
    return {key: average(right(record, key, count)[None]) for key in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--runs", type=Path, default=Path("runs/robust"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--networks", nargs="+", choices=tuple(WIDTHS), default=tuple(WIDTHS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=500, help="test images that are attacked")
    parser.add_argument("--training", type=int, default=4000, help="training images")
    parser.add_argument("--curve", action="store_true", help="also vary tau, cap and beta")
    parser.add_argument("--speed", action="store_true", help="also time forward passes")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/robust_lowrank"))
    args = parser.parse_args()
    parts = load_parts(args.data, args.split, training=args.training)
    threat = Threat()
    target = args.out.with_suffix(".json")
    settings = {
        "task": f"EuroSAT RGB, 10 classes, at {parts.test.images.shape[-1]} x "
        f"{parts.test.images.shape[-1]} pixels",
        "training_images": len(parts.training.labels),
        "test_images": len(parts.test.labels),
        "threat": dataclasses.asdict(threat),
        "budgets": {name: threat.budgets_of(name) for name in threat.only},
        "margin": MARGIN,
        "intervals": "95 %, bootstrap of seeds and test images (2,000 draws), paired between rows",
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in ("nec", "numpy", "torch")},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    before = json.loads(target.read_text()) if target.exists() else {}
    results = settings | {"networks": before.get("networks", {})}
    results |= {part: before[part] for part in ("curve", "speed") if part in before}

    def keep() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(results, indent=1) + "\n")
        draw(results, args.out.with_suffix(".png"))

    # Seed by seed, so that a table of fewer seeds is complete early.
    for seeds in range(1, args.seeds + 1):
        for network in args.networks:
            results["networks"][network] = bench_network(
                network, args.runs, parts, threat, seeds, args.images
            )
            keep()
    if args.curve:
        results["curve"] = bench_curve(args.networks[0], args.runs, parts, threat, args.images)
        keep()
    if args.speed:
        for n in args.networks:
            timed = {r: run_of(n, args.runs, r, 0, parts) for r in recipes(n)}
            results.setdefault("speed", {})[n] = bench_speed(timed, parts)
            keep()


if __name__ == "__main__":
    main()
