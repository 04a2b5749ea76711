"""How much of the time is the forward pass, and what a second worker brings."""

import json
import shutil
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nec
from nec.model import Model


class TimedEncoder:
    """An encoder that adds up the seconds of its forward passes, and keeps chips if asked."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.name, self.bands = encoder.name, encoder.bands
        self.patch_size, self.dim = encoder.patch_size, encoder.dim
        self.seconds = 0.0
        self.kept: list[tuple[Tensor, dict[str, Any]]] | None = None

    def embed(self, chips: Tensor, **options: Any) -> Tensor:
        """Embed, and count."""
        if self.kept is not None:
            self.kept.append((chips, options))
        start = time.perf_counter()
        tokens = self._encoder.embed(chips, **options)
        self.seconds += time.perf_counter() - start
        return tokens


def bench_throughput(scene: Path, work: Path, *, repeats: int) -> dict[str, Any]:
    """Time encoding against forwards of the same chips in memory; medians of interleaved runs.

    A loop of forwards with one torch thread, beside encoding by one worker with one torch
    thread, from file to sealed-ready store; then two workers. Opening the scene, its digest and
    the store's metadata are within the time.
    """
    torch.set_num_threads(1)
    model = nec.load_model("nec-tiny")
    timed = TimedEncoder(model.encoder)
    model.__dict__["encoder"] = timed  # where the cached property keeps it
    # Compiled and warm before anything is timed; what goes through the model is kept.
    timed.kept = []
    pixels, _ = _encode(scene, work / "warm.zarr", model, 1)
    chips, timed.kept = timed.kept, None
    seconds: dict[str, list[float]] = {"forwards": [], "one worker": [], "two workers": []}
    cpu: dict[str, list[float]] = {name: [] for name in seconds}
    beside, stages = [], []
    for _ in range(repeats):
        for name, times in seconds.items():
            start, used = time.perf_counter(), time.process_time()
            timed.seconds = 0.0
            if name == "forwards":
                for batch, options in chips:
                    timed.embed(batch, **options)
            else:
                _, taken = _encode(scene, work / "timed.zarr", model, 2 - (name == "one worker"))
            times.append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
            if name == "one worker":
                beside.append(1 - timed.seconds / times[-1])
                stages.append({**taken, "forward": timed.seconds})
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "pixels": pixels,
        "chips": sum(len(batch) for batch, _ in chips),
        "chip_pixels": int(chips[0][0].shape[-1]),
        "precision": model.precision,
        "seconds": {name: [round(v, 3) for v in values] for name, values in seconds.items()},
        "cpu_seconds": {name: [round(v, 3) for v in values] for name, values in cpu.items()},
        "end_to_end_over_forwards": round(middle["forwards"] / middle["one worker"], 4),
        "two_workers_over_one": round(middle["one worker"] / middle["two workers"], 4),
        "share_beside_the_forward": round(statistics.median(beside), 4),
        "stages_of_one_worker": {
            key: round(statistics.median(stage[key] for stage in stages), 4) for key in stages[0]
        },
        "megapixels_per_second": {
            name: round(pixels / 1e6 / value, 4) for name, value in middle.items()
        },
    }


def _encode(scene: Path, store: Path, model: Model, workers: int) -> tuple[int, dict[str, float]]:
    """Encode to a new store; return pixels, and seconds by stage as the log has them."""
    shutil.rmtree(store, ignore_errors=True)
    log = store.with_suffix(".jsonl")
    log.unlink(missing_ok=True)
    nec.encode(scene, store, model=model, workers=workers, log=log)
    tasks = [json.loads(line) for line in log.read_text().splitlines()]
    tasks = [event for event in tasks if event["event"] == "task"]
    total: Counter[str] = Counter()
    for task in tasks:
        total.update(task["seconds"])
    return sum(task["pixels"] for task in tasks), dict(total)
