"""The tasks: images with folds, their tokens, and what a method makes of them."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from encoder_bench.images import BATCH, ImageSet, eurosat_rgb, image_tokens, ucmerced
from ledger import digest_of
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

import nec
from nec.encoders import Encoder
from nec.heads.pooling import mean_and_roughness

SEED = 23
FOLDS = 3
MEAN, ROUGH = "mean", "mean and roughness"
_HERE, _NEC = Path(__file__).parent, Path(nec.__file__).parent
# What bytes hang on, and what kept vectors do.
CODEC = (_NEC / "codec", _NEC / "compressor.py")
_CODE = (
    *(_HERE / f"{name}.py" for name in ("tasks", "embeddings", "coders", "pixels")),
    *(_HERE.parent / name for name in ("codec_bench/baselines.py", "encoder_bench/images.py")),
    *CODEC,
    _NEC / "heads/pooling.py",
)

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
# Called with (images done, images in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """Labelled images, how they are split, and how many are coded together.

    Attributes
    ----------
    images : ImageSet
        Those that a fold uses; display values between 0 and 1.
    folds : list of (training index, test index)
        Whatever is fitted is fitted to the training images of a fold.
    chunk : int
        Images of a chunk; training and test images share none.
    sizes : tuple of float
        Bytes an image that the ladder of our streams aims at.
    halved : bool
        The encoder is shown images at half their size; codecs of pixels code the whole.
    """

    name: str
    title: str
    images: ImageSet
    folds: list[Fold]
    chunk: int
    sizes: tuple[float, ...]
    halved: bool = False

    def shown(self, pixels: NDArray[np.float32] | None = None) -> ImageSet:
        """Return the images, or others in their place, as the encoder is shown them."""
        images = self.images if pixels is None else replace(self.images, images=pixels)
        return images.halved() if self.halved else images

    @property
    def raw_bytes(self) -> int:
        """Bytes of an image's raw pixels."""
        return int(np.prod(self.images.images.shape[1:]))

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Images (n, y, x, band)."""
        return np.rint(self.images.images * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def chunks(self, fold: Fold) -> Iterator[NDArray[np.intp]]:
        """Give the images of each chunk."""
        for part in fold:
            for at in range(0, len(part), self.chunk):
                yield part[at : at + self.chunk]


def eurosat(data: Path, split: Path, train: int, test: int | None) -> Task:
    """EuroSAT RGB: some training images, and the fixed test pool or some of it."""
    images = eurosat_rgb(data, split)
    rng = np.random.default_rng(SEED)
    kept = rng.permutation(np.flatnonzero(~images.pool))[:train]
    pool = rng.permutation(np.flatnonzero(images.pool))[:test]
    images = images.some(np.sort(np.concatenate([kept, pool])))
    # In an order by chance: a chunk of an archive holds no single class.
    fold = tuple(rng.permutation(np.flatnonzero(w)) for w in (~images.pool, images.pool))
    title = "EuroSAT RGB, fixed test pool, 100 images to a chunk"
    return Task("eurosat_rgb", title, images, [fold], 100, (8, 11.5, 20, 36, 75, 150, 400))


def ucmerced_folds(data: Path, limit: int | None) -> Task:
    """UC Merced, cross-validated; each image is a stream of its own.

    The encoder sees 0.6 m, from which it tells as much as from 0.3 (bench_encoder.py), in a
    quarter of the tokens.
    """
    images = ucmerced(data)
    if limit is not None:
        images = images.some(np.arange(len(images.labels))[:: max(1, len(images.labels) // limit)])
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    folds = list(splitter.split(images.images, images.labels))
    title = f"UC Merced, {FOLDS}-fold, each image decodable by itself, embedded at half size"
    # Of images alone, streams take a tenth more than chunks that tables are fitted to.
    sizes = (60, 120, 175, 540, 1200, 3000)
    return Task("ucmerced", title, images, folds, 1, sizes, halved=True)


@dataclass(frozen=True)
class Coded:
    """What is left of a fold's images after a method, and what that took.

    Attributes
    ----------
    vectors : dict of str to ndarray of shape (n, d)
        By pooling; not every method serves both.
    size : float
        Bytes of a test image.
    encode_ms, decode_ms : float
        CPU time an image of the coding alone, without the encoder.
    """

    vectors: dict[str, NDArray[np.float32]]
    size: float
    encode_ms: float = 0.0
    decode_ms: float = 0.0

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all."""
        part = path.with_suffix(".part.npz")
        numbers = np.array([self.size, self.encode_ms, self.decode_ms])
        np.savez(part, numbers=numbers, **{k.replace(" ", "_"): v for k, v in self.vectors.items()})
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Coded":
        """Read what `save` wrote."""
        with np.load(path) as stored:
            vectors = {k.replace("_", " "): stored[k] for k in stored.files if k != "numbers"}
            return cls(vectors, *(float(v) for v in stored["numbers"]))


def pooled_both(tokens: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Pool tokens (n, dim, y, x) both ways."""
    both = mean_and_roughness(tokens)
    return {MEAN: both[:, : tokens.shape[1]], ROUGH: both}


class Stopwatch:
    """Adds up CPU time, of all threads, while it is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._start


def folder_of(work: Path, task: Task, weights: str) -> Path:
    """Return where vectors of these images, these weights and this code are kept."""
    images = task.images
    told = {
        "labels": images.labels.tolist(),
        "pixels": hashlib.sha256(
            images.images[:: max(1, len(images.images) // 50)].tobytes()
        ).hexdigest(),
        "folds": [[part.tolist() for part in fold] for fold in task.folds],
        "weights": weights,
        "halved": task.halved,
        "code": digest_of(_CODE),
    }
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
    folder = work / f"{task.name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tokens_of(
    encoder: Encoder, task: Task, path: Path, progress: Progress
) -> tuple[NDArray[np.float32], float]:
    """Embed all images, once; return tokens (n, dim, y, x) and CPU milliseconds an image."""
    note, images = path.with_suffix(".json"), task.shown()
    if not note.exists():
        watch, parts = Stopwatch(), []
        for at in range(0, len(images.images), BATCH):
            with watch:
                parts.append(image_tokens(encoder, images, slice(at, at + BATCH)))
            progress(min(at + BATCH, len(images.images)), len(images.images))
        np.save(path, np.concatenate(parts))
        note.write_text(json.dumps({"ms": 1e3 * watch.seconds / len(images.images)}))
    return np.load(path, mmap_mode="r"), float(json.loads(note.read_text())["ms"])


def embedded(
    encoder: Encoder, task: Task, pixels: NDArray[np.uint8], progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Pool what the encoder makes of other pixels (n, y, x, band) of the same images."""
    parts: list[dict[str, Any]] = []
    for at in range(0, len(pixels), BATCH):
        values = pixels[at : at + BATCH].transpose(0, 3, 1, 2).astype(np.float32) / 255
        parts.append(pooled_both(image_tokens(encoder, task.shown(values), slice(None))))
        progress(min(at + BATCH, len(pixels)), len(pixels))
    return {k: np.concatenate([p[k] for p in parts]) for k in (MEAN, ROUGH)}
