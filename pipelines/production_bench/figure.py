"""Draw what `bench_production.py` measured."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a panel for each of throughput, memory and reading over HTTP that was measured."""
    panels = {"throughput": _throughput, "memory": _memory, "http": _ranges}
    measured = [name for name in panels if name in results]
    if not measured:
        return
    figure, axes = plt.subplots(
        1, len(measured), figsize=(5 * len(measured), 3.6), layout="constrained", squeeze=False
    )
    for name, axis in zip(measured, axes[0], strict=True):
        panels[name](results[name], axis)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _throughput(found: dict[str, Any], axis: Axes) -> None:
    names = list(found["seconds"])
    for at, name in enumerate(names):
        axis.plot([at] * len(found["seconds"][name]), found["seconds"][name], "o", color="#3b6ea5")
    axis.set_xticks(range(len(names)), names)
    axis.margins(x=0.2, y=0.1)
    axis.set_ylim(bottom=0)
    axis.set_ylabel(f"seconds for {found['pixels'] / 1e6:.2f} Mpx")
    axis.set_title(
        f"forwards / one worker {found['end_to_end_over_forwards']:.2f}, "
        f"one / two workers {found['two_workers_over_one']:.2f}",
        fontsize=9,
    )


def _memory(found: dict[str, Any], axis: Axes) -> None:
    by_count = found["peak_bytes_by_number_of_small_scenes"]
    axis.plot([int(n) for n in by_count], [v / 2**30 for v in by_count.values()], "o-")
    axis.axhline(found["peak_gib_large_scene"], color="#a53b3b", label="one large scene")
    axis.axhline(2, color="grey", linestyle=":", label="bound")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("small scenes in a run")
    axis.set_ylabel("peak memory, GiB")
    axis.legend(fontsize=8)


def _ranges(found: dict[str, Any], axis: Axes) -> None:
    rows = found["rows"]
    axis.barh(list(rows), [row["bytes"] / 1e3 for row in rows.values()], color="#3b6ea5")
    for at, row in enumerate(rows.values()):
        axis.annotate(
            f" {row['requests']} requests, {row['seconds']:.2f} s",
            (row["bytes"] / 1e3, at),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    axis.invert_yaxis()
    axis.margins(x=0.45)
    axis.set_xlabel(f"kB for a box of {found['box_tokens']} x {found['box_tokens']} tokens")
