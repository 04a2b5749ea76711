"""The figure of bench_heads.py: error or accuracy of every row, scatter, curves over labels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from nec.evaluate import draw_confusion, draw_measured_against_predicted

METRICS = {
    "hainich": ("all", "rmse"),
    "gedi_structure": ("all", "rmse"),
    "eurosat": ("images", "accuracy"),
    "ucmerced": ("images", "accuracy"),
    "alphaearth": ("images", "accuracy"),
}
SEGMENTATION = ("pixels", "mean_iou")
SHOWN = {"rmse": "RMSE", "mean_iou": "mean IoU"}
UNITS = {"hainich": "Mg/ha", "gedi_structure": "m", "hainich_labels": "Mg/ha"}
# What is drawn, by file, and its titles.
GROUPS = {
    "quantities": {
        "hainich": "Biomass, Hainich",
        "hainich_labels": "Biomass, Hainich, from few labels",
        "transfer": "Biomass in another region",
        "gedi_structure": "Canopy height, Nicaragua",
    },
    "maps": {
        "terramesh": "Land cover, TerraMesh, one tile left out",
        "flood": "Water, Sen1Floods11",
        "flood_labels": "Water, Sen1Floods11, from few labels",
        "alberta": "Scene classification, Alberta",
    },
    "images": {
        "eurosat": "EuroSAT RGB",
        "ucmerced": "UC Merced",
        "alphaearth": "Dynamic World, AlphaEarth, another region",
    },
}
TITLES = {part: title for group in GROUPS.values() for part, title in group.items()}
# Names of classes that data sets number.
NAMES = {
    "terramesh": {
        **{1: "water", 2: "trees", 3: "flooded vegetation", 4: "crops", 5: "built"},
        **{6: "bare", 7: "snow", 8: "clouds", 9: "rangeland"},
    },
    "flood": {0: "land", 1: "water"},
    "alberta": dict(
        enumerate(
            (
                *("dark", "cloud shadow", "vegetation", "bare", "water", "unclassified"),
                *("cloud, medium", "cloud, high", "cirrus"),
            ),
            2,
        )
    ),
}


def draw(results: dict[str, Any], out: Path) -> None:
    """Draw each group of what is there to a file of its own, OUT_group.png."""
    for group, titles in GROUPS.items():
        there = [part for part in titles if part in results]
        if there:
            _draw(results, there, out.with_name(f"{out.stem}_{group}.png"))


def _draw(results: dict[str, Any], there: list[str], out: Path) -> None:
    """Draw a row of panels for each part."""
    import matplotlib.pyplot as plt

    heights = [7.5 if len(results[part].get("classes", ())) > 12 else 4.8 for part in there]
    figure, axes = plt.subplots(
        *(len(there), 2),
        figsize=(13, sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for (left, right), part in zip(axes, there, strict=True):
        found = results[part]
        panels = list(_panels(part, found))
        for ax, panel in zip((left, right), panels, strict=False):
            panel(ax)
        for ax in (left, right)[len(panels) :]:
            ax.axis("off")
    figure.savefig(out, dpi=100)
    plt.close(figure)


def _panels(part: str, found: dict[str, Any]) -> Iterator[Callable[[Axes], None]]:
    """Give what there is to draw of a part, two panels at most."""
    if "rows" in found:
        yield lambda ax: _draw_rows(ax, part, found["rows"])
    if "scatter" in found:
        yield lambda ax: _draw_scatter(ax, part, found["scatter"], found["labels"]["all"])
    elif "label_curve" in found:
        yield lambda ax: _draw_label_curve(ax, part, found)
    elif "confusion" in found:
        yield lambda ax: _draw_confusion(ax, part, found)
    elif "curves" in found:
        for target in ("biomassters", "hainich"):
            yield lambda ax, t=target: _draw_transfer(ax, found["curves"], t)


def _draw_rows(ax: Axes, part: str, rows: dict[str, Any]) -> None:
    kind, metric = METRICS.get(part, SEGMENTATION)
    for at, (row, entry) in enumerate(rows.items()):
        value = entry[kind][metric]
        colour = "tab:blue" if row.startswith(("float32", "decoded")) else "tab:gray"
        ax.plot([value["low"], value["high"]], [at, at], color=colour, lw=2)
        ax.plot(value["value"], at, "o", color=colour)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=8)
    ax.invert_yaxis()
    ax.grid(alpha=0.3, axis="x")
    units = f", {UNITS[part]}" if part in UNITS else ""
    ax.set(xlabel=f"{SHOWN.get(metric, metric)}{units} (95 %)", title=TITLES[part])


def _draw_scatter(ax: Axes, part: str, pairs: dict[str, Any], labels: int) -> None:
    ours = next(name for name in pairs if name != "measured")
    draw_measured_against_predicted(
        np.array(pairs["measured"]), np.array(pairs[ours]), units=UNITS[part], ax=ax
    )
    count = len(pairs["measured"])
    ax.set_title(f"{ours}, {count:,} of {labels:,} labels" if count < labels else ours)


def _draw_confusion(ax: Axes, part: str, found: dict[str, Any]) -> None:
    classes = [NAMES.get(part, {}).get(c, c) for c in found["classes"]]
    draw_confusion(found["confusion"], classes, ax=ax)
    ax.set_title("float32, fpn" if "unet_steps" in found else "float32")


def _draw_label_curve(ax: Axes, part: str, found: dict[str, Any]) -> None:
    """Draw heads of a share of the labels, and the network of all of them as a line."""
    curve = found["label_curve"]
    base = found.get("rmse_of_reference") or curve["accuracy_of_reference"]
    for name, entry in curve.items():
        if not isinstance(entry, dict) or "points" not in entry:
            continue
        labels, value, low, high = (
            [p[k] for p in entry["points"]] for k in ("labels", "value", "low", "high")
        )
        line = ax.plot(labels, value, marker="o", label=name)
        ax.fill_between(labels, low, high, alpha=0.15, color=line[0].get_color())
    ax.axhspan(base["low"], base["high"], color="tab:gray", alpha=0.15)
    ax.axhline(base["value"], color="tab:gray", label=f"{curve['reference']}, all labels")
    ax.set_xscale("log")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    measure = f"RMSE, {UNITS[part]}" if part in UNITS else found.get("measure", "accuracy")
    ax.set(xlabel="labels", ylabel=f"{measure} (95 %)", title=TITLES[part])


def _draw_transfer(ax: Axes, curves: dict[str, Any], target: str) -> None:
    for name, points in curves.items():
        if not name.endswith(f"to {target}"):
            continue
        at = np.arange(len(points))
        for kind, style in (("score", "-"), ("alone", ":")):
            means = [np.nan if p[kind]["mean"] is None else p[kind]["mean"] for p in points]
            text = "with the other region" if kind == "score" else "alone"
            ax.plot(at, means, style, marker="o", label=f"{name.split(',')[0]}, {text}")
        ax.set_xticks(at, [p["labels_there"] for p in points])
    title = f"{TITLES['transfer']}: to {target}"
    ax.set_yscale("symlog", linthresh=1)  # what is worse than the mean may be so by far
    ax.set_yticks((-30, -10, -3, -1, 0, 0.5, 1), ("-30", "-10", "-3", "-1", "0", "0.5", "1"))
    ax.set(xlabel=f"labels of {target}", ylabel="R2", title=title)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
