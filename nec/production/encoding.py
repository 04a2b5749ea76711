"""`encode`: one source to a store; `embed`: the same features in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec.compressor import Compressor
from nec.encoders.tiling import Tiling
from nec.errors import SceneError
from nec.model import Model, load_model
from nec.production.engine import Engine, cluster, one_torch_thread, threads
from nec.production.filling import Filling, fill, write_path
from nec.production.job import job_of
from nec.production.journal import Journal, Progress
from nec.production.measures import EncodeReport
from nec.production.task import Retries, writing
from nec.scene import ImageCollection


def encode(
    source: Any,
    store: str | Path,
    *,
    model: str | Path | Model | Compressor = "nec-tiny",
    rate: str | float | Path = "medium",
    bands: Any = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    mask: Any = None,
    mask_classes: Any = None,
    time: Any = None,
    crs: Any = None,
    gsd: float | None = None,
    tiling: Tiling | None = None,
    min_cosine: float | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    retries: Retries | None = None,
    log: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> EncodeReport:
    """Encode a source to a compressed store; run again after an interruption, it resumes.

    What of it fails is left out, recorded with its reason, and tried again by the next run.

    Parameters
    ----------
    source : path, list of paths, xarray object or ndarray
        A scene (see `nec.scene.open_scene`); a folder of images without a place, or an array
        (sample, band, y, x), as an image collection; or, where `model` is a `Compressor`, a
        DataArray of features with dims y, x, band and a CRS, or of vectors without a place, with
        dims sample, band: they become `scene_embedding`.
    store : path
        Folder of the new store, or of one that an interrupted run of the same fingerprint left.
    model : str, path, Model or Compressor
        See `nec.load_model`.
    rate : {"low", "medium", "high"}, float or path
        Of ``nec-tiny``, low is made for classes of scenes, high for maps and quantities. Bytes a
        vector where a number: the model's nearest rate. The file of a compressor (.json) that was
        fitted to the model's features.
    bands, scale, offset, nodata, mask, mask_classes, time, crs
        See `nec.scene.open_scene`.
    gsd : float, optional
        Ground sampling distance in metres, for images without a place (10 by default).
    tiling : Tiling, optional
        Chips and halo of a scene; the model's own by default.
    min_cosine : float, optional
        Smallest cosine between any vector and its decoded self, read at full resolution with all
        bands, 0.99999 at most: blocks that hold a worse one are coded finer. Two zero vectors
        agree (1), a zero vector and another do not (0).
    workers : int, optional
        Threads, each with one torch thread; the number of cores by default. Of no effect with
        `scheduler`, whose workers have threads of their own.
    scheduler : str, optional
        Address of a Dask scheduler (``tcp://host:8786``). Its workers need nec, and see source,
        model and store under the same paths.
    retries : Retries, optional
        Of readings and writings that fail.
    log : path, optional
        File that events are appended to as JSON lines, see `Journal`.
    progress : callable, optional
        Called with a `Progress` whenever a task is done.

    Returns
    -------
    EncodeReport

    Raises
    ------
    SceneError, ModelError, CompressorError
        If the source cannot be read, or the model cannot take it.
    StoreError
        If the store is sealed, foreign, or of another run, or the disk is full.
    SchedulerError
        If no scheduler answers.
    """
    job = job_of(
        source,
        model=model,
        rate=rate,
        min_cosine=min_cosine,
        bands=bands,
        scale=scale,
        offset=offset,
        nodata=nodata,
        mask=mask,
        mask_classes=mask_classes,
        time=time,
        crs=crs,
        gsd=gsd,
        tiling=tiling,
    )
    path = write_path(store)
    outcomes: list[EncodeReport] = []
    with Journal(1, progress=progress, log=None if log is None else Path(log)) as journal:
        with writing(path):
            filling = Filling(path.name, job, job.writer(path))
        with running(scheduler, workers, retries, active=bool(filling.left) and job.encodes) as on:
            journal.start(on)
            fill([filling], on, journal, finished=lambda _, report: outcomes.append(report))
        outcome = outcomes[0]
        journal.settled(path.name, bad=bool(outcome.failed), **outcome.summary())
        journal.write("end", failed=int(bool(outcome.failed)))
    return outcome


@contextmanager
def running(
    scheduler: str | None, workers: int | None, retries: Retries | None, *, active: bool = True
) -> Iterator[Engine]:
    """Open the engine of a run: a cluster where an address is given, else threads."""
    retries = retries or Retries()
    if scheduler is not None:
        with cluster(scheduler, retries) as engine:
            yield engine
        return
    with one_torch_thread(active=active), threads(workers, retries) as engine:
        yield engine


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
