"""The figure: rate against fidelity, labels, lone vectors, speed."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

OURS, SMALLER, LONE, OTHER, BOUND = "#1565c0", "#42a5f5", "#00897b", "#ef6c00", "#757575"
QUANTISERS = {"PQ": "#8e24aa", "OPQ": "#c2185b"}


def draw(sections: dict[str, Any], path: Path) -> None:
    """Draw what there is of the sections to a PNG; panels without figures say so."""
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, 3, figsize=(17, 10), layout="constrained")
        rates, points = (
            sections.get("rates", {}).get("cases", {}),
            sections.get("points", {}).get("cases", {}),
        )
        direction = "fitted on the north, measured on the south"
        panels = (
            ("AlphaEarth, 64 bands at 10 m", _rate, rates.get(f"alphaearth: {direction}")),
            ("Presto, 128 bands at 10 m", _rate, rates.get(f"presto: {direction}")),
            ("Galileo tokens: linear land-cover probe", _galileo, sections.get("galileo")),
            ("Clay, lone vectors of 768", _lone, points.get("clay: random halves")),
            ("AlphaEarth, lone vectors of 64", _lone, points.get("alphaearth: random halves")),
            ("Speed: what a CPU-second does", _speed, sections.get("speed")),
        )
        for ax, (title, panel, found) in zip(axes.ravel(), panels, strict=True):
            ax.set_title(title, loc="left", fontweight="bold")
            if found:
                panel(ax, found)
            else:
                ax.text(0.5, 0.5, "not run", ha="center", color=BOUND, transform=ax.transAxes)
                ax.set_axis_off()
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _size(value: float, _: Any = None) -> str:
    return f"{value:g}"


def _curve(ax: Axes, points: list[dict[str, Any]], label: str, colour: str, **style: Any) -> None:
    ordered = sorted(points, key=lambda p: p["bytes_per_vector"])
    sizes = [p["bytes_per_vector"] for p in ordered]
    ax.plot(sizes, [1 - p["cosine_mean"] for p in ordered], color=colour, label=label, **style)


def _rate(ax: Axes, found: dict[str, Any]) -> None:
    """Loss of cosine against bytes, both logarithmic."""
    bound = [p for p in found["bound"] if p["own_statistics"] > 0]
    losses = [1 - p["cosine_mean"] for p in bound]
    for key, label, style in (
        ("own_statistics", "Gaussian bound, this half's spectrum", "-"),
        ("fitted_statistics", "the same of the other half's", ":"),
    ):
        ax.plot([p[key] for p in bound], losses, style, color=BOUND, label=label)
    ablation = found["ablation"]
    _curve(ax, found["ours"], "nec", OURS, marker="o", linewidth=2)
    for name, label, colour in (
        ("block 16", "nec, blocks of 16", SMALLER),
        ("block 1: each vector alone", "nec, each vector alone", LONE),
    ):
        if name in ablation:
            _curve(ax, ablation[name]["points"], label, colour, marker=".", linewidth=1)
    for scaling, style in (("per component", "--"), ("common", ":")):
        rows = [r for r in found["pca_int8"] if r["scaling"] == scaling]
        if scaling == "per component":
            plain = [r for r in rows if not r["row"].endswith("zstd")]
            _curve(ax, plain, "PCA-k, int8", OTHER, marker="s", markersize=3, linewidth=1)
        packed = [r for r in rows if r["row"].endswith("zstd")]
        _curve(ax, packed, f"PCA-k, int8 ({scaling}), zstd", OTHER, linestyle=style, linewidth=1)
    for row in found.get("product", []):
        ax.axvline(row["bytes_per_vector"], color="#8d6e63", linewidth=0.8)
        ax.text(
            row["bytes_per_vector"],
            0.02,
            f" product, {row['row']}",
            rotation=90,
            fontsize=7,
            color="#8d6e63",
            ha="right",
            va="bottom",
            transform=ax.get_xaxis_transform(),
        )
    if found.get("product"):
        for most, cosine in ((0.80, 0.993), (1.6, 0.9965)):
            label = "target" if cosine == 0.993 else None
            ax.plot(
                most, 1 - cosine, marker="*", color="#d32f2f", markersize=11, label=label, ls=""
            )
    reached = [1 - p["cosine_mean"] for p in found["ours"]]
    trivial = 1 - found["trivial"]["cosine_mean"]
    ax.set_ylim(min(reached) / 1.5, max(*reached, trivial) * 1.4)
    ax.axhline(trivial, color="#9e9e9e", linewidth=0.8, linestyle="--")
    ax.text(
        0.99,
        trivial,
        "the mean vector",
        transform=ax.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=7,
        color="#616161",
    )
    _logarithmic(ax, "1 - mean cosine")


def _logarithmic(ax: Axes, label: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(_size))
    ax.yaxis.set_major_formatter(FuncFormatter(_size))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("bytes a vector")
    ax.set_ylabel(label)
    ax.grid(alpha=0.25, which="both", linewidth=0.5)
    ax.legend(fontsize=7, frameon=False)


def _galileo(ax: Axes, found: dict[str, Any]) -> None:
    """Accuracy against bytes, with the intervals of the difference to float32."""
    rows = found["rows"]
    whole = rows["float32"]["accuracy"]["value"]
    for gamma, colour in ((0.0, OURS), (0.125, LONE)):
        own = [r for r in rows.values() if r.get("gamma") == gamma]
        _accuracies(ax, own, whole, f"nec, gamma {gamma:g}", colour, marker="o")
    for name, colour in (("PCA-32 + int8", OTHER), ("float32", "#424242")):
        _accuracies(ax, [rows[name]], whole, name, colour, marker="s", linestyle="")
    ax.axhline(100 * whole, color="#424242", linewidth=0.8, alpha=0.5)
    trivial = next(name for name in rows if name.startswith("means of"))
    value = 100 * rows[trivial]["accuracy"]["value"]
    ax.axhline(value, color="#6d4c41", linewidth=1, linestyle="--")
    ax.text(
        0.99,
        value,
        f"{trivial}, no encoder",
        transform=ax.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=7,
        color="#6d4c41",
    )
    for size, lost in ((2.0, 1.5), (0.75, 4.0)):
        label = "target" if size == 2 else None
        ax.plot(
            size, 100 * whole - lost, marker="*", color="#d32f2f", markersize=11, ls="", label=label
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(_size))
    ax.set_xlabel("bytes a vector, measured on the tiles")
    ax.set_ylabel("accuracy, %; bars: 95 % of the difference to float32")
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(fontsize=7, frameon=False, loc="lower right")


def _accuracies(
    ax: Axes, rows: list[dict[str, Any]], whole: float, label: str, colour: str, **style: Any
) -> None:
    rows = sorted(rows, key=lambda r: r["bytes_per_vector"])
    values = [100 * r["accuracy"]["value"] for r in rows]
    ends: list[list[float]] = [[], []]
    for row, value in zip(rows, values, strict=True):
        difference = row["accuracy"].get("difference", {"low": 0.0, "high": 0.0})
        if row["accuracy"]["value"] == whole:
            difference = {"low": 0.0, "high": 0.0}
        ends[0].append(max(value - 100 * (whole + difference["low"]), 0))
        ends[1].append(max(100 * (whole + difference["high"]) - value, 0))
    sizes = [r["bytes_per_vector"] for r in rows]
    ax.errorbar(sizes, values, ends, color=colour, label=label, capsize=2, linewidth=1.2, **style)


def _lone(ax: Axes, found: dict[str, Any]) -> None:
    """Loss of cosine against bytes of vectors without neighbours."""
    chunks = found["chunks"]
    for chunk, width in (("1000", 2.0), ("100", 0.9)):
        label = f"nec, {int(chunk):,} to a chunk"
        _curve(ax, chunks[chunk]["curves"]["ours"], label, OURS, marker=".", linewidth=width)
    without = chunks["1000"]["curves"]["ours, no codebook"]
    _curve(ax, without, "nec, no codebook", OURS, linestyle=":", linewidth=1.2)
    frontiers = chunks["1000"]["frontiers"]
    for kind, points in frontiers.items():
        colour = QUANTISERS.get(kind, OTHER)
        style = "--" if kind.endswith("zstd") else "-"
        _curve(ax, points, kind, colour, linestyle=style, linewidth=1, marker=".", markersize=3)
    worse = chunks["1000"]["beaten_by"]
    if worse:
        sizes = [r["bytes_per_vector"] for r in worse]
        ax.plot(
            sizes,
            [1 - r["cosine_mean"] for r in worse],
            "rx",
            markersize=5,
            label="better than nec at equal bytes",
        )
    _logarithmic(ax, "1 - mean cosine")


def _speed(ax: Axes, found: dict[str, Any]) -> None:
    """Bars in two groups: megabytes of float32 that are read, millions of symbols of the coders."""
    reading, times = found["stores"]["reading"], found["coefficients"]["times"]
    groups = (
        ("read, MB of float32", "MB_per_cpu_second", reading),
        ("coders, million symbols", "Msymbols_per_cpu_second", times),
    )
    ticks: list[tuple[int, str]] = []
    for title, measure, rows in groups:
        ticks.append((len(ticks), f"{title}:"))
        for name, row in rows.items():
            at, value = len(ticks), row[measure]
            ax.barh(at, value, color=OURS if name.startswith("nec") else OTHER)
            ax.text(value * 1.05, at, f"{value:,.0f}", va="center", fontsize=8)
            ticks.append((at, name))
    ax.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(right=max(r[m] for _, m, rows in groups for r in rows.values()) * 4)
    ax.xaxis.set_major_formatter(FuncFormatter(_size))
