"""Write the measured parts of docs/heads.md.

    python pipelines/write_heads_page.py

Reads ``docs/benchmarks/heads.json`` (see ``bench_heads.py``).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from heads_bench.figure import METRICS, UNITS
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


def labels(found: dict[str, Any]) -> str:
    """Return the table of a map of classes."""
    rows = [("row", "B a vector", "accuracy, % (95 %)", "mean IoU, % (95 %)")]
    for row, entry in found["rows"].items():
        size = entry.get("bytes_per_vector")
        cells = (percent(entry["pixels"][m]) for m in ("accuracy", "mean_iou"))
        rows.append((row, "" if size is None else f"{size:.3g}", *cells))
    return table(*rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, default=Path("docs/heads.md"))
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/heads.json"))
    args = parser.parse_args()
    results = json.loads(args.json.read_text())
    parts = []
    for name, found in results.items():
        if not isinstance(found, dict) or "rows" not in found:
            continue
        if name in METRICS:
            kinds = [k for k in ("all", "forest") if k in next(iter(found["rows"].values()))]
            body = "\n\n".join(regression(name, found, kind) for kind in kinds)
        else:
            body = labels(found)
        folds = f"{found['folds']} folds" if "folds" in found else ""
        steps = f"{found['unet_steps']} steps of the U-Net" if "unet_steps" in found else ""
        notes = ", ".join(n for n in (folds, steps) if n)
        parts.append(f"**{found['task']}** ({notes})\n\n{body}")
    text = replace_block(args.page.read_text(), "heads", "\n\n".join(parts))
    args.page.write_text(text)


if __name__ == "__main__":
    main()
