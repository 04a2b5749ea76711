"""How many labels a head needs to match a U-Net, and what it is worth in another region."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from encoder_bench.dense import Tile, embed_tile
from ledger import Ledger
from numpy.typing import NDArray

from heads_bench.biomass import BLOCK, INNER, Hainich, cells_of, read_hainich
from heads_bench.classification import DRAWS, FRACTIONS, matched
from heads_bench.places import block_folds
from heads_bench.regression import MARGIN, SE_FLOOR, SEED, UNET, Floats, unet_row
from heads_bench.unet import Schedule
from nec.evaluate import transfer_curve
from nec.evaluate.intervals import estimates, misses
from nec.heads import BiomassRegressor
from nec.model import RATES, Model
from nec.rotation import rotate

# Bands of the BioMassters files: B2 B3 B4 B5 B6 B7 B8 B8A B11 B12; the encoder's six of them.
BIOMASSTERS = (1, 2, 3, 7, 9, 10)
COUNTS = (0, 10, 30, 100, 300)
# Edge of a block of the BioMassters chip, metres.
CHIP_BLOCK = 320.0


def bench_hainich_labels(
    data: Path, model: Model, work: Path, ledger: Ledger, *, folds: int, steps: int
) -> dict[str, Any]:
    """Compare heads of a share of the shots with a U-Net of all of them, on the same blocks.

    Draws of a share are averaged in the sums that intervals come from.
    """
    place = read_hainich(data, model, work)
    field, encoded = place.field, place.encoded
    arrays = {
        "float32": encoded.uncompressed(model),
        "decoded medium": encoded.decoded("medium"),
    }
    arrays = {name: place.on_cells(array) for name, array in arrays.items()}
    splits = block_folds(place.blocks, folds=folds, buffer=place.buffer, seed=SEED)
    truth = field.labels[0]
    there = ~np.isnan(truth)
    for array in arrays.values():
        there &= ~np.isnan(array.values).any(0)
    names, unit = np.unique(place.blocks[there], return_inverse=True)

    def unet(at: int) -> dict[str, NDArray[Any]]:
        train, test = splits[at]
        maps, count = unet_row(field, Schedule(steps))([train & ~np.isnan(truth)])
        return {"found": np.where(test, maps[0], np.nan), "parameters": np.array(count)}

    edge = cells_of(INNER)
    kept = {d: arrays["float32"].coords[d] for d in ("y", "x", "spatial_ref")}

    def placed(values: Floats) -> Any:
        array = arrays["float32"].isel(band=0, drop=True)
        return array.copy(data=values).assign_coords(kept)

    def head(name: str, fraction: float, draw: int) -> dict[str, NDArray[Any]]:
        found = np.full(truth.shape, np.nan)
        labels = 0
        for train, test in splits:
            chosen = np.flatnonzero(train & ~np.isnan(truth))
            order = np.random.default_rng(SEED + draw).permutation(chosen)
            some = np.full(truth.size, np.nan)
            at = order[: max(20, round(fraction * len(order)))]
            some[at] = truth.ravel()[at]
            labels += len(at)
            heads = [
                BiomassRegressor(
                    kernel_size=kernel, target_transform="none", block_size=edge, se_floor=SE_FLOOR
                ).fit(
                    arrays[name],
                    placed(some.reshape(truth.shape)),
                    standard_error=placed(field.errors[0]),
                )
                for kernel in (1, 3)
            ]
            best = min(heads, key=lambda h: h.held_out_rmse_)
            found = np.where(test, best.predict(arrays[name]).values, found)
        return {"found": found, "labels": np.array(labels / len(splits))}

    sums: dict[str, NDArray[np.float64]] = {}
    labels: dict[float, float] = {}
    steps_all = len(splits) + len(arrays) * len(FRACTIONS) * DRAWS
    with ledger.counting("hainich_labels", steps_all):
        fitted = [
            ledger.take(
                {"part": "hainich_labels", "unet": at, "of": len(splits), "steps": steps},
                lambda at=at: unet(at),
            )
            for at in range(len(splits))
        ]
        whole = np.nansum([f["found"] for f in fitted], axis=0)
        sums[UNET] = DRAWS * misses(truth[there], whole[there], unit, len(names))
        for name in arrays:
            for fraction in FRACTIONS:
                total = np.zeros_like(sums[UNET])
                for draw in range(DRAWS):
                    told = {"part": "hainich_labels", "row": name, "fraction": fraction}
                    result = ledger.take(
                        {**told, "draw": draw, "of": len(splits)},
                        lambda n=name, f=fraction, d=draw: head(n, f, d),
                    )
                    total += misses(truth[there], result["found"][there], unit, len(names))
                    labels[fraction] = float(result["labels"])
                sums[f"{name} | {fraction:g}"] = total
    table = estimates(sums, reference=UNET, metrics=("rmse", "r2"), seed=SEED, margin=MARGIN)
    curve: dict[str, Any] = {"reference": UNET, "draws": DRAWS, "margin": MARGIN["rmse"]}
    for name in arrays:
        points = []
        for fraction in FRACTIONS:
            error = table[f"{name} | {fraction:g}"]["rmse"]
            points.append({"fraction": fraction, "labels": round(labels[fraction]), **error})
        turned = [{**p, "difference": {"value": -p["difference"]["value"]}} for p in points]
        curve[name] = {"points": points, **matched(turned)}
    return {
        "task": "Aboveground biomass density, Hainich: heads of a share of the labels beside a "
        "U-Net of all of them, blocks of "
        f"{BLOCK / 1e3:g} km left out",
        "unit": "block",
        "units": len(names),
        "folds": len(splits),
        "unet_steps": steps,
        "parameters": int(fitted[0]["parameters"]),
        "rmse_of_reference": table[UNET]["rmse"],
        "label_curve": curve,
    }


def bench_transfer(data: Path, model: Model, work: Path) -> dict[str, Any]:
    """Fit biomass in one region, test in the other, with n labels from there; both ways."""
    place = read_hainich(data, model, work)
    rows, labels, groups, regions = [], [], [], []
    for rate in (None, "medium"):
        hainich = _of_hainich(place, model, rate)
        chip = _of_biomassters(data / "biomass" / "biomassters_0060c0a5", model, rate)
        rows.append(np.concatenate([hainich[0], chip[0]]))
        labels.append(np.concatenate([hainich[1], chip[1]]))
        groups.append(np.concatenate([hainich[2], hainich[2].max() + 1 + chip[2]]))
        regions.append(np.repeat(["hainich", "biomassters"], [len(hainich[1]), len(chip[1])]))
    found: dict[str, Any] = {}
    for at, rate in enumerate(("float32", "decoded medium")):
        for target in ("biomassters", "hainich"):
            head = BiomassRegressor(kernel_size=1, target_transform="none")
            curve = transfer_curve(
                head,
                rows[at],
                labels[at],
                regions[at],
                target=target,
                counts=COUNTS,
                groups=groups[at],
                seed=SEED,
            )
            means = curve.groupby("labels")[["score", "alone"]].agg(["mean", "min", "max"])
            found[f"{rate}, to {target}"] = [
                {
                    "labels_there": int(count),
                    **{
                        kind: {k: _number(row[kind, k]) for k in ("mean", "min", "max")}
                        for kind in ("score", "alone")
                    },
                }
                for count, row in means.iterrows()
            ]
    return {
        "task": "Aboveground biomass between the Hainich and a BioMassters chip: R2 in the one, "
        "learned in the other and from n labels there (score), or from these alone",
        "limits": "A demonstration: one chip of 2.6 km in Finland against one forest in Germany; "
        "lidar shots of 25 m on cells of 100 m against a map from airborne lidar; tokens of 100 m "
        "against tokens of 40 m. Repeats draw other labels and blocks of the same places, so "
        "their range is no interval over regions.",
        "repeats": 5,
        "curves": found,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)


def _of_hainich(
    place: Hainich, model: Model, rate: str | None
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    encoded = place.encoded
    array = encoded.uncompressed(model) if rate is None else encoded.decoded(rate)
    vectors, labels = place.on_cells(array).values, place.field.labels[0]
    there = ~np.isnan(labels) & ~np.isnan(vectors).any(0)
    return vectors[:, there].T, labels[there], place.blocks[there]


def _of_biomassters(
    folder: Path, model: Model, rate: str | None
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Return vectors, mean biomass and block of each token of the chip in August."""
    with rasterio.open(folder / f"{folder.name.split('_')[1]}_S2_08.tif") as file:
        image = file.read(list(BIOMASSTERS)).astype(np.float32) / np.float32(1e4)
    with rasterio.open(next(folder.glob("*_agbm.tif"))) as file:
        biomass = file.read(1).astype(np.float64)
    tokens = np.moveaxis(embed_tile(model.encoder, Tile(image, np.empty((0, 0), np.int64))), -1, 0)
    if rate is not None:
        compressor = model.compressors[rate]
        coded = compressor.encode(np.ascontiguousarray(np.moveaxis(tokens, 0, -1)))
        tokens = np.moveaxis(compressor.decode(coded)[0], -1, 0)
    patch = model.encoder.patch_size
    height, width = (s // patch for s in biomass.shape)
    means = biomass.reshape(height, patch, width, patch).mean((1, 3))
    edge = round(CHIP_BLOCK / (10.0 * patch))
    y, x = np.indices(means.shape) // edge
    return (
        rotate(tokens, model.basis).reshape(len(tokens), -1).T,
        means.ravel(),
        (y * (x.max() + 1) + x).ravel(),
    )


def parts_of(args: Any, model: Model) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Give the parts of this task, by name."""
    told = {
        "weights": model.weights_sha256,
        "rates": {rate: model.compressors[rate].digest for rate in RATES},
    }
    ledger = Ledger(args.work / "curves", told, [Path(__file__).parent])
    yield (
        "hainich_labels",
        lambda: bench_hainich_labels(
            args.data, model, args.work, ledger, folds=args.folds, steps=args.steps
        ),
    )
    yield "transfer", lambda: bench_transfer(args.data, model, args.work)
