"""Maps of pixels: land cover of the TerraMesh tiles, water of the flood chip, Alberta's SCL."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from encoder_bench.dense import L1C, L2A, Tile, embed_tile
from ledger import Ledger
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from heads_bench.places import block_folds, blocks_of
from heads_bench.unet import Schedule, entropy, train_unet
from nec.encoders import Encoder
from nec.encoders.tiling import Tiling, embed_image
from nec.evaluate.intervals import confusions, estimates
from nec.heads import Segmenter
from nec.model import RATES, Model
from nec.rotation import rotate

log = logging.getLogger(__name__)

# Pixels: edge of a block that is tested together, and of the ring around it.
BLOCK, BUFFER = 64, 16
# Training pixels of a random forest, at most.
PIXELS = 60_000
ALBERTA = ("blue", "green", "red", "nir", "swir16")
ALBERTA_EDGE = 1280
SEED = 3
OURS, UNET = "float32, fpn", "raw bands, U-Net from scratch"
DECODERS = ("linear", "fpn")
METRICS = ("accuracy", "mean_iou")

Image = NDArray[np.float32]
Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]
Row = Callable[[list[Codes]], tuple[list[Codes], int | None]]


@dataclass(frozen=True)
class Maps:
    """Images of one kind with the class of every pixel (-1: none), and what is left out."""

    images: list[Image]
    labels: list[Codes]
    units: list[NDArray[np.intp]]
    splits: list[tuple[list[Mask], list[Mask]]]

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """The classes, sorted."""
        found = np.unique(np.concatenate([y.ravel() for y in self.labels]))
        return found[found >= 0]

    @cached_property
    def codes(self) -> list[Codes]:
        """Which class of `classes` a pixel has; -1: none."""
        return [np.where(y >= 0, np.searchsorted(self.classes, y), -1) for y in self.labels]

    def tested(self, row: Row, split: tuple[list[Mask], list[Mask]]) -> dict[str, NDArray[Any]]:
        """Return confusions by unit, and trained parameters (-1: none), of a row on a split."""
        train, test = split
        found, count = row([np.where(m, y, -1) for m, y in zip(train, self.codes, strict=True)])
        truth, unit = (np.concatenate([a.ravel() for a in of]) for of in (self.codes, self.units))
        inside = np.concatenate([mask.ravel() for mask in test]) & (truth >= 0)
        flat = np.concatenate([f.ravel() for f in found])[inside]
        shape = (int(unit.max()) + 1, len(self.classes))
        table = confusions(truth[inside], np.maximum(flat, 0), unit[inside], shape)
        return {"confusions": table, "parameters": np.array(-1 if count is None else count)}


@dataclass(frozen=True)
class Budget:
    """Steps that networks train: the U-Net, and the decoders over embeddings."""

    unet: int
    decoder: int


def bench_terramesh(
    data: Path, model: Model, twin: Encoder, ledger: Ledger, budget: Budget
) -> dict[str, Any]:
    """Leave one tile out; of each, the classes that the others have."""
    folder = data / "terramesh"
    names = sorted(p.name for p in (folder / "S2L2A").glob("*.tif"))
    images = [_read(folder / "S2L2A" / n, L2A) for n in names]
    labels = [_codes(folder / "LULC" / n) for n in names]
    units = _numbered([blocks_of(y.shape, BLOCK) for y in labels])
    splits = []
    for left in range(len(names)):
        known = np.unique(np.concatenate([y.ravel() for i, y in enumerate(labels) if i != left]))
        test = [np.isin(y, known) & (i == left) for i, y in enumerate(labels)]
        if len(np.unique(labels[left][test[left]])) > 1:
            splits.append(([np.full(y.shape, i != left) for i, y in enumerate(labels)], test))
    maps = Maps(images, labels, units, splits)
    found = _compared(
        "terramesh", maps, (embedder_of(model), embedder_of(twin)), model, ledger, budget
    )
    return {"task": "TerraMesh land cover, one tile left out", **found}


def bench_flood(
    data: Path, model: Model, twin: Encoder, ledger: Ledger, budget: Budget, *, folds: int
) -> dict[str, Any]:
    """Leave blocks of the chip out."""
    maps, embedders = flood_maps(data, folds), (embedder_of(model), embedder_of(twin))
    found = _compared("flood", maps, embedders, model, ledger, budget)
    return {"task": f"Sen1Floods11 water, blocks of {BLOCK} pixels left out", **found}


def flood_maps(data: Path, folds: int) -> Maps:
    """Return the chip, with blocks of pixels to leave out."""
    folder, name = data / "flood", "Spain_7370579"
    image = _read(folder / "S2" / f"{name}_S2Hand.tif", L1C)
    labels = _codes(folder / "Labels" / f"{name}_LabelHand.tif")
    blocks = blocks_of(labels.shape, BLOCK)
    splits = [([a], [b]) for a, b in block_folds(blocks, folds=folds, buffer=BUFFER, seed=SEED)]
    return Maps([image], [labels], [blocks], splits)


def bench_alberta(
    data: Path, model: Model, twin: Encoder, ledger: Ledger, budget: Budget, *, folds: int
) -> dict[str, Any]:
    """Leave blocks of the scene out; its classes are rules on pixels, so it judges the codec."""
    folder = data / "scenes"
    cut = np.s_[:ALBERTA_EDGE, :ALBERTA_EDGE]
    image = _read(folder / "sentinel2_alberta.tif", range(1, len(ALBERTA) + 1))[:, *cut]
    labels = _codes(folder / "sentinel2_alberta_scl.tif")[cut]
    blocks = blocks_of(labels.shape, 2 * BLOCK)
    splits = [([a], [b]) for a, b in block_folds(blocks, folds=folds, buffer=BUFFER, seed=SEED)]
    maps = Maps([image], [labels], [blocks], splits)
    embedders = (embedder_of(model, ALBERTA), embedder_of(twin, ALBERTA))
    found = _compared("alberta", maps, embedders, model, ledger, budget)
    return {"task": f"Alberta's scene classification, blocks of {2 * BLOCK} pixels", **found}


def _compared(
    part: str,
    maps: Maps,
    embedders: tuple[Callable[[Image], Image], Callable[[Image], Image]],
    model: Model,
    ledger: Ledger,
    budget: Budget,
) -> dict[str, Any]:
    embeddings, sizes = embeddings_of(part, maps.images, embedders, model, ledger)
    rows: dict[str, Row] = {
        f"{name}, {decoder}": head_row(arrays, decoder, budget.decoder)
        for name, arrays in embeddings.items()
        for decoder in DECODERS
    }
    rows["raw bands of 5 x 5 pixels, random forest"] = _forest_row(maps.images)
    rows[UNET] = unet_of(maps, budget)
    rows["majority class"] = _majority

    counts: dict[str, NDArray[np.float32]] = {}
    parameters: dict[str, int | None] = {}
    with ledger.counting(part, len(rows) * len(maps.splits)):
        for name, row in rows.items():
            found = taken(part, name, row, maps, ledger)
            counts[name] = np.sum([f["confusions"] for f in found], axis=0)
            number = int(found[-1]["parameters"])
            parameters[name] = None if number < 0 else number
    there = counts[OURS].sum((1, 2)) > 0
    counts = {name: total[there] for name, total in counts.items()}
    table = estimates(counts, reference=OURS, metrics=METRICS, seed=SEED)
    rows_out = {n: {"parameters": parameters[n], "pixels": entry} for n, entry in table.items()}
    for rate, size in sizes.items():
        for decoder in DECODERS:
            rows_out[f"decoded {rate}, {decoder}"]["bytes_per_vector"] = round(size, 4)
    return {
        "unit": "block",
        "units": int(there.sum()),
        "folds": len(maps.splits),
        "unet_steps": budget.unet,
        "decoder_steps": budget.decoder,
        "rows": rows_out,
        "confusion": counts[OURS].sum(0).astype(int).tolist(),
        "classes": maps.classes.tolist(),
    }


def taken(
    part: str, name: str, row: Row, maps: Maps, ledger: Ledger
) -> list[dict[str, NDArray[Any]]]:
    """Return what a row found on each split, now or in an earlier run."""
    return [
        ledger.take(
            {"part": part, "row": name, "split": at, "of": len(maps.splits)},
            lambda split=split: maps.tested(row, split),
        )
        for at, split in enumerate(maps.splits)
    ]


def summed(part: str, name: str, row: Row, maps: Maps, ledger: Ledger) -> NDArray[np.float32]:
    """Return the confusions of a row by unit, of all splits."""
    return np.sum([f["confusions"] for f in taken(part, name, row, maps, ledger)], axis=0)


def unet_of(maps: Maps, budget: Budget) -> Row:
    """Return the row of a U-Net that is trained from scratch."""
    return _unet_row(maps.images, len(maps.classes), Schedule(budget.unet))


def embeddings_of(
    part: str,
    images: list[Image],
    embedders: tuple[Callable[[Image], Image], Callable[[Image], Image]],
    model: Model,
    ledger: Ledger,
) -> tuple[dict[str, list[Image]], dict[str, float]]:
    """Return embeddings (band, y, x) by row, and the bytes a vector of each rate."""
    features, untrained = (
        list(
            ledger.take(
                {"part": part, "embedding": name},
                lambda embed=embed: {f"{i:04d}": embed(image) for i, image in enumerate(images)},
            ).values()
        )
        for name, embed in zip(("trained", "untrained"), embedders, strict=True)
    )
    embeddings = {"float32": [rotate(f, model.basis) for f in features]}
    sizes = {}
    for rate in reversed(RATES):
        compressor = model.compressors[rate]
        coded = [compressor.encode(np.moveaxis(f, 0, -1)) for f in features]
        embeddings[f"decoded {rate}"] = [
            rotate(np.moveaxis(compressor.decode(c)[0], -1, 0), model.basis) for c in coded
        ]
        sizes[rate] = sum(map(len, coded)) / sum(f[0].size for f in features)
    return {**embeddings, "untrained twin, float32": untrained}, sizes


def head_row(embeddings: list[Image], decoder: str, steps: int) -> Row:
    """Return the row of a head on embeddings (band, y, x)."""
    arrays = [xr.DataArray(e, dims=("band", "y", "x")) for e in embeddings]

    def row(labels: list[Codes]) -> tuple[list[Codes], int | None]:
        head = Segmenter(decoder=decoder, C=0.03, max_iter=300, steps=steps)
        head.fit(arrays, labels)
        out = []
        for array, y in zip(arrays, labels, strict=True):
            found = head.predict(array).values
            factor = y.shape[0] // found.shape[0]
            known = np.where(found >= 0, head.classes_[found], -1)
            out.append(known.repeat(factor, 0).repeat(factor, 1))
        return out, head.n_parameters_

    return row


def _forest_row(images: list[Image]) -> Row:
    def around(image: Image) -> Image:
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
        return np.moveaxis(windows, 0, 2).reshape(*image.shape[1:], -1)

    def row(labels: list[Codes]) -> tuple[list[Codes], int | None]:
        features = [around(image) for image in images]
        X = np.concatenate([f[y >= 0] for f, y in zip(features, labels, strict=True)])
        y = np.concatenate([y[y >= 0] for y in labels])
        chosen = np.random.default_rng(SEED).permutation(len(y))[:PIXELS]
        forest = RandomForestClassifier(100, min_samples_leaf=2, n_jobs=-1, random_state=SEED)
        forest.fit(X[chosen], y[chosen])
        out = [forest.predict(f.reshape(-1, f.shape[-1])).reshape(f.shape[:2]) for f in features]
        return out, None

    return row


def _unet_row(images: list[Image], classes: int, schedule: Schedule) -> Row:
    def row(labels: list[Codes]) -> tuple[list[Codes], int | None]:
        inner = _numbered([blocks_of(y.shape, BLOCK) for y in labels])
        names = np.unique(np.concatenate([b[y >= 0] for b, y in zip(inner, labels, strict=True)]))
        held = np.random.default_rng(SEED).permutation(names)[: max(1, len(names) // 6)]
        apply, count = train_unet(
            images,
            labels,
            [(y >= 0).astype(np.float32) for y in labels],
            [np.isin(b, held) & (y >= 0) for b, y in zip(inner, labels, strict=True)],
            outputs=classes,
            loss=entropy,
            schedule=schedule,
            seed=SEED,
        )
        return [apply(image).argmax(0) for image in images], count

    return row


def _majority(labels: list[Codes]) -> tuple[list[Codes], int | None]:
    most = np.bincount(np.concatenate([y[y >= 0] for y in labels])).argmax()
    return [np.full(y.shape, most) for y in labels], 1


def embedder_of(
    source: Model | Encoder, bands: tuple[str, ...] | None = None
) -> Callable[[Image], Image]:
    """Return what embeds an image (band, y, x) of these bands, by default the encoder's six."""
    encoder = source.encoder if isinstance(source, Model) else source
    if bands is None:
        return lambda image: np.moveaxis(
            embed_tile(encoder, Tile(image, np.empty((0, 0), np.int64))), -1, 0
        )
    tiling = Tiling()

    def embed(image: Image) -> Image:
        margin = (tiling.margin, tiling.margin)
        padded = np.pad(image, ((0, 0), margin, margin), constant_values=np.nan)
        return embed_image(encoder, padded, bands=bands, gsd=10.0, tiling=tiling)

    return embed


def _read(path: Path, which: Any) -> Image:
    with rasterio.open(path) as dataset:
        return dataset.read(list(which)).astype(np.float32) / np.float32(1e4)


def _codes(path: Path) -> Codes:
    with rasterio.open(path) as dataset:
        return dataset.read(1).astype(np.int64)


def _numbered(blocks: list[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    """Give the blocks of several images numbers of their own."""
    out, first = [], 0
    for part in blocks:
        out.append(part + first)
        first += int(part.max()) + 1
    return out


def ledger_of(args: Any, model: Model, budget: Budget) -> Ledger:
    """Return where results are kept, and what they hang on."""
    told = {
        "weights": model.weights_sha256,
        "rates": {rate: model.compressors[rate].digest for rate in RATES},
        "unet_steps": budget.unet,
        "decoder_steps": budget.decoder,
    }
    return Ledger(args.work / "segmentation", told, [Path(__file__).parent])


def parts_of(args: Any, model: Model, twin: Encoder) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Give the parts of this task, by name."""
    budget = Budget(args.steps, args.decoder_steps)
    common = (args.data, model, twin, ledger_of(args, model, budget), budget)
    yield "terramesh", lambda: bench_terramesh(*common)
    yield "flood", lambda: bench_flood(*common, folds=args.folds)
    yield "alberta", lambda: bench_alberta(*common, folds=args.folds)
