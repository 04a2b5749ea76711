"""What makes bytes of vectors, and vectors of bytes: the same for images and for scenes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from codec_bench.baselines import PrincipalComponents, product_quantiser, zstd_bytes
from numpy.typing import NDArray

from nec.compressor import Compressor
from rate_bench.tasks import Stopwatch

# The row of our codec.
STREAM = "transform codec"
# Vectors that a product quantiser learns from, about.
QUANTISED = 20_000

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Coder:
    """Encoder, decoder and size in bytes of what lies between.

    Attributes
    ----------
    encode : callable
        Takes vectors (..., dim).
    decode : callable
        Gives as many vectors, of that shape or flat.
    size : callable
        Takes what `encode` gives.
    """

    encode: Callable[[Floats], Any]
    decode: Callable[[Any], Floats]
    size: Callable[[Any], float]


@dataclass
class Passage:
    """Sends vectors through a coder; adds up the CPU time that it takes."""

    coder: Coder
    encoding: Stopwatch = field(default_factory=Stopwatch)
    decoding: Stopwatch = field(default_factory=Stopwatch)

    def through(self, values: Floats) -> tuple[Floats, float]:
        """Return what is decoded, in the shape of `values`, and its bytes."""
        with self.encoding:
            data = self.coder.encode(values)
        with self.decoding:
            back = self.coder.decode(data)
        return np.asarray(back, np.float32).reshape(values.shape), self.coder.size(data)

    def milliseconds(self, count: int) -> tuple[float, float]:
        """Return the time of encoding and of decoding, each of so many things."""
        return 1e3 * self.encoding.seconds / count, 1e3 * self.decoding.seconds / count


def stream(compressor: Compressor, small: Floats) -> Coder:
    """Return a compressor as a coder of chunks; kernels are compiled on a `small` one."""
    compressor.decode(compressor.encode(small))
    return Coder(compressor.encode, compressor.decode, len)


def plain(kind: str) -> Coder:
    """Keep numbers as float32 or float16."""
    return Coder(
        lambda v: v.astype(kind), lambda d: d.astype(np.float32), lambda d: float(d.nbytes)
    )


def principal(components: PrincipalComponents, k: int, packed: bool) -> Coder:
    """Keep k principal components of each vector in int8; zstd packs the chunk."""
    scaling = "common" if packed else "per component"
    return Coder(
        lambda v: components.numbers(_flat(v), k, scaling),
        lambda n: components.decode(n, scaling),
        lambda n: zstd_bytes(n, len(n)) if packed else float(n.size),
    )


def product(train: Floats, parts: int, bits: int) -> Coder:
    """Quantise each vector by parts; codebooks learn from vectors (n, dim).

    Raises
    ------
    ModuleNotFoundError
        Without faiss.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    quantiser = product_quantiser(faiss, train.shape[1], parts, bits)
    quantiser.train(np.ascontiguousarray(train[:: max(1, len(train) // QUANTISED)]))
    return Coder(
        lambda v: quantiser.compute_codes(np.ascontiguousarray(_flat(v))),
        quantiser.decode,
        lambda c: len(c) * parts * bits / 8,
    )


def uniform(basis: Floats, train: Floats, step: float) -> Coder:
    """Rotate, round to one step for all bands, and code by order-0 tables of the bands.

    `step` is in deviations of the first band of the training vectors (n, dim), whose
    frequencies the tables are; symbols beyond theirs are brought to the nearest.

    Raises
    ------
    ModuleNotFoundError
        Without constriction.
    """
    import constriction

    rotated = train @ basis
    width = step * float(rotated.std(0).max())
    symbols = np.rint(rotated / width).astype(np.int32)
    low, high = symbols.min(0) - 1, symbols.max(0) + 1
    models = []
    for band in range(len(low)):
        counts = np.bincount(symbols[:, band] - low[band], minlength=high[band] - low[band] + 1)
        shares = (counts + 0.5) / (counts + 0.5).sum()
        models.append(constriction.stream.model.Categorical(shares, perfect=False))

    def encode(values: Floats) -> Any:
        found = np.rint(_flat(values) @ basis / width).astype(np.int32)
        whole = np.clip(found, low, high) - low
        coder = constriction.stream.stack.AnsCoder()
        for band in reversed(range(len(low))):
            coder.encode_reverse(np.ascontiguousarray(whole[:, band]), models[band])
        return coder.get_compressed(), len(whole)

    def decode(data: Any) -> Floats:
        words, count = data
        coder = constriction.stream.stack.AnsCoder(words)
        bands = [coder.decode(model, count) for model in models]
        return ((np.stack(bands, axis=1) + low) * width).astype(np.float32) @ basis.T

    return Coder(encode, decode, lambda d: float(d[0].nbytes))


def _flat(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])
