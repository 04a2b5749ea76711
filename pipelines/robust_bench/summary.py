"""The tables of bench_robust_lowrank.py: rows over seeds, intervals, differences."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.evaluate.intervals import DRAWS, MARGIN, interval

REFERENCE = "dense"

Interval = dict[str, float]


def right(record: dict[str, Any], key: str, count: int) -> NDArray[np.float64]:
    """Return whether a run is right on each image, 0 or 1."""
    digits = record["right"][key]
    # Clean accuracy counts every image that there is.
    return np.array([float(c) for c in (digits if key == "clean" else digits[:count])])


def average(values: NDArray[np.float64]) -> Interval:
    """Average values of shape (seed, image); seeds and images are both drawn anew."""
    seeds, images = values.shape
    rng = np.random.default_rng(0)
    of_image = rng.multinomial(images, np.full(images, 1 / images), size=DRAWS) / images
    # Another training is another unit.
    of_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds
    drawn = ((of_image @ values.T) * of_seed).sum(1)
    return interval(float(values.mean()), drawn)


def row_tables(runs: dict[str, list[dict[str, Any]]], count: int) -> dict[str, Any]:
    """Give each row its accuracies, and differences to `REFERENCE` paired by seed and image.

    Parameters
    ----------
    runs : dict of str to list
        Records of a row, one a seed, the seeds of every row in one order.
    count : int
        Images that are attacked in each of them.
    """
    keys = list(runs[REFERENCE][0]["right"])
    answers = {
        row: {key: np.stack([right(r, key, count) for r in found]) for key in keys}
        for row, found in runs.items()
    }
    table: dict[str, Any] = {}
    for row, of_row in answers.items():
        entry: dict[str, Any] = {"accuracy": {k: average(v) for k, v in of_row.items()}}
        if row != REFERENCE:
            entry["difference"] = {k: average(v - answers[REFERENCE][k]) for k, v in of_row.items()}
            entry["no_worse"] = {k: v["low"] > -MARGIN for k, v in entry["difference"].items()}
        table[row] = entry | costs(runs[row])
    return table


def costs(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Average over seeds what a row costs and saves."""

    def mean(values: list[float]) -> float:
        return round(float(np.mean(values)), 4)

    entry: dict[str, Any] = {
        "width": mean([f["settings"]["width"] for f in found]),
        "parameters": mean([f["parameters"] for f in found]),
        "train_cpu_seconds": mean([f["train_cpu_seconds"] for f in found]),
        "last_loss": mean([f["progress"]["loss"][-1] for f in found]),
    }
    if "compression" in found[0]:
        entry["compression"] = {
            k: mean([f["compression"][k] for f in found]) for k in ("layers", "model", "flops")
        }
        numbers = np.array([list(f["condition"].values()) for f in found])
        bounds = np.array([list(f["bound"].values()) for f in found])
        entry["condition"] = {
            "before": mean([f["progress"]["condition_before"] for f in found]),
            "median": round(float(np.median(numbers)), 3),
            "largest": round(float(numbers.max()), 3),
            "bound_median": round(float(np.median(bounds)), 3),
            # The bound is an equality where singular values are alike: leave room for rounding.
            "within_bound": bool((numbers <= bounds * 1.001).all()),
        }
    return entry
