"""The model that made the embeddings, as a STAC Item of the Machine Learning Model extension."""

import base64
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import (
    AssetGeneralMLMExtension,
    InputStructure,
    MLMExtension,
    ModelInput,
    ModelOutput,
    ResultStructure,
    TaskType,
)
from pystac.extensions.raster import DataType

from nec.catalog.facts import StoreFacts
from nec.catalog.items import multihash
from nec.model import ENCODER, WEIGHTS, Model, list_models, load_model

log = logging.getLogger(__name__)

EO = "https://stac-extensions.github.io/eo/v2.0.0/schema.json"
FOLDER = "models"
# A model is of no place and no time: the whole world, and the interval that the extension's best
# practices give to it.
_WORLD = [-180.0, -90.0, 180.0, 90.0]
_ALWAYS = (datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
_ARCHITECTURES = {"galileo": "Galileo"}


def known_model(facts: StoreFacts, model: str | Path | Model | None = None) -> Model | None:
    """Return the model of a store: the one that is given, or a built-in of the same weights."""
    if model is None:
        name = facts.own.get("model")
        if name not in list_models():
            return None
        model = name
    # Any precision does: nothing is encoded, and torch stays out.
    known = model if isinstance(model, Model) else load_model(model, precision="float32")
    if known.weights_sha256 == facts.own.get("weights_sha256"):
        return known
    log.warning(
        "%s has other weights than the model of %s: the catalog says of the model what the store "
        "says",
        known.name,
        facts.path,
    )
    return None


def patch_of(model: Model | None) -> int | None:
    """Return the edge of a token, pixels, where the model's card tells."""
    return None if model is None else model.card["encoder"].get("patch_size")


def model_item(facts: StoreFacts, model: Model | None) -> pystac.Item:
    """Describe the model of a store, as far as its card and the store tell.

    Parameters
    ----------
    facts : StoreFacts
        Of any store of that model.
    model : Model or None
        None where only the store knows it: name, digest of its weights, bands.
    """
    name = str(facts.own.get("model", "unknown"))
    card: dict[str, Any] = {} if model is None else model.card
    bands = list(card.get("encoder", {}).get("bands") or facts.own.get("bands", []))
    west, south, east, north = _WORLD
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = pystac.Item(
        name,
        {"type": "Polygon", "coordinates": [ring]},
        _WORLD,
        None,
        properties={"description": f"Encoder of embeddings, {name}."},
        start_datetime=_ALWAYS[0],
        end_datetime=_ALWAYS[1],
    )
    if licence := card.get("licence"):
        item.properties["license"] = licence
    task, pretraining = [TaskType.SIMILARITY_SEARCH], card.get("training", {}).get("data")
    architecture = _ARCHITECTURES.get(card.get("architecture", ""), "unknown")
    if card and "architecture" not in card:
        architecture = "Vision Transformer"
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=name,
        architecture=architecture,
        tasks=task,
        input=[_input(bands)] if bands else [],
        output=[
            ModelOutput.create(
                name="embedding",
                tasks=task,
                result=_tokens(facts.features),
                description="A vector for each patch; stores hold it rotated by their basis.",
            )
        ],
        framework="PyTorch" if card else None,
        total_parameters=card.get("parameters"),
        pretrained=True if pretraining else None,
        pretrained_source=pretraining,
    )
    if "weights_sha256" in facts.own:
        _add_weights(item, facts.own["weights_sha256"], model)
    if bands:
        # The model extension looks for bands here; STAC's core allows them here if an asset has
        # them too.
        item.stac_extensions.append(EO)
        for fields in (item.properties, *(asset.extra_fields for asset in item.assets.values())):
            fields["bands"] = [{"name": band, "eo:common_name": band} for band in bands]
    item.properties["nec:basis"] = facts.own.get("basis")
    return item


def _input(bands: list[str]) -> ModelInput:
    return ModelInput.create(
        name="reflectance",
        bands=bands,
        input=InputStructure.create(
            shape=[-1, len(bands), -1, -1],
            dim_order=["batch", "bands", "height", "width"],
            data_type=DataType.FLOAT32,
        ),
        description="Reflectance; any of the bands may be left out.",
    )


def _tokens(features: int) -> ResultStructure:
    return ResultStructure.create(
        shape=[-1, features, -1, -1],
        dim_order=["batch", "feature", "height", "width"],
        data_type=DataType.FLOAT32,
    )


def _add_weights(item: pystac.Item, digest: str, model: Model | None) -> None:
    """Add the weights: by their place in the package where it has them, else by their digest."""
    builtin = model is not None and model.folder.parent == WEIGHTS
    if model is not None and builtin:
        href = f"pkg:pypi/nec#nec/weights/{model.folder.name}/{ENCODER}"
        title, media_type = "Weights, a file of the Python package nec", "application/octet-stream"
    else:
        # RFC 6920 names what has no address by its digest.
        name = base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip("=")
        href, title, media_type = f"ni:///sha-256;{name}", "Weights, by their SHA-256", None
    asset = pystac.Asset(href, title=title, media_type=media_type, roles=["mlm:model"])
    item.add_asset("weights", asset)
    AssetGeneralMLMExtension.ext(asset).artifact_type = (
        "safetensors" if model is not None and (model.folder / ENCODER).exists() else "weights"
    )
    file = FileExtension.ext(asset, add_if_missing=True)
    file.checksum = multihash(digest)
    if model is not None and builtin:
        file.size = (model.folder / ENCODER).stat().st_size
