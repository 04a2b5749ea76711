"""Measure the heads: biomass, maps, classes of images, few labels, other regions.

    python pipelines/bench_heads.py ../shared/data --out docs/benchmarks/heads

Writes OUT.json and OUT_GROUP.png; parts that are not asked for keep what an earlier call found with
the same weights, so that the command may be run part by part. All rows of a part see the same
pixels and the same labels, and are tested on places that none of them has seen.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from encoder_bench.encoders import encoder_of
from heads_bench import biomass, classification, curves, map_curves, segmentation
from heads_bench.figure import draw
from measured_parts import run_parts

from nec.model import load_model

PACKAGES = ("nec", "numpy", "torch", "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/heads"))
    parser.add_argument(
        "--work",
        type=Path,
        help="folder of stores and of what has been found: a run that was stopped goes on there",
    )
    parser.add_argument("--model", default="nec-tiny", help="a model's name or folder")
    parser.add_argument("--folds", type=int, default=6, help="folds of spatial blocks")
    parser.add_argument("--steps", type=int, default=600, help="training steps of a U-Net")
    parser.add_argument(
        "--decoder-steps", type=int, default=300, help="training steps of a segmentation head"
    )
    parser.add_argument("--train", type=int, default=2400, help="training images of EuroSAT")
    parser.add_argument("--test", type=int, default=2400, help="test images of EuroSAT's pool")
    parser.add_argument("--ucmerced", type=int, default=336, help="images of UC Merced, about")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of a CNN")
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument(
        "--parts",
        default="all",
        help="biomass, segmentation, classification, curves, or single names, with commas",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("heads_bench").setLevel(logging.INFO)
    model = load_model(args.model)
    twin = encoder_of(None, model.encoder.network.config)
    with tempfile.TemporaryDirectory() as scratch:
        args.work = args.work or Path(scratch)
        groups = {
            name: dict(room.parts_of(args, model, twin))
            for name, room in {
                "biomass": biomass,
                "segmentation": segmentation,
                "classification": classification,
            }.items()
        }
        groups["curves"] = dict(curves.parts_of(args, model))
        groups["curves"] |= dict(map_curves.parts_of(args, model, twin))
        run(args, groups, model.weights_sha256)


def run(args: argparse.Namespace, groups: dict[str, dict[str, Any]], digest: str) -> None:
    """Run the parts that are asked for, by name or by group, and merge them into what is there."""
    jobs = {name: job for group in groups.values() for name, job in group.items()}
    asked = list(groups) if args.parts == "all" else args.parts.split(",")
    wanted = [part for name in asked for part in groups.get(name, [name])]
    if unknown := set(wanted) - set(jobs):
        raise SystemExit(
            f"no such part: {', '.join(unknown)} (parts: {', '.join([*groups, *jobs])})"
        )
    results = run_parts(
        args.out.with_suffix(".json"), jobs, wanted, show, weights=digest, packages=PACKAGES
    )
    draw(results, args.out)


def show(name: str, part: dict[str, Any]) -> None:
    """Print what a part found."""
    print(f"== {name} ({part['seconds']} s): {part['task']}", flush=True)
    for row, entry in part.get("rows", {}).items():
        for kind in (k for k in ("all", "forest", "pixels", "images") if k in entry):
            cells = [
                f"{metric} {value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
                for metric, value in entry[kind].items()
                if isinstance(value, dict) and "value" in value
            ]
            count = entry.get("parameters")
            print(f"  {row:62s} {kind:7s} {count or '':>8} {'  '.join(cells)}", flush=True)
    for curve in ("label_curve", "curves"):
        if curve in part:
            print(json.dumps(part[curve])[:1500], flush=True)


if __name__ == "__main__":
    main()
