"""Distillation of embeddings: a smaller network learns to give a trained one's, token by token."""

import torch
from torch import Tensor, nn

from nec.encoders.vit import VisionTransformer


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
    """

    def __init__(
        self,
        network: VisionTransformer,
        basis: Tensor,
        deviation: Tensor,
        *,
        pooled_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.network, self.pooled_weight = network, pooled_weight
        # Not part of the state: both follow from the teacher.
        scaled = basis / deviation.clamp(min=1e-3 * float(deviation.max())).sqrt()
        self.register_buffer("scaled", scaled / deviation.sum().sqrt(), persistent=False)

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
            (weighted as above).
        """
        error = self.network(view, index, gsd).float() - target.float()
        with torch.autocast(error.device.type, enabled=False):
            tokens = torch.einsum("ndyx,dk->nyxk", error, self.scaled)
        parts = {
            "tokens": tokens.square().sum(-1).mean(),
            "pooled": tokens.mean((1, 2)).square().sum(-1).mean(),
        }
        return {"loss": parts["tokens"] + self.pooled_weight * parts["pooled"], **parts}
