"""`Compressor`: a rotation, quantiser steps and tables fitted to a sample of embeddings."""

import hashlib
import json
import logging
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from nec.codec.coding import Coding
from nec.codec.tables import pack, unpack
from nec.errors import ChunkError, CompressorError
from nec.fit_arguments import (
    arguments,
    check_steps,
    check_target,
    check_weights,
    fitting_by,
)
from nec.pieces import cells_of, kept_lengths, pieces_of, pooled, valid_vectors
from nec.rotation import checked_basis, hash_basis, klt, rotate

log = logging.getLogger(__name__)

# Edge of the blocks of pooled vectors, cells.
SCENE_BLOCK = 16
# Version of the file that `Compressor.save` writes.
FILE_VERSION = 2
_FIDELITY = ("bytes_per_vector", "cosine_mean", "cosine_p01", "cosine_min")
# Sample, y, x, and a checksum of all four sizes: the number of bands is that of the coding.
_SHAPE = struct.Struct("<4I")


@dataclass(frozen=True)
class Fidelity:
    """What a compressor did to the sample that it was measured on.

    Attributes
    ----------
    bytes_per_vector : float
        Coded size over the number of valid vectors.
    cosine_mean, cosine_p01, cosine_min : float
        Between decoded and original features: mean, 1 % quantile, smallest.
    vectors : int
        Number of valid vectors.
    """

    bytes_per_vector: float
    cosine_mean: float
    cosine_p01: float
    cosine_min: float
    vectors: int

    def to_dict(self) -> dict[str, float | int]:
        """Return plain JSON types, rounded to what is significant."""
        return {
            "bytes_per_vector": round(self.bytes_per_vector, 4),
            "cosine_mean": round(self.cosine_mean, 5),
            "cosine_p01": round(self.cosine_p01, 5),
            "cosine_min": round(self.cosine_min, 5),
            "vectors": self.vectors,
        }


@dataclass(frozen=True)
class Compressor:
    """Rotate features to an embedding, and code that.

    Attributes
    ----------
    basis : ndarray of shape (feature, component), float32
        Orthonormal columns in order of importance: an uncentred KLT. ``features @ basis`` is the
        embedding; products and cosines of embeddings are those of features.
    coding : Coding
        For grids of embeddings.
    scene_coding : Coding
        For the pooled vectors of chips.
    fidelity : Fidelity
        On the sample of `fit`.
    """

    basis: NDArray[np.float32]
    coding: Coding
    scene_coding: Coding
    fidelity: Fidelity

    @classmethod
    def fit(
        cls,
        sample: ArrayLike | xr.DataArray | Sequence[ArrayLike],
        *,
        bytes_per_vector: float | None = None,
        cosine: float | None = None,
        basis: NDArray[np.float32] | None = None,
        scenes: ArrayLike | Sequence[ArrayLike] | None = None,
        scene_bytes: float = 20.0,
        block: int | None = None,
        gamma: float = 0.0,
        whitening: float = 0.25,
        lagrangian: float = 0.12,
        falloff: float = 1.0,
        min_cosine: float = 0.0,
        relative_steps: NDArray[np.float32] | None = None,
        codebook: int | str = 0,
    ) -> "Compressor":
        """Fit a compressor to a sample of features, at a size or at a fidelity.

        Parameters
        ----------
        sample : array of shape ([sample,] y, x, feature) or (n, feature), or a sequence of them
            Features, or vectors without neighbours; NaN is missing. A DataArray may have its
            dimensions in any order.
        bytes_per_vector : float, optional
            Size to hit, bytes a valid vector on the sample; fewer where the finest steps
            need no more.
        cosine : float, optional
            Mean cosine between decoded and original features to hit on the sample; one of the
            two is needed, unless `codebook` is a number: then codes are all that is coded.
        basis : ndarray of shape (feature, component), optional
            Rotation to keep; fitted to the sample by default. With fewer components than
            features, what lies outside of them is lost.
        scenes : array of shape (n, feature) or as `sample`, or a sequence of them, optional
            Pooled features that `scene_coding` is fitted to, alone or on grids of cells; means
            of 16 x 16 tokens of the sample by default.
        scene_bytes : float
            Bytes of a pooled vector, or fewer where the sample needs no more.
        block : {1, 2, 4, 8, 16, 32, 64}
            Edge of a transform block, tokens; 64 by default, 1 for vectors without neighbours.
        gamma : float
            Steps are proportional to variance ** gamma: 0 serves the mean squared error, more
            keeps weak components finer at the expense of strong ones.
        whitening : float
            How much each spatial frequency's share of the covariance is levelled before the
            rotation is fitted, see `klt`; of no effect with `basis`.
        lagrangian : float
            Squared error, in steps, that the encoder takes for a bit saved; 0 rounds to the
            nearest.
        falloff : float
            How many times less a squared error counts at each finer octave of spatial frequency.
            1 serves maps; more gives bytes to what an image is as a whole, for pooled
            embeddings. At most 16.
        min_cosine : float
            Smallest cosine between any vector and its decoded self; blocks that hold a worse one
            are coded finer. Two zero vectors agree (1), a zero vector and another do not (0). 0
            for no guarantee, at most 0.99999.
        relative_steps : ndarray of shape (component,), float32, optional
            Steps of the bands up to a common factor, in place of `gamma`; they mean nothing
            without `basis`.
        codebook : int or "auto"
            Number of vectors, 2 to 256, of which each vector is coded as one and a difference;
            0 for none. It serves vectors without neighbours that come in kinds, and is no part of
            format version 1: stores are of version 2. "auto" chooses by parts of the sample that
            clusters were not fitted to, none included.

        Raises
        ------
        CompressorError
            If the sample is empty, infinite, or the target is out of reach; if the basis is not
            orthonormal, or an argument is none.
        """
        from nec.codec.fitting import fit_coding

        check_target(bytes_per_vector, cosine, codebook)
        check_weights(whitening=whitening, gamma=gamma, lagrangian=lagrangian)
        check_weights(scene_bytes=scene_bytes)
        check_steps(relative_steps, basis)
        pieces = pieces_of(sample)
        lone = all(p.shape[1:3] == (1, 1) for p in pieces)
        if block is None:
            block = 1 if lone or codebook else 64
        if codebook and block != 1:
            raise CompressorError(
                f"a codebook is for vectors alone, and the block is {block}",
                "give block=1, or no codebook",
            )
        features = valid_vectors(pieces)
        if len(features) < 2 or not np.isfinite(features).all():
            raise CompressorError(
                f"the sample holds {len(features)} valid vectors, or infinities",
                "give more embeddings; NaN marks missing ones",
            )
        if basis is not None:
            basis = checked_basis(basis, features.shape[1])
        rotation = klt(pieces, whitening) if basis is None else basis
        variance = (features @ rotation).var(0)
        if not variance.max() > 0:
            raise CompressorError(
                "all vectors of the sample are the same", "give a sample that varies"
            )
        steps = np.maximum(variance / variance.max(), 1e-6) ** gamma * np.sqrt(variance.max())
        if relative_steps is not None:
            steps = np.asarray(relative_steps, np.float32)
        rotated = [rotate(np.moveaxis(p, -1, 1), rotation) for p in pieces]
        cells = pooled(pieces) if scenes is None else cells_of(scenes)
        means = valid_vectors(cells, features.shape[1])
        with arguments():
            coding, measured = fitting_by(codebook)(
                rotated,
                relative_steps=steps.astype(np.float32),
                block=block,
                lagrangian=lagrangian,
                falloff=falloff,
                bytes_per_vector=bytes_per_vector,
                cosine=cosine,
                min_cosine=min_cosine,
                kept=kept_lengths(pieces, rotation),
            )
            variance = (means @ rotation).var(0)
            # A sample of one cell varies nowhere: then the tokens' steps have to do.
            variance = variance if variance.max() > 0 else (features @ rotation).var(0)
            scene_steps = np.maximum(variance / variance.max(), 1e-6) ** gamma
            scene_coding, _ = fit_coding(
                [rotate(np.moveaxis(c, -1, 1), rotation) for c in cells],
                relative_steps=(scene_steps * np.sqrt(variance.max())).astype(np.float32),
                block=SCENE_BLOCK,
                lagrangian=lagrangian,
                # The fixed bytes of a chunk weigh on a small sample.
                bytes_per_vector=scene_bytes + 64 / len(means),
                chunk_tokens=1,
            )
        fidelity = Fidelity(vectors=len(features), **measured)
        wanted, reached = (
            (bytes_per_vector, fidelity.bytes_per_vector)
            if bytes_per_vector is not None
            else (None if cosine is None else 1 - cosine, 1 - fidelity.cosine_mean)
        )
        # Fewer bytes, or less error, than asked for is no loss.
        if wanted is not None and reached > 1.02 * wanted:
            log.warning("asked for %s, reached %s", bytes_per_vector or cosine, fidelity)
        log.info("fitted: %s", fidelity)
        return cls(rotation, coding, scene_coding, fidelity)

    @property
    def format_version(self) -> int:
        """Version of the format that stores of this compressor are of."""
        return max(self.coding.version, self.scene_coding.version)

    @property
    def basis_hash(self) -> str:
        """Name of the basis: 16 hexadecimal digits of its SHA-256."""
        return hash_basis(self.basis)

    @property
    def digest(self) -> str:
        """Name of this compressor: basis and codings."""
        # Whole codings: what the encoder alone heeds makes other bytes too.
        codings = json.dumps([self.coding.to_dict(), self.scene_coding.to_dict()], sort_keys=True)
        if self.coding.falloff != 1:
            codings += f"{self.coding.falloff}"
        return hashlib.sha256((self.basis_hash + codings).encode()).hexdigest()[:16]

    def guarded(self, min_cosine: float | None) -> "Compressor":
        """Return this compressor with a smallest cosine for every vector; see `fit`.

        None leaves it as it is.

        Raises
        ------
        CompressorError
            If the basis holds a part of the features only.
        """
        if min_cosine is None:
            return self
        if min_cosine > 0 and self.basis.shape[1] < len(self.basis):
            raise CompressorError(
                f"a smallest cosine of {min_cosine:g} cannot be kept by a part of the features",
                "take a compressor with as many bands as features",
            )
        with arguments():
            coding, scene_coding = (
                replace(c, min_cosine=min_cosine) for c in (self.coding, self.scene_coding)
            )
        return replace(self, coding=coding, scene_coding=scene_coding)

    def measure(self, sample: ArrayLike | xr.DataArray | Sequence[ArrayLike]) -> Fidelity:
        """Code another sample and measure it; see `fit` for its shape.

        Raises
        ------
        CompressorError
            If it holds no valid vector, or is of another number of features.
        """
        from nec.codec.fitting import measure

        pieces = pieces_of(sample)
        count = len(valid_vectors(pieces, len(self.basis)))
        rotated = [rotate(np.moveaxis(p, -1, 1), self.basis) for p in pieces]
        kept = kept_lengths(pieces, self.basis)
        return Fidelity(vectors=count, **measure(rotated, self.coding, kept))

    def encode(self, features: ArrayLike) -> bytes:
        """Code features of shape ([sample,] y, x, feature), or (sample, feature), to bytes.

        Raises
        ------
        CompressorError
            If the shape does not fit the basis.
        """
        from nec.codec.chunk import encode_chunk

        values = np.asarray(features, np.float32)
        if values.ndim not in (2, 3, 4) or values.shape[-1] != len(self.basis):
            raise CompressorError(
                f"features of shape {values.shape} do not end in {len(self.basis)}",
                "pass ([sample,] y, x, feature), or (sample, feature)",
            )
        if values.ndim == 2:
            values = values[:, None, None]
        values = values if values.ndim == 4 else values[None]
        rotated = rotate(np.moveaxis(values, -1, 1), self.basis)
        return _head(*rotated.shape) + encode_chunk(rotated, self.coding)

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """Decode `encode`'s bytes to features of shape (sample, y, x, feature).

        Raises
        ------
        ChunkError
            If the bytes are damaged or of another compressor.
        """
        from nec.codec.chunk import decode_chunk

        if len(data) < _SHAPE.size:
            raise ChunkError(f"{len(data)} bytes are no coded array", "pass what encode returned")
        samples, height, width, _ = _SHAPE.unpack_from(data)
        shape = (samples, self.coding.bands, height, width)
        if data[: _SHAPE.size] != _head(*shape):
            raise ChunkError(
                "the bytes begin with no shape of this compressor",
                "they are damaged, or of another one",
            )
        values = decode_chunk(data[_SHAPE.size :], self.coding, shape)
        return np.moveaxis(values, 1, -1) @ self.basis.T

    def to_dict(self) -> dict[str, Any]:
        """Return the compressor as JSON types."""
        return {
            "nec_compressor": FILE_VERSION,
            "basis": {"shape": list(self.basis.shape), "float32": pack(self.basis)},
            "coding": self.coding.to_dict(),
            "falloff": self.coding.falloff,
            "scene_coding": self.scene_coding.to_dict(),
            "fidelity": self.fidelity.to_dict(),
        }

    def save(self, path: str | Path) -> None:
        """Write the compressor to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Compressor":
        """Read a compressor from a JSON file.

        Raises
        ------
        CompressorError
            If the file is no compressor.
        """
        try:
            data = json.loads(Path(path).read_text())
            version = data["nec_compressor"]
            compressor = cls._of_dict(data) if version == FILE_VERSION else None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CompressorError(
                f"{path} is not a compressor ({error})", "give a file that Compressor.save wrote"
            ) from error
        if compressor is None:
            raise CompressorError(
                f"{path} is a compressor of version {version!r}, this package reads {FILE_VERSION}",
                "pip install --upgrade nec",
            )
        return compressor

    @classmethod
    def _of_dict(cls, data: dict[str, Any]) -> "Compressor":
        basis = unpack(data["basis"]["float32"], "float32", tuple(data["basis"]["shape"]))
        coding, scene_coding = (Coding.from_dict(data[k]) for k in ("coding", "scene_coding"))
        if {coding.bands, scene_coding.bands} != {basis.shape[-1]}:
            raise CompressorError("its basis and its codings are of other bands", "")
        numbers = {k: float(data["fidelity"][k]) for k in _FIDELITY}
        # Files of earlier releases have no falloff.
        coding = replace(coding, falloff=data.get("falloff", 1.0))
        fidelity = Fidelity(**numbers, vectors=int(data["fidelity"]["vectors"]))
        return cls(checked_basis(basis), coding, scene_coding, fidelity)


def _head(samples: int, bands: int, height: int, width: int) -> bytes:
    """Return the sizes of an array as bytes that tell if one of them is damaged."""
    sizes = samples, height, width
    return _SHAPE.pack(*sizes, zlib.crc32(_SHAPE.pack(*sizes, bands)))
