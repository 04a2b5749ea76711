"""The built-in encoder: a small vision transformer over any subset of its bands.

Tokens are 4-pixel patches. Each band has a projection of its own and the projections are
averaged over the bands present, so RGB photos and multispectral scenes share one model.
Positions are rotary in two dimensions [1]_ and only relative: an absolute position would
leave an imprint in the embeddings that costs bytes and shows as seams.

References
----------
.. [1] Heo et al., Rotary Position Embedding for Vision Transformer, ECCV 2024.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nec.errors import ModelError

# Metres. A linear map of the logarithm says nothing sensible of scales that it never saw: images
# beyond are taken for the nearest that were trained on.
GSD_RANGE = (5.0, 40.0)


@dataclass(frozen=True)
class VisionTransformerConfig:
    """Shape of a `VisionTransformer`.

    Attributes
    ----------
    bands : tuple of str
        STAC common names of the bands that have a projection.
    patch_size : int
        Edge of a token, pixels.
    width, depth, heads : int
        Size of the transformer.
    dim : int
        Length of the embedding, the product.
    """

    bands: tuple[str, ...] = ("blue", "green", "red", "nir08", "swir16", "swir22")
    patch_size: int = 4
    width: int = 192
    depth: int = 6
    heads: int = 3
    dim: int = 64

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % (4 * self.heads):
            raise ModelError(
                f"a width of {self.width} with {self.heads} heads",
                "choose a width that is a multiple of four times the heads: rotary positions "
                "turn pairs of two axes",
            )

    @classmethod
    def sized(cls, width: int, depth: int = 6) -> "VisionTransformerConfig":
        """Return the shape of that width and depth; an attention head for each 64 of the width."""
        return cls(width=width, depth=depth, heads=max(1, width // 64))

    def to_dict(self) -> dict[str, object]:
        """Return the configuration as plain JSON types."""
        return {**asdict(self), "bands": list(self.bands)}


def rotary_angles(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotary angles.

    Parameters
    ----------
    positions : Tensor of shape (..., token, 2)
        Row and column of each token, in tokens.
    head_dim : int
        Size of an attention head; a quarter of it is the number of frequencies an axis.

    Returns
    -------
    tuple of Tensor of shape (..., 1, token, head_dim / 2)
    """
    count = head_dim // 4
    # Wavelengths from 2 pi to about 2 pi * 30 tokens: grids here are 16 to 32 tokens wide.
    frequency = 30.0 ** (-torch.arange(count, dtype=torch.float32) / count)
    angle = (positions[..., None] * frequency.to(positions.device)).flatten(-2)
    return angle.cos().unsqueeze(-3), angle.sin().unsqueeze(-3)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary angles to queries or keys of shape (n, head, token, head_dim)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """Pre-norm transformer block with rotary self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map tokens (n, token, width) to tokens of the same shape."""
        n, t, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.proj(attended.transpose(1, 2).reshape(n, t, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


def compand(reflectance: Tensor) -> Tensor:
    """Map reflectance to the network's range: a fixed square root, never per image.

    Dark water and bright cloud both keep contrast; negative reflectance counts as 0, values
    above 4 as 4.
    """
    return ((reflectance.clamp(0, 4) + 0.01).sqrt() - 0.45) / 0.2


class VisionTransformer(nn.Module):
    """Vision transformer with one projection per band and a linear embedding head."""

    def __init__(self, config: VisionTransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VisionTransformerConfig()
        width, patch = config.width, config.patch_size
        self.band_projection = nn.Parameter(
            torch.randn(len(config.bands), patch * patch, width) * (1.0 / patch)
        )
        self.band_embedding = nn.Parameter(torch.randn(len(config.bands), width) * 0.02)
        self.gsd_embedding = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.dim)

    def band_index(self, bands: tuple[str, ...]) -> list[int]:
        """Return the projection of each named band; nir and nir08 serve each other.

        Raises
        ------
        ModelError
            If a band has no projection or none is given.
        """
        known = {name: i for i, name in enumerate(self.config.bands)}
        for a, b in (("nir", "nir08"), ("nir08", "nir")):
            if b in known:
                known.setdefault(a, known[b])
        missing = [name for name in bands if name not in known]
        if missing or not bands:
            raise ModelError(
                f"bands {missing or bands} are not among those of this model "
                f"({', '.join(self.config.bands)})",
                "choose among these with bands=...",
            )
        if len({known[name] for name in bands}) < len(bands):
            raise ModelError(
                f"bands {bands} use one projection twice",
                "give either nir or nir08, each band once",
            )
        return [known[name] for name in bands]

    def patches(self, chips: Tensor) -> Tensor:
        """Cut chips (n, band, y, x) into patches (n, band, token, pixel)."""
        n, b, h, w = chips.shape
        p = self.config.patch_size
        cut = chips.view(n, b, h // p, p, w // p, p).permute(0, 1, 2, 4, 3, 5)
        return cut.reshape(n, b, (h // p) * (w // p), p * p)

    def tokens(self, patches: Tensor, index: list[int], gsd: Tensor) -> Tensor:
        """Project companded patches (n, band, token, pixel) to tokens (n, token, width)."""
        n, b, t, p = patches.shape
        weight = self.band_projection[index].reshape(b * p, -1) / b
        x = patches.permute(0, 2, 1, 3).reshape(n, t, b * p) @ weight
        log_gsd = torch.log(gsd.clamp(*GSD_RANGE) / 10.0)
        scale = torch.stack((log_gsd, log_gsd.sin(), log_gsd.cos()), dim=-1)
        bias = self.band_embedding[index].mean(0) + self.gsd_embedding(scale)
        return x + bias[:, None]

    def encode_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Run the blocks over tokens (n, token, width) at positions ([n,] token, 2)."""
        cos, sin = rotary_angles(positions, self.config.width // self.config.heads)
        for block in self.blocks:
            tokens = block(tokens, cos, sin)
        return self.norm(tokens)

    def forward(self, chips: Tensor, index: list[int], gsd: Tensor) -> Tensor:
        """Embed reflectance chips (n, band, y, x) to (n, dim, y / patch, x / patch)."""
        n, _, h, w = chips.shape
        p = self.config.patch_size
        x = self.tokens(self.patches(compand(chips)), index, gsd)
        x = self.encode_tokens(x, token_positions(h // p, w // p, chips.device))
        return self.head(x).transpose(1, 2).reshape(n, -1, h // p, w // p)


def token_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Return row and column of each token of a grid, shape (rows * columns, 2)."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return torch.stack((y, x), dim=-1).reshape(-1, 2).float()


class VisionTransformerEncoder:
    """A `VisionTransformer` behind the `nec.encoders.Encoder` protocol.

    Parameters
    ----------
    name : str
        Name of the model.
    network : VisionTransformer
        The trained network; put into evaluation mode.
    precision : {"float32", "bfloat16"}
        Arithmetic of the forward pass.

    Attributes
    ----------
    gsd_range : tuple of float
        Ground sampling distances that it tells apart, metres; others are taken for the nearest.
    """

    gsd_range = GSD_RANGE

    def __init__(
        self, name: str, network: VisionTransformer, *, precision: str = "float32"
    ) -> None:
        self.name = name
        self.network = network.eval()
        self.precision = precision
        self.bands = network.config.bands
        self.patch_size = network.config.patch_size
        self.dim = network.config.dim

    def embed(
        self, chips: Tensor, *, bands: tuple[str, ...], gsd: float, time: Tensor | None = None
    ) -> Tensor:
        """Embed chips; see `nec.encoders.Encoder.embed`. `time` is not used.

        Raises
        ------
        ModelError
            If the bands are not the model's, or the chips are no multiple of the patch size.
        """
        del time
        if chips.ndim != 4 or chips.shape[1] != len(bands):
            raise ModelError(
                f"chips have shape {tuple(chips.shape)} for {len(bands)} bands",
                "pass (n, band, y, x) with one name in bands=... for each band",
            )
        if chips.shape[2] % self.patch_size or chips.shape[3] % self.patch_size:
            raise ModelError(
                f"chips of {chips.shape[2]} x {chips.shape[3]} pixels do not fill "
                f"{self.patch_size}-pixel patches",
                "pad or crop them to a multiple",
            )
        index = self.network.band_index(bands)
        device = self.network.head.weight.device
        scale = torch.full((len(chips),), float(gsd), device=device)
        with torch.no_grad():
            return self._forward(chips.to(device), index, scale).to(chips.device)

    def _forward(self, chips: Tensor, index: list[int], gsd: Tensor) -> Tensor:
        mixed = self.precision == "bfloat16"
        with torch.autocast(chips.device.type, torch.bfloat16, enabled=mixed):
            return self.network(chips, index, gsd).float()
