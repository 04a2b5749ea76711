"""EuroSAT from the shipped catalog: accuracy of simple heads against bytes an image."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler

import nec
from main_job.scenes import THREADS, disk_bytes
from main_job.statistics import pixel_statistics
from nec.codec import NecCodec
from nec.encoders import Encoder
from nec.evaluate.intervals import MARGIN, confusions, estimates
from nec.heads import SceneClassifier
from nec.heads.pooling import mean_and_roughness
from nec.model import RATES, Model
from nec.rotation import rotate
from nec.scene import ImageCollection

CHUNK = 100  # images coded together, as in a store
POOLED_CHUNK = 1000  # pooled vectors coded together, as in a store
STRENGTHS = (0.1, 1.0, 10.0)
NEIGHBOURS = (5, 10, 20)
SEED = 3


@dataclass
class Features:
    """What is kept of each image, and bytes by rate.

    Vectors are (n, 2 d): means over the tokens, then roughness, in the store's basis.
    """

    original: NDArray[np.float32]
    decoded: dict[str, NDArray[np.float32]]
    statistics: NDArray[np.float32]
    twin: NDArray[np.float32]
    bytes_coded: dict[str, int]
    tokens: int


def bench_images(
    catalog: Path, folder: Path, model: Model, twin: Encoder, limit: int | None = None
) -> dict[str, Any]:
    """Probe the catalog's vectors, and those that were never coded.

    Parameters
    ----------
    catalog : Path
        The shipped store, with coordinates name, label and set.
    folder : Path
        EuroSAT RGB images in class folders.
    model : Model
        The one that the catalog was made with.
    twin : Encoder
        The same network, untrained.
    limit : int, optional
        Take about so many images only, to try things out.
    """
    store = nec.open(catalog)
    info = store.nec.info
    if info["weights_sha256"] != model.weights_sha256:
        raise SystemExit(f"{catalog.name} is of other weights: run make_eurosat_catalog.py again")
    every = np.arange(store.sizes["sample"])
    chosen = every if limit is None else every[:: max(1, len(every) // limit)]
    names, labels, sets = (
        np.array(store[key].values[chosen].tolist()) for key in ("name", "label", "set")
    )
    files = [f"{label}/{name}.jpg" for name, label in zip(names, labels, strict=True)]
    features = _features(ImageCollection.open(folder, files=files), model, twin)
    rate = str(info["rate"])
    shipped = Shipped.read(catalog, store, chosen)
    vectors, sizes = _rows(features, shipped, rate, model)

    train, test = np.flatnonzero(sets == "train"), np.flatnonzero(sets == "test")
    classes, truth = np.unique(labels, return_inverse=True)
    probes = _probes(vectors, features.statistics, truth, train, test)
    units = np.arange(len(test))
    shape = (len(test), len(classes))
    counts = {n: confusions(truth[test], found, units, shape) for n, (found, _) in probes.items()}
    table = _estimates(counts)
    for name, entry in table.items():
        row = name.rsplit(": ", 1)[0]
        entry["bytes_per_image"] = round(sizes[row], 3) if row in sizes else None
        entry["chosen"] = probes[name][1]
    jpeg = np.array([(folder / file).stat().st_size for file in files])
    dim = model.encoder.dim
    recoded = _least_cosine(features.decoded[rate][:, :dim], shipped.tokens[:, :dim])
    return {
        "task": "EuroSAT RGB, 10 classes; fixed test pool of catalogs/eurosat/split.csv",
        "rate": rate,
        "images": {"train": len(train), "test": len(test)},
        "jpeg_bytes_per_image": round(float(jpeg.mean()), 1),
        "catalog_bytes": disk_bytes(catalog),
        "catalog_images": len(every),
        "catalog_against_recoding": {
            "cosine_min": round(recoded, 5),
            "bytes_per_image_recoded": round(features.bytes_coded[rate] / len(files), 2),
        },
        "tuned": f"C among {STRENGTHS}, neighbours among {NEIGHBOURS}, on a fifth of the "
        "training images",
        "unit": "test image",
        "margin": MARGIN,
        "seed": SEED,
        "rows": table,
    }


@dataclass(frozen=True)
class Shipped:
    """What the catalog holds of the images, and its payload, bytes an image, by array."""

    scene_embedding: NDArray[np.float32]
    tokens: NDArray[np.float32]
    payload: dict[str, float]

    @classmethod
    def read(cls, catalog: Path, store: xr.Dataset, chosen: NDArray[np.intp]) -> "Shipped":
        """Read it chunk by chunk."""
        tokens = store["embedding"]
        parts = [
            mean_and_roughness(tokens[at].values)
            for at in _chunks(tokens.sizes["sample"], POOLED_CHUNK)
        ]
        payload = disk_bytes(catalog)["payload"]
        return cls(
            store["scene_embedding"].values[chosen],
            np.concatenate(parts)[chosen],
            {name: size / tokens.sizes["sample"] for name, size in payload.items()},
        )


def _rows(
    features: Features, shipped: Shipped, rate: str, model: Model
) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
    """Vectors by row, and their bytes an image."""
    dim = model.encoder.dim
    pooled = features.original[:, :dim]
    vectors = {"float32": pooled, "int8": _int8(pooled)}
    sizes = {"float32": 4.0 * dim, "int8": float(dim)}
    vectors["float32 tokens, mean and roughness"] = features.original
    sizes["float32 tokens, mean and roughness"] = 4.0 * dim * features.tokens
    for other in RATES:
        ours = other == rate
        suffix = f"shipped ({rate})" if ours else other
        decoded = shipped.tokens if ours else features.decoded[other]
        size = features.bytes_coded[other] / len(pooled)
        vectors[f"tokens, mean, {suffix}"] = decoded[:, :dim]
        vectors[f"tokens, mean and roughness, {suffix}"] = decoded
        for kind in ("mean", "mean and roughness"):
            sizes[f"tokens, {kind}, {suffix}"] = shipped.payload["embedding"] if ours else size
        name = f"scene_embedding, {suffix}"
        if ours:
            vectors[name], sizes[name] = shipped.scene_embedding, shipped.payload["scene_embedding"]
        else:
            vectors[name], whole = _pooled_coded(pooled, model, other)
            sizes[name] = whole / len(pooled)
    for kind, twin in (("mean", features.twin[:, :dim]), ("mean and roughness", features.twin)):
        vectors[f"untrained twin, float32, {kind}"] = twin
        sizes[f"untrained twin, float32, {kind}"] = 4.0 * dim * features.tokens
    return vectors, sizes


def _features(collection: ImageCollection, model: Model, twin: Encoder) -> Features:
    count, dim = len(collection), model.encoder.dim
    pixels = collection.shape[0] * collection.shape[1]
    kept = Features(
        np.empty((count, 2 * dim), np.float32),
        {rate: np.empty((count, 2 * dim), np.float32) for rate in RATES},
        np.empty((count, 0), np.float32),
        np.empty((count, 2 * dim), np.float32),
        dict.fromkeys(RATES, 0),
        pixels // model.encoder.patch_size**2,
    )

    def work(at: slice) -> tuple[NDArray[np.float32], dict[str, int]]:
        images = collection.read(at.start, at.stop)
        tokens = nec.embed(images, model=model, bands=collection.bands, gsd=collection.gsd)
        kept.original[at] = mean_and_roughness(rotate(tokens, model.basis))
        sizes = {}
        for rate in RATES:
            data = model.compressors[rate].encode(np.moveaxis(tokens, 1, -1))
            decoded = np.moveaxis(model.compressors[rate].decode(data), -1, 1)
            kept.decoded[rate][at] = mean_and_roughness(rotate(decoded, model.basis))
            sizes[rate] = len(data)
        kept.twin[at] = mean_and_roughness(_twin_tokens(twin, images, collection))
        return pixel_statistics(images), sizes

    statistics = []
    with ThreadPoolExecutor(THREADS) as pool:
        for found, sizes in pool.map(work, _chunks(count, CHUNK)):
            statistics.append(found)
            for rate, size in sizes.items():
                kept.bytes_coded[rate] += size
    kept.statistics = np.concatenate(statistics)
    return kept


def _chunks(count: int, step: int) -> Iterator[slice]:
    for at in range(0, count, step):
        yield slice(at, min(at + step, count))


def _twin_tokens(
    twin: Encoder, images: NDArray[np.float32], collection: ImageCollection
) -> NDArray[np.float32]:
    parts = [
        twin.embed(torch.from_numpy(images[at]), bands=collection.bands, gsd=collection.gsd)
        for at in _chunks(len(images), 16)
    ]
    return torch.cat(parts).numpy()


def _int8(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    step = np.abs(vectors).max(0) / 127
    return np.round(vectors / step) * step


def _pooled_coded(
    vectors: NDArray[np.float32], model: Model, rate: str
) -> tuple[NDArray[np.float32], int]:
    """Code rotated pooled vectors as a store does; return them decoded, and the bytes."""
    codec = NecCodec(model.compressors[rate].scene_coding)
    parts, size = [], 0
    for at in _chunks(len(vectors), POOLED_CHUNK):
        data = codec.encode_array(vectors[at])
        parts.append(codec.decode_array(data, vectors[at].shape))
        size += len(data)
    return np.concatenate(parts), size


def _least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


def _probes(
    vectors: dict[str, NDArray[np.float32]],
    statistics: NDArray[np.float32],
    truth: NDArray[np.intp],
    train: NDArray[np.intp],
    test: NDArray[np.intp],
) -> dict[str, tuple[NDArray[np.intp], Any]]:
    """Predictions on the test images and the hyperparameter chosen, by row and head."""
    order = np.random.default_rng(SEED).permutation(train)
    validation, fitted = np.split(order, [len(order) // 5])
    rows = dict(vectors)
    rows["pixel statistics"] = StandardScaler().fit(statistics[train]).transform(statistics)
    out: dict[str, tuple[NDArray[np.intp], Any]] = {}
    for name, X in rows.items():
        linear = [SceneClassifier(C=C, max_iter=2000) for C in STRENGTHS]
        metric = "euclidean" if name == "pixel statistics" else "cosine"
        near = [SceneClassifier(method="knn", n_neighbors=k, metric=metric) for k in NEIGHBOURS]
        for head, candidates, key in (("linear", linear, "C"), ("k-NN", near, "n_neighbors")):
            scores = [
                h.fit(X[fitted], truth[fitted]).score(X[validation], truth[validation])
                for h in candidates
            ]
            best = candidates[int(np.argmax(scores))].fit(X[train], truth[train])
            out[f"{name}: {head}"] = (best.predict(X[test]), {key: getattr(best, key)})
    forest = RandomForestClassifier(300, random_state=SEED, n_jobs=THREADS)
    forest.fit(statistics[train], truth[train])
    out["pixel statistics: random forest"] = (forest.predict(statistics[test]), {"trees": 300})
    most = np.bincount(truth[train]).argmax()
    out["majority class: none"] = (np.full(len(test), most), {})
    return out


def _estimates(counts: dict[str, NDArray[np.float32]]) -> dict[str, dict[str, Any]]:
    """Pair each row with float32 of the same head and vector; others with the linear probe."""
    table: dict[str, dict[str, Any]] = {}
    for head in ("linear", "k-NN"):
        alike = {n: c for n, c in counts.items() if n.endswith(f": {head}")}
        spread = {n: c for n, c in alike.items() if "tokens, mean and roughness" in n}
        pooled = {n: c for n, c in alike.items() if n not in spread}
        for rows, reference in (
            (pooled, f"float32: {head}"),
            (spread, f"float32 tokens, mean and roughness: {head}"),
        ):
            table |= estimates(rows, reference=reference, metrics=("accuracy",), seed=SEED)
    reference = "float32: linear"
    rest = {n: c for n, c in counts.items() if n not in table or n == reference}
    return table | estimates(rest, reference=reference, metrics=("accuracy",), seed=SEED)
