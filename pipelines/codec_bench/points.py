"""Lone vectors, without neighbours: the codec against PCA with int8, PQ and OPQ at equal bytes."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec_bench import data
from codec_bench.baselines import frontier, pca_int8, product_quantisers
from codec_bench.bound import Spectrum, bound
from codec_bench.stores import measure_lone
from nec.codec.clustering import FEWEST
from nec.compressor import Compressor
from nec.rotation import klt

log = logging.getLogger(__name__)

SEED = 5
# Vectors to a chunk: as a store keeps those without a place, and a tenth of it.
STORED, CHUNKS = 1000, (1000, 100)
LOW = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32, 64)
SIZES = {64: LOW, 768: (*LOW, 128, 256)}
# Sizes of codebooks whose codes alone are coded: by quarters of an octave.
CODES = sorted({round(2 ** (quarter / 4)) for quarter in range(4, 33)})
# Bytes of the checksum that Zarr adds to a chunk, which our chunks have as well.
CHECKSUM = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "ours, codebook": {"codebook": "auto"},
    "ours, no codebook": {},
    "ours, gamma 0.125": {"gamma": 0.125},
}
ALONE = "ours, codes alone"
# What baselines are held against: the best of these at each size.
OURS = ("ours, codebook", "ours, no codebook", ALONE)


def bench_points(folder: Path) -> dict[str, Any]:
    """Compare on Clay and AlphaEarth points; everything is fitted on one half of the vectors."""
    results: dict[str, Any] = {
        "note": "rotation, tables, components, codebooks and scales are fitted on half of the "
        "vectors and measured on the others, which are stored as samples of one token, so many "
        "to a chunk. Bytes are chunks with checksums; fixed bytes (basis, tables) stand apart. A "
        "baseline is better where its mean cosine is above ours at the same bytes, ours being the "
        "best of a codebook chosen on the sample, none, and codes alone; its own bytes are "
        "codes and, where they have none, a checksum a chunk. The targets count chunks of a "
        "thousand, in which stores keep vectors without a place. "
        "nearest_fitted is the cosine of a measured vector to the nearest one that was fitted "
        "on; gaussian_bound is what a Gaussian of the measured vectors' own covariance takes at "
        "least for the row's squared error: a row below it gains from clusters.",
        "cases": {},
    }
    for name, train, test in _cases(folder):
        log.info("%s", name)
        results["cases"][name] = _case(train, test)
    results["targets"] = [_target(results["cases"], kind) for kind in ("PCA", "PQ")]
    return results


def _target(cases: dict[str, Any], kind: str) -> dict[str, Any]:
    """Count the baselines of a kind that are better, and say up to which size."""
    worse = [
        row
        for case in cases.values()
        for row in case["chunks"][str(STORED)]["beaten_by"]
        if (row["row"].startswith("PCA")) == (kind == "PCA")
    ]
    return {
        "what": "lone vectors: "
        + ("PCA-k + int8 (+ zstd)" if kind == "PCA" else "PQ and OPQ")
        + " better at equal bytes, rows",
        "target": 0,
        "found": len(worse),
        "largest_bytes": max((row["bytes_per_vector"] for row in worse), default=None),
        "of_them_below_the_gaussian_bound": sum(
            row["bytes_per_vector"] < row["gaussian_bound"] for row in worse
        ),
        "of_them_with_a_larger_error_than_the_mean": sum(
            row["gaussian_bound"] == 0 for row in worse
        ),
        "met": not worse,
    }


def _cases(folder: Path) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    vectors = data.clay(folder)
    order = np.random.default_rng(SEED).permutation(len(vectors))
    half = len(vectors) // 2
    yield "clay: random halves", vectors[order[:half]], vectors[order[half:]]
    vectors, region = data.alphaearth_points(folder)
    order = np.random.default_rng(SEED).permutation(len(vectors))
    half = len(vectors) // 2
    yield "alphaearth: random halves", vectors[order[:half]], vectors[order[half:]]
    names = np.unique(region)
    for first in (names[::2], names[1::2]):
        inside = np.isin(region, first)
        yield f"alphaearth: fitted on {' and '.join(first)}", vectors[inside], vectors[~inside]


def _case(train: NDArray[np.float32], test: NDArray[np.float32]) -> dict[str, Any]:
    dim = train.shape[1]
    sample = train[:, None, None, :]
    # Beyond what the training vectors span, directions are arbitrary.
    basis = klt([sample])[:, : len(train)]
    fitted = {
        name: [
            Compressor.fit(
                sample, bytes_per_vector=size, basis=basis, scene_bytes=max(size, 1), **options
            )
            for size in SIZES[dim]
        ]
        for name, options in VARIANTS.items()
    }
    fitted[ALONE] = [
        Compressor.fit(sample, codebook=codes, basis=basis)
        for codes in CODES
        if FEWEST * codes <= len(train)
    ]
    quantisers = product_quantisers(train, test, max(SIZES[dim]))
    out: dict[str, Any] = {
        "fitted_on": len(train),
        "vectors": len(test),
        "bands": basis.shape[1],
        "nearest_fitted": _nearest(train, test),
        "chunks": {},
    }
    own = _covariance(test)
    for chunk in CHUNKS:
        curves = {
            name: [measure_lone(test, c, min(chunk, len(test))) for c in compressors]
            for name, compressors in fitted.items()
        }
        own_rows = [row | {"row": name} for name in OURS for row in curves[name]]
        curves = {"ours": frontier(own_rows), **curves}
        baselines = pca_int8(train, test, range(1, dim + 1), chunk) + [dict(r) for r in quantisers]
        checked = CHECKSUM * -(-len(test) // chunk) / len(test)
        for row in baselines:
            if not row["row"].endswith("zstd"):
                row["bytes_per_vector"] = round(row["bytes_per_vector"] + checked, 4)
        for row in baselines:
            for name, points in curves.items():
                row[f"over {name}"] = _advantage(row, points)
            row["gaussian_bound"] = round(bound(own, row["squared_error"]), 3)
        beaten_by = [r for r in baselines if (r["over ours"] or 0) > 0]
        out["chunks"][str(chunk)] = {
            "curves": curves,
            "frontiers": {
                kind: frontier([r for r in baselines if r["row"] == kind])
                for kind in dict.fromkeys(r["row"] for r in baselines)
            },
            "beaten_by": sorted(beaten_by, key=lambda r: r["bytes_per_vector"]),
            "compared": len(baselines),
        }
    return out


def _nearest(train: NDArray[np.float32], test: NDArray[np.float32]) -> dict[str, float]:
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (train, test)]
    nearest = (units[1] @ units[0].T).max(1)
    return {"median": round(float(np.median(nearest)), 5), "mean": round(float(nearest.mean()), 5)}


def _covariance(vectors: NDArray[np.float32]) -> Spectrum:
    """Return the principal variances of vectors that know nothing of each other."""
    variance = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64)))
    one = np.array([len(vectors)])
    return Spectrum(np.maximum(variance, 0)[:, None], one, len(vectors))


def _advantage(row: dict[str, Any], points: list[dict[str, Any]]) -> float | None:
    """Return how far a baseline's mean cosine lies above ours at its bytes.

    Ours is interpolated in the log of the bytes and of 1 - cosine; above our largest point it
    is that point; below our smallest there is nothing to compare with, hence None.
    """
    ordered = sorted(points, key=lambda p: p["bytes_per_vector"])
    size = np.log([p["bytes_per_vector"] for p in ordered])
    loss = np.log([max(1 - p["cosine_mean"], 1e-9) for p in ordered])
    wanted = np.log(row["bytes_per_vector"])
    if wanted < size[0]:
        return None
    ours = 1 - float(np.exp(np.interp(wanted, size, loss)))
    return round(row["cosine_mean"] - ours, 6)
