"""How fast the encoder is beside a plain transformer of its depth, and how well chips agree."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from torch import Tensor, nn

from nec.encoders.tiling import Tiling, embed_image
from nec.encoders.vit import VisionTransformer, VisionTransformerEncoder

ROUNDS = 9
CHIPS, EDGE = 16, 64
# First row and column of the part of the scene that stores' grids are laid over.
CORNER = 280
BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")


class PlainTransformer(nn.Module):
    """ViT-S of the encoder's depth from torch's own layers: width 384, learned positions."""

    def __init__(self, depth: int, patch: int, bands: int, dim: int, width: int = 384) -> None:
        super().__init__()
        self.stem = nn.Conv2d(bands, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, (EDGE // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, 6, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, dim)

    def forward(self, chips: Tensor) -> Tensor:
        """Map chips (n, band, y, x) to tokens (n, token, dim)."""
        return self.head(self.blocks(self.stem(chips).flatten(2).transpose(1, 2) + self.positions))


def bench_speed(encoder: VisionTransformerEncoder) -> dict[str, Any]:
    """Time the encoder beside plain transformers of its depth."""
    config = encoder.network.config
    rivals = {
        "plain transformer, its width": PlainTransformer(
            config.depth, config.patch_size, len(BANDS), config.dim, config.width
        ).eval(),
        "plain ViT-S": PlainTransformer(
            config.depth, config.patch_size, len(BANDS), config.dim
        ).eval(),
    }
    return speed_of({"encoder": encoder.network, **rivals})


def speed_of(networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Time networks in turn, on one thread, in both precisions.

    Parameters
    ----------
    networks : mapping of str to nn.Module
        Vision transformers, timed as encoders, or any other map of chips; the first is what
        the others are compared with.
    """
    first = next(iter(networks))
    chips = torch.rand(CHIPS, len(BANDS), EDGE, EDGE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out: dict[str, Any] = {"chips": CHIPS, "edge": EDGE, "threads": 1, "rounds": ROUNDS}
    try:
        for precision in ("float32", "bfloat16"):
            jobs = {name: _job(network, chips, precision) for name, network in networks.items()}
            seconds: dict[str, list[float]] = {name: [] for name in jobs}
            for _ in range(ROUNDS + 1):
                for name, job in jobs.items():
                    start = time.perf_counter()
                    job()
                    seconds[name].append(time.perf_counter() - start)
            median = {name: statistics.median(s[1:]) for name, s in seconds.items()}
            out[precision] = {
                name: {
                    "chips_per_second": round(CHIPS / s, 1),
                    "speed_against_it": round(s / median[first], 2),
                }
                for name, s in median.items()
            }
    finally:
        torch.set_num_threads(threads)
    out["parameters"] = {
        name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()
    }
    return out


def _job(network: nn.Module, chips: Tensor, precision: str) -> Callable[[], Tensor]:
    if isinstance(network, VisionTransformer):
        encoder = VisionTransformerEncoder("timed", network, precision=precision)
        return lambda: encoder.embed(chips, bands=BANDS, gsd=10.0)

    def forward() -> Tensor:
        low = precision == "bfloat16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            return network(chips)

    return forward


def bench_seams(data: Path, encoder: VisionTransformerEncoder) -> dict[str, Any]:
    """Embed a scene by chips of two grids half a chip apart: how far tokens move.

    The figure is the mean squared distance between the two embeddings of a token over the
    variance of all tokens, by the smaller of the two distances to a chip's border, in tokens.
    Beside it the same of two stores' grids: chips that overlap and fade into each other.
    """
    with rasterio.open(data / "scenes" / "sentinel2_alberta.tif") as dataset:
        scene = dataset.read().astype(np.float32) / 1e4
    bands = ("blue", "green", "red", "nir", "swir16")
    edge, patch = EDGE + 32, encoder.patch_size
    side = edge // patch
    corners = [(y, x) for y in range(200, 968, edge) for x in range(200, 968, edge)]

    def embed(shift: int) -> np.ndarray:
        chips = np.stack(
            [
                scene[:, y + shift : y + shift + edge, x + shift : x + shift + edge]
                for y, x in corners
            ]
        )
        parts = [
            encoder.embed(torch.from_numpy(chips[at : at + 8]), bands=bands, gsd=10.0).numpy()
            for at in range(0, len(chips), 8)
        ]
        return np.concatenate(parts)

    first, second = embed(0), embed(edge // 2)
    half = side // 2
    # The lower right quarter of a chip is the upper left quarter of the shifted one.
    a, b = first[:, :, half:, half:], second[:, :, : side - half, : side - half]
    moved = np.square(a - b).sum(1).mean(0)
    at = np.arange(side - half)
    inside = np.minimum(at, side - half - 1 - at)
    nearest = np.minimum(inside[:, None], inside)
    variance = first.var((0, 2, 3)).sum()
    return {
        "scene": "sentinel2_alberta",
        "chip_tokens": side,
        "stores": _store_seams(scene, encoder, bands),
        "relative_squared_distance": {
            int(d): round(float(moved[nearest == d].mean() / variance), 5)
            for d in np.unique(nearest)
        },
    }


def _store_seams(
    scene: np.ndarray, encoder: VisionTransformerEncoder, bands: tuple[str, ...]
) -> dict[str, Any]:
    """Embed a part of the scene as stores are made, on two grids half a chip's core apart."""
    tiling, patch = Tiling(), encoder.patch_size
    size, reach = 8 * tiling.core, tiling.margin
    first, second = (
        embed_image(
            encoder,
            scene[:, at - reach : at + size + reach, at - reach : at + size + reach],
            bands=bands,
            gsd=10.0,
            tiling=tiling,
        )
        for at in (CORNER, CORNER + tiling.core // 2)
    )
    shift, core = tiling.core // 2 // patch, tiling.core // patch
    a, b = first[:, shift:, shift:], second[:, :-shift, :-shift]
    moved = np.square(a - b).sum(0) / first.var((1, 2)).sum()
    whole = moved.shape[0] // core * core
    places = moved[:whole, :whole].reshape(whole // core, core, whole // core, core).mean((0, 2))
    return {
        "core_tokens": core,
        "halo_tokens": tiling.halo // patch,
        "mean": round(float(moved.mean()), 5),
        "least_by_place": round(float(places.min()), 5),
        "most_by_place": round(float(places.max()), 5),
    }
