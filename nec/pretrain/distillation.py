"""Distillation of embeddings: a smaller network learns to give a trained one's, token by token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nec.encoders.vit import VisionTransformer
from nec.errors import ModelError
from nec.pretrain.description import mean_and_roughness, whitening


class Distillation(nn.Module):
    """Squared error between two networks' embeddings of the same views, tokens and their mean.

    Errors are taken in the components of the basis, each over the deviation that the
    teacher has there: between the plain squared error, in which weak components are lost, and
    that of whitened components, in which noise counts as much as what is seen.

    Parameters
    ----------
    network : VisionTransformer
        The student.
    basis : Tensor of shape (dim, component)
        Orthonormal rotation of the teacher's embedding.
    deviation : Tensor of shape (component,)
        Standard deviation of the teacher's components, in units of the embedding.
    pooled_weight : float
        Weight of the error of the mean over an image's tokens.
    sample : sequence of Tensor of shape (n, dim, y, x), optional
        Teacher's embeddings of images, which whiten what `described_weight` weighs.
    described_weight : float
        Weight of the error of mean and roughness of an image, whitened: what a linear head with
        standardised inputs reads, weak directions as well as strong ones.
    """

    described: Tensor | None

    def __init__(
        self,
        network: VisionTransformer,
        basis: Tensor,
        deviation: Tensor,
        *,
        pooled_weight: float = 1.0,
        sample: Sequence[Tensor] | None = None,
        described_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if described_weight and sample is None:
            raise ModelError(
                f"described_weight is {described_weight}, and there is no sample to whiten by",
                "pass sample=: the teacher's embeddings of some images",
            )
        self.network, self.pooled_weight = network, pooled_weight
        self.described_weight = described_weight
        described = None
        if sample is not None:
            _, described = whitening(torch.cat([mean_and_roughness(part) for part in sample]))
        # Not part of the state: they follow from the teacher.
        scaled = basis / deviation.clamp(min=1e-3 * float(deviation.max())).sqrt()
        self.register_buffer("scaled", scaled / deviation.sum().sqrt(), persistent=False)
        self.register_buffer("described", described, persistent=False)

    def forward(
        self, view: Tensor, index: list[int], gsd: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Parameters
        ----------
        view : Tensor of shape (n, band, y, x)
            Reflectance of the bands that `index` names.
        index : list of int
            Projections of the bands.
        gsd : Tensor of shape (n,)
            Ground sampling distance, metres.
        target : Tensor of shape (n, dim, y / patch, x / patch)
            The teacher's embedding of the same.

        Returns
        -------
        dict of str to Tensor
            `loss`, and its parts `tokens` and `pooled`, as fractions of the teacher's variance
            (weighted as above), and with a sample `described`, of each direction's.
        """
        found = self.network(view, index, gsd).float()
        error = found - target.float()
        with torch.autocast(error.device.type, enabled=False):
            tokens = torch.einsum("ndyx,dk->nyxk", error, self.scaled)
        parts = {
            "tokens": tokens.square().sum(-1).mean(),
            "pooled": tokens.mean((1, 2)).square().sum(-1).mean(),
        }
        loss = parts["tokens"] + self.pooled_weight * parts["pooled"]
        if self.described is not None:
            with torch.autocast(error.device.type, enabled=False):
                apart = mean_and_roughness(found) - mean_and_roughness(target.float())
                parts["described"] = (apart @ self.described).square().mean()
            loss = loss + self.described_weight * parts["described"]
        return {"loss": loss, **parts}
