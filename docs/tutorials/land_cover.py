"""A land-cover map from 50 points.

    python docs/tutorials/land_cover.py --data ../shared/data --out tutorial_output

With the development data the scene is Landsat 8 over Calgary with its labelled points; without,
a rendered scene with points made up from its pixels.
"""

import argparse
from pathlib import Path

import geopandas
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GroupShuffleSplit

import nec
from nec.evaluate import draw_label_curve, draw_map, label_curve, spatial_blocks
from nec.heads import DissimilarityIndex, SceneClassifier, write_map

LABELS = 50


def scene_and_points(data: Path | None, out: Path) -> tuple[Path, geopandas.GeoDataFrame, str]:
    """Return a scene, labelled points, and the column with the classes."""
    if data is not None:
        folder = data / "scenes"
        points = geopandas.read_file(folder / "landsat8_calgary_trainingPoints.shp")
        return folder / "landsat8_calgary.tif", points, points.columns[0]
    import rasterio

    from nec.rendered import render_scene

    path = render_scene(out / "rendered.tif", shape=(300, 260))
    rng = np.random.default_rng(0)
    with rasterio.open(path) as file:
        pixels, valid = file.read().astype(float), file.dataset_mask() > 0
        y, x = np.nonzero(valid)
        at = rng.permutation(len(y))[:300]
        # Two classes that anyone can see: bright and dark in the fourth band.
        value = pixels[3, y[at], x[at]]
        names = np.where(value > np.median(value), "bright", "dark")
        easting, northing = rasterio.transform.xy(file.transform, y[at], x[at])
        geometry = geopandas.points_from_xy(easting, northing, crs=file.crs)
    return path, geopandas.GeoDataFrame({"class": names}, geometry=geometry), "class"


def main(data: Path | None, out: Path) -> float:
    """Make the map and its plots in a folder; return the accuracy on points elsewhere."""
    out.mkdir(parents=True, exist_ok=True)
    scene, points, column = scene_and_points(data, out)

    # 1. Encode the scene once. A run that was interrupted goes on where it stopped.
    nec.encode(scene, out / "scene.zarr", rate="high")  # the rate of maps
    dataset = nec.open(out / "scene.zarr")

    # 2. The vector of the token under each point; only the chunks with points are read.
    table = nec.sample(dataset, points)
    vectors = table.filter(regex=r"^band_\d+$")
    labels = table[column].to_numpy()

    # 3. Points near to each other look alike: whole blocks of 2 km train or test.
    metric = geopandas.GeoDataFrame(table, geometry="geometry", crs=points.crs)
    place = metric.to_crs(metric.estimate_utm_crs()).geometry
    size = 2000.0 if len(set(place.x // 2000)) > 3 else 400.0
    blocks = spatial_blocks(place.x, place.y, size=size)
    splitter = GroupShuffleSplit(1, test_size=0.3, random_state=0)
    train, test = next(splitter.split(vectors, labels, blocks))
    train = np.random.default_rng(1).permutation(train)[:LABELS]

    # 4. A head learned from fifty of them; the table's attributes say in which basis.
    head = SceneClassifier(C=0.1)
    chosen = vectors.iloc[train]
    chosen.attrs = table.attrs
    head.fit(chosen, labels[train])
    accuracy = head.score(vectors.iloc[test], labels[test])
    print(f"{len(train)} labels: accuracy {accuracy:.3f} on {len(test)} points in other blocks")
    head.save(out / "head.safetensors")

    # 5. The map, chunk by chunk, and where it is an extrapolation.
    embedding = dataset["embedding"]
    embedding = embedding.isel(time=0) if "time" in embedding.dims else embedding
    classes = head.predict(embedding).compute()
    write_map(classes, out / "land_cover.tif")
    index = DissimilarityIndex().fit(chosen, groups=blocks[train])
    novelty = index.predict(embedding).compute()
    beyond = float((novelty > index.threshold_).sum() / novelty.notnull().sum())
    print(f"{beyond:.0%} of the map is unlike all training points")

    # 6. How many labels would have been enough?
    curve = label_curve(
        head, vectors, labels, groups=blocks, fractions=(0.05, 0.1, 0.3, 1.0), repeats=5
    )
    figure, axes = plt.subplots(1, 3, figsize=(17, 4.8), layout="constrained")
    there = classes.where(classes >= 0, drop=True)
    draw_map(classes.sel(y=there.y, x=there.x), ax=axes[0])
    draw_map(novelty.sel(y=there.y, x=there.x), ax=axes[1])
    draw_label_curve(curve, ax=axes[2])
    for ax, title in zip(axes, ("land cover", "dissimilarity", "label curve"), strict=True):
        ax.set_title(title)
    figure.savefig(out / "land_cover.png", dpi=110)
    plt.close(figure)
    return float(accuracy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tutorial_output/land_cover"))
    args = parser.parse_args()
    main(args.data, args.out)
