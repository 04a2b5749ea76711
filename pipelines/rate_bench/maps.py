"""Maps at each rate: classes or values of tokens by a linear head, on what is left of scenes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from encoder_bench.dense import (
    PATCH,
    Tile,
    block_splits,
    flood_tile,
    read_tile,
    terramesh_tiles,
    token_blocks,
)
from ledger import Ledger
from numpy.typing import NDArray

from nec.evaluate import compare_rates
from nec.evaluate.intervals import estimates
from rate_bench.bands import BAND_CODECS
from rate_bench.coders import STREAM, Floats
from rate_bench.eyes import L2A, Eye
from rate_bench.map_heads import Classes, MapHead, Values
from rate_bench.map_rows import Left, band_rows, learned_rows, token_rows
from rate_bench.rows import REFERENCE
from rate_bench.tasks import CODEC

# Bytes of a pixel and band that the encoder sees.
SAMPLE = 2
ALBERTA_EDGE = 768
SEED = 31
# What results hang on.
CODE = (
    *(
        Path(__file__).with_name(f"{name}.py")
        for name in ("maps", "map_heads", "map_rows", "coders", "bands", "eyes")
    ),
    *CODEC,
)
# Bands of an L1C file of 13, of the Alberta scene, and of a BioMassters file but for its clouds.
L1C = (*L2A[:10], "cirrus", *L2A[10:])
BIOMASSTERS = (*L2A[1:9], *L2A[10:])
ALBERTA = ("blue", "green", "red", "nir", "swir16")


@dataclass(frozen=True)
class MapTask:
    """Scenes, of the bands that an encoder sees, and what is asked of their tokens.

    The labels of the tiles are classes; other heads are given.
    """

    name: str
    title: str
    tiles: list[Tile]
    bands: tuple[str, ...]
    given: MapHead | None = None

    @property
    def head(self) -> MapHead:
        """What is asked."""
        return self.given or Classes.of(np.concatenate([t.labels.ravel() for t in self.tiles]))

    @property
    def raw_bytes(self) -> int:
        """Bytes of a token's raw pixels."""
        return SAMPLE * len(self.bands) * PATCH**2


def terramesh(data: Path, eye: Eye) -> MapTask:
    """Land cover of the TerraMesh tiles, by blocks."""
    tiles = terramesh_tiles(data, tuple(L2A.index(b) + 1 for b in eye.bands))
    return MapTask("terramesh", "TerraMesh land cover, blocks left out", tiles, eye.bands)


def flood(data: Path, eye: Eye) -> MapTask:
    """Water of the flood chip, by blocks."""
    tile = flood_tile(data, tuple(L1C.index(b) + 1 for b in eye.bands))
    return MapTask("flood", "Sen1Floods11 water, blocks left out", [tile], eye.bands)


def alberta(data: Path, eye: Eye) -> MapTask:
    """Scene classification of a part of the Alberta scene: rules on pixels, so codec loss only."""
    # Galileo takes its two bands of the short-wave infrared together.
    bands = ALBERTA if eye.shipped else ALBERTA[:4]
    folder = data / "scenes"
    which = tuple(ALBERTA.index(b) + 1 for b in bands)
    image, classes = folder / "sentinel2_alberta.tif", folder / "sentinel2_alberta_scl.tif"
    whole = read_tile(image, classes, which, missing=0)
    edge = ALBERTA_EDGE
    tile = Tile(whole.image[:, :edge, :edge], whole.labels[: edge // PATCH, : edge // PATCH])
    return MapTask("alberta", "Alberta's scene classification, blocks left out", [tile], bands)


def biomass(data: Path, eye: Eye) -> MapTask:
    """Biomass of the BioMassters chip, t/ha, from its image of August: mean of a token."""
    folder, name = data / "biomass" / "biomassters_0060c0a5", "0060c0a5"
    which = [BIOMASSTERS.index(b) + 1 for b in eye.bands]
    with rasterio.open(folder / f"{name}_S2_08.tif") as file:
        image = file.read(which).astype(np.float32) / np.float32(1e4)
    with rasterio.open(folder / f"{name}_agbm.tif") as file:
        values = file.read(1).astype(np.float64)
    height, width = (s // PATCH for s in values.shape)
    means = values.reshape(height, PATCH, width, PATCH).mean((1, 3))
    tile = Tile(image, np.zeros(means.shape, np.int64))
    title = "BioMassters biomass, blocks left out"
    return MapTask("biomass", title, [tile], eye.bands, Values(means.ravel()))


MAP_TASKS: dict[str, Callable[[Path, Eye], MapTask]] = {
    "terramesh": terramesh,
    "flood": flood,
    "alberta": alberta,
    "biomass": biomass,
}


def bench_maps(task: MapTask, eye: Eye, work: Path) -> dict[str, Any]:
    """Return the tables of a task: mean IoU and accuracy of every row, by bytes a token."""
    about = {"task": task.name, "eye": eye.name, "weights": eye.weights}
    ledger = Ledger(work / "maps", about, CODE)
    head, units = task.head, token_blocks(task.tiles)
    splits = block_splits(task.tiles, units)
    rows, missing = measured(task, eye, ledger, lambda v: head.tested(v, splits, units))
    counts = {name: sums for name, (sums, _) in rows.items()}
    counts[head.trivial] = head.guessed(splits, units)
    there = counts[f"{REFERENCE} | "].reshape(int(units.max()) + 1, -1).any(1)
    counts = {name: total[there] for name, total in counts.items()}
    table = estimates(counts, reference=f"{REFERENCE} | ", metrics=tuple(head.margins), seed=SEED)
    views = {}
    for metric, margin in head.margins.items():
        methods: dict[str, list[dict[str, Any]]] = {}
        for name, (_, (size, encode_ms, decode_ms)) in rows.items():
            method, setting = name.split(" | ")
            methods.setdefault(method, []).append(
                {
                    "setting": setting,
                    "bytes_per_token": round(size, 4),
                    "encode_ms": round(encode_ms, 5),
                    "decode_ms": round(decode_ms, 5),
                    "accuracy": table[name][metric],
                }
            )
        views[metric] = {
            "rows": methods,
            "trivial": {"name": head.trivial, **table[head.trivial][metric]},
            "comparisons": compared(methods, margin),
            "margin": margin,
        }
    return {
        "title": f"{task.title}: {eye.name}",
        "unit": "token",
        "tokens": {"scenes": len(task.tiles), "labelled": int(head.there.sum())},
        "blocks": int(there.sum()),
        "bands": list(task.bands),
        "raw_bytes": task.raw_bytes,
        "reference": REFERENCE,
        "views": views,
        "left_out": missing,
    }


def measured(
    task: MapTask, eye: Eye, ledger: Ledger, test: Callable[[Floats], NDArray[np.float32]]
) -> tuple[dict[str, tuple[NDArray[np.float32], list[float]]], list[str]]:
    """Return sums by unit and (bytes, encode ms, decode ms) of rows, and rows that cannot be."""
    tokens = ledger.take(
        {"tokens": ""},
        lambda: {f"{i:03d}": eye.embed(t.image, task.bands) for i, t in enumerate(task.tiles)},
    )
    grids = [tokens[key] for key in sorted(tokens)]
    rows = [
        *token_rows(grids, eye),
        *learned_rows(task.tiles, task.bands, eye),
        *band_rows(task.tiles, task.bands, eye),
    ]
    found: dict[str, tuple[NDArray[np.float32], list[float]]] = {}
    missing = []
    with ledger.counting(f"{task.name}, {eye.name}", len(rows)):
        for method, setting, make in rows:

            def made(make: Callable[[], Left] = make) -> dict[str, NDArray[Any]]:
                left = make()
                numbers = np.array([left.size, left.encode_ms, left.decode_ms])
                return {"sums": test(left.vectors), "numbers": numbers}

            name, digest = f"{method} | {setting}", eye.digest_of(method, setting)
            try:
                kept = ledger.take({"row": method, "setting": setting, "digest": digest}, made)
            except ModuleNotFoundError as error:
                missing.append(f"{method} {setting} ({error.name})")
                continue
            found[name] = (kept["sums"], kept["numbers"].tolist())
    return found, missing


def compared(methods: dict[str, list[dict[str, Any]]], margin: float) -> dict[str, Any]:
    """Compare methods with the transform codec and with the cheapest codec of raw bands."""
    coded = {m: r for m, r in methods.items() if "difference" in r[0]["accuracy"]}
    bases = {"transform codec": STREAM}
    of_bands = [c.name for c in BAND_CODECS if c.name in coded]
    size = "bytes_per_token"
    if of_bands:
        found = compare_rates(coded, base=of_bands[0], margin=margin, size=size)
        reached = {m: s for m in of_bands if (s := found[m]["bytes_at_margin"]) is not None}
        best = min(reached, key=reached.__getitem__) if reached else of_bands[0]
        bases["cheapest codec of bands"] = best
    return {
        kind: {
            "base": base,
            "methods": compare_rates(coded, base=base, margin=margin, size=size),
        }
        for kind, base in bases.items()
    }
