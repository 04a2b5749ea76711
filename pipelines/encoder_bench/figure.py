"""The figure of bench_encoder.py: accuracies by task, bytes by accuracy."""

from pathlib import Path
from typing import Any

from encoder_bench.probes import TRIVIAL

COLOURS = {
    "embedding": "#0b6e99",
    "untrained": "#b0b0b0",
    "pixel": "#d1811f",
    "random": "#e0b055",
    "bands": "#d1811f",
    "Galileo": "#7a4fa3",
}
TITLES = {
    "eurosat_rgb": "EuroSAT RGB",
    "eurosat_multispectral": "EuroSAT multispectral",
    "ucmerced": "UC Merced",
    "terramesh, blocks": "TerraMesh land cover, blocks",
    "terramesh, tiles": "TerraMesh, a tile left out",
    "flood": "water, blocks",
}


def tables(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tables of accuracies by name."""
    found = {}
    for name in ("eurosat_rgb", "eurosat_multispectral", "ucmerced", "flood"):
        if name in results:
            found[name] = results[name]
    for kind in ("blocks", "tiles"):
        if "terramesh" in results:
            found[f"terramesh, {kind}"] = results["terramesh"][kind]
    return {name: found[name] for name in TITLES if name in found}


def accuracies(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each row: that of the linear head, or the only one."""
    return {
        row: entry.get("linear", entry)["accuracy"]
        for row, entry in table["rows"].items()
        if "accuracy" in entry.get("linear", entry)
    }


def draw(results: dict[str, Any], out: Path) -> None:
    """Draw what is there to a PNG."""
    import matplotlib.pyplot as plt

    shown = tables(results)
    count = len(shown) + ("compressibility" in results)
    down, across = -(-count // 3), min(count, 3)
    figure, axes = plt.subplots(
        down, across, figsize=(5.5 * across, 3.6 * down), layout="constrained", squeeze=False
    )
    flat = list(axes.ravel())
    for ax, (name, table) in zip(flat, shown.items(), strict=False):
        rows = accuracies(table)
        # Far to the left: told, not drawn.
        trivial = rows.pop(TRIVIAL)
        for at, (row, value) in enumerate(reversed(rows.items())):
            colour = next((c for k, c in COLOURS.items() if row.startswith(k)), "#444444")
            low, mid, high = (100 * value[k] for k in ("low", "value", "high"))
            ax.plot([low, high], [at, at], color=colour, linewidth=2)
            ax.plot(mid, at, "o", color=colour, markersize=5)
            ax.annotate(
                f"{mid:.1f}",
                (high, at),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        ax.set_yticks(range(len(rows)), list(reversed(rows)), fontsize=8)
        ax.grid(alpha=0.3, axis="x")
        # Room for the numbers.
        left, right = ax.get_xlim()
        ax.set_xlim(left, right + 0.15 * (right - left))
        ax.set_title(f"{TITLES[name]} ({TRIVIAL}: {100 * trivial['value']:.1f})", fontsize=10)
        ax.set_xlabel("accuracy, % (95 % interval)", fontsize=8)
    if "compressibility" in results:
        _draw_bytes(flat[len(shown)], results["compressibility"])
    for ax in flat[count:]:
        ax.axis("off")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _draw_bytes(ax: Any, part: dict[str, Any]) -> None:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row, entry in part["rows"].items():
        if row.endswith(" B"):
            name = row.rsplit(", ", 1)[0]
            point = (entry["bytes_per_vector"], 100 * entry["linear"]["accuracy"]["value"])
            curves.setdefault(name, []).append(point)
    for name, points in curves.items():
        ax.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)
    ax.set_xscale("log")
    ax.set_xlabel("bytes a vector", fontsize=8)
    ax.set_ylabel("EuroSAT, linear, %", fontsize=8)
    ax.set_title("accuracy of decoded tokens", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)
