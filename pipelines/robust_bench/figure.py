"""The figure of bench_robust_lowrank.py."""

from pathlib import Path
from typing import Any

TITLES = {"vgg": "VGG11", "vit": "ViT"}


def draw(results: dict[str, Any], out: Path) -> None:
    """Draw accuracy against budget, a row a network and a panel an attack; then the curve."""
    import matplotlib.pyplot as plt

    networks, names = results["networks"], results["budgets"]
    rows = len(networks) + ("curve" in results)
    figure, axes = plt.subplots(
        rows,
        len(names),
        figsize=(3.2 * len(names), 3.1 * rows),
        layout="constrained",
        squeeze=False,
    )
    for network, line_of in zip(networks, axes, strict=False):
        for ax, (name, budgets) in zip(line_of, names.items(), strict=True):
            for row, entry in networks[network]["rows"].items():
                keys = ["clean", *(f"{name} {b:g}" for b in budgets)]
                values = [entry["accuracy"][k] for k in keys]
                line = ax.plot(
                    [0, *budgets], [100 * v["value"] for v in values], marker="o", label=row
                )
                low, high = ([100 * v[k] for v in values] for k in ("low", "high"))
                ax.fill_between([0, *budgets], low, high, color=line[0].get_color(), alpha=0.13)
            ax.set_title(f"{TITLES[network]}, {name}", fontsize=10)
            ax.set_xlabel("budget, 1/255")
            ax.grid(alpha=0.3)
        line_of[0].set_ylabel("accuracy, % (95 %)")
        line_of[0].legend(fontsize=7)
    if "curve" in results:
        _curve(results["curve"], axes[-1])
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _curve(curve: dict[str, Any], axes: Any) -> None:
    """Draw accuracies against compression, a line a weight of the penalty."""
    keys = curve["keys"]
    points = curve["points"]
    for ax, key in zip(axes, keys, strict=False):
        for beta in sorted({p["beta"] for p in points}):
            for kind, mark in (("tau", "o"), ("cap", "s"), ("beta", "^")):
                here = sorted(
                    (p["compression"]["layers"], p["accuracy"][key]["value"])
                    for p in points
                    if p["beta"] == beta and p["varied"] == kind
                )
                if not here:
                    continue
                ax.plot(
                    [100 * x for x, _ in here],
                    [100 * y for _, y in here],
                    mark + ("-" if kind == "cap" else ":"),
                    label=f"beta {beta:g}" + ("" if kind == "beta" else f", {kind} varied"),
                )
        ax.axhline(100 * curve["dense"][key]["value"], color="grey", label="dense")
        ax.set_title(f"{TITLES[curve['network']]}, {key}", fontsize=10)
        ax.set_xlabel("saved of converted layers, %")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(fontsize=7)
    for ax in axes[len(keys) :]:
        ax.set_axis_off()
