"""What a store that is there already is to a run: sealed, or of an earlier source."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nec.archive.creation import read_root
from nec.archive.metadata import merge
from nec.archive.receipts import FOLDER, Receipt
from nec.archive.temporaries import beside
from nec.errors import StoreError


def is_sealed(path: Path, fingerprint: str | None = None) -> bool:
    """Whether a sealed store is there, of this very run where one is named; damaged is none."""
    try:
        own = read_root(path)["attributes"]["nec"]
    except StoreError:
        return False
    return "seal" in own and fingerprint in (None, own["fingerprint"])


def is_of_earlier_source(path: Path, fingerprint: str, attributes: Mapping[str, Any]) -> bool:
    """Whether a store is what an earlier state of the same source left incomplete.

    So it is where it is not sealed, tells the same of itself as this run would (model, rate,
    bands, sources and all), is of another fingerprint, and some task of it failed: the source's
    contents were replaced since, and no run can complete the store any more.

    Parameters
    ----------
    path : Path
        Of the store.
    fingerprint : str
        This run's.
    attributes : mapping
        Root attributes that this run would give the store.
    """
    try:
        found = read_root(path)["attributes"]
    except StoreError:
        return False
    own = found["nec"]
    if "seal" in own or own["fingerprint"] == fingerprint:
        return False
    # How to install what reads it every store says in its own words, whatever its job does.
    told = {key: value for key, value in attributes["nec"].items() if key != "install"}
    return merge(found, {**attributes, "nec": told}) == found and any(
        receipt.status == "failed" for receipt in _receipts(path)
    )


def discard(path: Path) -> None:
    """Remove a store: at once for readers, and not by halves where this is cut short."""
    aside = beside(path)
    path.rename(aside)
    shutil.rmtree(aside)


def _receipts(path: Path) -> list[Receipt]:
    found = []
    for file in (path / FOLDER).glob("*.json"):
        try:
            found.append(Receipt.from_bytes(file.read_bytes(), str(file)))
        except StoreError:
            continue
    return found
