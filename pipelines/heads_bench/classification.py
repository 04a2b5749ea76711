"""Classes of images and points at each rate: EuroSAT, UC Merced, AlphaEarth's points."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from encoder_bench.images import BATCH, ImageSet, eurosat_rgb, image_tokens, ucmerced
from encoder_bench.probes import Split, probe
from ledger import Ledger
from main_job.statistics import pixel_statistics
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from heads_bench.cnn import train_classifier
from nec.compressor import Compressor
from nec.encoders import Encoder
from nec.evaluate import spatial_blocks
from nec.evaluate.intervals import confusions, estimates
from nec.heads import SceneClassifier
from nec.heads.pooling import mean_and_roughness
from nec.model import RATES, Model
from nec.rotation import klt, rotate

SEED = 17
FOLDS = 3
# Images of a chunk: EuroSAT's are coded together as the catalog does, UC Merced's one by one.
CHUNK = 100
OURS, CNN = "float32", "raw bands, CNN from scratch"
# Share of the training labels that heads of the label curve learn from, and draws of each.
FRACTIONS, DRAWS = (0.01, 0.03, 0.1, 0.3, 1.0), 3
MARGIN = 0.01
# Bytes of a lone AlphaEarth vector, and edge of a block of points that are drawn together.
SIZES, BLOCK = (16.0, 8.0, 4.0, 2.0), 10_000.0
DYNAMIC_WORLD = ("water", "trees", "grass", "flooded", "crops", "shrub", "built", "bare", "snow")

Floats = NDArray[np.float32]


def bench_eurosat(
    data: Path, split: Path, model: Model, twin: Encoder, ledger: Ledger, settings: dict[str, int]
) -> dict[str, Any]:
    """Learn from some training images, test on some of the fixed pool."""
    images = eurosat_rgb(data, split)
    rng = np.random.default_rng(SEED)
    parts = (~images.pool, images.pool)
    counts = (settings["train"], settings["test"])
    chosen = [rng.permutation(np.flatnonzero(p))[:n] for p, n in zip(parts, counts, strict=True)]
    images = _some(images, np.sort(np.concatenate(chosen)))
    fold = (np.flatnonzero(~images.pool), np.flatnonzero(images.pool))
    found = _compared("eurosat", images, [fold], CHUNK, model, twin, ledger, settings["epochs"])
    return {"task": "EuroSAT RGB, 10 classes, fixed test pool", **found}


def bench_ucmerced(
    data: Path, model: Model, twin: Encoder, ledger: Ledger, settings: dict[str, int]
) -> dict[str, Any]:
    """Cross-validate; each image is a stream of its own."""
    images = ucmerced(data)
    step = max(1, len(images.labels) // settings["ucmerced"])
    images = _some(images, np.arange(len(images.labels))[::step])
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    folds = list(splitter.split(images.images, images.labels))
    found = _compared("ucmerced", images, folds, 1, model, twin, ledger, settings["epochs"])
    return {"task": f"UC Merced, 21 classes, {FOLDS}-fold", **found}


def _some(images: ImageSet, at: NDArray[np.intp]) -> ImageSet:
    return replace(
        images, **{k: getattr(images, k)[at] for k in ("images", "labels", "pool", "place")}
    )


def image_vectors(
    part: str, images: ImageSet, chunk: int, model: Model, twin: Encoder, ledger: Ledger
) -> tuple[dict[str, Floats], dict[str, float]]:
    """Return mean and roughness of the images' tokens by row, and bytes of an image by rate."""
    count = len(images.labels)

    def embedded(encoder: Encoder, basis: Floats | None) -> dict[str, NDArray[Any]]:
        kept: dict[str, list[Floats]] = {}
        sizes = dict.fromkeys(RATES, 0)
        step = chunk if chunk > 1 else BATCH
        for at in range(0, count, step):
            tokens = image_tokens(encoder, images, slice(at, at + step))
            rows = {OURS: tokens if basis is None else rotate(tokens, basis)}
            for rate in RATES if basis is not None else ():
                compressor, back = model.compressors[rate], []
                for first in range(0, len(tokens), chunk):
                    values = np.moveaxis(tokens[first : first + chunk], 1, -1)
                    coded = compressor.encode(np.ascontiguousarray(values, np.float32))
                    sizes[rate] += len(coded)
                    back.append(np.moveaxis(compressor.decode(coded), -1, 1))
                rows[rate] = rotate(np.concatenate(back), basis)
            for name, values in rows.items():
                kept.setdefault(name, []).append(mean_and_roughness(values))
        found: dict[str, NDArray[Any]] = {k: np.concatenate(v) for k, v in kept.items()}
        return found | {"sizes": np.array([sizes[rate] / count for rate in RATES])}

    about = {"part": part, "images": count, "chunk": chunk}
    ours = ledger.take({**about, "vectors": "ours"}, lambda: embedded(model.encoder, model.basis))
    theirs = ledger.take({**about, "vectors": "twin"}, lambda: embedded(twin, None))
    rows = {OURS: ours[OURS]} | {f"decoded {rate}": ours[rate] for rate in reversed(RATES)}
    rows["untrained twin, float32"] = theirs[OURS]
    rows["pixel statistics"] = np.concatenate(
        [pixel_statistics(p) for p in np.array_split(images.images, max(1, count // 200))]
    )
    return rows, dict(zip(RATES, ours["sizes"].tolist(), strict=True))


def _compared(
    part: str,
    images: ImageSet,
    folds: list[Split],
    chunk: int,
    model: Model,
    twin: Encoder,
    ledger: Ledger,
    epochs: int,
) -> dict[str, Any]:
    """Fit a linear head to each row, and a network to the pixels, on the same labels."""
    classes, truth = np.unique(images.labels, return_inverse=True)
    with ledger.counting(part, 2 + len(folds)):
        rows, sizes = image_vectors(part, images, chunk, model, twin, ledger)
        learned = [
            ledger.take(
                {"part": part, "cnn": at, "of": len(folds), "epochs": epochs, "n": len(truth)},
                lambda f=fold: _network(images.images, truth, f, len(classes), epochs),
            )
            for at, fold in enumerate(folds)
        ]
    tested = np.concatenate([test for _, test in folds])
    units, shape = np.searchsorted(np.sort(tested), tested), (len(tested), len(classes))
    counts, chosen = {}, {}
    for name, X in rows.items():
        found = []
        for train, test in folds:
            head = _tuned(X[train], truth[train])
            chosen[name] = head.C
            found.append(head.predict(X[test]))
        counts[name] = confusions(truth[tested], np.concatenate(found), units, shape)
    network = np.concatenate([f["found"] for f in learned])
    counts[CNN] = confusions(truth[tested], network, units, shape)
    most = [np.full(len(test), np.bincount(truth[train]).argmax()) for train, test in folds]
    counts["majority class"] = confusions(truth[tested], np.concatenate(most), units, shape)
    table = estimates(counts, reference=OURS, metrics=("accuracy",), seed=SEED, margin=MARGIN)
    result: dict[str, Any] = {
        "unit": "image",
        "units": len(tested),
        "training_labels": len(folds[0][0]),
        "folds": len(folds),
        "epochs": epochs,
        "margin": MARGIN,
        "rows": {name: {"images": entry, "C": chosen.get(name)} for name, entry in table.items()},
        "confusion": counts[OURS].sum(0).astype(int).tolist(),
        "classes": classes.tolist(),
    }
    result["rows"][CNN]["parameters"] = int(learned[0]["parameters"])
    for rate, size in sizes.items():
        result["rows"][f"decoded {rate}"]["bytes_per_image"] = round(size, 2)
    if len(folds) == 1:
        kept = {name: rows[name] for name in (OURS, "decoded medium", "decoded low")}
        result["label_curve"] = _curve(kept, truth, folds[0], counts[CNN], shape)
    return result


def _network(
    images: Floats, truth: NDArray[np.intp], fold: Split, classes: int, epochs: int
) -> dict[str, NDArray[Any]]:
    train, test = fold
    found = train_classifier(images[train], truth[train], classes=classes, epochs=epochs, seed=SEED)
    return {"found": found.predict(images[test]), "parameters": np.array(found.parameters)}


def _tuned(X: Floats, y: NDArray[np.intp]) -> SceneClassifier:
    """Choose the penalty on a fifth of the labels, and fit to all of them."""
    order = np.random.default_rng(SEED).permutation(len(y))
    held, fitted = np.split(order, [len(order) // 5])
    heads = [SceneClassifier(C=C, max_iter=300) for C in (0.003, 0.03, 0.3)]
    if len(held) < 10 or len(np.unique(y[fitted])) < 2:
        return heads[1].fit(X, y)
    scores = [head.fit(X[fitted], y[fitted]).score(X[held], y[held]) for head in heads]
    return heads[int(np.argmax(scores))].fit(X, y)


def _curve(
    rows: dict[str, Floats],
    truth: NDArray[np.intp],
    fold: Split,
    network: Floats,
    shape: tuple[int, int],
) -> dict[str, Any]:
    """Compare heads of fewer labels with the network of all of them, on the same test images.

    Draws of a fraction hold those of smaller ones; their confusions are added up, so that an
    interval is over test images, and the draws are averaged.
    """
    train, test = fold
    units = np.arange(len(test))
    counts: dict[str, Floats] = {CNN: network * DRAWS}
    labels = {f: max(2, round(f * len(train))) for f in FRACTIONS}
    for name, X in rows.items():
        for fraction, number in labels.items():
            total = np.zeros_like(network)
            for draw in range(DRAWS):
                some = np.random.default_rng(SEED + draw).permutation(train)[:number]
                found = _tuned(X[some], truth[some]).predict(X[test])
                total += confusions(truth[test], found, units, shape)
            counts[f"{name} | {fraction:g}"] = total
    table = estimates(counts, reference=CNN, metrics=("accuracy",), seed=SEED, margin=MARGIN)
    out: dict[str, Any] = {"reference": CNN, "draws": DRAWS, "margin": MARGIN}
    out["accuracy_of_reference"] = table[CNN]["accuracy"]
    for name in rows:
        points = [
            {"fraction": f, "labels": n, **table[f"{name} | {f:g}"]["accuracy"]}
            for f, n in labels.items()
        ]
        out[name] = {"points": points, **matched(points)}
    return out


def matched(points: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the smallest fraction that reaches the reference, and that is surely no worse."""
    better = [p["fraction"] for p in points if p["difference"]["value"] >= 0]
    surely = [p["fraction"] for p in points if p["no_worse"]]
    return {"reaches_at": min(better, default=None), "no_worse_at": min(surely, default=None)}


def bench_alphaearth(data: Path) -> dict[str, Any]:
    """Train in three regions, test in the fourth; compressors are fitted to the three as well."""
    with np.load(data / "embeddings" / "alphaearth_points" / "alphaearth_points.npz") as file:
        vectors, labels = file["embedding"], file["dynamic_world"].astype(int)
        region, latlon, radar = file["region"], file["latlon"], file["s1_vv_vh"]
    n = len(labels)
    # Metres on a plane, near enough for blocks.
    metres = np.radians(latlon) * 6_371_000.0
    x = metres[:, 1] * np.cos(np.radians(latlon[:, 0]))
    block = spatial_blocks(x, metres[:, 0], size=BLOCK)
    rows: dict[str, list[Floats]] = {}
    sizes: dict[str, list[float]] = {}
    splits: list[Split] = []
    for at, left in enumerate(np.unique(region)):
        train, test = np.flatnonzero(region != left), np.flatnonzero(region == left)
        splits.append((train + at * n, test + at * n))
        rows.setdefault(OURS, []).append(vectors)
        basis = klt([vectors[train, None, None, :]])
        for size in SIZES:
            name = f"decoded {size:g} B"
            compressor = Compressor.fit(
                vectors[train], bytes_per_vector=size, basis=basis, codebook="auto"
            )
            back = np.empty_like(vectors)
            total = 0
            for group in (train, test):
                for first in range(0, len(group), 1000):
                    some = group[first : first + 1000]
                    coded = compressor.encode(vectors[some])
                    total += len(coded)
                    back[some] = compressor.decode(coded)[:, 0, 0, :]
            rows.setdefault(name, []).append(back)
            sizes.setdefault(name, []).append(total / n)
        rows.setdefault("Sentinel-1 backscatter (VV, VH)", []).append(radar)
    stacked = {name: np.concatenate(parts) for name, parts in rows.items()}
    found = probe(
        stacked, np.tile(labels, len(splits)), splits, np.tile(block, len(splits)), reference=OURS
    )
    classes = np.unique(labels)
    table: dict[str, Any] = {}
    for name, entry in found.items():
        table[name] = {head.replace("-", ""): value for head, value in entry.items()}
        table[name]["images"] = entry["linear"]
        if name in sizes:
            table[name]["bytes_per_vector"] = round(float(np.mean(sizes[name])), 3)
    return {
        "task": "AlphaEarth vectors, Dynamic World classes, trained in three regions and tested "
        "in the fourth",
        "unit": f"block of {BLOCK / 1e3:g} km",
        "units": len(np.unique(block)),
        "folds": len(splits),
        "classes": [DYNAMIC_WORLD[c] for c in classes],
        "regions": np.unique(region).tolist(),
        "margin": MARGIN,
        "rows": table,
    }


def parts_of(args: Any, model: Model, twin: Encoder) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Give the parts of this task, by name."""
    told = {
        "weights": model.weights_sha256,
        "rates": {rate: model.compressors[rate].digest for rate in RATES},
    }
    ledger = Ledger(args.work / "classification", told, [Path(__file__).parent])
    settings = {n: getattr(args, n) for n in ("train", "test", "ucmerced", "epochs")}
    yield "alphaearth", lambda: bench_alphaearth(args.data)
    yield (
        "eurosat",
        lambda: bench_eurosat(args.data, args.split, model, twin, ledger, settings),
    )
    yield "ucmerced", lambda: bench_ucmerced(args.data, model, twin, ledger, settings)
