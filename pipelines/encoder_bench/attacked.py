"""Encoders under attack: probes on their embeddings, and how far the embeddings move."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from encoder_bench.images import RGB, ImageSet, eurosat_rgb
from nec.encoders.vit import VisionTransformer
from nec.evaluate.intervals import confusions, estimates
from nec.robustness import FGSM, PGD, evaluate
from nec.robustness.embedding_shift import embedding_shift, scene_embedding

# 255ths of the range of a pixel, maximum norm.
BUDGETS = (0.25, 0.5, 1.0)
LABELS, ATTACKED, STEPS, CHUNK = 3000, 200, 10, 50
STRENGTH, SEED = 0.3, 23


def bench_attacks(
    data: Path, split: Path, networks: Mapping[str, VisionTransformer], *, reference: str
) -> dict[str, Any]:
    """Attack a linear probe on the mean of the tokens, and the mean itself, in float32.

    The probe is fitted to clean training images. The shift is in units of the median distance
    between images, so that a collapsed embedding gains nothing.
    """
    images = eurosat_rgb(data, split)
    rng = np.random.default_rng(SEED)
    train = np.sort(rng.permutation(np.flatnonzero(~images.pool))[:LABELS])
    test = np.sort(rng.permutation(np.flatnonzero(images.pool))[:ATTACKED])
    classes, truth = np.unique(images.labels, return_inverse=True)
    shape = (len(test), len(classes))
    x, y = torch.from_numpy(images.images[test]), torch.from_numpy(truth[test])
    attacks = {
        f"{name} {budget:g}": kind(budget)
        for name, kind in (
            ("FGSM", lambda b: FGSM(epsilon=b / 255, chunk=CHUNK)),
            ("PGD", lambda b: PGD(epsilon=b / 255, steps=STEPS, chunk=CHUNK)),
        )
        for budget in BUDGETS
    }
    counts: dict[str, dict[str, NDArray[np.float32]]] = {"clean": {}}
    shifts: dict[str, dict[str, float]] = {}
    for row, network in networks.items():
        embed = scene_embedding(network.eval(), bands=RGB, gsd=images.gsd)
        model = _probe(embed, images, train, truth)
        with torch.no_grad():
            clean = model(x).argmax(1).numpy()
        for name, attack in attacks.items():
            outcome = evaluate(model, x, y, attack)
            # What was wrong before stays wrong, whatever an attack makes of it.
            found = np.where(outcome.clean.numpy(), model(outcome.x).argmax(1).numpy(), clean)
            counts.setdefault(name, {})[row] = confusions(
                y.numpy(), found, np.arange(len(test)), shape
            )
        counts["clean"][row] = confusions(y.numpy(), clean, np.arange(len(test)), shape)
        moved = embedding_shift(embed, x, epsilon=BUDGETS[-1] / 255, steps=STEPS, chunk=CHUNK)
        shifts[row] = {
            "shift": round(float(moved.shift.median()), 4),
            "noise": round(float(moved.noise.median()), 4),
            "lost": round(float(moved.lost.float().mean()), 4),
        }
    return {
        "task": f"EuroSAT RGB, linear probe on the mean of the tokens; budgets in 255ths, PGD of "
        f"{STEPS} steps",
        "training_labels": len(train),
        "test_images": len(test),
        "attacks": {
            name: estimates(found, reference=reference, metrics=("accuracy",), seed=SEED)
            for name, found in counts.items()
        },
        "embedding_shift": {"budget": BUDGETS[-1], "networks": shifts},
    }


def _probe(
    embed: Callable[[Tensor], Tensor],
    images: ImageSet,
    train: NDArray[np.intp],
    truth: NDArray[np.intp],
) -> Callable[[Tensor], Tensor]:
    """Return images to logits: the embedding, standardised, and a linear map."""
    with torch.no_grad():
        parts = [train[at : at + CHUNK] for at in range(0, len(train), CHUNK)]
        X = torch.cat([embed(torch.from_numpy(images.images[part])) for part in parts])
    mean, deviation = X.mean(0), X.std(0)
    head = LogisticRegression(C=STRENGTH, max_iter=500)
    head.fit(((X - mean) / deviation).numpy(), truth[train])
    weights = torch.from_numpy(head.coef_.T.astype(np.float32))
    offset = torch.from_numpy(head.intercept_.astype(np.float32))
    return lambda x: (embed(x) - mean) / deviation @ weights + offset
