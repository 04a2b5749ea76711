"""How many labelled pixels a head of a map needs to match a U-Net."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ledger import Ledger
from numpy.typing import NDArray

from heads_bench.classification import DRAWS, MARGIN, matched
from heads_bench.segmentation import (
    BLOCK,
    SEED,
    UNET,
    Budget,
    Codes,
    Row,
    embedder_of,
    embeddings_of,
    flood_maps,
    head_row,
    ledger_of,
    summed,
    unet_of,
)
from nec.encoders import Encoder
from nec.evaluate.intervals import estimates
from nec.model import Model

# Embeddings whose heads learn from shares of the labels.
CURVES = ("float32", "decoded high", "decoded medium")
SHARES = (0.0003, 0.001, 0.003, 0.01, 0.1, 1.0)


def bench_flood_labels(
    data: Path, model: Model, twin: Encoder, ledger: Ledger, budget: Budget, *, folds: int
) -> dict[str, Any]:
    """Compare linear heads of a share of the pixels with a U-Net of all, on the same blocks.

    Draws of a share are added up in the confusions that intervals come from.
    """
    maps, embedders = flood_maps(data, folds), (embedder_of(model), embedder_of(twin))
    embeddings, _ = embeddings_of("flood", maps.images, embedders, model, ledger)
    heads = {name: head_row(embeddings[name], "linear", 0) for name in CURVES}
    count = len(maps.splits)
    counts: dict[str, NDArray[np.float32]] = {}
    known = np.mean([(train[0] & (maps.codes[0] >= 0)).sum() for train, _ in maps.splits])
    with ledger.counting("flood_labels", count * (1 + len(heads) * len(SHARES) * DRAWS)):
        counts[UNET] = DRAWS * summed("flood", UNET, unet_of(maps, budget), maps, ledger)
        for name, row in heads.items():
            for fraction in SHARES:
                shares = [_share_row(row, fraction, draw) for draw in range(DRAWS)]
                parts = [
                    summed("flood_labels", f"{name} | {fraction:g} | {draw}", share, maps, ledger)
                    for draw, share in enumerate(shares)
                ]
                counts[f"{name} | {fraction:g}"] = np.sum(parts, axis=0)
    there = counts[UNET].sum((1, 2)) > 0
    counts = {name: total[there] for name, total in counts.items()}
    table = estimates(counts, reference=UNET, metrics=("mean_iou",), seed=SEED)
    curve: dict[str, Any] = {"reference": UNET, "draws": DRAWS, "margin": MARGIN}
    curve["accuracy_of_reference"] = table[UNET]["mean_iou"]
    for name in heads:
        points = [
            {"fraction": f, "labels": round(f * known), **table[f"{name} | {f:g}"]["mean_iou"]}
            for f in SHARES
        ]
        curve[name] = {"points": points, **matched(points)}
    return {
        "task": "Sen1Floods11 water, mean IoU: linear heads of a share of the labelled pixels "
        f"beside a U-Net of all of them, blocks of {BLOCK} pixels left out",
        "unit": "block",
        "units": int(there.sum()),
        "folds": count,
        "unet_steps": budget.unet,
        "measure": "mean IoU",
        "label_curve": curve,
    }


def _share_row(row: Row, fraction: float, draw: int) -> Row:
    """Return a row that is given a share of the labels; larger ones contain smaller ones."""

    def share(labels: list[Codes]) -> tuple[list[Codes], int | None]:
        kept = []
        for y in labels:
            there = np.flatnonzero(y >= 0)
            order = np.random.default_rng(SEED + draw).permutation(there)
            some = np.full(y.size, -1, y.dtype)
            at = order[: max(20, round(fraction * len(order)))]
            some[at] = y.ravel()[at]
            kept.append(some.reshape(y.shape))
        return row(kept)

    return share


def parts_of(args: Any, model: Model, twin: Encoder) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Give the parts of this task, by name."""
    budget = Budget(args.steps, args.decoder_steps)
    ledger = ledger_of(args, model, budget)
    yield (
        "flood_labels",
        lambda: bench_flood_labels(args.data, model, twin, ledger, budget, folds=args.folds),
    )
