"""What a store says of itself, as far as a catalog repeats it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nec.archive import open_store
from nec.archive.creation import read_root
from nec.archive.manifest import KEY, check_seal
from nec.archive.metadata import sha256
from nec.archive.reader import read_steps
from nec.archive.receipts import read_object
from nec.archive.series import is_series
from nec.errors import CatalogError

ROOT = "zarr.json"


@dataclass(frozen=True)
class StoreFacts:
    """A store of a folder, from its metadata and the sizes of its files.

    Attributes
    ----------
    path : Path
        The store.
    name : str
        Path from the folder, without the suffix, ``/`` between its parts.
    root : dict
        The root ``zarr.json``.
    """

    path: Path
    name: str
    root: dict[str, Any]

    @classmethod
    def read(cls, path: Path, folder: Path) -> "StoreFacts":
        """Read a store's metadata, and check them.

        Raises
        ------
        StoreError
            It is foreign, of an unknown version or damaged, or its manifest is.
        CatalogError
            It is unfinished.
        """
        root = read_root(path)
        own = root["attributes"]["nec"]
        if "tasks" not in own:
            raise CatalogError(f"{path} is unfinished", "run the same nec encode again")
        if "seal" in own:
            check_seal(read_object(path / KEY), root, str(path))
        return cls(path, path.relative_to(folder).as_posix().removesuffix(".zarr"), root)

    @property
    def attributes(self) -> dict[str, Any]:
        """Root attributes."""
        return dict(self.root["attributes"])

    @property
    def own(self) -> dict[str, Any]:
        """The `nec` block."""
        return dict(self.root["attributes"]["nec"])

    @property
    def id(self) -> str:
        """Id of the store's item: its name in one word."""
        return self.name.replace("/", "_")

    @property
    def bands(self) -> int:
        """Components of a vector in the store."""
        return int(self.attributes["geoemb:dimensions"])

    @property
    def features(self) -> int:
        """Features of the encoder, which the basis rotates."""
        metadata = self.root["consolidated_metadata"]["metadata"]
        return int(metadata["nec/basis"]["shape"][1]) if "nec/basis" in metadata else self.bands

    @property
    def identity(self) -> dict[str, Any]:
        """What all stores of a collection share."""
        return {
            "model": self.own.get("model", "unknown"),
            "weights": self.own.get("weights_sha256"),
            "basis": self.own.get("basis"),
            "dimensions": self.bands,
            "type": self.attributes["geoemb:type"],
        }

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the files that the store was made from; of a series, of all its scenes."""
        if not is_series(self.root):
            return tuple(self.own.get("sources", ()))
        scenes = (scene for step in read_steps(self.path) for scene in step.scenes)
        return tuple(dict.fromkeys(name for s in scenes for name in s.details.get("sources", ())))

    @cached_property
    def dataset(self) -> xr.Dataset:
        """The store, opened and checked as it is read."""
        return open_store(self.path)

    @cached_property
    def times(self) -> tuple[datetime, ...]:
        """Times of acquisition, UTC, in order; none of an undated store."""
        if "time" not in self.dataset.coords:
            return ()
        seconds = np.unique(self.dataset["time"].to_numpy().astype("datetime64[s]"))
        return tuple(datetime.fromtimestamp(int(s), UTC) for s in seconds.astype(np.int64))

    @cached_property
    def size(self) -> int:
        """Bytes on disk, of all files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def files(self) -> Iterator[tuple[str, str, int, str]]:
        """Yield name, key, bytes and SHA-256 of the files that vouch for all others."""
        keys = {"metadata": ROOT} | ({"manifest": KEY} if "seal" in self.own else {})
        for name, key in keys.items():
            data = (self.path / key).read_bytes()
            yield name, key, len(data), sha256(data)


def find_stores(folder: Path) -> list[Path]:
    """List the Zarr groups of a folder, in order of their paths; hidden entries do not count."""
    found = []
    for here, folders, files in os.walk(folder):
        if ROOT in files:
            found.append(Path(here))
            folders.clear()
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)


def root_of(folder: str | Path) -> Path:
    """Return the folder of a catalog: the one that is given, or the one that a store lies in.

    Raises
    ------
    CatalogError
        It is no folder.
    """
    path = Path(folder).absolute()
    if not path.is_dir():
        raise CatalogError(f"{folder} is no folder", "pass the folder that the stores lie in")
    return path.parent if (path / ROOT).is_file() else path
