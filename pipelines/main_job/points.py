"""Classes at points of the Calgary scene, cross-validated by spatial groups."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import rasterio
import xarray as xr
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nec
from main_job.scenes import EncodedScene
from main_job.segmentation import int8, token_bytes
from nec.evaluate.intervals import MARGIN, confusions, estimates
from nec.heads import SceneClassifier
from nec.model import RATES, Model

JOINED = 500.0  # metres: points nearer than this are in one group
BLOCK = 3000.0  # metres: a chip with its halo is 2,880 m
FOLDS = 5
REPEATS = 3
STRENGTHS = [0.01, 0.1, 1.0, 10.0]
SEED = 2


def bench_points(
    encoded: EncodedScene, points_file: Path, model: Model, twin: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Sample every row's vectors under the points, and cross-validate a classifier.

    Parameters
    ----------
    encoded : EncodedScene
    points_file : Path
        Points with a column `class`.
    model : Model
    twin : ndarray of shape (dim, y, x), optional
        Features of an untrained encoder.
    """
    points = geopandas.read_file(points_file)
    original = encoded.uncompressed(model)
    arrays: dict[str, xr.DataArray | Path] = {"float32": original}
    arrays["int8"] = original.copy(data=int8(original.values))
    arrays |= {f"decoded {rate}": encoded.stores[rate] for rate in RATES}
    if twin is not None:
        arrays["untrained twin, float32"] = encoded.placed(twin)
    tables = {name: nec.sample(array, points) for name, array in arrays.items()}
    pixels = encoded.pixels()
    tables["pixels"] = nec.sample(pixels, points)
    index = tables["float32"].index
    assert all(table.index.equals(index) for table in tables.values())
    vectors = {name: _vectors(table) for name, table in tables.items()}
    bands, patch = len(encoded.scene.bands), encoded.grid.patch
    raw = vectors.pop("pixels")
    means = raw.reshape(len(raw), bands, -1).mean(2)
    kept = points.loc[index]
    pixel_sets = {
        f"pixel under the point ({bands})": _pixel_values(encoded, kept, means),
        f"band means ({bands})": means,
        f"raw values ({bands * patch**2})": raw,
    }
    classes, truth = np.unique(kept["class"].to_numpy(str), return_inverse=True)
    groups = spatial_groups(kept)
    shape = (int(groups.max()) + 1, len(classes))

    counts = {}
    for name, rows in vectors.items():
        counts[name] = _validate(SceneClassifier(max_iter=2000), rows, truth, groups, shape)
    for name, rows in pixel_sets.items():
        linear = make_pipeline(StandardScaler(), _logistic())
        forest = RandomForestClassifier(100, random_state=SEED)
        counts[f"{name}, logistic regression"] = _validate(linear, rows, truth, groups, shape)
        counts[f"{name}, random forest"] = _validate(forest, rows, truth, groups, shape)
    counts["majority class"] = _majority(truth, groups, shape)
    table = estimates(
        counts, reference="float32", metrics=("accuracy", "balanced_accuracy"), seed=SEED
    )
    sizes = token_bytes(encoded, model)
    for name, entry in table.items():
        entry["bytes_per_token"] = round(sizes[name], 4) if name in sizes else None
    return {
        "task": "classes at points, Landsat 8",
        "classes": dict(zip(classes.tolist(), np.bincount(truth).tolist(), strict=True)),
        "points": len(points),
        "points_on_valid_tokens": len(index),
        "groups": shape[0],
        "group": f"points of a {BLOCK:g} m block; clusters (nearer than {JOINED:g} m) stay whole",
        "folds": FOLDS,
        "repeats": REPEATS,
        "tuned": f"C among {STRENGTHS}, leaf size 1 or 3 of forests, in grouped folds of each "
        "training part",
        "margin": MARGIN,
        "seed": SEED,
        "rows": table,
    }


def spatial_groups(points: geopandas.GeoDataFrame) -> NDArray[np.intp]:
    """Return the number of each point's group; whole groups are left out together."""
    metric = points.to_crs(points.estimate_utm_crs())
    place = np.column_stack([metric.geometry.x, metric.geometry.y])
    cluster = fcluster(linkage(place, "single"), JOINED, "distance")
    centre = pd.DataFrame(place).groupby(cluster).transform("mean").to_numpy()
    block = np.floor(centre / BLOCK).astype(int)
    return np.unique(block, axis=0, return_inverse=True)[1].ravel()


def _vectors(table: pd.DataFrame) -> NDArray[np.float32]:
    bands = [c for c in table.columns if str(c).startswith("band_")]
    return table[bands].to_numpy(np.float32)


def _pixel_values(
    encoded: EncodedScene, points: geopandas.GeoDataFrame, means: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the pixels under the points; the token's mean where that pixel is missing."""
    scene = encoded.scene
    image = scene.read(slice(None), slice(None))
    place = points.to_crs(str(scene.geobox.crs)).geometry
    transform = rasterio.Affine(*tuple(scene.geobox.affine)[:6])
    at = rasterio.transform.rowcol(transform, place.x, place.y)
    rows, columns = (
        np.clip(np.asarray(index, int), 0, size - 1)
        for index, size in zip(at, image.shape[1:], strict=True)
    )
    values = image[:, rows, columns].T
    return np.where(np.isnan(values), means, values)


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000)


def _grid(estimator: Any) -> dict[str, list[Any]]:
    names = estimator.get_params()
    if "C" in names:
        return {"C": STRENGTHS}
    if "logisticregression__C" in names:
        return {"logisticregression__C": STRENGTHS}
    return {"min_samples_leaf": [1, 3]}


def _validate(
    estimator: Any,
    rows: NDArray[np.float32],
    truth: NDArray[np.intp],
    groups: NDArray[np.intp],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Confusions by group, summed over repeats of grouped cross-validation."""
    total = np.zeros((shape[0], shape[1], shape[1]), np.float32)
    for repeat in range(REPEATS):
        outer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED + repeat)
        for train, test in outer.split(rows, truth, groups):
            inner = StratifiedGroupKFold(3, shuffle=True, random_state=SEED)
            search = GridSearchCV(estimator, _grid(estimator), cv=inner)
            search.fit(rows[train], truth[train], groups=groups[train])
            found = search.predict(rows[test])
            total += confusions(truth[test], found, groups[test], shape)
    return total


def _majority(
    truth: NDArray[np.intp], groups: NDArray[np.intp], shape: tuple[int, int]
) -> NDArray[np.float32]:
    total = np.zeros((shape[0], shape[1], shape[1]), np.float32)
    for repeat in range(REPEATS):
        outer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED + repeat)
        for train, test in outer.split(truth, truth, groups):
            most = np.bincount(truth[train]).argmax()
            total += confusions(truth[test], np.full(len(test), most), groups[test], shape)
    return total
