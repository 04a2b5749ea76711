"""What decoded embeddings shall still tell: linear predictions, without labels.

The distortion of the bottleneck. Whatever a head is to learn from decoded embeddings has to be
in them, and linear heads are what is put on them, so each target is predicted by a linear map.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nec.pretrain.description import mean_and_roughness

# Ridge of the first linear maps, relative to the mean variance.
RIDGE = 1e-3


class TargetPrediction(nn.Module):
    """Linear predictions of targets from decoded tokens, by image or by token.

    Parameters
    ----------
    dim : int
        Length of a decoded vector.
    sizes : mapping of str to int
        Components of each target. Those of images have names that begin with "pooled", and are
        predicted from `mean_and_roughness` of their tokens; or with "mean", and are predicted
        from the mean alone: what goes there costs few bits, because means are low frequencies.
    weights : mapping of str to float
        Of each target in the loss.
    """

    def __init__(self, dim: int, sizes: Mapping[str, int], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.maps = nn.ModuleDict(
            {n: nn.Linear((1 + n.startswith("pooled")) * dim, s) for n, s in sizes.items()}
        )
        for name, size in sizes.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    @torch.no_grad()
    def start(self, features: Tensor, targets: Mapping[str, Tensor]) -> None:
        """Solve for the maps by ridge regression on a sample; see `forward`."""
        for name, target in targets.items():
            x, y = _pair(name, features, target)
            mean = y.nanmean(0).nan_to_num()
            scale = ((y - mean).square().nanmean(0).nan_to_num(1.0) + 1e-6).sqrt()
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_scale").copy_(scale)
            own: nn.Linear = self.maps[name]  # type: ignore[assignment]
            there = ~y.isnan()
            patterns, which = there.T.unique(dim=0, return_inverse=True)
            # Components that are missing on the same rows are solved for together.
            for k, rows in enumerate(patterns):
                columns = which == k
                if rows.sum() < 2:  # nothing is known of these: they are predicted as 0
                    own.weight[columns], own.bias[columns] = 0.0, 0.0
                    continue
                weight, bias = _ridge(x[rows], ((y - mean) / scale)[rows][:, columns])
                own.weight[columns], own.bias[columns] = weight, bias

    def forward(self, features: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss, and the unexplained share of each target's variance.

        Parameters
        ----------
        features : Tensor of shape (n, dim, y, x)
            Decoded.
        targets : mapping of str to Tensor of shape (n, token, c) or (n, c)
            NaN is missing; where all of one is, its share is 0.
        """
        total, parts = torch.zeros((), device=features.device), {}
        for name, target in targets.items():
            x, y = _pair(name, features, target)
            goal = (y - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_scale")
            missing = goal.isnan()
            error = (self.maps[name](x) - goal.nan_to_num()).square() * ~missing
            parts[name] = error.sum() / (~missing).sum().clamp_min(1)
            total = total + self.weights[name] * parts[name]
        return {"distortion": total, **parts}


def _pair(name: str, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if name.startswith("pooled"):
        return mean_and_roughness(features), target
    if name.startswith("mean"):
        return features.mean((2, 3)), target
    return features.flatten(2).transpose(1, 2).flatten(0, 1), target.flatten(0, 1)


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (out, in) and bias (out,) of the ridge regression of y on x."""
    mean, level = x.mean(0), y.mean(0)
    centred = (x - mean).double()
    gram = centred.T @ centred
    # Features that do not vary tell nothing, and leave nothing to divide by.
    ridge = (RIDGE * gram.diagonal().mean()).clamp_min(torch.finfo(gram.dtype).tiny)
    gram.diagonal().add_(ridge)
    weight = torch.linalg.solve(gram, centred.T @ (y - level).double()).T.float()
    return weight, level - weight @ mean
