"""What each part of the pretraining recipe gives, and what steps and width give.

    python pipelines/bench_pretraining.py ../shared/data --runs runs/ablation

Trains each variant for the same number of steps (``pretrain_encoder.py``, resumable: a variant
that is complete is not trained again) and tests the weights at its end, where the rate has fallen
to zero; the running average, which is shipped of long runs, holds too much of the beginning after
so few steps. EuroSAT RGB, whose fixed test pool no training has seen, by mean and roughness of the
tokens, and land cover of the TerraMesh tiles, token by token in blocks left out. Hyperparameters of
a probe are chosen on training images. Writes OUT.json and OUT.png. About ten CPU-minutes a variant
of 300 steps.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_bench.dense import blocks_left_out, linear_side_by_side, terramesh_tiles
from encoder_bench.encoders import encoder_of
from encoder_bench.images import ImageSet, eurosat_rgb, pooled
from encoder_bench.probes import TRIVIAL, probe
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from nec.encoders import Encoder
from nec.encoders.vit import VisionTransformerConfig

REFERENCE = "recipe"
VARIANTS: dict[str, list[str]] = {
    REFERENCE: [],
    "without a teacher": ["--teacher-weight", "0"],
    "without agreement of views": ["--contrast-weight", "0"],
    "without reconstruction": ["--reconstruction-weight", "0"],
    "without patch statistics": ["--statistics-weight", "0"],
    "agreement of means alone": ["--pooling", "mean"],
    "views of bands of their own": ["--bands", "own"],
    "AdamW throughout": ["--optimizer", "adamw"],
}
WIDTHS = (64, 128)
STEPS = (1 / 2, 2)
# Training images that are embedded, labels of a resample of them, resamples.
TRAIN, LABELS, RESAMPLES, SEED = 1500, 1200, 3, 19


def variants(steps: int) -> dict[str, tuple[int, int, list[str]]]:
    """Return steps, width and further arguments by name."""
    out = {name: (steps, 192, extra) for name, extra in VARIANTS.items()}
    out |= {f"width {w}": (steps, w, ["--width", str(w)]) for w in WIDTHS}
    return out | {f"{round(steps * f)} steps": (round(steps * f), 192, []) for f in STEPS}


def train(data: Path, run: Path, steps: int, batch: int, extra: list[str]) -> None:
    """Train a variant in a process of its own, or go on with it."""
    script = Path(__file__).with_name("pretrain_encoder.py")
    command = [sys.executable, str(script), str(data), "--run", str(run), "--steps", str(steps)]
    command += ["--cooldown", str(steps // 5), "--noise", "0", "--batch", str(batch)]
    subprocess.run([*command, *extra], check=True)


def last_weights(run: Path) -> dict[str, Tensor]:
    """Return the weights of the network at the end of a run."""
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)["objective"]
    start = "network."
    return {k.removeprefix(start): v.contiguous() for k, v in state.items() if k.startswith(start)}


def images_of(data: Path, split: Path) -> ImageSet:
    """Return EuroSAT's test pool, and some of its training images."""
    images = eurosat_rgb(data, split)
    pool = np.random.default_rng(SEED).permutation(np.flatnonzero(~images.pool))[:TRAIN]
    return images.some(np.sort(np.concatenate([pool, np.flatnonzero(images.pool)])))


def probed(
    images: ImageSet, rows: dict[str, NDArray[np.float32]]
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the training labels of a resample, and the table of EuroSAT."""
    rng = np.random.default_rng(SEED)
    pool, test = np.flatnonzero(~images.pool), np.flatnonzero(images.pool)
    splits = [
        (np.sort(rng.choice(pool, min(LABELS, len(pool)), replace=False)), test)
        for _ in range(RESAMPLES)
    ]
    units = np.arange(len(images.labels))
    return len(splits[0][0]), probe(rows, images.labels, splits, units, reference=REFERENCE)


def draw(results: dict[str, Any], out: Path) -> None:
    """Draw accuracies of all variants on both tasks."""
    import matplotlib.pyplot as plt

    images, maps = results["rows"], results["land_cover"]["rows"]
    names = [name for name in images if name in maps and name != TRIVIAL]
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 0.32 * len(names) + 1.4), layout="constrained", sharey=True
    )
    series = {
        "EuroSAT RGB, linear": (axes[0], "#0b6e99", {n: images[n]["linear"] for n in names}),
        "EuroSAT RGB, k-NN": (axes[0], "#d1811f", {n: images[n]["k-NN"] for n in names}),
        "land cover, linear": (axes[1], "#0b6e99", {n: maps[n] for n in names}),
    }
    for label, (ax, colour, rows) in series.items():
        for at, (name, row) in enumerate(reversed(rows.items())):
            low, mid, high = (100 * row["accuracy"][k] for k in ("low", "value", "high"))
            ax.plot([low, high], [at, at], color=colour)
            marker = "D" if name == REFERENCE else "o"
            ax.plot(mid, at, marker, color=colour, label=label if at == 0 else None)
    for ax in axes:
        ax.set_xlabel("accuracy, % (95 % interval)")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    axes[0].set_yticks(range(len(names)), list(reversed(names)))
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    args = options()
    images, tiles = images_of(args.data, args.split), terramesh_tiles(args.data)
    rows: dict[str, NDArray[np.float32]] = {}
    training: dict[str, Any] = {}
    encoders: dict[str, Encoder] = {}
    for name, (steps, width, extra) in variants(args.steps).items():
        run = args.runs / name.replace(" ", "_")
        weights, vectors = run / "last.safetensors", run / "last_vectors.npy"
        if not weights.exists():
            print(f"== {name}", flush=True)
            train(args.data, run, steps, args.batch, extra)
            save_file(last_weights(run), weights)
        encoders[name] = encoder_of(weights, VisionTransformerConfig.sized(width))
        if not vectors.exists():
            np.save(vectors, pooled(encoders[name], images))
        rows[name] = np.load(vectors)
        training[name] = {
            "steps": steps,
            "width": width,
            "arguments": " ".join(extra),
            "parameters": sum(v.numel() for v in load_file(weights).values()),
        }
    untrained = encoder_of(None, VisionTransformerConfig())
    rows["untrained"], encoders["untrained"] = pooled(untrained, images), untrained
    labels, table = probed(images, rows)
    land_cover = blocks_left_out(tiles, linear_side_by_side(encoders)(tiles), reference=REFERENCE)
    results = {
        "task": "EuroSAT RGB, mean and roughness of the tokens of 64 bands",
        "batch": args.batch,
        "training_labels": labels,
        "resamples": RESAMPLES,
        "training": training,
        "rows": table,
        "land_cover": land_cover,
    }
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.out.with_suffix(".png"))


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/pretraining"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
