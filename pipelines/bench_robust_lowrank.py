"""Low rank and a spectral penalty: what they save, and what they do to accuracy under attack.

    python pipelines/bench_robust_lowrank.py ../shared/data --runs runs/robust

Rows: a dense network, the same with the spectral penalty, low rank, low rank with the penalty,
and a natively small dense network of as many parameters as the latter has. Trained on EuroSAT
RGB's training side, tested on its pool, several seeds; a run that is complete is not trained
again, so the command may be stopped and started. Writes
``docs/benchmarks/robust_lowrank.{json,png}``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_bench.images import eurosat_rgb
from numpy.typing import NDArray
from robust_bench.attacked import BUDGETS, outcomes
from robust_bench.networks import Vgg, VitClassifier, parameters, width_of
from robust_bench.training import Recipe, train
from torch import Tensor, nn

from nec.evaluate.intervals import DRAWS
from nec.lowrank import compression, condition_bound, condition_number, lowrank_layers

ROWS = {
    "dense": Recipe(),
    "dense, penalty": Recipe(beta=0.05),
    "low rank": Recipe(low_rank=True, peak=8e-3),
    "low rank, penalty": Recipe(low_rank=True, beta=0.05, peak=8e-3),
    "small dense": Recipe(),
}
REFERENCE, MATCHED = "dense", "low rank, penalty"
MARGIN = 0.01


def make(network: str, width: float, classes: int, moments: tuple[Tensor, Tensor]) -> nn.Module:
    """Return a network with the weights that it starts from."""
    if network == "vgg":
        return Vgg(width, classes, *moments)
    return VitClassifier(width, classes)


def run(
    row: str,
    network: str,
    seed: int,
    args: argparse.Namespace,
    train_set: tuple[Tensor, Tensor],
    test_set: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """Train and attack one network, or read what an earlier call found."""
    folder = args.runs / f"{network}_{args.width:g}_{args.epochs}"
    path = folder / f"{row.replace(' ', '_').replace(',', '')}_{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    classes = int(train_set[1].max()) + 1
    moments = (train_set[0].mean((0, 2, 3)), train_set[0].std((0, 2, 3)))
    width = args.width
    if row == "small dense":
        wanted = run(MATCHED, network, seed, args, train_set, test_set)["parameters"]
        width = width_of(lambda w: make(network, w, classes, moments), wanted)
    torch.manual_seed(seed)
    model = make(network, width, classes, moments)
    start = time.process_time()
    progress = train(model, ROWS[row], *train_set, epochs=args.epochs, seed=seed)
    trained = time.process_time() - start
    found: dict[str, Any] = {
        "width": round(width, 4),
        "parameters": parameters(model),
        "train_cpu_seconds": round(trained, 1),
        "loss": progress.loss,
        "penalty": progress.penalty,
    }
    if ROWS[row].low_rank:
        saved = compression(model, test_set[0][:1])
        layers = lowrank_layers(model)
        found |= {
            "compression": {"layers": saved.layers, "model": saved.model, "flops": saved.flops},
            "ranks": {name: list(layer.ranks) for name, layer in layers.items()},
            "condition": {
                name: [condition_number(layer.core), condition_bound(layer.core)]
                for name, layer in layers.items()
            },
        }
    start = time.process_time()
    right = outcomes(model, *test_set)
    found["attack_cpu_seconds"] = round(time.process_time() - start, 1)
    found["right"] = {k: np.packbits(v).tobytes().hex() for k, v in right.items()}
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(path)
    print(
        f"{network}, {row}, seed {seed}: {found['parameters']:,} parameters, "
        f"{found['train_cpu_seconds']:.0f} s, "
        + ", ".join(f"{k} {100 * v.mean():.1f}" for k, v in right.items()),
        flush=True,
    )
    return found


def summary(runs: dict[str, list[dict[str, Any]]], count: int) -> dict[str, Any]:
    """Give each row its accuracies, and differences to dense paired by image and seed."""
    right: dict[str, dict[str, NDArray[np.float64]]] = {}
    for row, found in runs.items():
        right[row] = {
            key: np.stack(
                [
                    np.unpackbits(np.frombuffer(bytes.fromhex(f["right"][key]), np.uint8))[:count]
                    for f in found
                ]
            ).astype(float)
            for key in found[0]["right"]
        }
    rng = np.random.default_rng(0)
    seeds = len(next(iter(runs.values())))
    images = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count
    # Seeds are drawn as well: another training is another unit.
    trainings = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds

    def interval(values: NDArray[np.float64]) -> dict[str, float]:
        drawn = np.einsum("ds,di,si->d", trainings, images, values, optimize=True)
        low, high = np.quantile(drawn, (0.025, 0.975))
        return {
            "value": round(float(values.mean()), 5),
            "low": round(float(low), 5),
            "high": round(float(high), 5),
        }

    table: dict[str, Any] = {}
    for row, of_row in right.items():
        entry: dict[str, Any] = {"accuracy": {k: interval(v) for k, v in of_row.items()}}
        if row != REFERENCE:
            entry["difference"] = {k: interval(v - right[REFERENCE][k]) for k, v in of_row.items()}
            entry["no_worse"] = {k: v["low"] > -MARGIN for k, v in entry["difference"].items()}
        for key in ("parameters", "train_cpu_seconds", "width"):
            entry[key] = round(float(np.mean([f[key] for f in runs[row]])), 3)
        if "compression" in runs[row][0]:
            entry["compression"] = {
                k: round(float(np.mean([f["compression"][k] for f in runs[row]])), 4)
                for k in ("layers", "model", "flops")
            }
            pairs = np.array([list(f["condition"].values()) for f in runs[row]])
            entry["condition_number_median"] = round(float(np.median(pairs[..., 0])), 3)
            entry["condition_within_bound"] = bool((pairs[..., 0] <= pairs[..., 1] * 1.0001).all())
        table[row] = entry
    return table


def draw(table: dict[str, Any], out: Path) -> None:
    """Draw accuracy against budget, a panel an attack."""
    import matplotlib.pyplot as plt

    names = ("FGSM", "PGD", "APGD", "Square")
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained", sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for row, entry in table.items():
            keys = ["clean", *(f"{name} {255 * b:g}" for b in BUDGETS)]
            values = [entry["accuracy"][k] for k in keys]
            at = [0, *(255 * b for b in BUDGETS)]
            line = ax.plot(at, [100 * v["value"] for v in values], marker="o", label=row)
            low, high = ([100 * v[k] for v in values] for k in ("low", "high"))
            ax.fill_between(at, low, high, color=line[0].get_color(), alpha=0.15)
        ax.set_title(name)
        ax.set_xlabel("budget, 1/255")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, % (95 %)")
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--runs", type=Path, default=Path("runs/robust"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--networks", nargs="+", choices=("vgg", "vit"), default=("vgg", "vit"))
    parser.add_argument("--width", type=float, default=0.25, help="fraction of the published one")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000, help="test images that are attacked")
    parser.add_argument("--limit", type=int, help="training images, to try it out")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/robust_lowrank"))
    args = parser.parse_args()
    images = eurosat_rgb(args.data, args.split)
    _, truth = np.unique(images.labels, return_inverse=True)
    rng = np.random.default_rng(0)
    test = rng.permutation(np.flatnonzero(images.pool))[: args.images]
    learn = rng.permutation(np.flatnonzero(~images.pool))[: args.limit]
    train_set, test_set = (
        (torch.from_numpy(images.images[at]), torch.from_numpy(truth[at])) for at in (learn, test)
    )
    results: dict[str, Any] = {
        "task": "EuroSAT RGB, 10 classes",
        "training_images": len(learn),
        "attacked_images": len(test),
        "epochs": args.epochs,
        "seeds": args.seeds,
        "width": args.width,
        "margin": MARGIN,
        "networks": {},
    }
    for network in args.networks:
        runs: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
        # Seed by seed, so that a table of fewer seeds is complete early.
        for seed in range(args.seeds):
            for row in ROWS:
                runs[row].append(run(row, network, seed, args, train_set, test_set))
            results["networks"][network] = summary(runs, len(test))
            args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        draw(results["networks"][network], args.out.with_name(f"{args.out.name}_{network}.png"))


if __name__ == "__main__":
    main()
