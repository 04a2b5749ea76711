"""What vectors are coded with elsewhere, each vector alone: int8, PCA with int8, PQ, OPQ."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

from codec_bench.stores import fidelity

ZSTD_LEVEL = 19


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of training vectors, and how far they reach.

    A thousandth of the training values lies beyond the reach, and saturates in int8.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    reach: NDArray[np.float32]

    @classmethod
    def fit(cls, train: NDArray[np.float32]) -> "PrincipalComponents":
        """Fit mean, components and reach to vectors (n, feature)."""
        mean = train.mean(0)
        _, _, directions = np.linalg.svd(train - mean, full_matrices=False)
        fitted = (train - mean) @ directions.T
        return cls(mean, directions, np.quantile(np.abs(fitted), 0.999, axis=0))

    def scale(self, k: int, scaling: str) -> NDArray[np.float32]:
        """Return the steps of k components: each fills its int8, or all have the first's."""
        reach = self.reach[:k]
        if scaling == "common":
            reach = np.full(k, reach.max())
        return np.maximum(reach, 1e-12) / 127

    def numbers(self, values: NDArray[np.float32], k: int, scaling: str) -> NDArray[np.int8]:
        """Return vectors (n, feature) as int8 (n, k)."""
        rotated = (values - self.mean) @ self.directions[:k].T
        return np.clip(np.rint(rotated / self.scale(k, scaling)), -127, 127).astype(np.int8)

    def decode(self, numbers: NDArray[np.int8], scaling: str) -> NDArray[np.float32]:
        """Return the vectors that numbers (n, k) stand for."""
        k = numbers.shape[1]
        values = (numbers * self.scale(k, scaling)).astype(np.float32)
        return values @ self.directions[:k] + self.mean


def pca_int8(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    components: Iterable[int],
    chunk: int,
) -> list[dict[str, Any]]:
    """Keep k principal components in int8, with and without zstd, for every k.

    Mean, components and scales are fitted to `train`. Two scalings: each component fills its
    own int8 (`per component`), or all share the scale of the first (`common`), which zstd
    gains from.

    Parameters
    ----------
    train, test : ndarray of shape (n, feature), float32
    components : iterable of int
    chunk : int
        Vectors that zstd packs at a time, component by component.
    """
    fitted = PrincipalComponents.fit(train)
    rows = []
    for k in components:
        if k > len(fitted.directions):
            break
        for scaling in ("per component", "common"):
            numbers = fitted.numbers(test, k, scaling)
            decoded = fitted.decode(numbers, scaling)
            found = fidelity(test, decoded) | {"components": k, "scaling": scaling}
            rows.append({"row": "PCA-k + int8", "bytes_per_vector": float(k), **found})
            packed = zstd_bytes(numbers, chunk) / len(test)
            rows.append(
                {"row": "PCA-k + int8 + zstd", "bytes_per_vector": round(packed, 4), **found}
            )
    return rows


def zstd_bytes(numbers: NDArray[np.int8], chunk: int) -> int:
    """Bytes of (n, component) under zstd, chunk by chunk, component after component."""
    packer = Zstd(level=ZSTD_LEVEL, checksum=True)
    return sum(
        len(packer.encode(np.ascontiguousarray(numbers[i : i + chunk].T)))
        for i in range(0, len(numbers), chunk)
    )


def product_quantisers(
    train: NDArray[np.float32], test: NDArray[np.float32], most_bytes: float
) -> list[dict[str, Any]]:
    """Quantise by PQ and OPQ for every size that the training vectors suffice for.

    Nothing without faiss. A sub-quantiser of more centres than training vectors is left out, and
    a rotation of more dimensions.
    """
    try:
        import faiss
    except ImportError:
        return []
    faiss.omp_set_num_threads(1)
    dim = train.shape[1]
    rows = []
    for bits in (4, 6, 8):
        if 1 << bits > len(train):
            continue
        for m in (m for m in range(1, dim + 1) if dim % m == 0):
            size = m * bits / 8
            if size > most_bytes:
                continue
            quantiser = product_quantiser(faiss, dim, m, bits)
            quantiser.train(train)
            decoded = quantiser.decode(quantiser.compute_codes(test))
            found = {"bytes_per_vector": size, "parts": m, "bits": bits}
            rows.append({"row": "PQ", **found, **fidelity(test, decoded)})
            if m == 1:
                continue  # a rotation changes nothing
            if len(train) >= dim:
                rotation = faiss.OPQMatrix(dim, m)
                rotation.pq = inner = product_quantiser(faiss, dim, m, bits)
                rotation.train(train)
                del inner  # faiss holds no reference to it: it has to live until here
                turned = rotation.apply(train)
                quantiser = product_quantiser(faiss, dim, m, bits)
                quantiser.train(turned)
                codes = quantiser.compute_codes(rotation.apply(test))
                decoded = rotation.reverse_transform(quantiser.decode(codes))
                rows.append({"row": "OPQ", **found, **fidelity(test, decoded)})
    return rows


def product_quantiser(faiss: Any, dim: int, parts: int, bits: int) -> Any:
    """Return a quantiser of vectors in parts, to be trained."""
    quantiser = faiss.ProductQuantizer(dim, parts, bits)
    quantiser.cp.min_points_per_centroid = 1  # it would warn, and go on all the same
    return quantiser


def frontier(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that no smaller one beats, by size."""
    best, out = -np.inf, []
    for row in sorted(rows, key=lambda r: (r["bytes_per_vector"], -r["cosine_mean"])):
        if row["cosine_mean"] > best:
            best = row["cosine_mean"]
            out.append(row)
    return out
