"""The JSON of a store: canonical bytes, digests, and the conventions that it declares.

Every JSON document of a store is written in one canonical form, so equal content is equal bytes
and a changed byte never hides behind an equal meaning.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from nec.archive.grid import TokenGrid
from nec.archive.layout import ArrayLayout, Layout
from nec.codec import VERSIONS
from nec.errors import StoreError

_GEOEMB = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention"
    "/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}
_SPATIAL = {
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial"
    "/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/spatial/blob/v1/README.md",
    "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "name": "spatial:",
    "description": "Spatial coordinate information",
}
_PROJ = {
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/geo-proj"
    "/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/geo-proj/blob/v1/README.md",
    "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "name": "proj:",
    "description": "Coordinate reference system information for geospatial data",
}
_DRAFT = "version 0 was a draft that nothing reads any more: encode the source again"
_OTHER = "install a release of nec that reads version {!r}: pip install --upgrade nec"
# The project's own fields of the root that a digest of the root cannot cover.
_OUTSIDE_DIGEST = ("digest", "seal")
# Fields of the root that a run adds when it ends; what comes in afterwards takes them away.
MEASURED = (
    "bytes_per_vector",
    "cosine",
    "masked_fraction",
    "payload_bytes",
    "seam",
    "tasks",
    "vectors",
)


def canonical(document: Mapping[str, Any]) -> bytes:
    """Write the one form of a JSON document that a store holds: sorted keys, no spaces, UTF-8."""
    try:
        text = json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError) as error:
        msg = f"metadata cannot be written as JSON ({error})"
        raise StoreError(msg, "use strings, finite numbers, lists and mappings") from error


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def parse(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object and insist on its canonical form.

    Raises
    ------
    StoreError
        It is no JSON object, or not in the form that was written.
    """
    remedy = "restore it from a copy, or write the store again"
    try:
        document = json.loads(data)
    except ValueError as error:
        raise StoreError(f"{what} is not JSON ({error})", remedy) from error
    try:
        same = isinstance(document, dict) and canonical(document) == data
    except StoreError:
        same = False
    if not same:
        raise StoreError(f"{what} is not in the form that nec writes", remedy)
    return dict(document)


def stamp(document: Mapping[str, Any]) -> dict[str, Any]:
    """Add a document's own digest."""
    body = {key: value for key, value in document.items() if key != "digest"}
    return {**body, "digest": sha256(canonical(body))}


def parse_stamped(data: bytes, what: str) -> dict[str, Any]:
    """Read a stamped document; StoreError where its own digest does not match."""
    document = parse(data, what)
    if stamp(document) != document:
        msg = f"{what} does not match its own digest"
        raise StoreError(msg, "restore it from a copy, or write the store again")
    return document


def root_digest(document: Mapping[str, Any], *, outside: tuple[str, ...] = _OUTSIDE_DIGEST) -> str:
    """Digest of the root ``zarr.json`` without the fields that depend on it."""
    attributes = dict(document["attributes"])
    attributes["nec"] = {k: v for k, v in attributes["nec"].items() if k not in outside}
    return sha256(canonical({**document, "attributes": attributes}))


def stamp_root(document: Mapping[str, Any]) -> dict[str, Any]:
    """Write the root's digest into its `nec` block."""
    own = {**document["attributes"]["nec"], "digest": root_digest(document)}
    return {**document, "attributes": {**document["attributes"], "nec": own}}


def parse_root(data: bytes, path: str) -> dict[str, Any]:
    """Read the root ``zarr.json`` and check that it is ours and unchanged.

    Raises
    ------
    StoreError
        Foreign, of an unknown format version, or damaged.
    """
    what = f"zarr.json of {path}"
    try:
        own = json.loads(data)["attributes"]["nec"]
        version = own["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} is not a nec store: its zarr.json has no readable nec block"
        raise StoreError(msg, "choose another path, or restore zarr.json from a copy") from error
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        msg = f"{path} is of format version {version!r}, this package reads {known}"
        raise StoreError(msg, _DRAFT if version == 0 else _OTHER.format(version))
    document = parse(data, what)
    if own.get("digest") != root_digest(document):
        msg = f"{what} does not match its own digest: it was changed or damaged"
        raise StoreError(msg, "restore it from a copy, or write the store again")
    return document


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge attributes, nested mappings too; the new ones win."""
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(before, value) if both else value  # type: ignore[arg-type]
    return merged


def root_attributes(layout: Layout, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the root: the conventions' own, `attributes`, and the `nec` block.

    Parameters
    ----------
    layout : Layout
        What lies in the store.
    attributes : mapping
        The producer's: `nec` with `model`, `basis` (hash), ...; anything may be overridden,
        the version and the fields of the seal excepted.
    """
    own = attributes.get("nec", {})
    base: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "zarr_conventions": [_GEOEMB],
        "geoemb:model": own.get("model", "unknown"),
        "geoemb:source_data": list(own.get("sources", [])),
        **_geoemb(next(iter(layout.arrays())), layout.grid),
    }
    if layout.grid is not None:
        base["zarr_conventions"] = [_GEOEMB, _SPATIAL, _PROJ]
        base |= _spatial(layout.grid)
    return merge(base, attributes)


def _geoemb(array: ArrayLayout, grid: TokenGrid | None) -> dict[str, Any]:
    bands = array.shape[array.dims.index("band")]
    attributes: dict[str, Any] = {
        "geoemb:type": "pixel" if array.name == "embedding" else "chip",
        "geoemb:dimensions": bands,
        "geoemb:data_type": "float32",
        "geoemb:quantization": {"method": "nec", "original_dtype": "float32"},
    }
    if attributes["geoemb:type"] == "chip" and grid is not None:
        edge = grid.patch * grid.cell
        attributes["geoemb:chip_layout"] = {
            "layout_type": "regular_grid",
            "chip_size": [edge, edge],
            "stride": [edge, edge],
        }
    return attributes


def _spatial(grid: TokenGrid) -> dict[str, Any]:
    left, dx, _, top, _, dy = grid.transform
    attributes: dict[str, Any] = {
        "spatial:dimensions": ["y", "x"],
        # Corner-based and in the order of affine.Affine, beside CF's cell centres.
        "spatial:transform_type": "affine",
        "spatial:transform": [dx, 0.0, left, 0.0, dy, top],
        "spatial:shape": list(grid.shape),
        "spatial:bbox": list(grid.bounds),
        "spatial:registration": "pixel",
    }
    if grid.epsg is not None:
        attributes["proj:code"] = f"EPSG:{grid.epsg}"
    else:
        attributes["proj:wkt2"] = grid.crs_wkt
    return attributes


def array_attributes(
    array: ArrayLayout, layout: Layout, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Attributes of `embedding` or `scene_embedding`: CF, geoemb, basis and model."""
    own = attributes.get("nec", {})
    names = {"embedding": "embedding of a token", "scene_embedding": "mean embedding of a cell"}
    auxiliary = [c.name for c in layout.coordinates if c.dims and c.name not in array.dims]
    auxiliary = [name for name in auxiliary if name not in {"y", "x", "cell_y", "cell_x", "time"}]
    result: dict[str, Any] = {"long_name": names[array.name], "units": "1"}
    if layout.grid is not None:
        # Without `coordinates`, xarray leaves spatial_ref among the data and rio.crs is None.
        result["grid_mapping"] = "spatial_ref"
        auxiliary.append("spatial_ref")
    if auxiliary:
        result["coordinates"] = " ".join(auxiliary)
    for name in ("basis", "model"):
        if name in own:
            result[f"nec_{name}"] = own[name]
    return result | _geoemb(array, layout.grid)


def grid_mapping_attributes(grid: TokenGrid) -> dict[str, Any]:
    """CF attributes of `spatial_ref`.

    There is no `GeoTransform`: it would go stale in a subset (`ds.isel(x=...)`), and it would be
    wrong for `scene_embedding`; readers take the transform from the coordinates, which are exact.
    """
    import pyproj

    return dict(pyproj.CRS.from_wkt(grid.crs_wkt).to_cf()) | {"crs_wkt": grid.crs_wkt}
