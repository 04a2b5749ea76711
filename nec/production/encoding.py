"""`encode`: fill a store task by task; `embed`: the same features in memory."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray

from nec.archive import StoreWriter, Task
from nec.codec import NecCodec
from nec.compressor import Compressor
from nec.encoders.tiling import Tiling
from nec.errors import CompressorError, NecError, SceneError
from nec.model import Model, load_model
from nec.production.job import Job, collection_job, embedding_job, scene_job
from nec.production.measures import EncodeReport, report, task_figures
from nec.rotation import rotate
from nec.scene import ImageCollection, Scene, is_collection, open_scene

log = logging.getLogger(__name__)


def encode(
    source: Any,
    store: str | Path,
    *,
    model: str | Path | Model | Compressor = "nec-tiny",
    rate: str | float = "medium",
    bands: Any = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    mask: Any = None,
    time: Any = None,
    crs: Any = None,
    gsd: float | None = None,
    tiling: Tiling | None = None,
    min_cosine: float | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode a source to a compressed store; run again after an interruption, it resumes.

    Parameters
    ----------
    source : path, list of paths, xarray object or ndarray
        A scene (see `nec.scene.open_scene`); a folder of images without a place, or an array
        (sample, band, y, x), as an image collection; or, where `model` is a `Compressor`, a
        DataArray of features with dims y, x, band and a CRS.
    store : path
        Folder of the new store, or of one that an interrupted run of the same fingerprint left.
    model : str, path, Model or Compressor
    rate : {"low", "medium", "high"} or float
        Bytes a vector where a number: the model's nearest rate.
    bands, scale, offset, nodata, mask, time, crs
        See `nec.scene.open_scene`.
    gsd : float, optional
        Ground sampling distance in metres, for images without a place (10 by default).
    tiling : Tiling, optional
        Chips and halo of a scene.
    min_cosine : float, optional
        Smallest cosine between any vector and its decoded self, read at full resolution with all
        bands, 0.99999 at most: blocks that hold a worse one are coded finer. Two zero vectors
        agree (1), a zero vector and another do not (0).
    workers : int, optional
        Threads, each with one torch thread; the number of cores by default.
    progress : callable, optional
        Called with (tasks done, tasks in all) after every task.

    Returns
    -------
    EncodeReport

    Raises
    ------
    SceneError, ModelError, CompressorError
        If the source cannot be read, or the model cannot take it.
    StoreError
        If the store is sealed, foreign, or of another run.
    """
    given = {
        "rate": None if rate == "medium" else rate,
        "bands": bands,
        "scale": scale,
        "offset": offset,
        "nodata": nodata,
        "mask": mask,
        "time": time,
        "crs": crs,
        "gsd": gsd,
        "tiling": tiling,
    }
    given = {name: value for name, value in given.items() if value is not None}

    def only(kind: str, *names: str) -> dict[str, Any]:
        """Return the options of a kind of source; refuse the others rather than drop them."""
        if others := [name for name in given if name not in (*names, "rate")]:
            raise SceneError(f"{kind} takes no {others[0]}=", "leave it out")
        return {name: given[name] for name in names if name in given}

    if isinstance(model, Compressor):
        if "rate" in given:
            raise CompressorError("a Compressor has one rate", "leave out rate=")
        only("an embedding array")
        job = embedding_job(source, model.guarded(min_cosine))
    else:
        model = model if isinstance(model, Model) else load_model(model)
        if is_collection(source):
            options = only("an image collection", "bands", "gsd", "scale", "offset")
            collection = ImageCollection.open(source, **options)
            job = collection_job(collection, model, rate, min_cosine)
        elif isinstance(source, Scene):
            only("an open scene", "tiling")
            job = scene_job(source, model, rate, tiling or Tiling(), min_cosine)
        else:
            names = ("bands", "scale", "offset", "nodata", "mask", "time", "crs")
            options = only("a scene", *names, "tiling")
            options.pop("tiling", None)
            scene = open_scene(source, **options)
            job = scene_job(scene, model, rate, tiling or Tiling(), min_cosine)
    return _run(job, Path(store), workers=workers or os.cpu_count() or 1, progress=progress)


def embed(
    images: Any, *, model: str | Path | Model = "nec-tiny", bands: Sequence[str], gsd: float = 10.0
) -> NDArray[np.float32]:
    """Embed images in memory, uncompressed.

    Parameters
    ----------
    images : array of shape (n, band, y, x)
        Reflectance (uint8 counts as display values of 0 to 255), no missing values; y and x are
        multiples of the model's patch size.
    model : str, path or Model
    bands : sequence of str
        Common name of each band.
    gsd : float
        Metres.

    Returns
    -------
    ndarray of shape (n, dim, y / patch, x / patch), float32
        Features, not rotated.

    Raises
    ------
    ModelError, SceneError
        If the bands or the shape do not fit, or a value is missing.
    """
    import torch

    model = model if isinstance(model, Model) else load_model(model)
    collection = ImageCollection.open(np.asarray(images), bands=bands, gsd=gsd)
    parts = []
    batch = Tiling().batch
    for at in range(0, len(collection), batch):
        chips = collection.read(at, at + batch)
        if np.isnan(chips).any():
            raise SceneError("the images hold missing values", "fill them, or encode to a store")
        tokens = model.encoder.embed(torch.from_numpy(chips), bands=tuple(bands), gsd=gsd)
        parts.append(tokens.cpu().numpy())
    return np.concatenate(parts)


def _run(
    job: Job,
    store: Path,
    *,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> EncodeReport:
    compressor = job.compressor
    codec, scene_codec = NecCodec(compressor.coding), NecCodec(compressor.scene_coding)
    text = json.dumps(job.fingerprint, sort_keys=True)
    writer = StoreWriter.create_or_resume(
        store,
        job.layout,
        codec=codec,
        scene_codec=scene_codec,
        attributes=job.attributes,
        basis=np.ascontiguousarray(compressor.basis.T),
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )
    tasks, pending = job.layout.tasks(), writer.pending()
    done, lock = len(tasks) - len(pending), Lock()
    resumed = done

    def work(task: Task) -> None:
        nonlocal done
        try:
            _encode_task(job, writer, task)
        except (NecError, OSError) as error:
            log.warning("task %s failed: %s", task.name, error)
            writer.fail(task, str(error))
        with lock:
            done += 1
            if progress is not None:
                progress(done, len(tasks))

    if progress is not None:
        progress(done, len(tasks))
    with _one_torch_thread(active=bool(pending) and job.encodes):
        # Threads share the model; each task puts one shard and its receipt.
        compute(
            *[delayed(work)(task) for task in pending],
            scheduler="threads",
            num_workers=workers,
        )
    outcome = report(writer, store, resumed)
    own = {
        "cosine": {
            "mean": outcome.cosine_mean,
            "p01": outcome.cosine_p01,
            "min": outcome.cosine_min,
        },
        "vectors": outcome.vectors,
        "bytes_per_vector": sum(outcome.payload_bytes.values()) / max(outcome.vectors, 1),
    }
    if outcome.seam:
        own["seam"] = outcome.seam
    writer.finish({"nec": _without_nan(own)})
    if outcome.vectors == 0 and not outcome.failed:
        log.warning("%s holds no valid vector: the source is all nodata", store)
    return outcome


@contextmanager
def _one_torch_thread(*, active: bool) -> Iterator[None]:
    """Give torch one thread while ours share the cores: 2 x 1 beats 1 x 2."""
    if not active:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _encode_task(job: Job, writer: StoreWriter, task: Task) -> None:
    features = job.features(task)
    embedding = rotate(features, job.compressor.basis)
    if np.isnan(embedding).any(-3).all():
        writer.write(task, None, None)
        return
    pooled = rotate(job.pooled(features), job.compressor.basis)
    objects = writer.encode(task, embedding, pooled)
    # What is measured is what a reader will get: the coded bytes, decoded.
    decoded = writer.decode(task, objects).reshape(embedding.shape)
    figures = task_figures(features, embedding, decoded, job.tokens_per_chip)
    writer.commit(task, objects, figures=figures)


def _without_nan(value: Any) -> Any:
    """Return JSON types with NaN as None and floats rounded to what is significant."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value
