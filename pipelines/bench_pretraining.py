"""What each part of the pretraining recipe gives, and what steps and width give.

    python pipelines/bench_pretraining.py ../shared/data --runs runs/ablation

Trains each variant for the same number of steps (``pretrain_encoder.py``, resumable: a variant
that is complete is not trained again) and probes EuroSAT RGB with the running average of its
weights. Hyperparameters of a probe are chosen on training images; the test pool is fixed.
Writes ``docs/benchmarks/pretraining.{json,png}``. About ten minutes a variant on two cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from encoder_bench.encoders import encoder_of
from encoder_bench.images import eurosat_rgb, pooled
from encoder_bench.probes import probe
from numpy.typing import NDArray
from safetensors.torch import load_file

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
    "crops from 0.15": ["--least-area", "0.15"],
}
WIDTHS = (64, 128, 256)
STEPS = (1 / 4, 1 / 2, 2)
LABELS, RESAMPLES, SEED = 6000, 3, 19


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
    subprocess.run([*command, "--plot", str(run / "curve"), *extra], check=True)


def config_of(width: int) -> VisionTransformerConfig:
    """Return the shape of a network of this width."""
    return VisionTransformerConfig(width=width, heads=width // 64)


def draw(rows: dict[str, Any], out: Path) -> None:
    """Draw accuracies of all variants, and against steps and width."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
    for at, (name, row) in enumerate(reversed(rows.items())):
        for head, colour in (("linear", "#0b6e99"), ("k-NN", "#d1811f")):
            value = row[head]["accuracy"]
            low, mid, high = (100 * value[k] for k in ("low", "value", "high"))
            ax.plot([low, high], [at, at], color=colour)
            label = head if at == 0 else None
            ax.plot(mid, at, "o" if name != REFERENCE else "D", color=colour, label=label)
    ax.set_yticks(range(len(rows)), list(reversed(rows)))
    ax.set_xlabel("EuroSAT RGB, accuracy, % (95 % interval)")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/pretraining"))
    args = parser.parse_args()
    images = eurosat_rgb(args.data, args.split)
    rows: dict[str, NDArray[np.float32]] = {}
    training: dict[str, Any] = {}
    for name, (steps, width, extra) in variants(args.steps).items():
        run = args.runs / name.replace(" ", "_")
        weights, vectors = run / "encoder.safetensors", run / "vectors.npy"
        if not vectors.exists():
            print(f"== {name}", flush=True)
            train(args.data, run, steps, args.batch, extra)
            np.save(vectors, pooled(encoder_of(weights, config_of(width)), images))
        rows[name] = np.load(vectors)
        training[name] = {
            "steps": steps,
            "width": width,
            "arguments": " ".join(extra),
            "parameters": sum(v.numel() for v in load_file(weights).values()),
        }
    rows["untrained"] = pooled(encoder_of(None, VisionTransformerConfig()), images)
    rng = np.random.default_rng(SEED)
    pool, test = np.flatnonzero(~images.pool), np.flatnonzero(images.pool)
    splits = [
        (np.sort(rng.choice(pool, min(LABELS, len(pool)), replace=False)), test)
        for _ in range(RESAMPLES)
    ]
    units = np.arange(len(images.labels))
    table = probe(rows, images.labels, splits, units, reference=REFERENCE)
    results = {
        "task": "EuroSAT RGB, mean and roughness of the tokens of 64 bands",
        "batch": args.batch,
        "training_labels": len(splits[0][0]),
        "resamples": RESAMPLES,
        "training": training,
        "rows": table,
    }
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw({k: v for k, v in table.items() if "k-NN" in v}, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
