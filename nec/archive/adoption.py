"""Shards of one series taken over into another, where they are made of the same."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from nec.archive.creation import read_root
from nec.archive.receipts import StoredObject, load_receipt, read_object
from nec.archive.series import Fingerprints, stored_days
from nec.archive.writer import StoreWriter

logger = logging.getLogger(__name__)


def adopt(writer: StoreWriter, store: Path, day: np.datetime64) -> None:
    """Commit what another store holds of a day, for tasks that are of the same fingerprint.

    Parameters
    ----------
    writer : StoreWriter
        Bound to the day.
    store : Path
        A series of the same grid; nothing is taken from one that is absent, sealed (its receipts
        are gone) or of another run.
    day : numpy.datetime64
        The day, wherever it lies along `time` there.

    Raises
    ------
    StoreError
        What is there is damaged in its metadata or receipts.
    """
    if store.resolve() == writer.path.resolve() or not (store / "zarr.json").exists():
        return
    root = read_root(store)
    if "seal" in root["attributes"]["nec"]:
        logger.warning("%s is sealed: nothing can be taken over from it", store)
        return
    index = {known: at for at, known in enumerate(stored_days(store))}
    if day not in index:
        return
    theirs, own = Fingerprints(store, root), writer.receipts()
    for task in writer.tasks():
        other, wanted = replace(task, time=index[day]), writer.fingerprint_of(task)
        if (task in own and own[task].status != "failed") or theirs.of(other) != wanted:
            continue
        receipt = load_receipt(store, other)
        if receipt is None or receipt.status == "failed" or receipt.fingerprint != wanted:
            continue
        keys = {array.key(other): array.key(task) for array in writer.layout.arrays()}
        found = {key: read_object(store / key) for key in receipt.objects}
        objects = {key: data for key, data in found.items() if data is not None}
        if {key: StoredObject.of(data) for key, data in objects.items()} == receipt.objects:
            renamed = {keys[key]: data for key, data in objects.items()}
            writer.commit(task, renamed, figures=receipt.figures)
