"""What an embedding costs at equal accuracy: with and without noise training, without the head."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fit_compressors import GAMMA
from numpy.typing import NDArray

from encoder_bench.images import BATCH, ImageSet, eurosat_rgb, image_tokens
from encoder_bench.probes import probe
from nec.compressor import Compressor
from nec.encoders import Encoder
from nec.evaluate import RateCurve, bytes_at_levels
from nec.heads.pooling import mean_and_roughness

# Bytes a vector on the fitting sample.
RATES = (0.06, 0.15, 0.5, 1.5)

# Images coded together, as in a store; images that a compressor is fitted to.
CHUNK, FITTED = 100, 1000
LABELS, RESAMPLES = 4000, 3
SEED = 17


@dataclass
class _Coded:
    pooled: list[NDArray[np.float32]]
    size: int = 0
    vectors: int = 0


def bench_compressibility(
    data: Path, split: Path, variants: Mapping[str, Encoder], *, reference: str
) -> dict[str, Any]:
    """Code EuroSAT's tokens of each variant at each rate, and probe what is decoded.

    Parameters
    ----------
    data, split : Path
        Development data, and the split of EuroSAT.
    variants : mapping of str to Encoder
    reference : str
        The variant whose float32 row all rows are compared with.
    """
    images = eurosat_rgb(data, split)
    rng = np.random.default_rng(SEED)
    train, test = np.flatnonzero(~images.pool), np.flatnonzero(images.pool)
    chosen = rng.permutation(train)[:LABELS]
    keep = np.sort(np.concatenate([chosen, test]))
    images = replace(
        images, **{k: getattr(images, k)[keep] for k in ("images", "labels", "pool", "place")}
    )
    train, test = np.flatnonzero(~images.pool), np.flatnonzero(images.pool)
    rows: dict[str, NDArray[np.float32]] = {}
    sizes: dict[str, float] = {}
    for name, encoder in variants.items():
        for row, (vectors, size) in _decoded(encoder, images, rng.permutation(train)).items():
            rows[f"{name}, {row}"], sizes[f"{name}, {row}"] = vectors, size
    splits = [
        (np.sort(rng.choice(train, LABELS * 3 // 4, replace=False)), test) for _ in range(RESAMPLES)
    ]
    table = probe(
        rows, images.labels, splits, np.arange(len(keep)), reference=f"{reference}, float32"
    )
    for row, size in sizes.items():
        table[row]["bytes_per_vector"] = round(size, 4)
    return {
        "task": "EuroSAT RGB from decoded tokens, mean and roughness",
        "training_labels": len(splits[0][0]),
        "rates": RATES,
        "rows": table,
        "bytes_at_accuracy": bytes_at_accuracy(table, list(variants)),
    }


def _decoded(
    encoder: Encoder, images: ImageSet, train: NDArray[np.intp]
) -> dict[str, tuple[NDArray[np.float32], float]]:
    count = len(images.images)
    tokens = np.concatenate(
        [image_tokens(encoder, images, slice(at, at + BATCH)) for at in range(0, count, BATCH)]
    )
    features = np.moveaxis(tokens, 1, -1).astype(np.float32)
    sample = [features[np.sort(train[at : at + CHUNK])] for at in range(0, FITTED, CHUNK)]
    out = {"float32": (mean_and_roughness(tokens), 4.0 * tokens.shape[1])}
    basis = None
    for rate in RATES:
        compressor = Compressor.fit(sample, bytes_per_vector=rate, basis=basis, gamma=GAMMA)
        basis, coded = compressor.basis, _Coded([])
        for at in range(0, count, CHUNK):
            part = features[at : at + CHUNK]
            encoded = compressor.encode(part)
            coded.size += len(encoded)
            coded.vectors += part[..., 0].size
            coded.pooled.append(mean_and_roughness(np.moveaxis(compressor.decode(encoded), -1, 1)))
        out[f"{rate:g} B"] = (np.concatenate(coded.pooled), coded.size / coded.vectors)
    return out


def bytes_at_accuracy(
    table: dict[str, dict[str, Any]], variants: list[str]
) -> dict[str, dict[str, float | None]]:
    """Bytes a vector at which each variant reaches levels below the best; None where it does not.

    A level that a variant does not reach between its coarsest and finest rate has none.
    """
    curves = {
        name: RateCurve.of(
            (row["bytes_per_vector"], row["linear"]["accuracy"]["value"])
            for key, row in table.items()
            if key.startswith(f"{name}, ") and key.endswith(" B")
        )
        for name in variants
    }
    best = max(curve.scores[-1] for curve in curves.values())
    levels = np.round(best - np.array([0.01, 0.02, 0.03, 0.05]), 3)
    return {
        f"{level:.3f}": {n: None if s is None else round(s, 4) for n, s in sizes.items()}
        for level, sizes in bytes_at_levels(curves, levels.tolist()).items()
    }
