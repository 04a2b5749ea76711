"""Write the measured parts of README.md: what the example prints, and the table of figures.

    python pipelines/write_readme.py

Reads ``docs/benchmarks/main_job.json`` (see ``bench_main_job.py``) and the shipped catalog.
"""

import argparse
import contextlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

TITLES = {
    "segmentation": "Alberta, Sentinel-2, classes of its SCL layer: accuracy by blocks",
    "points": "Calgary, Landsat 8, 701 points: accuracy by spatial groups",
    "images": "EuroSAT RGB, linear probe on the test pool",
}


def replace_block(text: str, name: str, content: str) -> str:
    """Put content between ``<!-- name -->`` and ``<!-- end -->``."""
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
    if not re.search(pattern, text, flags=re.DOTALL):
        raise SystemExit(f"README.md has no block {name!r}")
    return re.sub(pattern, lambda m: f"{m[1]}{content.rstrip()}\n{m[2]}", text, flags=re.DOTALL)


def printed_by(code: str) -> str:
    """Return what the example prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue()


def accuracy(entry: dict[str, Any]) -> str:
    """Return an accuracy with its interval, per cent."""
    value = entry["accuracy"]
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def best(rows: dict[str, Any], *, starts: tuple[str, ...], most: float = math.inf) -> str:
    """Return the name of the most accurate of the rows that begin so, of at most so many bytes."""
    chosen = [
        name
        for name, row in rows.items()
        if name.startswith(starts) and (row.get("bytes_per_token") or 0.0) <= most
    ]
    return max(chosen, key=lambda name: rows[name]["accuracy"]["value"])


def accuracy_table(part: str, found: dict[str, Any]) -> str:
    """Return the rows that matter most of one task."""
    rows = found["rows"]
    if part == "images":
        names = ["float32: linear", "int8: linear", "float32 tokens, mean and roughness: linear"]
        kept = ("high", "medium", "low", f"shipped ({found['rate']})")
        names += [
            f"tokens, {kind}, {r}: linear" for kind in ("mean and roughness", "mean") for r in kept
        ]
        names += [
            f"scene_embedding, shipped ({found['rate']}): linear",
            best(rows, starts=("pixel statistics",)),
            best(rows, starts=("untrained twin",)),
        ]
        key, unit = "bytes_per_image", "bytes an image"
    else:
        names = ["float32", "int8", "decoded high", "decoded medium", "decoded low"]
        pixels = ("pixel", "band means", "raw values")
        names += [
            best(rows, starts=pixels),
            # The strongest that takes no more than the rate for maps.
            best(rows, starts=pixels, most=rows["decoded high"]["bytes_per_token"]),
            best(rows, starts=("untrained twin",)),
            "majority class",
        ]
        key, unit = "bytes_per_token", "bytes a vector"
    lines = [f"| {TITLES[part]} | {unit} | accuracy, % (95 %) |", "|---|---|---|"]
    for name in dict.fromkeys(names):
        if name in rows:
            size = rows[name].get(key)
            lines.append(
                f"| {name.replace(': linear', '')} | {'' if size is None else f'{size:.3g}'} | "
                f"{accuracy(rows[name])} |"
            )
    return "\n".join(lines)


def scene_table(scenes: dict[str, Any]) -> str:
    """Return bytes of every scene at the medium rate."""
    lines = [
        "| scene, rate `medium` | raw file | int8 embedding | payload | fixed | cosine | "
        "neighbours: worst phase of a chip / inside chips |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, scene in scenes.items():
        entry = scene["rates"]["medium"]
        payload = sum(entry["payload"].values())
        seam = entry["seam"]
        lines.append(
            f"| {name} | {scene['raw']['file'] / 1e3:,.0f} kB | "
            f"{scene['embedding_bytes']['int8'] / 1e3:,.0f} kB | {payload / 1e3:,.1f} kB | "
            f"{entry['fixed_bytes'] / 1e3:,.1f} kB | {entry['fidelity']['cosine_mean']:.4f} | "
            f"{seam['cosine_worst_phase']:.4f} / {seam['cosine_inside']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/main_job.json"))
    args = parser.parse_args()
    text = args.readme.read_text()
    results = json.loads(args.json.read_text())
    example = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    if example is None:
        raise SystemExit(f"{args.readme} has no example")
    text = replace_block(text, "consumer output", f"```\n{printed_by(example[1])}```")
    tables = [scene_table(results["scenes"])]
    tables += [accuracy_table(part, results[part]) for part in TITLES]
    args.readme.write_text(replace_block(text, "main job table", "\n\n".join(tables)))


if __name__ == "__main__":
    main()
