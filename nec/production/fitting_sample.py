"""Features of a sample of a scene, to fit a compressor to."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nec.archive import Task
from nec.errors import SceneError
from nec.model import Model, load_model
from nec.production.features import Stopwatch
from nec.production.job import scene_source
from nec.scene import Scene, open_scene


def sample_features(
    source: str | Path | Scene, *, model: str | Path | Model = "nec-tiny", tasks: int = 4
) -> list[NDArray[np.float32]]:
    """Embed a part of a scene: evenly spread shards of it.

    Parameters
    ----------
    source : path or Scene
        See `nec.scene.open_scene`.
    model : str, path or Model
        See `nec.load_model`.
    tasks : int
        How many shards (256 x 256 tokens) to embed.

    Returns
    -------
    list of ndarray of shape (y, x, dim), float32
        Features; NaN where missing. What `nec.Compressor.fit` takes.

    Raises
    ------
    SceneError
        If nothing of the sample is valid.
    """
    model = model if isinstance(model, Model) else load_model(model)
    scene = source if isinstance(source, Scene) else open_scene(source)
    features = scene_source(scene, model, model.tiling)
    rows, columns = features.grid.shape
    shard = features.grid.shard
    inside = [
        task
        for row in range(-(-rows // shard))
        for column in range(-(-columns // shard))
        if features.size(task := Task(row, column)).pixels
    ]
    chosen = np.linspace(0, len(inside) - 1, min(tasks, len(inside))).round().astype(int)
    parts = [features.features(inside[i], Stopwatch()) for i in chosen]
    valid = [part for part in parts if not np.isnan(part).all()]
    if not valid:
        raise SceneError(f"{scene.name}: nothing of the sample is valid", "give another scene")
    return [np.moveaxis(part, 0, -1) for part in valid]
