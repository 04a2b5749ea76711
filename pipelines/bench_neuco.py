"""Score nec-tiny at each rate as NeuCo-Bench does, on a small set of tasks made here.

    python pipelines/bench_neuco.py ../shared/data

The samples are the multispectral EuroSAT images of the fixed test pool, which no training has seen:
whether an image is forest, built up, cropland or water (classifications of two classes, as the
benchmark has them), and its mean vegetation index (a regression). Embeddings and labels go through
the benchmark's files, ``id,0,...,1023`` and ``TASK__KIND.csv``, which stay in --work for its own
program. Vectors are mean and roughness of decoded tokens; bytes are those of chunks of up to 100
images, an image's share. Beside stand statistics of the pixels. Writes
``docs/benchmarks/neuco.json``; ``write_rates_page.py`` makes the table of docs/rates.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from encoder_bench.classification import display
from encoder_bench.images import BATCH, ImageSet, eurosat_multispectral, image_tokens
from main_job.statistics import pixel_statistics
from numpy.typing import NDArray
from rich.progress import track

from nec.evaluate import neuco
from nec.heads.pooling import mean_and_roughness
from nec.model import Model, load_model

CHUNK = 100
CLASSES = {
    "forest": ("Forest",),
    "built": ("Residential", "Industrial", "Highway"),
    "crops": ("AnnualCrop", "PermanentCrop"),
    "water": ("River", "SeaLake"),
}
SEED = 37

Floats = NDArray[np.float32]


def write_tasks(folder: Path, ids: list[str], images: ImageSet) -> None:
    """Write the labels of all tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, classes in CLASSES.items():
        inside = np.isin(images.labels, classes).astype(int)
        neuco.write_labels(folder, task, "classification", ids, inside)
    red, nir = (images.images[:, images.bands.index(b)] for b in ("red", "nir"))
    index = ((nir - red) / np.maximum(nir + red, 1e-6)).mean((1, 2))
    neuco.write_labels(folder, "vegetation", "regression", ids, index)


def embeddings(model: Model, images: ImageSet) -> dict[str, tuple[Floats, float]]:
    """Return vectors and bytes an image of each row."""
    count = len(images.images)
    tokens = np.concatenate(
        [
            image_tokens(model.encoder, images, slice(at, at + BATCH))
            for at in range(0, count, BATCH)
        ]
    )
    features = np.ascontiguousarray(np.moveaxis(tokens, 1, -1), np.float32)
    rows = {"float32": (mean_and_roughness(tokens), float(features[0].nbytes))}
    for rate, compressor in reversed(model.compressors.items()):
        decoded, size = [], 0
        for at in range(0, count, CHUNK):
            data = compressor.encode(features[at : at + CHUNK])
            size += len(data)
            decoded.append(compressor.decode(data))
        pooled = mean_and_roughness(np.moveaxis(np.concatenate(decoded), -1, 1))
        rows[rate] = pooled, size / count
    statistics = pixel_statistics(display(images))
    spread = np.maximum(statistics.std(0), 1e-6)
    # The benchmark scales a file by one deviation, in which statistics of other units are lost.
    rows["statistics of the pixels"] = (statistics - statistics.mean(0)) / spread, 0.0
    return rows


def main() -> None:
    args = options()
    images = eurosat_multispectral(args.data, args.split)
    order = np.random.default_rng(SEED).permutation(np.flatnonzero(images.pool))
    images = images.some(order[: args.images])
    ids = [f"image{at:04d}" for at in range(len(images.labels))]
    model = load_model("nec-tiny")
    write_tasks(args.work / "labels", ids, images)
    rows: dict[str, Any] = {}
    for name, (vectors, size) in track(embeddings(model, images).items(), "scoring"):
        path = args.work / f"{name.replace(' ', '_')}.csv"
        neuco.write_embeddings(path, ids, vectors)
        table = neuco.score(
            neuco.read_embeddings(path),
            args.work / "labels",
            bytes_per_vector=size or None,
            splits=args.splits,
        )
        rows[name] = {
            "bytes_per_image": round(size, 1) or None,
            "tasks": table[["kind", "q", "mean", "std"]].round(4).to_dict("index"),
        }
        print(name, rows[name]["bytes_per_image"], table["q"].round(2).to_dict(), flush=True)
    results = {
        "weights_sha256": model.weights_sha256,
        "images": len(ids),
        "splits": args.splits,
        "vectors": "mean and roughness of the tokens",
        "rows": rows,
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the development data")
    parser.add_argument("--split", type=Path, default=Path("catalogs/eurosat/split.csv"))
    parser.add_argument("--images", type=int, help="of the test pool; all by default")
    parser.add_argument("--splits", type=int, default=neuco.SPLITS)
    parser.add_argument("--work", type=Path, default=Path("runs/neuco"), help="the files")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/neuco.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
