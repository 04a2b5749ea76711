"""What codes embeddings: our streams, and simpler codings of tokens and of the pooled vector."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from codec_bench.baselines import PrincipalComponents, zstd_bytes
from fit_compressors import GAMMA
from numpy.typing import NDArray

from nec.compressor import Compressor
from nec.rotation import klt
from rate_bench.coders import Coder, Passage, principal, product, stream, uniform
from rate_bench.tasks import MEAN, ROUGH, Coded, Fold, Progress, Task, pooled_both

# As the shipped rate of scenes has it, and the most that there is.
FALLOFFS = (2.2, 16.0)
# Tokens that compressors are fitted to, in all folds, and what is simpler, in each.
FITTED, SIMPLE = 256_000, 60_000
# Training vectors that a code of 8 bits needs.
CODES = 256
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
        most = max(1, FITTED // len(self.task.folds) // self.cells // self.task.chunk)
        train = self.fold[0]
        starts = range(0, len(train), self.task.chunk)
        kept = list(starts)[:: max(1, len(starts) // most)]
        return [_last(self.tokens[np.sort(train[at : at + self.task.chunk])]) for at in kept]

    def vectors(self) -> Floats:
        """Return training tokens (n, dim), drawn by chance."""
        every = np.concatenate([p.reshape(-1, p.shape[-1]) for p in self.sample()])
        chosen = np.random.default_rng(SEED).permutation(len(every))[:SIMPLE]
        return every[np.sort(chosen)]

    def coded(self, coder: Coder, progress: Progress) -> Coded:
        """Code every chunk (sample, y, x, dim) and pool what is decoded."""
        count = len(self.tokens)
        out = {m: np.empty((count, d), np.float32) for m, d in self._widths().items()}
        total, test, done = 0.0, set(self.fold[1].tolist()), 0
        passage = Passage(coder)
        for group in self.task.chunks(self.fold):
            back, size = passage.through(_last(self.tokens[group]))
            total += size if group[0] in test else 0.0
            for name, pooled in pooled_both(np.moveaxis(back, -1, 1)).items():
                out[name][group] = pooled
            done += len(group)
            progress(done, count)
        return Coded(out, total / len(test), *passage.milliseconds(count))

    def _widths(self) -> dict[str, int]:
        return {MEAN: self.tokens.shape[1], ROUGH: 2 * self.tokens.shape[1]}


def _last(tokens: Floats) -> Floats:
    return np.ascontiguousarray(np.moveaxis(tokens, 1, -1), np.float32)


def stream_of(data: Embeddings, compressor: Compressor) -> Coder:
    """Return what codes chunks as a store does."""
    return stream(compressor, data.sample()[0][:1])


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


def principal_of(data: Embeddings, k: int, packed: bool) -> Coder:
    """Return k principal components of the fold's training tokens in int8."""
    return principal(PrincipalComponents.fit(data.vectors()), k, packed)


def product_of(data: Embeddings, parts: int, bits: int) -> Coder:
    """Return a product quantiser of the fold's training tokens."""
    return product(data.vectors(), parts, bits)


def uniform_of(data: Embeddings, step: float) -> Coder:
    """Return one step for all components of a rotation."""
    return uniform(klt(data.sample(), whitening=0.0), data.vectors(), step)


def code_pooled(
    vectors: Floats, task: Task, fold: Fold, kind: str, k: int, pooling: str
) -> Coded | None:
    """Code one vector an image: float32, float16, PCA-k in int8 (zstd of a chunk), or parts."""
    train, test = fold
    if kind in ("float32", "float16"):
        kept = vectors.astype(kind)
        return Coded({pooling: kept.astype(np.float32)}, float(kept[0].nbytes))
    if kind == "PQ":
        if len(train) < CODES:
            return None
        decoded, _ = Passage(product(vectors[train], k, 8)).through(vectors)
        return Coded({pooling: decoded}, float(k))
    components = PrincipalComponents.fit(vectors[train])
    if k > len(components.directions):
        return None
    packed = kind.endswith("zstd")
    passage = Passage(principal(components, k, packed))
    decoded, _ = passage.through(vectors)
    size = float(k)
    if packed:
        numbers = passage.coder.encode(vectors[test])
        size = zstd_bytes(numbers, task.chunk) / len(test)
    return Coded({pooling: decoded}, size, *passage.milliseconds(len(vectors)))


def ladder_of(folder: Path) -> list[Path]:
    """Return the further rates that train_bottleneck.py leaves beside a model folder."""
    return sorted((folder.parent / "ladder").glob("*.json"), key=lambda p: float(p.stem))
