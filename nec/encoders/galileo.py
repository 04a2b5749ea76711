"""Galileo on single Sentinel-2 images: a published encoder behind the `Encoder` protocol.

An own implementation of what the Sentinel-2 part of Galileo's encoder [1]_ computes, for the
published weights. Each group of bands makes a token of every 4 pixels each way, all tokens
attend to each other, and the embedding of a place is the mean of its tokens. Groups that lack
a band are masked: their tokens are left out.

References
----------
.. [1] Tseng et al., Galileo: Learning Global & Local Features of Many Remote Sensing
   Modalities, ICML 2025. Code and weights: github.com/nasaharvest/galileo, MIT.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nec.errors import ModelError

CONFIG, WEIGHTS = "config.json", "encoder.pt"
PATCH = 4
# Largest image, pixels each way, and how many go through at a time.
LARGEST = 64
BATCH = 16
# Metres of a pixel in the units of position; the month where none is known, from 0: July.
BASE_GSD = 10.0
MONTH = 6
# Galileo's groups in the order of its channel embeddings, of which S1 is the first.
GROUPS: dict[str, tuple[str, ...]] = {
    "S2_RGB": ("blue", "green", "red"),
    "S2_Red_Edge": ("rededge071", "rededge075", "rededge078"),
    "S2_NIR_10m": ("nir",),
    "S2_NIR_20m": ("nir08",),
    "S2_SWIR": ("swir16", "swir22"),
    "NDVI": ("ndvi",),
}
# Mean and standard deviation of digital numbers, those of Galileo's pretraining.
STATISTICS: dict[str, tuple[float, float]] = {
    "blue": (1395.34, 917.70),
    "green": (1338.40, 913.30),
    "red": (1343.10, 1092.68),
    "rededge071": (1543.86, 1047.22),
    "rededge075": (2186.20, 1048.01),
    "rededge078": (2525.09, 1143.69),
    "nir": (2410.34, 1098.98),
    "nir08": (2750.29, 1204.47),
    "swir16": (2234.91, 1145.98),
    "swir22": (1474.53, 980.24),
    "ndvi": (0.28921, 0.27207),
}
# Settings of the configuration that say nothing of the encoder's shape.
TRAINING_ONLY = ("freeze_projections", "drop_path")


class Attention(nn.Module):
    """Self-attention with separate projections, named as in the published weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n, token, width) to tokens of the same shape."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n, token, width) to tokens of the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def kernel_resize(base: int) -> Tensor:
    """Return the matrix (pixel of a patch, pixel of the base) that resizes kernels.

    The pseudo-inverse of resizing images from patches of `base` pixels to those of `PATCH`, as
    in FlexiViT: a resized kernel answers a resized patch as the kernel does the patch.
    """
    units = torch.eye(base * base).view(-1, 1, base, base)
    resized = F.interpolate(units, (PATCH, PATCH), mode="bicubic", antialias=True)
    return torch.linalg.pinv(resized.flatten(1))


def position_encoding(size: int, width: int, gsd: float = BASE_GSD) -> Tensor:
    """Return sines and cosines of column, then row, of a grid: (size, size, width).

    Positions count pixels of 10 m, whatever the image's `gsd`, metres.
    """
    quarter = width // 4
    # Not the usual exponent, which spans it all: the longest wavelength is 15 pi pixels.
    frequency = 10000.0 ** (-torch.arange(quarter) / (4 * quarter))
    angle = PATCH * gsd / BASE_GSD * torch.arange(size)[:, None] * frequency
    code = torch.cat((angle.sin(), angle.cos()), dim=1)
    columns, rows = code[None].expand(size, -1, -1), code[:, None].expand(-1, size, -1)
    return torch.cat((columns, rows), dim=-1)


class GalileoEncoder(nn.Module):
    """Galileo's encoder for one Sentinel-2 image at 10 m.

    Parameters
    ----------
    embedding_size, depth, num_heads, mlp_ratio, max_patch_size, max_sequence_length : int
        As in the published configuration.
    """

    def __init__(
        self,
        embedding_size: int = 128,
        depth: int = 4,
        num_heads: int = 8,
        mlp_ratio: int = 4,
        max_patch_size: int = 8,
        max_sequence_length: int = 24,
    ) -> None:
        super().__init__()
        # A quarter each: group, time step, month, place.
        part = embedding_size // 4
        self.s_t_channel_embed = nn.Parameter(torch.zeros(1 + len(GROUPS), part))
        self.pos_embed = nn.Parameter(torch.zeros(max_sequence_length, part))
        self.month_embed = nn.Embedding(12, part)
        self.space_time_embed = nn.ModuleDict(
            {
                k: nn.ModuleDict({"proj": nn.Conv2d(len(bands), embedding_size, max_patch_size)})
                for k, bands in GROUPS.items()
            }
        )
        self.blocks = nn.ModuleList(
            Block(embedding_size, num_heads, mlp_ratio * embedding_size) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embedding_size)
        self.register_buffer("resize", kernel_resize(max_patch_size), persistent=False)

    @classmethod
    def load(cls, folder: Path) -> "GalileoEncoder":
        """Return the encoder of a folder with `config.json` and `encoder.pt`, to evaluate.

        Weights of other modalities are left; ModelError where one is missing or misshapen.
        """
        try:
            shape = json.loads((folder / CONFIG).read_text())["model"]["encoder"]
            encoder = cls(**{k: v for k, v in shape.items() if k not in TRAINING_ONLY})
            weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
            own = encoder.state_dict().keys()
            encoder.load_state_dict({k: v for k, v in weights.items() if k in own})
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, UnpicklingError) as error:
            raise ModelError(
                f"{folder} holds no Galileo ({type(error).__name__}: {error})",
                f"give the folder of its {CONFIG} and {WEIGHTS}",
            ) from error
        return encoder.eval().requires_grad_(False)

    def forward(
        self, groups: dict[str, Tensor], month: int | Tensor, gsd: float = BASE_GSD
    ) -> Tensor:
        """Map scaled groups (n, band, y, x) to the mean of their tokens (n, y / 4, x / 4, width).

        Groups left out are masked; `month`, of all or of each image, counts from 0, January.
        """
        tokens = torch.stack([self.project(k, x, month, gsd) for k, x in groups.items()], dim=1)
        x = tokens.flatten(1, 3)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).unflatten(1, tokens.shape[1:4]).mean(1)

    def project(self, group: str, x: Tensor, month: int | Tensor, gsd: float) -> Tensor:
        """Cut a group (n, band, y, x) into encoded tokens (n, y / 4, x / 4, width)."""
        proj = self.space_time_embed[group].get_submodule("proj")
        assert isinstance(proj, nn.Conv2d)
        assert proj.bias is not None
        kernel = (proj.weight.flatten(2) @ self.get_buffer("resize").T).unflatten(2, (PATCH, PATCH))
        tokens = F.conv2d(x, kernel, proj.bias, stride=PATCH).permute(0, 2, 3, 1)
        size = tokens.shape[1]
        channel = self.s_t_channel_embed[1 + list(GROUPS).index(group)]
        count = len(x)
        months = torch.as_tensor(month, device=x.device).expand(count)
        image = torch.cat((channel, self.pos_embed[0])).expand(count, -1)
        image = torch.cat((image, self.month_embed(months)), dim=-1)
        place = position_encoding(size, len(channel), gsd).to(x.device)
        grid = (count, size, size, -1)
        return tokens + torch.cat((image[:, None, None].expand(grid), place.expand(grid)), dim=-1)


def scaled_groups(images: Tensor, bands: Sequence[str]) -> dict[str, Tensor]:
    """Return the complete groups of digital numbers (n, band, y, x), scaled."""
    given = dict(zip(bands, images.unbind(1), strict=True))
    if "red" in given and "nir" in given:
        total, difference = given["nir"] + given["red"], given["nir"] - given["red"]
        # 0 where nothing is reflected, as Galileo has it.
        given["ndvi"] = torch.where(total > 0, difference / total.clamp(min=1e-6), 0.0)
    scaled = {
        band: (x - (STATISTICS[band][0] - 2 * STATISTICS[band][1])) / (4 * STATISTICS[band][1])
        for band, x in given.items()
    }
    return {
        group: torch.stack([scaled[band] for band in members], dim=1)
        for group, members in GROUPS.items()
        if scaled.keys() >= set(members)
    }


def galileo_tokens(
    encoder: GalileoEncoder, images: NDArray[np.float32], bands: Sequence[str], *, month: int = 6
) -> NDArray[np.float32]:
    """Embed Sentinel-2 images.

    Parameters
    ----------
    encoder : GalileoEncoder
    images : ndarray of shape (n, band, y, x), float32
        Reflectance times 10,000, square, a multiple of 4 and at most 64 pixels each way.
    bands : sequence of str
        STAC common names of the bands. Groups of Galileo that lack one are masked; NDVI takes
        red and nir (B08).
    month : int
        From 0, January, to 11.

    Returns
    -------
    ndarray of shape (n, y / 4, x / 4, width), float32
        Mean of the output tokens of the unmasked groups.

    Raises
    ------
    ModelError
        If bands, month or the size are not as described, or no group is complete.
    """
    if not 0 <= month < 12:
        raise ModelError(f"month {month} is not within 0 to 11", "count from 0, January")
    _check(images.shape, bands)
    device = encoder.norm.weight.device
    found = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            chips = torch.tensor(images[start : start + BATCH], dtype=torch.float32, device=device)
            found.append(encoder(scaled_groups(chips, bands), month).float().cpu().numpy())
    return np.concatenate(found)


def _check(shape: Sequence[int], bands: Sequence[str]) -> None:
    """Raise ModelError where images (n, band, y, x) of these bands are none that Galileo takes."""
    known = tuple(band for band in STATISTICS if band != "ndvi")
    if len(shape) != 4 or len(bands) != shape[1] or len(set(bands)) < len(bands):
        raise ModelError(
            f"bands {tuple(bands)} do not name each band of images of shape {tuple(shape)} once",
            "pass (n, band, y, x) with one name for each band",
        )
    if not set(bands) <= set(known):
        raise ModelError(
            f"bands {tuple(bands)} are not all among Galileo's", f"choose among {', '.join(known)}"
        )
    rows, columns = shape[2:]
    if rows != columns or rows % PATCH or rows > LARGEST:
        raise ModelError(
            f"images of {rows} x {columns} pixels are no squares of 4, 8, ... {LARGEST}",
            "choose other chips (--core 32 --halo 16)",
        )
    if not any(set(members) <= set(bands) for members in GROUPS.values()):
        raise ModelError(
            f"bands {tuple(bands)} complete no group of Galileo's",
            f"it has {'; '.join(', '.join(members) for members in GROUPS.values())}",
        )


class Galileo:
    """Galileo behind the `nec.encoders.Encoder` protocol.

    Parameters
    ----------
    network : GalileoEncoder
    name : str
        Name of the model.
    precision : {"float32", "bfloat16"}
        Arithmetic of the forward pass.
    """

    patch_size = PATCH
    bands = tuple(band for band in STATISTICS if band != "ndvi")

    def __init__(
        self, network: GalileoEncoder, *, name: str = "galileo", precision: str = "float32"
    ) -> None:
        self.name = name
        self.network = network
        self.precision = precision
        self.dim = len(network.norm.weight)

    def embed(
        self, chips: Tensor, *, bands: tuple[str, ...], gsd: float, time: Tensor | None = None
    ) -> Tensor:
        """Embed chips; see `nec.encoders.Encoder.embed`.

        Of `time` the month counts; July where there is none. Groups of bands that lack one are
        left out.

        Raises
        ------
        ModelError
            If bands are not Galileo's or complete no group, chips are no squares of 4, 8, … 64
            pixels, or there is not one time for each.
        """
        _check(chips.shape, bands)
        month: int | Tensor = MONTH
        if time is not None:
            if time.shape != chips.shape[:1]:
                raise ModelError(
                    f"{len(chips)} chips and times of shape {tuple(time.shape)}",
                    "pass one time for each chip",
                )
            stamps = time.cpu().numpy().astype("datetime64[s]").astype("datetime64[M]")
            month = torch.from_numpy(stamps.astype(np.int64) % 12).to(chips.device)
        with (
            torch.no_grad(),
            torch.autocast(chips.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            tokens = self.network(scaled_groups(chips * 1e4, bands), month, gsd)
        return tokens.float().permute(0, 3, 1, 2)
