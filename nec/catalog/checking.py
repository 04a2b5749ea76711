"""Whether a catalog keeps to STAC and its extensions, and agrees with the stores; offline."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from pystac.errors import STACValidationError
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from nec.catalog.building import COLLECTION, interval_of, longitudes
from nec.catalog.facts import StoreFacts, find_stores, root_of
from nec.catalog.items import ASSET, EMBEDDINGS, item_of
from nec.catalog.rules import broken_rules
from nec.errors import CatalogError, NecError

# Degrees; releases of PROJ differ by less.
_TOLERANCE = 2e-6


def check(folder: str | Path) -> tuple[str, ...]:
    """Check the catalog of a folder of stores, without a network.

    Collection and items against the schemas of STAC's core; against the rules of the extensions
    that they declare; links; and every item against what its store says now: grid, footprint,
    time, bytes, model and weights, manifest. Whether a store's objects are as written is for
    `nec.verify`.

    Parameters
    ----------
    folder : path
        Of the stores, or one store: then of all that lie beside it.

    Returns
    -------
    tuple of str
        What is wrong, each with the file; empty where all is well.

    Raises
    ------
    CatalogError
        There is no catalog.
    """
    root = root_of(folder)
    if not (root / COLLECTION).is_file():
        raise CatalogError(f"{root} has no {COLLECTION}", f"run nec catalog build {folder}")
    return tuple(_Check(root).problems())


class _Check:
    """State of one check."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.core = JsonSchemaSTACValidator()
        self.described: set[Path] = set()

    def problems(self) -> Iterator[str]:
        """Yield what is wrong."""
        collection = yield from self._document(self.root / COLLECTION)
        if collection is None:
            return
        if EMBEDDINGS not in collection.get("stac_extensions", []):
            yield f"{COLLECTION} does not declare the embeddings extension"
            return
        yield from self._links(COLLECTION, self.root, collection)
        items = []
        for href in _hrefs(collection, "item"):
            path = self.root / href
            if path.is_file() and (item := (yield from self._document(path))) is not None:
                yield from self._links(href, path.parent, item)
                yield from self._item(path, item, collection)
                items.append(item)
        yield from _extent(collection, items)
        yield from self._models(collection, items)
        for store in find_stores(self.root):
            if store not in self.described:
                yield f"{store.relative_to(self.root)} is not in the catalog: build it again"

    def _document(self, path: Path) -> Generator[str, None, dict[str, Any] | None]:
        """Yield what is wrong with a document by itself; return it, None where it is unusable."""
        name = path.relative_to(self.root)
        try:
            document = json.loads(path.read_bytes())
            kind = pystac.STACObjectType(document["type"])
            self.core.validate_core(document, kind, document["stac_version"])
        except (ValueError, TypeError, KeyError) as error:
            yield f"{name} is no STAC object ({error!r})"
            return None
        except STACValidationError as error:
            for cause in error.source if isinstance(error.source, list) else [error]:
                yield f"{name}: {getattr(cause, 'message', cause)} (core)"
            return None
        for broken in broken_rules(document):
            yield f"{name}: {broken}"
        return dict(document)

    def _links(self, name: str, folder: Path, document: dict[str, Any]) -> Iterator[str]:
        for link in document["links"]:
            href = str(link["href"])
            if "://" in href:
                continue
            if Path(href).is_absolute():
                yield f"{name}: link {link['rel']} is absolute ({href})"
            elif not (folder / href).exists():
                yield f"{name}: link {link['rel']} leads nowhere ({href})"

    def _item(self, path: Path, item: dict[str, Any], collection: dict[str, Any]) -> Iterator[str]:
        name = path.relative_to(self.root)
        if item.get("collection") != collection["id"]:
            yield f"{name}: collection is {item.get('collection')}, not {collection['id']}"
        href = item["assets"].get(ASSET, {}).get("href", "")
        store = Path(os.path.normpath(path.parent / href))
        if not href or not store.is_dir() or not store.is_relative_to(self.root):
            yield f"{name}: its store {href} is not there"
            return
        self.described.add(store)
        try:
            facts = StoreFacts.read(store, self.root)
            # What only the model's card told when the catalog was built.
            patch = item["properties"].get("nec:patch")
            undated = None if facts.times else interval_of(pystac.Item.from_dict(item))
            expected = item_of(facts, undated=undated, patch=patch).to_dict()
        except (NecError, OSError) as error:
            yield f"{name}: {error}"
            return
        for what, is_now, should in _differences(item, expected):
            yield f"{name}: {what} is {_short(is_now)}, the store says {_short(should)}"
        for field, key in (("emb:dimensions", "geoemb:dimensions"), ("emb:type", "geoemb:type")):
            if collection.get(field) != facts.attributes[key]:
                yield f"{name}: its store has {field} {facts.attributes[key]}, the collection not"

    def _models(self, collection: dict[str, Any], items: list[dict[str, Any]]) -> Iterator[str]:
        digests = (item["properties"].get("nec:weights_sha256") for item in items)
        weights = {digest for digest in digests if digest is not None}
        for href in _hrefs(collection, "emb:model"):
            path = self.root / href
            if "://" in href or not path.is_file():
                continue
            if (model := (yield from self._document(path))) is None:
                continue
            named = {
                asset.get("file:checksum", "")[4:]
                for asset in model["assets"].values()
                if "mlm:model" in asset.get("roles", [])
            }
            if items and named != weights:
                yield f"{href}: weights are {_short(named)}, those of the stores {_short(weights)}"


def _hrefs(document: dict[str, Any], rel: str) -> list[str]:
    return [str(link["href"]) for link in document["links"] if link["rel"] == rel]


def _extent(collection: dict[str, Any], items: list[dict[str, Any]]) -> Iterator[str]:
    west, south, east, north = collection["extent"]["spatial"]["bbox"][0]
    for item in items:
        if (box := item.get("bbox")) is None:
            continue
        low, high = south - _TOLERANCE <= box[1], box[3] <= north + _TOLERANCE
        inside = longitudes([(west, east), (box[0], box[2])]) == (west, east)
        if not (low and high and inside):
            yield f"{COLLECTION}: extent {[west, south, east, north]} leaves out item {item['id']}"


def _differences(item: dict[str, Any], expected: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield fields that are not what the store says: name, value, right value.

    What an item says beyond its store is left to whoever added it.
    """
    for name in ("id", "bbox", "geometry"):
        if not _same(item.get(name), expected.get(name)):
            yield name, item.get(name), expected.get(name)
    for name, should in expected["properties"].items():
        is_now = item["properties"].get(name)
        if not _same(is_now, should):
            yield name, is_now, should
    for name, fields in expected["assets"].items():
        asset = item["assets"].get(name, {})
        for field, should in fields.items():
            if asset.get(field) != should:
                yield f"{field} of asset {name}", asset.get(field), should


def _same(one: Any, other: Any) -> bool:
    """Whether two values of JSON agree, numbers to the tolerance of a projection."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        try:
            return bool(np.isclose(float(one), float(other), rtol=1e-12, atol=_TOLERANCE))
        except (TypeError, ValueError):
            return False
    return bool(one == other)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
