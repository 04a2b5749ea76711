"""Rules of the STAC extensions that a catalog declares, as JSON Schema of our own writing.

No package carries the extensions' schemas, and a check has to work offline. These state what the
extensions' texts demand of the fields that `build` writes; they are no copy of the schemas.
"""

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft7Validator
from pystac.extensions import file, mlm, projection

from nec.catalog.items import ASSET, EMBEDDINGS, ZARR

_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 1}
_SIZE = {"type": "integer", "minimum": 0}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _prefixed(prefix: str, **fields: Any) -> dict[str, Any]:
    """Fields of a prefix, and no others of it."""
    return {
        "type": "object",
        "properties": {f"{prefix}:{name}": rule for name, rule in fields.items()},
        "patternProperties": {f"^(?!{prefix}:)": {}},
        "additionalProperties": False,
    }


def _linked(rel: str) -> dict[str, Any]:
    return {"contains": _object(("rel", "href"), rel={"const": rel}, href=_TEXT)}


_QUANTIZATION = _object(
    ("method", "original_dtype"),
    method=_TEXT,
    original_dtype=_TEXT,
    quantized_dtype=_TEXT,
) | {"additionalProperties": False}
_EMBEDDINGS_ITEM = _object(
    ("properties", "assets"),
    properties=_prefixed("emb", runtime_parameters={"type": "object"}, quantization=_QUANTIZATION),
    assets=_object((ASSET,)),
)
_EMBEDDINGS_COLLECTION = _object(
    ("emb:type", "emb:dimensions", "data_type", "links"),
    data_type=_TEXT,
    gsd={"type": "number"},
    links={"allOf": [_linked("emb:model"), _linked("emb:source-data")]},
) | {"allOf": [_prefixed("emb", type={"enum": ["pixel", "chip"]}, dimensions=_COUNT)]}

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_PROJECTION = _object(
    properties=_prefixed(
        "proj",
        code={"type": ["string", "null"], "pattern": "^[A-Za-z0-9]+:.+$"},
        wkt2={"type": ["string", "null"]},
        bbox=_NUMBERS | {"minItems": 4, "maxItems": 4},
        shape={"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        transform=_NUMBERS | {"anyOf": [{"minItems": n, "maxItems": n} for n in (6, 9)]},
    )
    | {"anyOf": [{"required": [f"proj:{name}"]} for name in ("code", "wkt2")]}
)
# A multihash in lower-case hexadecimal; ours are all SHA-256.
_FILE = _object(
    assets={
        "type": "object",
        "additionalProperties": _prefixed(
            "file", size=_SIZE, checksum={"type": "string", "pattern": "^1220[0-9a-f]{64}$"}
        ),
    }
)
_ZARR = _object(
    assets={
        "type": "object",
        "additionalProperties": _prefixed(
            "zarr",
            consolidated={"type": "boolean"},
            node_type={"enum": ["array", "group"]},
            zarr_format={"enum": [2, 3]},
        ),
    }
)
_STRUCTURE = _object(
    ("shape", "dim_order", "data_type"),
    shape={"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": -1}},
    dim_order={"type": "array", "uniqueItems": True, "items": {"pattern": "^[a-z-_]+$"}},
    data_type=_TEXT,
)
_TASKS = {"type": "array", "items": {"enum": [str(task.value) for task in mlm.TaskType]}}
_INPUT = _object(("name", "bands", "input"), name=_TEXT, bands={"type": "array"}, input=_STRUCTURE)
_OUTPUT = _object(("name", "tasks", "result"), name=_TEXT, tasks=_TASKS, result=_STRUCTURE)
_MODEL = _object(
    ("properties", "assets"),
    properties=_object(
        tuple(f"mlm:{name}" for name in ("name", "architecture", "tasks", "input", "output")),
        **{
            "mlm:name": {"type": "string", "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
            "mlm:architecture": _TEXT,
            "mlm:tasks": _TASKS,
            "mlm:total_parameters": _SIZE,
            "mlm:input": {"type": "array", "items": _INPUT},
            "mlm:output": {"type": "array", "minItems": 1, "items": _OUTPUT},
        },
    ),
    # Bands that an input names are described beside it.
    **{
        "assets": {
            "type": "object",
            "additionalProperties": {
                "if": {"properties": {"roles": {"contains": {"const": "mlm:model"}}}},
                "then": {"required": ["mlm:artifact_type"]},
            },
        }
    },
) | {
    "if": {"properties": {"properties": {"properties": {"mlm:input": {"minItems": 1}}}}},
    "then": {"properties": {"properties": {"required": ["bands"]}}},
}

#: By the extension's URI and the type of object.
RULES: dict[tuple[str, str], dict[str, Any]] = {
    (EMBEDDINGS, "Feature"): _EMBEDDINGS_ITEM,
    (EMBEDDINGS, "Collection"): _EMBEDDINGS_COLLECTION,
    (projection.SCHEMA_URI, "Feature"): _PROJECTION,
    (file.SCHEMA_URI, "Feature"): _FILE,
    (ZARR, "Feature"): _ZARR,
    (mlm.MLMExtension.get_schema_uri(), "Feature"): _MODEL,
}


def broken_rules(document: dict[str, Any]) -> Iterator[str]:
    """Yield what an item or collection does against the extensions that it declares."""
    for uri in document.get("stac_extensions", []):
        rule = RULES.get((uri, document.get("type", "")))
        if rule is None:
            continue
        for error in Draft7Validator(rule).iter_errors(document):
            where = "/".join(map(str, error.absolute_path)) or "the whole"
            yield f"{where}: {error.message} (extension {uri.split('/')[-3]})"
