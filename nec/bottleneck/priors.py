"""What symbols are expected to be: quantisers with their rate, after CompressAI's models.

Each prior takes values in steps, rounds them and counts their bits, by logarithms throughout: what
a prior holds for all but impossible still has a slope. Rounding lets the gradient through as if it
were not there, for the bits too: at a hundredth of a bit a symbol, noise in place of rounding [3]_
costs more than the symbols do.

References
----------
.. [1] Ballé et al., Variational image compression with a scale hyperprior, ICLR 2018.
.. [2] Minnen, Ballé and Toderici, Joint Autoregressive and Hierarchical Priors for Learned Image
   Compression, NeurIPS 2018 (mean and scale).
.. [3] Ballé, Laparra and Simoncelli, End-to-end Optimized Image Compression, ICLR 2017.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nec.bottleneck.cosine import frequency_rings, octaves
from nec.bottleneck.entropy_models import load_entropy_models
from nec.codec.contexts import rings_of

# Smallest scale, in steps: most coefficients are almost surely 0, and almost free.
SMALLEST_SCALE = 0.02
# Logarithms nearer to one another are not told apart by float32.
SMALLEST_GAP = 1e-7
# Of bands in steps: where a prior begins that never saw a symbol but 0.
LEAST_WIDTH = 0.02
# Of magnitudes: fewer are not told from none.
LEAST_MEAN = 1e-4
# Rounds of decisions on what the ones before left.
ROUNDS = 2
# Weight of the past in running means.
MOMENTUM = 0.95


class Quantised(NamedTuple):
    """Values in whole steps (n, band, y, x), and the bits that each image takes (n,)."""

    values: Tensor
    bits: Tensor


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """Return `hard` with the gradient of `soft`."""
    return soft + (hard - soft).detach()


def _rounded(values: Tensor) -> Tensor:
    """Round values, with a slope where something is left of them.

    With a slope at 0 an encoder makes embeddings larger and larger, to be told of at all.
    """
    hard = values.round()
    return straight_through(torch.where(hard == 0, 0, values), hard)


def _bits(logarithm: Tensor) -> Tensor:
    """Return the bits of each image from the natural logarithms of likelihoods (n, ...)."""
    return -logarithm.flatten(1).sum(1) / math.log(2)


def _density_bits(density: Any, symbols: Tensor, scale: Tensor) -> Tensor:
    """Return the bits of symbols (n, band, y, x) by CompressAI's density of each band, at a scale.

    Of logits u and l of the cumulative on either side, the likelihood is
    sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)).
    """
    rows = symbols.transpose(0, 1).flatten(1)[:, None]
    wide = scale.reshape(-1, 1, 1)
    lower, upper = (density._logits_cumulative((rows + h) / wide, False) for h in (-0.5, 0.5))
    within = (-torch.expm1((lower - upper).clamp_max(-SMALLEST_GAP))).log()
    found = F.logsigmoid(upper) + F.logsigmoid(-lower) + within
    return _bits(found[:, 0].unflatten(1, (len(symbols), -1)).transpose(0, 1))


def _laplacian_bits(symbols: Tensor, scale: Tensor) -> Tensor:
    """Return the bits of each image; embeddings have heavier tails than a Gaussian."""
    near, one = (symbols.abs() - 0.5) / scale, 1 / scale
    within = near.clamp_max(0)
    inside = torch.log1p(-(within.exp() + (-within - one).exp()) / 2)
    outside = (-torch.expm1(-one)).log() - near - math.log(2)
    return _bits(torch.where(near < 0, inside, outside))


class TokenPrior(nn.Module):
    """What priors of tokens share: a scale of each band at each rate, in steps."""

    def __init__(self, bands: int, rates: int) -> None:
        super().__init__()
        # Logarithms.
        self.widths = nn.Parameter(torch.zeros(rates, bands))

    @torch.no_grad()
    def start(self, values: Tensor, steps: Tensor) -> None:
        """Take scales from values (n, band, y, x) of features, at steps (rate, band)."""
        magnitude = values.abs().mean((0, 2, 3)) / steps
        self.widths.copy_(magnitude.clamp_min(LEAST_WIDTH).log())


class FactorisedPrior(TokenPrior):
    """A density of its own for each band, alike at every place [1]_.

    Parameters
    ----------
    bands, rates : int
    """

    def __init__(self, bands: int, rates: int) -> None:
        super().__init__(bands, rates)
        models = load_entropy_models()
        self.densities = nn.ModuleList(
            models.EntropyBottleneck(bands, init_scale=1) for _ in range(rates)
        )

    def forward(self, values: Tensor, steps: Tensor, rate: int) -> Quantised:
        """Round values in steps (n, band, y, x) and count bits; `steps` are of no concern."""
        del steps
        hard = _rounded(values)
        return Quantised(hard, _density_bits(self.densities[rate], hard, self.widths[rate].exp()))


class HyperPrior(TokenPrior):
    """Mean and scale of every symbol, a Laplacian, from side information that sees the grid [2]_.

    Parameters
    ----------
    bands, rates : int
    width : int
        Channels of the side information, at a quarter of the resolution.
    """

    def __init__(self, bands: int, rates: int, *, width: int = 32) -> None:
        super().__init__(bands, rates)
        self.analysis = nn.Sequential(
            nn.Conv2d(bands, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(width, width, 5, stride=2, padding=2),
        )
        self.synthesis = nn.Sequential(
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * bands, 3, padding=1),
        )
        models = load_entropy_models()
        self.densities = nn.ModuleList(
            models.EntropyBottleneck(width, init_scale=1) for _ in range(rates)
        )
        # One network serves all rates: what it is told has a gain at each.
        self.gains = nn.Parameter(torch.zeros(rates, width))

    def forward(self, values: Tensor, steps: Tensor, rate: int) -> Quantised:
        """Round values in steps (n, band, y, x) and count bits; `steps` are of no concern."""
        del steps
        height, width = values.shape[-2:]
        own = self.widths[rate].exp()[:, None, None]
        padded = F.pad(values / own, (0, -width % 4, 0, -height % 4), mode="replicate")
        gain = self.gains[rate].exp()[:, None, None]
        soft = self.analysis(padded) * gain
        side = straight_through(soft, soft.round())
        mean, scale = self.synthesis(side / gain)[..., :height, :width].chunk(2, 1)
        mean, scale = mean * own, SMALLEST_SCALE + F.softplus(scale) * own
        hard = _rounded(values - mean) + mean
        told = _density_bits(self.densities[rate], side, side.new_ones(1))
        return Quantised(hard, told + _laplacian_bits(hard - mean, scale))


class CosinePrior(nn.Module):
    """Coefficients of the codec's block transform, each with a scale from what surrounds it.

    A differentiable likeness of `nec.codec`: a level for each band and ring of frequencies, the
    magnitudes of the next lower frequencies and of the bands before, a DC that is predicted, and
    rounding that goes one step towards zero where that saves more bits than it costs.

    Parameters
    ----------
    bands, rates : int
    block : int
        Edge of a block, tokens.
    lagrangian, falloff : float
        Squared error, in steps, that a bit is worth, and how many times more it is at each finer
        octave; see `nec.Compressor.fit`.
    """

    mean: Tensor

    def __init__(
        self,
        bands: int,
        rates: int,
        *,
        block: int = 64,
        lagrangian: float = 0.12,
        falloff: float = 1.0,
    ) -> None:
        super().__init__()
        self.block, self.lagrangian, self.falloff = block, lagrangian, falloff
        self.level = nn.Parameter(torch.zeros(rates, bands, rings_of(block)))
        # Before the softplus; lower and two sides, one and two bands before.
        self.context = nn.Parameter(torch.full((5, rings_of(block)), -3.0))
        self.register_buffer("mean", torch.zeros(bands))

    @torch.no_grad()
    def start(self, coefficients: Tensor, steps: Tensor) -> None:
        """Take levels and means from coefficients (n, band, y, x) of features.

        Decisions leave less than there is, and less at coarser steps (rate, band).
        """
        height, width = coefficients.shape[-2:]
        self.mean.copy_(coefficients[..., 0, 0].mean(0) / (height * width) ** 0.5)
        rings = frequency_rings(height, width, self.block).to(coefficients.device)
        for rate, own in enumerate(steps):
            values = coefficients / own[:, None, None]
            residual = values - self._expected(values, own)
            left = residual.abs()
            for _ in range(ROUNDS):
                # Of a Laplacian in steps of 1, by the mean magnitude of what it is rounded to.
                scale = own[:, None] * 0.5 / (0.5 / self._by_ring(left, rings)).asinh()
                # What the neighbours tell comes on top of the level.
                self.level[rate] = scale.log() - 0.5
                left = self._rounded(residual, own, rate)[0].abs()

    def _by_ring(self, magnitude: Tensor, rings: Tensor) -> Tensor:
        """Return means of magnitudes (n, band, y, x), by band and ring."""
        found = magnitude.mean((0, 2, 3))[:, None].repeat(1, self.level.shape[-1])
        for ring in rings.unique().tolist():
            found[:, ring] = magnitude[:, :, rings == ring].mean((0, 2))
        return found.clamp_min(LEAST_MEAN)

    def _expected(self, values: Tensor, steps: Tensor) -> Tensor:
        """Return what the codec predicts (band, y, x): whole steps of the DC."""
        height, width = values.shape[-2:]
        expected = torch.zeros_like(values[0])
        expected[:, 0, 0] = (self.mean * (height * width) ** 0.5 / steps.detach()).round()
        return expected

    def _contexts(self, magnitude: Tensor) -> Tensor:
        """Return what surrounds each coefficient, shape (5, n, band, y, x)."""
        waves = magnitude.clone()
        waves[..., 0, 0] = 0
        upper = F.pad(waves, (0, 0, 1, 0))[..., :-1, :]
        left = F.pad(waves, (1, 0))[..., :-1]
        corner = F.pad(waves, (1, 0, 1, 0))[..., :-1, :-1]
        before = F.pad(magnitude, (0, 0, 0, 0, 1, 0))[:, :-1]
        earlier = F.pad(magnitude, (0, 0, 0, 0, 2, 0))[:, :-2]
        return torch.stack((upper, left, corner, before, earlier))

    def forward(self, values: Tensor, steps: Tensor, rate: int) -> Quantised:
        """Round coefficients in steps (n, band, y, x) and count bits.

        Parameters
        ----------
        values : Tensor of shape (n, band, y, x)
        steps : Tensor of shape (band,)
            Levels are those of features: they hold while steps move.
        rate : int
        """
        if self.training:
            with torch.no_grad():
                height, width = values.shape[-2:]
                now = (values[..., 0, 0] * steps).mean(0) / (height * width) ** 0.5
                self.mean.lerp_(now, 1 - MOMENTUM)
        expected = self._expected(values, steps)
        residual = values - expected
        hard, scale = self._rounded(residual, steps, rate)
        symbols = straight_through(residual, hard)
        return Quantised(symbols + expected, _laplacian_bits(symbols, scale))

    def _rounded(self, residual: Tensor, steps: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """Return symbols and their scales; scales have a gradient."""
        height, width = residual.shape[-2:]
        rings = frequency_rings(height, width, self.block).to(residual.device)
        weights = F.softplus(self.context)[:, rings][:, None, None]
        level = SMALLEST_SCALE + self.level[rate].exp()[:, rings] / steps[:, None, None]
        hard = residual.detach().sign() * (residual.detach().abs() + 0.3).floor()
        with torch.no_grad():
            # What a coefficient is rounded to is what its neighbours see.
            for _ in range(ROUNDS):
                scale = level + (weights * self._contexts(hard.abs())).sum(0)
                hard = self._decide(residual, scale)
        return hard, level + (weights * self._contexts(hard.abs())).sum(0)

    def _decide(self, residual: Tensor, scale: Tensor) -> Tensor:
        """Round by rate and distortion: to the nearest, one step nearer to zero, or to zero."""
        height, width = residual.shape[-2:]
        octave = octaves(height, width).to(residual.device)
        worth = self.lagrangian * self.falloff**octave
        magnitude = residual.abs()
        nearest = (magnitude + 0.5).floor()
        tail = (-0.5 / scale).exp()
        of_zero = (1 - tail).log2()
        of_one = (tail / 2 * (1 - (-1 / scale).exp())).clamp_min(1e-30).log2()
        # Bits that a smaller magnitude saves.
        a_step = 1.4427 / scale
        down = torch.where(nearest == 1, of_zero - of_one, a_step)
        away = of_zero - of_one + (nearest - 1) * a_step
        lower = 2 * (magnitude - nearest) + 1 - worth * down
        none = 2 * magnitude * nearest - nearest.square() - worth * away
        hard = torch.where(lower <= none, nearest - 1, torch.zeros_like(nearest))
        better = (nearest > 0) & (torch.minimum(lower, none) < 0)
        return torch.where(better, hard, nearest) * residual.sign()
