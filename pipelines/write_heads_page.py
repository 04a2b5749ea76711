"""Write the measured parts of docs/heads.md.

    python pipelines/write_heads_page.py

Reads ``docs/benchmarks/heads.json`` (see ``bench_heads.py``), and, where they are there,
``out_of_core.json`` (``bench_out_of_core.py``) and ``detect_trees.json`` (``detect_trees.py``).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from heads_bench.figure import UNITS
from write_codec_page import percent, table
from write_readme import replace_block

NAMES = {"all": "all labels", "forest": "forest only", "pixels": "pixels"}


def spread(value: dict[str, float], digits: int = 1) -> str:
    """Return a value with its interval."""
    middle, low, high = (f"{value[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{middle} ({low} to {high})"


def regression(name: str, found: dict[str, Any], kind: str) -> str:
    """Return the table of a quantity over one kind of places."""
    head = ("row", "B a vector", "trained", f"RMSE, {UNITS[name]} (95 %)", "bias", "R2")
    rows = [(*head, "RMSE less ours in float32", "ratio of RMSE")]
    for row, entry in found["rows"].items():
        measured = entry[kind]
        error = measured["rmse"]
        size, count = entry.get("bytes_per_vector"), entry.get("parameters")
        difference = error.get("difference")
        rows.append(
            (
                row,
                "" if size is None else f"{size:.3g}",
                "" if count is None else f"{count:,}",
                spread(error),
                f"{measured['bias']['value']:+.1f}",
                f"{measured['r2']['value']:.2f}",
                "" if difference is None else spread(difference),
                "" if difference is None else spread(error["ratio"], 3),
            )
        )
    return f"{NAMES[kind]}:\n\n{table(*rows)}"


def held(found: dict[str, Any]) -> str:
    """Return the table of what intervals hold."""
    asked = [f"{c:g}" for c in found["coverages"]]
    heads = [f"asked {float(c):.0%}: {what}" for c in asked for what in ("inside, %", "width")]
    rows = [("head on", *heads)]
    for name, entry in found["intervals"].items():
        cells = [
            f(entry[c])
            for c in asked
            for f in (lambda e: percent(e["inside"]), lambda e: f"{e['median_width']:.0f} Mg/ha")
        ]
        rows.append((name, *cells))
    return table(*rows)


def labels(found: dict[str, Any]) -> str:
    """Return the table of a map of classes."""
    head = ("row", "B a vector", "accuracy, % (95 %)", "mean IoU, % (95 %)")
    rows = [(*head, "mean IoU less that of float32, fpn")]
    for row, entry in found["rows"].items():
        size, overlap = entry.get("bytes_per_vector"), entry["pixels"]["mean_iou"]
        rows.append(
            (
                row,
                "" if size is None else f"{size:.3g}",
                percent(entry["pixels"]["accuracy"]),
                percent(overlap),
                percent(overlap["difference"], "+") if "difference" in overlap else "",
            )
        )
    return table(*rows)


def images(found: dict[str, Any]) -> str:
    """Return the table of classes of images or points."""
    near = any("kNN" in entry for entry in found["rows"].values())
    head = ("row", "bytes", "trained", "accuracy, % (95 %)", "less float32, %")
    rows = [(*head, "k-NN, %") if near else head]
    for row, entry in found["rows"].items():
        sizes = (entry.get(f"bytes_per_{unit}") for unit in ("image", "vector"))
        size = next((s for s in sizes if s is not None), None)
        accuracy, count = entry["images"]["accuracy"], entry.get("parameters")
        cells = [
            row,
            "" if size is None else f"{size:.3g}",
            "" if count is None else f"{count:,}",
            percent(accuracy),
            percent(accuracy["difference"], "+") if "difference" in accuracy else "",
        ]
        if near:
            cells.append(percent(entry["kNN"]["accuracy"]) if "kNN" in entry else "")
        rows.append(tuple(cells))
    return table(*rows)


def few_labels(found: dict[str, Any]) -> str:
    """Return the table of heads of a share of the labels."""
    curve = found["label_curve"]
    base = found.get("rmse_of_reference") or curve["accuracy_of_reference"]
    text = spread if "rmse_of_reference" in found else percent
    heads = {k: v for k, v in curve.items() if isinstance(v, dict) and "points" in v}
    some = next(iter(heads.values()))["points"]
    rows = [
        ("head on", *(f"{100 * p['fraction']:g} % ({p['labels']:,})" for p in some), "no worse at")
    ]
    for name, entry in heads.items():
        share = entry["no_worse_at"]
        rows.append(
            (name, *map(text, entry["points"]), "never" if share is None else f"{100 * share:g} %")
        )
    margin = curve["margin"]
    note = f"{margin:g} Mg/ha" if "rmse_of_reference" in found else f"{margin:.0%}"
    return (
        f"shares of the labels, beside {curve['reference']} of all of them ({text(base)}); no "
        f"worse by {note} at most, on the bound of the interval:\n\n{table(*rows)}"
    )


def transfer(found: dict[str, Any]) -> str:
    """Return the table of transfer between regions."""
    counts = [p["labels_there"] for p in next(iter(found["curves"].values()))]
    rows = [("head on", *(f"{n} labels there" for n in counts))]
    for name, points in found["curves"].items():
        for kind, words in (("score", "with the other region"), ("alone", "alone")):
            values = (p[kind]["mean"] for p in points)
            rows.append((f"{name}, {words}", *("" if v is None else f"{v:.2f}" for v in values)))
    return f"{found['limits']}\n\n{table(*rows)}"


STEPS = {
    "points": "points, SceneClassifier",
    "linear": "raster, Segmenter",
    "biomass": "raster, BiomassRegressor",
    "fpn": 'raster, Segmenter(decoder="fpn")',
}


def memory(found: dict[str, Any]) -> str:
    """Return the table of heads on a store larger than memory."""
    rows = [
        ("labels, head", "store as float32", "limit", "peak", "fetched to fit", "mapped", "CPU")
    ]
    for name, step in found["steps"].items():
        mapped = f"{step['mapped_tokens'] / 1e6:.1f} M tokens ({step['mapped_share']:.1%})"
        rows.append(
            (
                STEPS[name],
                f"{step['embedding_gib_as_float32']:.0f} GiB",
                f"{step['limit_bytes'] / 2**30:.2g} GiB",
                f"{step['peak_bytes']['mapped'] / 2**30:.2f} GiB",
                f"{step['bytes_fetched_to_fit'] / 1e6:.0f} MB",
                f"{mapped}, {step['mapped_gib_as_float32']:.1f} GiB as float32",
                f"{step['cpu_seconds']:.0f} s",
            )
        )
    return table(*rows)


def trees(found: dict[str, Any]) -> str:
    """Return the table of the detection recipe."""
    counts = list(found["steps"])
    rows = [("detector on", "trained", *(f"AP after {n} steps (95 %)" for n in counts))]
    for name, row in found["steps"][counts[0]].items():
        count = row.get("parameters")
        values = (found["steps"][n][name]["average_precision"] for n in counts)
        rows.append((name, "" if count is None else f"{count:,}", *(spread(v, 2) for v in values)))
    return f"**{found['task']}**. {found['limits']}\n\n{table(*rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, default=Path("docs/heads.md"))
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/heads.json"))
    args = parser.parse_args()
    results = json.loads(args.json.read_text())
    parts = []
    for name, found in results.items():
        if not isinstance(found, dict) or "task" not in found:
            continue
        bodies = []
        if "rows" in found:
            kinds = list(next(iter(found["rows"].values())))
            if name in UNITS:
                some = [k for k in ("all", "forest") if k in kinds]
                bodies += [regression(name, found, kind) for kind in some]
            else:
                bodies.append(images(found) if "images" in kinds else labels(found))
        if "intervals" in found:
            bodies.append(held(found))
        if "label_curve" in found:
            bodies.append(few_labels(found))
        if "curves" in found:
            bodies.append(transfer(found))
        body = "\n\n".join(bodies)
        folds = f"{found['folds']} folds" if found.get("folds", 1) > 1 else ""
        steps = f"{found['unet_steps']} steps of the U-Net" if "unet_steps" in found else ""
        more = f"{found['decoder_steps']} of the fpn" if "decoder_steps" in found else ""
        epochs = f"{found['epochs']} epochs of the CNN" if "epochs" in found else ""
        labels_of = f"{found['training_labels']:,} labels" if "training_labels" in found else ""
        notes = ", ".join(n for n in (folds, steps, more, labels_of, epochs) if n)
        parts.append(f"**{found['task']}**{f' ({notes})' if notes else ''}\n\n{body}")
    text = replace_block(args.page.read_text(), "heads", "\n\n".join(parts))
    for block, name, write in (
        ("memory", "out_of_core", memory),
        ("trees", "detect_trees", trees),
    ):
        source = args.json.with_name(f"{name}.json")
        if source.exists():
            text = replace_block(text, block, write(json.loads(source.read_text())))
    args.page.write_text(text)


if __name__ == "__main__":
    main()
