"""The figure: bytes of the scenes, and accuracy against bytes of the three tasks."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

OURS, SCENE, SIMPLE, WHOLE = "#1565c0", "#00897b", "#ef6c00", "#424242"
LEVELS = {
    "random forest": "#6a1b9a",
    "logistic regression": "#ad1457",
    "untrained": "#6d4c41",
}
RATES = ("low", "medium", "high")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the 2 x 2 figure to a PNG."""
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
        _sizes(axes[0, 0], results["scenes"])
        _tokens(axes[0, 1], results["segmentation"], "Alberta, Sentinel-2: segmentation (SCL)")
        _tokens(axes[1, 0], results["points"], "Calgary, Landsat 8: classes at points")
        _images(axes[1, 1], results["images"])
        model = results["model"]
        figure.suptitle(
            f"{model['name']}: compressed embeddings against what they replace   "
            f"(weights {model['weights_sha256'][:8]}; bars and shades: 95 % intervals)",
            fontsize=11,
        )
        figure.savefig(path, dpi=140)
        plt.close(figure)


def _bytes(value: float, _: Any = None) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} B"


def _sizes(ax: Axes, scenes: dict[str, Any]) -> None:
    """Bars of total bytes by scene; of the stores, how much of it is fixed."""
    labels = ["float32 embedding", "raw uint16", "raw file", "int8 embedding", *RATES[::-1]]
    colours = ["#bdbdbd", "#bcaaa4", "#8d6e63", SIMPLE, "#0d47a1", OURS, "#64b5f6"]
    width = 0.8 / len(labels)
    for place, found in enumerate(scenes.values()):
        sizes = [
            found["embedding_bytes"]["float32"],
            found["raw"]["uint16"],
            found["raw"]["file"],
            found["embedding_bytes"]["int8"],
            *(found["rates"][rate]["total"] for rate in RATES[::-1]),
        ]
        for k, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
            x = place + (k - len(labels) / 2 + 0.5) * width
            name = labels[k] if k < 4 else f"store, {labels[k]} rate"
            ax.bar(x, size, width * 0.92, color=colour, label=name if place == 0 else None)
            told = _bytes(size)
            if k >= 4:  # a share of a bar would mislead on a logarithmic axis
                told += f" ({found['rates'][labels[k]]['fixed_bytes'] / size:.0%} fixed)"
            ax.text(x, size * 1.08, told, ha="center", va="bottom", fontsize=6.5, rotation=90)
    names = [f"{n.capitalize()}\n{f['tokens_valid']:,} tokens" for n, f in scenes.items()]
    ax.set_xticks(range(len(scenes)), names)
    ax.set_yscale("log")
    ax.set_ylim(1e4, 9e8)
    ax.yaxis.set_major_formatter(FuncFormatter(_bytes))
    ax.set_title("Scenes: bytes on disk", loc="left", fontweight="bold")
    ax.legend(fontsize=7, ncols=3, loc="upper center", frameon=False)


def _tokens(ax: Axes, found: dict[str, Any], title: str) -> None:
    """Accuracy against bytes a token; rows on pixels and trivial ones as levels."""
    rows, metric = found["rows"], "accuracy"
    _curve(ax, [rows[f"decoded {r}"] for r in RATES], "bytes_per_token", metric, OURS, "nec store")
    simple = [rows[n] for n in rows if n.startswith("int8")]
    _curve(ax, simple, "bytes_per_token", metric, SIMPLE, "int8: tokens, cell means")
    _curve(ax, [rows["float32"]], "bytes_per_token", metric, WHOLE, "float32 embedding")
    ax.axhline(100 * rows["float32"][metric]["value"], color=WHOLE, linewidth=0.8, alpha=0.5)
    for key, colour in LEVELS.items():
        alike = {n: r for n, r in rows.items() if key in n}
        name = max(alike, key=lambda n: alike[n][metric]["value"])
        size = alike[name]["bytes_per_token"]
        label = name.replace(", float32", "") + ("" if size is None else f", {_bytes(size)}")
        _level(ax, alike[name][metric], colour, label)
    _unseen(ax, rows["majority class"], "majority class")
    _finish(
        ax,
        title,
        f"bytes a token (log); {found['units' if 'units' in found else 'groups']} "
        f"test {'blocks' if 'units' in found else 'groups'}",
    )


def _images(ax: Axes, found: dict[str, Any]) -> None:
    """Accuracy against bytes an image: pooled vectors, tokens, JPEG."""
    rows, rate = found["rows"], found["rate"]
    suffixes = [f"shipped ({r})" if r == rate else r for r in RATES]
    for kind, head, colour, style in (
        ("tokens, mean and roughness", "linear", "#0d47a1", "-"),
        ("tokens, mean", "linear", "#42a5f5", "-"),
        ("tokens, mean", "k-NN", "#42a5f5", ":"),
        ("scene_embedding", "linear", SCENE, "-"),
        ("scene_embedding", "k-NN", SCENE, ":"),
    ):
        chosen = [rows[f"{kind}, {suffix}: {head}"] for suffix in suffixes]
        _curve(ax, chosen, "bytes_per_image", "accuracy", colour, f"{kind}: {head}", style)
    for head, style in (("linear", "-"), ("k-NN", ":")):
        chosen = [rows[f"{name}: {head}"] for name in ("int8", "float32")]
        label = f"pooled vector, int8 and float32: {head}"
        _curve(ax, chosen, "bytes_per_image", "accuracy", WHOLE, label, style)
    for start, colour in (("pixel", LEVELS["random forest"]), ("untrained", LEVELS["untrained"])):
        best = max((n for n in rows if n.startswith(start)), key=lambda n: _value(rows[n]))
        _level(ax, rows[best]["accuracy"], colour, best.replace(", float32", ""))
    _unseen(ax, rows["majority class: none"], "majority class")
    jpeg = found["jpeg_bytes_per_image"]
    ax.axvline(jpeg, color="black", linestyle=":", linewidth=1)
    ax.annotate(
        f"JPEG\n{jpeg:,.0f} B",
        (jpeg, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
    )
    count = found["images"]
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.75 * (high - low), high)  # room for the legend
    _finish(
        ax,
        f"EuroSAT RGB, by rate (the catalog that ships: {rate!r})",
        f"bytes an image (log); {count['train']:,} training, {count['test']:,} test images",
    )


def _value(row: dict[str, Any]) -> float:
    return row["accuracy"]["value"]


def _curve(
    ax: Axes,
    rows: list[dict[str, Any]],
    size: str,
    metric: str,
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    rows = sorted(rows, key=lambda r: r[size])
    x = [r[size] for r in rows]
    y = [100 * r[metric]["value"] for r in rows]
    low = [100 * (r[metric]["value"] - r[metric]["low"]) for r in rows]
    high = [100 * (r[metric]["high"] - r[metric]["value"]) for r in rows]
    ax.errorbar(
        x,
        y,
        (low, high),
        color=colour,
        label=label,
        linestyle=style,
        marker="o",
        markersize=4.5,
        capsize=2.5,
        linewidth=1.5,
        elinewidth=0.9,
    )


def _level(ax: Axes, value: dict[str, float], colour: str, label: str) -> None:
    text = f"{label}: {100 * value['value']:.1f} %"
    ax.axhline(100 * value["value"], color=colour, linestyle="-.", linewidth=1.1, label=text)
    ax.axhspan(100 * value["low"], 100 * value["high"], color=colour, alpha=0.06, linewidth=0)


def _unseen(ax: Axes, row: dict[str, Any], label: str) -> None:
    """Name a level in the legend alone, where a line would flatten everything else."""
    ax.plot([], [], " ", label=f"({label}: {100 * _value(row):.1f} %)")


def _finish(ax: Axes, title: str, xlabel: str) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(_bytes))
    ax.set(xlabel=xlabel, ylabel="accuracy, %")
    ax.set_title(title, loc="left", fontweight="bold")
    ax.grid(axis="y", alpha=0.25)
    ax.legend(fontsize=7.5, loc="best", frameon=True, framealpha=0.85, edgecolor="none")
