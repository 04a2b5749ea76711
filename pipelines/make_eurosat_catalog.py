"""Encode EuroSAT's RGB images to the catalog that ships with the project.

    python pipelines/make_eurosat_catalog.py ../shared/data --out catalogs/eurosat

Reads ``OUT/split.csv`` (see ``make_eurosat_split.py``), writes ``OUT/embeddings.zarr``, sealed,
``OUT/README.md`` from measured values, and a STAC collection of it (``OUT/collection.json`` and
what it links to). An interrupted run is resumed.
"""

import argparse
import csv
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from main_job.scenes import disk_bytes
from rich.progress import Progress

import nec
from nec.catalog import Description, build
from nec.catalog.building import parse_interval
from nec.heads import SceneClassifier
from nec.scene import ImageCollection

STORE = "embeddings.zarr"
DESCRIPTION = Description(
    id="eurosat-rgb",
    title="EuroSAT RGB, compressed embeddings",
    licence="MIT",
    # From the launch of Sentinel-2A to the publication of the set (arXiv:1709.00029): the images
    # carry no dates.
    time=parse_interval("2015-06-23/2017-08-31"),
    # Around the 34 European countries that the images are of, islands included.
    bbox=(-31.5, 27.5, 40.5, 81.0),
    source_data="https://github.com/phelber/EuroSAT",
)

README = """# EuroSAT RGB, compressed embeddings

{images:,} images of EuroSAT as embeddings: {total_kb:,.0f} kB on disk in place of
{jpeg_mb:.1f} MB of JPEG. `embeddings.zarr` is a sealed Zarr v3 store of an image collection,
made by `pipelines/make_eurosat_catalog.py` with the model `{model}` (weights `{weights}...`)
at rate `{rate}`.

```python
import xarray as xr; from nec.heads import SceneClassifier    # pip install "nec[heads]"
ds = xr.open_zarr("catalogs/eurosat/embeddings.zarr")         # pip install nec
train, test = (ds.isel(sample=(ds.set == s).values) for s in ("train", "test"))
head = SceneClassifier().fit(train.scene_embedding, train.label)
print(head.score(test.scene_embedding, test.label))
```

That prints {accuracy:.3f}: a linear probe on the pooled vectors. Intervals, k-NN, uncompressed
features and pixel statistics on the same split: `docs/benchmarks/main_job.json`.

| array | dimensions | what | bytes an image |
|---|---|---|---|
| `embedding` | ({dims}) = {shape} | a vector for {patch} x {patch} pixels | {token_bytes:.2f} |
| `scene_embedding` | (sample, band) = {pooled_shape} | their mean | {scene_bytes:.2f} |

Coordinates of `sample`: `name`, `label`, `set`. Bands are components of an uncentred KLT (basis
`{basis}`), in order of importance; `ds.nec.features()` rotates back to the encoder's features.
The samples are in the order of `split.csv`. `collection.json` is a STAC collection with an item of
the store and one of the model; `nec catalog check` checks it.

## Measured

| | |
|---|---|
| payload: `embedding` / `scene_embedding` | {embedding:,} / {scene_embedding:,} bytes |
| fixed: metadata and tables / coordinates / basis / manifest | {fixed} bytes |
| bytes a vector of `embedding` | {per_vector:.4f} (float32: {float_bytes}) |
| cosine, decoded against original: mean / 1 % / minimum | {cosine} |
| JPEG files, bytes an image | {jpeg:,.0f} |

## Split

`split.csv` names every image of the RGB and the multispectral set of the development data, made
once by seed (`pipelines/make_eurosat_split.py`). About 30 % of each class are the test pool, which
no training of any kind sees: neither pretraining, nor rotation and tables, nor heads.
Near-duplicates, and images that occur in both sets, are on one side.

| class | train | test |
|---|---|---|
{classes}
| all | {train:,} | {test:,} |

## Source and licence

EuroSAT: Helber, Bischke, Dengel, Borth, "EuroSAT: A Novel Dataset and Deep Learning Benchmark for
Land Use and Land Cover Classification", IEEE JSTARS 2019; MIT licence. Contains modified
Copernicus Sentinel data. No pixels are in this folder. The development data hold about 1,100 of
the set's 2,000 to 3,000 images a class.

Format version {version}.
"""


def read_split(path: Path) -> list[dict[str, str]]:
    """Return the rows of the split that are RGB images, in its order."""
    with path.open() as stream:
        return [row for row in csv.DictReader(stream) if row["rgb"] == "1"]


def open_collection(folder: Path, rows: list[dict[str, str]]) -> ImageCollection:
    """Open the images with name, label and set as coordinates."""
    collection = ImageCollection.open(folder, files=[f"{r['label']}/{r['name']}.jpg" for r in rows])
    columns = {key: np.array([row[key] for row in rows]) for key in ("name", "label", "set")}
    return replace(collection, coordinates=columns)


def write_readme(out: Path, folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    """Measure the store and describe it; return what was measured."""
    store = out / STORE
    dataset = xr.open_zarr(store)
    info = dataset.nec.info
    size = disk_bytes(store)
    count = len(rows)
    jpeg = sum((folder / r["label"] / f"{r['name']}.jpg").stat().st_size for r in rows)
    train, test = (
        dataset.isel(sample=(dataset["set"] == side).values) for side in ("train", "test")
    )
    head = SceneClassifier().fit(train.scene_embedding, train.label)
    per_class = Counter((r["label"], r["set"]) for r in rows)
    labels = sorted({r["label"] for r in rows})
    embedding = dataset["embedding"]
    vectors = info["vectors"]
    fixed = [size["fixed"][k] for k in ("metadata", "coordinates", "basis", "manifest")]
    facts = {
        "images": count,
        "total_kb": size["total"] / 1e3,
        "jpeg_mb": jpeg / 1e6,
        "jpeg": jpeg / count,
        "model": info["model"],
        "weights": info["weights_sha256"][:12],
        "rate": info["rate"],
        "basis": info["basis"],
        "accuracy": head.score(test.scene_embedding, test.label),
        "dims": ", ".join(map(str, embedding.dims)),
        "shape": embedding.shape,
        "pooled_shape": dataset["scene_embedding"].shape,
        "patch": 64 // embedding.sizes["y"],
        "token_bytes": size["payload"]["embedding"] / count,
        "scene_bytes": size["payload"]["scene_embedding"] / count,
        "per_vector": size["payload"]["embedding"] / vectors,
        "float_bytes": 4 * embedding.sizes["band"],
        "cosine": " / ".join(f"{info['cosine'][k]:.4f}" for k in ("mean", "p01", "min")),
        "fixed": " / ".join(f"{v:,}" for v in fixed),
        "classes": "\n".join(
            f"| {k} | {per_class[k, 'train']:,} | {per_class[k, 'test']:,} |" for k in labels
        ),
        "train": train.sizes["sample"],
        "test": test.sizes["sample"],
        "version": info["format_version"],
        **size["payload"],
    }
    (out / "README.md").write_text(README.format(**facts))
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder that holds eurosat_rgb")
    parser.add_argument("--out", type=Path, default=Path("catalogs/eurosat"))
    parser.add_argument("--model", default="nec-tiny")
    parser.add_argument("--rate", default="low", help="low, medium, high, or bytes a vector")
    parser.add_argument("--replace", action="store_true", help="remove the store first")
    parser.add_argument("--limit", type=int, help="take so many images, to try it out")
    args = parser.parse_args()
    folder = args.data / "eurosat_rgb"
    rows = read_split(args.out / "split.csv")
    if args.limit is not None:
        rows = rows[:: max(1, len(rows) // args.limit)]
    store = args.out / STORE
    if args.replace and store.exists():
        shutil.rmtree(store)
    with Progress() as progress:
        bar = progress.add_task("encoding")
        report = nec.encode(
            open_collection(folder, rows),
            store,
            model=args.model,
            rate=args.rate,
            progress=lambda now: progress.update(bar, completed=now.tasks_done, total=now.tasks),
        )
    if report.failed:
        raise SystemExit(f"{report.failed} tasks failed: {report.failures}")
    nec.seal(store)
    facts = write_readme(args.out, folder, rows)
    build(args.out, description=DESCRIPTION)
    print(
        f"{facts['images']:,} images, {facts['total_kb']:,.0f} kB ({facts['jpeg_mb']:.1f} MB of "
        f"JPEG), linear probe {facts['accuracy']:.4f}, cosine {facts['cosine']}"
    )


if __name__ == "__main__":
    main()
