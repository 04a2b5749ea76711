"""`Bottleneck`: an orthonormal projection, learned steps for each rate, and a prior."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from nec.bottleneck.cosine import cosine
from nec.bottleneck.priors import CosinePrior, FactorisedPrior, HyperPrior
from nec.codec.contexts import BLOCKS
from nec.errors import CompressorError

KINDS = ("transform", "factorised", "hyperprior")


class Coded(NamedTuple):
    """What comes out of a bottleneck.

    Attributes
    ----------
    features : Tensor of shape (n, dim, y, x)
        Decoded.
    bits : Tensor of shape (n,)
        What each image is estimated to take.
    """

    features: Tensor
    bits: Tensor


class Bottleneck(nn.Module):
    """Features to few bits and back, at any of several rates.

    Features are projected on orthonormal columns, as the store's basis does, and rounded to
    steps of each band: gain units [1]_, one row for each rate. So what is learned is what a
    `nec.Compressor` holds.

    Parameters
    ----------
    dim : int
        Length of a feature vector.
    rates : int
        Number of rates.
    rank : int, optional
        Number of bands kept; all by default.
    kind : {"transform", "factorised", "hyperprior"}
        "transform" rounds the coefficients of the codec's block transform, see
        `nec.bottleneck.priors.CosinePrior`. The others round tokens: each band with a density of
        its own, or with mean and scale from side information that sees the grid. A hyperprior
        cannot be exported: its decoder is a network of floats.
    block : int
        Edge of a block of the transform, tokens.
    falloff : float
        How many times less an error counts at each finer octave of the transform, see
        `nec.Compressor.fit`: what is learned is learned for streams that are coded so.

    Raises
    ------
    CompressorError
        If there is no such kind or number of bands, or a falloff without a transform.

    References
    ----------
    .. [1] Cui et al., Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation,
       CVPR 2021.
    """

    def __init__(
        self,
        dim: int,
        rates: int,
        *,
        rank: int | None = None,
        kind: str = "transform",
        block: int = 64,
        falloff: float = 1.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise CompressorError(f"there is no bottleneck {kind!r}", f"choose among {KINDS}")
        if falloff != 1 and kind != "transform":
            raise CompressorError(
                f"a falloff of {falloff} in a bottleneck {kind!r}, which has no octaves",
                "take kind 'transform'",
            )
        bands = dim if rank is None else rank
        if not 0 < bands <= dim:
            raise CompressorError(f"{rank} bands of {dim} features", f"keep 1 to {dim}")
        if block not in BLOCKS:
            raise CompressorError(
                f"block {block} is not one of {', '.join(map(str, BLOCKS))}", "choose one of them"
            )
        self.kind, self.block = kind, block if kind == "transform" else 1
        self.falloff = falloff
        linear = nn.Linear(dim, bands, bias=False)
        # Cayley's map needs no exponential, and takes a basis to start from.
        self.projection = orthogonal(linear, orthogonal_map="cayley")
        self.log_steps = nn.Parameter(torch.zeros(rates, bands))
        self.prior: CosinePrior | FactorisedPrior | HyperPrior
        if kind == "transform":
            self.prior = CosinePrior(bands, rates, block=block, falloff=falloff)
        elif kind == "factorised":
            self.prior = FactorisedPrior(bands, rates)
        else:
            self.prior = HyperPrior(bands, rates)

    @property
    def rates(self) -> int:
        """Number of rates."""
        return len(self.log_steps)

    @property
    def basis(self) -> Tensor:
        """Orthonormal columns (dim, band)."""
        return cast(Tensor, self.projection.weight).T

    @torch.no_grad()
    def start(
        self, features: Tensor, *, basis: NDArray[np.float32], steps: NDArray[np.float32]
    ) -> None:
        """Begin with what a compressor holds.

        Parameters
        ----------
        features : Tensor of shape (n, dim, y, x)
            A sample.
        basis : ndarray of shape (dim, component), float32
            Its first bands are taken.
        steps : ndarray of shape (rate, component), float32
        """
        bands = self.log_steps.shape[1]
        # Orthonormal to the last bit, as the parametrisation demands.
        exact, triangle = np.linalg.qr(basis[:, :bands].astype(np.float64))
        exact = exact * np.sign(np.diag(triangle))
        self.projection.weight = torch.from_numpy(exact.T).float().to(features.device)
        self.log_steps.copy_(torch.from_numpy(np.log(steps[:, :bands])))
        self.prior.start(self.analyse(features), self.log_steps.exp())

    def analyse(self, features: Tensor) -> Tensor:
        """Return what is rounded of features (n, dim, y, x), in their units: (n, band, y, x)."""
        with torch.autocast(features.device.type, enabled=False):
            bands = torch.einsum("ndyx,db->nbyx", features.float(), self.basis)
            return cosine(bands) if self.kind == "transform" else bands

    def forward(self, features: Tensor, rate: int) -> Coded:
        """Code features (n, dim, y, x) at a rate, and decode them; in float32, under autocast too.

        Raises
        ------
        CompressorError
            If a transformed grid is larger than a block.
        """
        with torch.autocast(features.device.type, enabled=False):
            steps = self.log_steps[rate].exp()
            values, bits = self.prior(self.analyse(features) / steps[:, None, None], steps, rate)
            decoded = values * steps[:, None, None]
            if self.kind == "transform":
                decoded = cosine(decoded, inverse=True)
            return Coded(torch.einsum("nbyx,db->ndyx", decoded, self.basis), bits)

    def quantiles(self) -> list[nn.Parameter]:
        """Return the parameters of the auxiliary loss: where CompressAI's tables end."""
        return [p for name, p in self.named_parameters() if name.endswith(".quantiles")]

    def auxiliary_loss(self) -> Tensor:
        """Return CompressAI's loss of the quantiles; they have an optimiser of their own."""
        total = torch.zeros((), device=self.log_steps.device)
        if not isinstance(self.prior, CosinePrior):
            densities: Any = self.prior.densities
            for density in densities:
                total = total + density.loss()
        return total
