"""Write the measured parts of docs/rates.md.

    python pipelines/write_rates_page.py

Reads ``docs/benchmarks/rate_accuracy.json``, see ``bench_rate_accuracy.py``, ``neuco.json``, see
``bench_neuco.py``, and ``bottleneck.json``, see ``bench_bottleneck.py``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from write_codec_page import percent, table
from write_readme import replace_block

from nec.evaluate.intervals import MARGIN

# Shares of the raw pixels' bytes that targets are set at.
SHARES = (0.003, 0.001)
# Of bytes of the best codec on pixels, that streams are to save: of images, and of maps.
SAVED = {"image": 0.9, "token": 0.8}
# What the shipped rates are held against, by how a method's name begins.
RIVALS = {
    "JPEG 2000": ("JPEG 2000", "half size, JPEG 2000", "quarter size, JPEG 2000"),
    "tokens, PCA + int8": ("tokens, PCA",),
    "transform codec": ("transform codec",),
}
# A rival may be so much larger: sizes of ladders are not those of rates.
SLACK = 1.03
SCORES = {"mean_iou": "Mean IoU", "accuracy": "Accuracy", "r2": "Variance explained"}


def size(value: float | None) -> str:
    """Return bytes in three digits."""
    return "not reached" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def unit_of(found: dict[str, Any]) -> tuple[str, str]:
    """Return what a task's bytes are of, as said and as a key of its rows."""
    unit = found.get("unit", "image")
    return f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}", f"bytes_per_{unit}"


def titled(view: str) -> str:
    """Return the title of a score."""
    return f"{SCORES[view]} of a linear head" if view in SCORES else f"Probe on {view}"


def share(value: float | None) -> str:
    """Return a share of bytes saved, or how many times as many there are."""
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if value >= 0 else f"{1 - value:.3g} x as many"


def streams(tasks: list[dict[str, Any]]) -> str:
    """Return what our streams take beside the cheapest codec of pixels, and within 0.3 %."""
    head = ("task, B of", "score", "row", "B at the margin", "cheapest codec of pixels", "saved")
    rows = [(*head, f"row within {100 * SHARES[0]:g} % of the raw bytes", "loses, points")]
    for found in tasks:
        unit, key = unit_of(found)
        for view, of in found["views"].items():
            (base,) = (c for k, c in of["comparisons"].items() if k.startswith("cheapest"))
            margin = of.get("margin", MARGIN)
            for method in (m for m in of["rows"] if m.startswith(RIVALS["transform codec"])):
                ours, theirs = base["methods"][method], base["methods"][base["base"]]
                most = SHARES[0] * found["raw_bytes"]
                small = [r for r in of["rows"][method] if r[key] <= most]
                fits = max(small, key=lambda r: r[key], default=None)
                rows.append(
                    (
                        f"{found['title'].split(',')[0]}{_encoder(found)}, {unit}",
                        f"{titled(view)}, -{100 * margin:g}",
                        method,
                        size(ours["bytes_at_margin"]),
                        f"{base['base']}, {size(theirs['bytes_at_margin'])}",
                        share(ours["bytes_saved_at_margin"]),
                        "" if fits is None else f"{size(fits[key])} B",
                        "" if fits is None else percent(fits["accuracy"]["difference"], "+"),
                    )
                )
    return table(*rows)


def gate(tasks: list[dict[str, Any]]) -> str:
    """Return the score of each shipped rate beside that of rivals within the same bytes."""
    rows = [("task", "score", "rate", "B", "as shipped, %", *(f"{name}, %" for name in RIVALS))]
    for found in tasks:
        _, key = unit_of(found)
        for view, of in found["views"].items():
            for row in of["rows"].get("as shipped", []):
                cells = []
                for starts in RIVALS.values():
                    small = [
                        (r[key], r["accuracy"]["value"])
                        for method, points in of["rows"].items()
                        if method.startswith(starts)
                        for r in points
                        if r[key] <= SLACK * row[key]
                    ]
                    best = max((value for _, value in small), default=None)
                    ahead = best is not None and best > row["accuracy"]["value"]
                    cells.append(
                        "" if best is None else f"{'**' * ahead}{100 * best:.1f}{'**' * ahead}"
                    )
                value = f"{100 * row['accuracy']['value']:.1f}"
                title = found["title"].split(",")[0]
                rows.append((title, titled(view), row["setting"], size(row[key]), value, *cells))
    return table(*rows)


def _encoder(found: dict[str, Any]) -> str:
    parts = found["title"].split(": ")
    return f": {parts[-1]}" if len(parts) > 1 else ""


def neuco(found: dict[str, Any]) -> str:
    """Return the scores of NeuCo-Bench by task, with the bytes."""
    tasks = list(next(iter(found["rows"].values()))["tasks"])
    rows = [("vectors", "B an image", *(f"{task}: Q (mean)" for task in tasks))]
    for name, row in found["rows"].items():
        of = (f"{row['tasks'][t]['q']:.1f} ({row['tasks'][t]['mean']:.3f})" for t in tasks)
        rows.append((name, size(row["bytes_per_image"]) if row["bytes_per_image"] else "", *of))
    return table(*rows)


def bottleneck(found: dict[str, Any]) -> str:
    """Return what each part of the learned bottleneck gives, beside the transform codec."""
    bases, saved = found["bases"], found["bytes_saved_over"]
    aims = [row["bytes_per_vector"] for row in next(iter(found["rows"].values()))]
    head = ("run", "trains", "steps, images", "beside", "bytes saved: tokens, mean")
    rows = [(*head, *(f"at {aim:g} B a token: mean; and roughness" for aim in aims))]
    for name, points in found["rows"].items():
        runs = [r for n, r in found["training"].items() if n.partition("@")[0] == name]
        told = ["", ""]
        if runs:
            steps = sum(r["steps_share"] for r in runs), sum(r["images_share"] for r in runs)
            told = [f"{runs[0]['trained_share']:.1%}", ", ".join(f"{s:.1%}" for s in steps)]
        at = {row["bytes_per_vector"]: row["accuracy"] for row in points}
        cells = [
            "; ".join(_paired(entry, name == bases[name]) for entry in at[aim].values())
            if aim in at
            else ""
            for aim in aims
        ]
        others = saved.get(name) or {bases[name]: {}}
        for number, (other, shares) in enumerate(others.items()):
            gain = ", ".join(share(shares[k]) or "-" for k in ("embedding", "mean") if shares)
            first = (name + " (estimated)" * points[0]["estimated"], *told, other, gain, *cells)
            rows.append(first if number == 0 else ("", "", "", other, gain, *[""] * len(aims)))
    photos, alone = found["photos"], found["alone"]
    others = "; ".join(
        f"{row} {percent(entry['accuracy'])}"
        for pooling, of in alone.items()
        for row, entry in ((f"{name} of {pooling}", e) for name, e in of.items())
    )
    return (
        f"{photos['probed']:,} photos to learn from and {photos['test']:,} to test on, all of the "
        f"training side. Alone, %: {others}.\n\n{table(*rows)}"
    )


def _paired(entry: dict[str, Any], alone: bool) -> str:
    """Return an accuracy, or its difference from the row it is paired with."""
    return percent(entry) if alone else percent(entry["difference"], "+")


def at_sizes(found: dict[str, Any], pooling: str) -> str:
    """Return the best row of each method within each target of bytes."""
    unit, key = unit_of(found)
    score = SCORES.get(pooling, "accuracy")
    rows = [("at most", "method", f"B {unit}", f"{score}, % (95 %)", "against float32, points")]
    for part in SHARES:
        most = part * found["raw_bytes"]
        for method, points in found["views"][pooling]["rows"].items():
            small = [r for r in points if r[key] <= most]
            if not small:
                continue
            # The largest that fits, whatever its score: nothing is chosen by test accuracy.
            row = max(small, key=lambda r: r[key])
            rows.append(
                (
                    f"{size(most)} B",
                    method,
                    size(row[key]),
                    percent(row["accuracy"]),
                    percent(row["accuracy"]["difference"], "+"),
                )
            )
    return table(*rows)


def equal_accuracy(found: dict[str, Any], pooling: str) -> str:
    """Return bytes of each method a point below float32, and what they save."""
    comparisons = found["views"][pooling]["comparisons"]
    bases = list(comparisons)
    loss = f"-{100 * found['views'][pooling].get('margin', MARGIN):g} point(s)"
    head = ("method", f"B at {loss}", "B where the bound holds", "smallest row that holds")
    head += tuple(f"saved over {comparisons[b]['base']}: on average, at {loss}" for b in bases)
    rows = [head]
    for method in comparisons[bases[0]]["methods"]:
        first = comparisons[bases[0]]["methods"][method]
        cells = [size(first[k]) for k in ("bytes_at_margin", "bytes_no_worse", "smallest_no_worse")]
        for base in bases:
            entry = comparisons[base]["methods"][method]
            parts = (share(entry["saving_over_base"]), share(entry["bytes_saved_at_margin"]))
            cells.append(", ".join(p or "no common range" for p in parts))
        rows.append((method, *cells))
    return table(*rows)


def every_row(found: dict[str, Any], pooling: str) -> str:
    """Return all rows."""
    unit, key = unit_of(found)
    score = SCORES.get(pooling, "accuracy")
    rows = [("method", "setting", f"B {unit}", f"{score}, % (95 %)", "encode, decode: CPU ms")]
    for method, points in found["views"][pooling]["rows"].items():
        rows += [
            (
                method,
                r["setting"],
                size(r[key]),
                percent(r["accuracy"]),
                f"{r['encode_ms']:.3g}, {r['decode_ms']:.3g}",
            )
            for r in points
        ]
    trivial = found["views"][pooling]["trivial"]
    rows.append((trivial["name"], "", "0", percent(trivial), ""))
    return table(*rows)


def about(found: dict[str, Any]) -> str:
    """Return how many of what a task has, and what they are raw."""
    if "tokens" in found:
        return (
            f"{found['tokens']['labelled']:,} labelled tokens in {found['blocks']} blocks, of "
            f"{', '.join(found['bands'])}; raw bands are {found['raw_bytes']} B a token."
        )
    images = found["images"]
    return (
        f"{images['train']} training and {images['test']} test images; raw pixels are "
        f"{found['raw_bytes']:,} B an image; the encoder takes {found['encoder_ms']:.1f} CPU ms an "
        "image, before an embedding is coded, and after pixels are decoded."
    )


def section(found: dict[str, Any]) -> str:
    """Return the tables of a task."""
    parts = [f"### {found['title']}", about(found)]
    for pooling, of in found["views"].items():
        whole = of["rows"][found["reference"]][0]["accuracy"]
        parts += [
            f"**{titled(pooling)}** (float32: {percent(whole)})",
            at_sizes(found, pooling),
            equal_accuracy(found, pooling),
            f"<details><summary>All rows</summary>\n\n{every_row(found, pooling)}\n\n</details>",
        ]
    if memory := found.get("memory"):
        head = ("method", "encoding, MB", "decoding, MB")
        rows = [
            (n, *(str(m.get(k, "")) for k in ("encode_mb", "decode_mb"))) for n, m in memory.items()
        ]
        parts += [
            "Peak memory beyond what is loaded, of one chunk of tokens or one image of pixels; "
            "what codes pixels needs the encoder after decoding:",
            table(head, *rows),
        ]
    if found["left_out"]:
        parts.append(
            f"Left out for lack of a library or of images: {', '.join(found['left_out'])}."
        )
    return "\n\n".join(parts)


def learned(models: dict[str, Any]) -> list[str]:
    """Return what was trained of each learned model, and how long."""
    if not models:
        return []
    head = (
        "row",
        "of all parameters",
        "steps",
        "of the encoder's steps",
        "of its images",
        "made by",
    )
    rows = [
        (
            name,
            f"{100 * m['trained_share']:.1f} %",
            str(m["steps"]),
            f"{100 * m['steps_share']:.1f} %",
            f"{100 * m['images_share']:.1f} %",
            f"`{m['command']}`",
        )
        for name, m in models.items()
    ]
    return ["### What the learned models trained", table(head, *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, default=Path("docs/rates.md"))
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/rate_accuracy.json"))
    args = parser.parse_args()
    results = json.loads(args.json.read_text())
    tasks = [found for found in results.values() if isinstance(found, dict) and "views" in found]
    parts = [*map(section, tasks), *learned(results.get("learned", {}))]
    text = replace_block(args.page.read_text(), "tables", "\n\n".join(parts))
    text = replace_block(text, "streams", streams(tasks))
    text = replace_block(text, "gate", gate(tasks))
    scored = json.loads(args.json.with_name("neuco.json").read_text())
    text = replace_block(text, "neuco", neuco(scored))
    parts_of = args.json.with_name("bottleneck.json")
    if parts_of.exists():
        text = replace_block(text, "bottleneck", bottleneck(json.loads(parts_of.read_text())))
    args.page.write_text(text)


if __name__ == "__main__":
    main()
