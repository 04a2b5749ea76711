"""Make ``catalogs/eurosat/split.csv``: the one fixed test pool of EuroSAT, by seed.

30 % of the images of every class go to the test pool, which no training of any kind sees.
Near-duplicates, and images that occur in both the RGB and the multispectral set (same name),
stay on one side. Needs the images:

    python pipelines/make_eurosat_split.py ../shared/data --out catalogs/eurosat/split.csv
"""

import argparse
import csv
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

TEST_FRACTION = 0.3
SEED = 20260101
# Root-mean-square difference of 8-bit 16 x 16 thumbnails under which two images are one.
NEAR_DUPLICATE_RMS = 2.5


def thumbnail(path: Path) -> np.ndarray:
    """Return a (16 * 16 * 3) thumbnail of an RGB jpg, 8-bit units."""
    with Image.open(path) as image:
        return np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float32).ravel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder that holds eurosat_rgb and eurosat_ms")
    parser.add_argument("--out", type=Path, default=Path("catalogs/eurosat/split.csv"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)

    rgb = sorted((args.data / "eurosat_rgb").glob("*/*.jpg"))
    multispectral = {p.stem for p in (args.data / "eurosat_ms").glob("*/*.tif")}
    names = sorted({p.stem for p in rgb} | multispectral)
    position = {name: i for i, name in enumerate(names)}

    thumbs = np.stack([thumbnail(p) for p in rgb])
    radius = NEAR_DUPLICATE_RMS * np.sqrt(thumbs.shape[1])
    pairs = NearestNeighbors(radius=radius).fit(thumbs).radius_neighbors_graph(thumbs).tocoo()
    index = np.array([position[p.stem] for p in rgb])
    label_of = [name.rsplit("_", 1)[0] for name in names]
    # Smooth water and forest look alike anywhere: thumbnails join only textured images.
    texture = thumbs.reshape(-1, 16 * 16, 3).std(axis=1).mean(axis=1)
    textured = texture > 2 * NEAR_DUPLICATE_RMS
    keep = textured[pairs.row] & textured[pairs.col]
    graph = coo_array(
        (np.ones(keep.sum(), bool), (index[pairs.row[keep]], index[pairs.col[keep]])),
        shape=(len(names), len(names)),
    )
    count, group = connected_components(graph, directed=False)

    rng = np.random.default_rng(SEED)
    side = np.array(["train"] * len(names), dtype=object)
    labels = np.array(label_of)
    for label in np.unique(labels):
        groups = rng.permutation(np.unique(group[labels == label]))
        wanted = TEST_FRACTION * (labels == label).sum()
        taken = 0
        for g in groups:
            if taken >= wanted:
                break
            members = group == g
            if (side[members] == "test").any():
                continue
            side[members] = "test"
            taken += int((members & (labels == label)).sum())

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["name", "label", "set", "rgb", "multispectral"])
        in_rgb = {p.stem for p in rgb}
        for name, label, s in zip(names, label_of, side, strict=True):
            writer.writerow([name, label, s, int(name in in_rgb), int(name in multispectral)])
    print(
        f"{len(names)} names, {count} groups of near-duplicates or single images, "
        f"largest {np.bincount(group).max()}; test: {(side == 'test').sum()}"
    )


if __name__ == "__main__":
    main()
