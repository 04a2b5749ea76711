"""Decoders: small convolutional networks from tokens to classes of pixels."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

#: Margin in tokens that each decoder sees around what it labels, by name.
MARGINS = {"conv": 2, "fpn": 12}


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


def make_decoder(name: str, bands: int, classes: int, *, width: int, scale: int) -> nn.Module:
    """Return a decoder by name, untrained."""
    kinds: dict[str, Any] = {"conv": ConvDecoder, "fpn": PyramidDecoder}
    made: nn.Module = kinds[name](bands, classes, width=width, scale=scale)
    return made
