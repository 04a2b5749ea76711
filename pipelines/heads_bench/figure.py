"""The figure of bench_heads.py: error or accuracy of every row, and biomass scatter."""

from pathlib import Path
from typing import Any

import numpy as np

from nec.evaluate import draw_confusion, draw_measured_against_predicted

METRICS = {"hainich": "rmse", "gedi_structure": "rmse"}
UNITS = {"hainich": "Mg/ha", "gedi_structure": "m"}


def draw(results: dict[str, Any], parts: list[str], out: Path) -> None:
    """Draw a row of panels for each part that is there."""
    import matplotlib.pyplot as plt

    there = [part for part in parts if part in results]
    figure, axes = plt.subplots(
        len(there), 2, figsize=(15, 4.2 * len(there)), layout="constrained", squeeze=False
    )
    for (left, right), part in zip(axes, there, strict=True):
        found = results[part]
        metric = METRICS.get(part, "mean_iou")
        kind = "all" if part in METRICS else "pixels"
        rows = list(found["rows"])
        for at, row in enumerate(rows):
            value = found["rows"][row][kind][metric]
            ours = row.startswith(("float32", "decoded"))
            colour = "tab:blue" if ours else "tab:gray"
            left.plot([value["low"], value["high"]], [at, at], color=colour, lw=2)
            left.plot(value["value"], at, "o", color=colour)
        left.set_yticks(range(len(rows)), rows, fontsize=8)
        left.invert_yaxis()
        left.grid(alpha=0.3, axis="x")
        units = f", {UNITS[part]}" if part in UNITS else ""
        left.set(xlabel=f"{metric}{units} (95 %)", title=part)
        if "scatter" in found:
            pairs = found["scatter"]
            ours = next(name for name in pairs if name != "measured")
            draw_measured_against_predicted(
                np.array(pairs["measured"]), np.array(pairs[ours]), units=UNITS[part], ax=right
            )
            right.set_title(ours)
        else:
            draw_confusion(found["confusion"], found["classes"], ax=right)
            right.set_title("float32, fpn")
    figure.savefig(out, dpi=90)
    plt.close(figure)
