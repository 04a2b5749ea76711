"""The end of an encoder, which trains, apart from its trunk, which does not."""

from typing import Self

import torch
from torch import Tensor, nn

from nec.encoders.vit import VisionTransformer, compand, rotary_angles, token_positions
from nec.errors import ModelError


class EncoderEnd(nn.Module):
    """The last blocks of a vision transformer, its norm and its head.

    They are the network's own: what is trained here is trained there.

    Parameters
    ----------
    network : VisionTransformer
    blocks : int
        How many blocks; 0 for the head alone.
    """

    def __init__(self, network: VisionTransformer, *, blocks: int = 1) -> None:
        super().__init__()
        depth = len(network.blocks)
        if not 0 <= blocks <= depth:
            raise ModelError(f"{blocks} blocks of {depth} are no end", f"choose 0 to {depth}")
        self.config = network.config
        self.blocks = nn.ModuleList(list(network.blocks)[depth - blocks :])
        self.norm, self.head = network.norm, network.head

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn the trunk's tokens (n, y, x, width) into features (n, dim, y, x)."""
        _, rows, columns, _ = tokens.shape
        angles = rotary_angles(
            token_positions(rows, columns, tokens.device), self.config.width // self.config.heads
        )
        x = tokens.flatten(1, 2)
        for block in self.blocks:
            x = block(x, *angles)
        return self.head(self.norm(x)).transpose(1, 2).unflatten(2, (rows, columns))

    @torch.no_grad()
    def trunk(
        self, network: VisionTransformer, chips: Tensor, index: list[int], gsd: Tensor
    ) -> Tensor:
        """Run what comes before over reflectance chips (n, band, y, x).

        Returns
        -------
        Tensor of shape (n, y, x, width)
        """
        rows, columns = (s // self.config.patch_size for s in chips.shape[-2:])
        x = network.tokens(network.patches(compand(chips)), index, gsd)
        angles = rotary_angles(
            token_positions(rows, columns, chips.device), self.config.width // self.config.heads
        )
        for block in list(network.blocks)[: len(network.blocks) - len(self.blocks)]:
            x = block(x, *angles)
        return x.unflatten(1, (rows, columns))

    def freeze(self) -> Self:
        """Train nothing of it: the bottleneck alone."""
        return self.requires_grad_(False)
