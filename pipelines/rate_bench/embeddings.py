"""What codes embeddings: our streams, and simpler codings of tokens and of the pooled vector."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from codec_bench.baselines import PrincipalComponents, product_quantiser, zstd_bytes
from numpy.typing import NDArray

from nec.compressor import Compressor
from nec.rotation import klt
from rate_bench.tasks import MEAN, ROUGH, Coded, Fold, Progress, Stopwatch, Task, pooled_both

GAMMA = 0.125
# As the shipped rate of scenes has it, and the most that there is.
FALLOFFS = (2.2, 16.0)
# Tokens that compressors, and what is simpler, are fitted to.
FITTED, SIMPLE = 256_000, 60_000
SEED = 29

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Embeddings:
    """The tokens (n, dim, y, x) of a task's images, one fold of them in view."""

    task: Task
    fold: Fold
    tokens: Floats

    @property
    def cells(self) -> int:
        """Tokens of an image."""
        return int(np.prod(self.tokens.shape[2:]))

    def sample(self) -> list[Floats]:
        """Return training images in the chunks that they are coded in, (sample, y, x, dim)."""
        most = max(1, FITTED // self.cells // self.task.chunk)
        train = self.fold[0]
        starts = range(0, len(train), self.task.chunk)
        kept = list(starts)[:: max(1, len(starts) // most)]
        return [_last(self.tokens[np.sort(train[at : at + self.task.chunk])]) for at in kept]

    def vectors(self) -> Floats:
        """Return training tokens (n, dim), drawn by chance."""
        every = np.concatenate([p.reshape(-1, p.shape[-1]) for p in self.sample()])
        chosen = np.random.default_rng(SEED).permutation(len(every))[:SIMPLE]
        return every[np.sort(chosen)]

    def coded(
        self,
        encode: Callable[[Floats], Any],
        decode: Callable[[Any], Floats],
        size: Callable[[Any], float],
        progress: Progress,
    ) -> Coded:
        """Code every chunk (sample, y, x, dim) and pool what is decoded."""
        count = len(self.tokens)
        out = {m: np.empty((count, d), np.float32) for m, d in self._widths().items()}
        total, test, done = 0.0, set(self.fold[1].tolist()), 0
        encoding, decoding = Stopwatch(), Stopwatch()
        for group in self.task.chunks(self.fold):
            values = _last(self.tokens[group])
            with encoding:
                data = encode(values)
            with decoding:
                back = decode(data)
            total += size(data) if group[0] in test else 0.0
            for name, pooled in pooled_both(np.moveaxis(back, -1, 1)).items():
                out[name][group] = pooled
            done += len(group)
            progress(done, count)
        each = 1e3 / count
        return Coded(out, total / len(test), encoding.seconds * each, decoding.seconds * each)

    def _widths(self) -> dict[str, int]:
        return {MEAN: self.tokens.shape[1], ROUGH: 2 * self.tokens.shape[1]}


def _last(tokens: Floats) -> Floats:
    return np.ascontiguousarray(np.moveaxis(tokens, 1, -1), np.float32)


def code_stream(data: Embeddings, compressor: Compressor, progress: Progress) -> Coded:
    """Code chunks as a store does."""
    compressor.decode(compressor.encode(data.sample()[0][:1]))  # kernels are compiled here
    return data.coded(compressor.encode, compressor.decode, len, progress)


class Ladder:
    """The transform codec at any size, all of one basis, fitted to a fold's training images."""

    def __init__(self, data: Embeddings, falloff: float) -> None:
        self._cells, self._falloff = data.cells, falloff
        self._sample = data.sample()
        self._basis = klt(self._sample)

    def fit(self, size: float) -> Compressor:
        """Fit to so many bytes an image."""
        return Compressor.fit(
            self._sample,
            bytes_per_vector=size / self._cells,
            basis=self._basis,
            gamma=GAMMA,
            falloff=self._falloff,
        )


def code_floats(data: Embeddings, kind: str, progress: Progress) -> Coded:
    """Keep tokens as float32 or float16."""
    return data.coded(lambda v: v.astype(kind), lambda v: v.astype(np.float32), _bytes, progress)


def _bytes(values: NDArray[Any]) -> float:
    return float(values.nbytes)


def code_principal(data: Embeddings, k: int, packed: bool, progress: Progress) -> Coded:
    """Keep k principal components of each token in int8; zstd packs the chunk."""
    components = PrincipalComponents.fit(data.vectors())
    scaling = "common" if packed else "per component"
    edge = data.tokens.shape[2:]

    def encode(values: Floats) -> NDArray[np.int8]:
        return components.numbers(values.reshape(-1, values.shape[-1]), k, scaling)

    def decode(numbers: NDArray[np.int8]) -> Floats:
        return components.decode(numbers, scaling).reshape(-1, *edge, data.tokens.shape[1])

    def size(numbers: NDArray[np.int8]) -> float:
        return zstd_bytes(numbers, len(numbers)) if packed else numbers.size

    return data.coded(encode, decode, size, progress)


def code_product(data: Embeddings, parts: int, bits: int, progress: Progress) -> Coded | None:
    """Quantise each token by parts; None without faiss."""
    quantiser = _trained(data.vectors(), parts, bits)
    if quantiser is None:
        return None
    edge, dim = data.tokens.shape[2:], data.tokens.shape[1]

    def encode(values: Floats) -> NDArray[np.uint8]:
        return quantiser.compute_codes(values.reshape(-1, dim))

    def decode(codes: NDArray[np.uint8]) -> Floats:
        return quantiser.decode(codes).reshape(-1, *edge, dim)

    return data.coded(encode, decode, lambda c: len(c) * parts * bits / 8, progress)


def _trained(vectors: Floats, parts: int, bits: int) -> Any:
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(1)
    quantiser = product_quantiser(faiss, vectors.shape[1], parts, bits)
    quantiser.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // 20_000)]))
    return quantiser


def code_uniform(data: Embeddings, step: float, progress: Progress) -> Coded | None:
    """Rotate, round to one step for all bands, and code by order-0 tables of the bands.

    `step` is in deviations of the first band. Symbols beyond those of the training images are
    brought to the nearest. None without constriction.
    """
    try:
        import constriction
    except ImportError:
        return None
    basis = klt(data.sample(), whitening=0.0)
    train = data.vectors() @ basis
    width = step * float(train.std(0).max())
    symbols = np.rint(train / width).astype(np.int32)
    low, high = symbols.min(0) - 1, symbols.max(0) + 1
    models = []
    for band in range(len(low)):
        counts = np.bincount(symbols[:, band] - low[band], minlength=high[band] - low[band] + 1)
        shares = (counts + 0.5) / (counts + 0.5).sum()
        models.append(constriction.stream.model.Categorical(shares, perfect=False))
    edge = data.tokens.shape[2:]

    def encode(values: Floats) -> Any:
        rotated = values.reshape(-1, len(basis)) @ basis
        whole = np.clip(np.rint(rotated / width).astype(np.int32), low, high) - low
        coder = constriction.stream.stack.AnsCoder()
        for band in reversed(range(len(low))):
            coder.encode_reverse(np.ascontiguousarray(whole[:, band]), models[band])
        return coder.get_compressed(), len(whole)

    def decode(data: Any) -> Floats:
        words, count = data
        coder = constriction.stream.stack.AnsCoder(words)
        bands = [coder.decode(model, count) for model in models]
        values = (np.stack(bands, axis=1) + low) * width
        return (values.astype(np.float32) @ basis.T).reshape(-1, *edge, len(basis))

    return data.coded(encode, decode, lambda d: d[0].nbytes, progress)


def code_pooled(
    vectors: Floats, task: Task, fold: Fold, kind: str, k: int, pooling: str
) -> Coded | None:
    """Code one vector an image: float32, float16, PCA-k in int8 (zstd of a chunk), or parts."""
    train, test = fold
    if kind in ("float32", "float16"):
        kept = vectors.astype(kind)
        return Coded({pooling: kept.astype(np.float32)}, float(kept[0].nbytes))
    if kind == "PQ":
        quantiser = _trained(vectors[train], k, 8) if len(train) >= 256 else None
        if quantiser is None:
            return None
        codes = quantiser.compute_codes(np.ascontiguousarray(vectors))
        return Coded({pooling: quantiser.decode(codes)}, float(k))
    components = PrincipalComponents.fit(vectors[train])
    if k > len(components.directions):
        return None
    scaling = "common" if kind.endswith("zstd") else "per component"
    encoding, decoding = Stopwatch(), Stopwatch()
    with encoding:
        numbers = components.numbers(vectors, k, scaling)
    with decoding:
        decoded = components.decode(numbers, scaling)
    size = float(k)
    if kind.endswith("zstd"):
        size = zstd_bytes(numbers[test], task.chunk) / len(test)
    each = 1e3 / len(vectors)
    return Coded({pooling: decoded}, size, encoding.seconds * each, decoding.seconds * each)


def ladder_of(folder: Path) -> list[Path]:
    """Return the further rates that train_bottleneck.py leaves beside a model folder."""
    return sorted((folder.parent / "ladder").glob("*.json"), key=lambda p: float(p.stem))
