"""Segmentation of the Alberta scene against its scene classification, by spatial blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from main_job.scenes import THREADS, EncodedScene, disk_bytes
from nec.evaluate.intervals import MARGIN, confusions, estimates
from nec.heads import Segmenter
from nec.model import RATES, Model

BLOCK = 32  # tokens
GUARD = 2  # tokens along every edge of a block, in neither half
ASSIGNMENTS = 2  # each with its complement, so that every block is tested as often
SEED = 1

Labels = NDArray[np.int64]


def bench_segmentation(
    encoded: EncodedScene, labels_file: Path, model: Model, twin: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Train on half of the blocks, test on the other half; see the module's name for the task.

    Parameters
    ----------
    encoded : EncodedScene
    labels_file : Path
        Classes of the scene's pixels.
    model : Model
    twin : ndarray of shape (dim, y, x), optional
        Features of an untrained encoder.
    """
    labels, classes = majority(labels_file, encoded)
    blocks, inside = block_of_tokens(encoded)
    labels = np.where(inside, labels, -1)
    names, unit = np.unique(blocks, return_inverse=True)
    unit = unit.reshape(blocks.shape)
    halves = assignments(names, seed=SEED)
    rows = {**embedding_rows(encoded, model, twin), **pixel_rows(encoded), "majority class": None}
    counts = {}
    for name, row in rows.items():
        total = np.zeros((len(names), len(classes), len(classes)), np.float32)
        for train in halves:
            in_train = train[unit]
            learn = np.where(in_train, labels, -1)
            test = (labels >= 0) & ~in_train
            if row is None:
                most = np.bincount(learn[learn >= 0], minlength=len(classes)).argmax()
                found = np.full(int(test.sum()), most)
            else:
                found = row(learn, test)
            total += confusions(labels[test], found, unit[test], (len(names), len(classes)))
        counts[name] = total
    tested = np.flatnonzero(counts["float32"].sum((1, 2)) > 0)
    counts = {name: total[tested] for name, total in counts.items()}
    table = estimates(counts, reference="float32", metrics=("accuracy", "mean_iou"), seed=SEED)
    sizes = token_bytes(encoded, model)
    for name, entry in table.items():
        entry["bytes_per_token"] = round(sizes[name], 4) if name in sizes else None
    return {
        "task": "Sentinel-2 scene classification (SCL), majority class of each 4 x 4 pixel token",
        "classes": classes.tolist(),
        "block_tokens": BLOCK,
        "guard_tokens": GUARD,
        "assignments": len(halves),
        "units": len(tested),
        "unit": "block; confusions of all assignments that test it are added",
        "tokens_labelled": int((labels >= 0).sum()),
        "margin": MARGIN,
        "seed": SEED,
        "rows": table,
    }


def majority(labels_file: Path, encoded: EncodedScene) -> tuple[Labels, NDArray[np.integer]]:
    """Return the index of the majority class of each token (-1: none), and the classes."""
    with rasterio.open(labels_file) as dataset:
        values = dataset.read(1)
    grid = encoded.grid
    assert values.shape == grid.scene_shape
    classes, codes = np.unique(values, return_inverse=True)
    at = [np.arange(s) + o for s, o in zip(values.shape, grid.scene_offset, strict=True)]
    token = (at[0] // grid.patch)[:, None] * grid.shape[1] + at[1] // grid.patch
    votes = np.bincount(
        (token * len(classes) + codes.reshape(values.shape)).ravel(),
        minlength=grid.shape[0] * grid.shape[1] * len(classes),
    ).reshape(*grid.shape, len(classes))
    labels = np.where(votes.any(-1), votes.argmax(-1), -1)
    labels[np.isnan(encoded.features).any(0)] = -1
    return labels, classes


def block_of_tokens(encoded: EncodedScene) -> tuple[Labels, NDArray[np.bool_]]:
    """Return the number of each token's block, and whether it lies inside the guard."""
    grid = encoded.grid
    along = []
    for offset, size in zip(grid.scene_offset, grid.shape, strict=True):
        at = np.arange(size) - offset // grid.patch
        place = at % BLOCK
        along.append((at // BLOCK, (place >= GUARD) & (place < BLOCK - GUARD)))
    (rows, keep_y), (columns, keep_x) = along
    number = (rows - rows.min())[:, None] * 1000 + (columns - columns.min())
    return number, keep_y[:, None] & keep_x


def assignments(blocks: Labels, *, seed: int) -> list[NDArray[np.bool_]]:
    """Return which blocks train: of each pair of neighbours one by chance, then the other."""
    rng = np.random.default_rng(seed)
    row, column = blocks // 1000, blocks % 1000
    pairs = row // 2 * 1000 + column
    halves = []
    for _ in range(ASSIGNMENTS):
        upper = rng.random(pairs.max() + 1) < 0.5
        train = (row % 2 == 0) == upper[pairs]
        halves += [train, ~train]
    return halves


Row = Callable[[Labels, NDArray[np.bool_]], NDArray[np.intp]]


def embedding_rows(
    encoded: EncodedScene, model: Model, twin: NDArray[np.float32] | None
) -> dict[str, Row]:
    """Heads on embeddings: uncompressed, decoded at each rate, simply quantised, untrained."""
    original = encoded.uncompressed(model)
    arrays = {"float32": original, "int8": original.copy(data=int8(original.values))}
    arrays |= {f"decoded {rate}": encoded.decoded(rate) for rate in RATES}
    for edge in (8, 16):
        means = int8(cell_means(original.values, edge))
        arrays[f"int8 of {edge} x {edge} means"] = original.copy(data=means)
    if twin is not None:
        arrays["untrained twin, float32"] = encoded.placed(twin)
    return {name: _head(array) for name, array in arrays.items()}


def _head(array: xr.DataArray) -> Row:
    def row(learn: Labels, test: NDArray[np.bool_]) -> NDArray[np.intp]:
        head = Segmenter().fit(array, learn)
        found = head.predict(array).values[test]
        return head.classes_[found].astype(np.intp)

    return row


def pixel_rows(encoded: EncodedScene) -> dict[str, Row]:
    """Logistic regression and random forest on what the encoder sees of a token."""
    pixels = encoded.pixels().values
    bands = len(encoded.scene.bands)
    means = pixels.reshape(bands, -1, *pixels.shape[1:]).mean(1)
    kinds = {f"band means ({bands})": means, f"raw values ({len(pixels)})": pixels}
    models = {
        "logistic regression": lambda: make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=1000)
        ),
        "random forest": lambda: RandomForestClassifier(
            100, min_samples_leaf=2, n_jobs=THREADS, random_state=SEED
        ),
    }
    return {
        f"{kind}, {name}": _classifier(values, make)
        for kind, values in kinds.items()
        for name, make in models.items()
    }


def _classifier(values: NDArray[np.float32], make: Callable[[], Any]) -> Row:
    def row(learn: Labels, test: NDArray[np.bool_]) -> NDArray[np.intp]:
        keep = learn >= 0
        fitted = make().fit(values[:, keep].T, learn[keep])
        return fitted.predict(values[:, test].T)

    return row


def int8(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Quantise each band (first axis) to 255 levels between its extremes, and back."""
    flat = values.reshape(len(values), -1)
    reach = np.nanmax(np.abs(flat), axis=1) / 127
    shape = (len(values),) + (1,) * (values.ndim - 1)
    step = np.where(reach > 0, reach, 1).reshape(shape).astype(np.float32)
    return np.round(values / step) * step


def cell_means(values: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """Replace each token by the mean of its cell of `edge` x `edge` tokens."""
    bands, rows, columns = values.shape
    cut = values.reshape(bands, rows // edge, edge, columns // edge, edge)
    count = (~np.isnan(cut)).sum((2, 4), keepdims=True)
    mean = np.nansum(cut, axis=(2, 4), keepdims=True) / np.maximum(count, 1)
    spread = np.broadcast_to(mean, cut.shape).reshape(values.shape)
    return np.where(np.isnan(values), np.nan, spread).astype(np.float32)


def token_bytes(encoded: EncodedScene, model: Model) -> dict[str, float]:
    """Bytes a valid token of each row that has a size: payload of `embedding`, or plain."""
    dim, vectors = model.encoder.dim, int((~np.isnan(encoded.features).any(0)).sum())
    sizes = {"float32": 4.0 * dim, "int8": float(dim), "untrained twin, float32": 4.0 * dim}
    for rate, store in encoded.stores.items():
        sizes[f"decoded {rate}"] = disk_bytes(store)["payload"]["embedding"] / vectors
    for edge in (8, 16):
        sizes[f"int8 of {edge} x {edge} means"] = dim / edge**2
    raw = 2.0 * len(encoded.scene.bands)
    bands = len(encoded.scene.bands)
    for name in ("logistic regression", "random forest"):
        sizes[f"band means ({bands}), {name}"] = raw
        sizes[f"raw values ({bands * encoded.grid.patch**2}), {name}"] = raw * encoded.grid.patch**2
    return sizes
