"""TerraTorch's backbones [1]_: how each kind is made, fed and read.

What each kind wants and gives is settled here: its bands in their order, the scale of its
numbers, what stands for a missing band, class tokens, layouts, and which of a checkpoint's
entries are its own.

References
----------
.. [1] TerraTorch: github.com/terrastackai/terratorch, Apache-2.0.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from nec.encoders.torchvision_schemas import import_torchvision
from nec.errors import MissingLibraryError, ModelError

# Mean and standard deviation of a band, in reflectance times 10,000.
Statistics = dict[str, tuple[float, float]]

HLS = ("blue", "green", "red", "nir08", "swir16", "swir22")
SENTINEL2_L2A = (
    "coastal",
    "blue",
    "green",
    "red",
    "rededge071",
    "rededge075",
    "rededge078",
    "nir",
    "nir08",
    "nir09",
    "swir16",
    "swir22",
)


def import_terratorch(module: str) -> Any:
    """Import a module of TerraTorch: seconds, hundreds of megabytes, many warnings.

    Raises
    ------
    MissingLibraryError
        If it, or what it needs, is not installed.
    """
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision()
            return importlib.import_module(f"terratorch.{module}")
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            f"TerraTorch is asked for, and {error.name} is not installed",
            "pip install 'nec[terratorch]'",
        ) from error


def _registry() -> Any:
    return import_terratorch("registry").BACKBONE_REGISTRY


class Backbone:
    """A kind of TerraTorch's backbones: how it is made, fed and read.

    Attributes
    ----------
    prefix : str
        What names of this kind begin with.
    bands : tuple of str
        Common names of its bands, in the network's order.
    patch, edge : int
        Edge of a token and of an image that it was trained on, pixels.
    any_size : bool
        Whether other multiples of the patch do as well as `edge`.
    fills : bool
        Whether a missing band is fed as its mean, 0: a linear projection of patches then gives
        what it gives without the band. Else the network is told which bands there are.
    """

    prefix: ClassVar[str]
    bands: ClassVar[tuple[str, ...]]
    patch: ClassVar[int] = 16
    edge: ClassVar[int] = 224
    any_size: ClassVar[bool] = True
    fills: ClassVar[bool] = True

    def statistics(self, name: str) -> Statistics:
        """Return what TerraTorch or the publisher says of the bands; nothing where none does."""
        del name
        return {}

    def make(self, name: str) -> nn.Module:
        """Return the network with random weights."""
        network: nn.Module = _registry().build(name, pretrained=False)
        return network

    def own_weights(self, state: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
        """Return the entries of a checkpoint that are the network's, by its names."""
        del network
        return dict(state)

    def run(
        self, network: nn.Module, x: Tensor, bands: Sequence[str], gsd: float, time: Tensor | None
    ) -> Tensor:
        """Return the last layer's tokens (n, dim, y / patch, x / patch) of scaled chips."""
        del bands, gsd, time
        return _grid(network(x)[-1], x, self.patch_of(network))

    def patch_of(self, network: nn.Module) -> int:
        """Return the edge of a token, pixels."""
        del network
        return self.patch


def _grid(tokens: Tensor, x: Tensor, patch: int) -> Tensor:
    """Lay tokens (n, [class token +] y x, dim) out as (n, dim, y, x)."""
    rows, columns = (s // patch for s in x.shape[-2:])
    # A class token, where there is one, comes first.
    places = tokens[:, tokens.shape[1] - rows * columns :]
    laid: Tensor = places.transpose(1, 2).unflatten(2, (rows, columns))
    return laid


class Prithvi(Backbone):
    """Prithvi-EO 1 and 2, one date at a time."""

    prefix = "prithvi_eo"
    bands = HLS

    def statistics(self, name: str) -> Statistics:
        """Return means and deviations of the pretraining, from TerraTorch."""
        _registry()
        from terratorch.models.backbones.prithvi_vit import prithvi_cfgs

        settings = prithvi_cfgs[name]
        return dict(
            zip(self.bands, zip(settings["mean"], settings["std"], strict=True), strict=True)
        )

    def own_weights(self, state: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
        """Take the encoder of the published autoencoder; positions are computed."""
        from terratorch.models.backbones.prithvi_vit import (
            PRETRAINED_BANDS,
            checkpoint_filter_fn_vit,
        )

        found: dict[str, Tensor] = checkpoint_filter_fn_vit(
            state, network, PRETRAINED_BANDS, PRETRAINED_BANDS
        )
        return found

    def run(
        self, network: nn.Module, x: Tensor, bands: Sequence[str], gsd: float, time: Tensor | None
    ) -> Tensor:
        """Tell year and day of the year to networks that take them; none takes the place."""
        del bands, gsd
        told: dict[str, Tensor] = {}
        if time is not None and getattr(network, "temporal_encoding", False):
            days = time.cpu().numpy().astype("datetime64[s]").astype("datetime64[D]")
            years = days.astype("datetime64[Y]")
            of_year = (days - years.astype("datetime64[D]")).astype(np.int64)
            coordinates = np.stack([years.astype(np.int64) + 1970, of_year], -1)
            told["temporal_coords"] = torch.from_numpy(coordinates).float()[:, None].to(x.device)
        return _grid(network(x, **told)[-1], x, self.patch_of(network))

    def patch_of(self, network: nn.Module) -> int:
        """Return 14 of the largest Prithvi, 16 of the others."""
        embed: Any = network.patch_embed
        return int(embed.patch_size[-1])


class TerraMind(Backbone):
    """TerraMind 1 on Sentinel-2 L2A, of which it has no class token."""

    prefix = "terramind_v1"
    bands = SENTINEL2_L2A

    def statistics(self, name: str) -> Statistics:
        """Return means and deviations of the pretraining, from TerraTorch."""
        del name
        _registry()
        from terratorch.models.backbones.terramind.model import terramind_register as published

        key = "untok_sen2l2a@224"
        pairs = zip(
            published.v1_pretraining_mean[key], published.v1_pretraining_std[key], strict=True
        )
        return dict(zip(self.bands, pairs, strict=True))

    def make(self, name: str) -> nn.Module:
        """Return a network of the one modality."""
        network: nn.Module = _registry().build(name, pretrained=False, modalities=["S2L2A"])
        return network

    def own_weights(self, state: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
        """Leave what belongs to other modalities and to the decoder."""
        own = network.state_dict().keys()
        return {key: value for key, value in state.items() if key in own}


class Dofa(Backbone):
    """DOFA, which is told the wavelengths of the bands that there are."""

    prefix = "dofa_"
    bands = tuple(band for band in SENTINEL2_L2A if band not in ("coastal", "nir09"))
    any_size = False
    fills = False
    names: ClassVar[dict[str, str]] = {
        "blue": "BLUE",
        "green": "GREEN",
        "red": "RED",
        "rededge071": "RED_EDGE_1",
        "rededge075": "RED_EDGE_2",
        "rededge078": "RED_EDGE_3",
        "nir": "NIR_BROAD",
        "nir08": "NIR_NARROW",
        "swir16": "SWIR_1",
        "swir22": "SWIR_2",
    }

    def make(self, name: str) -> nn.Module:
        """Return a network; its bands are told with each batch."""
        network: nn.Module = _registry().build(name, pretrained=False, model_bands=["RED"])
        return network

    def own_weights(self, state: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
        """Leave norm and head of the pooled vector as they are: no token passes them."""
        unused = {
            key: value
            for key, value in network.state_dict().items()
            if key.startswith(("dofa_model.fc_norm.", "dofa_model.head."))
        }
        # Named as DOFA names them, which the wrapper does not.
        own = {f"dofa_model.{k.removeprefix('dofa_model.')}": v for k, v in state.items()}
        return unused | {k: v for k, v in own.items() if k in network.state_dict()}

    def run(
        self, network: nn.Module, x: Tensor, bands: Sequence[str], gsd: float, time: Tensor | None
    ) -> Tensor:
        """Make a wrapper for these bands: threads share the network."""
        from terratorch.models.backbones.dofa_vit import DOFAEncoderWrapper, get_wavelenghts

        del gsd, time
        waves = get_wavelenghts([self.names[band] for band in bands])
        return _grid(DOFAEncoderWrapper(network.dofa_model, waves)(x)[-1], x, self.patch)


class Clay(Backbone):
    """Clay 1, which is told wavelengths, time and pixel size."""

    prefix = "clay_v1"
    bands = Dofa.bands
    patch = 8
    edge = 256
    any_size = False
    fills = False
    # Of Sentinel-2 L2A, as Clay publishes them in its metadata.yaml.
    published: ClassVar[Statistics] = {
        "blue": (1105.0, 1809.0),
        "green": (1355.0, 1757.0),
        "red": (1552.0, 1888.0),
        "rededge071": (1887.0, 1870.0),
        "rededge075": (2422.0, 1732.0),
        "rededge078": (2630.0, 1697.0),
        "nir": (2743.0, 1742.0),
        "nir08": (2785.0, 1648.0),
        "swir16": (2388.0, 1470.0),
        "swir22": (1835.0, 1379.0),
    }
    waves: ClassVar[dict[str, float]] = {
        "blue": 0.493,
        "green": 0.56,
        "red": 0.665,
        "rededge071": 0.704,
        "rededge075": 0.74,
        "rededge078": 0.783,
        "nir": 0.842,
        "nir08": 0.865,
        "swir16": 1.61,
        "swir22": 2.19,
    }

    def statistics(self, name: str) -> Statistics:
        """Return means and deviations of the pretraining."""
        del name
        return dict(self.published)

    def own_weights(self, state: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
        """Take the encoder of the published Lightning checkpoint, or of a plain state dict."""
        entries = state.get("state_dict", state)
        found = {
            key.replace("model.encoder.", "clay_encoder.", 1): value
            for key, value in entries.items()
        }
        return {key: value for key, value in found.items() if key in network.state_dict()}

    def run(
        self, network: nn.Module, x: Tensor, bands: Sequence[str], gsd: float, time: Tensor | None
    ) -> Tensor:
        """Tell wavelengths, the pixel's size, week and hour; the place stays 0, unknown."""
        told: dict[str, Any] = {
            "waves": torch.tensor([self.waves[band] for band in bands], device=x.device),
            "gsd": gsd,
        }
        if time is not None:
            stamps = time.cpu().numpy().astype("datetime64[s]").tolist()
            week = 2 * np.pi * np.array([s.isocalendar().week for s in stamps]) / 52
            hour = 2 * np.pi * np.array([s.hour for s in stamps]) / 24
            code = np.stack([np.sin(week), np.cos(week), np.sin(hour), np.cos(hour)], -1)
            told["time"] = torch.from_numpy(code).float().to(x.device)
        return _grid(network(x, **told)[-1], x, self.patch)


class Swin(Backbone):
    """Swin on the six bands of HLS; its third of four stages, a token of 16 pixels."""

    prefix = "prithvi_swin"
    bands = HLS
    stage: ClassVar[int] = 2

    def own_weights(self, state: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
        """Take the backbone; of Swin's own layout, by TerraTorch's rules."""
        from terratorch.models.backbones.prithvi_swin import (
            convert_weights_swin2mmseg,
            weights_are_swin_implementation,
        )

        entries = state.get("state_dict", state.get("model", state))
        if weights_are_swin_implementation(entries):
            encoder = {k.removeprefix("encoder."): v for k, v in entries.items()}
            entries = convert_weights_swin2mmseg(encoder)
        found = {k.removeprefix("backbone."): v for k, v in entries.items()}
        # timm names stages by an underscore where features are asked for.
        found = {k.replace("stages.", "stages_", 1): v for k, v in found.items()} | found
        return {key: value for key, value in found.items() if key in network.state_dict()}

    def run(
        self, network: nn.Module, x: Tensor, bands: Sequence[str], gsd: float, time: Tensor | None
    ) -> Tensor:
        """Turn the stage's channels-last layout."""
        del bands, gsd, time
        tokens: Tensor = network(x)[self.stage]
        return tokens.permute(0, 3, 1, 2)


KINDS: tuple[Backbone, ...] = (Prithvi(), TerraMind(), Dofa(), Clay(), Swin())


def kind_of(name: str) -> Backbone:
    """Return the kind of a backbone.

    Raises
    ------
    ModelError
        If it is of none that is known here.
    """
    for kind in KINDS:
        if name.startswith(kind.prefix):
            return kind
    raise ModelError(
        f"no adapter for TerraTorch's backbone {name!r}",
        f"choose one that begins with {', '.join(k.prefix for k in KINDS)}",
    )
