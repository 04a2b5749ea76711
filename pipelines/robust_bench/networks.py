"""The classifiers that are compared: a narrow VGG11, a small vision transformer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nec.encoders.vit import VisionTransformer, VisionTransformerConfig

# Channels of VGG11's convolutions; 0 is a pooling.
VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512)
# Smallest number of channels that `convert` takes, and a width that a network can have.
LEAST = 8


class Vgg(nn.Module):
    """VGG11 with batch normalisation, mean pooling and one linear layer, for display values.

    Parameters
    ----------
    width : float
        Channels as a fraction of the published ones.
    classes : int
    mean, deviation : Tensor of shape (band,)
        Of the training images; the network standardises, so that budgets are in pixel units.
    """

    def __init__(self, width: float, classes: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("deviation", deviation[:, None, None])
        layers: list[nn.Module] = []
        inputs = len(mean)
        for channels in VGG11:
            if not channels:
                layers.append(nn.MaxPool2d(2))
                continue
            out = max(LEAST, round(channels * width))
            layers += [nn.Conv2d(inputs, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(True)]
            inputs = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, band, y, x) to logits (n, classes)."""
        return self.head(self.features((images - self.mean) / self.deviation).mean((2, 3)))


class VitClassifier(nn.Module):
    """The built-in transformer on RGB, mean of its tokens, one linear layer."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        heads = 3
        size = max(1, round(768 * width / heads / 4)) * 4 * heads
        self.encoder = VisionTransformer(
            VisionTransformerConfig(
                bands=("red", "green", "blue"), patch_size=8, width=size, depth=4, heads=heads
            )
        )
        self.head = nn.Linear(self.encoder.config.dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, y, x) to logits (n, classes)."""
        gsd = torch.full((len(images),), 10.0, device=images.device)
        return self.head(self.encoder(images, [0, 1, 2], gsd).mean((2, 3)))


def make(network: str, width: float, classes: int, moments: tuple[Tensor, Tensor]) -> nn.Module:
    """Return "vgg" or "vit" with the weights that it starts from; `moments` as of `Vgg`."""
    if network == "vgg":
        return Vgg(width, classes, *moments)
    return VitClassifier(width, classes)


def parameters(model: nn.Module) -> int:
    """Count what is trained or stored."""
    return sum(p.numel() for p in model.parameters())


def width_of(make: Callable[[float], nn.Module], count: int) -> float:
    """Return the width at which a dense network has the number of parameters nearest to `count`."""
    low, high = 0.01, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        if parameters(make(middle)) < count:
            low = middle
        else:
            high = middle
    return min((high, low), key=lambda width: abs(parameters(make(width)) - count))
