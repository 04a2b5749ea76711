"""Forward passes of the rows' networks, side by side in one process."""

import copy
import statistics
import time
from typing import Any

import torch
from torch import nn

from nec.lowrank import deploy, merge
from robust_bench.images import Parts
from robust_bench.runs import Run

BATCH, ROUNDS = 64, 9


def bench_speed(runs: dict[str, Run], parts: Parts) -> dict[str, Any]:
    """Return images a second by row, medians of interleaved passes, seed 0, float32 and bfloat16.

    A network of low rank is timed as it was trained (U, S and V), as deployed, and merged into
    dense weights.
    """
    networks: dict[str, nn.Module] = {}
    for row, run in runs.items():
        model = run.train(parts)
        if not run.recipe.low_rank:
            networks[row] = model
            continue
        networks[f"{row}, as trained"] = model
        networks[f"{row}, deployed"] = deploy(copy.deepcopy(model))
        networks[f"{row}, merged"] = merge(copy.deepcopy(model)).eval()
    images = parts.test.images[:BATCH]
    seconds: dict[str, dict[str, list[float]]] = {n: {} for n in networks}
    with torch.inference_mode():
        for round_ in range(ROUNDS + 1):
            for name, model in networks.items():
                model.to(memory_format=torch.channels_last)
                for precision in ("float32", "bfloat16"):
                    low = precision == "bfloat16"
                    with torch.autocast("cpu", torch.bfloat16, enabled=low):
                        start = time.process_time()
                        model(images)
                        spent = time.process_time() - start
                    # The first round warms up.
                    if round_:
                        seconds[name].setdefault(precision, []).append(spent)
    return {
        "threads": torch.get_num_threads(),
        "batch": BATCH,
        "images_per_cpu_second": {
            name: {p: round(BATCH / statistics.median(s), 1) for p, s in of.items()}
            for name, of in seconds.items()
        },
    }
