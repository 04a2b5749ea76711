"""Decoders: convolutional networks from tokens to classes of pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nec.errors import HeadError
from nec.heads import terratorch_decoders
from nec.heads.windows import WINDOW

#: Margin in tokens that each decoder sees around what it labels, by name.
MARGINS = {"conv": 2, "fpn": 12}
#: Tokens that windows begin at multiples of, so that what is pooled by two, twice, is the same
#: wherever a scene is cut.
PHASE = 4


class ConvDecoder(nn.Module):
    """Two 3 x 3 convolutions over tokens; each token's pixels from its last features."""

    def __init__(self, bands: int, classes: int, *, width: int, scale: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(bands, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, classes * scale**2, 3, padding=1),
        )
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, band, y, x) to logits (n, class, y * scale, x * scale)."""
        logits: Tensor = self.shuffle(self.body(tokens))
        return logits


class PyramidDecoder(nn.Module):
    """A feature pyramid of the tokens at 1, 1/2 and 1/4 of their resolution, summed top-down.

    After Lin et al. 2017 (arXiv:1612.03144), as Li et al. 2022 (arXiv:2203.16527) make it for
    plain transformers: levels by pooling the one map that there is.
    """

    def __init__(self, bands: int, classes: int, *, width: int, scale: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(bands, width, 1) for _ in range(3))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(width, classes * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, band, y, x) to logits (n, class, y * scale, x * scale)."""
        levels = [tokens]
        for _ in range(2):
            levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True, count_include_pad=False))
        x: Tensor | None = None
        for level, lateral, smooth in zip(
            reversed(levels), reversed(self.lateral), reversed(self.smooth), strict=True
        ):
            found = lateral(level)
            if x is not None:
                found = found + F.interpolate(x, size=found.shape[2:], mode="nearest")
            x = F.relu(smooth(found))
        logits: Tensor = self.shuffle(self.head(x))
        return logits


class TerraTorchDecoder(nn.Module):
    """A decoder of TerraTorch, with its neck before it and its head after it.

    Where it takes several resolutions, TerraTorch's learned neck makes them of the one that there
    is, as it does of plain transformers; it halves and quarters channels, so embeddings narrower
    than `width` are brought to it before. Logits of another resolution are interpolated to pixels.
    """

    def __init__(
        self,
        name: str,
        bands: int,
        classes: int,
        *,
        width: int,
        scale: int,
        options: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.scale = scale
        lifted = terratorch_decoders.takes_pyramid(name) and bands < width
        self.lift = nn.Conv2d(bands, width, 1) if lifted else nn.Identity()
        size = terratorch_decoders.Size(width if lifted else bands, classes, width, scale)
        parts = terratorch_decoders.decoder_parts(name, size, options)
        self.neck: nn.Module | None = parts["neck"]
        self.decoder: nn.Module = parts["decoder"]
        self.head: nn.Module = parts["head"] or nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, band, y, x) to logits (n, class, y * scale, x * scale)."""
        levels = [self.lift(tokens)]
        if self.neck is not None:
            levels = self.neck(4 * levels)
        # Cloned as TerraTorch does: decoders may change what they are given.
        logits: Tensor = self.head(self.decoder([level.clone() for level in levels]))
        size = [edge * self.scale for edge in tokens.shape[-2:]]
        if list(logits.shape[-2:]) != size:
            logits = F.interpolate(logits, size=size, mode="bilinear")
        return logits


def margin_of(name: str) -> int:
    """Return the margin in tokens that a decoder sees around what it labels."""
    return MARGINS.get(name, terratorch_decoders.MARGIN)


def tile_of(name: str) -> int:
    """Return the edge of the windows that a decoder has to label one by one, tokens; 1 for any.

    TerraTorch's pool over all that they see: what they say of a pixel depends on the window.
    """
    return 1 if name in MARGINS else WINDOW


def make_decoder(
    name: str,
    bands: int,
    classes: int,
    *,
    width: int,
    scale: int,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a decoder by name, untrained.

    Raises
    ------
    HeadError
        TerraTorch makes no such decoder.
    MissingLibraryError
        It is TerraTorch's, which is not installed.
    """
    kinds: dict[str, Any] = {"conv": ConvDecoder, "fpn": PyramidDecoder}
    made: nn.Module
    if name in kinds:
        made = kinds[name](bands, classes, width=width, scale=scale)
    else:
        made = TerraTorchDecoder(name, bands, classes, width=width, scale=scale, options=options)
    return made


def try_decoder(network: nn.Module, name: str, bands: int, classes: int, *, batch: int) -> None:
    """Run a window through a decoder, learning and at rest, before anything is read or learned.

    Raises
    ------
    HeadError
        It does not run on such windows and batches, or gives no logits for every pixel.
    """
    edge = WINDOW + 2 * margin_of(name)
    tokens = torch.zeros(min(batch, 2), bands, edge, edge)
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        with torch.no_grad():
            network.train()(tokens)
            shape = tuple(network.eval()(tokens).shape)
    except Exception as error:  # whatever a decoder of others says
        few = f", or a batch_size above {batch}" if batch < 2 else ""
        raise HeadError(
            f"{name} does not run on {bands} bands with these options ({error})",
            f"choose other decoder_options{few}",
        ) from error
    network.load_state_dict(kept)  # normalisations keep statistics of what they saw
    if shape[1] != classes:
        raise HeadError(
            f"{name} gives {shape[1]} channels for {classes} classes", "use another decoder"
        )
