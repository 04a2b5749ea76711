"""One store as a STAC Item."""

from datetime import datetime
from typing import Any

import pystac
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension

from nec.catalog.facts import StoreFacts
from nec.catalog.footprint import footprint, ground_size
from nec.errors import CatalogError

EMBEDDINGS = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
ZARR = "https://stac-extensions.github.io/zarr/v1.1.0/schema.json"
ASSET = "embeddings"
ZARR_TYPE = f"{pystac.MediaType.VND_ZARR}; version=3"

#: Of a store that knows no time: first and last instant, UTC.
Interval = tuple[datetime, datetime]
# Fields of a store's `nec` block that its item repeats as `nec:...`.
_REPEATED = (
    *("format_version", "model", "weights_sha256", "basis", "space", "rate", "bytes_per_vector"),
    *("vectors", "cosine", "min_cosine", "tasks", "substituted"),
)
_PARAMETERS = ("bands", "precision", "backend", "tiling", "scaling")


def item_of(
    facts: StoreFacts, *, undated: Interval | None = None, patch: int | None = None
) -> pystac.Item:
    """Describe a store.

    Parameters
    ----------
    facts : StoreFacts
    undated : tuple of datetime, optional
        When it was taken, if the store knows no time.
    patch : int, optional
        See `footprint`.

    Returns
    -------
    pystac.Item
        Its assets lie relative to the store's own folder. One time is `datetime`; several are
        `start_datetime` and `end_datetime`, the first and the last.

    Raises
    ------
    CatalogError
        It knows no time, and none is given.
    """
    times = facts.times or undated
    if not times:
        raise CatalogError(
            f"{facts.path} knows no time",
            "say when it was taken (nec catalog build --time START/END), or encode it with --time",
        )
    one = times[0] == times[-1]
    geometry, box = footprint(facts, patch)
    item = pystac.Item(
        facts.id,
        geometry,
        box,
        times[0] if one else None,
        properties=_properties(facts, patch),
        start_datetime=None if one else times[0],
        end_datetime=None if one else times[-1],
        stac_extensions=[EMBEDDINGS, ZARR],
    )
    _project(item, facts)
    _add_assets(item, facts)
    return item


def _properties(facts: StoreFacts, patch: int | None) -> dict[str, Any]:
    own = facts.own
    size = ground_size(facts)
    if size is None and patch is not None and "gsd" in own:
        size = own["gsd"] * patch
    parameters = {name: own[name] for name in _PARAMETERS if name in own}
    properties: dict[str, Any] = {
        **({} if size is None else {"gsd": size}),
        **({"emb:runtime_parameters": parameters} if parameters else {}),
        "emb:quantization": facts.attributes["geoemb:quantization"],
        **{f"nec:{name}": own[name] for name in _REPEATED if own.get(name) is not None},
        "nec:sources": list(facts.sources),
        "nec:sealed": "seal" in own,
    }
    if "spatial:transform" not in facts.attributes and patch is not None:
        properties["nec:patch"] = patch
    if "seal" in own:
        properties["nec:manifest_sha256"] = own["seal"]["sha256"]
    return properties


def _project(item: pystac.Item, facts: StoreFacts) -> None:
    attributes = facts.attributes
    if "spatial:transform" not in attributes:
        return
    code = attributes.get("proj:code")
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=code,
        wkt2=None if code else attributes["proj:wkt2"],
        bbox=list(attributes["spatial:bbox"]),
        shape=list(attributes["spatial:shape"]),
        transform=list(attributes["spatial:transform"]),
    )


def _add_assets(item: pystac.Item, facts: StoreFacts) -> None:
    store = f"./{facts.path.name}"
    data = pystac.Asset(
        store,
        title="Embeddings, decoded by xarray.open_zarr after pip install nec",
        media_type=ZARR_TYPE,
        roles=["data", "embedding"],
        extra_fields={
            "data_type": facts.attributes["geoemb:data_type"],
            "zarr:consolidated": True,
            "zarr:node_type": "group",
            "zarr:zarr_format": 3,
        },
    )
    item.add_asset(ASSET, data)
    FileExtension.ext(data, add_if_missing=True).size = facts.size
    titles = {
        "metadata": "Metadata of the store",
        "manifest": "Size and SHA-256 of every object of the store",
    }
    for name, key, size, digest in facts.files():
        asset = pystac.Asset(
            f"{store}/{key}",
            title=titles[name],
            media_type=pystac.MediaType.JSON,
            roles=["metadata"],
        )
        item.add_asset(name, asset)
        FileExtension.ext(asset).apply(size=size, checksum=multihash(digest))


def multihash(sha256: str) -> str:
    """Write a SHA-256 as the multihash that the file extension wants: sha2-256, 32 bytes."""
    return f"1220{sha256}"
