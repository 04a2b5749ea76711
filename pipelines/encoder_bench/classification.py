"""Scene classification: EuroSAT RGB and multispectral, UC Merced."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from main_job.statistics import pixel_statistics
from numpy.typing import NDArray
from sklearn.model_selection import RepeatedStratifiedKFold

from encoder_bench.filters import RandomFilters
from encoder_bench.images import (
    ImageSet,
    eurosat_multispectral,
    eurosat_rgb,
    pooled,
    ucmerced,
)
from encoder_bench.probes import Split, probe
from nec.encoders import Encoder
from nec.encoders.galileo import GalileoEncoder, galileo_tokens
from nec.evaluate import spatial_blocks, spatial_folds
from nec.heads.pooling import mean_and_variogram

RESAMPLES, LABELS = 10, 6000
# Edge of a block of places that are tested together, metres, and folds of blocks.
BLOCK, FOLDS = 100_000.0, 4
UCM_FOLDS, UCM_REPEATS = 8, 2
SEED = 7
OURS = "embedding, mean and cross-variogram"

# Gives the vectors of each row, of images of which some (bool) train.
Rows = Callable[[ImageSet, NDArray[np.bool_]], dict[str, NDArray[np.float32]]]


def against_simpler(encoder: Encoder, twin: Encoder) -> Rows:
    """Rows of an encoder, its untrained twin, and what needs no training at all.

    Filters are drawn from the training images alone.
    """

    def rows(images: ImageSet, train: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        ours, untrained = (pooled(e, images, mean_and_variogram) for e in (encoder, twin))
        shown = display(images)
        statistics = np.concatenate([pixel_statistics(d) for d in np.array_split(shown, 20)])
        filters = RandomFilters(shown[train])(shown)
        return {
            OURS: ours,
            "embedding, mean and roughness": without_cross(ours, encoder.dim),
            "embedding, mean": ours[:, : encoder.dim],
            "untrained twin, mean and cross-variogram": untrained,
            "untrained twin, mean and roughness": without_cross(untrained, twin.dim),
            "pixel statistics": statistics,
            "random filters": filters,
            "pixel statistics and random filters": np.concatenate([statistics, filters], axis=1),
        }

    return rows


def with_galileo(rows: Rows, data: Path) -> Rows:
    """Add a row of Galileo-nano's tokens."""

    def more(images: ImageSet, train: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        galileo = GalileoEncoder.load(data / "weights" / "galileo_nano")
        # Sentinel-2 digital numbers are what Galileo was normalised for.
        tokens = [
            galileo_tokens(galileo, part * 1e4, images.bands)
            for part in np.array_split(images.images, 20)
        ]
        found = np.concatenate([mean_and_variogram(np.moveaxis(t, -1, 1)) for t in tokens])
        return {
            **rows(images, train),
            "Galileo-nano tokens, mean and cross-variogram": found,
            "Galileo-nano tokens, mean and roughness": without_cross(found, tokens[0].shape[-1]),
        }

    return more


def without_cross(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return mean and roughness (n, 2 dim) of mean and cross-variogram."""
    rows, columns = np.triu_indices(dim)
    return np.concatenate([vectors[:, :dim], vectors[:, dim:][:, rows == columns]], axis=1)


def side_by_side(encoders: Mapping[str, Encoder]) -> Rows:
    """Rows of several encoders: mean and roughness of the tokens of each."""
    return lambda images, _: {name: pooled(of, images) for name, of in encoders.items()}


def display(images: ImageSet) -> NDArray[np.float32]:
    """Reflectance as the RGB images render it, so that filters see the contrast they need."""
    if len(images.bands) == 3:
        return images.images
    return np.clip(images.images / 0.5, 0, 1).astype(np.float32)


def bench_eurosat_rgb(
    data: Path, split: Path, make_rows: Rows, *, reference: str = OURS
) -> dict[str, Any]:
    """Resample the training labels of the pool; the test pool is fixed."""
    images = eurosat_rgb(data, split)
    rng = np.random.default_rng(SEED)
    train, test = np.flatnonzero(~images.pool), np.flatnonzero(images.pool)
    splits = [
        (np.sort(rng.choice(train, min(LABELS, len(train)), replace=False)), test)
        for _ in range(RESAMPLES)
    ]
    rows, units = make_rows(images, ~images.pool), np.arange(len(images.labels))
    return {
        "task": "EuroSAT RGB, 10 classes; fixed test pool of catalogs/eurosat/split.csv",
        "training_labels": len(splits[0][0]),
        "test_images": len(test),
        "resamples": len(splits),
        "unit": "test image",
        "rows": probe(rows, images.labels, splits, units, reference=reference),
    }


def bench_eurosat_multispectral(
    data: Path,
    split: Path,
    make_rows: Rows,
    *,
    reference: str = OURS,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Leave blocks of places out: test images of the pool, training images elsewhere."""
    images = eurosat_multispectral(data, split)
    block = place_blocks(images.place)
    splits = spatial_splits(block, images.pool, resamples)
    rows = make_rows(images, ~images.pool)
    return {
        "task": "EuroSAT multispectral, 7 bands, 10 classes; test pool of the split, by blocks of "
        f"{BLOCK / 1e3:g} km",
        "training_labels": int(np.mean([len(a) for a, _ in splits])),
        "test_images": int(images.pool.sum()),
        "blocks": int(block.max()) + 1,
        "resamples": len(splits) // FOLDS,
        "unit": "block",
        "rows": probe(rows, images.labels, splits, block, reference=reference),
    }


def place_blocks(place: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the number of each image's block; those of two zones are never one."""
    zone, x, y = place.T
    keys = np.stack([zone, spatial_blocks(x, y, size=BLOCK)], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].ravel()


def spatial_splits(
    block: NDArray[np.intp], pool: NDArray[np.bool_], resamples: int = RESAMPLES
) -> list[Split]:
    """Deal the blocks into folds, again and again; train outside a fold, test inside it."""
    rng = np.random.default_rng(SEED)
    splits = []
    for _ in range(resamples):
        fold = spatial_folds(block, folds=FOLDS, seed=rng)
        splits += [
            (np.flatnonzero(~pool & (fold != f)), np.flatnonzero(pool & (fold == f)))
            for f in range(FOLDS)
        ]
    return splits


def bench_ucmerced(
    data: Path,
    make_rows: Rows,
    *,
    reference: str = OURS,
    size: str = "whole",
    repeats: int = UCM_REPEATS,
) -> dict[str, Any]:
    """Cross-validate the few images there are; `size` is whole, half, or both, side by side."""
    images = ucmerced(data)
    folds = RepeatedStratifiedKFold(n_splits=UCM_FOLDS, n_repeats=repeats, random_state=SEED).split(
        images.images, images.labels
    )
    splits = list(folds)
    # Filters need no labels; a dictionary of all images favours their row, if anything.
    every = np.ones(len(images.labels), bool)
    rows = make_rows(images.halved() if size == "half" else images, every)
    if size == "both":
        smaller = make_rows(images.halved(), every)
        rows |= {f"{name}, images at half size": row for name, row in smaller.items()}
    title = "UC Merced at half its size" if size == "half" else "UC Merced"
    units = np.arange(len(images.labels))
    return {
        "task": f"{title}, 21 classes, {UCM_FOLDS}-fold",
        "training_labels": len(splits[0][0]),
        "test_images": len(images.labels),
        "resamples": repeats,
        "unit": "image",
        "rows": probe(rows, images.labels, splits, units, reference=reference),
    }


def bench_exchange(
    data: Path, split: Path, encoders: Mapping[str, Encoder], *, reference: str
) -> dict[str, Any]:
    """Fit the probe to the reference's embeddings alone, and test it on each encoder's."""
    images = eurosat_rgb(data, split)
    rng = np.random.default_rng(SEED)
    train, test = np.flatnonzero(~images.pool), np.flatnonzero(images.pool)
    fold = (np.sort(rng.choice(train, min(LABELS, len(train)), replace=False)), test)
    vectors = {name: pooled(of, images) for name, of in encoders.items()}
    rows = {
        name: np.where(images.pool[:, None], own, vectors[reference])
        for name, own in vectors.items()
    }
    units = np.arange(len(images.labels))
    return {
        "task": f"EuroSAT RGB, heads fitted to embeddings of {reference}",
        "training_labels": len(fold[0]),
        "test_images": len(test),
        "resamples": 1,
        "unit": "test image",
        "rows": probe(rows, images.labels, [fold], units, reference=reference),
    }
