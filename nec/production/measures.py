"""What a run measures of itself: fidelity, seams, sizes; kept in receipts, added up at the end."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.archive import Receipt, StoreWriter
from nec.codec.guarantee import cosines
from nec.encoders.tiling import neighbour_cosines


@dataclass(frozen=True)
class EncodeReport:
    """What `encode` did.

    Attributes
    ----------
    store : Path
        The store.
    written, missing, failed : int
        Tasks by outcome, those of earlier runs included.
    resumed : int
        Tasks that an earlier run had done.
    payload_bytes : dict of str to int
        Bytes of objects by array.
    vectors : int
        Valid vectors.
    cosine_mean, cosine_p01, cosine_min : float
        Decoded against original features; NaN where nothing is valid.
    seam : dict
        Mean cosine of neighbouring tokens inside chips, across their borders, and in that phase
        of the chip where it is worst.
    failures : dict of str to str
        Reasons by task.
    masked_fraction : float or None
        Share of the scene's pixels that are missing: nodata, or masked. None where nothing
        tells.
    """

    store: Path
    written: int
    missing: int
    failed: int
    resumed: int
    payload_bytes: dict[str, int]
    vectors: int
    cosine_mean: float
    cosine_p01: float
    cosine_min: float
    seam: dict[str, float]
    failures: dict[str, str] = field(default_factory=dict)
    masked_fraction: float | None = None

    def summary(self) -> dict[str, Any]:
        """Return counts, bytes, the mean cosine and failures in JSON types, for the log."""
        return {
            "written": self.written,
            "missing": self.missing,
            "failed": self.failed,
            "resumed": self.resumed,
            "payload_bytes": sum(self.payload_bytes.values()),
            "vectors": self.vectors,
            "cosine_mean": round(self.cosine_mean, 6) if self.vectors else None,
            **({"failures": self.failures} if self.failures else {}),
        }


def task_figures(
    features: NDArray[np.float32],
    embedding: NDArray[np.float32],
    decoded: NDArray[np.float32],
    tokens_per_chip: int | None,
) -> dict[str, Any]:
    """Measure a task: what the codec does to its vectors, and its seams.

    Parameters
    ----------
    features, embedding : ndarray of shape ([sample,] band, y, x), float32
        Before and after rotation.
    decoded : ndarray of float32
        What a reader will get for `embedding`.
    tokens_per_chip : int or None
        Distance from chip to chip, tokens; None where an image is not cut.
    """
    a, b = (np.moveaxis(v, -3, -1) for v in (embedding, decoded))
    cosine = cosines(a, b)
    if embedding.shape[-3] < features.shape[-3]:
        # Of features: what a basis of fewer components leaves out counts.
        lengths = (np.linalg.norm(v, axis=-3) for v in (embedding, features))
        kept, whole = (np.asarray(length, np.float64) for length in lengths)
        # Of a zero vector nothing is left out.
        cosine = cosine * np.divide(kept, whole, out=np.ones_like(kept), where=whole > 0)
    cosine = cosine[~np.isnan(cosine)]
    figures: dict[str, Any] = {
        "vectors": len(cosine),
        "cosine_sum": round(float(cosine.sum()), 6),
        "cosine_p01": round(float(np.quantile(cosine, 0.01)), 6),
        "cosine_min": round(float(cosine.min()), 6),
    }
    if tokens_per_chip is not None:
        total, pairs = neighbour_cosines(features, tokens_per_chip)
        figures["neighbours"] = [[round(t, 6) for t in total.tolist()], pairs.tolist()]
    return figures


def report(writer: StoreWriter, store: Path, resumed: int) -> EncodeReport:
    """Add up the receipts of a run, those of earlier, interrupted runs included."""
    receipts = writer.receipts()
    figures = [r.figures for r in receipts.values() if "vectors" in r.figures]
    vectors = sum(int(f["vectors"]) for f in figures)
    seam = _seam([f["neighbours"] for f in figures if "neighbours" in f])
    summary = writer.summary()
    weights = [f["vectors"] for f in figures]
    return EncodeReport(
        store=store,
        **summary["tasks"],
        resumed=resumed,
        payload_bytes=summary["payload_bytes"],
        vectors=vectors,
        cosine_mean=sum(f["cosine_sum"] for f in figures) / vectors if vectors else np.nan,
        # The mean over tasks of their 1 % quantiles: no more than receipts hold is needed.
        cosine_p01=float(np.average([f["cosine_p01"] for f in figures], weights=weights))
        if vectors
        else np.nan,
        cosine_min=min((f["cosine_min"] for f in figures), default=np.nan),
        seam=seam,
        failures={t.name: r.reason for t, r in receipts.items() if r.status == "failed"},
        masked_fraction=masked_fraction(receipts.values()),
    )


def masked_fraction(receipts: Iterable[Receipt]) -> float | None:
    """Share of the pixels of tasks that are missing, of 1e-4; None where nothing tells."""
    told = [r.figures for r in receipts if "pixels" in r.figures]
    pixels = sum(figures["pixels"] for figures in told)
    return round(sum(figures["masked"] for figures in told) / pixels, 4) if pixels else None


def _seam(neighbours: list[Any]) -> dict[str, float]:
    """Return mean cosines of neighbouring tokens: over all, across borders, in the worst phase."""
    if not neighbours:
        return {}
    total = np.sum([n[0] for n in neighbours], axis=0)
    pairs = np.sum([n[1] for n in neighbours], axis=0)
    if not pairs.all():
        return {}
    mean = total / pairs
    return {
        "cosine_inside": round(float(total[1:].sum() / pairs[1:].sum()), 5),
        "cosine_across": round(float(mean[0]), 5),
        "cosine_worst_phase": round(float(mean.min()), 5),
    }
