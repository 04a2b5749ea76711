"""Maps from embeddings: land cover of the TerraMesh tiles, water of the flood chip."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from encoder_bench.probes import TRIVIAL
from nec.encoders import Encoder
from nec.encoders.tiling import Tiling, embed_image
from nec.evaluate import spatial_blocks, spatial_folds
from nec.evaluate.intervals import confusions, estimates

BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
# Places of these bands among the 12 of an L2A file and the 13 of an L1C file.
L2A, L1C = (2, 3, 4, 8, 11, 12), (2, 3, 4, 8, 12, 13)
PATCH = 4
# Edge of a block of tokens, of the ring around test blocks that nothing is learned from, folds.
BLOCK, BUFFER, FOLDS, REPEATS = 8, 2, 4, 1
STRENGTHS = (0.003, 0.03, 0.3)
SEED = 13
OURS = "embedding, linear"

Vectors = NDArray[np.float32]
# Vectors of each row's tokens, and the head that is fitted to them.
Heads = dict[str, tuple[Vectors, Callable[..., Any]]]
# Tokens that train, and tokens that are tested.
Split = tuple[NDArray[np.bool_], NDArray[np.bool_]]


@dataclass(frozen=True)
class Tile:
    """An image and the majority class of each token (-1: none)."""

    image: NDArray[np.float32]
    labels: NDArray[np.int64]


Rows = Callable[[list[Tile]], Heads]


def read_tile(image: Path, labels: Path, which: tuple[int, ...], *, missing: int | None) -> Tile:
    """Read reflectance (band, y, x) and labels a token; `missing` is a label that is none."""
    with rasterio.open(image) as dataset:
        values = dataset.read(list(which)).astype(np.float32) / 1e4
    with rasterio.open(labels) as dataset:
        codes = dataset.read(1).astype(np.int64)
    h, w = (s // PATCH for s in codes.shape)
    cut = codes.reshape(h, PATCH, w, PATCH).transpose(0, 2, 1, 3).reshape(h, w, -1)
    classes = [c for c in np.unique(codes) if c != missing]
    votes = np.stack([(cut == c).sum(-1) for c in classes], axis=-1)
    found = np.array(classes)[votes.argmax(-1)]
    return Tile(values, np.where(votes.max(-1) > 0, found, -1))


def embed_tile(
    encoder: Encoder,
    tile: Tile,
    *,
    bands: tuple[str, ...] = BANDS,
    tiling: Tiling | None = None,
) -> Vectors:
    """Return the tokens of a tile, (y, x, dim)."""
    tiling = tiling or Tiling()
    height, width = tile.image.shape[1:]
    pad = [(tiling.margin, tiling.margin + -s % tiling.core) for s in (height, width)]
    padded = np.pad(tile.image, ((0, 0), *pad), constant_values=np.nan)
    found = embed_image(encoder, padded, bands=bands, gsd=10.0, tiling=tiling)
    return np.moveaxis(found, 0, -1)[: height // PATCH, : width // PATCH]


def pixels_around(tile: Tile) -> Vectors:
    """Return the 5 x 5 pixels around each token's middle, (y, x, 25 bands)."""
    padded = np.pad(tile.image, ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    middle = windows[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
    return np.moveaxis(middle, 0, 2).reshape(*middle.shape[1:3], -1)


def moments(tile: Tile) -> Vectors:
    """Return mean and deviation of each band in each token, (y, x, 2 bands)."""
    bands, height, width = tile.image.shape
    cut = tile.image.reshape(bands, height // PATCH, PATCH, width // PATCH, PATCH)
    return np.moveaxis(np.concatenate([cut.mean((2, 4)), cut.std((2, 4))]), 0, -1)


def tokens_around(tile: Tile) -> Vectors:
    """Return mean and deviation of the 5 x 5 patches around each token, (y, x, 50 bands)."""
    both = np.moveaxis(moments(tile), -1, 0)
    padded = np.pad(both, ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    return np.moveaxis(windows, 0, 2).reshape(*windows.shape[1:3], -1)


def _forest() -> Any:
    return RandomForestClassifier(100, min_samples_leaf=2, n_jobs=-1, random_state=SEED)


def _linear(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))


def bench_terramesh(data: Path, make_rows: Rows, *, reference: str = OURS) -> dict[str, Any]:
    """Leave one tile out, and blocks of all tiles."""
    tiles = terramesh_tiles(data)
    rows = make_rows(tiles)
    return {
        "tiles": tiles_left_out(tiles, rows, reference=reference),
        "blocks": blocks_left_out(tiles, rows, reference=reference),
    }


def terramesh_tiles(data: Path, which: tuple[int, ...] = L2A) -> list[Tile]:
    """Read the tiles, of the bands at these places, with their land cover."""
    folder = data / "terramesh"
    names = sorted(p.name for p in (folder / "S2L2A").glob("*.tif"))
    return [
        read_tile(folder / "S2L2A" / n, folder / "LULC" / n, which, missing=None) for n in names
    ]


def flood_tile(data: Path, which: tuple[int, ...] = L1C) -> Tile:
    """Read the flood chip, of the bands at these places, with its water."""
    folder, name = data / "flood", "Spain_7370579"
    return read_tile(
        folder / "S2" / f"{name}_S2Hand.tif",
        folder / "Labels" / f"{name}_LabelHand.tif",
        which,
        missing=-1,
    )


def tiles_left_out(tiles: list[Tile], rows: Heads, *, reference: str = OURS) -> dict[str, Any]:
    """Test land cover in each tile of several classes, learned in the others."""
    labels = np.concatenate([t.labels.ravel() for t in tiles])
    tile = np.concatenate([np.full(t.labels.size, i) for i, t in enumerate(tiles)])
    out = []
    for left in range(len(tiles)):
        train = tile != left
        known = np.isin(labels, np.unique(labels[train]))
        if np.unique(labels[~train & known]).size > 1:
            out.append((train, ~train & known))
    return {
        "task": "TerraMesh land cover, majority of each token, one tile left out "
        "(of each, the classes that the others have)",
        "splits": len(out),
        "rows": _table(rows, labels, out, token_blocks(tiles), reference),
    }


def blocks_left_out(tiles: list[Tile], rows: Heads, *, reference: str = OURS) -> dict[str, Any]:
    """Test land cover in blocks, learned around them in all tiles."""
    labels = np.concatenate([t.labels.ravel() for t in tiles])
    units = token_blocks(tiles)
    return {
        "task": f"TerraMesh land cover, blocks of {BLOCK} x {BLOCK} tokens left out",
        "splits": FOLDS * REPEATS,
        "rows": _table(rows, labels, block_splits(tiles, units), units, reference),
    }


def bench_flood(data: Path, make_rows: Rows, *, reference: str = OURS) -> dict[str, Any]:
    """Leave blocks of the chip out."""
    tile = flood_tile(data)
    units = token_blocks([tile])
    return {
        "task": f"Sen1Floods11 water, majority of each token, blocks of {BLOCK} x {BLOCK} tokens "
        "left out",
        "splits": FOLDS * REPEATS,
        "rows": _table(
            make_rows([tile]),
            tile.labels.ravel(),
            block_splits([tile], units),
            units,
            reference,
        ),
    }


def against_bands(encoder: Encoder, twin: Encoder) -> Rows:
    """Rows of an encoder, its untrained twin, and the bands around a token."""

    def rows(tiles: list[Tile]) -> Heads:
        ours = _flat(lambda t: embed_tile(encoder, t), tiles)
        untrained = _flat(lambda t: embed_tile(twin, t), tiles)
        pixels, tokens = _flat(pixels_around, tiles), _flat(tokens_around, tiles)
        found: Heads = {}
        for name, X in (("embedding", ours), ("untrained twin", untrained)):
            found |= {f"{name}, linear": (X, _linear), f"{name}, random forest": (X, _forest)}
        found["bands in 5 x 5 pixels, random forest"] = (pixels, _forest)
        found["bands in 5 x 5 patches, random forest"] = (tokens, _forest)
        found["bands in 5 x 5 patches, linear"] = (tokens, _linear)
        return found

    return rows


def linear_side_by_side(encoders: Mapping[str, Encoder]) -> Rows:
    """Rows of several encoders, each with a linear head."""
    return lambda tiles: {
        name: (_flat(lambda t, of=of: embed_tile(of, t), tiles), _linear)
        for name, of in encoders.items()
    }


def _flat(make: Callable[[Tile], Vectors], tiles: list[Tile]) -> Vectors:
    return np.concatenate([v.reshape(-1, v.shape[-1]) for v in map(make, tiles)])


def token_blocks(tiles: list[Tile]) -> NDArray[np.intp]:
    """Return the number of each token's block, those of all tiles counted through."""
    parts, first = [], 0
    for tile in tiles:
        y, x = np.indices(tile.labels.shape)
        parts.append(first + spatial_blocks(y.ravel(), x.ravel(), size=BLOCK))
        first = int(parts[-1].max()) + 1
    return np.concatenate(parts)


def block_splits(tiles: list[Tile], units: NDArray[np.intp]) -> list[Split]:
    """Deal the blocks into folds; tokens around a tested block train nothing."""
    rng = np.random.default_rng(SEED)
    ends = np.cumsum([t.labels.size for t in tiles])[:-1]
    splits = []
    for _ in range(REPEATS):
        fold = spatial_folds(units, folds=FOLDS, seed=rng)
        for f in range(FOLDS):
            test = fold == f
            near = [
                binary_dilation(part.reshape(t.labels.shape), np.ones((3, 3), bool), BUFFER).ravel()
                for part, t in zip(np.split(test, ends), tiles, strict=True)
            ]
            splits.append((~np.concatenate(near), test))
    return splits


def _table(
    rows: Heads,
    labels: NDArray[np.int64],
    splits: list[Split],
    units: NDArray[np.intp],
    reference: str,
) -> dict[str, dict[str, Any]]:
    classes, truth = np.unique(labels, return_inverse=True)
    shape = (int(units.max()) + 1, len(classes))
    counts = {name: np.zeros((shape[0], shape[1], shape[1]), np.float32) for name in rows}
    counts[TRIVIAL] = np.zeros_like(counts[reference])
    there = labels >= 0
    for train, test in ((a & there, b & there) for a, b in splits):
        for name, (X, make) in rows.items():
            head = _chosen(X, truth, train, units) if make is _linear else make()
            found = head.fit(X[train], truth[train]).predict(X[test])
            counts[name] += confusions(truth[test], found, units[test], shape)
        most = np.full(int(test.sum()), np.bincount(truth[train]).argmax())
        counts[TRIVIAL] += confusions(truth[test], most, units[test], shape)
    tested = counts[reference].sum((1, 2)) > 0
    counts = {name: total[tested] for name, total in counts.items()}
    return estimates(counts, reference=reference, metrics=("accuracy", "mean_iou"), seed=SEED)


def _chosen(
    X: Vectors, truth: NDArray[np.intp], train: NDArray[np.bool_], units: NDArray[np.intp]
) -> Any:
    """Choose the penalty on a quarter of the training blocks."""
    rng = np.random.default_rng(SEED + 1)  # not the folds' own
    validation = train & (rng.permutation(units.max() + 1)[units] % 4 == 0)
    fitted = train & ~validation
    scores = [
        _linear(c).fit(X[fitted], truth[fitted]).score(X[validation], truth[validation])
        for c in STRENGTHS
    ]
    return _linear(STRENGTHS[int(np.argmax(scores))])
