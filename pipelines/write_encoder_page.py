"""Write the measured parts of docs/encoder.md.

    python pipelines/write_encoder_page.py

Reads ``docs/benchmarks/encoder.json`` (see ``bench_encoder.py``) and, where they are there,
``noise_training.json`` (its compressibility, of a pair of networks with and without noise),
``pretraining.json`` (see ``bench_pretraining.py``), and, of the model that learned on,
``encoder_2.json`` and ``models.json`` (see ``bench_models.py``).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from encoder_bench.figure import tables
from write_codec_page import percent, table
from write_readme import replace_block
from write_robustness_page import side_by_side

HEADS, MODELS = ("linear", "k-NN"), ("nec-tiny", "nec-tiny-2")


def accuracies(found: dict[str, Any]) -> str:
    """Return the table of one task."""
    heads = [h for h in HEADS if any(h in row for row in found["rows"].values())]
    head = ("row", *(f"{h}, % (95 %)" for h in heads), f"against ours, points: {'; '.join(heads)}")
    if not heads:
        head = ("row", "accuracy, % (95 %)", "mean IoU, % (95 %)", "accuracy against ours, points")
    rows = [head]
    for name, row in found["rows"].items():
        if heads:
            shown = [row[h]["accuracy"] for h in heads if h in row]
            cells = [percent(s) for s in shown] + [""] * (len(heads) - len(shown))
        else:
            shown = [row["accuracy"]]
            cells = [percent(row[m]) for m in ("accuracy", "mean_iou")]
        differences = [s["difference"] for s in shown if "difference" in s]
        rows.append((name, *cells, "; ".join(percent(d, "+") for d in differences)))
    told = [
        f"{found[key]:,} {said}"
        for key, said in (
            ("training_labels", "training labels"),
            ("test_images", "test images"),
            ("resamples", "resample(s)"),
            ("splits", "folds"),
        )
        if key in found
    ]
    return f"**{found['task']}** ({', '.join(told)})\n\n{table(*rows)}"


def compressibility(found: dict[str, Any]) -> str:
    """Return accuracies by bytes, and bytes at equal accuracy."""
    rows = [("row", "B a vector", "linear, % (95 %)", "k-NN, % (95 %)")]
    rows += [
        (
            name,
            f"{row['bytes_per_vector']:.3g}",
            *(percent(row[h]["accuracy"]) for h in HEADS),
        )
        for name, row in found["rows"].items()
        if "bytes_per_vector" in row
    ]
    variants = list(next(iter(found["bytes_at_accuracy"].values())))
    equal = [("linear probe at", *variants)]
    for level, sizes in found["bytes_at_accuracy"].items():
        cells = ("not reached" if s is None else f"{s:.3f} B" for s in sizes.values())
        equal.append((f"{100 * float(level):.1f} %", *cells))
    return f"{table(*rows)}\n\n{table(*equal)}"


def speed(found: dict[str, Any], seams: dict[str, Any]) -> str:
    """Return chips a second beside plain transformers, and how chips agree."""
    rows = [("network", "parameters", "float32, chips/s", "bfloat16, chips/s")]
    for name, count in found["parameters"].items():
        cells = (f"{found[p][name]['chips_per_second']:.1f}" for p in ("float32", "bfloat16"))
        rows.append((name, f"{count / 1e6:.2f} M", *cells))
    moved = seams["relative_squared_distance"]
    where = [("tokens from the nearest border", *moved)]
    where.append(("squared distance over variance", *(f"{v:.4f}" for v in moved.values())))
    stores = seams["stores"]
    told = (
        f"On two grids as stores have them, chips of {stores['core_tokens']} tokens and a halo of "
        f"{stores['halo_tokens']} that fade into each other, it is {stores['mean']:.4f} on "
        f"average, from {stores['least_by_place']:.4f} to {stores['most_by_place']:.4f} by the "
        "token's place in a chip."
    )
    return f"{table(*rows)}\n\n{table(*where)}\n\n{told}"


def recipe(found: dict[str, Any]) -> str:
    """Return what each part of the recipe gives."""
    cover = found["land_cover"]["rows"]
    head = ("variant", "steps", "parameters", "linear, % (95 %)", "less the recipe, points")
    rows = [(*head, "k-NN, % (95 %)", "land cover, % (95 %)", "less the recipe, points")]
    for name, row in found["rows"].items():
        run = found["training"].get(name)
        size = ("", "") if run is None else (str(run["steps"]), f"{run['parameters'] / 1e6:.2f} M")
        nearest = percent(row["k-NN"]["accuracy"]) if "k-NN" in row else ""
        linear, map_ = row["linear"]["accuracy"], cover[name]["accuracy"]
        rows.append((name, *size, *_against(linear), nearest, *_against(map_)))
    return table(*rows)


def longer(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return accuracies of what learned on beside those of what it began with."""
    rows = [("task", "description", *(f"{h}, {m}" for h in HEADS for m in MODELS))]
    for name, found in tables(after).items():
        for row in found["rows"]:
            if not row.startswith("embedding, mean"):
                continue
            described, _, size = row.removeprefix("embedding, ").partition(", ")
            pairs = [p[name]["rows"][row][h]["accuracy"] for h in HEADS for p in (before, after)]
            task = found["task"].split(",")[0] + (f", {size}" if size else "")
            rows.append((task, described, *map(percent, pairs)))
    return table(*rows)


def _against(accuracy: dict[str, Any]) -> tuple[str, str]:
    difference = accuracy.get("difference")
    return percent(accuracy), "" if difference is None else percent(difference, "+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, default=Path("docs/encoder.md"))
    parser.add_argument("--folder", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    text = args.page.read_text()
    results = json.loads((args.folder / "encoder.json").read_text())
    shown = [accuracies(found) for found in tables(results).values()]
    text = replace_block(text, "accuracies", "\n\n".join(shown))
    noise = args.folder / "noise_training.json"
    measured = json.loads(noise.read_text()) if noise.exists() else results
    if "compressibility" in measured:
        text = replace_block(text, "compressibility", compressibility(measured["compressibility"]))
    if {"speed", "seams"} <= set(results):
        text = replace_block(text, "speed", speed(results["speed"], results["seams"]))
    ablation = args.folder / "pretraining.json"
    if ablation.exists():
        text = replace_block(text, "recipe", recipe(json.loads(ablation.read_text())))
    second, models = (args.folder / f"{n}.json" for n in ("encoder_2", "models"))
    if second.exists():
        text = replace_block(text, "longer", longer(results, json.loads(second.read_text())))
    if models.exists():
        text = replace_block(text, "models", side_by_side(json.loads(models.read_text())))
    args.page.write_text(text)


if __name__ == "__main__":
    main()
