"""Encoders that are measured: of weights, untrained, and without their head."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nec.encoders.vit import (
    VisionTransformer,
    VisionTransformerConfig,
    VisionTransformerEncoder,
    compand,
    token_positions,
)

TWIN_SEED = 0


def encoder_of(
    weights: Path | None, config: VisionTransformerConfig, *, precision: str = "bfloat16"
) -> VisionTransformerEncoder:
    """Return the network with these weights, or with those that training starts from."""
    torch.manual_seed(TWIN_SEED)
    network = VisionTransformer(config)
    if weights is not None:
        network.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    name = "untrained" if weights is None else weights.parent.name
    return VisionTransformerEncoder(name, network, precision=precision)


class HeadlessEncoder:
    """The encoder of a network without its embedding head: the tokens of the last block."""

    def __init__(self, encoder: VisionTransformerEncoder) -> None:
        self.network: VisionTransformer = encoder.network
        self.name, self.bands = f"{encoder.name}, no head", encoder.bands
        self.patch_size, self.dim = encoder.patch_size, encoder.network.config.width

    def embed(
        self, chips: Tensor, *, bands: tuple[str, ...], gsd: float, time: Tensor | None = None
    ) -> Tensor:
        """Embed chips to (n, width, y / patch, x / patch)."""
        del time
        network, rows, columns = self.network, *(s // self.patch_size for s in chips.shape[2:])
        with torch.inference_mode(), torch.autocast(chips.device.type, torch.bfloat16):
            scale = torch.full((len(chips),), float(gsd))
            x = network.tokens(network.patches(compand(chips)), network.band_index(bands), scale)
            x = network.encode_tokens(x, token_positions(rows, columns))
        return x.float().transpose(1, 2).reshape(len(chips), -1, rows, columns)
