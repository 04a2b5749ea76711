"""A folder of stores as a STAC Collection: `collection.json`, an item beside each store."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pystac
from pystac.stac_io import DefaultStacIO

from nec.archive.temporaries import put
from nec.catalog.facts import StoreFacts, find_stores, root_of
from nec.catalog.items import ASSET, EMBEDDINGS, ZARR_TYPE, Interval, item_of
from nec.catalog.model_item import FOLDER, known_model, model_item, patch_of
from nec.errors import CatalogError, NecError
from nec.model import Model

COLLECTION = "collection.json"
SOURCES = "sources.csv"
#: Field of a collection that `build` wrote, and may write again: what it was told.
MARK = "nec:catalog"
_WORLD = [-180.0, -90.0, 180.0, 90.0]
# What `data_type`, `emb:type` and the like are of one store and so of all.
_SHARED = {
    "emb:type": "geoemb:type",
    "emb:dimensions": "geoemb:dimensions",
    "data_type": "geoemb:data_type",
}


@dataclass(frozen=True)
class Description:
    """What stores do not know of themselves; what is None holds as an earlier `build` was told.

    Attributes
    ----------
    id : str, optional
        Of the collection; else the folder's name.
    title, description : str, optional
        Else made from the stores.
    licence : str, optional
        SPDX identifier; else ``other``.
    time : tuple of datetime, optional
        When stores without a time were taken, the first and the last instant, UTC.
    bbox : sequence of float, optional
        West, south, east, north of what has no place, degrees; else the whole world.
    source_data : str, optional
        URL of the imagery, best of its STAC collection; else a list of file names, `sources.csv`.
    """

    id: str | None = None
    title: str | None = None
    description: str | None = None
    licence: str | None = None
    time: Interval | None = None
    bbox: Sequence[float] | None = None
    source_data: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Write what is told as JSON."""
        told = {name: value for name, value in vars(self).items() if value is not None}
        if self.time is not None:
            told["time"] = "/".join(map(pystac.utils.datetime_to_str, self.time))
        return told | ({} if self.bbox is None else {"bbox": list(self.bbox)})

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "Description":
        """Read what `to_dict` wrote."""
        time = {"time": parse_interval(told["time"])} if "time" in told else {}
        return cls(**{**told, **time})

    def after(self, earlier: "Description") -> "Description":
        """Return what is told here, and what was told earlier where nothing is."""
        return replace(earlier, **{k: v for k, v in vars(self).items() if v is not None})


@dataclass(frozen=True)
class Catalog:
    """What `build` made.

    Attributes
    ----------
    path : Path
        Of `collection.json`.
    items : tuple of str
        Ids.
    left_out : dict of str to str
        Why, by path of the store from the folder.
    """

    path: Path
    items: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)


def build(
    folder: str | Path,
    *,
    description: Description | None = None,
    model: str | Path | Model | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Write the catalog of a folder of stores, or write it anew.

    ``collection.json`` in the folder; for each store ``NAME.zarr``, at any depth, ``NAME.json``
    beside it; ``models/MODEL.json``. Links are relative, so the folder can be moved and published
    as it is. Stores are not touched. A store that cannot be described (unfinished, damaged,
    foreign, without a time) is left out, and told of.

    Parameters
    ----------
    folder : path
        Of the stores, or one store: then of all that lie beside it.
    description : Description, optional
    model : str, path or Model, optional
        Where the model is no built-in one: for its architecture and size.
    progress : callable, optional
        Called with the number of stores that are done, and of all.

    Returns
    -------
    Catalog

    Raises
    ------
    CatalogError
        If there is no store, stores are of several models, or a file that is no part of such a
        catalog is in the way.
    """
    root = root_of(folder)
    earlier, old = _earlier(root)
    told = (description or Description()).after(earlier)
    stores, left_out = _read(root, find_stores(root))
    if not stores:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise CatalogError(
            f"{folder} holds no store to describe" + (f" ({reasons})" if reasons else ""),
            "encode scenes there first (nec encode SCENES FOLDER --each)",
        )
    known = known_model(stores[0], model)
    items: dict[Path, pystac.Item] = {}
    used = []
    for number, facts in enumerate(stores, 1):
        try:
            item = item_of(facts, undated=told.time, patch=patch_of(known))
        except NecError as error:
            left_out[facts.path.relative_to(root).as_posix()] = str(error)
        else:
            items[root / f"{facts.name}.json"] = item
            used.append(facts)
        if progress is not None:
            progress(number, len(stores))
    if not items:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise CatalogError(f"no store of {folder} can be described ({reasons})", "see there")
    _check_free(root, items, old)
    collection = _collection(root, used, list(items.values()), told)
    _write(root, collection, items, model_item(used[0], known), used, told)
    for path in old - items.keys():
        if path.is_relative_to(root) and ".." not in path.parts and _is_item(path):
            path.unlink()
    return Catalog(root / COLLECTION, tuple(item.id for item in items.values()), left_out)


def _read(root: Path, paths: Sequence[Path]) -> tuple[list[StoreFacts], dict[str, str]]:
    stores: dict[str, StoreFacts] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        try:
            facts = StoreFacts.read(path, root)
        except NecError as error:
            left_out[path.relative_to(root).as_posix()] = str(error)
            continue
        other = stores.setdefault(facts.id, facts)
        if other is not facts:
            raise CatalogError(
                f"{facts.path} and {other.path} would both be item {facts.id}", "rename one"
            )
    found = list(stores.values())
    for facts in found[1:]:
        first = found[0]
        for what, value in facts.identity.items():
            if value != first.identity[what]:
                raise CatalogError(
                    f"{facts.path} has {what} {value}, {first.path} {first.identity[what]}",
                    "a collection describes embeddings of one model and basis: put others in a "
                    "folder of their own",
                )
    return found, left_out


def _earlier(root: Path) -> tuple[Description, set[Path]]:
    """Return what the catalog that is there was told, and its items; nothing where there is none.

    Raises
    ------
    CatalogError
        It is not one that `build` wrote.
    """
    try:
        document = json.loads((root / COLLECTION).read_bytes())
        told = Description.from_dict(document[MARK])
        links = [str(link["href"]) for link in document["links"] if link["rel"] == "item"]
    except FileNotFoundError:
        return Description(), set()
    except (ValueError, TypeError, KeyError) as error:
        raise CatalogError(
            f"{root / COLLECTION} is not one that nec catalog wrote", "move it, or build elsewhere"
        ) from error
    return told, {root / link.removeprefix("./") for link in links}


def _check_free(root: Path, items: dict[Path, pystac.Item], old: set[Path]) -> None:
    for path in items:
        if path.exists() and path not in old and not _is_item(path):
            raise CatalogError(
                f"{path} is in the way: the item of {path.stem}.zarr goes there", "rename it"
            )
    if (root / COLLECTION) in items:
        raise CatalogError(f"a store in {root} is named collection.zarr", "rename it")


def _is_item(path: Path) -> bool:
    try:
        return EMBEDDINGS in json.loads(path.read_bytes())["stac_extensions"]
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _collection(
    root: Path, stores: Sequence[StoreFacts], items: Sequence[pystac.Item], told: Description
) -> pystac.Collection:
    first = stores[0]
    model = first.own.get("model", "unknown")
    sizes = sorted({item.properties["gsd"] for item in items if "gsd" in item.properties})
    shared = {name: first.attributes[key] for name, key in _SHARED.items()}
    collection = pystac.Collection(
        told.id or root.name,
        told.description
        or f"Compressed embeddings by {model}: Zarr stores that xarray.open_zarr reads after pip "
        "install nec.",
        _extent(items, told),
        title=told.title or f"Embeddings by {model}",
        license=told.licence or "other",
        keywords=["embeddings", "zarr", str(model)],
        stac_extensions=[EMBEDDINGS],
        extra_fields={
            **shared,
            **({"gsd": sizes[0]} if len(sizes) == 1 else {}),
            MARK: told.to_dict(),
        },
        summaries=pystac.Summaries(
            {
                **{name: [value] for name, value in shared.items()},
                **({"gsd": sizes} if sizes else {}),
                **_summary(items, "proj:code"),
                **_summary(items, "nec:rate"),
            }
        ),
    )
    collection.item_assets = {
        ASSET: pystac.ItemAssetDefinition.create(
            title="Embeddings",
            description=None,
            media_type=ZARR_TYPE,
            roles=["data", "embedding"],
        )
    }
    return collection


def _summary(items: Sequence[pystac.Item], name: str) -> dict[str, Any]:
    values = {str(v) for item in items if (v := item.properties.get(name)) is not None}
    return {name: sorted(values)} if values else {}


def _extent(items: Sequence[pystac.Item], told: Description) -> pystac.Extent:
    boxes = [item.bbox for item in items if item.bbox is not None]
    if len(boxes) < len(items):
        boxes.append(list(told.bbox or _WORLD))
    west, east = longitudes((box[0], box[2]) for box in boxes)
    box = [west, min(box[1] for box in boxes), east, max(box[3] for box in boxes)]
    times = [when for item in items for when in interval_of(item)]
    return pystac.Extent(
        pystac.SpatialExtent([box]), pystac.TemporalExtent([[min(times), max(times)]])
    )


def longitudes(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return west and east of what holds all spans; west is greater over the antimeridian.

    It is left only where a span crosses it already: then all but the widest gap between spans.
    """
    spans = list(spans)
    if all(west <= east for west, east in spans):
        return min(west for west, _ in spans), max(east for _, east in spans)
    # Cut at the antimeridian, in order; what no span covers are the gaps.
    parts = sorted(
        part
        for west, east in spans
        for part in ([(west, east)] if west <= east else [(west, 180.0), (-180.0, east)])
    )
    gaps, reach = [], -180.0
    for west, east in parts:
        if west > reach:
            gaps.append((west - reach, reach, west))
        reach = max(reach, east)
    if not gaps:
        return -180.0, 180.0
    _, east, west = max(gaps)
    return west, east


def interval_of(item: pystac.Item) -> Interval:
    """Return the first and the last instant of an item."""
    if item.datetime is not None:
        return item.datetime, item.datetime
    start, end = item.common_metadata.start_datetime, item.common_metadata.end_datetime
    if start is None or end is None:
        raise CatalogError(f"item {item.id} has no time", "build the catalog again")
    return start, end


def _write(
    root: Path,
    collection: pystac.Collection,
    items: dict[Path, pystac.Item],
    model: pystac.Item,
    stores: Sequence[StoreFacts],
    told: Description,
) -> None:
    """Write everything, the collection last: what it links to is there."""
    writer = _WholeFiles()
    described = f"{FOLDER}/{model.id}.json"
    model.set_self_href(str(root / described))
    model.add_link(pystac.Link(pystac.RelType.ROOT, f"../{COLLECTION}", "application/json"))
    writer.save_json(
        str(root / described), model.to_dict(include_self_link=False, transform_hrefs=False)
    )
    collection.add_link(
        pystac.Link("emb:model", f"./{described}", "application/geo+json", f"Model {model.id}")
    )
    if told.source_data is None:
        put(root / SOURCES, _sources(stores))
        source = pystac.Link("emb:source-data", f"./{SOURCES}", "text/csv", "Sources by item")
    else:
        source = pystac.Link("emb:source-data", told.source_data, title="Imagery")
    collection.add_link(source)
    for path, item in items.items():
        collection.add_item(item)  # before the collection knows its place, which sets the item's
        item.set_self_href(str(path))
    collection.set_self_href(str(root / COLLECTION))
    collection.save(pystac.CatalogType.SELF_CONTAINED, stac_io=writer)


def _sources(stores: Sequence[StoreFacts]) -> bytes:
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["item", "source"])
    for facts in stores:
        rows.writerows([facts.id, source] for source in facts.sources)
    return stream.getvalue().encode()


class _WholeFiles(DefaultStacIO):
    """Files that are seen whole or not at all."""

    def write_text_to_href(self, href: str, txt: str) -> None:
        put(Path(href), f"{txt}\n".encode())


def parse_interval(text: str) -> Interval:
    """Read ``START/END`` or one instant, ISO 8601, UTC where nothing else is said.

    A date without a clock starts with its first and ends with its last second.

    Raises
    ------
    CatalogError
        It is no such text.
    """
    start, _, end = text.partition("/")
    try:
        first, last = _instant(start, time.min), _instant(end or start, time(23, 59, 59))
    except ValueError as error:
        raise CatalogError(
            f"{text!r} is no time", "pass START/END, as 2019-01-01/2019-12-31T23:59:59Z"
        ) from error
    if first > last:
        raise CatalogError(f"{text!r} ends before it starts", "pass START/END")
    return first, last


def _instant(text: str, clock: time) -> datetime:
    try:
        when = datetime.combine(date.fromisoformat(text), clock)
    except ValueError:
        when = datetime.fromisoformat(text)
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
