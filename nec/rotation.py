"""The rotation of features to an embedding: an uncentred KLT, fitted once per model."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nec.errors import CompressorError

# Edge of the blocks that spectra are taken over, tokens.
SPECTRUM = 16
# What float32 leaves of orthonormality, and more.
_ORTHONORMAL = 1e-3


def hash_basis(basis: NDArray[np.float32]) -> str:
    """Name a basis by 16 hexadecimal digits of the SHA-256 of its float32 values."""
    return hashlib.sha256(np.ascontiguousarray(basis, "<f4").tobytes()).hexdigest()[:16]


def checked_basis(basis: ArrayLike, features: int | None = None) -> NDArray[np.float32]:
    """Return a basis as float32: orthonormal columns, or sizes and cosines would be of no features.

    Raises
    ------
    CompressorError
        If it is not, or is of another number of features.
    """
    found = np.asarray(basis, np.float32)
    if found.ndim != 2 or not 1 <= found.shape[1] <= found.shape[0]:
        raise CompressorError(
            f"a basis of shape {found.shape}", "give (feature, component), no more than features"
        )
    if features is not None and len(found) != features:
        raise CompressorError(
            f"a basis of {len(found)} features, and a sample of {features}", "give one of them"
        )
    apart = np.abs(found.astype(np.float64).T @ found - np.eye(found.shape[1])).max()
    if not apart < _ORTHONORMAL:
        raise CompressorError(
            f"the columns of the basis are not orthonormal (off by {apart:.3g})",
            "orthonormalise them: numpy.linalg.qr(basis)[0]",
        )
    return found


def rotate(features: NDArray[np.float32], basis: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features as an embedding.

    Parameters
    ----------
    features : ndarray of shape ([sample,] feature[, y, x]), float32
    basis : ndarray of shape (feature, component), float32

    Returns
    -------
    ndarray of shape ([sample,] component[, y, x]), float32
        NaN where any feature of a vector is missing.

    Raises
    ------
    CompressorError
        If a feature is infinite: sums of it may be no number, which means missing.
    """
    if np.isinf(features).any():
        raise CompressorError("features are infinite", "NaN marks missing ones")
    axis = 1 if features.ndim in (2, 4) else 0
    rotated = np.moveaxis(np.moveaxis(features, axis, -1) @ basis, -1, axis)
    return np.ascontiguousarray(rotated, np.float32)


def klt(pieces: Sequence[NDArray[np.float32]], whitening: float = 0.25) -> NDArray[np.float32]:
    """Return an uncentred KLT of features: orthonormal columns, the strongest first.

    Neighbouring vectors say nearly the same, so a plain covariance rests on few independent
    ones, and its weak directions are noise. Fine structure is independent sooner: each spatial
    frequency's covariance counts by the power -`whitening` of its variance [1]_.

    Parameters
    ----------
    pieces : sequence of ndarray of shape (sample, y, x, feature), float32
        NaN is missing.
    whitening : float
        0 for the plain KLT, 1 to let all frequencies count alike.

    Returns
    -------
    ndarray of shape (feature, component), float32
        Each column's largest entry is positive, so that the basis does not hang on the solver.

    References
    ----------
    .. [1] Flury, Common Principal Components in k Groups, JASA 79 (1984): one rotation for
       several covariances, whose likelihood weighs each by its inverse variance.
    """
    from nec.codec.decisions import Transformed

    dim, rings = pieces[0].shape[-1], 2 * SPECTRUM - 1
    second, total = np.zeros((rings, dim, dim)), np.zeros((rings, dim))
    count = np.zeros(rings)
    for piece in pieces:
        values = np.ascontiguousarray(np.moveaxis(piece, -1, 1), np.float32)
        spectrum = Transformed(values, SPECTRUM)
        box = spectrum.partition.box.reshape(-1, 4)
        edge = spectrum.partition.edge
        coefficients = spectrum.coefficients.reshape(-1, dim, edge, edge)
        u, v = np.mgrid[:edge, :edge]
        inside = (u < (box[:, 1] - box[:, 0])[:, None, None]) & (
            v < (box[:, 3] - box[:, 2])[:, None, None]
        )
        for ring in range(rings):
            part = inside & (u + v == ring)
            vectors = np.moveaxis(coefficients, 1, -1)[part].astype(np.float64)
            second[ring] += vectors.T @ vectors
            total[ring] += vectors.sum(0)
            count[ring] += len(vectors)
    seen = count > 0
    mean = total[seen] / count[seen, None]
    power = np.trace(second[seen], axis1=1, axis2=2) / count[seen] - (mean**2).sum(1)
    # Relative, so that the powers of constant samples stay finite.
    power = np.maximum(power / max(power.max(), 1e-30), 1e-9)
    weighed = (second[seen] * power[:, None, None] ** -whitening).sum(0)
    _, vectors = np.linalg.eigh(weighed)
    energy = np.einsum("ij,ik,kj->j", vectors, second.sum(0), vectors)
    vectors = vectors[:, np.argsort(-energy, kind="stable")]
    largest = np.abs(vectors).argmax(0)
    vectors = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return np.ascontiguousarray(vectors, np.float32)
