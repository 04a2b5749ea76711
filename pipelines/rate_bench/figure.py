"""The figure: accuracy against bytes, a panel for each task and pooling."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

# Colour, marker and line by how a method's name begins; the first that fits. Codecs of one name
# that see the image otherwise (smaller, in a mosaic) share a colour.
STYLES = (
    ("learned: falloff", "#f06292", "D", "--"),
    ("learned", "#c2185b", "D", "-"),
    ("transform codec, falloff 16", "#80deea", "o", "-"),
    ("transform codec, falloff", "#42a5f5", "o", "-"),
    ("transform codec", "#1565c0", "o", "-"),
    ("as shipped", "#0d47a1", "*", "none"),
    ("JPEG 2000, mosaic", "#ef6c00", "v", "--"),
    ("JPEG 2000", "#ef6c00", "s", "-"),
    ("JPEG XL", "#fdd835", "s", "-"),
    ("JPEG", "#8d6e63", "s", "-"),
    ("WebP", "#bcaaa4", "s", "-"),
    ("AVIF", "#9e9d24", "s", "-"),
    ("half size", "#ef6c00", "<", ":"),
    ("quarter size", "#ef6c00", "1", ":"),
    ("pooled, mean and roughness, PQ", "#004d40", "v", "-"),
    ("pooled, mean and roughness, PCA-k int8, zstd", "#26a69a", "<", "--"),
    ("pooled, mean and roughness", "#00897b", "^", "-"),
    ("pooled, mean, PQ", "#004d40", "v", "-"),
    ("pooled, mean, PCA-k int8, zstd", "#26a69a", "<", "--"),
    ("pooled", "#00897b", "^", "-"),
    ("tokens, PCA-k int8, zstd", "#7b1fa2", "1", "--"),
    ("tokens, PCA", "#7b1fa2", "x", "-"),
    ("tokens, PQ", "#ab47bc", "+", "-"),
    ("KLT", "#5c6bc0", "x", "-"),
    ("pixel statistics", "#616161", "P", "-"),
    ("bands of the token, mean and deviation, PCA", "#9e9e9e", "p", "-"),
    ("bands of the token", "#616161", "P", "-"),
)
PLAIN = ("black", ".", "-")
# Scores that are no probe of pooled tokens.
SCORES = {
    "mean_iou": "mean IoU of a linear head",
    "accuracy": "accuracy of a linear head",
    "r2": "variance explained by a linear head",
}
# Rows of single points that stand far to the right.
LEFT_OUT = ("tokens, float",)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what there is to a PNG: every pooling of images, of maps the first score."""
    panels = [
        (t, p)
        for t, found in results.items()
        for p in list(found["views"])[: None if "images" in found else 1]
    ]
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        down = math.ceil(len(panels) / 2)
        figure, axes = plt.subplots(
            down, 2, figsize=(15, 5.8 * down), layout="constrained", squeeze=False
        )
        for ax in axes.ravel()[len(panels) :]:
            ax.remove()
        for ax, (task, pooling) in zip(axes.ravel(), panels, strict=False):
            found = results[task]
            _panel(ax, found["views"][pooling], found["reference"], found.get("unit", "image"))
            title = SCORES.get(pooling, f"probe on {pooling}")
            ax.set_title(f"{found['title']}\n{title}", loc="left", fontsize=9)
            for share in (0.003, 0.001):
                ax.axvline(share * found["raw_bytes"], color="#cccccc", linewidth=0.8, zorder=0)
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)


def _panel(ax: Axes, table: dict[str, Any], reference: str, unit: str) -> None:
    rows, size = table["rows"], f"bytes_per_{unit}"
    whole = rows[reference][0]["accuracy"]["value"]
    for method, points in rows.items():
        # Single points that stand far to the right.
        if method.startswith(LEFT_OUT) or method.endswith("float32"):
            continue
        ordered = sorted(points, key=lambda r: r[size])
        sizes = [r[size] for r in ordered]
        values = [100 * r["accuracy"]["value"] for r in ordered]
        bars = [
            [100 * (r["accuracy"]["value"] - r["accuracy"]["low"]) for r in ordered],
            [100 * (r["accuracy"]["high"] - r["accuracy"]["value"]) for r in ordered],
        ]
        color, marker, line = next((s for start, *s in STYLES if method.startswith(start)), PLAIN)
        ax.errorbar(
            sizes,
            values,
            yerr=bars if method.startswith(("transform", "learned")) else None,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1,
            elinewidth=0.5,
            linestyle=line,
            label=method,
        )
    ax.axhline(100 * whole, color="black", linewidth=0.8)
    loss = 100 * table.get("margin", 0.01)
    ax.axhline(100 * whole - loss, color="black", linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel=f"bytes {'an' if unit[0] in 'aeiou' else 'a'} {unit}", ylabel="%")
    ax.set_ylim(bottom=max(0, 100 * whole - 30))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(alpha=0.25)
    ax.legend(fontsize=6, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1))
